"""One WebSocket: messages of the client become events for the code, and the code's become frames.

The handshake is answered when the code accepts. Extensions are not negotiated: compression costs more time than a
loopback or a local network saves, and memory for every connection.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections import deque
from typing import TYPE_CHECKING

from websockets.exceptions import ProtocolError
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Protocol, Side, State
from websockets.utils import accept_key

from kedge.model.web import (
    WEB_MESSAGE,
    Disconnected,
    MessageReceived,
    MessageSent,
    Received,
    Sent,
    SocketAccepted,
    SocketClosed,
)
from kedge.server.ingress.exchange import Exchange
from kedge.server.ingress.head import tokens
from kedge.server.ingress.reader import Incoming
from kedge.server.ingress.replies import Refusal, bad_request, server_ends
from kedge.server.ingress.response import BadAnswer, Response, header_lines

if TYPE_CHECKING:
    from kedge.server.ingress.http import Connection

log = logging.getLogger("kedge.server.ingress")
_quiet = logging.getLogger("kedge.server.ingress.frames")
_quiet.setLevel(logging.WARNING)

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of a message from a client: it travels in one frame to its container."""
FRAMES = 256
"""Frames that are read at once, before others have their turn: a client may send 100,000 tiny ones a second."""
SLICE = 4 * 1024
"""Bytes that are taken apart between looks at how many frames they had."""
PING_S = 30.0
"""Seconds of silence after which the client is asked whether it is still there: below what routers remember."""
PONG_S = 30.0
"""Seconds that it has to answer."""
CLOSE_S = 10.0
"""Seconds that it has to close a socket that the code has closed."""
VERSION = b"13"
_OWN = frozenset((b"sec-websocket-accept", b"sec-websocket-protocol", b"sec-websocket-extensions"))
TEXT, BINARY, CONT, CLOSE = Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.CLOSE
PONG = b"\x8a"
"""How its frame begins."""
NORMAL, GOING_AWAY, ABNORMAL, INVALID, FAILED = 1000, 1001, 1006, 1007, 1011


class Handshake:
    """What a client asks for; Refusal where it is no handshake of a WebSocket."""

    __slots__ = ("accept", "subprotocols")

    def __init__(self, incoming: Incoming) -> None:
        said: dict[bytes, list[bytes]] = {}
        for name, value in incoming.head.headers:
            if name.startswith(b"sec-websocket-"):
                said.setdefault(name[14:], []).append(value.strip())
        if incoming.method != "GET" or incoming.version != "1.1":
            raise bad_request("a WebSocket begins with GET and HTTP/1.1")
        if said.get(b"version") != [VERSION]:
            wanted = (b"sec-websocket-version", VERSION)
            raise Refusal(426, "this server speaks version 13 of WebSocket", wanted, close=True)
        keys = said.get(b"key", [])
        if len(keys) != 1 or not _is_key(keys[0]):
            raise bad_request("Sec-WebSocket-Key must be there once, and be 16 bytes in base64")
        self.accept = accept_key(keys[0].decode()).encode()
        self.subprotocols = [one.decode("latin-1") for one in tokens(said.get(b"protocol", []))]


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False


