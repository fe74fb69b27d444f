"""One request as WSGI has it (PEP 3333): environ, `start_response`, `write`, and the iterable that the app returns.

A request runs as every synchronous input does: on the main thread with one slot, else on the thread of a slot, and can
be interrupted anywhere but in the steps of the runtime, which shelter themselves (`_Answer`). Waits for the client,
for more of a body or for room, are ended by an interruption like other waits.
"""

from __future__ import annotations

import functools
import io
import sys
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any
from urllib.parse import unquote_to_bytes

from kedge.container.answers import as_bytes, headers_of, length_of, remaining
from kedge.container.exchange import Bell, ClientGone, Exchange
from kedge.container.guard import Guard
from kedge.container.outbox import Outbox
from kedge.exception import ExecutionError
from kedge.model.web import WEBSOCKET, BodyReceived, BodySent, Request, ResponseStarted, Sent
from kedge.sdk.context import InputContext

Environ = dict[str, Any]
Write = Callable[[bytes], object]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType]
App = Callable[[Environ, Callable[..., Write]], Iterable[bytes]]


class WsgiApp:
    """A WSGI app that answers the requests of one function or method."""

    is_async = False

    def __init__(self, app: App, outbox: Outbox, most: Callable[[], int]) -> None:
        """`most`: how many requests the container takes at once."""
        self._app = app
        self._outbox = outbox
        self._most = most

    def answer(self, exchange: Exchange, request: Request, guard: Guard, context: InputContext) -> None:
        """Lets the app answer, on a thread that `guard` has armed for the input. What that raises passes through."""
        answer = _Answer(exchange, request, self._outbox, guard, context)
        if request.kind == WEBSOCKET:
            answer.start("400 Bad Request", [("content-type", "text/plain; charset=utf-8")])
            answer.write(b"this address answers HTTP, and no WebSockets\n")
            answer.end()
            return
        body: Any = answer.body()
        result = self._app(environ_of(request, body, self._most() > 1), answer.start)
        try:
            for data in result:
                answer.write(data)
            answer.end()
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()


class _Answer:
    """What one request's code says, and what it reads."""

    def __init__(
        self, exchange: Exchange, request: Request, outbox: Outbox, guard: Guard, context: InputContext
    ) -> None:
        self._exchange = exchange
        self._request = request
        self._outbox = outbox
        self._guard = guard
        self._context = context
        self._head: ResponseStarted | None = None
        self._left: int | None = None
        """Bytes of the body that are still to come, where the response has said how many it has."""
        self._mute = request.method == "HEAD"
        self._reading: Any = None

    # ------------------------------------------------------------ what comes

    def body(self) -> Any:
        request = self._request
        return io.BufferedReader(_Body(self), 64 * 1024) if request.more_body else io.BytesIO(request.body)

    def next_part(self) -> BodyReceived | None:
        """What follows of the body. None where the app has answered without waiting for it."""
        event = self._wait(self._exchange.take)
        if type(event) is BodyReceived:
            return event
        if self._exchange.gone is not None:
            raise ClientGone("the client is gone, and its body is not complete")
        return None

    # ------------------------------------------------------------ what goes

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None) -> Write:
        """The `start_response` of PEP 3333."""
        if exc_info is not None:
            try:
                if self._exchange.begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # or its frames and this one keep each other alive
        elif self._head is not None:
            raise RuntimeError("start_response() was called twice; the second time it needs exc_info=sys.exc_info()")
        self._head = _head_of(status, headers)
        self._left = None if self._mute or self._head.status == 304 else length_of(self._head)
        return self.write

    def write(self, data: bytes) -> None:
        data = as_bytes(data, "a part of the body")
        if self._head is None:
            raise RuntimeError("the app gave a part of the body before it called start_response()")
        if not data:
            return
        if self._exchange.complete:
            raise RuntimeError("write() was called after the answer was complete")
        if self._left is not None:
            self._left = remaining(self._left, len(data), more=True)
        if self._mute:
            return
        view = memoryview(data)
        while view:
            size = self._wait(functools.partial(self._room, len(view)))
            piece, view = view[:size], view[size:]
            self._put(bytes(piece), last=not view and self._left == 0)

    def end(self) -> None:
        """The app has given all of the body."""
        if self._head is None:
            raise ExecutionError("the app returned without calling start_response(): there is no answer")
        if self._left is not None:
            remaining(self._left, 0, more=False)
        if not self._exchange.complete:
            self._put(b"", last=True)

    def _room(self, size: int, bell: Bell) -> int | None:
        room = self._exchange.room(size, bell)
        return None if room < 0 else room

    def _put(self, data: bytes, last: bool) -> None:
        events: list[Sent] = [BodySent(data, more=not last)]
        self._guard.enter(self._context)
        try:
            if not self._exchange.begun:
                assert self._head is not None
                events.insert(0, self._head)
            self._exchange.put(events, len(data), last)
            if not last:
                self._outbox.soon()
        finally:
            self._guard.leave(self._context)

    def _wait(self, attempt: Callable[[Bell], Any]) -> Any:
        """What `attempt` gives at last: it gets a bell for each try, which is rung when the next one is worth while."""
        outbox, guard, context = self._outbox, self._guard, self._context
        while True:
            rung = threading.Event()
            try:
                guard.enter(context)
                try:
                    found = attempt(rung.set)
                    if found is None:
                        outbox.flush()
                        outbox.hungry.add(self._exchange)
                        outbox.nudge()
                finally:
                    guard.leave(context)
                if found is not None:
                    return found
                rung.wait()
            finally:
                outbox.hungry.discard(self._exchange)


