"""Servers of the user's own, behind a port, for containers under test."""

from __future__ import annotations

import asyncio
import http.server
import os
import subprocess
import sys
import threading
import time

from aiohttp import WSMsgType, web

import kedge
from tests.container.gallery import is_allowed, note

app = kedge.App("wharf")
STOP = web.AppKey("stop", asyncio.Event)


def port() -> int:
    with open(f"{os.environ['JOURNAL']}.port") as file:
        return int(file.read())


# ---------------------------------------------------------------- a server in a thread


async def headers(request: web.Request) -> web.Response:
    return web.json_response(
        {"path": request.raw_path, "headers": [(n.lower(), v) for n, v in request.headers.items()]}
    )


async def size(request: web.Request) -> web.Response:
    total = 0
    async for chunk in request.content.iter_any():
        total += len(chunk)
        note(f"size {total}")
    return web.Response(text=str(total))


async def packed(request: web.Request) -> web.Response:
    return web.Response(body=b"\x1f\x8bnot really", headers={"Content-Encoding": "gzip", "X-Kept": "é"})


async def redirect(request: web.Request) -> web.Response:
    return web.Response(
        status=302, headers={"Location": request.query["to"], "Connection": "X-Secret", "X-Secret": "1"}
    )


async def empty(request: web.Request) -> web.Response:
    return web.Response(headers={"X-Long": "x" * 20_000})


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for number in range(3):
        await response.write(b"part %d\n" % number)
        while not is_allowed(f"part {number}"):
            await asyncio.sleep(0.005)
    return response


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b"x" * 65536)
    finally:
        note("endless has ended")


async def breaks(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b"half")
    assert request.transport is not None
    request.transport.close()
    return response


async def talk(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(protocols=["chat"], max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.data == "bye":
            await socket.close(code=4001, message=b"as you like")
        elif message.data == "break":
            assert request.transport is not None
            request.transport.close()
        elif message.type == WSMsgType.TEXT:
            await socket.send_str(message.data)
        else:
            await socket.send_bytes(message.data)
    note(f"closed {socket.close_code}")
    return socket


async def die(request: web.Request) -> web.Response:
    """Stops listening after this."""
    asyncio.get_running_loop().call_soon(request.app[STOP].set)
    return web.Response(text="goodbye")


async def serve(host: str, number: int) -> None:
    site = web.Application()
    routes = {
        "/empty": empty,
        "/size": size,
        "/packed": packed,
        "/redirect": redirect,
        "/stream": stream,
        "/endless": endless,
    }
    routes |= {"/breaks": breaks, "/talk": talk, "/die": die}
    for path, handler in routes.items():
        site.router.add_route("*", path, handler)
    site.router.add_route("*", "/{rest:.*}", headers)
    stop = site[STOP] = asyncio.Event()
    runner = web.AppRunner(site, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, number).start()
    await stop.wait()
    await runner.cleanup()


def in_thread(host: str = "127.0.0.1", *, after: str = "") -> None:
    def run() -> None:
        while after and not is_allowed(after):
            time.sleep(0.005)
        asyncio.run(serve(host, port()))

    threading.Thread(target=run, daemon=True).start()


@app.function()
@kedge.web_server(8000)
def server():
    note("starts")
    in_thread()


@app.function()
@kedge.web_server(8000)
def server_elsewhere():
    in_thread("127.0.0.9")


@app.function()
@kedge.web_server(8000)
def slow_server():
    in_thread(after="listen")


@app.cls()
class Server:
    @kedge.enter()
    def open(self):
        note("enter")

    @kedge.web_server(8000)
    def serve(self):
        note("serve")
        in_thread()

    @kedge.method()
    def plain(self):
        return "plain"


@app.cls()
class Engine:
    """Starts its server when it enters, as engines with snapshots of their memory do."""

    @kedge.enter()
    def open(self):
        self.process = child(sys.executable, "-m", "http.server", str(port()), "--bind", "127.0.0.1")

    @kedge.web_server(8000)
    def serve(self):
        pass

    @kedge.exit()
    def close(self):
        self.process.terminate()


# ---------------------------------------------------------------- other processes, and what goes wrong


def child(*command: str) -> subprocess.Popen:
    return subprocess.Popen(command)


@app.function()
@kedge.web_server(8000)
def files():
    child(
        sys.executable,
        "-m",
        "http.server",
        str(port()),
        "--bind",
        "127.0.0.1",
        "--directory",
        os.path.dirname(__file__),
    )


@app.function()
@kedge.web_server(8000)
def dies_at_once():
    child("sh", "-c", "echo no room for me >&2; exit 7")


@app.function()
@kedge.web_server(8000)
def wrong_port():
    child("sleep", "60")


@app.function()
@kedge.web_server(8000)
def starts_nothing():
    pass


@app.function()
@kedge.web_server(8000)
def raises():
    raise RuntimeError("no timber")


@app.function()
@kedge.web_server(8000)
def never_returns():
    handler = http.server.SimpleHTTPRequestHandler
    http.server.ThreadingHTTPServer(("127.0.0.1", port()), handler).serve_forever()
