"""A response on its way to the client: events of the code become bytes. Pure.

Whatever the code does, a client never takes for a whole response what is none, nor a part of one for another: what is
not framed right raises `BadAnswer`, and whoever writes the bytes either answers 500 or cuts the connection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus

from kedge.model.web import BodySent, ResponseStarted, Sent
from kedge.server.ingress.replies import Headers, Refusal

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
PLAIN, LENGTH, DATE, SERVER, CONNECTION, HOP = range(6)
_KINDS = {
    b"content-length": LENGTH,
    b"date": DATE,
    b"server": SERVER,
    b"connection": CONNECTION,
    b"transfer-encoding": HOP,
    b"keep-alive": HOP,
    b"proxy-connection": HOP,
    b"upgrade": HOP,
    b"trailer": HOP,
    b"te": HOP,
}
MAX_KNOWN = 4096
"""Names of headers whose kind is remembered: more than any honest set of apps has."""
_known: dict[bytes, int] = {}
_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
MAX_LENGTH = 19
"""Digits of a Content-Length."""


class BadAnswer(Exception):
    """The code has sent what is no response: the text says what, for its log."""


class Response:
    """One response.

    Args:
        head_only: It answers HEAD: its body is not sent.
        version: Of the request: 1.0 knows no chunks.
        keep_alive: Whether the connection may go on after it.
    """

    __slots__ = ("_bodiless", "_chunked", "_left", "_version", "complete", "date", "keep_alive", "started")

    def __init__(self, head_only: bool, version: str, keep_alive: bool) -> None:
        self._bodiless = head_only
        self._version = version
        self.keep_alive = keep_alive
        self.date = b""
        """The line to send where the code gives none."""
        self._chunked = False
        self._left: int | None = None
        """Bytes of the body that are missing, where its length was said."""
        self.started = False
        self.complete = False

    def feed(self, events: Sequence[Sent]) -> list[bytes]:
        """The bytes that these events become; BadAnswer where they make no response."""
        parts: list[bytes] = []
        for at, event in enumerate(events):
            kind = type(event)
            if self.complete:
                break
            if kind is BodySent:
                if not self.started:
                    raise BadAnswer("sent a body before it had started its response")
                self._body(event.data, event.more, parts)  # type: ignore[union-attr]
            elif kind is ResponseStarted:
                if self.started:
                    raise BadAnswer("started its response twice")
                following = events[at + 1] if at + 1 < len(events) else None
                whole = type(following) is BodySent and not following.more
                size = len(following.data) if whole else None  # type: ignore[union-attr]
                self._start(event.status, event.headers, size, parts)  # type: ignore[union-attr]
            else:
                raise BadAnswer(f"answered an HTTP request with {kind.__name__}, which is for WebSockets")
        return parts

    def refuse(self, refusal: Refusal) -> list[bytes]:
        """A plain text instead of the answer of any code."""
        text = refusal.text.encode() + b"\n"
        headers = [(b"content-type", b"text/plain; charset=utf-8"), *refusal.headers]
        if refusal.close:
            self.keep_alive = False
        return self.feed([ResponseStarted(refusal.status, headers), BodySent(text, False)])

    # ------------------------------------------------------------ its parts

    def _start(self, status: int, headers: Headers, size: int | None, parts: list[bytes]) -> None:
        if not 200 <= status <= 999:
            raise BadAnswer(f"started its response with the status {status}; it must be from 200 to 999")
        parts.append(_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status)
        length, date, server, lines = None, True, True, 1
        for name, value in headers:
            kind = _known.get(name)
            if kind is None:
                kind = _kind_of(name)
            if kind is PLAIN:
                pass
            elif kind is LENGTH:
                length = _length(value, length)
                continue
            elif kind is DATE:
                date = False
            elif kind is SERVER:
                server = False
            else:
                if kind is CONNECTION and b"close" in value.lower():
                    self.keep_alive = False
                continue
            parts += (name, b": ", value, b"\r\n")
            lines += 1
        start = b"".join(parts)
        if start.count(b"\n") != lines or start.count(b"\r") != lines or b"\0" in start:
            raise BadAnswer("has a line break or a NUL in a header of its response")
        parts.clear()
        parts.append(start)
        bodiless = status in (204, 304)
        if length is None and not bodiless and (size or not self._bodiless):  # HEAD: its body was left out already
            length = size
        self._frame(status, length, bodiless, parts)
        if date:
            parts.append(self.date)
        parts.append(b"server: kedge\r\n\r\n" if server else b"\r\n")
        self.started = True

    def _frame(self, status: int, length: int | None, bodiless: bool, parts: list[bytes]) -> None:
        """How the client knows where the body ends."""
        if bodiless or self._bodiless:
            self._bodiless = True
            if length is not None and status != 204:
                parts.append(b"content-length: %d\r\n" % length)
        elif length is not None:
            self._left = length
            parts.append(b"content-length: %d\r\n" % length)
        elif self._version == "1.0":
            self.keep_alive = False
        else:
            self._chunked = True
            parts.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        elif self._version == "1.0":
            parts.append(b"connection: keep-alive\r\n")

    def _body(self, data: bytes, more: bool, parts: list[bytes]) -> None:
        if not more:
            self.complete = True
        if self._bodiless:
            return
        if self._chunked:
            if data:
                parts += (b"%x\r\n" % len(data), data, b"\r\n")
            if not more:
                parts.append(b"0\r\n\r\n")
            return
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise BadAnswer(f"sent {-self._left} bytes more than its Content-Length says")
            if self._left and not more:
                raise BadAnswer(f"sent {self._left} bytes less than its Content-Length says")
        if data:
            parts.append(data)


def header_lines(headers: Headers, dropped: frozenset[bytes] = frozenset()) -> bytes:
    """Headers of the code for the answer to a WebSocket's handshake; BadAnswer where they are none."""
    parts = []
    for name, value in headers:
        lower = name.lower()
        if lower in dropped or _kind_of(lower) not in (PLAIN, DATE, SERVER):
            continue
        parts.append(b"%b: %b\r\n" % (name, value))
    lines = b"".join(parts)
    if lines.count(b"\n") != len(parts) or lines.count(b"\r") != len(parts) or b"\0" in lines:
        raise BadAnswer("has a line break or a NUL in a header of its response")
    return lines


def _kind_of(name: bytes) -> int:
    if _TOKEN.fullmatch(name) is None:
        raise BadAnswer(f"has a header named {name[:40]!r} in its response, which is no name of a header")
    kind = _KINDS.get(name.lower(), PLAIN)
    if len(_known) < MAX_KNOWN:
        _known[name] = kind
    return kind


def _length(value: bytes, before: int | None) -> int:
    if not value.isdigit() or len(value) > MAX_LENGTH:
        raise BadAnswer(f"has a Content-Length of {value[:40]!r} in its response, which is no number of bytes")
    length = int(value)
    if before is not None and before != length:
        raise BadAnswer(f"says a Content-Length of {before} and of {length} in one response")
    return length
