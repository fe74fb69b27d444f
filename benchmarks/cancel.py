"""From `call.cancel()` at the caller to the exception in user code, which waits in various ways, beside seven siblings.

Caller and container read the same clock: on Linux `time.perf_counter` counts for the whole machine.
"""

from __future__ import annotations

import asyncio
import queue
import statistics
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kedge
from benchmarks.report import Report, Row

app = kedge.App("benchmarks-cancel")

ROUNDS = 60
SETTLE_S = 0.005
"""What code needs from its mark to its wait."""
BUDGET_MS = 20
SIBLINGS = 7

WAITS: dict[str, Callable[[], Any]] = {
    "time.sleep": lambda: time.sleep(60),
    "Event.wait": lambda: threading.Event().wait(),
    "Queue.get": lambda: queue.Queue[None]().get(),
    "subprocess.run": lambda: subprocess.run(["sleep", "60"], check=False),
}


def mark(path: str) -> None:
    """Leaves the time in a file, all at once."""
    partial = Path(f"{path}.partial")
    partial.write_bytes(struct.pack("d", time.perf_counter()))
    partial.rename(path)


@app.function(max_containers=1)
@kedge.concurrent(max_inputs=SIBLINGS + 1)
def wait_in_a_thread(how: str, path: str) -> None:
    _wait(how, path)


@app.function(max_containers=1)
def wait_on_the_main_thread(how: str, path: str) -> None:
    _wait(how, path)


def _wait(how: str, path: str) -> None:
    try:
        mark(f"{path}.begun")
        WAITS[how]()
    except kedge.exception.InputCancellation:
        mark(f"{path}.seen")
        raise


@app.function(max_containers=1)
@kedge.concurrent(max_inputs=SIBLINGS + 1)
async def wait_in_a_task(how: str, path: str) -> None:
    try:
        mark(f"{path}.begun")
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        mark(f"{path}.seen")
        raise


@app.function()
@kedge.concurrent(max_inputs=2)
def shield_us(blocks: int) -> float:
    """Microseconds of an empty shielded block."""
    start = time.perf_counter()
    for _ in range(blocks):
        with kedge.shield():
            pass
    return (time.perf_counter() - start) / blocks * 1e6


def run(report: Report) -> None:
    with app.run(), tempfile.TemporaryDirectory() as directory:
        for how in WAITS:
            measure(report, how, how, wait_in_a_thread, directory)
        measure(report, "time.sleep on the main thread", "time.sleep", wait_on_the_main_thread, directory)
        measure(report, "asyncio.sleep", "", wait_in_a_task, directory)
        cost = statistics.median(shield_us.remote(20_000) for _ in range(7))
        report.add(Row("a block of kedge.shield() in a thread", f"{cost:.1f} µs"))


def measure(report: Report, name: str, how: str, function: Any, directory: str) -> None:
    count = 0 if function is wait_on_the_main_thread else SIBLINGS
    siblings = [Waiting(function, how, directory) for _ in range(count)]
    times = sorted(Waiting(function, how, directory).cancel_ms() for _ in range(ROUNDS))
    for sibling in siblings:
        sibling.cancel_ms()
    median, late = statistics.median(times), times[int(0.95 * len(times))]
    report.add(
        Row(
            f"cancel until user code sees it, {name}",
            f"{median:.1f} ms, p95 {late:.1f} ms",
            "",
            "",
            f"≤ {BUDGET_MS} ms",
            median <= BUDGET_MS,
        )
    )


class Waiting:
    """An input that waits."""

    def __init__(self, function: Any, how: str, directory: str) -> None:
        self._path = tempfile.mktemp(dir=directory)
        self._call = function.spawn(how, self._path)
        taken(f"{self._path}.begun")
        time.sleep(SETTLE_S)

    def cancel_ms(self) -> float:
        start = time.perf_counter()
        self._call.cancel()
        return (taken(f"{self._path}.seen") - start) * 1000


def taken(path: str) -> float:
    """The time that is left there, which is taken away."""
    file = Path(path)
    while not file.exists():
        time.sleep(0.001)
    (when,) = struct.unpack("d", file.read_bytes())
    file.unlink()
    return float(when)
