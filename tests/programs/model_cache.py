"""A class with a parameter whose weights are downloaded once into a volume, with a token from a secret."""

import asyncio
import json
import os
import time
from pathlib import Path

import modal

CACHE_DIR = "/cache"
image = modal.Image.debian_slim(python_version="3.11").uv_pip_install("cowsay==6.1").env({"HF_HUB_CACHE": CACHE_DIR})
app = modal.App("example-model-cache", image=image)
cache = modal.Volume.from_name("hf-hub-cache", create_if_missing=True)

with image.imports():
    import cowsay


@app.cls(
    gpu="L40S",
    volumes={CACHE_DIR: cache},
    secrets=[modal.Secret.from_name("huggingface-secret", required_keys=["HF_TOKEN"])],
    scaledown_window=2,
    timeout=600,
)
class Inference:
    model_id: str = modal.parameter(default="stub/tiny")
    revision: int = modal.parameter(default=1)

    @modal.enter()
    def load(self):
        assert os.environ["HF_TOKEN"].startswith("hf_")
        weights = Path(CACHE_DIR) / self.model_id / f"{self.revision}.bin"
        self.downloaded = not weights.exists()
        if self.downloaded:
            weights.parent.mkdir(parents=True, exist_ok=True)
            weights.write_text("weights of " + self.model_id)
            cache.commit()
        self.weights = weights.read_text()
        self.order = ["load"]

    @modal.enter()
    async def warm_up(self):
        await asyncio.sleep(0.01)
        self.order.append("warm_up")

    @modal.method()
    def run(self, prompt: str) -> dict:
        return {
            "answer": cowsay.get_output_string("cow", prompt),
            "weights": self.weights,
            "downloaded": self.downloaded,
            "order": self.order,
            "container": os.environ["MODAL_TASK_ID"],
        }

    @modal.exit()
    def say_bye(self):
        print("bye from", self.model_id)


@app.local_entrypoint()
def main(prompt: str = "moo"):
    first = Inference(model_id="stub/large").run.remote(prompt)
    other = Inference(model_id="stub/large", revision=2).run.remote(prompt)
    deadline = time.monotonic() + 60
    while (again := Inference(model_id="stub/large").run.remote(prompt))["container"] == first["container"]:
        assert time.monotonic() < deadline, "the first container never went"
        time.sleep(5)
    print(json.dumps([first, other, again]))
