"""What logs cost the server: taking lines apart and keeping them, and finding those of one input again."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import Report, Row, stopwatch
from kedge.cli.loglines import Assembler, Line, in_order
from kedge.model.protocol import RECORDS, OutputCaptured
from kedge.server.chunks import Place
from kedge.server.logreader import Entry, LogReader, Selection
from kedge.server.logs import OutputLog
from kedge.wire.records import STDOUT, Origin, announcement, pack_header

LINES = 1_000_000
INPUTS = 10_000
APPS = 4
"""Of one app less is kept than all these lines."""
AT_ONCE = 50
"""Inputs that print at the same time, in turns."""
PORTION = 64 * 1024
"""Bytes that the supervisor reads and sends at once."""
RATE = 50_000
"""Lines a second that must not be a burden."""


def records(app: int) -> list[bytes]:
    """What a container of this app sends while its inputs print 100 lines each, in portions."""
    data = bytearray()
    now = time.time() - 60.0
    for first in range(0, INPUTS // APPS, AT_ONCE):
        for lease in range(first, first + AT_ONCE):
            data += announcement(lease, Origin(f"fc-{app}", lease), now)
        for number in range(LINES // INPUTS):
            for lease in range(first, first + AT_ONCE):
                now += 1 / RATE
                line = b"INFO line %06d of an input that says something of common length\n" % number
                data += pack_header(len(line), STDOUT, lease % AT_ONCE + 1, lease, now) + line
    return [bytes(data[i : i + PORTION]) for i in range(0, len(data), PORTION)]


async def absorb(path: Path, apps: list[list[bytes]]) -> float:
    """Seconds of processors until everything is on disk. The next portion comes when the last one is nearly there."""
    output = OutputLog(path, lambda container: Place(container, f"ap-{container}", "demo", "fetch", "fu-1-fetch"))
    spent = time.process_time()
    for app, portions in enumerate(apps):
        for portion in portions:
            output.write(OutputCaptured(f"{app}", RECORDS, portion, time.time()))
            output.flush()
            while output.book.waiting > 4 * PORTION:  # noqa: ASYNC110 - the thread that writes tells nobody
                await asyncio.sleep(0.001)
    output.close_all()
    return time.process_time() - spent


def run(report: Report) -> None:
    apps = [records(app) for app in range(APPS)]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "logs.db"
        rate = LINES / asyncio.run(absorb(path, apps))
        with stopwatch() as plain, (Path(directory) / "plain").open("wb", buffering=0) as file:
            for portion in itertools.chain(*apps):
                file.write(portion)
        yardstick = f"{LINES / plain[0] / 1e6:,.0f} million written to a file unseen"
        share = f"{RATE / rate:.0%} of a core at {RATE:,} lines/s"
        report.add(Row("logs, lines kept per second of one core", f"{rate:,.0f}", yardstick, share))
        with LogReader(path) as reader:
            times = []
            for index in range(0, INPUTS // APPS, 50):
                with stopwatch() as seconds:
                    count = len(look_up(reader, index))
                assert count == LINES // INPUTS
                times.append(seconds[0])
            with stopwatch() as scan:
                everything = sum(1 for _ in in_order(Assembler(), chunks(reader, Selection(name="demo"))))
            assert everything == LINES
    found = statistics.median(times)
    ratio = f"{scan[0] / found:,.0f} × faster"
    what = f"logs, the lines of one input among {LINES:,}"
    report.add(Row(what, f"{found * 1000:.1f} ms", f"{scan[0]:.1f} s to read all", ratio))


def look_up(reader: LogReader, index: int) -> list[Line]:
    return list(in_order(Assembler(), chunks(reader, Selection(call="fc-1", index=index))))


def chunks(reader: LogReader, selection: Selection) -> Iterator[Entry]:
    return (entry for number in reader.find(selection) if (entry := reader.entry(number)) is not None)
