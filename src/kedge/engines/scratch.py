"""Scratch directories: what a container writes outside of its volumes, on the machine's disk.

Each carries the mark of the supervisor that made it. One whose supervisor is dead is removed by the next that works
beside it. Volumes' changes in there belong to the server, which removes them when it has them; everything else goes as
soon as the container has ended.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

from kedge.wire.removal import remove

OWNER = "owner"
_ATTRIBUTE = "user.kedge.owner"
"""Where the mark is; where the file system has no such thing, the file `OWNER` has it."""
VOLUMES = "volumes"
"""The one part that is left for the server."""


def make(path: str) -> None:
    """Creates it. OSError where that cannot be."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass
    except FileNotFoundError:
        os.makedirs(path, 0o755, exist_ok=True)
    mark = _own_identity(os.getpid())
    try:
        os.setxattr(path, _ATTRIBUTE, mark.encode())  # which costs no file of its own
    except (OSError, AttributeError):
        with open(os.path.join(path, OWNER), "w", encoding="ascii") as file:
            file.write(mark)


def _owner(path: str) -> str:
    """OSError where it carries no mark."""
    try:
        return os.getxattr(path, _ATTRIBUTE).decode()
    except (OSError, AttributeError):
        with open(os.path.join(path, OWNER), encoding="ascii") as file:
            return file.read()


def clear(path: str) -> None:
    """Removes it, but for what belongs to the server."""
    try:
        names = os.listdir(path)
    except OSError:
        return
    for name in names:
        if name != VOLUMES:
            remove(os.path.join(path, name))
    try:
        os.rmdir(path)
    except OSError:  # volumes are still there
        pass


def sweep(directory: str, before: Callable[[str], None] | None = None) -> None:
    """Clears the scratch directories below `directory` whose supervisors have ended; `before` is called with each."""
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        path = os.path.join(directory, name)
        try:
            owner = _owner(path)
        except OSError:
            continue
        if owner != _identity(int(owner.split()[0]) if owner.split() else 0):
            if before is not None:
                before(path)
            clear(path)


@functools.lru_cache(maxsize=1)
def _own_identity(process: int) -> str:
    return _identity(process)


def _identity(process: int) -> str:
    """Tells a process from every other, also after a restart of the machine; empty where there is none."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            born = file.read().rpartition(b")")[2].split()[19].decode()
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{process} {born} {file.read(8)}"
    except OSError:
        return ""
