"""Lines out of chunks. Pure: chunks come in, lines go out in the order in which they were written.

A line belongs to one writer of one attempt of one input on one stream, however many chunks it is spread over; lines of
others that were written meanwhile never get into it. Its time is that of its end.
"""

from __future__ import annotations

import heapq
import itertools
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import NamedTuple

from msgspec import Struct

from kedge.cli.lines import plain
from kedge.server.chunks import SPAN_S, lines
from kedge.server.logreader import Entry

LINE_LIMIT = 2 * 1024 * 1024
"""Bytes of a line; a longer one comes in pieces."""
HELD = 10_000
"""Lines that are put in order together, at least."""


class Line(NamedTuple):
    at: float
    data: bytes
    """Without the newline."""
    entry: Entry
    """A chunk that holds a part of it: says who wrote it."""
    whole: bool = True
    """It ends with a newline."""


_at = itemgetter(0)


class Filter(Struct, frozen=True, kw_only=True):
    """What a selection of chunks cannot say."""

    stream: int = 0
    method: str = ""
    since: float | None = None
    until: float | None = None
    pattern: re.Pattern[str] | None = None

    def takes(self, entry: Entry) -> bool:
        return (not self.stream or entry.stream == self.stream) and (not self.method or entry.method == self.method)

    def keeps(self, line: Line) -> bool:
        if self.since is not None and line.at < self.since:
            return False
        if self.until is not None and line.at > self.until:
            return False
        return self.pattern is None or self.pattern.search(plain(line.data)) is not None

    def of(self, found: Iterable[Line]) -> Iterator[Line]:
        return filter(self.keeps, found)


_Sequence = tuple[str, str, int, int, int, int, bool]


def sequence(entry: Entry) -> _Sequence:
    """Whose bytes follow each other."""
    return entry.container, entry.call, entry.position, entry.attempt, entry.stream, entry.writer, entry.raw


class Assembler:
    """Takes chunks in the order of their ends."""

    def __init__(self) -> None:
        self._begun: dict[_Sequence, tuple[float, bytearray, Entry]] = {}

    def feed(self, entry: Entry) -> list[Line]:
        """The lines that are complete now."""
        key = sequence(entry)
        _, begun, _ = self._begun.pop(key, (0.0, bytearray(), entry))
        found = []
        for at, piece in lines(entry.data, entry.first, entry.marks):
            if piece.endswith(b"\n"):
                found.append(Line(at, bytes(begun) + piece[:-1] if begun else piece[:-1], entry))
                begun = bytearray()
                continue
            begun += piece
            if len(begun) < LINE_LIMIT:
                self._begun[key] = at, begun, entry
            else:
                found.append(Line(at, bytes(begun), entry, whole=False))
        return found

    def resume(self, line: Line) -> None:
        """A line without an end: what follows belongs to it."""
        self._begun[sequence(line.entry)] = line.at, bytearray(line.data), line.entry

    def rest(self) -> list[Line]:
        """The lines that have no end, in the order of their times."""
        found = [Line(at, bytes(data), entry, whole=False) for at, data, entry in self._begun.values()]
        self._begun.clear()
        return sorted(found, key=lambda line: line.at)


def in_order(assembler: Assembler, entries: Iterable[Entry]) -> Iterator[Line]:
    """The complete lines of chunks that come in the order of their ends. Holds few of them back: those that a chunk
    which has not come yet might precede."""
    held: list[Line] = []
    most = HELD
    for entry in entries:
        if len(held) >= most:
            held.sort(key=_at)
            ready = bisect_left(held, entry.last - SPAN_S, key=_at)
            yield from held[:ready]
            del held[:ready]
            most = max(HELD, 2 * len(held))
        held += assembler.feed(entry)
    held.sort(key=_at)
    yield from held


class _Backwards:
    """The opposite of the assembler: takes chunks from the newest to the oldest."""

    def __init__(self) -> None:
        self.ends: dict[_Sequence, Line] = {}
        """Ends of lines that began in an earlier chunk."""

    def feed(self, entry: Entry) -> list[Line]:
        """The lines whose beginnings are known now, newest first."""
        key = sequence(entry)
        end = self.ends.pop(key, None)
        found = []
        for at, piece in reversed(list(lines(entry.data, entry.first, entry.marks))):
            if piece.endswith(b"\n"):
                if end is not None:
                    found.append(end)
                    end = None
                found.append(Line(at, piece[:-1], entry))
            elif end is not None:
                found.append(end._replace(data=piece + end.data))
                end = None
            else:
                found.append(Line(at, piece, entry, whole=False))
        if found and entry.continues and len(found[-1].data) < LINE_LIMIT:
            self.ends[key] = found.pop()
        return found


def newest(entries: Iterable[Entry], count: int, filter: Filter) -> tuple[list[Line], bool]:
    """The last `count` lines of chunks that come in the opposite order of their ends, in order; and whether there are
    earlier ones. Takes no more chunks than necessary."""
    backwards = _Backwards()
    kept: list[tuple[float, int, Line]] = []
    number = itertools.count(0, -1)
    more = False

    def keep(found: Iterable[Line]) -> None:
        nonlocal more
        for line in found:
            if filter.keeps(line):
                heapq.heappush(kept, (line.at, next(number), line))
                if len(kept) > count:
                    heapq.heappop(kept)
                    more = True

    for entry in entries:
        if len(kept) == count:
            oldest = kept[0][0] if kept else float("inf")
            if entry.last <= oldest and all(end.at <= oldest for end in backwards.ends.values()):
                return [line for _, _, line in sorted(kept)], True
        keep(backwards.feed(entry))
    keep(backwards.ends.values())
    return [line for _, _, line in sorted(kept)], more
