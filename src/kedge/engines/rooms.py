"""Rooms: what the supervisor holds for containers in namespaces. One room is one pid namespace, held by its init.

A spare room is always ready, so that no container waits for one. A room that is given back ends, and the kernel ends
whatever is left in it.
"""

from __future__ import annotations

import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from msgspec.structs import replace

from kedge.engines import density, namespaces, remounting, scratch, system, wrapping
from kedge.engines.errands import Errands
from kedge.engines.spawn import Entry
from kedge.model.spec import GVISOR, NAMESPACE, PROCESS, Launch, VolumeMount

SPARES = 2
"""Inits that wait: each takes about a megabyte."""
AT_ONCE = 8
"""Inits that are made in a row where many containers come: after each fork this process copies what it writes to. More
would keep the first container waiting."""


class Room:
    def __init__(self, process: int, pidfd: int, sock: socket.socket) -> None:
        self.process = process
        self.pidfd = pidfd
        """Of its init: for joining it."""
        self.socket = sock
        """Says when it is ready to be entered."""

    @property
    def keys(self) -> tuple[int, int]:
        """The descriptors that its container needs."""
        return self.pidfd, self.socket.fileno()

    def end(self) -> None:
        """Kills all that is left in it. May be called again."""
        if self.pidfd >= 0:
            system.send_signal(signal.SIGKILL, self.process, self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
            self.socket.close()


class Rooms:
    """Makes rooms. The first use finds out how, and raises OSError where there is no way."""

    def __init__(self, errands: Errands) -> None:
        self._errands = errands
        self._base: namespaces.Base | None = None
        self._own = -1
        self._spare: deque[Room] = deque()
        self._expected = 0
        """Containers that may need one, of those that the server has asked for at once."""
        self._taken: dict[int, Room] = {}
        self._scratches: set[str] = set()
        """Those that exist."""
        self._leaving: list[Launch] = []
        self._clearing: list[Launch] = []
        self._swept: set[str] = set()
        """Directories of scratch directories that were looked through for what dead supervisors have left."""

    # ------------------------------------------------------------ scratch directories

    def furnish(self, launch: Launch) -> None:
        """Makes the scratch directory of a container. OSError where that cannot be."""
        path = launch.isolation.scratch
        if path and launch.isolation.rung != PROCESS:
            scratch.make(path)
            self._scratches.add(path)
            directory = os.path.dirname(path.rstrip("/"))
            if directory not in self._swept:
                self._swept.add(directory)
                self._errands.send(partial(_swept, directory), _ignore)

    def clear(self, launch: Launch) -> None:
        """Its container has ended."""
        if launch.isolation.scratch in self._scratches:
            self._leaving.append(launch)
            self._clear_leaving()

    def _clear_leaving(self) -> None:
        """One process removes what many have left: they often end together."""
        if self._clearing or not self._leaving:
            return
        self._clearing, self._leaving = self._leaving, []

        def cleared(answer: str) -> None:
            self._scratches.difference_update(launch.isolation.scratch for launch in self._clearing)
            self._clearing = []
            self._clear_leaving()

        self._errands.send(partial(_cleared, self._clearing), cleared)

    def clear_all(self) -> None:
        """All containers have ended, and nobody goes on errands any more."""
        for path in self._scratches:
            scratch.clear(path)

    def remount(self, launch: Launch, process: int, volume: VolumeMount, answer: Callable[[str], None]) -> None:
        """Shows another version of a volume in a living container; `answer` hears why that was not possible."""
        if launch.isolation.rung != NAMESPACE:
            answer(
                f"containers on the rung {launch.isolation.rung} keep the version of a volume that they started with"
            )
            return
        scratch = launch.isolation.scratch
        self._errands.send(partial(remounting.remount, self.base, process, volume, scratch), answer)

    # ------------------------------------------------------------ ways in

    def fork_server_entry(self, launch: Launch, runtime: Sequence[str]) -> Entry:
        isolation = launch.isolation
        stage = "" if isolation.shares_files else scratch.make_stage(isolation.scratch)
        files = replace(isolation, volumes=(), devices=(), network=True)
        return namespaces.ForkServerEntry(self.base, files, stage, runtime)

    def way_in(
        self, launch: Launch, room: Room | None, runtime: Sequence[str], runner: str, variables: Mapping[str, str]
    ) -> tuple[list[str], Entry | None]:
        """The command line of a container that starts fresh, and how its process comes to where it is to live."""
        arguments = wrapping.command(launch, runtime, runner)
        if room is not None:
            return arguments, namespaces.ContainerEntry(self.base, *room.keys)
        if launch.isolation.rung in wrapping.WRAPPED:
            entry = wrapping.WrappedEntry(self.base, launch, runtime)
            return entry.wrap(arguments, variables), entry
        return arguments, None

    def ask_to_leave(self, launch: Launch, process: int, pidfd: int | None) -> None:
        isolation = launch.isolation
        if isolation.rung == GVISOR:
            self._errands.send(partial(wrapping.ask_to_leave, isolation, launch.container), _ignore)
            return
        asked = wrapping.addressee(isolation.rung, process)
        system.send_signal(signal.SIGTERM, asked, pidfd if asked == process else None)

    # ------------------------------------------------------------ rooms

    @property
    def base(self) -> namespaces.Base:
        if self._base is None:
            self._base = namespaces.make_base()
            density.fill()
            own = system.open_pidfd(os.getpid())
            self._own = -1 if own is None else own
        return self._base

    def processes(self) -> list[int]:
        """The inits of all rooms."""
        return [*self._taken, *(room.process for room in self._spare)]

    def expect(self, count: int) -> None:
        """So many launches come now, one after the other."""
        self._expected = count

    def take(self, launch: Launch, runtime: Sequence[str]) -> Room:
        """A room for this container, which is made ready meanwhile."""
        if not self._spare:
            self._stock(max(1, min(self._expected, AT_ONCE)))
        self._expected -= 1
        room = self._spare.popleft()
        self._taken[room.process] = room
        needed = tuple(namespaces.needed(runtime))
        try:
            namespaces.furnish(room.socket, namespaces.Furnishing(launch.isolation, launch.container, needed))
        except OSError:  # its init has died: whoever enters hears of it
            pass
        return room

    def refill(self) -> None:
        """Prepares for the next ones. Call it when nobody waits."""
        try:
            self._stock(SPARES)
        except OSError:  # whoever needs one will hear of it
            pass

    def _stock(self, count: int) -> None:
        """Makes so many that they are spare; OSError where there is none then."""
        try:
            while len(self._spare) < count:
                self._spare.append(self._make())
        except OSError:
            if not self._spare:
                raise

    def check(self) -> None:
        """Some child of this process has changed: forgets rooms whose init has ended. That of a room in use is looked
        for when its container has ended, which is at the same time."""
        ended = [process for process, room in self._taken.items() if room.pidfd < 0]
        for process in [*ended, *(room.process for room in self._spare)]:
            if system.peek_exit(process) is not None:
                system.reap(process)
                self._taken.pop(process, None)
                for room in [room for room in self._spare if room.process == process]:
                    self._spare.remove(room)
                    room.end()

    def _make(self) -> Room:
        process, sock = namespaces.make_init(self.base, self._own)
        pidfd = system.open_pidfd(process)
        if pidfd is None:
            sock.close()  # then it leaves
            raise OSError(0, "this kernel has no pidfds")
        return Room(process, pidfd, sock)


def _cleared(launches: Sequence[Launch]) -> str:
    for launch in launches:
        wrapping.forget(launch.isolation.scratch)
        scratch.clear(launch.isolation.scratch)
    return ""


def _swept(directory: str) -> str:
    scratch.sweep(directory, wrapping.forget)
    return ""


def _ignore(answer: str) -> None:
    """Where it went wrong, whoever waits for the effect does something else in time."""
