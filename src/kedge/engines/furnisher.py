"""The process that makes rooms, beside the supervisor: small, with one thread, and always warm.

A *room* is a pid namespace with all that a container finds around it, held by its first process, the *init*: it lives
as long as that one, and the kernel kills all that is left in it when that one ends. Inits are this process's children
and do nothing but wait. This process goes into the namespaces of one after the other, puts its files together there,
and comes back: what a new process would do once, and copy memory for, it does again and again.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import traceback
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple, NoReturn

from kedge.engines import density, kernel, mounts, system
from kedge.engines.channel import Channel, ChannelClosed
from kedge.engines.namespaces import CAP_SYS_PTRACE, READY, Base, holds
from kedge.model.protocol import Message
from kedge.model.spec import Isolation

AT_ONCE = 8
"""Inits that are made in a row where many are wanted: after each, this process copies what it writes to. More would
keep the first room waiting."""
_KINDS = kernel.NEWNS | kernel.NEWIPC | kernel.NEWUTS
_PR_SET_DUMPABLE = 4
_MOST_DESCRIPTORS = 1 << 20
_SENT_AHEAD = 1 << 20
"""Bytes that may wait for this process, so that the supervisor does not."""
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


class RoomsWanted(Message, frozen=True):
    """To the furnisher: make inits."""

    count: int
    network: bool = True
    """The machine's; else one of its own, that leads nowhere."""


class RoomMade(Message, frozen=True):
    """From the furnisher: an init. Where there is no `error`, two descriptors come along: its pidfd, and a pipe that
    ends when it has settled."""

    network: bool = True
    process: int = 0
    error: str = ""


class Furnishing(Message, frozen=True):
    """To the furnisher: what to make of a room. The two descriptors of `RoomMade` come back, and one that is told when
    it is ready, or why it cannot be."""

    isolation: Isolation
    name: str
    needed: tuple[str, ...] = ()
    """Directories of the engine's own."""


def start(base: Base) -> tuple[int, Channel]:
    """A new child of this process, and the way to it. It ends when the way is closed, and all rooms with it."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SENT_AHEAD)
    parent = os.getpid()
    process = os.fork()
    if process == 0:
        try:
            ours.close()
            Furnisher(base, parent, theirs).run()
        except ChannelClosed:
            pass
        except BaseException:  # what was the supervisor's to do must not be done here
            traceback.print_exc()
        finally:
            os._exit(0)
    theirs.close()
    return process, Channel(ours, RoomMade)


class Home(NamedTuple):
    """The namespaces of this process itself."""

    mount: int
    uts: int

    def go(self) -> None:
        try:
            kernel.setns(self.mount, kernel.NEWNS)
            kernel.setns(self.uts, kernel.NEWUTS)
        except OSError as error:  # the next room would be made of what this container has
            try:
                os.write(2, f"kedge: the process that makes rooms cannot leave one: {error}\n".encode())
            finally:
                os._exit(1)


class Furnisher:
    """In the process itself."""

    def __init__(self, base: Base, parent: int, sock: socket.socket) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children need no reaping, in inits neither
        _close_all_but({2, sock.fileno(), base.mount, *([] if base.user is None else [base.user])})
        base.join()
        system.die_with(parent)  # joining has undone what was said before
        system.set_name("kedge-rooms")
        if base.user is not None:  # it could not come back to the machine's
            kernel.unshare(kernel.NEWUTS)
        elif holds(CAP_SYS_PTRACE):  # shut twice; elsewhere nobody could join an init any more
            kernel.prctl(_PR_SET_DUMPABLE, 0)
        flags = os.O_RDONLY | os.O_CLOEXEC
        self._home = Home(os.open("/proc/self/ns/mnt", flags), os.open("/proc/self/ns/uts", flags))
        self._self = os.pidfd_open(os.getpid())
        self._channel = Channel(sock, RoomsWanted | Furnishing)
        self._own = {2, sock.fileno(), *self._home, self._self}
        self._wanted: deque[bool] = deque()
        mounts.in_user_namespace()  # where /proc is another one, it cannot be found out
        density.fill()

    def run(self) -> None:
        """Until the channel closes."""
        while True:
            messages = [] if self._wanted else self._channel.receive()
            messages += self._channel.receive_at_hand(4 * AT_ONCE)
            for message in messages:
                if isinstance(message, RoomsWanted):
                    self._wanted.extend([message.network] * message.count)
                    continue
                try:
                    init, settled, answer = self._channel.take(3)
                except OSError:  # too many are open; whoever waits sees that nobody answers
                    continue
                self._furnish(message, init, settled, answer)
            self._make([self._wanted.popleft() for _ in range(min(AT_ONCE, len(self._wanted)))])

    def _make(self, kinds: Iterable[bool]) -> None:
        made: list[tuple[RoomMade, tuple[int, ...]]] = []
        for network in kinds:
            opened: tuple[int, ...] = ()
            try:
                opened = settled, settling = os.pipe()
                flags = _KINDS | kernel.NEWPID | (0 if network else kernel.NEWNET)
                process, pidfd = kernel.clone_with_pidfd(flags)
                if process == 0:
                    self._settle(network, settling)
                made.append((RoomMade(network, process), (pidfd, settled)))
                os.close(settling)
            except OSError as error:
                for descriptor in opened:
                    os.close(descriptor)
                made.append((RoomMade(network, error=f"no process can be made: {error}"), ()))
        for message, descriptors in made:
            self._channel.send(message, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)

    def _settle(self, network: bool, settling: int) -> NoReturn:
        """An init. It keeps its rights: whoever has less cannot look into it."""
        try:
            system.die_with(0)
            if system.has_ended(self._self):
                os._exit(1)
            system.set_name("kedge-init")
            try:
                mounts.keep_apart()
                mounts.make_proc()
                if not network:
                    _loopback_up()
            except OSError as error:
                os.write(settling, str(error).encode(errors="replace"))
                os._exit(1)
            os.closerange(0, _MOST_DESCRIPTORS)
            while True:
                signal.pause()
        finally:
            os._exit(1)

    def _furnish(self, order: Furnishing, init: int, settled: int, answer: int) -> None:
        isolation = order.isolation
        try:
            trouble = system.whole(settled).decode(errors="replace")
            if trouble:
                raise OSError(0, trouble)
            kernel.setns(init, kernel.NEWNS | kernel.NEWUTS)
            try:
                socket.sethostname(order.name)
                root = mounts.build(isolation, isolation.scratch, order.needed)
                mounts.move_in(root)
            finally:
                self._home.go()
            said = READY + str(_KINDS | (0 if isolation.network else kernel.NEWNET)).encode()
        except Exception as error:  # of whatever kind: all other rooms hang on this process
            said = (str(error) or type(error).__name__).encode(errors="replace")
            _close_all_but({*self._own, *self._channel.descriptors, init, settled, answer})  # what was half made
        try:
            os.write(answer, said)
        except OSError:  # nobody wants it any more
            pass
        for descriptor in (init, settled, answer):
            os.close(descriptor)


def _close_all_but(kept: set[int]) -> None:
    last = 0
    for descriptor in sorted(kept):
        if last < descriptor:  # Python closes everything where a range is empty
            os.closerange(last, descriptor)
        last = descriptor + 1
    os.closerange(last, _MOST_DESCRIPTORS)


def _loopback_up() -> None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
