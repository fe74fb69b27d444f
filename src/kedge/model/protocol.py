"""Every message of the system: frozen, tagged, one file.

The message that crosses a socket is the event the core handles; the receiver adds only the sender (from the
connection). A command of the core is an addressed message: `(recipient, message)`. Messages carry lists, because
frames, events, commands and deliveries all travel in batches. Fields are only ever added, with defaults.

Who sends what:

* a **session** is one connection of an SDK process (client);
* a **container** connects by itself and proves its id with the token of its `Launch`;
* the **engine** makes containers exist and reports facts about them.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from kedge.model.gpus import GpuDevice
from kedge.model.payload import ErrorInfo, Payload, Result
from kedge.model.spec import MAIN_ENVIRONMENT, AppSpec, Concurrency, ImageSpec, Launch, Variant, VolumeMount
from kedge.model.web import Received, Sent

PROTOCOL_VERSION = 1

STREAM_WINDOW = 64
"""Values of a generator that every attempt may send before its reader has credited any. The reader credits what it has
taken, and what it drops because it has had it from an earlier attempt."""

RECORDS = 3
"""`stream` of an OutputCaptured whose data are records."""

ROLLING = "rolling"
RECREATE = "recreate"
STRATEGIES = (ROLLING, RECREATE)

CLIENT = "client"
CONTAINER = "container"


class Message(Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of all messages. Tagged with the class name, encoded as an array."""


# ---------------------------------------------------------------- both directions, before anything else


class Hello(Message, frozen=True):
    """The first message of a connection: who is there. Anything else first is refused."""

    role: str
    identity: str = ""
    """A container's id; empty for a client."""
    token: str = ""
    version: int = PROTOCOL_VERSION
    python: str = ""
    process: int = 0


class Welcome(Message, frozen=True):
    session: str
    version: int = PROTOCOL_VERSION
    server: str = ""
    home: str = ""
    """KEDGE_HOME of the server, where payload files are written and read."""
    web: str = ""
    """Where its ingress answers: `http://127.0.0.1:5334`, without a slash at the end; empty where it has none."""
    web_domain: str = ""
    """Hosts `LABEL.web_domain` lead there as well: `localhost:5334`."""


class Refused(Message, frozen=True):
    """The connection is closed after this."""

    reason: str


# ---------------------------------------------------------------- client → plane


class AppCreated(Message, frozen=True):
    request: int
    app: AppSpec


class AppStopped(Message, frozen=True):
    """Ends an app: queued inputs close, running ones are cancelled, containers go."""

    app: str
    request: int = 0
    reason: str = "stopped by its owner"


class AppDeployed(Message, frozen=True):
    """A new version of a deployed app (`app.deployment` and `app.version` are given by the server), or of a served one,
    which ends with its session (`app.ephemeral`).

    One container of each function is started first. Where one cannot come up, the old version goes on serving and the
    Reply has the reason; otherwise calls by name and by label go to the new version from then on, and the old one
    finishes what it has. Reply: {"app": id of the deployment, "version": n, "labels": {function or Class.method:
    label}} once that is on disk. Meanwhile the session gets Notices of level "deploy"."""

    request: int
    app: AppSpec
    strategy: str = ROLLING


class AppRolledBack(Message, frozen=True):
    """Brings an earlier version back, as a new one. Answered like AppDeployed, and with "origin_version"."""

    request: int
    name: str
    environment: str = MAIN_ENVIRONMENT
    version: int | None = None
    """None: the one before the current."""
    strategy: str = ROLLING


class FunctionRequested(Message, frozen=True):
    """Looks up one function: by its id (`function`), or by names. Reply: {"app": id to call it under, "name",
    "environment", "version", "spec": FunctionSpec, "labels": {method: label}}; NotFoundError says what there is
    instead.

    With an empty `name` and `function` it looks up the app alone: the Reply has no "spec"."""

    request: int
    function: str = ""
    app: str = ""
    name: str = ""
    environment: str = MAIN_ENVIRONMENT
    version: int | None = None


