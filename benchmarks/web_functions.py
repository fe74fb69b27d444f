"""The same two web apps, for kedge and for plain uvicorn: a trivial FastAPI, and one on bare ASGI."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import fastapi

import kedge

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

PART = 64 * 1024
EVENT = b"data: " + b"x" * 56 + b"\n\n"

app = kedge.App("benchmarks-web")
fast = fastapi.FastAPI(openapi_url=None)


@fast.get("/")
async def hello() -> dict[str, str]:
    return {"hello": "world"}


async def bare(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """`/` is small, `/events/N` streams so many, `/upload` counts, `/download/N` sends so many bytes, a WebSocket
    repeats what it hears."""
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await repeat(receive, send)
        return
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    name, _, number = path.strip("/").partition("/")
    if name == "events":
        await answer(send, b"text/event-stream", (EVENT for _ in range(int(number))))
    elif name == "download":
        part = os.urandom(PART)
        size = int(number)
        await answer(send, b"application/octet-stream", (part[: size - at] for at in range(0, size, PART)), size)
    elif name == "upload":
        received, more = 0, True
        while more:
            event = await receive()
            received, more = received + len(event.get("body", b"")), event.get("more_body", False)
        await answer(send, b"text/plain", [str(received).encode()])
    else:
        body = b'{"hello":"world"}'
        await start(send, b"application/json", len(body))
        await send({"type": "http.response.body", "body": body})


async def repeat(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        if event.get("text") is not None:
            await send({"type": "websocket.send", "text": event["text"]})
        else:
            await send({"type": "websocket.send", "bytes": event["bytes"]})


async def start(send: Send, kind: bytes, size: int | None) -> None:
    headers = [(b"content-type", kind)]
    if size is not None:
        headers.append((b"content-length", str(size).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def answer(send: Send, kind: bytes, parts: Any, size: int | None = None) -> None:
    await start(send, kind, size)
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@app.function(max_containers=1, min_containers=1)
@kedge.concurrent(max_inputs=100)
@kedge.asgi_app(label="benchmark-fast")
def fast_site() -> Any:
    return fast


@app.function(max_containers=1, min_containers=1)
@kedge.concurrent(max_inputs=100)
@kedge.asgi_app(label="benchmark-bare")
def bare_site() -> Any:
    return bare
