"""Chunks become lines again: whole, in order, however they were cut, read from either end."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from kedge.cli import loglines
from kedge.cli.loglines import LINE_LIMIT, Assembler, Filter, Line, in_order, newest
from kedge.server.chunks import SPAN_S, Chunk, Place
from kedge.server.logreader import Entry
from kedge.wire.records import Origin


def entry(data: bytes, at: float = 100.0, *, input: int = 0, continues: bool = False, **changes: object) -> Entry:
    made = Entry(
        app="ap-1",
        app_name="demo",
        function="fetch",
        container="ct-1",
        call="fc-1",
        position=input,
        attempt=0,
        method="",
        batch=False,
        stream=1,
        writer=1,
        raw=False,
        continues=continues,
        first=at,
        last=at,
        marks=b"",
        data=data,
    )
    return made._replace(**changes)  # type: ignore[arg-type]


def all_lines(entries: Iterable[Entry]) -> list[Line]:
    assembler = Assembler()
    return [*in_order(assembler, entries), *assembler.rest()]


def texts(found: Iterable[Line]) -> list[bytes]:
    return [line.data for line in found]


def test_a_line_is_put_together_from_its_writers_chunks_only() -> None:
    entries = [
        entry(b"one ", 1),
        entry(b"of another input\n", 2, input=1),
        entry(b"of another thread\n", 3, writer=2),
        entry(b"on stderr\n", 4, stream=2),
        entry(b"raw\n", 5, raw=True),
        entry(b"of another attempt\n", 6, attempt=1),
        entry(b"line\nand", 7, continues=True),
    ]
    found = all_lines(entries)
    assert texts(found) == [
        b"of another input",
        b"of another thread",
        b"on stderr",
        b"raw",
        b"of another attempt",
        b"one line",
        b"and",
    ]
    assert [line.at for line in found] == [2, 3, 4, 5, 6, 7, 7]
    assert [line.whole for line in found] == [True] * 6 + [False]


def test_lines_of_overlapping_chunks_are_in_order() -> None:
    def made(stream: int, times: list[float]) -> Entry:
        chunk = Chunk(Place("ct-1"), Origin("fc-1", 0), stream, 1, times[0])
        for at in times:
            chunk.add(b"%.2f\n" % at, at)
        marks = chunk.marks.tobytes()
        return entry(bytes(chunk.data), stream=stream, first=chunk.first, last=chunk.last, marks=marks)

    early, late = made(1, [1.0, 1.2, 1.9]), made(2, [1.1, 1.3, 2.0])
    assert texts(all_lines([early, late])) == [b"1.00", b"1.10", b"1.20", b"1.30", b"1.90", b"2.00"]
    assert texts(newest([late, early], 3, Filter())[0]) == [b"1.30", b"1.90", b"2.00"]


def test_many_chunks_leave_as_they_come(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(loglines, "HELD", 10)
    taken = 0

    def entries() -> Iterable[Entry]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield entry(b"%d\n" % number, 100 + number * SPAN_S / 5)

    found = in_order(Assembler(), entries())
    assert next(found).data == b"0"
    assert taken < 30
    assert texts(found) == [b"%d" % number for number in range(1, 1000)]


def test_a_line_of_a_megabyte_is_one_line_and_one_without_end_comes_in_pieces() -> None:
    piece = b"x" * 100_000
    long = [entry(piece, number, continues=number > 0) for number in range(10)] + [entry(b"\n", 10, continues=True)]
    assert texts(all_lines(long)) == [b"x" * 1_000_000]
    assert texts(newest(reversed(long), 5, Filter())[0]) == [b"x" * 1_000_000]
    endless = [entry(piece, number, continues=number > 0) for number in range(50)]
    for found in (all_lines(endless), newest(reversed(endless), 100, Filter())[0]):
        assert b"".join(texts(found)) == b"x" * 5_000_000
        assert all(len(line.data) <= LINE_LIMIT + len(piece) for line in found)


def test_what_is_filtered() -> None:
    line = Line(100.0, b"an \x1b[31merror\x1b[0m here", entry(b""))
    assert Filter(pattern=re.compile("error here")).keeps(line), "colours are not looked at"
    assert not Filter(pattern=re.compile("^error")).keeps(line)
    assert Filter(since=100.0, until=100.0).keeps(line)
    assert not Filter(since=100.1).keeps(line)
    assert not Filter(until=99.9).keeps(line)
    assert Filter(stream=1, method="").takes(entry(b"", method="load"))
    assert not Filter(stream=2).takes(entry(b""))
    assert not Filter(method="load").takes(entry(b""))


def test_the_last_lines_are_found_without_reading_the_others() -> None:
    taken = []

    def entries() -> Iterable[Entry]:
        for number in reversed(range(1000)):
            taken.append(number)
            yield entry(b"%d\n" % number, number)

    found, more = newest(entries(), 3, Filter())
    assert (texts(found), more) == ([b"997", b"998", b"999"], True)
    assert len(taken) < 10
    found, more = newest([entry(b"1\n2\n")], 3, Filter())
    assert (texts(found), more) == ([b"1", b"2"], False)
    assert newest([entry(b"1\n2\n")], 0, Filter()) == ([], True)
    pattern = Filter(pattern=re.compile("[05]$"))
    assert texts(newest(entries(), 3, pattern)[0]) == [b"985", b"990", b"995"]


def test_the_beginning_of_the_first_line_is_looked_for() -> None:
    entries = [entry(b"first\nbegun long ", 1), *(entry(b"%d\n" % n, 2 + n, input=1) for n in range(50))]
    entries.append(entry(b"ago\nlast", 90, continues=True))
    found, more = newest(reversed(entries), 2, Filter())
    assert (texts(found), more) == ([b"begun long ago", b"last"], True)


@st.composite
def writings(draw: st.DrawFn) -> list[Entry]:
    """Chunks as the log book makes them, in the order of their ends: several inputs, cut anywhere."""
    entries = []
    open_lines: dict[int, bool] = {}
    at = 100.0
    for _ in range(draw(st.integers(0, 12))):
        input = draw(st.integers(0, 2))
        at += draw(st.sampled_from([0.0, 0.1, 3.0]))
        data = draw(st.text("ab\n", min_size=1, max_size=6)).encode()
        entries.append(entry(data, at, input=input, continues=open_lines.get(input, False)))
        open_lines[input] = not data.endswith(b"\n")
    return entries


@given(writings(), st.integers(0, 8))
def test_from_the_end_the_lines_are_the_same(entries: list[Entry], count: int) -> None:
    def key(line: Line) -> tuple[float, bytes, bool]:
        return line.at, line.data, line.whole

    everything = sorted(map(key, all_lines(entries)))
    found, more = newest(reversed(entries), count, Filter())
    assert [line.at for line in found] == sorted(line.at for line in found)
    assert len(found) == min(count, len(everything))
    assert more or len(found) == len(everything)
    if count >= len(everything):
        assert sorted(map(key, found)) == everything
    elif found:
        # Of lines of the same moment any may be the last ones.
        assert [line.at for line in found] == [at for at, _, _ in everything[-count:]]
        assert {key(line) for line in found} <= set(everything)


@given(writings())
def test_each_inputs_bytes_come_out_as_they_went_in(entries: list[Entry]) -> None:
    for input in range(3):
        written = b"".join(one.data for one in entries if one.position == input)
        found = [line for line in all_lines(entries) if line.entry.position == input]
        assert b"".join(line.data + b"\n" * line.whole for line in found) == written
