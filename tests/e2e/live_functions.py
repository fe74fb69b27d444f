"""The app whose concurrency, deadlines and queues are changed while it runs."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import kedge
from kedge.experimental import get_local_input_concurrency, set_local_input_concurrency, stop_fetching_inputs

app = kedge.App("live")
quick = {"scaledown_window": 2}
alone = {"max_containers": 1, **quick}

_counting = threading.Lock()
_inside = 0


def write(path: str, text: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{text}\n")


def wait_for(path: str) -> None:
    deadline = time.monotonic() + 60
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.005)


def together(gate: str) -> tuple[int, int]:
    """How many inputs were inside when this one came, and the process; stays until the gate opens."""
    global _inside
    with _counting:
        _inside += 1
        here = _inside
    write(f"{gate}.begun", "x")
    wait_for(gate)
    with _counting:
        _inside -= 1
    return here, os.getpid()


@app.function(**alone)
def one_slot(gate: str) -> tuple[int, int]:
    return together(gate)


@app.function(**alone)
@kedge.concurrent(max_inputs=8)
def eight_slots(gate: str) -> tuple[int, int]:
    return together(gate)


@app.function(**alone)
async def tasks(gate: str) -> tuple[int, int]:
    return await asyncio.to_thread(together, gate)


@app.cls(**alone)
class Desk:
    name: str = kedge.parameter(default="one")

    @kedge.method()
    def serve(self, gate: str) -> tuple[int, int]:
        return together(gate)

    @kedge.method(timeout=60)
    def nap(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


@app.function(**alone)
@kedge.concurrent(max_inputs=6)
def lower_to(number: int, seconds: float) -> tuple[int, int, int]:
    """What the container took before and after, and how many were inside."""
    global _inside
    before = get_local_input_concurrency()
    if number:
        set_local_input_concurrency(number)
    with _counting:
        _inside += 1
        here = _inside
    time.sleep(seconds)
    with _counting:
        _inside -= 1
    return before, get_local_input_concurrency(), here


@app.function(max_containers=1, scaledown_window=60)
def leave_after(count: int) -> tuple[int, int]:
    """This container has had enough after `count` inputs."""
    global _inside
    _inside += 1
    if _inside == count:
        stop_fetching_inputs()
    return os.getpid(), _inside


@app.function(timeout=60, **alone)
@kedge.concurrent(max_inputs=4)
def nap(seconds: float, path: str = "") -> tuple[float, int]:
    try:
        time.sleep(seconds)
    except BaseException as error:
        if path:
            write(path, f"{type(error).__name__} {time.monotonic()}")
        raise
    return seconds, os.getpid()


@app.function(**alone)
@kedge.concurrent(max_inputs=4)
async def nap_async(seconds: float) -> tuple[float, int]:
    await asyncio.sleep(seconds)
    return seconds, os.getpid()


@app.function(**alone)
def count_slowly(n: int) -> Iterator[int]:
    yield from range(n)
    time.sleep(60)


@app.function(max_queued_inputs=5, **alone)
def crowded(gate: str, data: bytes = b"") -> tuple[int, int]:
    here, _ = together(gate)
    return here, len(data)


@app.function(queue_timeout=0.5, **alone)
def impatient(gate: str) -> tuple[int, int]:
    return together(gate)
