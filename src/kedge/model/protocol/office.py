"""What people who look after a server see and do: lists, statistics, tokens, and what containers print."""

from __future__ import annotations

from kedge.model.protocol.base import Message

# ---------------------------------------------------------------- client → plane: what there is


class AppsRequested(Message, frozen=True):
    """Reply: [{"app", "name", "environment", "state", "version", "tag", "deployed_at", "ephemeral", "containers",
    "functions", "labels"}]; with `history` of one app: its versions, newest first."""

    request: int
    environment: str = ""
    """Empty: all of them."""
    name: str = ""
    history: bool = False


class ContainersRequested(Message, frozen=True):
    """Reply: [{"container", "app", "app_name", "function", "state", "process", "inputs", "age_s", "launch": {...}}]."""

    request: int
    app: str = ""
    container: str = ""
    secrets: bool = False
    """`launch` has the values of secrets, too: for a program that is to run as the container does."""


class FunctionsRequested(Message, frozen=True):
    """Reply: one dict per function, with its settings, its pools' statistics, its addresses and its next scheduled
    run."""

    request: int
    environment: str = ""
    app: str = ""
    function: str = ""
    secrets: bool = False
    """As in ContainersRequested."""


class CallsRequested(Message, frozen=True):
    """Reply: calls of a function, newest first: those that are open, and durable ones that are over."""

    request: int
    function: str
    limit: int = 100


class StatisticsRequested(Message, frozen=True):
    """`pool` of one function, or every pool of `app`, or everything."""

    request: int
    pool: str = ""
    app: str = ""


class ServerRequested(Message, frozen=True):
    """Reply: what there is to know of the server itself: addresses, machine, versions, disk, failures."""

    request: int


# ---------------------------------------------------------------- client → plane: what is done


class TokensChanged(Message, frozen=True):
    """`action` is "create" (Reply: {"id", "secret"}, said only once), "list" ([{"id", "kind", "name", "created_at"}])
    or "delete". `kind` is "api" (to use this server over TCP) or "proxy" (to call web functions with
    requires_proxy_auth)."""

    request: int
    action: str
    kind: str = ""
    name: str = ""
    id: str = ""


class ContainerStopRequested(Message, frozen=True):
    """Ends one container: when its inputs have finished (`graceful`), else at once; its inputs then run again."""

    request: int
    container: str
    graceful: bool = True


# ---------------------------------------------------------------- output

RECORDS = 3
"""`stream` of an OutputCaptured whose data are records."""


class OutputSubscribed(Message, frozen=True):
    """From now on this session gets OutputCaptured of the app's containers."""

    app: str


class OutputCaptured(Message, frozen=True):
    """Bytes a container wrote: `stream` is 1 (stdout) or 2 (stderr). Not seen by the core.

    From the supervisor, 1 and 2 are what came through the file descriptors themselves, and RECORDS carries what Python
    code wrote, framed with its input (`wire.records`). Clients get the latter taken apart, with the fields below; no
    data tells them that the container has ended."""

    container: str
    stream: int
    data: bytes
    at: float = 0.0
    app: str = ""
    pool: str = ""
    call: str = ""
    """The input that wrote it; empty for code beside all inputs, and where `raw`."""
    index: int = -1
    attempt: int = 0
    method: str = ""
    writer: int = 0
    """Tells apart threads and processes that write for the same input at the same time."""
    raw: bool = False
    """Written to the descriptor by C code or a child process: which input it was is not known."""


# ---------------------------------------------------------------- plane → store


class Remarked(Message, frozen=True):
    """To the store: what the log of an app should say about a pool or a container, since nobody may be there to hear
    it."""

    pool: str
    text: str
    container: str = ""
