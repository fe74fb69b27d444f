"""Bytes of a client become requests, in their order, with every limit that a request has before any code sees it.

No I/O: the connection feeds it, and takes requests out of `requests` while their bodies may still be coming. The
grammar is llhttp's, which is strict; what it leaves open is decided in `head.py`.

A request that asks for another protocol than WebSocket is answered as if it had not asked. The parser cannot be told
so: it takes what follows for the other protocol. Hence it is replaced then, by a fresh one that has read the same
framing without the wish.
"""

from __future__ import annotations

from collections import deque

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from kedge.server.ingress.address import Place
from kedge.server.ingress.head import Head, read_head
from kedge.server.ingress.replies import Headers, Refusal, bad_request

MAX_HEAD = 64 * 1024
"""Bytes of a head: large cookies and tokens have a few KiB each, and proxies in front allow 8 to 64 KiB."""
MAX_HEADERS = 256
"""Browsers send twenty."""
MAX_TARGET = 16 * 1024
"""Bytes of an address: what browsers and proxies carry."""
MAX_OVERHEAD = 64 * 1024
"""Bytes in a row of a chunked body that are none of its data: extensions and trailers, which nobody reads."""
MAX_PIPELINED = 32
"""Requests that may wait for an earlier one of their connection. Then the client is left unread."""
MAX_WAITING = 256 * 1024
"""Bytes of bodies that may wait in the same way."""
MAX_PARTS = 256
"""Parts of a chunked body that are taken apart ahead: where chunks are tiny, others have their turn in between."""
SHORT = 64 * 1024
"""Bytes up to which a body travels together with its head, so that a slow client takes no slot while it sends it."""
HEAD_SLICE = 8 * 1024
"""Bytes that are parsed at once, between looks at how many requests wait: a few hundred of the smallest."""
BODY_SLICE = 64 * 1024
WEBSOCKET = b"websocket"


class Incoming:
    """One request as far as it has come."""

    __slots__ = (
        "complete",
        "continued",
        "head",
        "method",
        "parts",
        "place",
        "received",
        "refusal",
        "target",
        "version",
        "waiting",
    )

    def __init__(self, target: bytes) -> None:
        self.target = target
        self.method = ""
        self.version = "1.1"
        self.head = NO_HEAD
        self.refusal: Refusal | None = None
        """Why it cannot be answered."""
        self.parts: list[bytes] = []
        """What has come of its body and was not taken yet; `waiting` bytes."""
        self.waiting = 0
        self.received = 0
        """Bytes of its body that have come."""
        self.complete = False
        self.continued = False
        """The client was told to send the body."""
        self.place: Place | None = None

    @property
    def is_socket(self) -> bool:
        return self.head.upgrade == WEBSOCKET

    @property
    def is_short(self) -> bool:
        """Whether its body is awaited before it is handed on."""
        return self.complete or (self.head.length is not None and self.head.length <= SHORT)

    def take_all(self) -> bytes:
        parts, self.parts, self.waiting = self.parts, [], 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def drop(self, parts: int, size: int) -> None:
        """The first of the parts were handed on."""
        if parts:
            del self.parts[:parts]
            self.waiting -= size


NO_HEAD = Head()


