"""The limits of containers: what bounds each, who watches what the kernel does not bound, and why one was ended.

Where there are control groups, the kernel bounds cpu, memory and pids of a container that has limits, in a group of its
own. All other forked containers live in one group with their fork servers: that costs them nothing, and bounds what all
of them together can do to the machine. Without control groups, or for what they lack:

* memory: the process tree is measured four times a second, and ended above its limit;
* pids: the processes of all containers are counted as often, which is one number; only where they are many, those of
  each container;
* cpu: the container stays on as many cores as it may use;
* disk: its own directory is measured every few seconds, in a process beside, so that no disk makes this one wait; no
  file of it can become larger than the limit.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from kedge.engines import cgroups, system, usage
from kedge.engines.bounds import Bounds, lower
from kedge.engines.cgroups import Group, Groups
from kedge.engines.diskmeter import DiskMeter
from kedge.engines.loop import Loop, Timer
from kedge.model.spec import OCI, Launch, Limits

MOST_PIDS = 4096
"""Processes and threads of a container that says nothing else: four times what a thousand inputs in threads take, and
an eighth of what a small kernel has for everybody."""
PIDS_VARIABLE = "KEDGE_MAX_PIDS"
"""Variable of the server with another number."""
_SHARES = 8
"""All containers without limits together may have as many times that, and never more than half of what the kernel
has."""
_NICE = -10
"""Of the process that watches, where that is allowed: among thousands of busy processes it would be heard too late."""
SWITCH = "KEDGE_CONTROL_GROUPS"
"""Variable of the server: `off` leaves control groups alone."""
_TICK_S = 0.25
_IDLE_PART = 20
"""Measuring takes at most one part in so many of the time."""
_PATIENCE_S = 0.01
_ROUNDS = 20
_REACHED = 0.9
"""Of its limit: who was killed with less was killed for want of the machine's memory, not of its own."""
_MOST_LOOKS = 100
"""How often the kernel is asked whom it has killed, after it has said that memory ran out."""
_REMOVALS = (0.02, 0.1, 0.5, 2.0)
"""When a group is tried again that could not be removed, since a process in it had not quite ended."""


class Finding(NamedTuple):
    """What is known of an end beside the exit status."""

    reason: str = ""
    """To go after "it was"; empty where no limit has anything to do with it."""
    out_of_memory: bool = False
    peak_memory: int | None = None
    counted: bool = False
    """It is known whether any of its processes was killed for want of memory."""


class _Case:
    def __init__(self, launch: Launch) -> None:
        self.name = launch.container
        self.limits = launch.isolation.limits
        self.request = launch.function.resources.memory
        self.scratch = launch.isolation.scratch
        self.rung = launch.isolation.rung
        self.process = 0
        self.group: Group | None = None
        self.bounds = Bounds()
        self.bell: int | None = None
        self.rang = False
        """Memory has run out in its group."""
        self.reason = ""
        self.out_of_memory = False
        self.peak = 0
        """Bytes, where this process has measured them."""
        self.told = False
        """It has been said why it gets no more processes."""
        self.measured_again = 0.0
        """When its memory may be measured next."""

    def holds(self, controller: str) -> bool:
        return self.group is not None and self.group.holds(controller)


