"""What images of real programs are made of, in one chain and in one app with several."""

import json
import os
import shutil
import sys
from pathlib import Path

import modal

HERE = Path(__file__).parent

plain = modal.Image.debian_slim().pip_install("cowsay==6.1").env({"GREETING": "moo"})
rich = (
    modal.Image.debian_slim(python_version="3.12")
    .apt_install("tree")
    .pip_install("cowsay==6.0", "httpx")
    .uv_pip_install("idna")
    .run_commands("mkdir -p /srv/app && echo built > /srv/app/stamp", "tree --version > /srv/app/tree")
    .workdir("/srv/app")
    .env({"GREETING": "MOO"})
    .entrypoint([])
    .add_local_dir(HERE / "assets", "/assets", ignore=["*.log"])
    .add_local_python_source("shared_text")
)
app = modal.App("example-image-chain")


def facts() -> dict:
    import cowsay

    return {
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "cowsay": cowsay.__version__,
        "greeting": os.environ["GREETING"],
        "tree": shutil.which("tree"),
        "directory": os.getcwd(),
    }


@app.function(image=plain)
def in_plain() -> dict:
    return facts()


@app.function(image=rich)
def in_rich() -> dict:
    import httpx
    import idna
    import shared_text

    return facts() | {
        "stamp": Path("stamp").read_text().strip(),
        "assets": sorted(os.listdir("/assets")),
        "settings": json.loads(Path("/assets/settings.json").read_text()),
        "shout": shared_text.shout("done"),
        "packages": [bool(httpx.__version__), bool(idna.__version__)],
    }


@app.local_entrypoint()
def main():
    print(json.dumps([in_plain.remote(), in_rich.remote()]))