class CodeUploaded(Message, frozen=True):
    """Files of a snapshot, for a server that does not share the client's disk. With `last` they are complete: Reply is
    {"root": directory}. `files` is (relative path, content); an empty list with `last` asks whether it is there: then
    the Reply is {"root": directory or ""}."""

    request: int
    digest: str
    files: list[tuple[str, bytes]] = []
    last: bool = False


class ImageRequested(Message, frozen=True):
    """Has an image built, unless it is there. Reply: {"id": `im-…`, "cached": bool, "seconds": s}; ImageBuildError says
    which step failed, with its last lines. Meanwhile the session gets ImageProgressed."""

    request: int
    image: ImageSpec
    """Bound: its steps have their files, at the server."""
    force: bool = False
    """Build every step anew."""
    ignore_cache: bool = False
    publish: str = ""
    """A name that the image is kept under as well (`Image.from_name`)."""


class FilesOffered(Message, frozen=True):
    """Files that an image reads, for a server that does not share the client's disk: (path, hash, size, executable) of
    each. Reply: {"root": directory} where their contents are all there, else {"missing": [hashes]}, which FilesSent
    brings. Without entries it asks whether the whole is there; where it is not, none are missing."""

    request: int
    digest: str
    """`wire.trees.digest_of` the entries."""
    entries: list[tuple[str, str, int, bool]] = []


class FilesSent(Message, frozen=True):
    """Bytes `offset` and following of one content. With `last` it is complete. Reply: {"size": bytes that are
    there}."""

    request: int
    hash: str
    executable: bool
    offset: int
    data: bytes
    last: bool = False


class ImageProgressed(Message, frozen=True):
    """To the client that has requested an image: how its build goes."""

    request: int
    state: str
    """waiting (somebody else builds it), started (a step), output (lines of it), finished (a step), cached."""
    step: int = 0
    """Counted from 1; 0: about the whole."""
    steps: int = 0
    title: str = ""
    text: str = ""
    seconds: float = 0.0


class SecretsChanged(Message, frozen=True):
    """`action` is one of:

    * "keep": values without a name, for the apps of this session. Reply: {"id"};
    * "create" (AlreadyExistsError where the name is taken), "create_missing" (then that one stays), "replace", "update"
      (other variables stay, NotFoundError where there is none), "info" (InvalidError where one of `required_keys` is
      missing). Reply: {"name", "environment", "keys", "created_at", "updated_at"};
    * "delete", and "list", whose Reply is a list of those.

    Nobody is told the values."""

    request: int
    action: str
    name: str = ""
    environment: str = MAIN_ENVIRONMENT
    values: dict[str, str] = {}
    required_keys: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"SecretsChanged({self.action!r}, {self.name!r}, {self.environment!r}, {len(self.values)} values)"

    def __rich_repr__(self) -> Any:
        yield repr(self)


class ObjectsRequested(Message, frozen=True):
    """About dicts and queues (`kind`) as such. `action` is one of:

    * "find": Reply is its facts: {"id", "kind", "name", "environment", "created_at"}. With `create` it is made
      where there is none;
    * "create": AlreadyExistsError where the name is taken. Without a name it is ephemeral, and ends with this session;
    * "delete": by `id`, or by name;
    * "list": Reply is a list of facts, by name, with "size"."""

    request: int
    kind: str
    action: str
    name: str = ""
    environment: str = MAIN_ENVIRONMENT
    id: str = ""
    create: bool = False


class EntriesRequested(Message, frozen=True):
    """Reads a dict. `what` is "values" (of `keys`; Reply: [payload or None]), "page" (Reply: {"entries": [[key,
    payload]], "after": where the next page begins, None: this is the last}), "keys" (the same without payloads), "has"
    ([bool] of `keys`) or "count"."""

    request: int
    object: str
    what: str
    keys: list[bytes] = []
    after: int = 0


