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
VOLUMES = "volumes"
"""The one part that is left for the server."""
STAGE = ".stage"
"""Beside the scratch directories: an empty directory, over which fork servers mount what they write to."""


def make(path: str) -> None:
    """Creates it. OSError where that cannot be."""
    os.makedirs(path, mode=0o755, exist_ok=True)
    with open(os.path.join(path, OWNER), "w", encoding="ascii") as file:
        file.write(_own_identity(os.getpid()))


def make_stage(path: str) -> str:
    """The stage beside the scratch directory `path`."""
    stage = os.path.join(os.path.dirname(path.rstrip("/")), STAGE)
    os.makedirs(stage, mode=0o755, exist_ok=True)
    return stage


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
            with open(os.path.join(path, OWNER), encoding="ascii") as file:
                owner = file.read()
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
            return f"{process} {born} {file.read().strip()}"
    except OSError:
        return ""
