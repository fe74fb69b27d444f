"""One request as ASGI has it: the scope, `receive` and `send`, and what an app must not do.

HTTP and WebSockets, ASGI 3.0, specification 2.3. The head of a response waits for the first part of its body, so that
both leave in one frame; where the whole response is there, that frame also has the end of the input. `send` comes back
when its data may go: a client that reads slowly slows its app.

An app that breaks the rules gets a RuntimeError where it does, which says what was expected. What it sends when its
client is gone is dropped; a WebSocket's app hears of that by ClientGone, an OSError.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, MutableMapping
from threading import get_ident
from typing import Any

from kedge.container.answers import as_bytes, headers_of, length_of, remaining, started
from kedge.container.exchange import Bell, ClientGone, Exchange
from kedge.container.outbox import Outbox
from kedge.exception import ExecutionError
from kedge.model.web import (
    HTTP,
    WEB_MESSAGE,
    WEBSOCKET,
    BodyReceived,
    BodySent,
    MessageReceived,
    MessageSent,
    Received,
    Request,
    ResponseStarted,
    Sent,
    SocketAccepted,
    SocketClosed,
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_MESSAGE = 32 * 1024 * 1024
"""Bytes of one WebSocket message, which travels whole: half a frame."""
INTERNAL_ERROR = 1011
"""Code of a WebSocket whose app has failed."""

_START, _BODY, _DONE = "http.response.start", "http.response.body", ""
_CONNECTING, _OPEN, _CLOSED = "connecting", "open", "closed"


class AsgiApp:
    """An ASGI app that answers the requests of one function or method."""

    is_async = True

    def __init__(self, app: App, outbox: Outbox, state: dict[str, Any]) -> None:
        """`state` is what its lifespan has left there: every request gets a copy."""
        self._app = app
        self._outbox = outbox
        self._state = state

    async def answer(self, exchange: Exchange, request: Request) -> None:
        """Lets the app answer. What that raises passes through; ExecutionError where it has not answered."""
        kind = HttpCycle if request.kind == HTTP else SocketCycle
        cycle: HttpCycle | SocketCycle = kind(exchange, request, self._outbox)
        try:
            await self._app(scope_of(request, self._state.copy()), cycle.receive, cycle.send)
        except BaseException as error:
            if not _is_about_client(error, exchange):
                cycle.failed()
                raise
        else:
            cycle.returned()


def scope_of(request: Request, state: dict[str, Any]) -> Message:
    scope: Message = {
        "type": request.kind,
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.http_version,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.raw_path,
        "query_string": request.query,
        "root_path": request.root_path,
        "headers": request.headers,
        "client": request.client,
        "server": request.server,
        "state": state,
        "extensions": {},
    }
    if request.kind == WEBSOCKET:
        scope["subprotocols"] = request.subprotocols
        scope["extensions"] = {"websocket.http.response": {}}
    else:
        scope["method"] = request.method
    return scope


class HttpCycle:
    __slots__ = ("_exchange", "_expected", "_head", "_left", "_mute", "_outbox", "_request", "_unread")

    def __init__(self, exchange: Exchange, request: Request, outbox: Outbox) -> None:
        self._exchange = exchange
        self._request = request
        self._outbox = outbox
        self._unread = True
        """The app has not taken the first part of the body, which came with the request."""
        self._expected = _START
        """The type of message that must be sent next."""
        self._head: ResponseStarted | None = None
        """What waits for the first part of the body."""
        self._mute = request.method == "HEAD"
        self._left: int | None = None
        """Bytes of the body that are still to come, where the response has said how many it has."""

    async def receive(self) -> Message:
        if self._unread:
            self._unread = False
            return {"type": "http.request", "body": self._request.body, "more_body": self._request.more_body}
        event = await _next_event(self._exchange)
        if type(event) is BodyReceived:
            return {"type": "http.request", "body": event.data, "more_body": event.more}
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        exchange = self._exchange
        if exchange.gone is not None:
            await asyncio.sleep(0)  # code that sends in a loop must not keep its cancellation from coming
            return
        kind = _type_of(message)
        if kind != self._expected:
            raise RuntimeError(self._unexpected(kind))
        if kind == _START:
            self._head = started(message)
            self._left = None if self._mute or self._head.status == 304 else length_of(self._head)
            self._expected = _BODY
            return
        data, more = as_bytes(message.get("body", b""), "body"), bool(message.get("more_body", False))
        if self._left is not None:
            self._left = remaining(self._left, len(data), more)
        if self._mute:
            data = b""
        size = len(data)
        if exchange.room(size) != size:
            await self._send_pieces(memoryview(data), more)
            return
        self._put(data, size, more)

    async def _send_pieces(self, data: memoryview, more: bool) -> None:
        while True:
            size = await _room(self._exchange, len(data))
            piece, data = data[:size], data[size:]
            self._put(bytes(piece), size, more or len(data) > 0)
            if not data:
                return

    def _put(self, data: bytes, size: int, more: bool) -> None:
        events: list[Sent] = [BodySent(data, more)]
        if self._head is not None:
            events.insert(0, self._head)
            self._head = None
        if more:
            self._exchange.put(events, size)
            self._outbox.promptly()
        else:
            self._expected = _DONE
            self._exchange.put(events, size, last=True)
            self._outbox.later()

    def returned(self) -> None:
        """The app has nothing more to say."""
        if self._expected is _DONE or self._exchange.gone is not None:
            return
        if self._expected is _START:
            raise ExecutionError(
                "the app returned without an answer; it must send 'http.response.start' and 'http.response.body'"
            )
        raise ExecutionError(
            "the app returned before its answer was complete; the last 'http.response.body' must have more_body=False"
        )

    def failed(self) -> None:
        """The app has raised. The end of the input says the rest."""

    def _unexpected(self, kind: str) -> str:
        if self._expected is _DONE:
            return f"{kind!r} was sent after the answer was complete; nothing can follow a body with more_body=False"
        if kind == _START:
            return f"{kind!r} was sent twice; expected {_BODY!r}"
        return f"{kind!r} was sent where {self._expected!r} was expected"


class SocketCycle:
    __slots__ = ("_connected", "_exchange", "_head", "_outbox", "_request", "_stage")

    def __init__(self, exchange: Exchange, request: Request, outbox: Outbox) -> None:
        self._exchange = exchange
        self._request = request
        self._outbox = outbox
        self._connected = False
        """The app has taken `websocket.connect`."""
        self._stage = _CONNECTING
        self._head: ResponseStarted | None = None
        """Of an answer by HTTP in place of a WebSocket."""

    async def receive(self) -> Message:
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        event = await _next_event(self._exchange)
        if type(event) is MessageReceived:
            if event.text:
                return {"type": "websocket.receive", "text": event.data.decode()}
            return {"type": "websocket.receive", "bytes": event.data}
        gone = self._exchange.gone
        code, reason = (1005, "") if gone is None else (gone.code, gone.reason)
        return {"type": "websocket.disconnect", "code": code, "reason": reason}

    async def send(self, message: Message) -> None:
        kind = _type_of(message)
        if self._stage is _CLOSED:
            raise RuntimeError(f"{kind!r} was sent after the WebSocket was closed; nothing can follow")
        if self._exchange.gone is not None:
            await asyncio.sleep(0)
            raise ClientGone(f"{kind!r} was sent, but the client of this WebSocket is gone")
        if kind == "websocket.send" and self._stage is _OPEN:
            await self._send_message(message)
        elif kind == "websocket.close":
            self._end([SocketClosed(_code(message.get("code", 1000)), _reason(message.get("reason")))])
        elif self._stage is _OPEN:
            raise RuntimeError(f"{kind!r} was sent where 'websocket.send' or 'websocket.close' was expected")
        elif kind == "websocket.accept" and self._head is None:
            subprotocol = message.get("subprotocol")
            if subprotocol is not None and not isinstance(subprotocol, str):
                raise RuntimeError(f"the subprotocol of 'websocket.accept' is a str, not {subprotocol!r}")
            headers = headers_of(message.get("headers"), kind)
            self._stage = _OPEN
            self._put([SocketAccepted(subprotocol, headers)], 0)
        elif kind == "websocket.http.response.start" and self._head is None:
            self._head = started(message)
        elif kind == "websocket.http.response.body" and self._head is not None:
            await self._deny(message)
        elif self._head is not None:
            raise RuntimeError(f"{kind!r} was sent where 'websocket.http.response.body' was expected")
        else:
            expected = "'websocket.accept', 'websocket.close' or 'websocket.http.response.start'"
            raise RuntimeError(f"{kind!r} was sent where {expected} was expected")

    async def _send_message(self, message: Message) -> None:
        data, text = message.get("bytes"), message.get("text")
        if (data is None) == (text is None):
            raise RuntimeError("'websocket.send' needs one of 'bytes' and 'text'")
        if text is None:
            encoded = as_bytes(data, "bytes")
        elif isinstance(text, str):
            encoded = text.encode()
        else:
            raise RuntimeError(f"'text' of a message is a str, not {type(text).__name__}")
        size = len(encoded)
        if size > MAX_MESSAGE:
            raise RuntimeError(f"a WebSocket message may have {MAX_MESSAGE} bytes, not {size}; send it in parts")
        while not self._exchange.may_go(size):
            await _wait(self._exchange, functools.partial(self._exchange.may_go, size))
        if self._exchange.gone is None:
            self._put([MessageSent(encoded, text is not None)], size + WEB_MESSAGE)

    async def _deny(self, message: Message) -> None:
        assert self._head is not None
        data, more = memoryview(as_bytes(message.get("body", b""), "body")), bool(message.get("more_body", False))
        events: list[Sent] = [] if self._exchange.begun else [self._head]
        while True:
            size = await _room(self._exchange, len(data))
            piece, data = data[:size], data[size:]
            events.append(BodySent(bytes(piece), more or len(data) > 0))
            if not data and not more:
                self._end(events, size)
                return
            self._put(events, size)
            if not data:
                return
            events = []

    def _put(self, events: list[Sent], size: int) -> None:
        self._exchange.put(events, size)
        self._outbox.promptly()

    def _end(self, events: list[Sent], size: int = 0) -> None:
        self._stage = _CLOSED
        self._exchange.put(events, size, last=True)
        self._outbox.later()

    def returned(self) -> None:
        if self._stage is _CLOSED or self._exchange.gone is not None:
            return
        if self._stage is _OPEN:
            self._end([SocketClosed()])
        elif self._head is None:
            raise ExecutionError(
                "the app returned without an answer to the WebSocket; it must send 'websocket.accept' or "
                "'websocket.close'"
            )
        else:
            raise ExecutionError(
                "the app returned before its answer was complete; the last 'websocket.http.response.body' must have "
                "more_body=False"
            )

    def failed(self) -> None:
        """The app has raised: a WebSocket that is open ends in order."""
        if self._stage is _OPEN and self._exchange.gone is None:
            self._end([SocketClosed(INTERNAL_ERROR)])


# ---------------------------------------------------------------- waiting


async def _wait(exchange: Exchange, attempt: Callable[[Bell], Any]) -> Any:
    """What `attempt` gives at last: it gets a bell for each try, which is rung when the next one is worth while."""
    loop = asyncio.get_running_loop()
    thread = get_ident()
    while True:
        future: asyncio.Future[None] = loop.create_future()

        def ring(future: asyncio.Future[None] = future) -> None:
            if get_ident() == thread:
                _resolve(future)
            else:
                loop.call_soon_threadsafe(_resolve, future)

        found = attempt(ring)
        if found is not None and found is not False:
            return found
        try:
            await future
        except BaseException:
            exchange.forget(ring)  # frameworks ask for a disconnect now and then, without waiting for it
            raise


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _next_event(exchange: Exchange) -> Received:
    event: Received = await _wait(exchange, exchange.take)
    return event


async def _room(exchange: Exchange, size: int) -> int:
    def attempt(bell: Bell) -> int | None:
        room = exchange.room(size, bell)
        return None if room < 0 else room

    room: int = await _wait(exchange, attempt)
    return room


# ---------------------------------------------------------------- what an app may send


def _type_of(message: Any) -> str:
    try:
        kind = message["type"]
    except (KeyError, TypeError, IndexError):
        raise RuntimeError(f"an ASGI message is a dict with a 'type', not {message!r:.200}") from None
    return kind if type(kind) is str else repr(kind)


def _code(code: Any) -> int:
    if isinstance(code, int) and (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        return int(code)
    raise RuntimeError(f"a WebSocket is closed with a code of 1000 to 1014 or 3000 to 4999, not {code!r}")


def _reason(reason: Any) -> str:
    if reason is None:
        return ""
    if isinstance(reason, str) and len(reason.encode()) <= 123:
        return reason
    raise RuntimeError(f"the reason to close a WebSocket is a str of at most 123 bytes, not {reason!r:.200}")


def _is_about_client(error: BaseException, exchange: Exchange) -> bool:
    """Whether it only says that the client is gone, as frameworks do in their own words."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return exchange.gone is not None and not names.isdisjoint({"ClientGone", "WebSocketDisconnect"})
