"""Rooms: what the supervisor holds for containers in namespaces. They are made by the furnisher, a process beside.

A spare room is always there, so that a container need not wait for one. A room that is given back ends, and the kernel
ends whatever is left in it.
"""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from kedge.engines import furnisher, mounts, namespaces, remounting, scratch, system, wrapping
from kedge.engines.channel import Channel, ChannelClosed
from kedge.engines.errands import Errands
from kedge.engines.furnisher import Furnishing, RoomsWanted
from kedge.engines.loop import Loop
from kedge.engines.spawn import Entry
from kedge.model.spec import GVISOR, NAMESPACE, PROCESS, Launch, VolumeMount

SPARES = 2
"""Inits that wait: each takes less than a megabyte."""
DIED = "the process that makes rooms has died"
STILLBORN = "the process that makes rooms died before it had made any"


class Room:
    def __init__(self, process: int, pidfd: int, settled: int) -> None:
        self._process = process
        self._pidfd = pidfd
        """Of its init: for joining it."""
        self._settled = settled
        """A pipe that ends when its init has settled."""
        self._socket: socket.socket | None = None
        """Says when it is ready to be entered."""

    @property
    def keys(self) -> tuple[int, int]:
        """The descriptors that its container needs."""
        assert self._socket is not None
        return self._pidfd, self._socket.fileno()

    @property
    def stands(self) -> bool:
        """Nobody has ended its init."""
        return not system.has_ended(self._pidfd)

    def furnish(self, furnisher: Channel, order: Furnishing) -> None:
        """Has it made ready. ChannelClosed where there is no furnisher any more."""
        self._socket, theirs = socket.socketpair()
        with theirs:
            furnisher.send(order, (self._pidfd, self._settled, theirs.fileno()))
        os.close(self._settled)
        self._settled = -1

    def end(self) -> None:
        """Kills all that is left in it. May be called again."""
        if self._pidfd >= 0:
            system.send_signal(signal.SIGKILL, self._process, self._pidfd)
            for descriptor in (self._pidfd, self._settled):
                if descriptor >= 0:
                    os.close(descriptor)
            self._pidfd = self._settled = -1
            if self._socket is not None:
                self._socket.close()


class Guest(NamedTuple):
    """A container that is to have a room, and who wants to know which, or why there is none."""

    order: Furnishing
    answer: Callable[[Room | str], None]


class Supply:
    """Rooms of one kind: those that nobody has yet, those that are being made, and who waits for one."""

    def __init__(self, network: bool) -> None:
        self.network = network
        """The machine's."""
        self.spare: deque[Room] = deque()
        self.coming = 0
        self.waiting: deque[Guest] = deque()

    def lacking(self, count: int) -> int:
        """How many are to be made so that `count` more than those who wait find one."""
        return max(0, len(self.waiting) + count - len(self.spare) - self.coming)


