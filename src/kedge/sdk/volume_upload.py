"""`Volume.batch_upload()`: files are collected in a `with` block and sent at its end, in parts of a bounded size."""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import IO, Any

from kedge.exception import InvalidError
from kedge.model.protocol import UploadPart, VolumeUploaded
from kedge.sdk.batches import batches
from kedge.sdk.client import Client
from kedge.sdk.usage import warn
from kedge.sdk.volume import CHUNK, Volume, file_errors

PATHS = 5000
"""Paths that are announced at once."""
PARTS = 500
"""Parts of one message, where they are small."""


class BatchUpload:
    """Files on their way into a volume."""

    def __init__(self, volume: Volume, force: bool) -> None:
        self._volume = volume
        self._force = force
        self._files: dict[str, tuple[str | IO[bytes], int | None]] = {}
        """By path in the volume: what is read, and its mode."""

    def put_file(
        self, local_file: str | PurePath | IO[bytes], remote_path: str | PurePath, mode: int | None = None
    ) -> None:
        """One file, by its path here or open for reading bytes.

        Args:
            local_file: It is read when the block ends.
            remote_path: Where it will be in the volume.
            mode: Its permissions. Default: as they are here.
        """
        remote = str(remote_path)
        if remote.endswith("/"):
            raise InvalidError(f"put_file: {remote!r} is a directory; write the path of the file: {remote + 'NAME'!r}")
        if isinstance(local_file, (str, PurePath)):
            path = os.path.abspath(local_file)
            if not os.path.exists(path):
                raise FileNotFoundError(f"put_file: there is no file {str(local_file)!r} here")
            if not os.path.isfile(path):
                raise InvalidError(f"put_file: {str(local_file)!r} is no file; put_directory() takes directories")
            self._add(remote, path, mode)
        elif hasattr(local_file, "read"):
            self._add(remote, local_file, mode)
        else:
            raise InvalidError(f"put_file takes a path or a file opened for reading bytes, not {local_file!r}")

    def put_directory(self, local_path: str | PurePath, remote_path: str | PurePath, recursive: bool = True) -> None:
        """All files of a directory here, below `remote_path`.

        Args:
            recursive: Also those of the directories in it.
        """
        root = Path(local_path)
        if not root.is_dir():
            raise (InvalidError if root.exists() else FileNotFoundError)(
                f"put_directory: {str(local_path)!r} is no directory here"
            )
        for here, directories, files in os.walk(root):
            for name in [name for name in directories if os.path.islink(os.path.join(here, name))]:
                warn(f"put_directory: {os.path.join(here, name)!r} is a link to a directory, and left out", UserWarning)
            for name in files:
                path = os.path.join(here, name)
                if os.path.isfile(path):
                    self._add(f"{remote_path}/{os.path.relpath(path, root)}", os.path.abspath(path), None)
            if not recursive:
                return
            directories.sort()

    def _add(self, remote: str, source: str | IO[bytes], mode: int | None) -> None:
        path = "/".join(name for name in remote.split("/") if name not in ("", "."))
        try:
            path.encode()
        except UnicodeEncodeError:
            raise InvalidError(
                f"{remote!r} cannot be put into a volume: its name is not UTF-8; give it another one"
            ) from None
        if path in self._files:
            raise InvalidError(f"{remote!r} was put into this upload before; give one of the two another path")
        self._files[path] = source, mode

    def __len__(self) -> int:
        """How many files there are in it."""
        return len(self._files)

    def __enter__(self) -> BatchUpload:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None and self._files:
            self._send()

    async def __aenter__(self) -> BatchUpload:
        return self

    async def __aexit__(self, kind: Any, *_: object) -> None:
        await asyncio.to_thread(self.__exit__, kind)

    # ------------------------------------------------------------ sending

    def _send(self) -> None:
        volume, upload, force = self._volume.object_id, secrets.token_hex(8), self._force
        client = Client.current()
        paths = list(self._files)

        def message(number: int, **what: Any) -> VolumeUploaded:
            return VolumeUploaded(number, volume, upload, force=force, **what)

        with file_errors():
            try:
                for start in range(0, len(paths), PATHS):
                    some = paths[start : start + PATHS]
                    client.request(functools.partial(message, paths=some))
                for parts in batches(self._parts(), lambda part: len(part.data), PARTS, CHUNK):
                    client.request(functools.partial(message, parts=parts))
                client.request(functools.partial(message, last=True))
            except BaseException:
                client.link().send([VolumeUploaded(0, volume, upload, abandoned=True)])
                raise

    def _parts(self) -> Iterator[UploadPart]:
        for path, (source, mode) in self._files.items():
            if isinstance(source, str):
                with open(source, "rb") as file:
                    own = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                    yield from _of_file(path, file, own if mode is None else mode)
            else:
                yield from _of_file(path, source, 0o644 if mode is None else mode)


def _of_file(path: str, file: IO[bytes], mode: int) -> Iterator[UploadPart]:
    offset = 0
    while True:
        data = file.read(CHUNK)
        if not isinstance(data, bytes):
            raise InvalidError(f"{path!r} was opened as text; open it in binary mode: open(…, 'rb')")
        if data or not offset:
            yield UploadPart(path, offset, data, mode)
        offset += len(data)
        # Sockets and pipes give less than they were asked for before their end.
        if len(data) < CHUNK and (not data or file.seekable()):
            return