class EntriesChanged(Message, frozen=True):
    """Changes a dict, all or nothing: `clear` first, then `entries` are put (`only_missing`: those that are not there),
    or `keys` are removed. Reply: how many were put, or the payloads of what was removed (None: it was not there)."""

    request: int
    object: str
    token: str
    """Made by the client: a resend is a duplicate, and gets the same answer."""
    entries: list[tuple[bytes, Payload]] = []
    keys: list[bytes] = []
    only_missing: bool = False
    clear: bool = False


class ItemsPut(Message, frozen=True):
    """Adds items to the end of one partition of a queue, all or none. Reply: whether there was room. Where there is
    none it waits for `wait` seconds (None: for ever) behind those that came before."""

    request: int
    object: str
    token: str
    partition: str
    values: list[Payload]
    ttl: float
    """Seconds after which the partition is forgotten, unless more is put."""
    wait: float | None = 0.0


class ItemsWanted(Message, frozen=True):
    """Takes up to `count` items from the front of one partition. Reply: [payload], as soon as there is one; an empty
    list once `wait` seconds are over (None: never). They come back to the front unless ItemsSettled says that they have
    arrived; so they do when the session closes."""

    request: int
    object: str
    token: str
    partition: str
    count: int = 1
    wait: float | None = 0.0


class ItemsSettled(Message, frozen=True):
    """What was asked for by ItemsWanted with this token has arrived (`kept`), or is not wanted any more. Not
    answered."""

    object: str
    token: str
    kept: bool


class ItemsRequested(Message, frozen=True):
    """Looks at a queue. `what` is "count" (of a partition, or of `every` one), "clear" (Reply: how many there were),
    "partitions" (Reply: [[partition, count]]) or "peek" (Reply: [[number, payload]] of items behind the number `after`,
    for which it waits `wait` seconds)."""

    request: int
    object: str
    what: str
    partition: str = ""
    every: bool = False
    after: int = -1
    count: int = 100
    wait: float = 0.0


class VolumeRequested(Message, frozen=True):
    """Looks up a volume by its name or id. Reply: {"id", "name", "environment", "created_at"}."""

    request: int
    name: str = ""
    id: str = ""
    environment: str = MAIN_ENVIRONMENT
    create: bool = False
    """Where there is none of this name."""
    ephemeral: bool = False
    """A new one without a name, which goes with the session."""


class VolumesRequested(Message, frozen=True):
    """Reply: a list of what VolumeRequested gives."""

    request: int
    environment: str = ""
    """Empty: all of them."""


class VolumeChanged(Message, frozen=True):
    """`action` is "create" (of `name` in `environment`: AlreadyExistsError where there is one), "rename" (to `name`),
    "delete", or "release" (one of this session's own without a name goes). Reply: what VolumeRequested gives."""

    request: int
    action: str
    volume: str = ""
    name: str = ""
    environment: str = MAIN_ENVIRONMENT


class VolumeListed(Message, frozen=True):
    """Asks what is in a directory of a volume. Reply: {"entries": [[path, kind, size, mtime, mode]], "more": whether
    there are further ones, behind `after` = the last path}."""

    request: int
    volume: str
    path: str = ""
    recursive: bool = False
    after: str = ""


class VolumeRead(Message, frozen=True):
    """Asks for a part of a file. Reply: {"data", "size": of the whole file, "mode", "handle"}. With the handle of the
    first part the others are of the same content, whatever is committed meanwhile; it is good until the last part was
    given, or `size` is 0."""

    request: int
    volume: str
    path: str = ""
    handle: int = 0
    offset: int = 0
    size: int = 0


class VolumeEdited(Message, frozen=True):
    """`action` is "remove" or "copy" (to `target`): one commit. Reply: None."""

    request: int
    volume: str
    action: str
    paths: list[str]
    target: str = ""
    recursive: bool = False


class UploadPart(Struct, frozen=True, array_like=True, gc=False):
    """What comes at `offset` of a file. Parts of one file come in their order."""

    path: str
    offset: int
    data: bytes
    mode: int = 0o644


