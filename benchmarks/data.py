"""Dicts, queues, volumes and secrets: one round trip at a time, many items in few messages, files kept for good.

Yardsticks: a manager process of multiprocessing, which holds a dict and a queue for others as the server does; a plain
copy of the same files; the same function without a secret.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import kedge
from benchmarks.report import Report, Row, paired_us, stopwatch
from kedge.engines import probe
from kedge.model.spec import NAMESPACE

ITEMS = 100_000
FEW_ITEMS = 5_000
"""For the yardstick, which takes one message for each."""
FILES = (1, 1_000)
FILE_BYTES = 4_096
LARGE_BYTES = 1_000_000_000
ROUNDS = 5

app, files_app = kedge.App("benchmarks-data"), kedge.App("benchmarks-volumes")
volume = kedge.Volume.from_name("benchmarks-data", create_if_missing=True)


@app.function(max_containers=1)
def plain(value: int) -> int:
    return value


@app.function(max_containers=1, secrets=[kedge.Secret.from_dict({"BENCHMARKS_TOKEN": "x" * 40})])
def with_secret(value: int) -> int:
    return value + len(os.environ["BENCHMARKS_TOKEN"]) - 40


@files_app.function(max_containers=1, volumes={"/kept": volume})
def commit(files: int, size: int, turn: int) -> tuple[float, float]:
    """Writes so many files, and makes them last: seconds of each."""
    directory = Path("/kept/files")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    block = os.urandom(min(size, 1 << 20))
    with stopwatch() as written:
        for number in range(files):
            with open(directory / f"{turn}-{number}", "wb") as file:
                file.writelines(block for _ in range(max(1, size // len(block))))
    with stopwatch() as committed:
        volume.commit()
    return written[0], committed[0]


def run(report: Report) -> None:
    with get_context("spawn").Manager() as manager, app.run():
        entries_and_queue(report, manager)
        secrets(report)
        reason = probe.survey()[NAMESPACE]
        if reason:
            print(f"  volumes are left out: {reason}")
            return
        with files_app.run():
            volumes(report)


def entries_and_queue(report: Report, manager: object) -> None:
    theirs, their_queue = manager.dict(), manager.Queue()  # type: ignore[attr-defined]
    with kedge.Dict.ephemeral() as ours, kedge.Queue.ephemeral() as queue:

        def kept(entries: object) -> Callable[[], object]:
            def once() -> None:
                entries["key"] = 1  # type: ignore[index]
                assert entries["key"] == 1  # type: ignore[index]

            return once

        def handed_on(line: object) -> Callable[[], object]:
            def once() -> None:
                line.put(1)  # type: ignore[attr-defined]
                assert line.get() == 1  # type: ignore[attr-defined]

            return once

        for name, mine, other in (
            ("Dict: put and get", kept(ours), kept(theirs)),
            ("Queue: put and get", handed_on(queue), handed_on(their_queue)),
        ):
            here, there, ratio = paired_us(mine, other, 6)
            report.add(Row(name, f"{here:.0f} µs", f"{there:.0f} µs manager process", f"{ratio:.2f} ×"))
        with stopwatch() as seconds:
            for number in range(FEW_ITEMS):
                their_queue.put(number)
            for _ in range(FEW_ITEMS):
                their_queue.get()
        there_each = seconds[0] / FEW_ITEMS
        with stopwatch() as seconds:
            queue.put_many(list(range(ITEMS)))
            assert len(queue.get_many(ITEMS)) == ITEMS
        here_each = seconds[0] / ITEMS
        report.add(
            Row(
                f"Queue: {ITEMS:,} items by put_many and get_many",
                f"{1 / here_each:,.0f} items/s",
                f"{1 / there_each:,.0f}/s manager process",
                f"{there_each / here_each:.0f} ×",
            )
        )


def secrets(report: Report) -> None:
    assert (plain.remote(1), with_secret.remote(1)) == (1, 1)
    here, there, ratio = paired_us(lambda: with_secret.remote(1), lambda: plain.remote(1), 6)
    report.add(Row("warm call with a secret", f"{here:.0f} µs", f"{there:.0f} µs without", f"{ratio:.2f} ×"))


def volumes(report: Report) -> None:
    """Beside a plain copy of as many files of the same size, on the file system of temporary files."""
    for files, size in (*((count, FILE_BYTES) for count in FILES), (1, LARGE_BYTES)):
        rounds = 1 if size == LARGE_BYTES else ROUNDS
        committed, copied = [], []
        for turn in range(rounds):
            committed.append(commit.remote(files, size, turn)[1])
            copied.append(_copy(files, size))
        ours, theirs = statistics.median(committed) * 1000, statistics.median(copied) * 1000
        what = f"{files:,} files" if files > 1 else "1 file" if size == FILE_BYTES else f"a file of {size / 1e9:.0f} GB"
        report.add(
            Row(f"Volume: commit of {what}", f"{ours:,.1f} ms", f"{theirs:,.1f} ms copy", f"{ours / theirs:.2f} ×")
        )
    commit.remote(0, 1, 0)  # gives the room back


def _copy(files: int, size: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "source"
        source.mkdir()
        block = os.urandom(min(size, 1 << 20))
        for number in range(files):
            with open(source / str(number), "wb") as file:
                file.writelines(block for _ in range(max(1, size // len(block))))
        began = time.perf_counter()
        shutil.copytree(source, Path(directory) / "copy")
        return time.perf_counter() - began


if __name__ == "__main__":
    run(Report())
