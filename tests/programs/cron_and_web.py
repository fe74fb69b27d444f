"""A cron job that refreshes a file of a volume, and a web app that shows what is there now."""

import json
from datetime import UTC, datetime
from pathlib import Path

import modal

app = modal.App("example-cron-and-web")
image = modal.Image.debian_slim(python_version="3.12").uv_pip_install("fastapi[standard]==0.115.4")
volume = modal.Volume.from_name("prices", create_if_missing=True)
VOLUME_DIR = "/cache-vol"
REPORT = Path(VOLUME_DIR, "report.json")


@app.function(image=image, volumes={VOLUME_DIR: volume}, schedule=modal.Period(seconds=2), max_containers=1)
def refresh():
    volume.reload()
    number = json.loads(REPORT.read_text())["number"] + 1 if REPORT.exists() else 1
    REPORT.write_text(json.dumps({"number": number, "at": datetime.now(UTC).isoformat()}))
    volume.commit()
    print(f"refresh {number}")


@app.function(image=image, schedule=modal.Cron("0 9 * * *"))
def daily():
    print("good morning")


@app.function(image=image, volumes={VOLUME_DIR: volume}, max_containers=1)
@modal.concurrent(max_inputs=100)
@modal.asgi_app()
def web():
    from fastapi import FastAPI, HTTPException

    web_app = FastAPI()

    @web_app.get("/")
    async def show():
        await volume.reload.aio()
        if not REPORT.exists():
            raise HTTPException(status_code=404, detail="nothing yet")
        return json.loads(REPORT.read_text())

    return web_app