class VolumeUploaded(Message, frozen=True):
    """Files for a volume, in parts; each message is answered. They are seen all at once, when the one with `last` has
    been answered, and never where the session ends before."""

    request: int
    volume: str
    upload: str
    """Made by the client."""
    paths: list[str] = []
    """Where files will come: refused before they are sent, where they may not. AlreadyExistsError lists those that are
    there, unless `force`."""
    parts: list[UploadPart] = []
    force: bool = False
    last: bool = False
    abandoned: bool = False
    """Nothing of it is wanted."""


class VolumeCommitted(Message, frozen=True):
    """From a program in a container: what it has written to a volume is to be seen by others. Reply: {"left_out":
    [[path, why]]}."""

    request: int
    volume: str
    container: str


class VolumeReloaded(Message, frozen=True):
    """From a program in a container: it wants to see what others have committed. What it has written itself is
    committed first. VolumeBusyError where it has files open. Reply as for VolumeCommitted."""

    request: int
    volume: str
    container: str


class ContainerStopRequested(Message, frozen=True):
    """Ends one container: when its inputs have finished (`graceful`), else at once; its inputs then run again."""

    request: int
    container: str
    graceful: bool = True


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


class TokensChanged(Message, frozen=True):
    """`action` is "create" (Reply: {"id", "secret"}, said only once), "list" ([{"id", "kind", "name", "created_at"}])
    or "delete". `kind` is "api" (to use this server over TCP) or "proxy" (to call web functions with
    requires_proxy_auth)."""

    request: int
    action: str
    kind: str = ""
    name: str = ""
    id: str = ""


class ServerRequested(Message, frozen=True):
    """Reply: what there is to know of the server itself: addresses, machine, versions, disk, failures."""

    request: int


class VariantBound(Message, frozen=True):
    """Announces a pool for parameters or options before its first input."""

    variant: Variant


class InputsSubmitted(Message, frozen=True):
    """Consecutive inputs `first`, `first + 1`, … of one call. Known ones are duplicates and are dropped."""

    call: str
    pool: str
    first: int
    payloads: list[Payload]
    method: str = ""
    durable: bool = False
    """A spawned call: survives its caller, and its results are kept until they expire."""
    parent: str = ""
    """Input id of the caller where the call is made inside a container."""
    stream: bool = False
    """A generator: values travel as StreamValues, the result only closes the stream."""
    total: int = -1
    """The number of inputs of the whole call, where it is known already; saves a CallClosed."""
    timeout: float = 0.0
    """Seconds that each input of this call may run; 0: as long as its function says."""
    queue_timeout: float = 0.0
    """Seconds that each of them may wait for its first slot; 0: as long as its function says."""


class CallClosed(Message, frozen=True):
    """No further inputs: the call has `total` of them."""

    call: str
    total: int


class CallCancelled(Message, frozen=True):
    call: str
    terminate_containers: bool = False
    indices: list[int] | None = None
    """None: the whole call."""
    request: int = 0
    """Answered by a Reply without a value, where it is not 0."""


class OutputsRequested(Message, frozen=True):
    """Asks for the results of a durable call, `start` up to `end` (exclusive; None: all). Answered by OutputsDelivered
    as they come, and by CallRefused where there is no such call, or none that could ever have these results."""

    call: str
    start: int = 0
    end: int | None = None
    request: int = 0


class OutputsForgotten(Message, frozen=True):
    """The session no longer waits for these results."""

    call: str
    request: int = 0


class StreamCredited(Message, frozen=True):
    """The reader of a stream takes `values` more of them. Relayed to the container, not seen by the core."""

    call: str
    index: int
    values: int


class StatisticsRequested(Message, frozen=True):
    """`pool` of one function, or every pool of `app`, or everything."""

    request: int
    pool: str = ""
    app: str = ""


class AutoscalerUpdated(Message, frozen=True):
    """Live override until the app is created anew. None leaves a setting as it is."""

    request: int
    pool: str
    min_containers: int | None = None
    max_containers: int | None = None
    buffer_containers: int | None = None
    scaledown_window: float | None = None


class ConcurrencyUpdated(Message, frozen=True):
    """Live change of `@concurrent` until the app is created anew. None leaves a number as it is."""

    request: int
    pool: str
    max_inputs: int | None = None
    target_inputs: int | None = None


