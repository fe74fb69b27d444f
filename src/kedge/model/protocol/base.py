"""What all conversations share: the base of messages, the greeting, the answer to a request, the farewell."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from kedge.model.payload import ErrorInfo

PROTOCOL_VERSION = 1

CLIENT = "client"
CONTAINER = "container"


class Message(Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of all messages. Tagged with the class name, encoded as an array: a name is used once, and new fields come
    last."""


# ---------------------------------------------------------------- both directions, before anything else


class Hello(Message, frozen=True):
    """The first message of a connection: who is there. Anything else first is refused."""

    role: str
    identity: str = ""
    """A container's id, also where the client is code in a container; empty for every other client."""
    token: str = ""
    version: int = PROTOCOL_VERSION
    python: str = ""
    process: int = 0


class Welcome(Message, frozen=True):
    session: str
    version: int = PROTOCOL_VERSION
    server: str = ""
    home: str = ""
    """KEDGE_HOME of the server, where payload files are written and read; empty where this session has none."""
    web: str = ""
    """Where its ingress answers: `http://127.0.0.1:5334`, without a slash at the end; empty where it has none."""
    web_domain: str = ""
    """Hosts `LABEL.web_domain` lead there as well: `localhost:5334`."""


class Refused(Message, frozen=True):
    """The connection is closed after this."""

    reason: str


# ---------------------------------------------------------------- plane → client


class Reply(Message, frozen=True):
    """Answers the request of the same number."""

    request: int
    value: Any = None
    error: ErrorInfo | None = None


class Notice(Message, frozen=True):
    """Something a person should read once: waiting for room, running without the image, a crash loop."""

    app: str
    text: str
    level: str = "info"


# ---------------------------------------------------------------- client → plane, shell → plane


class SessionClosed(Message, frozen=True):
    """Said by a client that leaves on purpose, and by the shell when a connection is gone: what only this session
    waited for is cancelled, its ephemeral apps stop."""

    reason: str = ""
