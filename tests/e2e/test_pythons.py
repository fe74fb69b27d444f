"""Containers of another Python than the program's: every kind of function, its errors, and what cannot travel."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from kedge.exception import NotFoundError
from kedge.images import interpreters
from kedge.model.spec import NAMESPACE
from tests.e2e.commands import place
from tests.engines.sandbox import missing

pytestmark = pytest.mark.slow

INDEX = "https://pypi.org/simple/fastapi/"

APP = """
import asyncio
import importlib.metadata
import json
import queue
import sys
import threading
import time
import traceback
import urllib.request

import kedge
from kedge.exception import InputCancellation

image = kedge.Image.debian_slim(python_version="@VERSION@").pip_install("fastapi>=0.115")
app = kedge.App("elsewhere", image=image)
began = kedge.Queue.from_name("began", create_if_missing=True)
ended = kedge.Queue.from_name("ended", create_if_missing=True)
facts = kedge.Dict.from_name("facts", create_if_missing=True)


class Wreck(Exception):
    def __init__(self, ship, depth):
        super().__init__(ship, depth)
        self.ship, self.depth = ship, depth


@app.function()
def version():
    names = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    return ["%d.%d" % sys.version_info[:2], "fastapi" in names, "uvloop" in names]


@app.function()
def count(n):
    yield from range(n)


@app.function()
async def count_async(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i


@app.function()
def sink(ship):
    try:
        raise ValueError("a hole")
    except ValueError as error:
        raise Wreck(ship, 32) from error


@app.function()
async def relay(ship):
    # What comes from one container through another.
    found = []
    for call in (lambda: asyncio.to_thread(sink.remote, ship), lambda: sink.remote.aio(ship)):
        try:
            await call()
        except Wreck as error:
            lines = traceback.format_exception(error)
            found.append([error.depth, any("remote:" in line and "in sink" in line for line in lines)])
    waiting = await linger_async.spawn.aio()
    try:
        await waiting.get.aio(timeout=0.2)
    except TimeoutError as error:
        found.append(str(error))
    await waiting.cancel.aio()
    await facts.put.aio("relayed", found)
    return await facts.get.aio("relayed")


@app.function(timeout=1)
def linger():
    time.sleep(100)


@app.function(timeout=100)
async def linger_async():
    await asyncio.sleep(100)


@app.function()
@kedge.concurrent(max_inputs=3)
def wait_for_each_other(i, hall=threading.Barrier(3)):
    hall.wait()
    return i


@app.function(max_containers=1)
@kedge.concurrent(max_inputs=4)
def hold(how):
    try:
        began.put(how)
        if how == "sleep":
            time.sleep(100)
        elif how == "queue":
            queue.Queue().get()
        elif how == "event":
            threading.Event().wait()
        else:
            while True:
                pass
    except InputCancellation as error:
        ended.put([how, type(error).__name__])
        raise


@app.cls()
@kedge.concurrent(max_inputs=3)
class Crowd:
    size: int = kedge.parameter()

    @kedge.enter()
    async def open(self):
        self.inside, self.full = 0, asyncio.Event()

    @kedge.method()
    async def meet(self, i):
        self.inside += 1
        if self.inside == self.size:
            self.full.set()
        await self.full.wait()
        return i * self.size

    @kedge.method()
    async def stay(self):
        try:
            await began.put.aio("stay")
            await asyncio.sleep(100)
        except asyncio.CancelledError as error:
            await ended.put.aio(["stay", type(error).__name__])
            raise


@app.function()
@kedge.asgi_app()
def site():
    from contextlib import asynccontextmanager

    from fastapi import FastAPI

    @asynccontextmanager
    async def life(web):
        web.state.ready = True
        yield

    web = FastAPI(lifespan=life)

    @web.get("/twice/{n}")
    async def twice(n: int) -> dict:
        return {"twice": 2 * n, "ready": web.state.ready}

    return web


@app.function()
def apply(function, value):
    return function(value)


@app.function()
def give():
    return lambda: 1


def outcome(call):
    try:
        return call()
    except Exception as error:
        return [type(error).__name__, str(error)]


def cancelled(call, *names):
    # Cancels once it runs.
    seen = [began.get(timeout=60)]
    call.cancel()
    left = ended.get(timeout=60)
    return [seen, left, outcome(lambda: call.get(timeout=60))[0]]


@app.local_entrypoint()
def main():
    found = {
        "version": version.remote(),
        "counts": [list(count.remote_gen(3)), list(count_async.remote_gen(3))],
        "crowd": sorted(Crowd(size=3).meet.map(range(3))),
        "threads": sorted(wait_for_each_other.map(range(3))),
        "timeout": outcome(linger.remote),
        "relay": relay.remote("Mary Rose"),
        "cancelled": [cancelled(hold.spawn(how)) for how in ("sleep", "queue", "event", "loop")],
        "stay": cancelled(Crowd(size=3).stay.spawn()),
        "by value": [outcome(lambda: apply.remote(lambda x: x, 1)), outcome(give.remote)],
    }
    try:
        sink.remote("Vasa")
    except Wreck as error:
        found["wreck"] = [error.ship, error.depth, "".join(traceback.format_exception(error))]
    with urllib.request.urlopen(site.get_web_url() + "/twice/21", timeout=60) as answer:
        found["web"] = json.load(answer)
    print(json.dumps(found))
"""


@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
@pytest.mark.timeout(300)
def test_everything_runs_in_containers_of_another_python(version: str, tmp_path: Path) -> None:
    found = run(version, tmp_path)
    assert found["version"] == [version, True, False], "what kedge needs there is no package of the image"
    assert found["counts"] == [[0, 1, 2], [0, 1, 2]]
    assert found["crowd"] == [0, 3, 6]
    assert found["threads"] == [0, 1, 2]
    assert found["timeout"][0] == "FunctionTimeoutError"
    assert found["relay"][:2] == [[32, True], [32, True]]
    assert "has no result after 0.2 s" in found["relay"][2]
    ways = ("sleep", "queue", "event", "loop")
    assert found["cancelled"] == [[[how], [how, "InputCancellation"], "RemoteError"] for how in ways]
    assert found["stay"] == [["stay"], ["stay", "CancelledError"], "RemoteError"]
    ship, depth, text = found["wreck"]
    assert (ship, depth) == ("Vasa", 32)
    assert "ValueError: a hole" in text
    assert "raise Wreck(ship, 32) from error" in text
    assert found["web"] == {"twice": 42, "ready": True}
    own = interpreters.own_version()
    there, back = found["by value"]
    assert f"made by Python {own}, and this is Python {version}" in there[1]
    assert f"made by Python {version}, and this is Python {own}" in back[1]


def run(version: str, directory: Path) -> dict[str, Any]:
    """What the program prints."""
    if version == interpreters.own_version():
        pytest.skip("that is our own")
    try:
        interpreters.find(version)
    except NotFoundError as error:
        pytest.skip(str(error))
    if reason := missing(NAMESPACE):
        pytest.skip(f"containers share the machine's files: {reason}")
    try:
        urllib.request.urlopen(INDEX, timeout=10).close()
    except OSError as error:
        pytest.skip(f"packages cannot be fetched: {error}")
    with place(directory) as desk:
        desk.write("app.py", APP.replace("@VERSION@", version))
        desk.kedge("image", "build", "app.py")
        found: dict[str, Any] = json.loads(desk.kedge("run", "app.py").stdout)
        return found
