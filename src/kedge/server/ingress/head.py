"""The head of a request: what its headers say about the connection, and which of them the code gets to see. Pure."""

from __future__ import annotations

import re

from kedge.server.ingress.replies import Headers, Refusal, bad_request

HOST, LENGTH, CODING, CONNECTION, UPGRADE, EXPECT, ACCEPT, KEY, SECRET, HOP = range(1, 11)
_KINDS = {
    b"host": HOST,
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"connection": CONNECTION,
    b"upgrade": UPGRADE,
    b"expect": EXPECT,
    b"accept": ACCEPT,
    b"kedge-key": KEY,
    b"modal-key": KEY,
    b"kedge-secret": SECRET,
    b"modal-secret": SECRET,
    b"keep-alive": HOP,
    b"proxy-connection": HOP,
    b"te": HOP,
    b"trailer": HOP,
}
_DIGITS = re.compile(rb"[0-9]{1,18}")
_KEPT = frozenset((b"host", b"content-length", b"transfer-encoding", b"authorization", b"cookie"))
"""A Connection header cannot take these away: what they say is for the code, whatever a client claims."""


class Head:
    __slots__ = ("chunked", "expects", "headers", "host", "keep_alive", "key", "length", "pages", "secret", "upgrade")

    def __init__(self) -> None:
        self.headers: Headers = []
        """For the code: without those of the connection."""
        self.host: bytes | None = None
        self.length: int | None = None
        """Bytes of the body, where that was said."""
        self.chunked = False
        self.keep_alive = True
        self.expects = False
        """The client waits for 100 Continue before it sends its body."""
        self.upgrade = b""
        self.pages = False
        """A browser asks for a page."""
        self.key = ""
        self.secret = ""

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.length)


def read_head(headers: Headers, version: str) -> Head:
    """Sorts the headers, whose names are in lower case. Refusal for what is ambiguous or makes no sense: where two
    readers of the same bytes could differ about where a request ends, one could smuggle a second one past the other.

    Args:
        headers: As they came.
        version: 1.0 or 1.1.
    """
    head = Head()
    kept = head.headers
    special = False
    for header in headers:
        kind = _KINDS.get(header[0])
        if kind is None:
            kept.append(header)
        elif kind is HOST:
            if head.host is not None:
                raise bad_request("there is more than one Host header")
            head.host = header[1]
            kept.append(header)
        elif kind is ACCEPT:
            head.pages = b"text/html" in header[1]
            kept.append(header)
        else:
            special = True
    if special:
        _read_special(head, headers, version)
    elif version == "1.0":
        head.keep_alive = False
    if head.host is None and version == "1.1":
        raise bad_request("the Host header is missing")
    return head


def _read_special(head: Head, headers: Headers, version: str) -> None:
    connection: list[bytes] = []
    for header in headers:
        name, value = header
        kind = _KINDS.get(name)
        if kind is LENGTH:
            _read_length(head, value)
            head.headers.append(header)
        elif kind is CODING:
            if head.chunked or version == "1.0":
                raise bad_request("Transfer-Encoding must be said once, and not in HTTP/1.0")
            if value.strip().lower() != b"chunked":
                raise bad_request("the only Transfer-Encoding that is understood is chunked", 501)
            head.chunked = True
        elif kind is CONNECTION:
            connection += tokens([value.lower()])
        elif kind is UPGRADE:
            head.upgrade = value.strip().lower()
        elif kind is EXPECT:
            if value.strip().lower() != b"100-continue":
                raise Refusal(417, "the only Expect that is understood is 100-continue", close=True)
            head.expects = version == "1.1"
        elif kind is KEY:
            head.key = value.decode("latin-1")
        elif kind is SECRET:
            head.secret = value.decode("latin-1")
    if head.chunked and head.length is not None:
        raise bad_request("there are a Content-Length and a Transfer-Encoding; a request has one of them")
    head.keep_alive = b"keep-alive" in connection if version == "1.0" else b"close" not in connection
    if b"upgrade" not in connection:
        head.upgrade = b""
    dropped = [token for token in connection if token not in _KEPT]
    if dropped:
        head.headers = [header for header in head.headers if header[0] not in dropped]


def tokens(values: list[bytes]) -> list[bytes]:
    """The entries of a header that is a list, which may be said in several lines."""
    return [token for value in values for token in map(bytes.strip, value.split(b",")) if token]


def _read_length(head: Head, value: bytes) -> None:
    if _DIGITS.fullmatch(value.strip()) is None:
        raise bad_request("Content-Length is no number of bytes")
    if head.length is not None:
        raise bad_request("there is more than one Content-Length")
    head.length = int(value)


def forwarded(headers: Headers, client: tuple[str, int], scheme: str) -> tuple[tuple[str, int], str]:
    """Client and scheme as a proxy in front tells them: the last address in X-Forwarded-For is the one that it saw
    itself; those before it may be anybody's invention."""
    for name, value in headers:
        if name == b"x-forwarded-for":
            last = value.decode("latin-1").rpartition(",")[2].strip()
            if last:
                client = (last, 0)
        elif name == b"x-forwarded-proto":
            said = value.decode("latin-1").rpartition(",")[2].strip().lower()
            if said in ("http", "https"):
                scheme = said
    return client, scheme