class Reader:
    """The requests of one connection.

    Example:
        reader.feed(data)
        while reader.requests: ...
    """

    __slots__ = (
        "_ended",
        "_fed",
        "_head_size",
        "_headers",
        "_in_body",
        "_incoming",
        "_overhead",
        "_parser",
        "_replayed",
        "_unparsed",
        "closed",
        "early",
        "requests",
    )

    def __init__(self) -> None:
        self.requests: deque[Incoming] = deque()
        """Those that nobody has taken, the oldest first. The last may be incomplete."""
        self.closed = False
        """Nothing that follows counts: it cannot be understood, was said to be the last, or is no HTTP any more."""
        self.early = b""
        """What came behind the handshake of a WebSocket."""
        self._parser = HttpRequestParser(self)
        self._incoming: Incoming | None = None
        """The one that is being read."""
        self._headers: Headers = []
        self._head_size = 0
        """Bytes of the headers that are whole."""
        self._fed = 0
        """Bytes since the last request was whole, while the next has no whole head."""
        self._in_body = False
        self._overhead = 0
        self._ended = 0
        """Requests that have come whole."""
        self._replayed = False
        """The head is told to a fresh parser: it is known already."""
        self._unparsed = b""

    @property
    def begun(self) -> bool:
        """Whether a part of a head has come."""
        return not self._in_body and (self._incoming is not None or self._fed > 0)

    @property
    def full(self) -> bool:
        """Whether enough has come that nobody has taken."""
        requests, incoming = self.requests, self._incoming
        if incoming is not None and incoming.head.chunked and len(incoming.parts) >= MAX_PARTS:
            return True
        if not requests:
            return False
        if len(requests) >= MAX_PIPELINED or len(self.early) >= MAX_WAITING:
            return True
        return sum(request.waiting for request in requests) >= MAX_WAITING

    @property
    def stuck(self) -> bool:
        """Whether some of what has come is not even parsed. `go_on` parses it, as soon as requests were taken."""
        return bool(self._unparsed)

    def feed(self, data: bytes) -> None:
        if self.closed:
            if self.requests and self.requests[-1].is_socket:
                self.early += data
        elif self._unparsed or self.full:
            self._unparsed += data
        elif len(data) <= HEAD_SLICE:
            self._parse(data)
        else:
            self._parse_slices(data)

    def go_on(self) -> None:
        if self._unparsed and not self.full:
            data, self._unparsed = self._unparsed, b""
            self._parse_slices(data)

    def end(self) -> None:
        """Nothing is fed any more: the parser and what it calls let go of each other."""
        del self._parser

    # ------------------------------------------------------------ parsing

    def _parse_slices(self, data: bytes) -> None:
        at = 0
        with memoryview(data) as view:
            while at < len(data) and not self.closed:
                if self.full:
                    self._unparsed = data[at:]
                    return
                incoming = self._incoming
                is_plain = self._in_body and incoming is not None and not incoming.head.chunked
                end = at + (BODY_SLICE if is_plain else HEAD_SLICE)
                with view[at:end] as piece:
                    self._parse(piece, view[end:])
                at = end

    def _parse(self, data: bytes | memoryview, rest: bytes | memoryview = b"") -> None:
        incoming, ended = self._incoming, self._ended
        received = incoming.received if incoming is not None else 0
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._upgraded(bytes(data[upgrade.args[0] :]), rest)
            return
        except HttpParserCallbackError:
            if not self.closed:
                raise
        except HttpParserError as error:
            self._refuse(bad_request(f"this is not HTTP/1.1 as it should be: {error}"))
        if self._ended != ended:
            self._fed = self._overhead = 0
        elif not self._in_body:
            self._fed += len(data)
            if self._fed > MAX_HEAD + HEAD_SLICE:
                self._refuse(_head_too_large())
        elif incoming is not None and incoming.received == received:
            self._overhead += len(data)
            if self._overhead > MAX_OVERHEAD:
                self._refuse(bad_request("the chunks of the body have too much in them that is no data"))
        else:
            self._overhead = 0

    def _refuse(self, refusal: Refusal) -> None:
        """Ends the reading: of the request that is being read, or of one that never came to be."""
        if self.closed:
            return
        self.closed = True
        incoming = self._incoming
        if incoming is None or not self._in_body:
            incoming = Incoming(b"")
            self.requests.append(incoming)
        incoming.refusal = refusal

    def _upgraded(self, behind: bytes, rest: bytes | memoryview) -> None:
        last = self._incoming
        if last is None:
            self.early = behind + bytes(rest)
            return
        lines = [b"POST / HTTP/%b\r\n" % last.version.encode()]
        if last.head.chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        elif last.head.length:
            lines.append(b"content-length: %d\r\n" % last.head.length)
        self._parser = HttpRequestParser(self)
        self._replayed = True
        self._parser.feed_data(b"".join(lines) + b"\r\n")
        self._replayed = False
        if behind and not self.closed:
            self._parse(behind, rest)

    # ------------------------------------------------------------ what the parser says

    def on_url(self, url: bytes) -> None:
        if self._replayed:
            return
        if self.closed:
            raise _Stop
        incoming = self._incoming
        if incoming is None:
            incoming = self._incoming = Incoming(url)
        else:
            incoming.target += url
        if len(incoming.target) > MAX_TARGET:
            self._refuse(bad_request(f"the address has more than {MAX_TARGET} bytes", 414))
            raise _Stop

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body or self._replayed:
            return  # a trailer
        headers = self._headers
        headers.append((name.lower(), value))
        self._head_size += len(name) + len(value)
        if self._head_size > MAX_HEAD or len(headers) > MAX_HEADERS:
            self._refuse(_head_too_large())
            raise _Stop

    def on_headers_complete(self) -> None:
        if self._replayed:
            return
        incoming, parser = self._incoming, self._parser
        assert incoming is not None
        headers, self._headers, self._head_size, self._fed = self._headers, [], 0, 0
        incoming.method = parser.get_method().decode()
        incoming.version = version = parser.get_http_version()
        self.requests.append(incoming)
        self._in_body = True
        try:
            if version not in ("1.1", "1.0"):
                raise bad_request("this server speaks HTTP/1.1 and HTTP/1.0", 505)
            if incoming.method == "CONNECT":
                raise bad_request("this server is no proxy: CONNECT leads nowhere", 405)
            incoming.head = read_head(headers, version)
            if incoming.is_socket and incoming.head.has_body:
                raise bad_request("the handshake of a WebSocket has no body")
        except Refusal as refusal:
            self._refuse(refusal)
            raise _Stop from None

    def on_body(self, data: bytes) -> None:
        incoming = self._incoming
        assert incoming is not None
        incoming.parts.append(data)
        incoming.waiting += len(data)
        incoming.received += len(data)

    def on_message_complete(self) -> None:
        incoming = self._incoming
        assert incoming is not None
        if self._parser.should_upgrade() and not incoming.is_socket:
            return  # its body, or the next request, comes after the parser was replaced
        incoming.complete = True
        self._incoming = None
        self._in_body = False
        self._ended += 1
        if incoming.is_socket or not incoming.head.keep_alive:
            self.closed = True


class _Stop(Exception):
    """Ends the parser, from within what it calls."""


def _head_too_large() -> Refusal:
    text = f"the head of the request has more than {MAX_HEAD} bytes or {MAX_HEADERS} headers"
    return bad_request(text, 431)
