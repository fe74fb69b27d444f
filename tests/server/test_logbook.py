"""The log book: everything is found again by an index, little is kept of much, and no failure holds anybody up."""

from __future__ import annotations

import logging
import random
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kedge.cli.loglines import Assembler, in_order
from kedge.server import logbook
from kedge.server.chunks import SPAN_S, Chunk, Place, lines
from kedge.server.logbook import LogBook
from kedge.server.logreader import Entry, LogReader, Missing, Selection, Unreadable
from kedge.wire.records import NOBODY, Origin


def chunk(
    data: bytes, origin: Origin = NOBODY, *, container: str = "ct-1", app: str = "ap-1", at: float = 100.0
) -> Chunk:
    place = Place(container, app, f"name of {app}", "fetch")
    made = Chunk(place, origin, 1, 7, at)
    made.add(data, at)
    return made


def wait(book: LogBook) -> None:
    """Until everything is on disk, or lost."""
    while book.waiting:
        time.sleep(0.0005)


@contextmanager
def written(path: Path, *chunks: Chunk, **limits: int) -> Iterator[LogReader]:
    book = LogBook(path, **limits)
    for one in chunks:
        book.put([one])
        wait(book)
    book.close()
    with LogReader(path) as reader:
        yield reader


def entries(reader: LogReader, selection: Selection) -> list[Entry]:
    found = [reader.entry(number) for number in reader.find(selection)]
    assert None not in found
    return [entry for entry in found if entry is not None]


def texts(reader: LogReader, **selection: object) -> list[str]:
    found = entries(reader, Selection(**selection))  # type: ignore[arg-type]
    return [line.data.decode() for line in in_order(Assembler(), found)]


# ---------------------------------------------------------------- chunks


def test_every_line_of_a_chunk_has_its_time() -> None:
    made = Chunk(Place("ct-1"), NOBODY, 1, 7, 100.0)
    made.add(b"one\n", 100.0)
    made.add(b"t", 100.2)
    made.add(b"wo\nthree\nfo", 100.3)
    made.add(b"ur", 100.1)
    found = [(round(at, 6), line) for at, line in lines(bytes(made.data), made.first, made.marks.tobytes())]
    assert found == [(100.0, b"one\n"), (100.3, b"two\n"), (100.3, b"three\n"), (100.3, b"four")]
    assert (made.first, made.last) == (100.0, 100.3)


def test_a_flood_of_lines_needs_few_marks_and_their_order_is_kept() -> None:
    """60,000 lines in a second: no mark for each. Where somebody else wrote in between, there is one."""
    flood, other = (Chunk(Place("ct-1"), NOBODY, stream, 7, 100.0) for stream in (1, 2))
    for number in range(50_000):
        flood.add(b"line\n", 100.0 + number / 60_000, first=False)
    assert len(flood.marks) < 2 * 1001
    at = 100.9
    for _ in range(100):
        for one in (flood, other):
            at += 0.000_05
            one.add(b"in turns\n", at)
    both = [
        [(at, stream) for at, line in lines(bytes(one.data), one.first, one.marks.tobytes()) if line == b"in turns\n"]
        for stream, one in enumerate((flood, other))
    ]
    assert [stream for _, stream in sorted(both[0] + both[1])] == [0, 1] * 100


