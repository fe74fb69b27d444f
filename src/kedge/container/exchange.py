"""One request between its code and the ingress: what has come, what is to go, and how much of both is under way.

Neither side sends more than WEB_WINDOW bytes ahead of its reader. What comes waits here until the code takes it, and
is credited in portions as it does. What goes waits here for the next frame. All fields are read and changed under the
outbox's lock.

Nothing here waits. Where there is nothing to take, or no room, a bell is kept and rung once when that may have changed;
tasks and threads wait for it each in their own way (see `asgi` and `wsgi`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kedge.model.payload import TIMEOUT, Result
from kedge.model.protocol import WebCredited, WebSent
from kedge.model.web import (
    WEB_CREDIT,
    WEB_MESSAGE,
    WEB_WINDOW,
    BodyReceived,
    Disconnected,
    MessageReceived,
    Received,
    Request,
    Sent,
)
from kedge.sdk.tracebacks import has_user_frame

if TYPE_CHECKING:
    from kedge.container.outbox import Outbox

SMALLEST_PIECE = 16 * 1024
"""A larger body waits for so much room rather than being cut into crumbs."""
CUT = 1006
"""Code of a WebSocket that ends without a word."""

Bell = Callable[[], object]


class ClientGone(OSError):
    """The client is not there any more. Raised into code that sends to its WebSocket."""


class Exchange:
    __slots__ = (
        "_bells", "_incoming", "_outbox", "_outgoing", "_taken", "_under_way", "begun", "call", "complete", "gone",
        "request", "status",
    )  # fmt: skip

    def __init__(self, outbox: Outbox, call: str) -> None:
        self.call = call
        self.request: Request | None = None
        """Once it has been read."""
        self.begun = False
        """Whether something of the answer has left the code."""
        self.status = 0
        """Of the answer that has begun."""
        self.complete = False
        """Whether the client has its whole answer: what the code does from now on is its own business."""
        self.gone: Disconnected | None = None
        """Nobody wants the answer any more, or the code has ended: nothing comes and nothing goes."""
        self._outbox = outbox
        self._incoming: deque[Received] = deque()
        self._outgoing: list[Sent] = []
        self._taken = 0
        """Bytes that the code has taken and that are not credited yet."""
        self._under_way = 0
        """Bytes that were sent and that the ingress has not credited."""
        self._bells: list[Bell] = []

    # ------------------------------------------------------------ by whoever holds the lock

    def hear(self, events: list[Received]) -> None:
        """What follows of the request."""
        for event in events:
            if type(event) is Disconnected:
                self.gone = self.gone or event
            else:
                self._incoming.append(event)
        self._ring()

    def credit(self, size: int) -> None:
        """The client takes more."""
        self._under_way = max(0, self._under_way - size)
        self._ring()

    def close(self) -> None:
        """The input is cancelled, or its code has ended."""
        self._incoming.clear()
        self.gone = self.gone or Disconnected(CUT)
        self._ring()

    def collect(self) -> list[Any]:
        """What waits for the next frame."""
        messages: list[Any] = []
        if self._outgoing:
            messages.append(WebSent(self.call, self._outgoing))
            self._outgoing = []
        if self._taken >= WEB_CREDIT:
            messages.append(WebCredited(self.call, self._taken))
            self._taken = 0
        return messages

    def _ring(self) -> None:
        if self._bells:
            bells, self._bells = self._bells, []
            for bell in bells:
                bell()

    def epitaph(self, name: str, result: Result) -> str:
        """What the log says where the code of `name` has failed or taken too long."""
        title = "a request" if self.request is None else f"{self.request.method} {self.request.path}"
        if self.complete and self.status == 500:
            what, effect = "raised while answering", "; its client got 500"
        elif self.complete:
            what, effect = "failed after it had answered", ""
        elif self.begun:
            what, effect = "failed in the middle of its answer to", "; its client is cut off"
        else:
            what, effect = "failed at", f"; its client gets {504 if result.status == TIMEOUT else 500}"
        detail = ""
        if (error := result.error) is not None:
            # While a thread runs the user's handler, the stack of the request is the framework's alone.
            framework = result.status == TIMEOUT and not has_user_frame(frame[0] for frame in error.frames)
            detail = f"{error.type}: {error.message}" if framework else error.traceback
        return f"{name} {what} {title}{effect}\n{detail.rstrip()}"

    # ------------------------------------------------------------ by the code

    def take(self, bell: Bell) -> Received | None:
        """The next event; Disconnected, again and again, after the last one. None: wait for the bell."""
        outbox = self._outbox
        with outbox.lock:
            if not self._incoming:
                end = Disconnected() if self.complete else self.gone
                if end is None:
                    self._bells.append(bell)
                return end
            event = self._incoming.popleft()
            if type(event) is MessageReceived:
                self._taken += len(event.data) + WEB_MESSAGE
            elif type(event) is BodyReceived and event.more:
                self._taken += len(event.data)
            if self._taken < WEB_CREDIT:
                return event
            outbox.mark(self, 0)
        # At once: whoever sends a long body stands still without it.
        outbox.flush()
        return event

    def forget(self, bell: Bell) -> None:
        """Nobody waits for this bell any more."""
        with self._outbox.lock:
            if bell in self._bells:
                self._bells.remove(bell)

    def room(self, size: int, bell: Bell | None = None) -> int:
        """How many of `size` bytes of a body may go now. Less than one: wait for the bell."""
        with self._outbox.lock:
            free = WEB_WINDOW - self._under_way
            if self.gone is not None or free >= size:
                return size
            if free >= SMALLEST_PIECE:
                return free
            if bell is not None:
                self._bells.append(bell)
            return -1

    def may_go(self, size: int, bell: Bell | None = None) -> bool:
        """Whether a message of `size` bytes, which cannot be cut, may go now. False: wait for the bell."""
        with self._outbox.lock:
            if self.gone is not None or self._under_way < WEB_CREDIT or self._under_way + size <= WEB_WINDOW:
                return True
            if bell is not None:
                self._bells.append(bell)
            return False

    def put(self, events: list[Sent], size: int, last: bool = False) -> None:
        """Leaves events for the next frame. With the last one, whoever waits for more of the request waits no more."""
        outbox = self._outbox
        with outbox.lock:
            if self.gone is None:
                if not self.begun:
                    self.begun = True
                    self.status = getattr(events[0], "status", 0) if events else 0
                self._under_way += size
                self._outgoing += events
                outbox.mark(self, size)
            if last:
                self.complete = True
                self._ring()
