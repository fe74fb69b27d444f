"""Bytecode of the users' code, beside its source. Containers with files of their own cannot write there: without it,
each of them would compile everything that it imports.

Compiling runs nothing of the code. It happens in a child of a fork server, which has the right interpreter, and only
while nobody else wants the processor.
"""

from __future__ import annotations

import importlib.util
import os
import struct
import warnings
from collections.abc import Iterator

MOST_FILES = 2000
MOST_BYTES = 1 << 20
"""Of one source file: what is larger is data."""
_HEADER = struct.Struct("<4sIII")


def write(directory: int, root: str) -> None:
    """Compiles what lies below a directory that is open as `directory` and known as `root`, where that was not done
    yet. What cannot be compiled is left: whoever imports it is told why."""
    import py_compile

    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
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


def _sources(top: str) -> Iterator[str]:
    count = 0
    for place, directories, names in os.walk(top):
        directories[:] = sorted(name for name in directories if name != "__pycache__")
        for name in sorted(names):
            path = os.path.join(place, name)
            if name.endswith(".py") and os.path.getsize(path) <= MOST_BYTES:
                yield path
                count += 1
                if count == MOST_FILES:
                    return


def _is_fresh(cached: str, source: os.stat_result) -> bool:
    """Whether the import of the source would take what is cached."""
    try:
        with open(cached, "rb") as file:
            magic, flags, modified, size = _HEADER.unpack(file.read(_HEADER.size))
    except (OSError, struct.error):
        return False
    expected = (importlib.util.MAGIC_NUMBER, 0, int(source.st_mtime) & 0xFFFFFFFF, source.st_size & 0xFFFFFFFF)
    return (magic, flags, modified, size) == expected
