"""Transcribes in batches of up to 64 that come together within a second."""

import json
import os

import modal

image = modal.Image.debian_slim(python_version="3.11").uv_pip_install("cowsay==6.1")
app = modal.App("example-batched-whisper", image=image)

MODEL_NAME = "openai/whisper-large-v3"


@app.cls(gpu="a10g", max_containers=2)
class Model:
    @modal.enter()
    def load_model(self):
        def pipeline(samples: list[bytes], batch_size: int) -> list[dict]:
            return [{"text": sample.decode().upper(), "batch": len(samples)} for sample in samples]

        self.pipeline = pipeline

    @modal.batched(max_batch_size=64, wait_ms=1000)
    def transcribe(self, audio_samples: list[bytes]) -> list[tuple[str, int, str]]:
        transcriptions = self.pipeline(audio_samples, batch_size=len(audio_samples))
        return [(item["text"], item["batch"], os.environ["MODAL_TASK_ID"]) for item in transcriptions]


@app.function()
async def transcribe_dataset(count: int):
    model = Model()
    async for text, batch, container in model.transcribe.map.aio([f"clip {n}".encode() for n in range(count)]):
        yield text, batch, container


@app.local_entrypoint()
async def main(count: int = 200):
    found = [item async for item in transcribe_dataset.remote_gen.aio(count)]
    assert [text for text, _, _ in found] == [f"CLIP {n}" for n in range(count)]
    single = await Model().transcribe.remote.aio(b"one alone")
    print(
        json.dumps(
            {
                "batches": sorted({batch for _, batch, _ in found}),
                "containers": len({container for _, _, container in found}),
                "single": single[:2],
            }
        )
    )
