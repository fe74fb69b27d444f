"""The app whose functions take batches."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import kedge

app = kedge.App("batches")
quick: dict[str, Any] = {"scaledown_window": 2}
LONG_MS = 60_000
"""Longer than any test: such a batch goes when it is full."""

inside = peak = 0
counting = threading.Lock()
three = threading.Barrier(3)
three_async = asyncio.Barrier(3)


@app.function(**quick)
@kedge.batched(max_batch_size=8, wait_ms=LONG_MS)
def eights(xs: list[int]) -> list[tuple[int, int]]:
    """The square of each, and with how many it came."""
    return [(x * x, len(xs)) for x in xs]


@app.function(**quick)
@kedge.batched(max_batch_size=4, wait_ms=100)
async def fours(xs: list[int], ys: list[int]) -> list[tuple[int, int]]:
    await asyncio.sleep(0)
    return [(x + y, len(xs)) for x, y in zip(xs, ys, strict=True)]


@app.function(**quick)
@kedge.batched(max_batch_size=3, wait_ms=LONG_MS)
def who(names: list[str]) -> list[tuple[str, tuple[str, ...], int]]:
    current = kedge.current_input()
    assert current is not None
    return [(current.id, current.ids, os.getpid()) for _ in names]


@app.function(max_containers=1, **quick)
@kedge.concurrent(max_inputs=3)
@kedge.batched(max_batch_size=2, wait_ms=LONG_MS)
def meet(xs: list[int]) -> list[tuple[int, int, int]]:
    """Goes on when three batches are here at once."""
    global inside, peak
    with counting:
        inside += 1
        peak = max(peak, inside)
    three.wait(60)
    with counting:
        inside -= 1
    return [(peak, len(xs), os.getpid()) for _ in xs]


@app.function(max_containers=1, **quick)
@kedge.batched(max_batch_size=2, wait_ms=LONG_MS)
@kedge.concurrent(max_inputs=3)
async def meet_async(xs: list[int]) -> list[tuple[int, int, int]]:
    global inside, peak
    inside += 1
    peak = max(peak, inside)
    await three_async.wait()
    inside -= 1
    return [(peak, len(xs), os.getpid()) for _ in xs]


@app.function(retries=kedge.Retries(max_retries=1, initial_delay=0), **quick)
@kedge.batched(max_batch_size=3, wait_ms=LONG_MS)
def fail_once(paths: list[str]) -> list[int]:
    """Fails the first batch of a path, counted in a file."""
    with Path(paths[0]).open("a") as file:
        file.write("x" * len(paths))
    if len(Path(paths[0]).read_text()) <= len(paths):
        raise ValueError("the first time")
    return [len(paths)] * len(paths)


@app.function(**quick)
@kedge.batched(max_batch_size=3, wait_ms=LONG_MS)
def die_once(paths: list[str]) -> list[int]:
    """Ends its container the first time; then says with how many each came."""
    if not Path(paths[0]).exists():
        Path(paths[0]).touch()
        os._exit(7)
    return [len(paths)] * len(paths)


@app.function(**quick)
@kedge.batched(max_batch_size=3, wait_ms=LONG_MS)
def wrong(kinds: list[str]) -> Any:
    if kinds[0] == "raise":
        raise ValueError("the oven is cold")
    if kinds[0] == "locks":
        return [threading.Lock() if kind == "lock" else kind for kind in kinds]
    return kinds[:1] if kinds[0] == "short" else {"kind": kinds[0]}


@app.function(**quick)
@kedge.batched(max_batch_size=3, wait_ms=LONG_MS)
def hold(paths: list[str]) -> list[str]:
    """Runs until the file `go` is there, and says in another one how it ended."""
    directory = Path(paths[0]).parent
    try:
        (directory / "ended").write_text("started")
        while not (directory / "go").exists():
            time.sleep(0.01)
    except BaseException as error:
        (directory / "ended").write_text(type(error).__name__)
        raise
    return [Path(path).name for path in paths]


@app.function(timeout=1, **quick)
@kedge.batched(max_batch_size=2, wait_ms=LONG_MS)
async def oversleep(seconds: list[float]) -> list[float]:
    await asyncio.sleep(max(seconds))
    return seconds


@app.cls(max_containers=1, **quick)
class Kitchen:
    dish: str = kedge.parameter(default="soup")

    @kedge.enter()
    def heat(self) -> None:
        self.cooked = 0

    @kedge.batched(max_batch_size=2, wait_ms=LONG_MS)
    def cook(self, guests: list[str]) -> list[tuple[str, int]]:
        self.cooked += 1
        return [(f"{self.dish} for {guest}", self.cooked) for guest in guests]
