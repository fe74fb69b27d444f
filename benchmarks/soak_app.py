"""The app that the soak asks while its containers and its server are killed."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import kedge

app = kedge.App("soak")
EVENTS = 20
"""Of one stream, before the one that says that it is whole."""


@app.function(max_containers=2, scaledown_window=10, timeout=60)
@kedge.concurrent(max_inputs=20)
@kedge.asgi_app(label="soak")
def site() -> Any:
    return answer


async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """GET repeats its path, POST says the digest of its body, `/events/…` streams, a WebSocket repeats."""
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    path = scope["path"].removeprefix(scope["root_path"])
    if scope["type"] == "websocket":
        await repeat(receive, send)
    elif path.startswith("/events/"):
        await start(send)
        for n in range(EVENTS):
            await send({"type": "http.response.body", "body": f"{path} {n}\n".encode(), "more_body": True})
            await asyncio.sleep(random.uniform(0, 0.02))
        await send({"type": "http.response.body", "body": b"whole\n"})
    else:
        digest, more = hashlib.sha256(), True
        while more:
            event = await receive()
            digest.update(event.get("body", b""))
            more = event.get("more_body", False)
        await asyncio.sleep(random.uniform(0, 0.05))
        await start(send)
        said = path if scope["method"] == "GET" else digest.hexdigest()
        await send({"type": "http.response.body", "body": said.encode()})


async def start(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})


async def repeat(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"]})


@app.function(max_containers=2, scaledown_window=10, timeout=60)
@kedge.concurrent(max_inputs=10)
async def double(value: int) -> int:
    await asyncio.sleep(random.uniform(0, 0.05))
    return 2 * value


@app.function(max_containers=2, scaledown_window=10, timeout=60)
@kedge.concurrent(max_inputs=4)
async def count(start: int) -> AsyncIterator[int]:
    for n in range(start, start + 20):
        await asyncio.sleep(random.uniform(0, 0.02))
        yield n


@app.function(max_containers=2, scaledown_window=10, timeout=60)
@kedge.concurrent(max_inputs=4)
async def keep(directory: str, token: str) -> str:
    """Every attempt leaves a line; one result is kept."""
    with (Path(directory) / token).open("a") as file:
        file.write("begun\n")
    await asyncio.sleep(random.uniform(0, 0.3))
    return f"kept {token}"
