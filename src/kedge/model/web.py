"""HTTP requests and WebSockets on their way between the ingress and the code that answers them.

A request is one input: its payload (format `WEB`) is a `Request`. What follows of its body, and all that is answered,
passes by the plane as events in `WebReceived` and `WebSent`. Both directions are bounded by bytes: a sender may have
`WEB_WINDOW` bytes of bodies and messages under way that its reader has not credited. A reader credits what it has taken
as soon as that is `WEB_CREDIT`, and never less; so what can go only whole, a message, may go when less than that is
under way, however large it is, and small exchanges need no credits at all.
"""

from __future__ import annotations

from msgspec import Struct

WEB = "w"
"""Format of a payload that is a Request."""

WEB_WINDOW = 256 * 1024
"""Bytes of one exchange that may be under way in one direction, but for a single message that is larger."""
WEB_CREDIT = WEB_WINDOW // 4
"""Bytes that are credited at once: few messages, and a sender that never runs dry."""
WEB_MESSAGE = 64
"""Bytes that a message of a WebSocket counts beside its own: even empty ones take memory where they wait."""

HTTP = "http"
WEBSOCKET = "websocket"


class Request(Struct, frozen=True, array_like=True, gc=False):
    """The head of a request, and its body where that was short and has come whole."""

    kind: str = HTTP
    """HTTP or WEBSOCKET."""
    method: str = "GET"
    path: str = "/"
    """Decoded, with `root_path` in front, as ASGI wants it."""
    raw_path: bytes = b"/"
    """As it was sent, without the query."""
    query: bytes = b""
    root_path: str = ""
    """`/label` where the address has the label in its path, else empty."""
    http_version: str = "1.1"
    scheme: str = "http"
    """http, https, ws or wss."""
    headers: list[tuple[bytes, bytes]] = []
    """Names in lower case, in their order, without those of the connection itself."""
    client: tuple[str, int] | None = None
    server: tuple[str, int | None] | None = None
    subprotocols: list[str] = []
    body: bytes = b""
    more_body: bool = False
    """Whether BodyReceived events follow."""


class WebEvent(Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of what either side says after the Request."""


# ---------------------------------------------------------------- ingress → container


class BodyReceived(WebEvent, frozen=True):
    data: bytes
    more: bool = True


class MessageReceived(WebEvent, frozen=True):
    """One WebSocket message. That of a text is in UTF-8."""

    data: bytes
    text: bool = False


class Disconnected(WebEvent, frozen=True):
    """The client is gone. An HTTP request is cancelled as well; a WebSocket's code has a moment to end by itself."""

    code: int = 1005
    reason: str = ""


# ---------------------------------------------------------------- container → ingress


class ResponseStarted(WebEvent, frozen=True):
    """Also the refusal of a WebSocket by an HTTP response."""

    status: int
    headers: list[tuple[bytes, bytes]] = []


class BodySent(WebEvent, frozen=True):
    data: bytes
    more: bool = True


class SocketAccepted(WebEvent, frozen=True):
    subprotocol: str | None = None
    headers: list[tuple[bytes, bytes]] = []


class MessageSent(WebEvent, frozen=True):
    data: bytes
    text: bool = False


class SocketClosed(WebEvent, frozen=True):
    """Before SocketAccepted: the WebSocket is refused, with 403."""

    code: int = 1000
    reason: str = ""


Received = BodyReceived | MessageReceived | Disconnected
Sent = ResponseStarted | BodySent | SocketAccepted | MessageSent | SocketClosed
