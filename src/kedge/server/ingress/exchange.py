"""One request and the call that answers it: one input of a call of its own.

What belongs to the body or the messages passes by the plane as events, bounded by bytes in both directions
(`model.web`). The slot is the code's until it has really ended; the client is done with as soon as its response is
whole. So an exchange may outlive its visitor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kedge.model import protocol as p
from kedge.model.payload import INTERNAL_FAILURE, SUCCESS, ErrorInfo, Payload, Result
from kedge.model.web import WEB_CREDIT, WEB_WINDOW, Received, Sent
from kedge.server.ingress.replies import Refusal, refusal_of, refusal_of_call

if TYPE_CHECKING:
    from kedge.server.ingress.ingress import Ingress


class Visitor(Protocol):
    """The client's side of an exchange."""

    def dispatched(self) -> None:
        """A container has the request: it can be told more."""

    def answered(self, events: list[Sent]) -> None:
        """What the code sends, in its order."""

    def credited(self) -> None:
        """The code has read something: there may be room for more."""

    def ended(self, refusal: Refusal, clean: bool) -> None:
        """The code has ended and will send nothing more; `refusal` is for who has had no response, `clean` says that
        the code has returned."""


class Exchange:
    __slots__ = (
        "_again",
        "_ingress",
        "_owed",
        "_under_way",
        "answered",
        "call",
        "has_container",
        "long",
        "method",
        "name",
        "payload",
        "pool",
        "visitor",
    )

    def __init__(
        self,
        ingress: Ingress,
        visitor: Visitor,
        pool: str,
        method: str,
        name: str,
        payload: Payload,
        long: bool,
        again: bool,
    ) -> None:
        self._ingress = ingress
        self.visitor: Visitor | None = visitor
        """None as soon as no client waits for anything."""
        self.call = ""
        self.pool = pool
        self.method = method
        self.name = name
        """Of the function, for people."""
        self.payload = payload
        self.long = long
        """More of the request follows."""
        self.has_container = False
        """Known only where it is long."""
        self.answered = False
        self._again = again
        """Where its container dies before it has answered, the request may be given to another: it has no body, and
        asks for nothing but an answer."""
        self._under_way = 0
        self._owed = 0

    def __repr__(self) -> str:
        return f"<Exchange {self.call} with {self.name}>"

    # ------------------------------------------------------------ by the visitor

    def begin(self) -> None:
        self.call = self._ingress.new_call()
        self._ingress.submit(self)

    def has_room(self, size: int, ahead: int = 0) -> bool:
        """Whether so much may be sent now, after `ahead` bytes that are about to be. It may be more than the window."""
        ahead += self._under_way
        return ahead < WEB_CREDIT or ahead + size <= WEB_WINDOW

    def send(self, events: list[Received], size: int) -> bool:
        """Tells the code something of `size` bytes. False where no container has the request (yet)."""
        self._under_way += size
        return self._ingress.driver.relay_request(p.WebReceived(self.call, events))

    def taken(self, size: int) -> None:
        """The client has so much of what the code has sent."""
        self._owed += size
        if self._owed >= WEB_CREDIT and self.visitor is not None:
            owed, self._owed = self._owed, 0
            self._ingress.driver.relay_request(p.WebCredited(self.call, owed))

    def leave(self) -> None:
        """The client has all that it waited for; the code may go on."""
        self.visitor = None

    def abandon(self) -> None:
        """Nobody waits any more: the code is cancelled, wherever it is."""
        self.visitor = None
        self._ingress.cancel(self)

    # ------------------------------------------------------------ by the ingress

    def dispatched(self) -> None:
        self.has_container = True
        if self.visitor is not None:
            self.visitor.dispatched()

    def heard(self, message: p.WebSent | p.WebCredited) -> None:
        visitor = self.visitor
        if type(message) is p.WebCredited:
            self._under_way = max(0, self._under_way - message.size)
            if visitor is not None:
                visitor.credited()
        elif visitor is not None:
            self.answered = True
            visitor.answered(message.events)  # type: ignore[union-attr]

    def ended(self, result: Result | ErrorInfo) -> None:
        visitor = self.visitor
        if visitor is None:
            return
        if isinstance(result, ErrorInfo):
            visitor.ended(refusal_of_call(result, self.name), False)
        elif result.status == INTERNAL_FAILURE and self._again and not self.answered:
            self._again = False
            try:
                self.begin()
            except Refusal as refusal:
                visitor.ended(refusal, False)
        else:
            visitor.ended(refusal_of(result, self.name, self._ingress.app_name(self.pool)), result.status == SUCCESS)
