"""One row per measurement, and the table they make."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


@dataclass
class Row:
    """What was measured, beside what, and the budget of the design where there is one."""

    name: str
    measured: str
    yardstick: str = ""
    ratio: str = ""
    budget: str = ""
    holds: bool | None = None

    def cells(self) -> list[str]:
        verdict = {True: "yes", False: "**no**", None: ""}[self.holds]
        return [self.name, self.measured, self.yardstick, self.ratio, self.budget, verdict]


@dataclass
class Report:
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print("  " + " | ".join(cell for cell in row.cells() if cell), flush=True)

    def table(self) -> str:
        head = ["What", "Measured", "Yardstick, same run", "Ratio", "Budget", "Holds"]
        lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head))]
        lines += ["| " + " | ".join(row.cells()) + " |" for row in self.rows]
        return "\n".join(lines)


def machine() -> str:
    """The machine in one line: what a reader needs to judge the figures."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def median_us(call: Callable[[], object], rounds: int, warm: int = 50) -> float:
    """Median microseconds of one call."""
    for _ in range(warm):
        call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def paired_us(ours: Callable[[], object], theirs: Callable[[], object], turns: int = 12) -> tuple[float, float, float]:
    """Median microseconds of two calls taken in turns, and the median of the ratios of each turn: what the machine does
    meanwhile befalls both."""
    pairs = [(median_us(ours, 250, 30), median_us(theirs, 250, 30)) for _ in range(turns)]
    ratio = statistics.median(mine / other for mine, other in pairs)
    return statistics.median(mine for mine, _ in pairs), statistics.median(other for _, other in pairs), ratio


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Seconds of the block, in a list of one, after it has ended."""
    seconds = [0.0]
    start = time.perf_counter()
    yield seconds
    seconds[0] = time.perf_counter() - start