def test_a_chunk_is_full_after_a_second_or_many_bytes() -> None:
    made = chunk(b"x")
    assert made.fits(100.0 + SPAN_S)
    assert not made.fits(100.1 + SPAN_S)
    made.add(bytes(logbook.LIMIT // 1000), 100.0)
    assert not made.fits(100.0)


# ---------------------------------------------------------------- look-ups


def test_lines_are_found_by_everything_that_is_known_of_them(tmp_path: Path) -> None:
    chunks = [
        chunk(b"a\n", Origin("fc-1", 0), at=100.0),
        chunk(b"b\n", Origin("fc-1", 1), at=101.0),
        chunk(b"c\n", Origin("fc-2", 1), container="ct-2", app="ap-2", at=102.0),
        chunk(b"d\n", container="ct-3", at=103.0),
    ]
    with written(tmp_path / "logs.db", *chunks) as reader:
        assert texts(reader) == ["a", "b", "c", "d"]
        assert texts(reader, app="ap-1") == ["a", "b", "d"]
        assert texts(reader, name="name of ap-2") == ["c"]
        assert texts(reader, call="fc-1") == ["a", "b"]
        assert texts(reader, call="fc-1", index=1) == ["b"]
        assert texts(reader, container="ct-3") == ["d"]
        assert texts(reader, function="fetch", app="ap-2") == ["c"]
        assert texts(reader, function="other") == []
        assert texts(reader, since=101.0, until=101.9 - SPAN_S) == ["b"]
        assert texts(reader, call="fc-1", app="ap-2") == []
        first = entries(reader, Selection(call="fc-1"))[0]
        assert (first.app, first.app_name, first.function, first.container) == ("ap-1", "name of ap-1", "fetch", "ct-1")
        assert [app.id for app in reader.apps()] == ["ap-1", "ap-2"]
        assert [app.id for app in reader.apps("name of ap-2")] == ["ap-2"]
        assert reader.functions(Selection(app="ap-2")) == ["fetch"]
        assert reader.inputs("fc-1") == [0, 1]
        assert reader.inputs("fc-9") == []
        assert reader.calls("2") == ["fc-2"]
        assert reader.calls("%") == []
        assert reader.containers("-3") == ["ct-3"]


def test_a_batch_is_found_by_any_of_its_inputs(tmp_path: Path) -> None:
    first = Origin("fc-1", 4, members=(("fc-1", 4), ("fc-1", 5), ("fc-2", 0)))
    again = Origin("fc-1", 4, attempt=1, members=(("fc-1", 4), ("fc-3", 9)))
    chunks = [chunk(b"all\n", first), chunk(b"more\n", first), chunk(b"again\n", again)]
    with written(tmp_path / "logs.db", *chunks) as reader:
        assert texts(reader, call="fc-1", index=4) == ["all", "more", "again"]
        assert texts(reader, call="fc-1", index=5) == ["all", "more"]
        assert texts(reader, call="fc-2") == ["all", "more"]
        assert texts(reader, call="fc-3", index=9) == ["again"]
        assert texts(reader, call="fc-3", index=8) == []
        batch = entries(reader, Selection(call="fc-2"))[0]
        assert sorted(reader.members(batch)) == [("fc-1", 4), ("fc-1", 5), ("fc-2", 0)]


@pytest.mark.parametrize(
    "selection",
    [
        Selection(app="ap-1"),
        Selection(name="demo", since=1.0),
        Selection(call="fc-1", index=3),
        Selection(call="fc-1"),
        Selection(call="fc-1", index=3, app="ap-1", since=1.0),
        Selection(function="fetch"),
        Selection(function="fetch", app="ap-1", since=1.0, until=2.0),
        Selection(container="ct-1", until=2.0),
        Selection(container="ct-1", app="ap-1", function="fetch"),
        Selection(since=1.0, until=2.0),
        Selection(),
    ],
    ids=str,
)
def test_no_question_reads_everything(selection: Selection, tmp_path: Path) -> None:
    with written(tmp_path / "logs.db", chunk(b"x")) as reader:
        steps = reader.plan(selection).splitlines()
        assert any("SEARCH" in step and "chunks" in step for step in steps)
        assert not [step for step in steps if "SCAN" in step], steps


def test_who_follows_sees_each_chunk_once(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    with written(path, chunk(b"before\n"), chunk(b"other\n", app="ap-2")) as reader:
        seen = reader.newest()
        assert seen == 2
        assert not reader.changed()
        book = LogBook(path)
        book.put([chunk(b"after\n"), chunk(b"other\n", app="ap-2")])
        book.close()
        assert reader.changed()
        assert not reader.changed()
        assert len(reader.find_after(seen, Selection(app="ap-1"))) == 1
        assert len(reader.find_after(seen, Selection())) == 2
        assert not reader.find_after(reader.newest(), Selection())


# ---------------------------------------------------------------- bounds


def test_an_app_that_prints_without_end_pushes_out_its_own_lines(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    quiet = [chunk(b"quiet %d\n" % number, app="ap-quiet", container="ct-q") for number in range(3)]
    loud = [chunk(b"%06d" % number + bytes(10_000)) for number in range(200)]
    with written(path, *quiet[:2], *loud, quiet[2], limit=1_000_000, app_limit=500_000) as reader:
        assert texts(reader, app="ap-quiet") == ["quiet 0", "quiet 1", "quiet 2"]
        left = [entry.data[:6].decode() for entry in entries(reader, Selection(app="ap-1"))]
        assert left[-1] == "000199"
        assert left == [f"{number:06}" for number in range(200 - len(left), 200)]
        assert 40 <= len(left) <= 49
    assert path.stat().st_size < 1_200_000


def test_of_many_apps_the_newest_lines_are_kept(tmp_path: Path) -> None:
    chunks = [chunk(bytes(10_000), container=f"ct-{n}", app=f"ap-{n}", at=100.0 + n) for n in range(200)]
    with written(tmp_path / "logs.db", *chunks, limit=1_000_000, app_limit=500_000) as reader:
        kept = [app.id for app in reader.apps()]
        assert kept[0] == "ap-199"
        assert kept == [f"ap-{199 - n}" for n in range(len(kept))], "what is left of an app is its whole log"
        assert 90 <= len(kept) <= 98
        assert len(reader.containers("")) == 10
        assert reader._all("SELECT count(*) FROM sources") == [(len(kept),)]
        assert reader._all("SELECT bytes FROM total") == reader._all("SELECT sum(size) FROM chunks")
        assert reader._all("SELECT sum(bytes) FROM apps") == reader._all("SELECT sum(size) FROM chunks")


def test_batches_that_are_gone_leave_nothing_behind(tmp_path: Path) -> None:
    batches = [Origin(f"fc-{n}", 0, members=tuple((f"fc-{n}", member) for member in range(50))) for n in range(100)]
    chunks = [chunk(b"x\n", origin) for origin in batches]
    with written(tmp_path / "logs.db", *chunks, limit=100_000, app_limit=100_000) as reader:
        calls = {entry.call for entry in entries(reader, Selection())}
        assert 10 < len(calls) < 20, "inputs of batches count too"
        assert {call for (call,) in reader._all("SELECT call FROM members")} == calls


def test_what_the_disk_cannot_take_in_time_is_counted_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logbook, "QUEUE_LIMIT", 1000)
    path = tmp_path / "logs.db"
    book = LogBook(path)
    blocked = threading.Event()
    write = book._write

    def slowly(chunks: list[Chunk]) -> None:
        blocked.wait(30)
        write(chunks)

    monkeypatch.setattr(book, "_write", slowly)
    book.put([chunk(b"first\n")])
    for _ in range(3):
        book.put([chunk(bytes(1000))])
    book.put([chunk(b"second\n")])
    blocked.set()
    book.close()
    with LogReader(path) as reader:
        assert sorted(texts(reader)) == [
            "[kedge: 3,000 bytes were not kept: they came faster than they could be kept]",
            "first",
            "second",
        ]


def test_a_loss_is_said_even_if_nothing_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logbook, "QUEUE_LIMIT", 1000)
    book = LogBook(tmp_path / "logs.db")
    begun, go_on = threading.Event(), threading.Event()
    write = book._write

    def slowly(chunks: list[Chunk]) -> None:
        begun.set()
        go_on.wait(30)
        write(chunks)

    monkeypatch.setattr(book, "_write", slowly)
    book.put([chunk(b"first\n")])
    begun.wait(30)
    book.put([chunk(bytes(1000))])
    go_on.set()
    deadline = time.monotonic() + 30
    while book._lost or book.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    book.close()
    with LogReader(tmp_path / "logs.db") as reader:
        text = "[kedge: 1,000 bytes were not kept: they came faster than they could be kept]"
        assert sorted(texts(reader)) == [text, "first"]


# ---------------------------------------------------------------- what goes wrong


def test_only_its_user_may_read_it(tmp_path: Path) -> None:
    book = LogBook(tmp_path / "logs" / "logs.db")
    book.put([chunk(b"secret\n")])
    book.close()
    for path in [tmp_path / "logs", *(tmp_path / "logs").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_before_the_first_line_there_is_neither_a_thread_nor_a_file(tmp_path: Path) -> None:
    threads = threading.active_count()
    book = LogBook(tmp_path / "logs" / "logs.db")
    assert threading.active_count() == threads
    book.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(Missing, match=r"there is no log at .* yet: no container has written anything"):
        LogReader(tmp_path / "logs" / "logs.db")


def test_a_disk_that_refuses_loses_the_log_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "logs").write_text("a file where the directory should be")
    path = tmp_path / "logs" / "logs.db"
    book = LogBook(path)
    for _ in range(5):
        book.put([chunk(b"lost\n")])
        wait(book)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert f"what containers print is not kept: {path}: " in caplog.text
    (tmp_path / "logs").unlink()
    book.put([chunk(b"kept\n")])
    book.close()
    assert "is kept again" in caplog.text
    with LogReader(path) as reader:
        assert sorted(texts(reader)) == ["[kedge: 25 bytes were not kept: the disk refused them]", "kept"]


def test_who_wants_to_know_hears_once_that_nothing_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    path.write_text("this is no database, and has never been one\n" * 20)
    book, heard = LogBook(path), list[str]()
    book.on_trouble = heard.append
    book.check()
    while not heard:
        time.sleep(0.0005)
    assert heard == [
        f"what containers print is not kept: {path}: file is not a database; remove the file, and a new one is made"
    ]
    book.put([chunk(b"lost\n")])
    wait(book)
    assert book.trouble == heard[0]
    path.unlink()
    book.put([chunk(b"kept\n")])
    book.close()
    assert (book.trouble, len(heard)) == ("", 1)


def test_a_book_that_nobody_has_written_to_is_not_made_by_a_look(tmp_path: Path) -> None:
    book = LogBook(tmp_path / "logs" / "logs.db")
    book.check()
    book.close()
    assert not list(tmp_path.iterdir())


def test_a_chunk_that_cannot_be_written_costs_its_batch_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = LogBook(tmp_path / "logs.db")
    book.put([chunk(b"lost\n", Origin("fc-1", 2**70))])
    wait(book)
    book.put([chunk(b"kept\n")])
    book.close()
    assert "is not kept" in caplog.text
    with LogReader(tmp_path / "logs.db") as reader:
        assert "kept" in texts(reader)


def test_a_file_that_somebody_removes_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    book = LogBook(path)
    book.put([chunk(b"gone\n")])
    wait(book)
    with LogReader(path) as reader:
        assert not reader.replaced
        for file in tmp_path.iterdir():
            file.unlink()
        assert reader.replaced
        book.put([chunk(b"new\n")])
        book.close()
        assert reader.replaced
    with LogReader(path) as reader:
        assert texts(reader) == ["new"]


def test_a_broken_file_is_left_alone_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "logs.db"
    path.write_bytes(random.Random(7).randbytes(10_000))
    book = LogBook(path)
    book.put([chunk(b"x\n")])
    book.close()
    assert f"{path}: file is not a database; remove the file, and a new one is made" in caplog.text
    with pytest.raises(Unreadable, match="cannot be read: file is not a database"):
        LogReader(path)


def test_the_file_of_a_newer_kedge_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "logs.db"
    with written(path, chunk(b"x\n")):
        pass
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 7")
    database.close()
    book = LogBook(path)
    book.put([chunk(b"y\n")])
    book.close()
    assert "it belongs to a newer kedge (format 7, this one knows 1)" in caplog.text
    with pytest.raises(Unreadable, match="has format 7, and this kedge reads 1: use the version that wrote it"):
        LogReader(path)


WRITER = """
import sys
import time
from pathlib import Path
from kedge.server.chunks import Chunk, Place
from kedge.server.logbook import LogBook
from kedge.wire.records import Origin

book, name = LogBook(Path(sys.argv[1])), sys.argv[2]
for number in range(100):
    chunk = Chunk(Place("ct-" + name, "ap-" + name, "demo", "fetch"), Origin("fc-" + name, 0), 1, 1, 100.0 + number)
    chunk.add(b"%d\\n" % number, 100.0 + number)
    book.put([chunk])
    while book.waiting:  # a transaction for each
        time.sleep(0.0005)
book.close()
"""


def test_several_servers_write_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "logs.db"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(n)], stderr=subprocess.PIPE) for n in "abc"
    ]
    for writer in writers:
        assert writer.communicate(timeout=60)[1] == b""
        assert writer.returncode == 0
    with LogReader(path) as reader:
        for name in "abc":
            assert texts(reader, app=f"ap-{name}") == [str(number) for number in range(100)]
        assert reader.newest() == 300
