"""Files of images that clients have sent because they share no disk with this server: `<state>/files`.

A client offers a list of files, hears which contents are not there, sends those in parts, and offers the list again.
Each session sends one content at a time, straight to disk; what arrives is hashed, so what lies under a name is what it
says. Whatever was begun goes with its session.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from kedge.exception import InvalidError, ServiceError
from kedge.model import protocol as p
from kedge.server.codeshelf import LIFETIME_S, SNAPSHOT_LIFETIME_S
from kedge.wire.source import DRAFT
from kedge.wire.trees import SIZE_LIMIT, Entry, Trees, digest_of, refusal


class Upload:
    """What one session has sent so far of one content."""

    def __init__(self, directory: str, name: str) -> None:
        self.name = name
        self.size = 0
        self.hasher = hashlib.sha256()
        os.makedirs(directory, mode=0o700, exist_ok=True)
        descriptor, self.path = tempfile.mkstemp(prefix=DRAFT, dir=directory)
        self.file = os.fdopen(descriptor, "wb")

    def drop(self) -> None:
        self.file.close()
        with suppress(OSError):
            os.unlink(self.path)


class TreeShelf:
    """One directory of trees."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self.trees = Trees(str(directory))
        self.answers: dict[type, Callable[[Any, str], Any]] = {p.FilesOffered: self._offered, p.FilesSent: self._sent}
        """For `Office.attend`."""
        self._clock = clock
        self._uploads: dict[str, Upload] = {}
        self._writing: dict[str, asyncio.Lock] = {}

    def session_closed(self, session: str) -> None:
        """Nobody goes on with what it has begun."""
        self._writing.pop(session, None)
        upload = self._uploads.pop(session, None)
        if upload is not None:
            upload.drop()

    async def sweep(self, used: Collection[str], files: Path | None, ours: bool = True) -> None:
        """Removes what nobody has asked for in a while and no app uses: here, and in `files`, where programs of this
        machine put theirs (`ours`: what other servers leave there is this server's to remove)."""
        names = {os.path.basename(root) for root in used}
        await asyncio.to_thread(self.trees.sweep, names, LIFETIME_S, self._clock())
        if files is not None:
            lifetime = SNAPSHOT_LIFETIME_S if ours else math.inf
            await asyncio.to_thread(Trees(str(files)).sweep, names, lifetime, self._clock())

    async def _offered(self, message: p.FilesOffered, session: str) -> dict[str, Any]:
        return await asyncio.to_thread(self._find, message)

    def _find(self, message: p.FilesOffered) -> dict[str, Any]:
        entries = [Entry(*entry) for entry in message.entries]
        if not entries and message.digest != digest_of(()):
            root = self.trees.find(message.digest)
            return {"root": root} if root else {"missing": []}
        wrong = refusal(entries)
        if wrong:
            raise InvalidError(f"the files of an image are refused: {wrong}")
        if digest_of(entries) != message.digest:
            raise InvalidError(f"the files of an image have the digest {digest_of(entries)}, not {message.digest}")
        root = self.trees.find(message.digest)
        if root:
            return {"root": root}
        missing = self.trees.missing(entries)
        if missing:
            return {"missing": [entry.object for entry in missing]}
        try:
            return {"root": self.trees.write(entries, synced=True)}
        except OSError as error:
            raise self._unkept(error) from None

    async def _sent(self, message: p.FilesSent, session: str) -> dict[str, Any]:
        async with self._writing.setdefault(session, asyncio.Lock()):
            return await asyncio.to_thread(self._append, message, session)

    def _append(self, message: p.FilesSent, session: str) -> dict[str, Any]:
        entry = Entry("", message.hash, message.offset + len(message.data), message.executable)
        if message.last and self.trees.has(entry):
            return {"size": entry.size}  # somebody else was quicker
        upload = self._uploads.get(session)
        if upload is None or upload.name != entry.object:
            if upload is not None:
                upload.drop()
            upload = self._uploads[session] = self._begin(entry)
        if message.offset != upload.size:
            return {"size": upload.size}  # sent twice, or begun on another connection: it goes on from here
        if entry.size > SIZE_LIMIT:
            raise InvalidError(f"a file of an image has more than {SIZE_LIMIT // 2**30} GiB")
        try:
            upload.file.write(message.data)
            upload.hasher.update(message.data)
            upload.size = entry.size
            if message.last:
                self._complete(upload, entry, session)
        except OSError as error:
            raise self._unkept(error) from None
        return {"size": upload.size}

    def _begin(self, entry: Entry) -> Upload:
        try:
            return Upload(self.trees.objects, entry.object)
        except OSError as error:
            raise self._unkept(error) from None

    def _complete(self, upload: Upload, entry: Entry, session: str) -> None:
        self._uploads.pop(session, None)
        try:
            if upload.hasher.hexdigest() != entry.hash:
                raise InvalidError("a file of an image has changed while it was sent; start again")
            upload.file.close()
            os.chmod(upload.path, 0o555 if entry.executable else 0o444)
            os.rename(upload.path, os.path.join(self.trees.objects, entry.object))
        finally:
            upload.drop()

    def _unkept(self, error: OSError) -> ServiceError:
        return ServiceError(f"the server cannot keep files of an image in {self.trees.directory}: {error}")
