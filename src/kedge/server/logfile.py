"""The log of the machine's server: one file, which begins anew at a size, with a few old ones beside it.

Whatever the process writes to its own stdout and stderr goes there as well, also what C code says when it dies. A full
disk costs lines, and nothing else.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LIMIT = 10 * 1024 * 1024
"""Bytes of the file, above which it becomes an old one."""
OLD_FILES = 2


class LogFile(logging.Handler):
    """Takes over stdout and stderr of the process where `streams` is set: a server in the background has no others."""

    def __init__(self, path: Path, streams: bool = True, limit: int = LIMIT) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(FORMAT))
        self._path = path
        self._streams = streams
        self._limit = limit
        self._descriptor = self._open()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(self._descriptor, f"{self.format(record)}\n".encode(errors="backslashreplace"))
            if os.fstat(self._descriptor).st_size > self._limit:
                self._begin_anew()
        except OSError:
            pass  # the disk is full: this line is lost
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        super().close()
        os.close(self._descriptor)

    def _begin_anew(self) -> None:
        for number in range(OLD_FILES, 0, -1):
            source = self._path if number == 1 else old(self._path, number - 1)
            if source.exists():
                source.rename(old(self._path, number))
        before, self._descriptor = self._descriptor, self._open()
        os.close(before)

    def _open(self) -> int:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        if self._streams:
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
        return descriptor


def old(path: Path, number: int) -> Path:
    """The file that was the log so many files ago.

    >>> old(Path("server.log"), 1)
    PosixPath('server.log.1')
    """
    return path.with_name(f"{path.name}.{number}")
