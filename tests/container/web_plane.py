"""A plane that also plays the ingress: sends requests to a container and collects what its code answers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import fastapi  # loaded once, and not in every container: they are forks of this process
import flask
import msgspec

from kedge.model.payload import ErrorInfo, Payload
from kedge.model.protocol import ContainerFailed, Dispatch, InputsDispatched, WebCredited, WebReceived, WebSent
from kedge.model.spec import Concurrency, FunctionSpec, MethodSpec, WebSpec
from kedge.model.web import (
    WEB,
    WEB_MESSAGE,
    WEBSOCKET,
    BodyReceived,
    BodySent,
    Disconnected,
    MessageReceived,
    MessageSent,
    Request,
    ResponseStarted,
    SocketAccepted,
    SocketClosed,
)
from tests.container.fake_plane import FakePlane

HELD = (fastapi, flask)


def web_function(
    name: str, max_inputs: int = 1, kind: str = "asgi_app", *, module: str = "gallery", **more: Any
) -> Any:
    """The spec of a web function; what belongs to WebSpec goes there."""
    fields = {field: more.pop(field) for field in WebSpec.__struct_fields__ if field in more}
    methods = more.pop("methods", None)
    if methods is None:
        methods = (MethodSpec(is_async=more.pop("is_async", False), web=WebSpec(kind=kind, **fields)),)
    concurrency = Concurrency(max_inputs, max_inputs, max_inputs > 1)
    return FunctionSpec(name=name, module=module, qualname=name, methods=methods, concurrency=concurrency, **more)


class Visit:
    """One request, as its client sees it."""

    def __init__(self, plane: WebPlane, dispatch: Dispatch) -> None:
        self.plane = plane
        self.dispatch = dispatch
        self.lease = dispatch.lease
        self.events: list[Any] = []
        self.frames = 0
        self.credited = 0
        """Bytes of its body that the code has taken."""
        self.auto_credit = True

    def body(self, data: bytes, more: bool = True) -> None:
        self.plane.send(WebReceived(self.dispatch.call, [BodyReceived(data, more)]))

    def say(self, message: str | bytes) -> None:
        data = message.encode() if isinstance(message, str) else message
        self.plane.send(WebReceived(self.dispatch.call, [MessageReceived(data, isinstance(message, str))]))

    def hang_up(self, code: int = 1001) -> None:
        self.plane.send(WebReceived(self.dispatch.call, [Disconnected(code)]))

    def cancel(self) -> None:
        self.plane.cancel(self.lease)

    def credit(self, size: int) -> None:
        self.plane.send(WebCredited(self.dispatch.call, size))

    # ------------------------------------------------------------ what has come

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def head(self) -> ResponseStarted:
        return self.plane.until(lambda: self.of(ResponseStarted))[0]

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode().lower(): value.decode() for name, value in self.head.headers}

    @property
    def received(self) -> bytes:
        """What has come of the body so far."""
        return b"".join(event.data for event in self.of(BodySent))

    @property
    def complete(self) -> bool:
        return any(not event.more for event in self.of(BodySent)) or bool(self.of(SocketClosed))

    @property
    def content(self) -> bytes:
        """The whole body."""
        self.plane.until(lambda: self.complete or self.lease in self.plane.finished)
        assert self.complete, f"{self.plane.finished[self.lease]}\n{self.plane.errors()}"
        return self.received

    @property
    def text(self) -> str:
        return self.content.decode()

    def json(self) -> Any:
        return msgspec.json.decode(self.content)

    @property
    def result(self) -> Any:
        return self.plane.result(self.lease).result

    @property
    def accepted(self) -> SocketAccepted:
        return self.plane.until(lambda: self.of(SocketAccepted))[0]

    @property
    def closed(self) -> SocketClosed:
        return self.plane.until(lambda: self.of(SocketClosed))[0]

    def heard(self, count: int) -> list[Any]:
        """The first messages of a WebSocket."""
        found = self.plane.until(lambda: len(self.of(MessageSent)) >= count and self.of(MessageSent))
        return [event.data.decode() if event.text else event.data for event in found[:count]]


class WebPlane(FakePlane):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.visits: dict[str, Visit] = {}
        self._seen = 0

    def visit(
        self,
        path: str = "/",
        method: str = "GET",
        body: bytes = b"",
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
        *,
        function: str = "",
        timeout: float = 0.0,
        auto_credit: bool = True,
        **more: Any,
    ) -> Visit:
        """Sends a request. `function` is the method of a class."""
        path, _, query = path.partition("?")
        pairs = headers.items() if isinstance(headers, dict) else headers or ()
        given = [(name.lower().encode(), value.encode()) for name, value in pairs]
        if body and not more.get("more_body") and "content-length" not in dict(pairs):
            given.append((b"content-length", str(len(body)).encode()))
        root = more.get("root_path", "")
        fields = {
            "method": method,
            "path": root + path,
            "raw_path": (root + path).encode(),
            "query": query.encode(),
            "headers": [(b"host", b"shop.test"), *given],
            "body": body,
            "client": ("10.1.2.3", 4567),
            "server": ("shop.test", 80),
        }
        request = Request(**(fields | more))
        payload = Payload(WEB, msgspec.msgpack.encode(request))
        self._leases += 1
        lease = self._leases
        dispatch = Dispatch(lease, f"fc-{lease:08x}", 0, function, payload, stream=True, timeout=timeout)
        visit = self.visits[dispatch.call] = Visit(self, dispatch)
        visit.auto_credit = auto_credit
        self.send(InputsDispatched([dispatch]))
        return visit

    def failure(self) -> ErrorInfo:
        """Why the container could not start."""
        error: ErrorInfo = self.wait_for(ContainerFailed).error
        return error

    def socket(self, path: str = "/", **more: Any) -> Visit:
        return self.visit(path, kind=WEBSOCKET, scheme="ws", **more)

    def stop(self) -> None:
        try:
            os.killpg(self.process, signal.SIGKILL)  # with the servers that user code has started
        except ProcessLookupError:
            pass
        super().stop()

    def poll(self, timeout: float) -> None:
        super().poll(timeout)
        fresh, self._seen = self.messages[self._seen :], len(self.messages)
        for message in fresh:
            if isinstance(message, WebSent):
                visit = self.visits[message.call]
                visit.events += message.events
                visit.frames += 1
                size = sum(len(event.data) for event in message.events if isinstance(event, (BodySent, MessageSent)))
                size += WEB_MESSAGE * sum(isinstance(event, MessageSent) for event in message.events)
                if size and visit.auto_credit:
                    self.send(WebCredited(message.call, size))
            elif isinstance(message, WebCredited):
                self.visits[message.call].credited += message.size
