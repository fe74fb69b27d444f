"""Which servers of a KEDGE_HOME live: each holds a lock on a file of its own, which the kernel lets go when it dies."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path


class Lease:
    """One server's. It begins with `open`.

    Args:
        directory: Where the files of all servers are.
    """

    def __init__(self, directory: Path) -> None:
        self.server = secrets.token_hex(8)
        self._directory = directory
        self._descriptor: int | None = None

    def open(self) -> None:
        """Says that this server lives, until `close`."""
        if self._descriptor is not None:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._directory / f"{self.server}.new"
        self._descriptor = os.open(draft, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        draft.rename(self._directory / self.server)  # from the start it is there with its lock, or not at all

    def close(self) -> None:
        if self._descriptor is not None:
            (self._directory / self.server).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def lives(self, server: str) -> bool:
        if server == self.server:
            return self._descriptor is not None
        try:
            descriptor = os.open(self._directory / server, os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def sweep(self) -> None:
        """Removes the files of the dead."""
        for file in self._directory.glob("*"):
            if file.suffix != ".new" and not self.lives(file.name):
                file.unlink(missing_ok=True)
