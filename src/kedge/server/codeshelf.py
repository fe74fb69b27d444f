"""Code that clients have sent because they share no disk with this server: `<state>/code/<digest>`.

A session uploads one snapshot at a time, in parts. They are kept in memory until the last one is there, and go with
their session; then their digest is computed over what has arrived, so what lies under a digest is what it says. Names
of files that lead anywhere else are refused, and bytes become plain files only, never links.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

from kedge.exception import InvalidError, ResourceExhaustedError, ServiceError
from kedge.model.protocol import CodeUploaded
from kedge.wire.source import DIGEST, DRAFT, FILE_LIMIT, TOTAL_LIMIT, digest_of, objection, write

MOST_AT_ONCE = 4 * TOTAL_LIMIT
"""Bytes that all sessions together may have sent of what is not complete."""
LIFETIME_S = 7 * 24 * 3600.0
"""How long a snapshot stays after the last time that somebody sent it or asked for it, where no app has it."""
SNAPSHOT_LIFETIME_S = 30 * 24 * 3600.0
"""The same for what programs of this machine take: their servers say once an hour what is in use, unless the machine
sleeps."""


class Upload:
    """What one session has sent so far of one snapshot."""

    def __init__(self, digest: str) -> None:
        self.digest = digest
        self.files: list[tuple[str, bytes]] = []
        self.size = 0
        self.error: Exception | None = None
        """Why it is refused. Said with the last part, since no other is answered."""


class CodeShelf:
    """One directory of snapshots."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self._clock = clock
        self._uploads: dict[str, Upload] = {}

    def find(self, digest: str) -> str:
        """Where a snapshot is; empty where it is not."""
        path = self.directory / digest
        try:
            os.utime(path, times=(self._clock(), self._clock()))
        except OSError:
            return ""
        return str(path)

    def take(self, message: CodeUploaded, session: str) -> Upload | None:
        """One part. With the last one the upload comes back, for `keep`; before that, None."""
        upload = self._uploads.get(session)
        if upload is None or upload.digest != message.digest:
            upload = self._uploads[session] = Upload(message.digest)
        upload.files += message.files
        upload.size += sum(len(content) for _, content in message.files)
        if upload.error is None:
            upload.error = self._refusal(upload)
        if upload.error is not None:
            upload.files, upload.size = [], 0
        if not message.last:
            return None
        del self._uploads[session]
        return upload

    async def keep(self, upload: Upload) -> str:
        """Puts a complete upload in its place and says where that is. One without files only asks: empty where there is
        no such snapshot."""
        if upload.error is not None:
            raise upload.error
        found = self.find(upload.digest)
        if found or not upload.files:
            return found
        return await asyncio.to_thread(self._write, upload)

    def forget(self, session: str) -> None:
        """The session has ended, and what it began to send with it."""
        self._uploads.pop(session, None)

    async def sweep(self, used: Collection[str], snapshots: Path | None, ours: bool = True) -> None:
        """Removes snapshots that nobody has asked for in a while and that are not among the directories in use.

        `snapshots` are those that programs of this machine take for themselves. Other servers use them as well, and say
        so by the time that they set: `ours` where what they leave is this server's to remove.
        """
        names = {os.path.basename(root) for root in used}  # the same directory may be known by several paths
        await asyncio.to_thread(self._sweep, self.directory, names, LIFETIME_S)
        if snapshots is not None:
            await asyncio.to_thread(self._sweep, snapshots, names, SNAPSHOT_LIFETIME_S if ours else math.inf)

    @property
    def pending(self) -> int:
        """Bytes of snapshots that are not complete."""
        return sum(upload.size for upload in self._uploads.values())

    def _refusal(self, upload: Upload) -> Exception | None:
        if len(upload.files) > FILE_LIMIT or upload.size > TOTAL_LIMIT:
            return InvalidError(
                f"the code is too large: more than {FILE_LIMIT} files or {TOTAL_LIMIT // 2**20} MiB. Move data out of "
                "the package"
            )
        if self.pending > MOST_AT_ONCE:
            return ResourceExhaustedError("too much code is being uploaded at the same time; try again in a moment")
        return None

    def _sweep(self, directory: Path, used: Collection[str], lifetime: float) -> None:
        if not directory.is_dir():
            return
        now = self._clock()
        for entry in os.scandir(directory):
            if not (DIGEST.fullmatch(entry.name) or entry.name.startswith(DRAFT)):
                continue  # somebody's own: whoever chose the directory may have one of this name
            try:
                if entry.name in used:
                    os.utime(entry.path, times=(now, now))
                elif entry.stat(follow_symlinks=False).st_mtime < now - lifetime:
                    shutil.rmtree(entry.path, ignore_errors=True)
            except OSError:
                continue  # it has got its name just now, or has gone

    def _write(self, upload: Upload) -> str:
        wrong = objection(path for path, _ in upload.files)
        if wrong:
            raise InvalidError(f"the code is refused: {wrong}")
        digest = digest_of(upload.files)
        if digest != upload.digest:
            raise InvalidError(
                f"the code that arrived has the digest {digest}, not {upload.digest}: it was changed on its way, or "
                "while it was read; send it again"
            )
        root = self.directory / digest
        try:
            write(upload.files, str(root), synced=True)
        except OSError as error:
            raise ServiceError(f"the server cannot keep the code in {self.directory}: {error}") from None
        return str(root)