class CallRequested(Message, frozen=True):
    """Asks what is known of a call: answered by Reply with {"inputs": n, "done": m, "status": [...]}."""

    request: int
    call: str


class OutputSubscribed(Message, frozen=True):
    """From now on this session gets OutputCaptured of the app's containers."""

    app: str


class SessionClosed(Message, frozen=True):
    """Said by a client that leaves on purpose, and by the shell when a connection is gone: what only this session
    waited for is cancelled, its ephemeral apps stop."""

    reason: str = ""


# ---------------------------------------------------------------- plane → client


class Output(Struct, frozen=True, array_like=True, gc=False):
    index: int
    result: Result


class OutputsDelivered(Message, frozen=True):
    call: str
    outputs: list[Output]
    request: int = 0


class InputsAccepted(Message, frozen=True):
    """A durable call's inputs are on disk."""

    call: str
    first: int
    count: int


class CallRefused(Message, frozen=True):
    """The call cannot run at all: no such pool, its app has stopped, or it is unknown or expired."""

    call: str
    error: ErrorInfo
    request: int = 0


class StreamValues(Message, frozen=True):
    """Values `first`, `first + 1`, … of a generator. From the container, relayed to the caller."""

    call: str
    index: int
    first: int
    values: list[Payload]


class Notice(Message, frozen=True):
    """Something a person should read once: waiting for room, running without the image, a crash loop."""

    app: str
    text: str
    level: str = "info"


class Reply(Message, frozen=True):
    """Answers the request of the same number."""

    request: int
    value: Any = None
    error: ErrorInfo | None = None


# ---------------------------------------------------------------- ingress ↔ container, not seen by the core


class WebReceived(Message, frozen=True):
    """What follows a Request, in its order."""

    call: str
    events: list[Received]


class WebSent(Message, frozen=True):
    """What the code of a Request answers, in its order."""

    call: str
    events: list[Sent]


class WebCredited(Message, frozen=True):
    """The reader of one direction has taken so many bytes of bodies or messages: as many more may follow."""

    call: str
    size: int


# ---------------------------------------------------------------- plane → container


class Dispatch(Struct, frozen=True, array_like=True, gc=False):
    """One input for a container. `lease` names this attempt for the rest of its life: the fence.

    A `credited` one goes beyond the free slots: it is granted, not started, and may be revoked until it starts."""

    lease: int
    call: str
    index: int
    method: str
    payload: Payload
    attempt: int = 0
    credited: bool = False
    stream: bool = False
    timeout: float = 0.0
    """Seconds it may run; 0: as long as its function says."""
    batch: int = 0
    """Inputs of one batch share this number and a slot; 0: it is an input of its own."""
    members: int = 0
    """How many inputs its batch has; they come in one frame after the other, and start together."""


class InputsDispatched(Message, frozen=True):
    inputs: list[Dispatch]


class InputsCancelled(Message, frozen=True):
    """The work of these leases is no longer wanted. `reason` is `cancelled` or `timeout`."""

    leases: list[int]
    reason: str = "cancelled"


class InputsRecalled(Message, frozen=True):
    """Asks credited inputs back. Answered by InputsReturned with those that had not started."""

    leases: list[int]


class ContainerDrained(Message, frozen=True):
    """To a container: take nothing new, finish what runs, run the exit hooks, leave."""

    reason: str = ""
    cancel: bool = False
    """Cancel what runs instead of finishing it."""


class ConcurrencyChanged(Message, frozen=True):
    concurrency: Concurrency


# ---------------------------------------------------------------- container → plane


class ContainerReady(Message, frozen=True):
    """Imports and enter hooks are done; inputs may come."""

    imports: list[str] = []
    """Modules of site-packages that the user's code imported, dearest first: a fork server may hold them."""
    startup_s: float = 0.0


class ContainerFailed(Message, frozen=True):
    """Import or enter hooks failed. The container leaves by itself after this."""

    error: ErrorInfo


