"""The app that the end-to-end tests call: every kind of function, and every way to go wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import kedge

app = kedge.App("harbour")
quick = {"scaledown_window": 2}

_gate = threading.Lock()
_inside = 0
_peak = 0


@app.function(**quick)
def square(x: int) -> int:
    return x * x


@app.function(**quick)
async def square_async(x: int) -> int:
    await asyncio.sleep(0)
    return x * x


@app.function(**quick)
def count_to(n: int) -> Iterator[int]:
    yield from range(n)


@app.function(**quick)
async def count_to_async(n: int) -> AsyncIterator[int]:
    for i in range(n):
        await asyncio.sleep(0)
        yield i


@app.function(**quick)
def own_memory() -> int:
    """Bytes of this container that it shares with no other process, not even its fork server."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_Dirty:"))


@app.function(**quick)
def where() -> dict[str, object]:
    """Facts about the place in which an input runs."""
    return {
        "process": os.getpid(),
        "main_thread": threading.current_thread() is threading.main_thread(),
        "local": kedge.is_local(),
        "input": kedge.current_input_id(),
        "call": kedge.current_function_call_id(),
        "file": __file__,
        "name": __name__,
    }


@app.function(max_containers=1, **quick)
@kedge.concurrent(max_inputs=6)
def crowd(seconds: float) -> tuple[int, int, str]:
    """Most inputs seen at once in this container, its process, and the input's id."""
    global _inside, _peak
    with _gate:
        _inside += 1
        _peak = max(_peak, _inside)
    time.sleep(seconds)
    with _gate:
        _inside -= 1
    return _peak, os.getpid(), kedge.current_input_id() or ""


@app.function(max_containers=1, **quick)
@kedge.concurrent(max_inputs=6)
async def crowd_async(seconds: float) -> tuple[int, int]:
    global _inside, _peak
    _inside += 1
    _peak = max(_peak, _inside)
    await asyncio.sleep(seconds)
    _inside -= 1
    return _peak, os.getpid()


class Wreck(Exception):
    """An exception with state of its own."""

    def __init__(self, ship: str, depth: int) -> None:
        super().__init__(ship, depth)
        self.ship = ship
        self.depth = depth


class Unpicklable(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


@app.function(**quick)
def fail(how: str) -> object:
    match how:
        case "wreck":
            raise Wreck("Vasa", 32)
        case "unpicklable exception":
            raise Unpicklable("holds a lock")
        case "unpicklable result":
            return threading.Lock()
        case "sys.exit":
            sys.exit(3)
        case "base exception":
            raise BaseException("the base")
        case "keyboard interrupt":
            raise KeyboardInterrupt
        case "chain":
            try:
                return 1 / 0
            except ZeroDivisionError as error:
                raise RuntimeError("while counting") from error
    return how


@app.function(retries=2, **quick)
def fail_until(path: str, times: int) -> int:
    """Fails so many times, counted in a file."""
    with Path(path).open("a") as file:
        file.write("x")
    tries = len(Path(path).read_text())
    if tries <= times:
        raise ValueError(f"try {tries}")
    return tries


@app.function(**quick)
def die(path: str, how: str) -> str:
    """Kills its container the first time, answers the second time."""
    if not Path(path).exists():
        Path(path).touch()
        if how == "exit":
            os._exit(7)
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@app.function(**quick)
def poison() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@app.function(max_containers=1, **quick)
@kedge.concurrent(max_inputs=4)
async def block_the_loop(seconds: float) -> str:
    time.sleep(seconds)  # noqa: ASYNC251 - blocks the loop on purpose
    return "blocked"


@app.function(**quick)
def sleep_forever(path: str) -> None:
    """Says in a file how it ended."""
    marker = Path(path)
    marker.write_text("started")
    try:
        while True:
            time.sleep(0.01)
    except BaseException as error:
        marker.write_text(type(error).__name__)
        raise


@app.function(**quick)
async def sleep_forever_async(path: str) -> None:
    marker = Path(path)
    marker.write_text("started")
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        marker.write_text("CancelledError")
        raise


@app.function(**quick)
def nested(n: int) -> int:
    return sum(square.map(range(n))) + square.remote(n)


@app.cls(**quick)
@kedge.concurrent(max_inputs=4)
class Ship:
    name: str = kedge.parameter()
    guns: int = kedge.parameter(default=64)

    @kedge.enter()
    def rig(self) -> None:
        self.log = [f"{self.name} rigged"]

    @kedge.enter()
    async def rig_async(self) -> None:
        await asyncio.sleep(0)
        self.log.append("twice")

    @kedge.exit()
    def strike(self) -> None:
        target = os.environ.get("HARBOUR_EXIT_MARKER")
        if target:
            with Path(target).open("a") as file:
                file.write(f"{self.name} struck\n")

    @kedge.method()
    def describe(self) -> tuple[str, int, list[str], int]:
        return self.name, self.guns, self.log, os.getpid()

    @kedge.method()
    async def sail(self, miles: int) -> int:
        await asyncio.sleep(0)
        return miles * self.guns

    @kedge.method()
    def watch(self, bells: int) -> Iterator[str]:
        for bell in range(bells):
            yield f"{self.name} {bell}"


@app.cls(**quick)
class Leaking:
    @kedge.enter()
    def rig(self) -> None:
        raise Wreck("Mary Rose", 14)

    @kedge.method()
    def sail(self) -> str:
        return "never"


@app.function(**quick)
def big(size: int) -> bytes:
    return b"x" * size


@app.function(**quick)
def length(data: bytes) -> int:
    return len(data)


@app.function(gpu="H100", **quick)
def on_gpu() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "none")


@app.function(max_containers=3, **quick)
def slow_process(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def make_closure(factor: int):  # type: ignore[no-untyped-def]
    @app.function(serialized=True, name=f"times-{factor}", **quick)
    def times(x: int) -> int:
        return x * factor

    return times


times_3 = make_closure(3)
