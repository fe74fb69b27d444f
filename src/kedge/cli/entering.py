"""A way into a container that has namespaces of its own: a command there sees its files, its processes, its host name.

It enters as the user who gives it, without what holds the container's code back: it is for who looks after a server.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

from kedge.exception import UnavailableError

_NAMESPACES = {"user": 0x10000000, "mnt": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000, "net": 0x40000000}
_NEWPID = 0x20000000


def enter(process: int) -> None:
    """Goes where `process` is; what follows runs in a child of this process, whose exit code becomes its own.

    Nothing happens where it is nowhere else. UnavailableError where the kernel does not let this user in."""
    flags = 0
    for name, flag in _NAMESPACES.items():
        if _differs(process, name):
            flags |= flag
    apart = _differs(process, "pid")
    if not flags and not apart:
        return
    setns = ctypes.CDLL(None, use_errno=True).setns
    try:
        target = os.pidfd_open(process)
    except OSError as error:
        raise UnavailableError(f"the container has just ended ({error.strerror})") from None
    if setns(target, flags | (_NEWPID if apart else 0)) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise UnavailableError(
            f"the container has namespaces of its own, and this user may not enter them ({reason}): do it as root, "
            "or as the user whose server it is"
        )
    os.close(target)
    child = os.fork()  # only children are in another pid namespace
    if child:
        _wait(child)


def _wait(child: int) -> NoReturn:
    """Ends as the child does. The terminal's signals are for the child alone."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(child, number))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.stdout.flush()
    os._exit(code if code >= 0 else 128 - code)


def _differs(process: int, name: str) -> bool:
    try:
        return os.readlink(f"/proc/{process}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    except OSError:  # not Linux, or not a process that this user may look at
        return False
