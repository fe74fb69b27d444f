"""Web functions for containers under test."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time

from fastapi import BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel

import kedge

app = kedge.App("gallery")
made = 0


def note(text: object) -> None:
    journal = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(journal, f"{text}\n".encode())
    os.close(journal)


def is_allowed(name: str) -> bool:
    return os.path.exists(f"{os.environ['JOURNAL']}.{name}")


async def allowed(name: str) -> None:
    deadline = time.monotonic() + 60
    while not is_allowed(name) and time.monotonic() < deadline:
        await asyncio.sleep(0.005)


class Item(BaseModel):
    name: str
    price: float = 1.0


@app.function()
@kedge.asgi_app()
def site():
    global made
    made += 1
    web = FastAPI()
    barriers: dict[int, threading.Barrier] = {}

    @web.get("/")
    async def index():
        return {"made": made, "input": kedge.current_input_id()}

    @web.post("/items")
    async def items(item: Item):
        return {"name": item.name, "double": item.price * 2}

    @web.get("/plain/{name}")
    def plain(name: str, size: int = 1):
        """Runs in a thread of AnyIO's."""
        return PlainTextResponse(f"{name} " * size)

    @web.get("/meet/{parties}")
    def meet(parties: int):
        barriers.setdefault(parties, threading.Barrier(parties)).wait(30)
        return kedge.current_input_id()

    @web.post("/size")
    async def size(request: Request):
        total = 0
        async for chunk in request.stream():
            total += len(chunk)
        return total

    @web.get("/stream")
    async def stream(count: int = 3, size: int = 1):
        async def chunks():
            for number in range(count):
                note(f"chunk {number}")
                yield bytes([65 + number % 26]) * size

        return StreamingResponse(chunks())

    @web.get("/slow")
    async def slow():
        note("begin slow")
        try:
            await asyncio.sleep(60)
        except BaseException as error:
            note(f"{type(error).__name__} slow")
            raise

    @web.get("/slow-plain")
    def slow_plain(name: str = "slow plain"):
        try:
            note(f"begin {name}")
            time.sleep(60)
        except BaseException as error:
            note(f"{type(error).__name__} {name}")
            raise

    @web.get("/background")
    async def background(tasks: BackgroundTasks):
        async def later():
            note("background begins")
            await allowed("background")
            note("background ends")

        tasks.add_task(later)
        return "answered"

    @web.get("/asks")
    async def asks(request: Request):
        gone = [await request.is_disconnected() for _ in range(100)]
        exchanges = [item for item in gc.get_objects() if type(item).__name__ == "Exchange"]
        note(f"{any(gone)}, and {sum(len(exchange._bells) for exchange in exchanges)} wait")
        note("asked often")
        while not await request.is_disconnected():
            await asyncio.sleep(0.005)

    @web.get("/broken")
    async def broken():
        print("about to break")
        raise RuntimeError("no frame")

    @web.websocket("/echo")
    async def echo(socket: WebSocket):
        await socket.accept(subprotocol=socket.scope["subprotocols"][0] if socket.scope["subprotocols"] else None)
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                note(f"disconnected {message['code']}")
                return
            if message.get("text") == "bye":
                await socket.close(4001, "as you like")
                return
            await socket.send(
                {"type": "websocket.send", "text": message["text"]}
                if "text" in message
                else {"type": "websocket.send", "bytes": message["bytes"]}
            )

    @web.websocket("/careless")
    async def careless(socket: WebSocket):
        await socket.accept()
        while True:
            await socket.receive_text()

    return web


# ---------------------------------------------------------------- single routes


@app.function()
@kedge.fastapi_endpoint(method="POST")
def order(item: Item, times: int = 1) -> dict[str, float]:
    note(f"{threading.current_thread() is threading.main_thread()} {kedge.current_input_id()}")
    print(f"an order of {item.name}")
    return {item.name: item.price * times}


@app.function()
@kedge.fastapi_endpoint(docs=True)
async def documented(name: str = "you") -> str:
    return f"Hello {name}"


@app.function()
@kedge.fastapi_endpoint()
def sleeper(name: str):
    try:
        note(f"begin {name}")
        time.sleep(60)
    finally:
        note(f"finally {name}")


@app.cls()
class Shop:
    owner: str = kedge.parameter(default="Ada")

    @kedge.enter()
    def open(self):
        self.sold: list[str] = []

    @kedge.fastapi_endpoint()
    def hello(self, name: str) -> str:
        return f"{self.owner} welcomes {name}"

    @kedge.fastapi_endpoint(method="POST")
    async def sell(self, item: Item) -> int:
        self.sold.append(item.name)
        return len(self.sold)

    @kedge.asgi_app()
    def site(self):
        web = FastAPI()

        @web.get("/sold")
        async def sold():
            return self.sold

        return web

    @kedge.method()
    def count(self):
        return len(self.sold)


# ---------------------------------------------------------------- threads of AnyIO's


@app.function()
@kedge.asgi_app()
def threads():
    from collections.abc import Iterator

    import anyio.to_thread
    from fastapi import Depends

    web = FastAPI()
    seen: set[int] = set()

    def connection() -> Iterator[str]:
        note("connected")
        try:
            yield "connection"
        finally:
            time.sleep(0.01)
            note("cleaned up")

    @web.get("/limit")
    async def limit():
        return anyio.to_thread.current_default_thread_limiter().total_tokens

    @web.get("/used")
    def used():
        seen.add(threading.get_ident())
        return len(seen)

    @web.get("/stubborn")
    def stubborn():
        note("begin stubborn")
        deadline = time.monotonic() + 30
        while not is_allowed("stubborn") and time.monotonic() < deadline:
            try:
                time.sleep(0.005)
            except BaseException as error:
                note(type(error).__name__)
        note("end stubborn")

    @web.get("/shielded")
    def shielded():
        with kedge.shield():
            note("begin shielded")
            while not kedge.current_input().cancelled:
                time.sleep(0.005)
            note("end shielded")
        note("never")

    @web.get("/depends")
    def depends(connection: str = Depends(connection)):
        note("begin depends")
        time.sleep(60)

    @web.get("/both")
    async def both():
        """Two threads for one request."""

        def one(name):
            try:
                note(f"begin {name}")
                time.sleep(60)
            finally:
                note(f"finally {name}")

        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, one, "a")
            group.start_soon(anyio.to_thread.run_sync, one, "b")

    @web.get("/nested")
    def nested():
        """A thread that needs another one."""
        return anyio.from_thread.run(anyio.to_thread.run_sync, lambda: "deep")

    @web.get("/raises")
    def raises():
        raise LookupError("not here")

    return web
