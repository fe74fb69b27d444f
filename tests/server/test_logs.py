"""What containers print reaches those who watch, and the log book, with the input that printed it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from kedge.cli.loglines import Assembler, Line, in_order
from kedge.model.protocol import RECORDS, OutputCaptured
from kedge.server import logs
from kedge.server.chunks import Place
from kedge.server.logreader import LogReader, Selection
from kedge.server.logs import OutputLog
from kedge.wire.records import DROPPED, STDERR, STDOUT, Origin, announcement, pack_header
from tests.wire.loops import on_loop

NOW = 1_000_000.0
ONE, TWO = Origin("fc-1", 0), Origin("fc-1", 1, 2, "load")


def place(container: str) -> Place | None:
    return None if container == "ct-stranger" else Place(container, "ap-1", "demo", "Model", "fu-1-Model")


def log_in(directory: Path) -> OutputLog:
    return OutputLog(directory / "logs.db", place, lambda: NOW)


def record(lease: int, data: bytes, kind: int = STDOUT, writer: int = 1, at: float = NOW) -> bytes:
    return pack_header(len(data), kind, writer, lease, at) + data


def records(*data: bytes, container: str = "ct-1") -> OutputCaptured:
    return OutputCaptured(container, RECORDS, b"".join(data), NOW)


ANNOUNCED = announcement(1, ONE, NOW) + announcement(2, TWO, NOW)


def kept(directory: Path, **selection: object) -> list[Line]:
    with LogReader(directory / "logs.db") as reader:
        found = [reader.entry(number) for number in reader.find(Selection(**selection))]  # type: ignore[arg-type]
    assembler = Assembler()
    return [*in_order(assembler, [entry for entry in found if entry is not None]), *assembler.rest()]


def texts(directory: Path, **selection: object) -> list[str]:
    return [line.data.decode("utf-8", "replace") for line in kept(directory, **selection)]


@on_loop
async def test_lines_reach_watchers_and_the_book_with_their_input(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.subscribe("ap-1", "se-1")
    messages = log.write(records(ANNOUNCED, record(1, b"one\n"), record(2, b"two\n", STDERR, 7), record(0, b"none\n")))
    messages += log.write(OutputCaptured("ct-1", 2, b"raw\n", NOW))
    log.close_all()
    assert messages == [
        OutputCaptured("ct-1", 1, b"one\n", NOW, "ap-1", "fu-1-Model", "fc-1", 0, 0, "", 1),
        OutputCaptured("ct-1", 2, b"two\n", NOW, "ap-1", "fu-1-Model", "fc-1", 1, 2, "load", 7),
        OutputCaptured("ct-1", 1, b"none\n", NOW, "ap-1", "fu-1-Model", writer=1),
        OutputCaptured("ct-1", 2, b"raw\n", NOW, "ap-1", "fu-1-Model", raw=True),
    ]
    assert texts(tmp_path) == ["one", "two", "none", "raw"]
    (two,) = kept(tmp_path, call="fc-1", index=1)
    entry = two.entry
    assert (entry.app, entry.app_name, entry.function, entry.method) == ("ap-1", "demo", "Model", "load")
    assert (entry.attempt, entry.stream, entry.writer, bool(entry.raw)) == (2, 2, 7, False)
    assert [bool(line.entry.raw) for line in kept(tmp_path)] == [False, False, False, True]


@on_loop
async def test_what_one_writer_says_in_a_row_is_one_message(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.subscribe("ap-1", "se-1")
    flood = [record(1, b"%d\n" % number, at=NOW + number / 1e6) for number in range(1000)]
    (message,) = log.write(records(ANNOUNCED, *flood))
    assert message.data == b"".join(b"%d\n" % number for number in range(1000))
    turns = [record(1 + number % 2, b"x\n") for number in range(10)]
    assert len(log.write(records(*turns))) == 10
    threads = [record(1, b"x\n", writer=number % 2) for number in range(10)]
    assert len(log.write(records(*threads))) == 10
    log.close_all()


@on_loop
async def test_nothing_is_made_for_nobody(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.subscribe("ap-2", "se-1")
    assert log.write(records(ANNOUNCED, record(1, b"one\n"))) == []
    assert log.close("ct-1") == []
    log.close_all()
    assert texts(tmp_path) == ["one"]


@on_loop
async def test_sessions_see_the_apps_that_they_watch(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.subscribe("ap-1", "se-1")
    log.subscribe("ap-1", "se-2")
    log.subscribe("ap-2", "se-2")
    assert log.watchers("ap-1") == ["se-1", "se-2"]
    log.unsubscribe("se-2")
    assert log.watchers("ap-1") == ["se-1"]
    assert log.watchers("ap-2") == []


@on_loop
async def test_inputs_that_write_in_turns_make_few_rows_and_whole_lines(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    data = ANNOUNCED
    for number in range(100):
        for lease in (1, 2):
            at = NOW - 1 + number / 1000
            data += record(lease, b"begin %d, " % number, at=at) + record(lease, b"end\n", at=at + 0.0001)
    for cut in range(0, len(data), 777):
        log.write(records(data[cut : cut + 777]))
    log.close_all()
    with LogReader(tmp_path / "logs.db") as reader:
        assert len(reader.find(Selection())) == 2
    assert texts(tmp_path, call="fc-1", index=0) == [f"begin {number}, end" for number in range(100)]
    times = [line.at for line in kept(tmp_path)]
    assert times == sorted(times)
    assert times[0] == pytest.approx(NOW - 1 + 0.0001, abs=0.001)


@on_loop
async def test_a_line_goes_on_in_the_next_row(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    for piece in (b"whole\nfirst ", b"second ", b"third\n", b"next\nlast"):
        log.write(records(ANNOUNCED, record(1, piece)))
        log.write(records(record(2, b"between\n")))
        log.flush()
    log.close_all()
    assert texts(tmp_path, index=0, call="fc-1") == ["whole", "first second third", "next", "last"]
    with LogReader(tmp_path / "logs.db") as reader:
        entries = [reader.entry(number) for number in reader.find(Selection(call="fc-1", index=0))]
    assert [bool(entry and entry.continues) for entry in entries] == [False, True, True, False]


@on_loop
async def test_a_container_that_is_gone_ends_its_lines(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.subscribe("ap-1", "se-1")
    log.write(records(ANNOUNCED, record(1, b"no end")))
    assert log.close("ct-1") == [OutputCaptured("ct-1", 1, b"", NOW, "ap-1", "fu-1-Model")]
    assert log.close("ct-1") == []
    log.close_all()
    assert texts(tmp_path) == ["no end"]


@on_loop
async def test_bytes_pass_on_while_the_loop_runs_and_rest_when_there_are_none(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    assert log._timer is None
    log.write(records(ANNOUNCED, record(1, b"one\n")))
    log.write(records(record(1, b"two\n")))
    assert log._timer is not None
    log.flush()
    assert log._timer is None
    log.close_all()
    assert texts(tmp_path) == ["one", "two"]


# ---------------------------------------------------------------- what goes wrong


@on_loop
async def test_what_a_container_dropped_is_a_line(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.subscribe("ap-1", "se-1")
    messages = log.write(records(ANNOUNCED, record(1, b"half a li"), record(1, b"5 lines were lost", DROPPED)))
    assert [(message.stream, message.data) for message in messages] == [
        (1, b"half a li"),
        (2, b"[kedge: 5 lines were lost]\n"),
    ]
    assert messages[0].writer != messages[1].writer
    log.close_all()
    assert texts(tmp_path, call="fc-1", index=0) == ["[kedge: 5 lines were lost]", "half a li"]


@on_loop
async def test_a_flood_beyond_the_bound_is_counted_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BURST", 1000)
    log = log_in(tmp_path)
    log.subscribe("ap-1", "se-1")
    shown = 0
    for _ in range(30):
        shown += sum(len(message.data) for message in log.write(records(ANNOUNCED, record(1, b"x" * 99 + b"\n"))))
    assert shown == 3000, "who watches sees all of it"
    log.write(OutputCaptured("ct-2", 1, b"of another container\n", NOW))
    log.flush()
    log.write(records(record(1, b"afterwards\n")))
    log.close_all()
    found = texts(tmp_path)
    assert found.count("x" * 99) == 10
    assert {"afterwards", "of another container"} < set(found)
    assert "[kedge: 2,000 bytes were not kept: they came faster than they could be kept]" in found


@on_loop
async def test_what_is_no_record_is_kept_raw_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = log_in(tmp_path)
    log.subscribe("ap-1", "se-1")
    good = records(ANNOUNCED, record(1, b"good\n"))
    log.write(good)
    log.write(records(b"\xff" * 40, container="ct-2"))
    (message,) = log.write(records(b"\xff" * 40))
    assert (message.raw, message.call, message.data) == (True, "", b"\xff" * 40)
    (message,) = log.write(records(record(1, b"nobody knows whose\n")))
    assert message.raw
    assert len(caplog.records) == 2, "one for each container"
    assert "ct-1 does not write records where they are expected" in caplog.text
    log.close_all()
    assert texts(tmp_path)[0] == "good"


@on_loop
async def test_times_that_cannot_be_true_do_no_harm(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    times = [math.nan, math.inf, -math.inf, -1.0, 1e300, NOW + 5, NOW - 10, NOW - 7200, NOW - 5]
    for number, at in enumerate(times):
        log.write(records(ANNOUNCED, record(1, b"%d\n" % number, at=at)))
        log.flush()
    log.close_all()
    assert texts(tmp_path) == [str(number) for number in range(len(times))], "the order of writing is kept"
    assert all(NOW - 3600 <= line.at <= NOW for line in kept(tmp_path))


@on_loop
async def test_names_that_cannot_be_true_are_nobodys(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    lies = [
        Origin("fc-" + "x" * 3000, 0),
        Origin("fc-1", 2**63),
        Origin("fc-1", 0, -(2**63)),
        Origin("fc-1", 0, 0, "m" * 3000),
        Origin("fc-1", 0, members=(("fc-1", 2**63),)),
    ]
    for lease, lie in enumerate(lies, 10):
        log.write(records(announcement(lease, lie, NOW), record(lease, b"%d\n" % lease)))
    log.close_all()
    found = kept(tmp_path)
    assert sorted(line.data for line in found) == [b"10", b"11", b"12", b"13", b"14"]
    assert {line.entry.call for line in found} == {""}


@on_loop
async def test_a_container_that_nobody_knows_is_kept_under_what_its_supervisor_says(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.write(OutputCaptured("ct-stranger", 1, b"whose?\n", NOW, "ap-9", "fu-9-f"))
    log.close_all()
    assert texts(tmp_path, app="ap-9") == ["whose?"]