class Warden:
    """`end` is called with the name of a container that has gone beyond a limit: its end is expected at once. `say`
    puts a line into the output of one that stays within them, and gets to feel it."""

    def __init__(self, loop: Loop, end: Callable[[str], None], say: Callable[[str, str], None]) -> None:
        self._loop = loop
        self._end = end
        self._say = say
        self._cases: dict[str, _Case] = {}
        kin = {os.getpid(), os.getppid()}
        found = cgroups.Found({}, {}) if os.environ.get(SWITCH) == "off" else cgroups.find(kin=kin)
        self._most_pids = most_pids(os.environ.get(PIDS_VARIABLE, ""))
        self._nice = _hurried()
        self._groups = Groups(found)
        self._groups.open(kin)
        self._leaving: dict[Group, None] = {}
        """Groups that could not be removed yet."""
        self._shared = self._share()
        self._pinned: Counter[int] = Counter()
        self._ticking: Timer | None = None
        self._counted_again = 0.0
        self._fewest = usage.tasks_of_machine()
        """Processes and threads of the machine when there were fewest."""
        self._disk = DiskMeter(loop, self._disks_measured)

    @property
    def memory_events(self) -> str:
        """Where the kernel counts containers without a group of their own that it has killed for want of memory."""
        return self._shared.memory_events if self._shared is not None else ""

    def processes(self) -> list[int]:
        """Own helpers of this process."""
        return self._disk.processes()

    def of_fork_server(self) -> Bounds:
        return Bounds(groups=self._shared.doors if self._shared is not None else (), nice=self._nice)

    def admit(self, launch: Launch, fresh: bool = False) -> Bounds:
        """What the process of a container must bind itself to. One that starts fresh has the time for a group of its
        own in any case."""
        case = self._cases.get(launch.container)
        if case is None:
            case = self._cases[launch.container] = _Case(launch)
        limits = case.limits
        if case.group is None and (fresh or limits != Limits(disk=limits.disk)):
            try:
                case.group = self._groups.make(case.name, replace(limits, pids=limits.pids or self._most_pids))
            except OSError:  # what it would have bounded is watched instead
                pass
            if case.group is not None and limits.memory and (bell := case.group.listen()) is not None:
                case.bell = bell
                self._loop.watch(bell, lambda: self._rang(case))
        case.bounds = Bounds(
            groups=case.group.doors if case.group is not None else (),
            cores=case.bounds.cores or self._cores(case),
            file_size=(limits.disk or 0) * 2**20,
            nice=self._nice,
        )
        return case.bounds

    def born(self, name: str, process: int) -> None:
        case = self._cases.get(name)
        if case is not None:
            case.process = process
            if case.reason:
                self._end(name)  # it was too late to end it before
            if self._ticking is None:
                self._ticking = self._loop.later(_TICK_S, self._tick)
            if case.limits.disk is not None and case.scratch:
                self._disk.add(name, case.scratch)

    def gone(self, name: str) -> Finding:
        """Its main process has ended, or never was: ends the rest of its group, and says what is known."""
        case = self._cases.pop(name, None)
        if case is None:
            return Finding()
        self._disk.remove(name)
        self._pinned.subtract(case.bounds.cores)
        if case.bell is not None:
            self._loop.forget(case.bell)
            case.rang = case.rang or _has_rung(case.bell)
            os.close(case.bell)
        group = case.group
        kills = max(group.memory_kills(), case.rang) if group is not None else 0
        peak = group.peak_memory() if group is not None else None
        if peak is None and case.peak:
            peak = math.ceil(case.peak / 2**20)
        if group is not None:
            self._remove(group)
        if case.rung == OCI:
            self._remove(cgroups.left_nested(name))
        if kills and not case.reason:
            case.out_of_memory = True
        if case.out_of_memory:
            case.reason = memory_text(peak, case.limits.memory, case.request)
        return Finding(case.reason, case.out_of_memory, peak, case.holds("memory"))

    def close(self) -> None:
        """All processes have ended: no group stays."""
        for group in self._leaving:
            group.remove()
        self._groups.close()

    # ------------------------------------------------------------ groups and cores

    def _share(self) -> Group | None:
        try:
            group: Group | None = self._groups.make("shared", Limits(pids=shared_pids(self._most_pids)))
        except OSError:
            group = None
        if group is not None and group.doors:
            return group
        # Not by root: then the kernel bounds what this user has on the machine, these containers among it.
        lower(resource.RLIMIT_NPROC, shared_pids(self._most_pids))
        return None

    def _remove(self, group: Group, attempt: int = 0) -> None:
        if group.remove() or attempt == len(_REMOVALS):
            self._leaving.pop(group, None)
        else:
            self._leaving[group] = None
            self._loop.later(_REMOVALS[attempt], lambda: self._remove(group, attempt + 1))

    def _cores(self, case: _Case) -> tuple[int, ...]:
        """The least used cores, as many as it may use; all where the kernel bounds it, or it may use all."""
        if case.limits.cpu is None or case.holds("cpu") or not hasattr(os, "sched_getaffinity"):
            return ()
        there, wanted = sorted(os.sched_getaffinity(0)), max(1, math.ceil(case.limits.cpu))
        if wanted >= len(there):
            return ()
        chosen = tuple(sorted(there, key=lambda core: self._pinned[core])[:wanted])
        self._pinned.update(chosen)
        return chosen

    # ------------------------------------------------------------ memory and pids

    def _exceeded(self, case: _Case, reason: str = "", out_of_memory: bool = False) -> None:
        if case.name in self._cases and not case.reason:
            case.reason, case.out_of_memory = reason, out_of_memory
            self._end(case.name)

    def _rang(self, case: _Case, looks: int = 0) -> None:
        """Memory has run out in its group, and the kernel kills somebody in there: the container ends as a whole."""
        if case.name not in self._cases or case.group is None:
            return
        if looks == 0 and case.bell is not None and _has_rung(case.bell):
            case.rang = True
        if case.group.memory_kills():
            self._exceeded(case, "out of memory", out_of_memory=True)
        elif looks < _MOST_LOOKS:
            self._loop.later(_PATIENCE_S, lambda: self._rang(case, looks + 1))

    def _tick(self) -> None:
        self._ticking = None
        living = [case for case in self._cases.values() if case.process]
        if not living:
            return
        for case in living:
            if case.limits.memory is not None and not case.holds("memory"):
                self._weigh(case)
            if case.group is not None and not case.told and case.group.refusals():
                case.told = True
                self._say(case.name, refusal_text(case.limits.pids or self._most_pids))
        self._count([case for case in living if not case.holds("pids")])
        self._ticking = self._loop.later(_TICK_S, self._tick)

    def _weigh(self, case: _Case) -> None:
        """Ends a container whose processes have more than they may. What they share with their fork server is not
        theirs alone, and takes longer to tell: it is only told apart where it matters."""
        assert case.limits.memory is not None
        now, limit = time.monotonic(), case.limits.memory * 2**20
        processes = usage.tree(case.process)
        if now < case.measured_again or usage.resident(processes) <= max(limit, case.peak):
            return
        used = usage.proportional(processes)
        case.measured_again = now + _IDLE_PART * (time.monotonic() - now)
        case.peak = max(case.peak, used)
        if used > limit:
            self._exceeded(case, "out of memory", out_of_memory=True)

    def _count(self, unbounded: list[_Case]) -> None:
        started = time.monotonic()
        least = min((case.limits.pids or self._most_pids for case in unbounded), default=0)
        if not least or started < self._counted_again or self._tasks() <= least:
            return
        found = usage.census([case.process for case in unbounded])
        for case in unbounded:
            count, most = found[case.process].threads, case.limits.pids or self._most_pids
            if count > most:
                self._stop(case.process)
                self._exceeded(case, pids_text(count, most))
        self._counted_again = started + _IDLE_PART * (time.monotonic() - started)

    def _tasks(self) -> int:
        """At least as many as any container has; one small file tells."""
        if self._shared is not None:
            return self._shared.tasks()
        now = usage.tasks_of_machine()
        self._fewest = min(self._fewest, now)
        return now - self._fewest

    def _stop(self, root: int) -> None:
        """Kills what a container has started, while nobody of the shared group can make another process: what is
        killed one by one would otherwise be made anew as fast."""
        if self._shared is not None:
            self._shared.limit_pids(0)
        for _ in range(_ROUNDS):
            below = [process for process in usage.census([root])[root].processes if process != root]
            for process in below:
                system.send_signal(signal.SIGKILL, process, None)
            if self._shared is not None or not below:
                break
        if self._shared is not None:
            self._shared.limit_pids(shared_pids(self._most_pids))

    # ------------------------------------------------------------ disk

    def _disks_measured(self, sizes: dict[str, int]) -> None:
        for name, size in sizes.items():
            case = self._cases.get(name)
            if case is not None and case.limits.disk is not None and size > case.limits.disk * 2**20:
                self._exceeded(case, disk_text(size, case.limits.disk))


