"""What the kernel offers for processes, and what to do where it does not.

Linux gives pidfds (a death is an event, a signal cannot hit a stranger that got the same number), a death signal from
parents, and subreapers. Elsewhere these functions do nothing or return None, and their callers poll.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Collection

try:
    import ctypes

    _libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
except (ImportError, OSError):  # small Debian Pythons come without ctypes
    _libc = None

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

_ROUNDS = 20
_RECENT_S = 2.0
HAS_PIDFD = hasattr(os, "pidfd_open")


def _prctl(option: int, value: int | bytes) -> None:
    if _libc is not None:
        _libc.prctl(option, value, 0, 0, 0)


def set_name(name: str) -> None:
    """The name that `ps` and `top` show, up to 15 characters."""
    _prctl(_PR_SET_NAME, name.encode()[:15])


def die_with(parent: int) -> None:
    """From now on this process is killed when its parent ends; at once where it has ended already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Descendants that lose their parent become children of this process, not of init: they stay within reach."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def whole(descriptor: int) -> bytes:
    """All that can be read until its end. Without `open`, whose first use in a forked process copies half a
    megabyte."""
    data = bytearray()
    while part := os.read(descriptor, 1 << 16):
        data += part
    return bytes(data)


def open_pidfd(process: int) -> int | None:
    """A descriptor that becomes readable when the process ends. None where there is no such thing."""
    if not HAS_PIDFD:
        return None
    try:
        return os.pidfd_open(process)
    except OSError:  # an old kernel, a sandbox that forbids it, or no descriptors left
        return None


def has_ended(pidfd: int) -> bool:
    poll = select.poll()  # select takes no descriptor above 1023
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def send_signal(number: int, process: int, pidfd: int | None) -> None:
    """Signals a process; nothing happens where it is gone."""
    try:
        if pidfd is None:
            os.kill(process, number)
        else:
            signal.pidfd_send_signal(pidfd, number)  # type: ignore[attr-defined, unused-ignore]
    except (ProcessLookupError, PermissionError):
        pass


def kill_group(leader: int) -> None:
    """Kills the process group of `leader`. Call it before the leader is reaped: until then the number is its own."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def peek_exit(process: int) -> tuple[int | None, int | None] | None:
    """(exit code, None) or (None, signal) of a child that has ended; it stays unreaped. None while it runs.

    ChildProcessError where it is not a child of this process."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13: it is reaped here and now
        found_process, status = os.waitpid(process, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status)
        return None if not found_process else (code, None) if code >= 0 else (None, -code)
    found = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    return (found.si_status, None) if found.si_code == os.CLD_EXITED else (None, found.si_status)


def reap(process: int) -> bool:
    """Collects a child that has ended, and says whether it did."""
    try:
        return os.waitpid(process, os.WNOHANG)[0] == process
    except ChildProcessError:
        return True


def children() -> list[int]:
    """The processes whose parent is this one, ended ones included."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        pass
    me = os.getpid()
    return [process for process, parent, _ in _processes() if parent == me]


def kill_sessions(leaders: Collection[int]) -> None:
    """Kills what is left of sessions whose leaders have died. The number of a session with members is never reused."""
    for _ in range(_ROUNDS):  # what a victim has just started is found in the next round
        victims = [process for process, _, session in _processes() if session in leaders]
        for process in victims:
            send_signal(signal.SIGKILL, process, None)
        if not victims:
            break
        time.sleep(0.005)


def _processes() -> list[tuple[int, int, int]]:
    """(process, parent, session) of every process that runs, as far as /proc shows; empty where there is none."""
    found = []
    try:
        names = os.listdir("/proc")
    except OSError:  # there is none, or no descriptor for it
        return []
    for name in names:
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if fields[0] not in (b"Z", b"X"):
                found.append((int(name), int(fields[1]), int(fields[3])))
    return found


class MemoryKills:
    """Counts what the kernel killed for want of memory, to tell such a death from another `kill -9`.

    Best effort: the counter is that of the own control group or of the whole machine, not the container's."""

    def __init__(self, path: str = "") -> None:
        own = [path for path in _own_memory_events() if os.path.exists(path)]
        self.path = path or (own[0] if own else "/proc/vmstat")
        self._seen = self._count()
        self._unclaimed = 0
        self._asked = time.monotonic()

    def claim(self) -> bool:
        """Whether the kernel has killed something that no recent death has been explained with. Claims it."""
        now, count = time.monotonic(), self._count()
        if now - self._asked > _RECENT_S:
            self._unclaimed = 0
        self._unclaimed += count - self._seen
        self._seen, self._asked = count, now
        if self._unclaimed <= 0:
            return False
        self._unclaimed -= 1
        return True

    def _count(self) -> int:
        try:
            with open(self.path, encoding="ascii") as file:
                return sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
        except OSError:
            return 0


def _own_memory_events() -> list[str]:
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            groups = [line.rstrip("\n").split("::", 1)[1] for line in file if line.startswith("0::")]
    except OSError:
        return []
    return [f"/sys/fs/cgroup{group.rstrip('/')}/memory.events" for group in groups]
