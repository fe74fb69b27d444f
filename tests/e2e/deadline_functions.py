"""The app whose inputs run too long: every place where code can be when its time is over."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import kedge

app = kedge.App("deadlines")
quick = {"scaledown_window": 2}
crowded = {"timeout": 1, "max_containers": 1, **quick}

_nobody_releases = threading.Lock()
_nobody_releases.acquire()


def write(path: str, text: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{text}\n")


@app.function(timeout=1, **quick)
def nap(seconds: float, path: str = "") -> float:
    try:
        time.sleep(seconds)
    except BaseException as error:
        if path:
            write(path, type(error).__name__)
        raise
    return seconds


@app.function(**crowded)
@kedge.concurrent(max_inputs=8)
def nap_in_a_thread(seconds: float) -> tuple[float, int]:
    time.sleep(seconds)
    return seconds, os.getpid()


@app.function(**crowded)
@kedge.concurrent(max_inputs=8)
async def nap_in_a_task(seconds: float) -> tuple[float, int]:
    await asyncio.sleep(seconds)
    return seconds, os.getpid()


@app.function(**crowded)
@kedge.concurrent(max_inputs=8)
def call_another(path: str) -> float:
    """Waits for another function, in a thread."""
    try:
        return rest.remote()
    except BaseException as error:
        write(path, type(error).__name__)
        raise


@app.function(**quick)
def rest() -> float:
    time.sleep(3600)
    return 3600


@app.function(timeout=1, **quick)
def count_slowly(n: int) -> Iterator[int]:
    yield from range(n)
    time.sleep(60)


@app.function(timeout=1, retries=kedge.Retries(max_retries=2, initial_delay=0), **quick)
def slow_at_first(path: str, times: int) -> int:
    """Takes too long so many times, counted in a file."""
    write(path, "try")
    tries = len(Path(path).read_text().splitlines())
    if tries <= times:
        time.sleep(60)
    return tries


@app.cls(timeout=600, max_containers=1, **quick)
@kedge.concurrent(max_inputs=8)
class Desk:
    @kedge.method(timeout=1)
    def hasty(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    @kedge.method()
    async def calm(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds


stubborn_app = kedge.App("stubborn")


@stubborn_app.cls(max_containers=1)
@kedge.concurrent(max_inputs=4)
class Stubborn:
    path: str = kedge.parameter()

    @kedge.method()
    def hold(self) -> None:
        """A wait that no exception ends."""
        write(self.path, "holds")
        _nobody_releases.acquire()

    @kedge.exit()
    def leave(self) -> None:
        write(self.path, "exit hook")
