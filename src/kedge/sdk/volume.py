"""`Volume`: a file system that outlives containers, shared by those that have it mounted, and read from anywhere.

Every operation on the files of a volume is a request to the server; inside a container that has it mounted, its files
are plain files, and `commit` and `reload` say when others see them and it sees theirs.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from functools import partial
from typing import IO, TYPE_CHECKING, Any, ClassVar

from msgspec import Struct, structs

from kedge.exception import AlreadyExistsError, ConnectionError, ExecutionError, InvalidError, NotFoundError
from kedge.model.protocol import (
    VolumeChanged,
    VolumeCommitted,
    VolumeEdited,
    VolumeListed,
    VolumeRead,
    VolumeReloaded,
    VolumeRequested,
)
from kedge.model.spec import VolumeRef
from kedge.sdk import config, context, validation
from kedge.sdk.dual import StaticDual
from kedge.sdk.named import ask, current_client
from kedge.sdk.threaded import both, both_each, both_static
from kedge.sdk.usage import old_spelling, warn

if TYPE_CHECKING:
    from kedge.sdk.client import Client
    from kedge.sdk.volume_objects import Ephemeral, VolumeObjects
    from kedge.sdk.volume_upload import BatchUpload

CHUNK = 4 * 1024 * 1024
"""Bytes of a file that travel at once."""


class FileEntryType(IntEnum):
    UNSPECIFIED = 0
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3


class FileEntry(Struct, frozen=True):
    """Something in a volume."""

    path: str
    """From the root of the volume, without a slash in front."""
    type: FileEntryType
    mtime: int
    """Seconds since the epoch."""
    size: int


class VolumeInfo(Struct, frozen=True):
    name: str | None
    """None for one that goes with its program."""
    created_at: float
    """Seconds since the epoch."""
    volume_id: str
    environment: str


class _NoSuchFile(NotFoundError, FileNotFoundError):
    """Whoever reads files may expect either."""


class _FileExists(AlreadyExistsError, FileExistsError):
    """The same for who writes them."""


_TYPES = {"file": FileEntryType.FILE, "directory": FileEntryType.DIRECTORY, "link": FileEntryType.SYMLINK}


class Volume:
    """Files that outlive containers.

    Containers that mount a volume see it as it was when they started. What they write is committed by itself every few
    seconds, when they end, and by `commit()`; what others have committed is there after `reload()`. Of two who write
    the same file, the later commit wins; other files of other writers stay.

    Example:
        models = kedge.Volume.from_name("models", create_if_missing=True)

        @app.function(image=image, volumes={"/models": models})
        def download(name: str) -> None:
            save_to(f"/models/{name}")
            models.commit()
    """

    objects: ClassVar[_Objects]
    """Makes, lists and deletes those that have a name."""

    def __init__(self, ref: VolumeRef) -> None:
        self._ref = ref
        self._known: tuple[Client, dict[str, Any]] | None = None
        """Whose answer it is, and what that says."""

    # ------------------------------------------------------------ which one

    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        environment_name: str | None = None,
        create_if_missing: bool = False,
        version: int | None = None,
        client: Any = None,
    ) -> Volume:
        """The volume of a name. Nothing is asked until it is used.

        Args:
            name: As `kedge volume list` shows it.
            environment_name: Default: that of the app.
            create_if_missing: Makes it when an app that uses it starts, or when its files are looked at.
            version: Has no meaning in kedge: there is one kind of volume.
        """
        validation.name("Volume.from_name: name", name)
        if name.startswith("."):
            raise InvalidError(f"Volume.from_name: name={name!r} begins with '.'; choose another name")
        validation.flag("Volume.from_name: create_if_missing", create_if_missing)
        environment = "" if environment_name is None else config.environment(environment_name)
        return cls(VolumeRef(target="", name=name, environment=environment, create=create_if_missing))

    @classmethod
    def from_id(cls, volume_id: str, *, client: Any = None) -> Volume:
        """The volume of an id (`vo-…`)."""
        return cls(VolumeRef(target="", id=validation.text("Volume.from_id: volume_id", volume_id)))

    @classmethod
    def ephemeral(
        cls, client: Any = None, environment_name: str | None = None, version: int | None = None
    ) -> Ephemeral:
        """A new volume for the time of a `with` or `async with` block.

        Example:
            with kedge.Volume.ephemeral() as volume, volume.batch_upload() as batch:
                batch.put_file("data.csv", "data.csv")
        """
        from kedge.sdk.volume_objects import Ephemeral

        return Ephemeral()

    def read_only(self) -> Volume:
        """The same volume, mounted so that containers cannot write to it."""
        return self.with_mount_options(read_only=True)

    def with_mount_options(
        self, *, read_only: bool | None = None, sub_path: str | os.PathLike[str] | None = None
    ) -> Volume:
        """The same volume, mounted otherwise. None leaves an option as it is.

        Args:
            read_only: Containers cannot write to it.
            sub_path: They see this directory of it only.
        """
        changes: dict[str, Any] = {}
        if read_only is not None:
            changes["read_only"] = validation.flag("with_mount_options: read_only", read_only)
        if sub_path is not None:
            changes["sub_path"] = _inside("with_mount_options: sub_path", sub_path)
        return Volume(structs.replace(self._ref, **changes))

    @property
    def name(self) -> str | None:
        return self._ref.name or None

    @property
    def object_id(self) -> str:
        """The id of the volume at the server."""
        id: str = self._facts()["id"]
        return id

    def _hydrate(self, client: Any = None) -> Volume:
        """Asks the server for it now. NotFoundError where there is none."""
        self._facts()
        return self

    def _info(self) -> VolumeInfo:
        """What the server knows about it."""
        facts = self._facts()
        return VolumeInfo(facts["name"] or None, facts["created_at"], facts["id"], facts["environment"])

    def ref_at(self, target: str) -> VolumeRef:
        """What a spec says of it, mounted at `target`."""
        return structs.replace(self._ref, target=target)

    def _facts(self) -> dict[str, Any]:
        client = current_client()
        if self._known is None or self._known[0] is not client:
            ref = self._ref
            environment = ref.environment or config.environment()
            self._known = (
                client,
                client.request(lambda n: VolumeRequested(n, ref.name, ref.id, environment, ref.create)),
            )
        return self._known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_ref": self._ref, "_known": None}

    def __repr__(self) -> str:
        return f"Volume {(self._ref.name or self._ref.id)!r}"

    # ------------------------------------------------------------ from inside a container

    def _commit(self) -> None:
        """Makes what this container has written visible to others. Returns when that is on disk.

        Works where the volume is mounted. Containers commit by themselves every few seconds and when they end.
        """
        self._from_inside("commit", VolumeCommitted, "upload files with batch_upload(), which commits them at its end")

    def _reload(self) -> None:
        """Makes what others have committed visible here. What this container has written itself is committed first.

        VolumeBusyError (a RuntimeError) where it has files of the volume open, or a directory of it is the current one.
        """
        self._from_inside("reload", VolumeReloaded, "listdir() and read_file() see the newest commit without it")

    def _from_inside(self, what: str, message: Any, instead: str) -> None:
        here = context.container()
        if here is None:
            raise ExecutionError(
                f"Volume.{what}() works inside a container that has the volume mounted, and this process is none; "
                f"here {instead}"
            )
        id = self.object_id
        answer = ask(lambda number: message(number, id, here.container))
        for path, why in answer["left_out"][:3]:
            warn(f"{path!r} is not kept in the volume {self.name or id}: {why}", UserWarning)

    # ------------------------------------------------------------ looking at files

    def _iterdir(self, path: str = "/", *, recursive: bool = True) -> Iterator[FileEntry]:
        """What is in a directory, one after the other; of a file, that file.

        Args:
            path: Of the directory, or a pattern such as `logs/*.txt`.
            recursive: Also what is in the directories within it.
        """
        id, after = self.object_id, ""
        while True:
            page = partial(VolumeListed, volume=id, path=str(path), recursive=recursive, after=after)
            with file_errors():
                answer = ask(page)
            for entry, kind, size, mtime, _ in answer["entries"]:
                after = entry
                yield FileEntry(entry, _TYPES.get(kind, FileEntryType.UNSPECIFIED), int(mtime), size)
            if not answer["more"]:
                return

    def _listdir(self, path: str = "/", *, recursive: bool = False) -> list[FileEntry]:
        """What is in a directory, as a list. See `iterdir`."""
        return [*self._iterdir(path, recursive=recursive)]

    def _read_file(self, path: str) -> Iterator[bytes]:
        """The content of a file, in parts.

        Example:
            data = b"".join(volume.read_file("results.json"))
        """
        client, part = current_client(), partial(VolumeRead, volume=self.object_id, path=str(path))
        handle, offset = 0, 0
        while True:
            with file_errors():
                answer = client.request(partial(part, handle=handle, offset=offset, size=CHUNK))
            handle, data = answer["handle"], answer["data"]
            offset += len(data)
            if data:
                try:
                    yield data
                except GeneratorExit:  # nobody wants the rest
                    client.link().send([part(0, handle=handle)])
                    raise
            if not data or offset >= answer["size"]:
                return

    def _read_file_into_fileobj(self, path: str, fileobj: IO[bytes]) -> int:
        """Writes the content of a file into an open one, and gives its size."""
        return sum(fileobj.write(data) for data in self._read_file(path))

    # ------------------------------------------------------------ changing files

    def _remove_file(self, path: str, recursive: bool = False) -> None:
        """Removes a file, or with `recursive` a directory and all in it."""
        self._edit("remove", [str(path)], "", recursive)

    def _copy_files(self, src_paths: Sequence[str], dst_path: str, recursive: bool = False) -> None:
        """Copies files within the volume: several, or to a directory that is there, into it; else one to this path."""
        if isinstance(src_paths, (str, bytes)):
            raise InvalidError(f"copy_files takes a list of paths; write [{src_paths!r}]")
        self._edit("copy", [str(path) for path in src_paths], str(dst_path), recursive)

    def _edit(self, action: str, paths: list[str], target: str, recursive: bool) -> None:
        id = self.object_id
        with file_errors():
            ask(lambda number: VolumeEdited(number, id, action, paths, target, recursive))

    def batch_upload(self, force: bool = False) -> BatchUpload:
        """Puts files into the volume: all of them are there when the `with` (or `async with`) block has ended, as one
        commit, or none where it fails.

        Args:
            force: Replaces files that are there. Without it they are a FileExistsError.

        Example:
            with volume.batch_upload() as batch:
                batch.put_file("model.bin", "/models/model.bin")
                batch.put_directory("data", "/data")
                batch.put_file(io.BytesIO(b"text"), "/note.txt")
        """
        from kedge.sdk.volume_upload import BatchUpload

        return BatchUpload(self, validation.flag("batch_upload: force", force))

    hydrate = both(_hydrate)
    info = both(_info)
    commit = both(_commit)
    reload = both(_reload)
    listdir = both(_listdir)
    iterdir = both_each(_iterdir)
    read_file = both_each(_read_file)
    read_file_into_fileobj = both(_read_file_into_fileobj)
    remove_file = both(_remove_file)
    copy_files = both(_copy_files)

    lookup: ClassVar[StaticDual[..., Any, ..., Any]]
    delete: ClassVar[StaticDual[..., Any, ..., Any]]
    rename: ClassVar[StaticDual[..., Any, ..., Any]]
    create_deployed: ClassVar[StaticDual[..., Any, ..., Any]]


class _Objects:
    """`Volume.objects`, made when it is used first."""

    def __get__(self, instance: object, owner: type) -> VolumeObjects:
        from kedge.sdk.volume_objects import VolumeObjects

        return VolumeObjects()


# ---------------------------------------------------------------- by name


def _lookup(
    name: str,
    client: Any = None,
    environment_name: str | None = None,
    create_if_missing: bool = False,
    version: int | None = None,
) -> Volume:
    """An old spelling of `Volume.from_name(…).hydrate()`. Where there is no server yet, it is looked up when used:
    programs say this at their top, and their server may start with the app."""
    old_spelling("Volume.lookup(…)", "Volume.from_name(…)")
    found = Volume.from_name(name, environment_name=environment_name, create_if_missing=create_if_missing)
    with suppress(ConnectionError):
        found._hydrate()
    return found


def _delete(name: str, client: Any = None, environment_name: str | None = None, *, allow_missing: bool = False) -> None:
    """Deletes a volume and all that is in it. NotFoundError where there is none, unless `allow_missing`."""
    try:
        id = Volume.from_name(name, environment_name=environment_name).object_id
    except NotFoundError:
        if allow_missing:
            return
        raise
    ask(lambda number: VolumeChanged(number, "delete", id))


def _rename(old_name: str, new_name: str, *, client: Any = None, environment_name: str | None = None) -> None:
    """Gives a volume another name. AlreadyExistsError where that is taken."""
    validation.name("Volume.rename: new_name", new_name)
    id = Volume.from_name(old_name, environment_name=environment_name).object_id
    ask(lambda number: VolumeChanged(number, "rename", id, new_name))


def _create_deployed(
    deployment_name: str, namespace: Any = None, client: Any = None, environment_name: str | None = None, **_: Any
) -> str:
    """Makes a volume where there is none of this name, and gives its id."""
    return Volume.from_name(deployment_name, environment_name=environment_name, create_if_missing=True).object_id


Volume.objects = _Objects()
Volume.lookup = both_static(_lookup)
Volume.delete = both_static(_delete)
Volume.rename = both_static(_rename)
Volume.create_deployed = both_static(_create_deployed)


# ---------------------------------------------------------------- what it stands on


def _inside(what: str, path: Any) -> str:
    text = str(path)
    if not isinstance(path, (str, os.PathLike)) or "\0" in text or ".." in text.split("/"):
        raise InvalidError(f"{what} must be the path of a directory in the volume, without '..', not {path!r}")
    return posixpath.normpath(text).strip("/").removeprefix(".")


@contextmanager
def file_errors() -> Iterator[None]:
    """What the server says of files, as errors that code about files expects as well."""
    try:
        yield
    except NotFoundError as error:
        raise _NoSuchFile(str(error)) from None
    except AlreadyExistsError as error:
        raise _FileExists(str(error)) from None
