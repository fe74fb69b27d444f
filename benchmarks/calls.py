"""Calls through the whole road, each beside a ProcessPoolExecutor of one process in the same run."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, shared_memory
from typing import Any

import numpy as np

import kedge
from benchmarks.functions import Neighbours, app, cold, echo, identity, touch, touch_pages
from benchmarks.heavy import HEAVY, cold_heavy, heavy_app
from benchmarks.report import Report, Row, median_us, paired_us, stopwatch

MAP_INPUTS = 100_000
POOL_MAP_INPUTS = 20_000
ARRAY_BYTES = 100_000_000


def run(report: Report) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool, app.run(), heavy_app.run():
        warm_call(report, pool)
        map_small(report, pool)
        large_argument(report, pool)
        beside_cpu(report)
        cold_start(report)


def warm_call(report: Report, pool: ProcessPoolExecutor) -> None:
    ours, theirs, ratio = paired_us(lambda: echo.remote(1), lambda: pool.submit(identity, 1).result())
    report.add(
        Row(
            "warm no-op .remote(), p50",
            f"{ours:.0f} µs",
            f"{theirs:.0f} µs pool",
            f"{ratio:.2f} ×",
            "≤ 1.2 ×",
            ratio <= 1.2,
        )
    )


def map_small(report: Report, pool: ProcessPoolExecutor) -> None:
    with stopwatch() as theirs:
        assert sum(1 for _ in pool.map(identity, range(POOL_MAP_INPUTS))) == POOL_MAP_INPUTS
    with stopwatch() as ours:
        assert sum(echo.map(range(MAP_INPUTS))) == sum(range(MAP_INPUTS))
    rate, pool_rate = MAP_INPUTS / ours[0], POOL_MAP_INPUTS / theirs[0]
    ratio = rate / pool_rate
    report.add(
        Row(
            f"no-op .map of {MAP_INPUTS:,}",
            f"{rate:,.0f} inputs/s",
            f"{pool_rate:,.0f}/s pool.map",
            f"{ratio:.1f} ×",
            "≥ 4 ×",
            ratio >= 4,
        )
    )


def large_argument(report: Report, pool: ProcessPoolExecutor) -> None:
    """100 MB to another process and one look at every page there, against a copy into shared memory."""
    array = np.ones(ARRAY_BYTES, dtype=np.uint8)
    pages = -(-ARRAY_BYTES // 4096)

    def through_shared_memory() -> None:
        memory = shared_memory.SharedMemory(create=True, size=ARRAY_BYTES)
        np.ndarray(ARRAY_BYTES, dtype=np.uint8, buffer=memory.buf)[:] = array
        assert pool.submit(touch_pages, memory.name, ARRAY_BYTES).result() == pages
        memory.close()
        memory.unlink()

    def ours() -> None:
        assert touch.remote(array) == pages

    theirs_ms = median_us(through_shared_memory, 11, 2) / 1000
    ours_ms = median_us(ours, 11, 2) / 1000
    speed = theirs_ms / ours_ms
    report.add(
        Row(
            "100 MB NumPy argument",
            f"{ours_ms:.0f} ms",
            f"{theirs_ms:.0f} ms shared memory",
            f"{speed:.2f} × its speed",
            "≥ 0.5 ×",
            speed >= 0.5,
        )
    )


def beside_cpu(report: Report) -> None:
    neighbours = Neighbours()
    alone = median_us(lambda: neighbours.echo.remote(1), 500, 100)
    spinning = neighbours.spin.spawn(3.0)
    time.sleep(0.2)
    beside = median_us(lambda: neighbours.echo.remote(1), 200, 10)
    spinning.get()
    ratio = f"{beside / alone:.1f} ×"
    report.add(Row("warm call beside a CPU-bound sibling", f"{beside:.0f} µs", f"{alone:.0f} µs alone", ratio))


def cold_start(report: Report) -> None:
    """From a call at zero containers to its result, the fork server being warm."""
    for name, function, budget in (("no heavy imports", cold, 50), (f"with {HEAVY}", cold_heavy, 150)):
        times = []
        for _ in range(2):
            # The first start teaches what is imported, the second one makes a fork server that holds it.
            function.remote(0)
            wait_for_zero(function)
        for _ in range(7):
            start = time.perf_counter()
            function.remote(1)
            times.append((time.perf_counter() - start) * 1000)
            wait_for_zero(function)
        median = statistics.median(times)
        report.add(Row(f"cold start, {name}", f"{median:.0f} ms", "", "", f"≤ {budget} ms", median <= budget))


def wait_for_zero(function: kedge.Function[..., Any]) -> None:
    while function.get_current_stats().num_total_runners:
        time.sleep(0.05)
