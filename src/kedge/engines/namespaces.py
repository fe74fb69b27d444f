"""Processes in namespaces of their own.

Containers are not the first process of their pid namespace, its *init*: they join (see `enter`), so that they stay
children of their fork server and die of their own signals. Where this process may not make namespaces, a user namespace
is made in which it may.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from kedge.engines import boot, confinement, kernel, mounts, system
from kedge.model.spec import Isolation

CAP_SYS_PTRACE, _CAP_SYS_ADMIN = 19, 21
READY = b"ready "
"""What is said of a room before the kinds of its namespaces; anything else is why there is none."""


class Base(NamedTuple):
    """Where namespaces are made: in this user namespace (None: that of this process), from these mounts."""

    user: int | None
    mount: int

    def join(self) -> None:
        """Only for a process with one thread."""
        if self.user is not None:
            kernel.setns(self.user, kernel.NEWUSER)
            kernel.setns(self.mount, kernel.NEWNS)

    def close(self) -> None:
        os.close(self.mount)
        if self.user is not None:
            os.close(self.user)


def make_base() -> Base:
    """OSError where this process can neither make namespaces nor a user namespace in which it could."""
    if not kernel.available():
        raise OSError(0, "this Python has no ctypes, or this processor is not known")
    if is_administrator():
        return Base(None, os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
    user, group = os.geteuid(), os.getegid()
    ours, theirs = socket.socketpair()
    holder = os.fork()
    if holder == 0:
        _hold(ours, theirs, user, group)
    theirs.close()
    try:
        answer = ours.recv(256)
        if answer != b"ok":
            raise OSError(0, answer.decode() or "the process that makes a user namespace died")
        flags = os.O_RDONLY | os.O_CLOEXEC
        return Base(os.open(f"/proc/{holder}/ns/user", flags), os.open(f"/proc/{holder}/ns/mnt", flags))
    finally:
        ours.close()
        os.waitpid(holder, 0)


def _hold(ours: socket.socket, theirs: socket.socket, user: int, group: int) -> NoReturn:
    """Is the first in a user namespace until somebody else holds it."""
    try:
        ours.close()
        try:
            kernel.unshare(kernel.NEWUSER | kernel.NEWNS)
            for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
                with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                    file.write(text)
            theirs.send(b"ok")
        except OSError as error:
            theirs.send(f"no user namespace: {error}".encode())
        theirs.recv(1)  # until the other side has opened it
    finally:
        os._exit(0)


def is_administrator() -> bool:
    return holds(_CAP_SYS_ADMIN)


def holds(capability: int) -> bool:
    """Whether this process has it."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> capability & 1)
    return False


# ---------------------------------------------------------------- making processes


def branch(base: Base, room: int | None = None, flags: int = 0) -> int:
    """Like os.fork, for a child of this process that is inside `base` and, where `room` is the pidfd of an init, in its
    pid namespace. `flags` makes further namespaces for it."""
    reader, writer = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            base.join()
            if room is not None:
                kernel.setns(room, kernel.NEWPID)
            child = kernel.clone(kernel.CLONE_PARENT | flags)
            if child == 0:
                os.close(reader)
                os.close(writer)
                return 0
            os.write(writer, struct.pack("ii", child, 0))
        except OSError as error:
            os.write(writer, struct.pack("ii", 0, error.errno or 0))
        except BaseException:  # nothing of the caller may run twice
            pass
        os._exit(0)
    os.close(writer)
    answer = os.read(reader, 8)
    os.close(reader)
    os.waitpid(between, 0)
    child, number = struct.unpack("ii", answer) if len(answer) == 8 else (0, 0)
    if not child:
        raise OSError(number, os.strerror(number) if number else "a process died on its way into its namespaces")
    return int(child)


# ---------------------------------------------------------------- inside


def needed(runtime: Sequence[str]) -> list[str]:
    """What the engine itself must find inside: kedge's own modules, and what its container side needs."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(boot.__file__)))
    return list(dict.fromkeys([package, *runtime]))


def enter(room: int, sock: int) -> None:
    """Takes this process, which is in the pid namespace of `room` already, into everything else of it, and confines it.
    Waits until the room is ready. Nothing of it can be undone."""
    answer = system.whole(sock)
    os.close(sock)
    if not answer.startswith(READY):
        raise OSError(0, answer.decode(errors="replace") or "the process that makes rooms died")
    kernel.setns(room, int(answer.removeprefix(READY)))
    os.close(room)
    confinement.confine()


def enter_as_fork_server(isolation: Isolation, stage: str, runtime: Sequence[str]) -> None:
    """The same files for the process that loads packages for containers, which goes on to make them: it keeps its
    rights and the machine's processes. `stage` is a directory of the machine; what is written lies in memory."""
    mounts.part()
    kernel.mount("tmpfs", stage, "tmpfs", kernel.MS_NODEV | kernel.MS_NOSUID)
    own = os.path.join(stage, "scratch")
    os.mkdir(own)
    mounts.move_in(mounts.build(isolation, own, needed(runtime), mounts.MACHINES))


class ContainerEntry:
    """Into a room, for a container that starts fresh."""

    parent = 0

    def __init__(self, base: Base, room: int, sock: int) -> None:
        self._base = base
        self._room = room
        self._socket = sock

    def fork(self) -> int:
        return branch(self._base, self._room)

    def enter(self) -> None:
        enter(self._room, self._socket)


class ForkServerEntry:
    """For a process that makes confined containers: it has the files of the first of them."""

    def __init__(self, base: Base, isolation: Isolation, stage: str, runtime: Sequence[str]) -> None:
        self.parent = os.getpid()
        self._base = base
        self._isolation = isolation
        self._stage = stage
        self._runtime = runtime

    def fork(self) -> int:
        return branch(self._base)

    def enter(self) -> None:
        if not self._isolation.shares_files:
            enter_as_fork_server(self._isolation, self._stage, self._runtime)
