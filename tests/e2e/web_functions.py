"""The web functions that the end-to-end tests ask: every kind, well behaved and not."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fastapi
import flask
from fastapi.responses import HTMLResponse, StreamingResponse

import kedge

app = kedge.App("quay")
quick: dict[str, Any] = {"scaledown_window": 2}
alone: dict[str, Any] = {"max_containers": 1, **quick}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


PORT = int(os.environ.setdefault("QUAY_PORT", str(free_port())))
"""Of a server of the user's own: the containers inherit the variable."""


def write(path: str, text: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{text}\n")


def wait_for(path: str) -> None:
    deadline = time.monotonic() + 60
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.005)


async def gate(path: str) -> None:
    """Until the file is there."""
    write(f"{path}.begun", "x")
    deadline = time.monotonic() + 60
    while not Path(path).exists() and time.monotonic() < deadline:
        await asyncio.sleep(0.005)


# ---------------------------------------------------------------- one route


@app.function(**quick)
@kedge.fastapi_endpoint()
def greet(name: str = "world") -> dict[str, str]:
    return {"hello": name}


@app.function(**quick)
@kedge.fastapi_endpoint(method="POST", docs=True)
async def add(body: dict[str, int]) -> int:
    return sum(body.values())


# ---------------------------------------------------------------- an app with many

site_app = fastapi.FastAPI()
_inside = 0
_peak = 0
_counting = threading.Lock()


def enter() -> int:
    global _inside, _peak
    with _counting:
        _inside += 1
        _peak = max(_peak, _inside)
        return _inside


def leave() -> None:
    global _inside
    with _counting:
        _inside -= 1


@site_app.get("/", response_class=HTMLResponse)
async def home() -> str:
    return "<h1>quay</h1>"


@site_app.get("/where")
async def where(request: fastapi.Request) -> dict[str, Any]:
    """What the code is told of a request, and of its place."""
    return {
        "path": request.scope["path"],
        "raw_path": request.scope["raw_path"].decode(),
        "root_path": request.scope["root_path"],
        "query": request.scope["query_string"].decode(),
        "headers": [[name.decode(), value.decode()] for name, value in request.scope["headers"]],
        "client": request.scope["client"],
        "http_version": request.scope["http_version"],
        "url": str(request.url),
        "process": os.getpid(),
        "input": kedge.current_input_id(),
    }


@site_app.get("/file/{path:path}")
async def file(path: str) -> str:
    return path


@site_app.post("/echo")
@site_app.put("/echo")
async def echo(request: fastapi.Request) -> dict[str, Any]:
    """Size, digest and number of parts of a body that is read as it comes."""
    digest, size, parts = hashlib.sha256(), 0, 0
    async for part in request.stream():
        digest.update(part)
        size, parts = size + len(part), parts + bool(part)
    return {"size": size, "sha256": digest.hexdigest(), "parts": parts}


@site_app.post("/refuse")
async def refuse() -> fastapi.Response:
    """Answers without a look at the body."""
    return fastapi.Response("too much", 413)


def pattern(size: int) -> Iterator[bytes]:
    """So many bytes, each part of them unlike the others."""
    for at in range(0, size, 65536):
        yield (hashlib.sha256(str(at).encode()).digest() * 2048)[: size - at]


@site_app.get("/download")
async def download(size: int) -> StreamingResponse:
    return StreamingResponse(pattern(size), media_type="application/octet-stream")


@site_app.get("/measured")
async def measured(path: str, size: int) -> StreamingResponse:
    """Says in a file how much of the body has been taken from it."""

    async def produce() -> AsyncIterator[bytes]:
        taken = 0
        for part in pattern(size):
            taken += len(part)
            Path(path).write_text(str(taken))
            yield part

    return StreamingResponse(produce())


@site_app.post("/slurp")
async def slurp(request: fastapi.Request, path: str) -> str:
    """Says in a file when the first part has come, and how it ended."""
    try:
        async for _ in request.stream():
            write(path, "part")
    except BaseException as error:
        write(path, type(error).__name__)
        raise
    write(path, "whole")
    return "whole"


