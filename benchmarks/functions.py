"""The functions that the measurements call."""

from __future__ import annotations

import time
from typing import Any

import kedge

app = kedge.App("benchmarks")


@app.function()
def echo(value: Any) -> Any:
    return value


@app.function()
async def echo_async(value: Any) -> Any:
    return value


@app.function(max_containers=1)
def print_lines(line: str, rate: int, seconds: float) -> tuple[int, float, float]:
    """Prints so many lines a second, a hundred at a time: how many they were, how long it took, the longest print."""
    start, count, slowest = time.perf_counter(), 0, 0.0
    while count < rate * seconds:
        for _ in range(100):
            before = time.perf_counter()
            print(line)
            slowest = max(slowest, time.perf_counter() - before)
        count += 100
        time.sleep(max(0.0, start + count / rate - time.perf_counter()))
    return count, time.perf_counter() - start, slowest


@app.function(max_containers=1)
def touch(array: Any) -> int:
    """Reads one byte of every page, as any use of the array would."""
    return int(array[::4096].sum())


@app.function(scaledown_window=1, name="cold")
def cold(value: int) -> int:
    return value


@app.cls(max_containers=1)
@kedge.concurrent(max_inputs=2)
class Neighbours:
    """Two slots of one container: one spins, the other answers."""

    @kedge.method()
    def spin(self, seconds: float) -> int:
        end, turns = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            turns += 1
        return turns

    @kedge.method()
    def echo(self, value: int) -> int:
        return value


def identity(value: Any) -> Any:
    """What the yardsticks run: nothing, in a process of their own."""
    return value


def touch_pages(name: str, size: int) -> int:
    """The yardstick's side of a hand-over through shared memory."""
    from multiprocessing import shared_memory

    import numpy as np

    memory = shared_memory.SharedMemory(name, track=False) if _TRACK else shared_memory.SharedMemory(name)
    try:
        return int(np.ndarray(size, dtype=np.uint8, buffer=memory.buf)[::4096].sum())
    finally:
        memory.close()


_TRACK = __import__("sys").version_info >= (3, 13)
