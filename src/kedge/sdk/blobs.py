"""Values too large for a frame: one file each, written once, mapped by its reader, so that no process copies it twice.

A file starts with an index, then holds the pickle stream and after it, aligned, every out-of-band buffer of the pickle
(protocol 5). The reader maps the file privately, copy on write: a NumPy array then lies in the page cache of the file,
is writable, and costs no copy at all.

A file is named in a message only once it is complete. Who deletes it: arguments belong to the server, which removes
them when the input cannot run again; results that a caller waits for are removed by that caller as soon as they are
mapped (`consume`); results of a durable call stay until the server lets the call expire.
"""

from __future__ import annotations

import mmap
import os
import secrets
import struct
from collections.abc import Iterable, Sequence
from typing import Any

MAGIC = b"kdgb\x01\x00\x00\x00"
ALIGNMENT = 64
"""Bytes. What NumPy and vector instructions like best."""
_PARTS_PER_WRITE = 512
"""Below the kernel's limit of 1024 pieces for one writev."""
_PADDING = bytes(ALIGNMENT)

Buffer = bytes | bytearray | memoryview


class BlobStore:
    """The directory of payload files under one state directory.

    Args:
        home: The state directory (KEDGE_HOME) of the server. Files go to its `blobs/`, made with mode 0700 if needed.
    """

    def __init__(self, home: str) -> None:
        self.directory = os.path.join(home, "blobs")

    def write(self, parts: Sequence[Buffer]) -> tuple[str, int]:
        """Writes `parts` (the pickle stream first) to a new file of mode 0600; its name and the bytes of all parts.

        OSError where the disk is full or the directory cannot be made; nothing is left behind then.
        """
        name = secrets.token_hex(16)
        path = os.path.join(self.directory, name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            descriptor = os.open(path, flags, 0o600)
        try:
            sizes = [len(part) for part in parts]
            _write_all(descriptor, _layout(parts, sizes))
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)
        return name, sum(sizes)

    def read(self, name: str, *, consume: bool = False) -> list[memoryview]:
        """The parts of a file, mapped: they live as long as something refers to them, even when the file is gone.

        Args:
            name: What `write` returned.
            consume: Remove the file, since nobody reads it again.

        Raises FileNotFoundError where the file is gone and ValueError where it is no payload file.
        """
        if not name.isalnum():
            raise ValueError(f"{name!r} is not the name of a payload file")
        path = os.path.join(self.directory, name)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mapped = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY))
        finally:
            os.close(descriptor)
        if consume:
            self.remove(name)
        return _split(mapped, name)

    def remove(self, name: str) -> None:
        """Removes a file; nothing happens where it is gone already."""
        try:
            os.unlink(os.path.join(self.directory, name))
        except FileNotFoundError:
            pass


def _layout(parts: Sequence[Buffer], sizes: list[int]) -> list[Buffer]:
    """The pieces of the file in order, with padding that puts every part on an aligned offset."""
    header = MAGIC + struct.pack(f"<Q{len(parts)}Q", len(parts), *sizes)
    pieces: list[Buffer] = [header, _PADDING[: -len(header) % ALIGNMENT]]
    for part, size in zip(parts, sizes, strict=True):
        pieces += (part, _PADDING[: -size % ALIGNMENT])
    return [piece for piece in pieces if len(piece)]


def _write_all(descriptor: int, pieces: list[Buffer]) -> None:
    position = 0
    while position < len(pieces):
        batch = pieces[position : position + _PARTS_PER_WRITE]
        written = os.writev(descriptor, batch)
        for piece in batch:
            if written < len(piece):
                # The kernel takes at most 2 GiB at a time: go on in the middle of this piece.
                pieces[position] = memoryview(piece)[written:]
                break
            written -= len(piece)
            position += 1


def _split(mapped: memoryview, name: str) -> list[memoryview]:
    if bytes(mapped[: len(MAGIC)]) != MAGIC:
        raise ValueError(f"{name} is not a payload file of this version of kedge")
    (count,) = struct.unpack_from("<Q", mapped, len(MAGIC))
    sizes: Iterable[Any] = struct.unpack_from(f"<{count}Q", mapped, len(MAGIC) + 8)
    parts = []
    offset = _aligned(len(MAGIC) + 8 + 8 * count)
    for size in sizes:
        if offset + size > len(mapped):
            raise ValueError(f"{name} is shorter than its index says: it was not written to its end")
        parts.append(mapped[offset : offset + size])
        offset = _aligned(offset + size)
    return parts


def _aligned(offset: int) -> int:
    return offset + -offset % ALIGNMENT
