"""What programs ask about volumes: which there are, what is in them, and to put, copy and remove files.

An upload is kept apart until its last part is there; then it is one commit. Whatever a session has begun goes with it.
"""

from __future__ import annotations

import asyncio
import functools
import os
import stat
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import Any

from kedge.exception import (
    AlreadyExistsError,
    InvalidError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from kedge.model import protocol as p
from kedge.model.spec import VolumeRef
from kedge.server import volume_trees as trees
from kedge.server.volume_store import Volume, disk
from kedge.server.volumes import Volumes

PAGE = 10_000
"""Entries of one answer."""
MOST = 8 * 1024 * 1024
"""Bytes of a file in one answer."""
MAX_OPEN = 256
"""Files that are being read at the same time; the one that was opened first gives way."""
MAX_UPLOADS = 64
MAX_FILES = 1_000_000
"""Files of one upload."""
SHOWN = 5
"""Paths that an error lists."""

Facts = dict[str, Any]


class Upload:
    """Files that are not complete."""

    def __init__(self, volume: str) -> None:
        self.volume = volume
        self.directory = ""
        self.paths: dict[str, None] = {}
        self.files: dict[str, trees.Put] = {}
        self.busy = asyncio.Lock()
        self.over = False


class VolumeDesk:
    """Answers sessions; `answers` is for the office.

    Args:
        volumes: The volumes of this server.
        container_of: The container whose code a session has proved to be; empty where it is none's.
    """

    def __init__(self, volumes: Volumes, container_of: Callable[[str], str]) -> None:
        self._volumes = volumes
        self._container_of = container_of
        self._store = volumes.store
        self._open: dict[int, tuple[str, int]] = {}
        """By handle: the session that reads a file, and its descriptor."""
        self._handles = 0
        self._uploads: dict[tuple[str, str], Upload] = {}
        self._ephemeral: dict[str, list[str]] = {}
        """Volumes that go with a session."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.answers: dict[type, Callable[[Any, str], Any]] = {
            p.VolumeRequested: self._find,
            p.VolumesRequested: self._list,
            p.VolumeChanged: self._change,
            p.VolumeListed: self._entries,
            p.VolumeRead: self._read,
            p.VolumeEdited: self._edit,
            p.VolumeUploaded: self._upload,
            p.VolumeCommitted: self._commit,
            p.VolumeReloaded: self._reload,
        }

    def departed(self, session: str) -> None:
        """A session has gone, and what it has begun with it."""
        for handle in [handle for handle, (owner, _) in self._open.items() if owner == session]:
            self._shut(handle)
        for key in [key for key in self._uploads if key[0] == session]:
            self._later(self._abandon(key, self._uploads[key]))
        for volume in self._ephemeral.pop(session, ()):
            self._later(self._volumes.delete_later(volume))

    async def close(self) -> None:
        for handle in list(self._open):
            self._shut(handle)
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._closed = True

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        if self._closed:  # a session ends after this: nobody would wait for it
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------ which there are

    async def _find(self, message: p.VolumeRequested, session: str) -> Facts:
        if message.ephemeral:
            made = await asyncio.to_thread(self._store.create)
            self._ephemeral.setdefault(session, []).append(made.id)
            return _facts(made)
        ref = VolumeRef(target="", id=message.id, name=message.name, create=message.create)
        return _facts(await asyncio.to_thread(self._volumes.resolve, ref, message.environment))

    async def _list(self, message: p.VolumesRequested, session: str) -> list[Facts]:
        return [_facts(volume) for volume in await asyncio.to_thread(self._store.all, message.environment)]

    async def _change(self, message: p.VolumeChanged, session: str) -> Facts:
        if message.action == "release":
            mine = self._ephemeral.get(session, [])
            if message.volume in mine:
                mine.remove(message.volume)
                await self._volumes.delete_later(message.volume)
            return {}
        if message.action == "create":
            return _facts(await asyncio.to_thread(self._store.create, message.name, message.environment))
        await self._volumes.settled(message.volume)
        if message.action == "rename":
            return _facts(await asyncio.to_thread(self._store.rename, message.volume, message.name))
        if message.action == "delete":
            volume = await asyncio.to_thread(self._store.get, message.volume)
            await asyncio.to_thread(self._store.delete, message.volume)
            return _facts(volume)
        raise InvalidError(f"action={message.action!r} is not known; write create, rename or delete")

    # ------------------------------------------------------------ looking into one

    async def _entries(self, message: p.VolumeListed, session: str) -> Facts:
        await self._volumes.settled(message.volume)
        return await asyncio.to_thread(self._page, message)

    def _page(self, message: p.VolumeListed) -> Facts:
        self._store.get(message.volume)
        with self._store.newest(message.volume) as tree:
            found = trees.entries(tree, message.path, message.recursive, message.after)
            page = [[one.path, one.kind, one.size, one.mtime, one.mode] for one in islice(found, PAGE + 1)]
        return {"entries": page[:PAGE], "more": len(page) > PAGE}

    async def _read(self, message: p.VolumeRead, session: str) -> Facts:
        handle = message.handle
        if not handle:
            await self._volumes.settled(message.volume)
            descriptor = await asyncio.to_thread(self._opened, message.volume, message.path)
            while len(self._open) >= MAX_OPEN:
                self._shut(next(iter(self._open)))
            self._handles += 1
            handle = self._handles
            self._open[handle] = session, descriptor
        owner, descriptor = self._open.get(handle, ("", -1))
        if owner != session:
            raise NotFoundError("this file was read too slowly, beside too many others, or already to its end")
        facts = os.fstat(descriptor)
        # Its own descriptor, since this one may be closed meanwhile.
        data = await asyncio.to_thread(_pread, os.dup(descriptor), min(message.size, MOST), message.offset)
        if not message.size or message.offset + len(data) >= facts.st_size:
            self._shut(handle)
        return {"data": data, "size": facts.st_size, "mode": stat.S_IMODE(facts.st_mode), "handle": handle}

    def _opened(self, volume: str, path: str) -> int:
        self._store.get(volume)
        with self._store.newest(volume) as tree:
            place = trees.locate(tree, path)
            if os.path.isdir(place):
                raise InvalidError(f"{path!r} is a directory; name a file in it")
            return os.open(place, os.O_RDONLY | os.O_NOFOLLOW)

    def _shut(self, handle: int) -> None:
        _, descriptor = self._open.pop(handle, ("", -1))
        if descriptor >= 0:
            os.close(descriptor)

    # ------------------------------------------------------------ changing what is in one

    async def _edit(self, message: p.VolumeEdited, session: str) -> None:
        def make(tree: str) -> trees.Changes:
            if message.action == "copy":
                return trees.copies(tree, message.paths, message.target, message.recursive)
            if message.action == "remove":
                parts = [trees.remove(tree, trees.clean(path), message.recursive) for path in message.paths]
                return trees.Changes([path for part in parts for path in part.deletions])
            raise InvalidError(f"action={message.action!r} is not known; write remove or copy")

        await self._volumes.settled(message.volume)
        await asyncio.to_thread(self._changed, message.volume, make)

    def _changed(self, volume: str, make: Callable[[str], trees.Changes]) -> None:
        self._store.get(volume)
        self._store.change(volume, make)

    async def _upload(self, message: p.VolumeUploaded, session: str) -> None:
        key = (session, message.upload)
        upload = self._uploads.get(key) or await self._begin(key, message.volume)
        try:
            async with upload.busy:
                if not message.abandoned:
                    await asyncio.to_thread(self._take, upload, message)
                if message.last:
                    await self._volumes.settled(message.volume)
                    land = functools.partial(_landed, upload, message.force)
                    await asyncio.to_thread(self._changed, upload.volume, land)
        except BaseException:
            self._later(self._abandon(key, upload))
            raise
        if message.last or message.abandoned:
            await self._abandon(key, upload)

    async def _begin(self, key: tuple[str, str], volume: str) -> Upload:
        if len(self._uploads) >= MAX_UPLOADS:
            raise ResourceExhaustedError("too many uploads go on at the same time; try again in a moment")
        upload = self._uploads[key] = Upload(volume)
        try:
            async with upload.busy:
                await asyncio.to_thread(self._store.get, volume)
                upload.directory = await asyncio.to_thread(self._store.draft, volume)
        except BaseException:
            self._uploads.pop(key, None)
            raise
        return upload

    async def _abandon(self, key: tuple[str, str], upload: Upload) -> None:
        """Nothing of it is left, once nobody is at it any more."""
        self._uploads.pop(key, None)
        async with upload.busy:
            upload.over = True
            if upload.directory:
                await asyncio.to_thread(trees.discard, upload.directory)

    def _take(self, upload: Upload, message: p.VolumeUploaded) -> None:
        if upload.over:
            raise InvalidError("this upload is over; begin another one")
        paths = [trees.clean(path) for path in message.paths]
        if paths:
            with self._store.newest(upload.volume) as tree:
                check(tree, paths, message.force)
        for path in paths:
            if path in upload.paths:
                raise InvalidError(f"{path!r} comes twice in one upload; leave one of them out")
            upload.paths[path] = None
        if len(upload.paths) > MAX_FILES:
            raise InvalidError(f"an upload takes {MAX_FILES:,} files at most; make several")
        with disk(f"the volume {upload.volume} takes no files"):
            for part in message.parts:
                self._write(upload, part)

    def _write(self, upload: Upload, part: p.UploadPart) -> None:
        path = trees.clean(part.path)
        if path not in upload.paths:
            raise InvalidError(f"a part of {path!r} came, which was not announced")
        put = upload.files.get(path)
        if put is None:
            source = os.path.join(upload.directory, str(len(upload.files)))
            put = upload.files[path] = trees.Put(path, trees.FILE, source, part.mode & 0o777 | 0o600)
        with open(put.source, "r+b" if part.offset else "wb") as file:
            if part.offset > os.fstat(file.fileno()).st_size:
                raise InvalidError(f"a part of {path!r} is missing before byte {part.offset}")
            file.seek(part.offset)
            file.write(part.data)
            os.fchmod(file.fileno(), put.mode)

    # ------------------------------------------------------------ from containers

    async def _commit(self, message: p.VolumeCommitted, session: str) -> Facts:
        left_out = await self._volumes.commit(self._own(message.container, session), message.volume)
        return {"left_out": [list(one) for one in left_out]}

    async def _reload(self, message: p.VolumeReloaded, session: str) -> Facts:
        left_out = await self._volumes.reload(self._own(message.container, session), message.volume)
        return {"left_out": [list(one) for one in left_out]}

    def _own(self, container: str, session: str) -> str:
        """The container that asks, and nobody else in its name."""
        if container and container == self._container_of(session):
            return container
        raise PermissionDeniedError(
            f"only the container {container!r} itself can commit or reload what it has mounted, and this connection is "
            "not its; call commit() and reload() in the function that has the volume, not in a program that it starts"
        )


def _landed(upload: Upload, force: bool, tree: str) -> trees.Changes:
    """An upload, as changes of the tree that is current now."""
    missing = [path for path in upload.paths if path not in upload.files]
    if missing:
        raise InvalidError(f"the upload is not complete: {_some(missing)} did not come")
    check(tree, list(upload.files), force)
    return trees.Changes([], list(upload.files.values()))


def check(tree: str, paths: list[str], force: bool) -> None:
    """Refuses paths where files cannot be put, or must not without `force`."""
    there = []
    for path in paths:
        if not path:
            raise InvalidError("a file needs a name in the volume, such as 'models/weights.bin'; '/' is its root")
        trees.check_target(tree, path)
        kind = trees.kind_of(tree, path)
        if kind == trees.DIRECTORY:
            raise InvalidError(
                f"{path!r} is a directory in the volume, and a file cannot take its place; remove it first"
            )
        if kind:
            there.append(path)
    if there and not force:
        raise AlreadyExistsError(
            f"{_some(there)} exist{'s' if len(there) == 1 else ''} in the volume; force=True "
            "(--force) replaces what is there"
        )


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(map(repr, paths[:SHOWN])) + more


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


def _facts(volume: Volume) -> Facts:
    return {
        "id": volume.id,
        "name": volume.name,
        "environment": volume.environment,
        "created_at": volume.created_at,
    }
