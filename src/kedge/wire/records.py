"""Records: what Python code of a container writes, framed with the input that wrote it. Pure.

A container writes them to a pipe of its own, one `write` per record. None is longer than what a pipe takes in one
piece, so records of threads and of forked children never mix, and nobody needs a lock. The supervisor passes the bytes
on as they are; the server takes them apart.

An input is named by its lease. The first record of each is an *announcement*: who the lease is. A line longer than a
record goes in several; so do parts of a line that were flushed before its end. What one writer (a thread) of one input
writes to one stream is one sequence of bytes: lines are whoever reads them's to find.
"""

from __future__ import annotations

from struct import Struct as Layout
from typing import Any

import msgspec
from msgspec import Struct

_HEADER = Layout("<IBxxxIQd")
"""Length of the data, kind, writer, lease, seconds since the epoch."""

HEADER_SIZE = _HEADER.size
RECORD_LIMIT = 4096
"""PIPE_BUF of Linux; POSIX promises 512 (macOS has that), where long records of several threads may mix."""
DATA_LIMIT = RECORD_LIMIT - HEADER_SIZE

STDOUT = 1
STDERR = 2
ANNOUNCED = 0
DROPPED = 4
"""Kinds: data of a stream, who a lease is, and how much was lost."""

pack_header = _HEADER.pack
"""(length, kind, writer, lease, at) → the bytes before the data; for those who write a record per line."""


class Origin(Struct, frozen=True, array_like=True, gc=False):
    """The input that a lease stands for. Within a batch: its first input, and all of them in `members`."""

    call: str
    index: int
    attempt: int = 0
    method: str = ""
    members: tuple[tuple[str, int], ...] = ()


NOBODY = Origin("", -1)
"""Code beside all inputs: import, hooks, threads of the container itself."""


class Record(Struct, frozen=True, gc=False):
    """A piece of what one writer wrote to one stream. For `DROPPED`, `data` says how much in words."""

    kind: int
    writer: int
    origin: Origin
    at: float
    data: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_origin = msgspec.msgpack.Decoder(Origin).decode


def announcement(lease: int, origin: Origin, at: float) -> bytes:
    """The record that says who a lease is. A batch too large for one record names as many members as fit."""
    data = _encode(origin)
    while len(data) > DATA_LIMIT:
        origin = msgspec.structs.replace(origin, members=origin.members[: len(origin.members) // 2])
        data = _encode(origin)
    return pack_header(len(data), ANNOUNCED, 0, lease, at) + data


class Reader:
    """Takes the records of one container apart, however the bytes were cut.

    >>> reader = Reader()
    >>> data = announcement(7, Origin("fc-1", 0), 0.5) + pack_header(3, STDOUT, 1, 7, 1.0) + b"hi\\n"
    >>> reader.feed(data[:40])
    []
    >>> [(record.origin.call, record.data) for record in reader.feed(data[40:])]
    [('fc-1', b'hi\\n')]
    """

    MEMORY = 4096
    """Leases whose names are kept: those of the inputs that may still write. An input that was forgotten is
    announced by nobody again, so what it writes belongs to its container alone."""

    def __init__(self) -> None:
        self._rest = b""
        self._origins: dict[int, Origin] = {}

    def feed(self, data: bytes) -> list[Record]:
        """The records that are complete now. ValueError where the bytes are no records: nothing after them is."""
        if self._rest:
            data = self._rest + data
        records: list[Record] = []
        position, end = 0, len(data)
        while end - position >= HEADER_SIZE:
            length, kind, writer, lease, at = _HEADER.unpack_from(data, position)
            if length > DATA_LIMIT:
                raise ValueError(f"a record of {length} bytes: longer than any")
            start = position + HEADER_SIZE
            if start + length > end:
                break
            position = start + length
            if kind == ANNOUNCED:
                self._learn(lease, data[start:position])
            else:
                records.append(Record(kind, writer, self._origins.get(lease, NOBODY), at, data[start:position]))
        self._rest = data[position:]
        return records

    def _learn(self, lease: int, data: bytes) -> None:
        try:
            origin: Any = _decode_origin(data)
        except msgspec.MsgspecError as error:
            raise ValueError(f"an announcement that cannot be read: {error}") from error
        self._origins.pop(lease, None)
        self._origins[lease] = origin
        if len(self._origins) > self.MEMORY:
            del self._origins[next(iter(self._origins))]