class Finished(Struct, frozen=True, array_like=True, gc=False):
    lease: int
    result: Result
    run_s: float = 0.0
    """Seconds from the start of user code to its end."""


class InputsFinished(Message, frozen=True):
    inputs: list[Finished]
    started: list[int] = []
    """Credited leases that have started and not finished."""


class InputsStarted(Message, frozen=True):
    """Credited inputs whose user code is about to run: from now on they are attempts."""

    leases: list[int]


class InputsReturned(Message, frozen=True):
    leases: list[int]


class InputsOverran(Message, frozen=True):
    """The time of these inputs is over and their code was told, but has not ended yet: the caller need not wait."""

    leases: list[int]


class SlotsChanged(Message, frozen=True):
    """The container's own code has changed how many inputs it takes at once, within `max_inputs`."""

    inputs: int


class ContainerLeaving(Message, frozen=True):
    """The container's own code wants it to finish what runs and leave. Answered by ContainerDrained."""

    reason: str = ""


class Heartbeat(Message, frozen=True):
    """Every few seconds while something runs. Silence is a diagnosis, never grounds to kill."""

    running: int
    loop_lag_s: float = 0.0
    loop_blocks: int = 0
    """How often the event loop was blocked for long since the last heartbeat."""


# ---------------------------------------------------------------- plane → engine


class StartContainer(Message, frozen=True):
    container: str
    pool: str
    node: str = ""
    devices: list[int] = []


class KillContainer(Message, frozen=True):
    """Ends a container's process tree after `grace_s` seconds, at once with 0."""

    container: str
    grace_s: float = 0.0


# ---------------------------------------------------------------- engine → plane


class ContainerStarted(Message, frozen=True):
    container: str
    process: int
    how: str = "fork"
    """fork or spawn."""


class ContainerLost(Message, frozen=True):
    """The process is gone, for whatever reason; `expected` where it left by itself with exit code 0."""

    container: str
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False
    peak_memory: int | None = None
    """MiB that its process tree has used at most, where that was measured."""
    blameless: bool = False
    """Its end had nothing to do with what ran in it: whatever held it up has died."""


class ContainerDisconnected(Message, frozen=True):
    """From the shell: the connection of a container is gone while its process may still be there."""

    container: str
    reason: str = ""


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


# ---------------------------------------------------------------- shell → plane, plane → store


class TimePassed(Message, frozen=True):
    """Nothing happened but time: the next deadline is due."""


class NodeJoined(Message, frozen=True):
    """A machine that can hold containers. `gpus` counts further devices by name, of which nothing else is known."""

    node: str
    cpu: float
    memory: int
    gpus: dict[str, int] = {}
    devices: tuple[GpuDevice, ...] = ()


class VramMeasured(Message, frozen=True):
    """GPU memory of containers that share devices, in MiB: the most that the processes of each use of one device."""

    used: dict[str, int]


class NodeLost(Message, frozen=True):
    node: str


class OutputsRecorded(Message, frozen=True):
    """To the store: results of a durable call that must survive."""

    call: str
    outputs: list[Output]
    pool: str = ""
    method: str = ""


class Remarked(Message, frozen=True):
    """To the store: what the log of an app should say about a pool or a container, since nobody may be there to hear
    it."""

    pool: str
    text: str
    container: str = ""


class PayloadReleased(Message, frozen=True):
    """To the store: these payload files held arguments of inputs that will not run again."""

    blobs: list[str]


class OutputsWanted(Message, frozen=True):
    """To the store: send these recorded results to this session as OutputsDelivered.

    With `indices` None the plane does not know the call (any more): the store answers with all that it has recorded
    from `start` up to `end`, and with CallRefused for what is not there."""

    session: str
    call: str
    indices: list[int] | None
    request: int
    start: int = 0
    end: int | None = None


class CallWanted(Message, frozen=True):
    """To the store: answer this session's CallRequested about a call that the plane does not know (any more)."""

    session: str
    call: str
    request: int


