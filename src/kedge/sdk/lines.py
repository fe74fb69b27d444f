"""Bytes that containers write become lines, each of one writer.

A line ends at a newline. What has no newline yet waits, and becomes a line when its writer is gone. Lines of inputs
that write at the same time are never glued together. Nothing here trusts the bytes: they may be cut anywhere, be no
text at all, or never contain a newline.
"""

from __future__ import annotations

from typing import NamedTuple

from kedge.model.protocol import OutputCaptured

LINE_LIMIT = 2 * 1024 * 1024
"""Bytes of a line without a newline that are kept: a longer one is passed on in pieces. `kedge logs` cuts there too."""
OPEN_LINES = 1000
"""Lines without an end that are kept: so many inputs at the same time have begun one. Then the oldest is passed on."""
OPEN_BYTES = 64 * 1024 * 1024
"""Bytes of them all together. Then, too, the oldest is passed on."""


class LineBuffer:
    """The lines of one writer.

    >>> lines = LineBuffer()
    >>> lines.feed(b"one\\ntw"), lines.tail
    ([b'one\\n'], b'tw')
    >>> lines.feed(b"o\\n")
    [b'two\\n']
    """

    def __init__(self) -> None:
        self._tail = bytearray()

    def __len__(self) -> int:
        return len(self._tail)

    @property
    def tail(self) -> bytes:
        """What was written since the last newline."""
        return bytes(self._tail)

    def end(self, limit: int) -> bytes:
        """At most `limit` bytes of the tail's end."""
        return bytes(self._tail[-limit:])

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, each with its newline. One that is too long comes in pieces."""
        if b"\n" in data:
            lines = (self.tail + data).split(b"\n")
            self._tail = bytearray(lines.pop())
            return [line + b"\n" for line in lines]
        self._tail += data
        if len(self._tail) < LINE_LIMIT:
            return []
        # A bar that is drawn over and over never gets long: only its last state matters.
        state = bytes(self._tail.rpartition(b"\r")[2])
        if len(state) < LINE_LIMIT:
            self._tail = bytearray(state)
            return []
        self._tail.clear()
        return [state + b"\n"]

    def flush(self) -> list[bytes]:
        """The tail as a line of its own: nothing follows it."""
        tail = self.tail
        self._tail.clear()
        return [tail + b"\n"] if tail.strip(b"\r") else []


class Origin(NamedTuple):
    """Whose bytes follow each other, whoever else writes meanwhile."""

    container: str
    stream: int
    call: str = ""
    position: int = -1
    attempt: int = 0
    writer: int = 0
    raw: bool = False


class Lines:
    """The lines of everybody who writes.

    >>> lines = Lines()
    >>> lines.feed(OutputCaptured("ct-1", 1, b"half", call="fc-1", index=0))
    [(Origin(container='ct-1', stream=1, call='fc-1', position=0, attempt=0, writer=0, raw=False), [])]
    >>> [found for _, found in lines.feed(OutputCaptured("ct-1", 1, b"whole\\n", call="fc-1", index=1))]
    [[b'whole\\n']]
    >>> [found for _, found in lines.feed(OutputCaptured("ct-1", 1, b""))]
    [[b'half\\n']]
    """

    def __init__(self) -> None:
        self._open: dict[Origin, LineBuffer] = {}
        self._size = 0
        """Bytes of all that is open."""

    def feed(self, message: OutputCaptured) -> list[tuple[Origin, list[bytes]]]:
        """The lines that are complete now, if any, for each whose tail has changed. No bytes say that the container has
        ended."""
        container, data = message.container, message.data
        if not data:
            return self._end([origin for origin in self._open if origin.container == container])
        inside = message.call, message.index, message.attempt, message.writer, message.raw
        origin = Origin(container, message.stream, *inside)
        buffer = self._open.setdefault(origin, LineBuffer())
        self._size -= len(buffer)
        found = [(origin, buffer.feed(data))]
        self._size += len(buffer)
        if not len(buffer):
            del self._open[origin]
        while len(self._open) > OPEN_LINES or self._size > OPEN_BYTES:
            found += self._end([next(iter(self._open))])
        return found

    def tail(self, origin: Origin, limit: int) -> bytes:
        """At most `limit` bytes of the end of what this one has begun."""
        buffer = self._open.get(origin)
        return b"" if buffer is None else buffer.end(limit)

    def rest(self) -> list[tuple[Origin, list[bytes]]]:
        """What was begun, as lines: nothing follows."""
        return self._end(list(self._open))

    def _end(self, origins: list[Origin]) -> list[tuple[Origin, list[bytes]]]:
        found = []
        for origin in origins:
            buffer = self._open.pop(origin)
            self._size -= len(buffer)
            found.append((origin, buffer.flush()))
        return found
