"""One connection of a client: its requests in their order, each answered before the next begins.

Who waits for whom: the client is left unread while it is ahead (its body of the code's reading, or its requests of our
answers), and the code gets no credit while the client is behind with reading.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING

import msgspec

from kedge.model.payload import Payload
from kedge.model.web import HTTP, WEB, WEBSOCKET, BodyReceived, BodySent, Received, Request, Sent
from kedge.server.ingress.exchange import Exchange
from kedge.server.ingress.head import forwarded
from kedge.server.ingress.line import Line
from kedge.server.ingress.reader import Incoming, Reader
from kedge.server.ingress.replies import Refusal, bad_request, server_ends, too_many_connections
from kedge.server.ingress.response import BadAnswer, Response
from kedge.server.ingress.websocket import Handshake, Socket

if TYPE_CHECKING:
    from kedge.server.ingress.ingress import Ingress

log = logging.getLogger("kedge.server.ingress")

HEAD_S = 30.0
"""Seconds in which a head must have come, from its first byte on: nobody may hold a connection by trickling."""
IDLE_S = 75.0
"""Seconds that a connection may stay open between requests, as with other servers."""
BODY_S = 30.0
"""Seconds that a short body may take, and so many bytes of it give one more: before it has come whole there is no
limit of the code's own."""
BODY_RATE = 500
SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
"""Methods that may be tried again, since they only ask."""
TURN = 32
"""Requests that are begun at once, before others have their turn: a client may send a thousand that are refused."""
PIECE = 16 * 1024
"""Bytes of a body that are told at once where they came as many tiny chunks."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

IDLE, HEAD, BODY, BUSY = "idle", "head", "body", "busy"

_encode = msgspec.msgpack.Encoder().encode


class Connection(Line):
    """Serves one client for one ingress."""

    def __init__(self, ingress: Ingress) -> None:
        super().__init__(ingress)
        self._reader = Reader()
        self._current: Incoming | None = None
        """The request that is being answered."""
        self._exchange: Exchange | None = None
        self._response: Response | None = None
        self._spoken = False
        """A part of the response has been written."""
        self._socket: Socket | None = None
        self._unpaid = 0
        """Bytes that the code has not been credited, since the client does not read."""
        self._state = IDLE
        """What is awaited of the client, since `_since`."""
        self._since = 0.0
        self._planned = False

    # ------------------------------------------------------------ by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        ingress = self.ingress
        ingress.joined(self)
        self.deadline = ingress.now + HEAD_S
        if len(ingress.connections) > ingress.max_connections:
            self._refuse(None, too_many_connections(ingress.max_connections))

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.ingress.left(self)
        self._reader.end()
        made, self._socket = self._socket, None
        if made is not None:
            made.lost()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()

    def data_received(self, data: bytes) -> None:
        if self._socket is not None:
            self._socket.received(data)
        elif not self.is_shut:
            self._reader.feed(data)
            self._advance()

    def resume_writing(self) -> None:
        super().resume_writing()
        unpaid, self._unpaid = self._unpaid, 0
        if unpaid and self._exchange is not None:
            self._exchange.taken(unpaid)
        if self._socket is not None:
            self._socket.resumed()
        else:
            self._advance()

    # ------------------------------------------------------------ requests

    def _advance(self) -> None:
        """Does what can be done with what has come."""
        reader, begun = self._reader, 0
        while self._current is None and not self.choked and not self.is_shut:
            if reader.stuck:
                reader.go_on()
            if not reader.requests:
                break
            if begun == TURN:
                self._plan()
                break
            begun += 1
            if not self._take(reader.requests.popleft()):
                break
        if self._exchange is not None and self._exchange.long:
            self._pump(self._exchange)
        self._regulate()

    def _plan(self) -> None:
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """The others have had their turn."""
        self._planned = False
        if not self.is_shut:
            self._advance()

    def _take(self, incoming: Incoming) -> bool:
        """Begins with this request. False where more of it must come first."""
        try:
            if incoming.refusal is not None:
                raise incoming.refusal
            if incoming.place is None:
                incoming.place = self.ingress.locate(incoming, self.is_open)
            if incoming.is_socket:
                self._open_socket(incoming)
            elif incoming.complete or not incoming.is_short:
                self._begin(incoming)
            else:
                if incoming.head.expects and not incoming.continued:
                    incoming.continued = True
                    self.write([CONTINUE])
                self._reader.requests.appendleft(incoming)
                return False
        except Refusal as refusal:
            self._refuse(incoming, refusal)
        self._state = ""
        return True

    def _begin(self, incoming: Incoming) -> None:
        exchange = self._exchange_for(incoming, self)
        self._respond_to(incoming)
        self._exchange = exchange
        try:
            exchange.begin()
        except Refusal:
            self._exchange = None
            raise

    def _respond_to(self, incoming: Incoming | None) -> Response:
        self._current = incoming
        self._spoken = False
        self._unpaid = 0
        if incoming is None or incoming.is_socket:
            self._response = Response(False, "1.1", False)
        else:
            keep_alive = incoming.head.keep_alive and not self.ingress.closing
            self._response = Response(incoming.method == "HEAD", incoming.version, keep_alive)
        return self._response

    def _exchange_for(self, incoming: Incoming, visitor: Connection | Socket) -> Exchange:
        place = incoming.place
        assert place is not None
        pool = self.ingress.pool_of(place)
        client, scheme, is_socket = self.client, self.scheme, incoming.is_socket
        if self.is_trusted and client is not None:
            client, scheme = forwarded(incoming.head.headers, client, scheme)
        if is_socket:
            scheme = "wss" if scheme == "https" else "ws"
        body = incoming.take_all() if incoming.complete else b""
        request = Request(
            WEBSOCKET if is_socket else HTTP,
            incoming.method,
            place.path,
            place.raw_path,
            place.query,
            place.root_path,
            incoming.version,
            scheme,
            incoming.head.headers,
            client,
            self.here,
            visitor.subprotocols if isinstance(visitor, Socket) else [],
            body,
            not incoming.complete,
        )
        again = incoming.method in SAFE and incoming.complete and not body and not is_socket
        route = place.route
        payload = Payload(WEB, _encode(request))
        return Exchange(self.ingress, visitor, pool, route.method, route.name, payload, not incoming.complete, again)

    def _open_socket(self, incoming: Incoming) -> None:
        """From now on everything that comes belongs to the WebSocket."""
        made = Socket(self, Handshake(incoming), self._respond_to(incoming))
        made.begin(self._exchange_for(incoming, made))
        self._socket = made
        self.deadline = inf
        early, self._reader.early = self._reader.early, b""
        self.read(True)
        if early:
            made.received(early)

    def _pump(self, exchange: Exchange) -> None:
        """Passes on of a long body what the code has room for."""
        incoming = self._current
        assert incoming is not None
        if not exchange.has_container and incoming.refusal is None:
            return
        if incoming.head.expects and not incoming.continued and incoming.refusal is None:
            incoming.continued = True
            if not self._spoken:
                self.write([CONTINUE])
        has_parsed = False
        while exchange.long:
            if not incoming.parts and self._reader.stuck:
                if has_parsed:
                    self._plan()
                    return
                has_parsed = True
                self._reader.go_on()
            if incoming.refusal is not None:
                self._give_up(incoming.refusal)
                return
            events: list[Received] = []
            size = count = 0
            for part in incoming.parts:
                if not exchange.has_room(len(part), size):
                    break
                count += 1
                size += len(part)
            events += [BodyReceived(piece, True) for piece in _pieces(incoming.parts[:count])]
            incoming.drop(count, size)
            if incoming.complete and not incoming.parts:
                events.append(BodyReceived(b"", False))
                exchange.long = False
            if not events:
                return
            exchange.send(events, size)

    def _regulate(self) -> None:
        """Whether to read, and until when something must have happened."""
        if self.is_shut or self._socket is not None:
            return
        reader, current = self._reader, self._current
        if self.unread or reader.requests or reader.stuck or (current is not None and not current.complete):
            self.read(not (reader.stuck or reader.full or (current is not None and current.parts)))
        if current is not None:
            self._state = BUSY
            self.deadline = inf
            return
        if reader.requests and not self.choked:
            state = BODY
        elif reader.begun:
            state = HEAD
        else:
            state = IDLE
        now = self.ingress.now
        if state != self._state or state == IDLE:
            self._state = state
            self._since = now
        if state == BODY:
            self.deadline = self._since + BODY_S + reader.requests[0].received / BODY_RATE
        else:
            self.deadline = self._since + (HEAD_S if state == HEAD else IDLE_S)

    # ------------------------------------------------------------ answers, of an exchange

    def dispatched(self) -> None:
        if self._exchange is not None:
            self._pump(self._exchange)
            self._regulate()

    def credited(self) -> None:
        if self._exchange is not None and self._exchange.long:
            self._pump(self._exchange)
            self._regulate()

    def answered(self, events: list[Sent]) -> None:
        response, incoming = self._response, self._current
        assert response is not None
        assert incoming is not None
        response.date = self.ingress.date
        if not incoming.complete and not response.started:
            response.keep_alive = False
        try:
            parts = response.feed(events)
        except BadAnswer as error:
            self._bad_answer(error)
            return
        self._spoken = True
        self.write(parts)
        if response.complete:
            self._finish()
            return
        size = sum([len(event.data) for event in events if type(event) is BodySent])
        if self.choked:
            self._unpaid += size
        elif size and self._exchange is not None:
            self._exchange.taken(size)

    def ended(self, refusal: Refusal, clean: bool) -> None:
        exchange, self._exchange = self._exchange, None
        if self._spoken:
            log.warning("%r ended in the middle of its response", exchange)
            self.abort()
        else:
            self._refuse(self._current, refusal)
            self._advance()

    def _finish(self) -> None:
        """The response is whole."""
        exchange, self._exchange = self._exchange, None
        incoming, self._current = self._current, None
        response, self._response = self._response, None
        if exchange is not None:
            exchange.leave()
        assert response is not None
        if response.keep_alive and not self.ingress.closing:
            self._advance()
        else:
            self.shut(linger=incoming is None or not incoming.complete)

    def _refuse(self, incoming: Incoming | None, refusal: Refusal) -> None:
        """Answers with a plain text. The connection goes on where the request has come whole."""
        response = self._respond_to(incoming)
        response.date = self.ingress.date
        if incoming is not None and (not incoming.complete or incoming.refusal is not None):
            response.keep_alive = False
        self.write(response.refuse(refusal))
        self._current = self._response = None
        if not response.keep_alive:
            self.shut(linger=True)

    def _bad_answer(self, error: BadAnswer) -> None:
        log.warning("%r %s", self._exchange, error)
        name = self._exchange.name if self._exchange is not None else "the function"
        self._give_up(Refusal(500, f"{name} sent what is no response; its log and that of the server say more"))

    def _give_up(self, refusal: Refusal) -> None:
        """Nothing good can come of the exchange any more."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()
        if self._spoken:
            self.abort()
        else:
            self._refuse(self._current, refusal)
            self._advance()

    # ------------------------------------------------------------ the end, by the ingress

    def expired(self) -> None:
        """The deadline has passed."""
        if self._socket is not None and not self.is_shut:
            self._socket.expired()
        elif self.is_shut:
            self.abort()
        elif self._state == IDLE:
            self.shut()
        else:
            self._refuse(None, bad_request("the request did not come in time", 408))

    def finish(self) -> None:
        """The server ends: what runs may come to its end, and nothing follows."""
        if self._response is not None and not self._spoken:
            self._response.keep_alive = False
        elif self._current is None and self._socket is None and not self.is_shut:
            self.shut()

    def end(self) -> None:
        """The server ends now."""
        if self._socket is not None:
            self._socket.end()
        elif self._exchange is not None:
            self._give_up(server_ends())
        elif not self.is_shut:
            self.shut()


def _pieces(parts: list[bytes]) -> Iterator[bytes]:
    """The same bytes in fewer parts, where these are tiny: each costs the plane and the code more than its bytes do."""
    small: list[bytes] = []
    size = 0
    for part in parts:
        small.append(part)
        size += len(part)
        if size >= PIECE:
            yield b"".join(small)  # of one part: that part itself
            small, size = [], 0
    if small:
        yield b"".join(small)
