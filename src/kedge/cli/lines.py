"""Bytes that a container writes, as lines to show.

A line ends at a newline. A carriage return starts its line anew, as on a terminal, so of a progress bar only the last
state counts. What has no newline yet is the `tail`; it is shown while it waits, and written when its writer is gone.
Nothing here trusts the bytes: they may be cut anywhere, be no text at all, or never contain a newline.
"""

from __future__ import annotations

import re

LINE_LIMIT = 64 * 1024
"""Bytes of a line without a newline that are kept: a longer one is passed on in pieces."""

_UNSAFE = re.compile(
    "\x1b\\[[0-9;:]*m"  # colours stay: the one alternative with no group
    "|(\x1b\\[[0-?]*[ -/]*[@-~]"  # cursor movements, clearing, modes
    "|\x1b[\\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\\\)?"  # titles, links and other strings
    "|\x1b[ -/]*[0-~]?"  # other escapes
    "|[\x00-\x08\x0a-\x1f\x7f\x80-\x9f])"  # control characters, except for the tab
)

_COLOURS = re.compile("\x1b\\[[0-9;:]*m")


class LineBuffer:
    """The lines of one stream of one container.

    >>> lines = LineBuffer()
    >>> lines.feed(b"one\\ntw"), lines.tail
    ([b'one\\n'], b'tw')
    >>> lines.feed(b"o\\n")
    [b'two\\n']
    """

    def __init__(self) -> None:
        self._tail = bytearray()

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


def shown(line: bytes) -> str:
    """What a terminal may show of a line: its last state as text; of control sequences only colours are left.

    >>> shown(b"10 %\\r20 %\\r\\n")
    '20 %'
    >>> shown(b"\\x1b[2Jall \\x1b[1mclear\\x1b[0m\\xff")
    'all \\x1b[1mclear\\x1b[0m\\ufffd'
    """
    text = line.rstrip(b"\r\n").rpartition(b"\r")[2].decode("utf-8", "replace")
    if text.isprintable():
        return text
    return _UNSAFE.sub(lambda match: "" if match[1] is not None else match[0], text)


def plain(line: bytes) -> str:
    """The same without colours."""
    return _COLOURS.sub("", shown(line))
