"""What one writer of one input wrote to one stream within a moment: the unit in which logs are kept.

A chunk is bytes and a few marks that say when they were written, so that every line has its time and 50,000 lines a
second are still only a few rows. It covers at most SPAN_S seconds: whoever reads chunks in the order of their ends
knows how far back the next one can reach.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

from kedge.wire.records import NOBODY, STDERR, Origin

SPAN_S = 1.0
"""Seconds between the first and the last byte of a chunk."""
SIZE_LIMIT = 256 * 1024
"""Bytes of a chunk beyond which another one begins: what a reader holds in memory at once."""
RESOLUTION_S = 0.001
"""Times of lines that were written in a row are exact to this; of the first one, to the microsecond."""
OWN_WRITER = 2**32 - 1
"""The writer of kedge's own lines: they never continue a line of the program."""


class Place(NamedTuple):
    """The container that wrote, and whose it is, in the words of its user."""

    container: str
    app: str = ""
    app_name: str = ""
    function: str = ""
    pool: str = ""


class Chunk:
    """Takes bytes and times of one sequence, as long as each `fits`.

    >>> chunk = Chunk(Place("ct-1"), NOBODY, stream=1, writer=7, at=10.0)
    >>> chunk.add(b"one\\ntw", 10.0)
    >>> chunk.add(b"o\\n", 10.5)
    >>> [(round(at, 3), line) for at, line in lines(bytes(chunk.data), chunk.first, chunk.marks.tobytes())]
    [(10.0, b'one\\n'), (10.5, b'two\\n')]
    """

    __slots__ = ("continues", "data", "first", "last", "marks", "origin", "place", "raw", "stream", "writer")

    def __init__(
        self,
        place: Place,
        origin: Origin,
        stream: int,
        writer: int,
        at: float,
        raw: bool = False,
        continues: bool = False,
    ) -> None:
        self.place = place
        self.origin = origin
        self.stream = stream
        self.writer = writer
        self.raw = raw
        self.continues = continues
        """It begins in the middle of a line."""
        self.first = self.last = at
        self.data = bytearray()
        self.marks = array("I")
        """Pairs (offset, microseconds since `first`): from this byte on it is that late."""

    def fits(self, at: float) -> bool:
        return at - self.first <= SPAN_S and len(self.data) < SIZE_LIMIT

    def add(self, data: bytes, at: float, first: bool = True) -> None:
        """Times never go back: an earlier one counts as the last. `first`: somebody else has written since the last
        time, so that the order of lines depends on this one."""
        if at - self.last >= RESOLUTION_S or (first and at > self.last):
            late = round((at - self.first) * 1e6)
            self.last = self.first + late / 1e6
            self.marks.extend((len(self.data), late))
        self.data += data


def notice(place: Place, text: str, at: float, origin: Origin = NOBODY, detail: str = "") -> Chunk:
    """A line of kedge's own in the log of a container, or of an input; `detail` are lines that follow it as they
    are."""
    chunk = Chunk(place, origin, STDERR, OWN_WRITER, at)
    written = f"[kedge: {text}]\n" + (detail.rstrip("\n") + "\n" if detail else "")
    chunk.add(written.encode(errors="backslashreplace"), at)
    return chunk


def lines(data: bytes, first: float, marks: bytes) -> Iterator[tuple[float, bytes]]:
    """The lines of a chunk with the times of their ends; what follows the last newline too, where there is any."""
    pairs = array("I")
    pairs.frombytes(marks)
    offsets, late = pairs[::2], pairs[1::2]
    count, mark, at = len(offsets), 0, first
    start, size = 0, len(data)
    while start < size:
        end = data.find(b"\n", start) + 1 or size
        while mark < count and offsets[mark] < end:
            at = first + late[mark] / 1e6
            mark += 1
        yield at, data[start:end]
        start = end