class Rooms:
    """Has rooms made. The first use finds out how, and raises OSError where there is no way. `lost` is called when all
    rooms end at once, with whatever lives in them, by no fault of it."""

    def __init__(self, loop: Loop, errands: Errands, lost: Callable[[], None]) -> None:
        self._loop = loop
        self._tell_lost = lost
        self._errands = errands
        self._base: namespaces.Base | None = None
        self._furnisher: Channel | None = None
        self._proven = False
        """It has made rooms."""
        self._processes: list[int] = []
        """Furnishers: the present one, and those that have ended and are not reaped yet."""
        self._supplies = {network: Supply(network) for network in (True, False)}
        """By whether they have the machine's network."""
        self._scratches: set[str] = set()
        """Those that exist."""
        self._leaving: list[Launch] = []
        self._clearing: list[Launch] = []
        self._swept: set[str] = set()
        """Directories of scratch directories that were looked through for what dead supervisors have left."""

    # ------------------------------------------------------------ scratch directories

    def make_scratch(self, launch: Launch) -> None:
        """The scratch directory of a container. OSError where that cannot be."""
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
            if not answer:
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
        stage = ""
        if not isolation.shares_files:
            stage = mounts.stage_of(isolation.scratch)
            os.makedirs(stage, mode=0o755, exist_ok=True)
        files = replace(isolation, own=(), volumes=(), devices=(), network=True)
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
        return self._base

    def processes(self) -> list[int]:
        """Children of this process."""
        return list(self._processes)

    def expect(self, launches: Sequence[Launch]) -> None:
        """They come now, one after the other."""
        kinds = Counter(launch.isolation.network for launch in launches if launch.isolation.rung == NAMESPACE)
        for network, count in kinds.items():
            try:
                self._order(self._supplies[network], count)
            except OSError:  # whoever takes one hears of it
                pass

    def take(self, launch: Launch, runtime: Sequence[str], answer: Callable[[Room | str], None]) -> None:
        """A room for this container, which is made ready meanwhile; `answer` hears at once where one is spare. OSError
        where there can be none."""
        supply = self._supplies[launch.isolation.network]
        order = Furnishing(launch.isolation, launch.container, tuple(namespaces.needed(runtime)))
        supply.waiting.append(Guest(order, answer))
        try:
            self._order(supply, 0)
        except OSError:
            supply.waiting.pop()
            raise
        self._lodge(supply)

    def withdraw(self, container: str) -> bool:
        """Takes back a container that waits for a room; False where it does not."""
        for supply in self._supplies.values():
            for guest in supply.waiting:
                if guest.order.name == container:
                    supply.waiting.remove(guest)
                    return True
        return False

    def refill(self) -> None:
        """Prepares for the next ones. Call it when nobody waits."""
        try:
            self._order(self._supplies[True], SPARES)
        except OSError:  # whoever needs one will hear of it
            pass

    def check(self) -> None:
        """Some child of this process has changed."""
        self._processes = [process for process in self._processes if not system.reap(process)]

    def _order(self, supply: Supply, count: int) -> None:
        """OSError where there can be no furnisher; where one has died just now, those who wait have heard of it."""
        lacking = supply.lacking(count)
        if lacking:
            try:
                self._open().send(RoomsWanted(lacking, supply.network))
                supply.coming += lacking
            except ChannelClosed:
                self._lost()

    def _open(self) -> Channel:
        if self._furnisher is None:
            process, channel = furnisher.start(self.base)
            self._processes.append(process)
            self._furnisher = channel
            self._proven = False
            self._loop.watch(channel.fileno(), self._hear)
        return self._furnisher

    def _hear(self) -> None:
        assert self._furnisher is not None
        try:
            messages = self._furnisher.receive_at_hand(furnisher.AT_ONCE)
        except ChannelClosed:
            self._lost()
            return
        for message in messages:
            supply = self._supplies[message.network]
            supply.coming -= 1
            error = message.error
            if not error:
                try:
                    supply.spare.append(Room(message.process, *self._furnisher.take(2)))
                    self._proven = True
                except OSError as problem:  # none can be opened here
                    system.send_signal(signal.SIGKILL, message.process, None)
                    error = str(problem)
            if error and supply.waiting:
                supply.waiting.popleft().answer(error)
        for supply in self._supplies.values():
            self._lodge(supply)
            while len(supply.spare) > SPARES * supply.network:  # those for whom they were made are not wanted any more
                supply.spare.pop().end()

    def _lodge(self, supply: Supply) -> None:
        """Gives rooms to those who wait."""
        while supply.waiting and supply.spare:
            room = supply.spare.popleft()
            if not room.stands:
                room.end()
                self._order(supply, 0)
                continue
            assert self._furnisher is not None
            guest = supply.waiting[0]
            try:
                room.furnish(self._furnisher, guest.order)
            except ChannelClosed:
                room.end()
                self._lost()
                return
            except OSError as error:
                room.end()
                supply.waiting.popleft().answer(str(error))
            else:
                supply.waiting.popleft().answer(room)

    def _lost(self) -> None:
        """The furnisher has died, and all rooms with it; the next one who needs one starts another."""
        if self._furnisher is None:
            return
        self._loop.forget(self._furnisher.fileno())
        self._furnisher.close()
        self._furnisher = None
        self._tell_lost()
        for supply in self._supplies.values():
            supply.coming = 0
            rooms, supply.spare = supply.spare, deque()
            guests, supply.waiting = supply.waiting, deque()
            for room in rooms:
                room.end()
            for guest in guests:
                guest.answer(DIED if self._proven else STILLBORN)


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
