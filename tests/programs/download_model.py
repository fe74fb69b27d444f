"""Weights that are downloaded when the image is built: into the image, and into a volume."""

import json
import os
from pathlib import Path

import modal

MODEL_DIR = "/model"
CACHE_DIR = "/cache"
cache = modal.Volume.from_name("build-cache", create_if_missing=True)


def download_model_to_image(model_name: str, revision: str = "main"):
    import cowsay

    assert os.environ["HF_TOKEN"].startswith("hf_")
    directory = Path(MODEL_DIR, model_name)
    directory.mkdir(parents=True)
    (directory / f"{revision}.txt").write_text(cowsay.__version__)


def download_model_to_volume():
    fetched = Path(CACHE_DIR, "weights.bin")
    fetched.write_text(os.environ["HF_HUB_CACHE"])
    print("downloaded", fetched)


image = (
    modal.Image.debian_slim(python_version="3.12")
    .pip_install("cowsay==6.1")
    .env({"HF_HUB_CACHE": CACHE_DIR})
    .run_function(
        download_model_to_image,
        args=["stub/tiny"],
        kwargs={"revision": "v1"},
        secrets=[modal.Secret.from_name("huggingface-secret")],
        timeout=600,
    )
    .run_function(download_model_to_volume, volumes={CACHE_DIR: cache})
    .run_commands(f"cat {CACHE_DIR}/weights.bin > /seen-by-commands", volumes={CACHE_DIR: cache.read_only()})
)
app = modal.App("example-download-model")


@app.function(image=image, volumes={CACHE_DIR: cache})
def check() -> dict:
    return {
        "in_image": Path(MODEL_DIR, "stub/tiny/v1.txt").read_text(),
        "in_volume": Path(CACHE_DIR, "weights.bin").read_text(),
        "seen": Path("/seen-by-commands").read_text(),
        "token": "HF_TOKEN" in os.environ,
    }


@app.local_entrypoint()
def main():
    print(json.dumps(check.remote()))