class _Body(io.RawIOBase):
    """`wsgi.input` of a body that comes piece by piece."""

    def __init__(self, answer: _Answer) -> None:
        self._answer = answer
        self._rest = memoryview(answer._request.body)
        self._more = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and self._more:
            part = self._answer.next_part()
            self._more = part is not None and part.more
            self._rest = memoryview(part.data if part is not None else b"")
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def environ_of(request: Request, body: Any, multithread: bool) -> Environ:
    host, port = request.server or ("localhost", None)
    path = unquote_to_bytes(request.raw_path)[len(request.root_path) :]  # its bytes, also where they are no UTF-8
    environ: Environ = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": _latin(request.root_path),
        "PATH_INFO": path.decode("latin-1"),
        "QUERY_STRING": request.query.decode("latin-1"),
        "REQUEST_URI": (request.raw_path + (b"?" + request.query if request.query else b"")).decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port or (443 if request.scheme == "https" else 80)),
        "SERVER_PROTOCOL": f"HTTP/{request.http_version}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": request.scheme,
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": multithread,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if request.client is not None:
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = request.client[0], str(request.client[1])
    for raw_name, raw_value in request.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if "_" in name:
            continue  # `x_user` and `x-user` would be the same here: nobody may pass one off as the other
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        if key in environ:
            value = environ[key] + ("; " if key == "HTTP_COOKIE" else ",") + value
        environ[key] = value
    return environ


def _latin(text: str) -> str:
    """The bytes of a text, each as one character: the strings of WSGI."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def _head_of(status: Any, headers: Any) -> ResponseStarted:
    if not isinstance(status, str) or not status[:3].isdecimal() or status[3:4] not in ("", " "):
        raise RuntimeError(f"the status of start_response() is a str such as '200 OK', not {status!r}")
    code = int(status[:3])
    if code < 200:
        raise RuntimeError(f"the status of start_response() is 200 to 999, not {status!r}")
    try:
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    except (AttributeError, TypeError, ValueError):
        raise RuntimeError(f"the headers of start_response() are pairs of str, not {headers!r:.200}") from None
    return ResponseStarted(code, headers_of(encoded, "start_response()"))
