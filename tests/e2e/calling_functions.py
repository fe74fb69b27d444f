"""Web functions whose handlers call other functions, as the documents of the seed do it: with a plain `.remote`."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import fastapi

import kedge

app = kedge.App("callers")
quick: dict[str, Any] = {"scaledown_window": 2}


@app.cls(**quick)
class LlmServer:
    @kedge.method(concurrency_limit=4, timeout=60)
    def generate(self, prompt: str) -> str:
        return f"echo {prompt}"


def make() -> fastapi.FastAPI:
    site = fastapi.FastAPI()
    server = LlmServer()

    @site.get("/generate")
    async def generate(prompt: str) -> dict[str, Any]:
        return {"output": server.generate.remote(prompt), "input": kedge.current_input_id(), "process": os.getpid()}

    @site.get("/generate-plain")
    def generate_plain(prompt: str) -> dict[str, Any]:
        return {"output": server.generate.remote(prompt)}

    @site.get("/generate-aio")
    async def generate_aio(prompt: str) -> dict[str, Any]:
        return {"output": await server.generate.remote.aio(prompt)}

    return site


@app.function(max_containers=2, **quick)
@kedge.web_server()
def narrow() -> fastapi.FastAPI:
    return make()


@app.function(max_containers=1, **quick)
@kedge.concurrent(max_inputs=20)
@kedge.asgi_app()
def wide() -> fastapi.FastAPI:
    return make()


@app.cls(**quick)
@kedge.concurrent(max_inputs=20)
class Own:
    """Its handler waits, without giving way to others, for what only the loop of such a container can run."""

    @kedge.method()
    async def generate(self, prompt: str) -> str:
        await asyncio.sleep(0)
        return f"own {prompt}"

    @kedge.asgi_app()
    def web(self) -> fastapi.FastAPI:
        site = fastapi.FastAPI()

        @site.get("/")
        async def index(prompt: str) -> str:
            return self.generate.remote(prompt)

        return site
