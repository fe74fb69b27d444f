"""Ray beside kedge, where Ray is installed (`pip install "ray>=2.40"`): the same no-op on an async actor."""

from __future__ import annotations

import importlib.util
import os
import time
from typing import Any

from benchmarks.functions import app, echo
from benchmarks.report import Report, Row, paired_us, stopwatch

INPUTS = 20_000
WINDOW = 1_000
"""Calls in flight, on both sides."""


def local_ray() -> Any:
    """Ray, with an instance of its own on this machine; None, and a line that says so, where it is not installed."""
    if importlib.util.find_spec("ray") is None:
        print("  ray is not installed: left out")
        return None
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    return ray


def run(report: Report) -> None:
    ray = local_ray()
    if ray is None:
        return

    @ray.remote
    class Echo:
        async def echo(self, value: int) -> int:
            return value

    actor = Echo.options(max_concurrency=WINDOW).remote()
    ray.get(actor.echo.remote(0))
    with app.run():
        echo.remote(0)
        ours, theirs, ratio = paired_us(lambda: echo.remote(1), lambda: ray.get(actor.echo.remote(1)), 6)
        report.add(Row("warm no-op call beside Ray", f"{ours:.0f} µs", f"{theirs:.0f} µs actor", f"{ratio:.2f} ×"))
        time.sleep(0.5)
        with stopwatch() as theirs_s:
            for first in range(0, INPUTS, WINDOW):
                ray.get([actor.echo.remote(i) for i in range(first, first + WINDOW)])
        with stopwatch() as ours_s:
            assert sum(1 for _ in echo.map(range(INPUTS))) == INPUTS
    ratio = theirs_s[0] / ours_s[0]
    report.add(
        Row(
            f"no-op .map of {INPUTS:,} beside Ray",
            f"{INPUTS / ours_s[0]:,.0f} inputs/s",
            f"{INPUTS / theirs_s[0]:,.0f}/s actor",
            f"{ratio:.1f} ×",
            "≥ 10 ×",
            ratio >= 10,
        )
    )
    ray.shutdown()
