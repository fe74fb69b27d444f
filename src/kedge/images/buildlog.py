"""The output of one step on disk, bounded: of what goes beyond, the end stays."""

from __future__ import annotations

from pathlib import Path

LIMIT = 10 * 2**20
"""Bytes of a log; half of it is given up when it is full, so that this happens seldom."""
LEFT_OUT = b"[earlier output is left out]\n"


class BuildLog:
    """A file that is begun anew with each build of its step."""

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self._limit = limit
        self._file = path.open("w+b")
        self._size = 0

    def write(self, data: bytes) -> None:
        if len(data) > self._limit // 2:
            data = LEFT_OUT + data[-self._limit // 2 :]
        if self._size + len(data) > self._limit:
            self._file.seek(self._size - self._limit // 2)
            kept = self._file.read()
            kept = LEFT_OUT + kept[kept.find(b"\n") + 1 :]
            self._file.seek(0)
            self._file.write(kept)
            self._file.truncate()
            self._size = len(kept)
        self._file.write(data)
        self._file.flush()
        self._size += len(data)

    def close(self) -> None:
        self._file.close()
