"""Bytecode of the users' code, beside its source. Containers with files of their own cannot write there: without it,
each of them would compile everything that it imports.

Compiling runs nothing of the code. It happens in a child of a fork server, which has the right interpreter, and only
while nobody else wants the processor. A few lines can be made to need any amount of memory and time: that is bounded.
"""

from __future__ import annotations

import importlib.util
import os
import stat
import struct
import warnings
from collections.abc import Iterator

MOST_FILES = 2000
MOST_BYTES = 1 << 20
"""Of one source file: what is larger is data."""
MOST_MEMORY = 1 << 30
"""Bytes beyond those that the process has."""
MOST_SECONDS = 120
"""Of the processor, for everything."""
_HEADER = struct.Struct("<4sIII")


def write(directory: int, root: str) -> None:
    """Compiles what lies below a directory that is open as `directory` and known as `root`, where that was not done
    yet. What cannot be compiled is left: whoever imports it is told why."""
    import py_compile

    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    _bind()
    warnings.simplefilter("ignore")
    here = f"/proc/self/fd/{directory}"
    for source in _sources(here):
        try:
            cached = importlib.util.cache_from_source(source)
            if not _is_fresh(cached, os.stat(source)):
                mode = py_compile.PycInvalidationMode.TIMESTAMP
                shown = os.path.join(root, os.path.relpath(source, here))
                py_compile.compile(source, cached, shown, quiet=2, invalidation_mode=mode)
        except (OSError, ValueError, RecursionError, MemoryError):
            continue


def _bind() -> None:
    import resource

    with open("/proc/self/statm", "rb") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    for kind, most in (
        (resource.RLIMIT_AS, present + MOST_MEMORY),
        (resource.RLIMIT_CPU, MOST_SECONDS),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _sources(top: str) -> Iterator[str]:
    count = 0
    for place, directories, names in os.walk(top):
        directories[:] = sorted(name for name in directories if name != "__pycache__")
        if os.path.islink(os.path.join(place, "__pycache__")):  # it would be written to a stranger's
            continue
        for name in sorted(names):
            path = os.path.join(place, name)
            if name.endswith(".py") and _is_small_file(path):
                yield path
                count += 1
                if count == MOST_FILES:
                    return


def _is_small_file(path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError:  # a link that leads nowhere
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size <= MOST_BYTES


def _is_fresh(cached: str, source: os.stat_result) -> bool:
    """Whether the import of the source would take what is cached."""
    try:
        with open(cached, "rb") as file:
            magic, flags, modified, size = _HEADER.unpack(file.read(_HEADER.size))
    except (OSError, struct.error):
        return False
    expected = (importlib.util.MAGIC_NUMBER, 0, int(source.st_mtime) & 0xFFFFFFFF, source.st_size & 0xFFFFFFFF)
    return (magic, flags, modified, size) == expected
