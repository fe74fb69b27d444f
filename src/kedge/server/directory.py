"""The state directory of one server: `<home>/server` for the machine's, one of its own for a private one.

Everything in it is readable by its user only. Whoever holds its `lock` is alive; a private directory whose lock is free
belonged to a server that was killed, and is removed when the next server of that home starts.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from kedge.wire.removal import remove

log = logging.getLogger("kedge.server")

SOCKET_PATH_LIMIT = 100
"""Bytes that a path of a Unix socket may have on every system we know (Linux 108, macOS 104)."""
HALF_MADE_S = 3600.0
"""Seconds after which a private directory without a lock is one that was not wholly removed."""


class StateDirectory:
    """Use it as a context: on entering it is this server's alone (ValueError where it has one), on leaving its address
    is gone, and with it the directory of a private server."""

    def __init__(self, home: Path, private: bool) -> None:
        self._home = home
        self._private = private
        self._lock: IO[str] | None = None
        self.path = home / "server"
        self.socket = ""

    def __enter__(self) -> StateDirectory:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _turn(self._home / "private.lock"):
            remove_dead(self._home / "private")
            if self._private:
                _private_directory(self._home / "private")
                self.path = Path(tempfile.mkdtemp(prefix="", dir=self._home / "private"))
            else:
                _private_directory(self.path)
            self._lock = _locked(self.path / "lock")
        if self._lock is None:
            raise ValueError(
                f"a server is running already in {self.path}; stop it first, or use another directory (KEDGE_HOME)"
            )
        try:
            self.socket = self._place_for_socket()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        (self.path / "server.json").unlink(missing_ok=True)
        (self.path / "plane.sock").unlink(missing_ok=True)
        _remove_sockets(self.path)
        if self._private:
            remove(str(self.path))
        if self._lock is not None:
            self._lock.close()

    def publish(self, facts: dict[str, Any]) -> None:
        """Where clients find this server: `server.json`, readable by this user only.

        Where the disk is full it takes the place of the one that a killed server has left: that needs no more room."""
        path, data = self.path / "server.json", json.dumps(facts).encode()
        draft = path.with_suffix(".new")
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
            draft.rename(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            try:
                with path.open("r+b") as file:
                    file.write(data)
                    file.truncate()
            except OSError:
                raise OSError(error.errno, f"{path} cannot be written: {error.strerror}") from None

    def remember(self, options: list[str]) -> None:
        """The options of a server that is up: whoever starts the next one without any starts it with these."""
        path = self.path / "options.json"
        draft = path.with_suffix(".draft")
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(options, file)
            draft.rename(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            log.warning("%s cannot be written, so the next start forgets the options of this one: %s", path, error)

    def token(self) -> str:
        """What clients over TCP must show: made once for the life of the directory."""
        path = self.path / "token"
        try:
            token = path.read_text().strip()
        except FileNotFoundError:
            token = ""
        if not token:
            token = secrets.token_hex(32)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(token)
        return token

    def _place_for_socket(self) -> str:
        """In the directory itself; where that path is too long in a directory of temporary files, the same each time,
        so that clients find the server again after a restart."""
        socket = str(self.path / "plane.sock")
        if len(socket.encode()) <= SOCKET_PATH_LIMIT:
            return socket
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        elsewhere = Path(tempfile.gettempdir()) / f"kedge-{os.getuid()}-{digest}"
        elsewhere.mkdir(mode=0o700, exist_ok=True)
        facts = elsewhere.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
            raise ValueError(f"{elsewhere} should hold this server's socket and is not private to this user: remove it")
        link = self.path / "sockets"
        link.unlink(missing_ok=True)
        link.symlink_to(elsewhere)
        return str(elsewhere / "plane.sock")


def remove_dead(private: Path) -> None:
    """Removes the private directories of servers that are not there any more."""
    if not private.is_dir():
        return
    for path in sorted(private.iterdir()):
        lock = _locked(path / "lock") if (path / "lock").exists() else None
        if lock is not None:
            with lock:
                _remove_sockets(path)
                remove(str(path))
        elif not (path / "lock").exists() and path.stat().st_mtime < time.time() - HALF_MADE_S:
            remove(str(path))  # whoever was to remove it did not come to its end


def is_taken(path: Path) -> bool:
    """Whether a server has this directory now."""
    if not path.is_dir():
        return False
    lock = _locked(path / "lock")
    if lock is None:
        return True
    lock.close()
    return False


def _private_directory(path: Path) -> None:
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)


def _remove_sockets(directory: Path) -> None:
    """A socket of a long path lies elsewhere; `sockets` says where."""
    link = directory / "sockets"
    if link.is_symlink():
        shutil.rmtree(os.readlink(link), ignore_errors=True)
        link.unlink()


def _locked(path: Path) -> IO[str] | None:
    """The file, locked for as long as it is open; None where another process has it."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """One server of a home at a time: a directory must not be swept between its making and its locking."""
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
