"""What it costs that every printed line knows its input: one line, and many of them through a whole container."""

from __future__ import annotations

import io
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.functions import app, print_lines
from benchmarks.report import Report, Row
from kedge.container.output import Outlet
from kedge.model.protocol import OutputCaptured
from kedge.sdk.context import InputContext, enter_input, exit_input
from kedge.sdk.output import show_on

LINE = "a line as programs print them, of sixty characters or so: 12345"
TURNS, PRINTS = 20, 2_000
RATE, SECONDS = 50_000, 4.0


def run(report: Report) -> None:
    one_line(report)
    many_lines(report)


def one_line(report: Report) -> None:
    """Both streams end in pipes that a process reads as the supervisor does: what is there, then a rest of 5 ms."""
    with drained() as records, drained() as plain_pipe:
        outlet = Outlet()
        os.set_blocking(records, False)
        outlet.open(os.dup(records))
        plain = io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(plain_pipe, "w", closefd=False)), encoding="utf-8", line_buffering=True
        )
        token = enter_input(InputContext("fc-1", 0, lease=1))
        pairs = [(median_ns(outlet.stdout), median_ns(plain)) for _ in range(TURNS)]
        exit_input(token)
    ours = statistics.median(mine for mine, _ in pairs)
    theirs = statistics.median(other for _, other in pairs)
    more = statistics.median(mine - other for mine, other in pairs)
    report.add(
        Row(
            "print() of a line, attributed",
            f"{ours / 1000:.2f} µs",
            f"{theirs / 1000:.2f} µs line-buffered stdout",
            f"+{more / 1000:.2f} µs",
            "≤ +2 µs",
            more <= 2000,
        )
    )


def median_ns(stream: Any) -> float:
    clock, times = time.perf_counter, []
    for number in range(PRINTS):
        start = clock()
        print(LINE, file=stream)
        times.append(clock() - start)
        if number % 200 == 0:
            time.sleep(0.002)  # the pipe is never full: what it costs to wait for a reader is not the question
    return statistics.median(times) * 1e9


@contextmanager
def drained() -> Iterator[int]:
    """The write end of a pipe that another process empties."""
    reader, writer = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=_drain, args=(reader, writer), daemon=True)
    process.start()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)
        process.terminate()
        process.join()


def _drain(reader: int, writer: int) -> None:
    os.close(writer)
    while os.read(reader, 1 << 20):
        time.sleep(0.005)


class Counter:
    """Takes the place of a display."""

    progress_interval = 0.0

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.notices: list[str] = []
        self._changed = threading.Condition()

    def captured(self, message: OutputCaptured) -> None:
        with self._changed:
            if b"[kedge:" in message.data:
                self.notices.append(message.data.decode())
            self.lines[message.call] = self.lines.get(message.call, 0) + message.data.count(b"\n")
            self._changed.notify()

    def notice(self, text: str, level: str = "info") -> None:
        self.notices.append(text)

    def progress(self, pools: list[dict[str, Any]]) -> None:
        pass

    def heard(self, count: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: sum(self.lines.values()) >= count, 30)


def many_lines(report: Report) -> None:
    """A container that prints steadily, a session that watches it, and the log book: from one end to the other."""
    counter = Counter()
    with show_on(counter), app.run():
        print_lines.remote(LINE, RATE, 0.1)
        counter.heard(int(RATE * 0.1))
        warm = sum(counter.lines.values())
        count, seconds, slowest = print_lines.remote(LINE, RATE, SECONDS)
        counter.heard(warm + count)
    missing = warm + count - sum(counter.lines.values())
    rate = count / seconds
    report.add(
        Row(
            f"{SECONDS:.0f} s of prints at {RATE:,} lines/s",
            f"{rate:,.0f} lines/s, {missing} missing",
            "",
            f"longest print {slowest * 1000:.1f} ms",
            f"≥ {RATE:,} lines/s, none lost",
            rate >= 0.98 * RATE and missing == 0 and not counter.notices,
        )
    )
