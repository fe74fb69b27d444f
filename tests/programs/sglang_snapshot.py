"""An engine that a class starts when it enters, as those do whose memory is to be kept in a snapshot."""

import json
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import modal

MINUTES = 60  # seconds
PORT = 8001
MODEL = "Qwen/Qwen3-4B"

sglang_image = (
    modal.Image.from_registry("python:3.12-slim")
    .entrypoint([])
    .uv_pip_install("aiohttp")
    .add_local_file(Path(__file__).parent / "engine.py", "/usr/local/bin/sglang", copy=True)
    .run_commands("chmod +x /usr/local/bin/sglang")
    .env({"TORCHINDUCTOR_COMPILE_THREADS": "1"})
)
app = modal.App("example-sglang-snapshot", image=sglang_image)

with sglang_image.imports():
    import aiohttp


def wait_ready(process: subprocess.Popen, timeout: int = 5 * MINUTES):
    deadline = time.time() + timeout
    while time.time() < deadline:
        if (code := process.poll()) is not None:
            raise subprocess.CalledProcessError(code, cmd=process.args)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health"):
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"the engine was not ready within {timeout} seconds")


@app.cls(
    gpu="H100!:1",
    startup_timeout=10 * MINUTES,
    scaledown_window=15 * MINUTES,
    enable_memory_snapshot=True,
    experimental_options={"enable_gpu_snapshot": True},
    region="us-east",
    max_containers=1,
)
@modal.concurrent(max_inputs=1000, target_inputs=10)
class Sglang:
    @modal.enter(snap=True)
    def startup(self):
        self.process = subprocess.Popen(["sglang", "serve", MODEL, "--port", str(PORT)])
        wait_ready(self.process)
        self.warm = "warm"

    @modal.enter(snap=False)
    async def wake_up(self):
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{PORT}/v1/models") as response:
            assert response.status == 200

    @modal.web_server(port=PORT)
    def serve(self):
        pass

    @modal.method()
    def status(self) -> str:
        return f"{self.warm} {self.process.poll()}"

    @modal.exit()
    def stop(self):
        self.process.terminate()


def ask(url: str, number: int) -> dict:
    message = {"role": "user", "content": f"question {number} " + "and again " * 10}
    data = json.dumps({"model": MODEL, "messages": [message]}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


@app.local_entrypoint()
def main(requests: int = 60):
    url = Sglang().serve.get_web_url()
    with ThreadPoolExecutor(requests) as threads:
        answers = list(threads.map(lambda number: ask(url, number), range(requests)))
    assert all(answer["choices"][0]["message"]["content"].startswith("You said: question") for answer in answers)
    print(
        json.dumps(
            {
                "engines": len({answer["engine"] for answer in answers}),
                "in_flight_max": max(answer["in_flight_max"] for answer in answers),
                "status": Sglang().status.remote(),
            }
        )
    )
