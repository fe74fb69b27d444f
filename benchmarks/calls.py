"""Calls through the whole road, each beside a ProcessPoolExecutor of one process in the same run."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, shared_memory

import numpy as np

from benchmarks.functions import Neighbours, app, cold, echo, identity, touch, touch_pages
from benchmarks.report import Report, Row, median_us, stopwatch

MAP_INPUTS = 100_000
POOL_MAP_INPUTS = 20_000
ARRAY_BYTES = 100_000_000


def run(report: Report) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool, app.run():
        warm_call(report, pool)
        map_small(report, pool)
        large_argument(report, pool)
        beside_cpu(report)
        cold_start(report)


def warm_call(report: Report, pool: ProcessPoolExecutor) -> None:
    ours = median_us(lambda: echo.remote(1), 3000, 300)
    theirs = median_us(lambda: pool.submit(identity, 1).result(), 3000, 300)
    ratio = ours / theirs
    row = Row("warm no-op .remote(), p50", f"{ours:.0f} µs", f"{theirs:.0f} µs pool", f"{ratio:.2f} ×", "≤ 1.2 ×", ratio <= 1.2)
    report.add(row)


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
    report.add(
        Row("warm call beside a CPU-bound sibling", f"{beside:.0f} µs", f"{alone:.0f} µs alone", f"{beside / alone:.1f} ×")
    )


def cold_start(report: Report) -> None:
    """From a call at zero containers to its result, the fork server being warm."""
    times = []
    cold.remote(0)
    for _ in range(7):
        while cold.get_current_stats().num_total_runners:
            time.sleep(0.05)
        start = time.perf_counter()
        cold.remote(1)
        times.append((time.perf_counter() - start) * 1000)
    median = statistics.median(times)
    report.add(Row("cold start, no heavy imports", f"{median:.0f} ms", "", "", "≤ 50 ms", median <= 50))