class DeploymentChanged(Message, frozen=True):
    """To the store, and back from it after a restart: `app` is the current version of its deployment from now on, or
    the deployment has been stopped. The store answers `session` with `value` when that is on disk."""

    deployment: str
    environment: str
    name: str
    app: str
    """Id of the version's app; empty where it has stopped."""
    version: int
    origin_version: int = 0
    """The version that was brought back; 0 for a new one."""
    session: str = ""
    request: int = 0
    value: Any = None
    versions: dict[int, str] = {}
    """After a restart: the apps of all its versions by number. One that was brought back has several."""


class CallRestored(Message, frozen=True):
    """From the store, for a durable call that the plane does not know and that is not over: what of it is done, as
    (index, status). After a restart, and before inputs that are sent again. Its open inputs follow as
    InputsSubmitted."""

    call: str
    pool: str
    method: str
    total: int
    done: list[tuple[int, str]]


# ---------------------------------------------------------------- server ↔ supervisor (see engines.process)


class ContainerLaunched(Message, frozen=True):
    """To the supervisor: bring this container up."""

    launch: Launch


class ForkServerWarmed(Message, frozen=True):
    """To the supervisor: have a fork server ready for launches like this one."""

    launch: Launch


class VolumeRemounted(Message, frozen=True):
    """To the supervisor: show this version of a volume in a living container, in the place of the one that is there.
    Answered by VolumeAnswered."""

    request: int
    container: str
    mount: VolumeMount


class VolumeAnswered(Message, frozen=True):
    """From the supervisor; `error` says why the mount is as it was (`busy`: files of it are open)."""

    request: int
    error: str = ""


class SupervisorStopped(Message, frozen=True):
    """To the supervisor: kill everything and leave."""


class ForkServerReported(Message, frozen=True):
    """From the supervisor: a fork server is up, or why its environment is started fresh instead."""

    key: str
    process: int
    safe: bool = True
    reason: str = ""
    seconds: float = 0.0


FromClient = (
    Hello
    | AppCreated
    | AppStopped
    | AppDeployed
    | AppRolledBack
    | FunctionRequested
    | CodeUploaded
    | ImageRequested
    | VolumeRequested
    | VolumesRequested
    | VolumeChanged
    | VolumeListed
    | VolumeRead
    | VolumeEdited
    | VolumeUploaded
    | VolumeCommitted
    | VolumeReloaded
    | FilesOffered
    | FilesSent
    | SecretsChanged
    | ObjectsRequested
    | EntriesRequested
    | EntriesChanged
    | ItemsPut
    | ItemsWanted
    | ItemsSettled
    | ItemsRequested
    | ContainerStopRequested
    | AppsRequested
    | ContainersRequested
    | FunctionsRequested
    | CallsRequested
    | TokensChanged
    | ServerRequested
    | VariantBound
    | InputsSubmitted
    | CallClosed
    | CallCancelled
    | OutputsRequested
    | OutputsForgotten
    | StreamCredited
    | StatisticsRequested
    | AutoscalerUpdated
    | ConcurrencyUpdated
    | CallRequested
    | OutputSubscribed
    | SessionClosed
)
ToClient = (
    Welcome
    | Refused
    | OutputsDelivered
    | InputsAccepted
    | CallRefused
    | StreamValues
    | Notice
    | Reply
    | OutputCaptured
    | ImageProgressed
)
FromContainer = (
    Hello
    | ContainerReady
    | ContainerFailed
    | InputsFinished
    | InputsStarted
    | InputsReturned
    | InputsOverran
    | SlotsChanged
    | ContainerLeaving
    | Heartbeat
    | StreamValues
    | WebSent
    | WebCredited
)
ToContainer = (
    Welcome
    | Refused
    | InputsDispatched
    | InputsCancelled
    | InputsRecalled
    | ContainerDrained
    | ConcurrencyChanged
    | StreamCredited
    | WebReceived
    | WebCredited
)
ToSupervisor = ContainerLaunched | ForkServerWarmed | KillContainer | VolumeRemounted | SupervisorStopped
FromSupervisor = ContainerStarted | ContainerLost | OutputCaptured | ForkServerReported | VolumeAnswered
