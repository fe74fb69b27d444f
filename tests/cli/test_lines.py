"""Bytes of containers become lines, whatever the bytes are and wherever they are cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kedge.cli.lines import plain, shown
from kedge.model.protocol import OutputCaptured
from kedge.sdk.lines import LINE_LIMIT, OPEN_BYTES, LineBuffer, Lines, Origin


@given(st.lists(st.binary(max_size=50)))
def test_no_byte_is_lost_and_every_piece_is_a_line(chunks: list[bytes]) -> None:
    buffer = LineBuffer()
    lines = [line for chunk in chunks for line in buffer.feed(chunk)]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert b"".join(lines) + buffer.tail == b"".join(chunks)


@given(st.binary(), st.lists(st.integers(0, 100)))
def test_where_the_bytes_are_cut_changes_nothing(data: bytes, cuts: list[int]) -> None:
    whole, cut = LineBuffer(), LineBuffer()
    places = sorted({0, len(data), *(min(place, len(data)) for place in cuts)})
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    assert [line for piece in pieces for line in cut.feed(piece)] == whole.feed(data)
    assert cut.tail == whole.tail


def test_the_tail_becomes_a_line_when_its_writer_is_gone() -> None:
    buffer = LineBuffer()
    assert buffer.feed(b"one\ntwo") == [b"one\n"]
    assert buffer.flush() == [b"two\n"]
    assert buffer.flush() == []


def test_a_line_without_an_end_comes_in_pieces() -> None:
    buffer = LineBuffer()
    written = b"x" * (3 * LINE_LIMIT)
    lines = [line for i in range(0, len(written), 1000) for line in buffer.feed(written[i : i + 1000])]
    assert len(lines) >= 2
    assert b"".join(line[:-1] for line in lines) + buffer.tail == written
    assert len(buffer.tail) < LINE_LIMIT + 1000


def test_a_line_of_a_megabyte_is_one_line() -> None:
    lines = Lines()
    piece = b"x" * 100_000
    for _ in range(10):
        assert lines.feed(OutputCaptured("ct-1", 1, piece)) == [(Origin("ct-1", 1), [])]
    ((_, found),) = lines.feed(OutputCaptured("ct-1", 1, b"end\nnext"))
    assert found == [piece * 10 + b"end\n"]


def test_lines_without_an_end_are_bounded_all_together() -> None:
    lines = Lines()
    piece = b"x" * (LINE_LIMIT - 1)
    writers = OPEN_BYTES // len(piece)
    for writer in range(writers):
        assert lines.feed(OutputCaptured("ct-1", 1, piece, writer=writer)) == [(Origin("ct-1", 1, writer=writer), [])]
    _, passed_on = lines.feed(OutputCaptured("ct-1", 1, piece, writer=writers))
    assert passed_on == (Origin("ct-1", 1, writer=0), [piece + b"\n"])
    assert len(lines.rest()) == writers


def test_a_bar_that_is_drawn_for_hours_stays_small() -> None:
    buffer = LineBuffer()
    for step in range(20_000):
        assert buffer.feed(b"\r" + b"step %d of many" % step * 10) == []
    assert len(buffer.tail) <= LINE_LIMIT
    assert shown(buffer.tail).endswith("step 19999 of many")


def test_only_the_last_state_of_a_line_is_shown() -> None:
    assert shown(b"10 %\r50 %\r100 %\n") == "100 %"
    assert shown(b"from windows\r\n") == "from windows"


def test_colours_are_kept_and_nothing_else_that_steers_a_terminal() -> None:
    assert shown(b"\x1b[31mred\x1b[0m") == "\x1b[31mred\x1b[0m"
    assert shown(b"\x1b[2J\x1b[1;1Hhome\x1b]0;title\x07 \x1b(Bplain\x1b7\x08\x00") == "home plain"
    assert plain(b"\x1b[31mred\x1b[0m") == "red"


@given(st.binary())
def test_binary_junk_is_harmless(data: bytes) -> None:
    text = plain(data.replace(b"\n", b""))
    assert all(letter == "\t" or ord(letter) >= 32 for letter in text)
    assert not any("\x7f" <= letter <= "\x9f" for letter in text)