async def refill(scope: Any, receive: Any, send: Any) -> None:
    """Answers each part of the body as soon as it comes."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        event = await receive()
        more = event["more_body"]
        if event["body"]:
            await send({"type": "http.response.body", "body": event["body"].upper(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


site_app.mount("/refill", refill)


@site_app.get("/events")
async def events(directory: str) -> StreamingResponse:
    """Event n goes out when file n exists."""

    async def produce() -> AsyncIterator[str]:
        for n in range(3):
            yield f"data: {n}\n\n"
            await gate(f"{directory}/{n}")

    return StreamingResponse(produce(), media_type="text/event-stream")


@site_app.get("/wait")
async def wait(path: str) -> str:
    """Says in a file how it ended."""
    write(path, "started")
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        write(path, "CancelledError")
        raise
    return "woken"


@site_app.get("/endless")
async def endless(path: str) -> StreamingResponse:
    async def produce() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0.01)
        finally:
            write(path, "ended")

    return StreamingResponse(produce())


@site_app.get("/boom")
async def boom() -> None:
    raise ValueError("the boiler has burst")


@site_app.get("/halfway")
async def halfway() -> StreamingResponse:
    def produce() -> Iterator[bytes]:
        yield b"so far so good"
        raise ValueError("the mast has gone by the board")

    return StreamingResponse(produce())


@site_app.get("/die")
@site_app.post("/die")
async def die(path: str, always: bool = False) -> str:
    """Kills its container: the first time, or always."""
    if always or not Path(path).exists():
        write(path, "died")
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@site_app.get("/gate")
async def wait_at_gate(path: str) -> dict[str, int]:
    here = enter()
    try:
        await gate(path)
    finally:
        leave()
    return {"here": here, "process": os.getpid()}


@site_app.websocket("/ws")
async def socket_echo(link: fastapi.WebSocket) -> None:
    """Repeats what it hears; `close N text` closes, `exit` returns, `boom` raises."""
    await link.accept(subprotocol=(link.scope["subprotocols"] or [None])[0])
    marker = link.query_params.get("path")
    while True:
        message = await link.receive()
        if message["type"] == "websocket.disconnect":
            if marker:
                write(marker, f"disconnected {message['code']}")
            return
        text = message.get("text")
        if text is None:
            await link.send_bytes(message["bytes"])
        elif text.startswith("close "):
            _, code, reason = text.split(" ", 2)
            await link.close(int(code), reason)
            return
        elif text == "exit":
            return
        elif text == "boom":
            raise ValueError("the socket has burst")
        elif text == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            await link.send_text(text)


@site_app.websocket("/refused")
async def socket_refused(link: fastapi.WebSocket) -> None:
    await link.close()


CHAT = """<!doctype html><title>chat</title><ol id=said></ol><script>
const there = new URL("chat", location.href); there.protocol = "ws:";
const link = new WebSocket(there);
link.onopen = () => link.send("ahoy from " + location.hash.slice(1));
link.onmessage = event => {
  const line = document.createElement("li"); line.textContent = event.data; said.append(line);
};
</script>"""
_chatting: list[fastapi.WebSocket] = []
_said: list[str] = []


@site_app.get("/page", response_class=HTMLResponse)
async def page() -> str:
    return CHAT


@site_app.websocket("/chat")
async def chat(link: fastapi.WebSocket) -> None:
    """Whatever one says, all hear, and who comes later as well."""
    await link.accept()
    for line in _said:
        await link.send_text(line)
    _chatting.append(link)
    try:
        while True:
            text = await link.receive_text()
            _said.append(text)
            for other in _chatting:
                await other.send_text(text)
    except fastapi.WebSocketDisconnect:
        pass
    finally:
        _chatting.remove(link)


@app.function(**alone)
@kedge.concurrent(max_inputs=50)
@kedge.asgi_app()
def site() -> fastapi.FastAPI:
    return site_app


# ---------------------------------------------------------------- slots


@app.function(max_containers=2, **quick)
@kedge.concurrent(max_inputs=10)
@kedge.asgi_app()
def ten_slots() -> fastapi.FastAPI:
    return site_app


threads_app = fastapi.FastAPI()


@threads_app.get("/")
def in_a_thread(path: str) -> dict[str, int]:
    here = enter()
    write(f"{path}.begun", "x")
    wait_for(path)
    leave()
    return {"here": here, "process": os.getpid()}


@app.function(**alone)
@kedge.concurrent(max_inputs=60)
@kedge.asgi_app()
def sixty_threads() -> fastapi.FastAPI:
    """More than the 40 that AnyIO has by itself."""
    return threads_app


@app.function(max_queued_inputs=1, **alone)
@kedge.asgi_app()
def narrow() -> fastapi.FastAPI:
    return site_app


@app.function(timeout=1, **alone)
@kedge.concurrent(max_inputs=10)
@kedge.asgi_app()
def hasty() -> fastapi.FastAPI:
    return site_app


# ---------------------------------------------------------------- other kinds

flask_app = flask.Flask("quay")


@flask_app.get("/")
def flask_home() -> str:
    return f"flask at {flask.request.script_root or '/'}"


@flask_app.post("/echo")
def flask_echo() -> dict[str, Any]:
    data = flask.request.get_data()
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@flask_app.get("/gate")
def flask_gate() -> dict[str, int]:
    return in_a_thread(flask.request.args["path"])


@flask_app.get("/stream")
def flask_stream() -> flask.Response:
    return flask.Response((f"{n}\n" for n in range(5)), mimetype="text/plain")


@flask_app.get("/boom")
def flask_boom() -> str:
    raise ValueError("the flask has burst")


@flask_app.get("/wait")
def flask_wait() -> str:
    path = flask.request.args["path"]
    write(path, "started")
    try:
        while True:
            time.sleep(0.01)
    except BaseException as error:
        write(path, type(error).__name__)
        raise


@app.function(**alone)
@kedge.concurrent(max_inputs=8)
@kedge.wsgi_app()
def wsgi_site() -> flask.Flask:
    return flask_app


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(f"{self.command} {self.path} from {self.headers.get('x-forwarded-for', '')}".encode())

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        self._answer(hashlib.sha256(data).hexdigest().encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@app.function(**alone)
@kedge.concurrent(max_inputs=10)
@kedge.web_server(PORT)
def own_server() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", PORT), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()


@app.function(**alone)
@kedge.concurrent(max_inputs=10)
@kedge.web_server()
def returned_app() -> fastapi.FastAPI:
    return site_app


# ---------------------------------------------------------------- classes


@app.cls(**quick)
@kedge.concurrent(max_inputs=4)
class Shop:
    name: str = kedge.parameter(default="corner")
    shelves: int = kedge.parameter(default=2)

    @kedge.enter()
    def open_up(self) -> None:
        self.opened = f"{self.name} with {self.shelves}"

    @kedge.asgi_app()
    def web(self) -> fastapi.FastAPI:
        web = fastapi.FastAPI()

        @web.get("/")
        async def about() -> dict[str, Any]:
            return {"opened": self.opened, "process": os.getpid()}

        return web

    @kedge.fastapi_endpoint()
    def price(self, item: str) -> str:
        return f"{item} at {self.opened}"

    @kedge.method()
    def stock(self) -> str:
        return self.opened


# ---------------------------------------------------------------- starts


@app.function(**quick)
@kedge.fastapi_endpoint()
def from_zero() -> int:
    return os.getpid()


@app.cls(**quick)
class SlowStart:
    @kedge.enter()
    def prepare(self) -> None:
        wait_for(os.environ["QUAY_GATE"])

    @kedge.fastapi_endpoint()
    def late(self) -> str:
        return "here at last"


@app.cls(**quick)
class Leaking:
    @kedge.enter()
    def prepare(self) -> None:
        raise ValueError("the hull leaks: secret detail")

    @kedge.fastapi_endpoint()
    def never(self) -> str:
        return "never"


# ---------------------------------------------------------------- calls from handlers


@app.function(**quick)
def square(x: int) -> int:
    return x * x


@app.function(**quick)
@kedge.concurrent(max_inputs=4)
@kedge.fastapi_endpoint()
async def squares(x: int) -> list[int]:
    return [await square.remote.aio(n) for n in range(x)]
