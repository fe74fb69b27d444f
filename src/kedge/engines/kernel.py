"""System calls of Linux that Python does not wrap, as functions that raise OSError. Nothing here decides anything.

The mount calls of Linux 5.12 are required: they make a mount first and attach it later, so that a path of the machine
and a path inside a container are never resolved in the same place.
"""

from __future__ import annotations

import os
import platform
import struct
from typing import Any

try:
    import ctypes

    _libc: Any = ctypes.CDLL(None, use_errno=True)
    _held: Any = ctypes.PyDLL(None, use_errno=True)
    """Keeps the interpreter's lock: what clones this process must not find it taken."""
except (ImportError, OSError, AttributeError):  # small Debian Pythons come without ctypes; elsewhere there is no libc
    _libc = _held = None

NEWNS = 0x00020000
NEWUTS = 0x04000000
NEWIPC = 0x08000000
NEWUSER = 0x10000000
NEWPID = 0x20000000
NEWNET = 0x40000000
CLONE_PARENT = 0x00008000
_CLONE_PIDFD = 0x00001000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_SLAVE = 4096, 16384, 1 << 19
MNT_DETACH, MNT_EXPIRE = 2, 4
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_CLOEXEC = os.O_CLOEXEC
_MOVE_FROM_DESCRIPTOR = 0x04
_MOVE_FOLLOW_LINKS = 0x10
_MOVE_BENEATH = 0x200

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}.get(platform.machine(), -1)
_CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine(), -1)
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
LANDLOCK_CREATE, LANDLOCK_RESTRICT = 444, 446


def available() -> bool:
    """Whether there is anything to call, on a processor whose numbers are known here."""
    return _libc is not None and _PIVOT_ROOT > 0


def _checked(result: int, what: str = "") -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what or None)
    return result


def syscall(number: int, *arguments: Any) -> int:
    return _checked(_libc.syscall(ctypes.c_long(number), *map(_word, arguments)))


def _word(value: Any) -> Any:
    return ctypes.c_long(value) if isinstance(value, int) else value


def prctl(option: int, *values: Any) -> int:
    padded = [*map(_word, values), *[ctypes.c_long(0)] * (4 - len(values))]
    return _checked(_libc.prctl(option, *padded))


# ---------------------------------------------------------------- processes and namespaces


def clone(flags: int) -> int:
    """Like fork, with flags. Only for a process with one thread; the exit signal is SIGCHLD."""
    zero = ctypes.c_long(0)
    return _checked(_held.syscall(ctypes.c_long(_CLONE), ctypes.c_long(flags | 17), zero, zero, zero, zero))


def clone_with_pidfd(flags: int) -> tuple[int, int]:
    """Like `clone`. In the parent, (process, pidfd); in the child, the process is 0."""
    zero, pidfd = ctypes.c_long(0), ctypes.c_int(-1)
    words = ctypes.c_long(flags | _CLONE_PIDFD | 17), zero, ctypes.byref(pidfd), zero, zero
    return _checked(_held.syscall(ctypes.c_long(_CLONE), *words)), pidfd.value


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    _checked(_libc.setns(descriptor, kind), "setns")


# ---------------------------------------------------------------- mounts


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    texts = [os.fsencode(text) if text else None for text in (source, target, kind)]
    _checked(_libc.mount(*texts, ctypes.c_ulong(flags), os.fsencode(data) if data else None), target)


def umount(target: str, flags: int = MNT_DETACH) -> None:
    _checked(_libc.umount2(os.fsencode(target), flags), target)


def pivot_root(new: str, old: str) -> None:
    syscall(_PIVOT_ROOT, os.fsencode(new), os.fsencode(old))


def copy_tree(path: str) -> int:
    """A descriptor of a mount like a recursive bind of `path`, attached nowhere yet."""
    flags = _OPEN_TREE_CLONE | _CLOEXEC | _AT_RECURSIVE
    try:
        return syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None


def attach(descriptor: int, target: str, *, beneath: bool = False) -> None:
    """Puts a mount that is attached nowhere at `target`, on top of what is there or (since Linux 6.5) beneath it."""
    flags = _MOVE_FROM_DESCRIPTOR | _MOVE_FOLLOW_LINKS | (_MOVE_BENEATH if beneath else 0)
    try:
        syscall(_MOVE_MOUNT, descriptor, b"", _AT_FDCWD, os.fsencode(target), flags)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), target) from None


def restrict(descriptor: int, attributes: int) -> None:
    """Sets mount attributes on a whole tree that is attached nowhere."""
    request = ctypes.create_string_buffer(struct.pack("4Q", attributes, 0, 0, 0), 32)
    syscall(_MOUNT_SETATTR, descriptor, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, request, 32)
