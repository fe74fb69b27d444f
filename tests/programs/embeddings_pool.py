"""Embeddings by a pool of engines, one pool per model: each container runs an engine as a process of its own."""

import json
import os
import socket
import subprocess
from pathlib import Path

import modal

tei_image = (
    modal.Image.debian_slim(python_version="3.11")
    .add_local_file(Path(__file__).parent / "engine.py", "/usr/local/bin/text-embeddings-router", copy=True)
    .run_commands("chmod 755 /usr/local/bin/text-embeddings-router")
    .uv_pip_install("httpx")
    .dockerfile_commands("ENTRYPOINT []")
)
app = modal.App("example-embeddings-pool")

with tei_image.imports():
    from httpx import AsyncClient


def free_port() -> int:
    with socket.socket() as found:  # containers of one machine share its ports
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def spawn_server(model_id: str, port: int) -> subprocess.Popen:
    process = subprocess.Popen(["text-embeddings-router", "--model-id", model_id, "--port", str(port)])
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return process
        except (TimeoutError, ConnectionRefusedError):
            if process.poll() is not None:
                raise RuntimeError(f"the engine exited with {process.returncode}") from None


@app.cls(image=tei_image, gpu="A10G", max_containers=1, retries=3)
@modal.concurrent(max_inputs=14, target_inputs=10)
class TextEmbeddingsInference:
    model_id: str = modal.parameter(default="BAAI/bge-base-en-v1.5")

    @modal.enter()
    def open_connection(self):
        port = free_port()
        self.process = spawn_server(self.model_id, port)
        self.client = AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)

    @modal.exit()
    def terminate_connection(self):
        self.process.terminate()

    @modal.method()
    async def embed(self, inputs: list[str]) -> dict:
        response = await self.client.post("/embed", json={"inputs": inputs})
        response.raise_for_status()
        return {**response.json(), "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}


@app.local_entrypoint()
def main(batches: int = 60):
    texts = [[f"text {number}.{n}" for n in range(8)] for number in range(batches)]
    small = TextEmbeddingsInference().embed
    Large = TextEmbeddingsInference.with_options(gpu="L40S", max_containers=1)
    large = Large(model_id="large").embed
    for handle in (small, large):
        found = list(handle.map(texts, order_outputs=False))
        assert all(len(one["embeddings"]) == 8 for one in found)
        print(
            json.dumps(
                {
                    "answers": len(found),
                    "models": sorted({one["model"] for one in found}),
                    "engines": len({one["engine"] for one in found}),
                    "in_flight_max": max(one["in_flight_max"] for one in found),
                    "devices": sorted({one["visible"] for one in found}),
                }
            )
        )