# ---------------------------------------------------------------- what is said


def _has_rung(bell: int) -> bool:
    try:
        return os.eventfd_read(bell) > 0
    except BlockingIOError:
        return False


def _hurried() -> int:
    """Puts this process before others, where it may. Returns how nice it was, for what it starts."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, min(before, _NICE))
        with open("/proc/self/autogroup", "w", encoding="ascii") as file:  # sessions share the cores, not processes
            file.write(str(min(before, _NICE)))
    except OSError:
        pass
    return before


def most_pids(text: str) -> int:
    """
    >>> most_pids(""), most_pids("200"), most_pids("many")
    (4096, 200, 4096)
    """
    return max(1, int(text)) if text.isdecimal() else MOST_PIDS


def shared_pids(each: int) -> int:
    """
    >>> 100 <= shared_pids(100) <= 800
    True
    """
    most = _SHARES * each
    for name in ("pid_max", "threads-max"):
        try:
            with open(f"/proc/sys/kernel/{name}", encoding="ascii") as file:
                most = min(most, int(file.read()) // 2)
        except (OSError, ValueError):
            pass
    return max(most, each)


def memory_text(peak: int | None, limit: int | None, request: int) -> str:
    """
    >>> memory_text(300, 512, 128)
    'killed by the kernel: the machine had no memory left; it used 300 MiB itself'
    >>> memory_text(512, 512, 128)
    'out of memory: it used 512 MiB, and its limit is 512 MiB; write memory=(128, 1024) (MiB) to give it twice as much'
    """
    if limit is None or (peak is not None and peak < _REACHED * limit):
        return "killed by the kernel: the machine had no memory left" + (f"; it used {peak} MiB itself" if peak else "")
    used = "" if peak is None else f" it used {peak} MiB, and"
    more = f"write memory=({min(request, limit)}, {2 * limit}) (MiB) to give it twice as much"
    return f"out of memory:{used} its limit is {limit} MiB; {more}"


def pids_text(count: int, most: int) -> str:
    """
    >>> pids_text(4200, 4096)
    'ended by kedge: it had 4200 processes and threads, and may have 4096'
    """
    return f"ended by kedge: it had {count} processes and threads, and may have {most}"


def refusal_text(most: int) -> str:
    """
    >>> refusal_text(4096)
    'kedge: a new process or thread was refused: this container may have 4096 (KEDGE_MAX_PIDS of the server)\\n'
    """
    return (
        f"kedge: a new process or thread was refused: this container may have {most} ({PIDS_VARIABLE} of the server)\n"
    )


def disk_text(size: int, limit: int) -> str:
    """
    >>> disk_text(3 * 2**29, 1024)
    'ended by kedge: its own files took 1536 MiB of disk, and ephemeral_disk=1024 (MiB) is its limit'
    """
    used = math.ceil(size / 2**20)
    return f"ended by kedge: its own files took {used} MiB of disk, and ephemeral_disk={limit} (MiB) is its limit"