class Socket:
    """A connection that has asked for a WebSocket, from its handshake to its end."""

    def __init__(self, connection: Connection, handshake: Handshake, response: Response) -> None:
        self.subprotocols = handshake.subprotocols
        self._connection = connection
        self._handshake = handshake
        self._response = response
        """For a refusal of the handshake."""
        self._exchange: Exchange | None = None
        self._protocol: Protocol | None = None
        """None until the code has accepted."""
        self._early = b""
        self._unparsed = b""
        """What has come and awaits its turn, or room for what was before it."""
        self._planned = False
        self._message = bytearray()
        """What has come of a message that is not whole: in one piece, since fragments may be tiny."""
        self._is_text = False
        self._waiting: deque[MessageReceived] = deque()
        """Whole messages that the code has no room for."""
        self._pinged = False
        self._pong = b""
        """The last answer to a ping that the client does not read."""
        self._unpaid = 0

    def begin(self, exchange: Exchange) -> None:
        self._exchange = exchange
        exchange.begin()

    # ------------------------------------------------------------ what the client says

    def received(self, data: bytes) -> None:
        protocol = self._protocol
        if protocol is None:
            self._early += data
            if len(self._early) > MAX_EARLY:
                self._connection.read(False)
            return
        self._pinged = False
        if protocol.state is State.OPEN:
            self._connection.deadline = self._connection.ingress.now + PING_S
        self._unparsed += data
        if not self._planned and not self._waiting:
            self._read_frames(protocol)

    def _read_frames(self, protocol: Protocol) -> None:
        data, at, frames = self._unparsed, 0, 0
        try:
            while at < len(data) and frames < FRAMES:
                protocol.receive_data(data[at : at + SLICE])
                at += SLICE
                for frame in protocol.events_received():
                    self._frame(frame)  # type: ignore[arg-type]
                    frames += 1
        except UnicodeDecodeError:
            protocol.fail(INVALID, "a text message must be UTF-8")
        self._unparsed = data[at:]
        self._pass_on()
        self._send()

    def _go_on(self) -> None:
        """The others have had their turn."""
        self._planned = False
        if self._unparsed and not self._waiting and self._protocol is not None:
            self._read_frames(self._protocol)

    def _frame(self, frame: Frame) -> None:
        code = frame.opcode
        if code is TEXT or code is BINARY:
            self._is_text = code is TEXT
            if frame.fin:
                self._add(bytes(frame.data))
            else:
                self._message = bytearray(frame.data)
        elif code is CONT:
            self._message += frame.data
            if frame.fin:
                message, self._message = self._message, bytearray()
                self._add(bytes(message))
        elif code is CLOSE:
            said = Close.parse(frame.data)
            self._gone(said.code, said.reason)

    def _add(self, data: bytes) -> None:
        if self._is_text:
            data.decode()
        self._waiting.append(MessageReceived(data, self._is_text))

    def _pass_on(self) -> None:
        """Gives the code the messages that it has room for, and reads on where that is all."""
        exchange, waiting = self._exchange, self._waiting
        if exchange is None:
            waiting.clear()  # nobody takes them any more; what matters is that the client closes
        events: list[Received] = []
        size = 0
        while exchange is not None and waiting and exchange.has_room(len(waiting[0].data), size):
            event = waiting.popleft()
            size += len(event.data) + WEB_MESSAGE
            events.append(event)
        if events and exchange is not None:
            exchange.send(events, size)
        if self._unparsed and not waiting and not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._go_on)
        self._connection.read(not waiting and not self._unparsed)

    def lost(self) -> None:
        """The connection is gone."""
        self._unparsed = b""
        self._gone(ABNORMAL, "")

    def _gone(self, code: int, reason: str) -> None:
        """The client is gone: the code hears it, and has a moment to end by itself."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        events: list[Received] = [*self._waiting, Disconnected(code, reason)]
        self._waiting.clear()
        if exchange.send(events, 0):
            exchange.leave()
            self._connection.ingress.say_goodbye(exchange)
        else:
            exchange.abandon()

    # ------------------------------------------------------------ what the code says

    def dispatched(self) -> None:
        """Nothing waits for that."""

    def credited(self) -> None:
        self._pass_on()

    def answered(self, events: list[Sent]) -> None:
        size = 0
        try:
            for at, event in enumerate(events):
                if self._exchange is None:
                    break
                if isinstance(event, MessageSent):
                    size += len(event.data) + WEB_MESSAGE
                    self._speak(event)
                elif isinstance(event, SocketAccepted):
                    self._accept(event)
                elif isinstance(event, SocketClosed):
                    self._close(event.code, event.reason)
                else:
                    self._refuse_by(events[at:])
                    return
        except BadAnswer as error:
            log.warning("%r %s", self._exchange, error)
            self._fail(Refusal(500, "the function sent what is no answer to a WebSocket; its log says more"))
            return
        self._send()
        self._credit(size)

    def _credit(self, size: int) -> None:
        if self._connection.choked:
            self._unpaid += size
        elif size and self._exchange is not None:
            self._exchange.taken(size)

    def resumed(self) -> None:
        """The client reads again."""
        unpaid, self._unpaid = self._unpaid, 0
        self._credit(unpaid)
        pong, self._pong = self._pong, b""
        if pong and self._protocol is not None and self._protocol.state is State.OPEN:
            self._connection.write([pong])

    def ended(self, refusal: Refusal, clean: bool) -> None:
        self._exchange = None
        if self._protocol is not None:
            self._close(NORMAL if clean else FAILED, "")
            self._send()
        else:
            self._refuse(refusal)

    def _accept(self, event: SocketAccepted) -> None:
        if self._protocol is not None or self._response.started:
            raise BadAnswer("accepted a WebSocket twice")
        response, connection = self._response, self._connection
        lines = header_lines(event.headers, _OWN)
        if event.subprotocol is not None:
            lines += header_lines([(b"sec-websocket-protocol", event.subprotocol.encode())])
        connection.write(
            [
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
                b"sec-websocket-accept: %b\r\n%b%bserver: kedge\r\n\r\n"
                % (self._handshake.accept, lines, connection.ingress.date)
            ]
        )
        response.started = True
        self._protocol = Protocol(Side.SERVER, state=State.OPEN, max_size=MAX_MESSAGE, logger=_quiet)
        connection.deadline = connection.ingress.now + PING_S
        connection.read(True)
        early, self._early = self._early, b""
        if early:
            self.received(early)

    def _speak(self, event: MessageSent) -> None:
        protocol = self._protocol
        if protocol is None:
            raise BadAnswer("sent a message before it had accepted the WebSocket")
        if protocol.state is State.OPEN:
            if event.text:
                protocol.send_text(event.data)
            else:
                protocol.send_binary(event.data)

    def _close(self, code: int, reason: str) -> None:
        """By the code, or in its place."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()
        protocol = self._protocol
        if protocol is None:
            self._refuse(Refusal(403, "the WebSocket was refused"))
        elif protocol.state is State.OPEN:
            try:
                protocol.send_close(code, _cut(reason))
            except ProtocolError:
                log.warning("%r closed its WebSocket with the code %d, which is none", exchange, code)
                protocol.send_close(FAILED)
            self._connection.deadline = self._connection.ingress.now + CLOSE_S
            self._pass_on()  # reads on: the client's close comes behind what nobody has taken

    def _refuse_by(self, events: list[Sent]) -> None:
        """The code answers the handshake with a response of HTTP."""
        response = self._response
        if self._protocol is not None:
            raise BadAnswer("sent an HTTP response over a WebSocket that it had accepted")
        response.date = self._connection.ingress.date
        self._connection.write(response.feed(events))
        size = sum(len(event.data) for event in events if hasattr(event, "data"))
        if response.complete:
            exchange, self._exchange = self._exchange, None
            if exchange is not None:
                exchange.leave()
            self._connection.shut(linger=True)
        else:
            self._credit(size)

    # ------------------------------------------------------------ the end

    def expired(self) -> None:
        """Nothing was heard for a while."""
        connection, protocol = self._connection, self._protocol
        if protocol is None or self._pinged or protocol.state is not State.OPEN:
            connection.abort()
            return
        connection.deadline = connection.ingress.now + PONG_S
        if not self._waiting:  # else we do not read, and would not see an answer
            self._pinged = True
            protocol.send_ping(b"")
            self._send()

    def end(self) -> None:
        """The server ends."""
        exchange = self._exchange
        if self._protocol is None:
            self._fail(server_ends())
        else:
            self._close(GOING_AWAY, "the server is stopping")
            self._send()
            if exchange is not None:
                exchange.abandon()

    def _fail(self, refusal: Refusal) -> None:
        """Nothing good can come of it any more."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()
        if self._protocol is not None:
            self._close(FAILED, "")
            self._send()
        else:
            self._refuse(refusal)

    def _refuse(self, refusal: Refusal) -> None:
        connection, response = self._connection, self._response
        if response.started:
            connection.abort()
            return
        response.date = connection.ingress.date
        connection.write(response.refuse(refusal))
        connection.shut(linger=True)

    def _send(self) -> None:
        """Writes the frames that have become due."""
        protocol = self._protocol
        if protocol is None:
            return
        writes = protocol.data_to_send()
        over = bool(writes) and not writes[-1]
        if self._connection.choked:
            # The latest ping alone needs an answer. Who pings and never reads would fill the memory with pongs.
            self._pong = next((data for data in reversed(writes) if data[:1] == PONG), self._pong)
            writes = [data for data in writes if data[:1] != PONG]
        self._connection.write([data for data in writes if data])
        if over:
            sent = protocol.close_sent
            self._gone(sent.code if sent is not None else ABNORMAL, sent.reason if sent is not None else "")
            self._connection.shut(linger=True)


MAX_EARLY = 64 * 1024
"""Bytes that a client may send before the handshake is answered: it should send none."""


def _cut(reason: str) -> str:
    """At most the 123 bytes that fit a close frame."""
    return reason.encode()[:123].decode("utf-8", "ignore")
