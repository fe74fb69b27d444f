"""An OpenAI-compatible engine that takes 32 requests at once, on a GPU of its own, with its caches in volumes."""

import asyncio
import json
import subprocess
from pathlib import Path

import modal

vllm_image = (
    modal.Image.debian_slim(python_version="3.12")
    .uv_pip_install("aiohttp")
    .add_local_file(Path(__file__).parent / "engine.py", "/usr/local/bin/vllm", copy=True)
    .run_commands("chmod +x /usr/local/bin/vllm")
    .entrypoint([])
    .env({"HF_XET_HIGH_PERFORMANCE": "1", "HF_HOME": "/root/.cache/huggingface"})
)

MODEL_NAME = "openai/gpt-oss-20b"
hf_cache_vol = modal.Volume.from_name("huggingface-cache", create_if_missing=True)
vllm_cache_vol = modal.Volume.from_name("vllm-cache", create_if_missing=True)

app = modal.App("example-vllm-inference")

N_GPU = 1
MINUTES = 60  # seconds
VLLM_PORT = 8000


@app.function(
    image=vllm_image,
    gpu=f"H100:{N_GPU}",
    scaledown_window=15 * MINUTES,
    timeout=10 * MINUTES,
    startup_timeout=10 * MINUTES,
    max_containers=2,
    volumes={
        "/root/.cache/huggingface": hf_cache_vol,
        "/root/.cache/vllm": vllm_cache_vol,
    },
)
@modal.concurrent(max_inputs=32)
@modal.web_server(port=VLLM_PORT, startup_timeout=10 * MINUTES)
def serve():
    cmd = [
        "vllm",
        "serve",
        MODEL_NAME,
        "--served-model-name",
        MODEL_NAME,
        "llm",
        "--host",
        "0.0.0.0",
        "--port",
        str(VLLM_PORT),
        "--tensor-parallel-size",
        str(N_GPU),
    ]
    print(*cmd)
    subprocess.Popen(" ".join(cmd), shell=True)


@app.function(image=vllm_image, timeout=10 * MINUTES)
async def load_test(url: str, requests: int) -> list[dict]:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        async with session.get(f"{url}/health", timeout=aiohttp.ClientTimeout(total=5 * MINUTES)) as response:
            assert response.status == 200, f"Failed health check for server at {url}"
        return await asyncio.gather(
            *(_send_request(session, url, f"question {n} " + "and again " * 10) for n in range(requests))
        )


async def _send_request(session, url: str, question: str) -> dict:
    payload = {"messages": [{"role": "user", "content": question}], "model": "llm", "stream": True}
    text = ""
    async with session.post(f"{url}/v1/chat/completions", json=payload) as response:
        response.raise_for_status()
        async for raw in response.content:
            line = raw.decode().strip()
            if not line or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            assert chunk["object"] == "chat.completion.chunk"
            text += chunk["choices"][0]["delta"].get("content", "")
    assert text == f"You said: {question}", text
    return chunk


@app.local_entrypoint()
def main(requests: int = 100):
    answers = load_test.remote(serve.get_web_url(), requests)
    engines: dict[str, dict] = {}
    for answer in answers:
        seen = engines.setdefault(answer["engine"], {**answer, "answers": 0})
        seen["answers"] += 1
        seen["in_flight_max"] = max(seen["in_flight_max"], answer["in_flight_max"])
    print(json.dumps(list(engines.values())))
