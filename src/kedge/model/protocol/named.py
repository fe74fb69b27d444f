"""Data that outlives calls, under a name or for one session: secrets, dicts, queues, volumes.

All of it is asked for by clients, also by code in containers, which is a client of its own. All but ItemsSettled is
answered by a Reply, whose value the docstrings tell.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from kedge.model.payload import Payload
from kedge.model.protocol.base import Message
from kedge.model.spec import MAIN_ENVIRONMENT

# ---------------------------------------------------------------- secrets


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


# ---------------------------------------------------------------- dicts and queues


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


# ---------------------------------------------------------------- volumes


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
    [[path, why]]}. PermissionDeniedError unless the Hello of its connection has proved that it is this container."""

    request: int
    volume: str
    container: str


class VolumeReloaded(Message, frozen=True):
    """From a program in a container: it wants to see what others have committed. What it has written itself is
    committed first. VolumeBusyError where it has files open. Otherwise as VolumeCommitted."""

    request: int
    volume: str
    container: str
