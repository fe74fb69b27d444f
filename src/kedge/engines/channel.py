"""The road between the supervisor and one fork server: frames of private messages, and descriptors beside them.

A fork server keeps a child that has ended as a zombie until it hears `ContainerReaped`: so long the child's number, its
process group and its session belong to it, and the supervisor cannot hit a stranger with a signal.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from collections import deque
from typing import Any

from kedge.engines.bounds import Bounds
from kedge.model.protocol import Message
from kedge.wire.codec import FrameDecoder, encode

_READ_SIZE = 64 * 1024
_MAX_FDS = 64
"""More descriptors than one read can bring: each message carries at most six."""
_LOST = -1


class ServerPrepared(Message, frozen=True):
    """To a fork server, first: what to hold. Where `confined`, a descriptor comes along: the mounts from which its
    containers make theirs."""

    sys_path: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    alias_modal: bool = False
    confined: bool = False


class CodeShown(Message, frozen=True):
    """To a fork server, before the first container that imports it: where code lies. A descriptor of the directory
    comes along."""

    root: str


class ContainerForked(Message, frozen=True):
    """To a fork server: make a container. Descriptors come along: its launch, stdout, stderr, records, and for a
    confined one the init of its room and the socket that says when the room is ready."""

    container: str
    bounds: Bounds = Bounds()


class ContainerReaped(Message, frozen=True):
    """To a fork server: the end of this container has been dealt with, its zombie may go."""

    container: str


class ServerReady(Message, frozen=True):
    """From a fork server: loaded. `unsafe` says why it must not fork, `culprit` which module made it so."""

    skipped: dict[str, str] = {}
    """Modules that were not loaded, and why."""
    unsafe: str = ""
    culprit: str = ""
    seconds: float = 0.0


class ContainerBorn(Message, frozen=True):
    """From a fork server: the container's process exists, or `error` says why not."""

    container: str
    process: int = 0
    error: str = ""


class ContainerEnded(Message, frozen=True):
    container: str
    exit_code: int | None = None
    signal: int | None = None


ToForkServer = ServerPrepared | CodeShown | ContainerForked | ContainerReaped
FromForkServer = ServerReady | ContainerBorn | ContainerEnded


class ChannelClosed(Exception):
    """The other side is gone."""


class Channel:
    """One end. Reading blocks or not as the socket does; what is sent is small and the receiver is quick."""

    def __init__(self, sock: socket.socket, union: Any) -> None:
        self._socket = sock
        self._decoder = FrameDecoder(union)
        self._descriptors: deque[int] = deque()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message, descriptors: tuple[int, ...] = ()) -> None:
        """Sends one message; ChannelClosed where nobody reads any more."""
        frame = memoryview(encode([message]))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            sent = self._socket.sendmsg([frame], rights)
            if sent < len(frame):
                self._socket.sendall(frame[sent:])
        except OSError as error:
            raise ChannelClosed(str(error)) from None

    def receive_at_hand(self, most: int) -> list[Any]:
        """The messages of up to `most` reads, without waiting; a read ends after one that has descriptors."""
        messages: list[Any] = []
        for _ in range(most):
            more = self.receive(wait=False)
            if not more:
                break
            messages += more
        return messages

    def receive(self, *, wait: bool = True) -> list[Any]:
        """The messages that have come; possibly none. Their descriptors wait in `take`. ChannelClosed at the end."""
        room = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
        flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0) | (0 if wait else socket.MSG_DONTWAIT)
        try:
            data, ancillary, told, _ = self._socket.recvmsg(_READ_SIZE, room, flags)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ChannelClosed(str(error)) from None
        came = 0
        for level, kind, raw in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(raw[: len(raw) - len(raw) % numbers.itemsize])
                self._descriptors.extend(numbers)
                came += len(numbers)
        if told & socket.MSG_CTRUNC:  # there is no room for more in this process
            for _ in range(came):
                os.close(self._descriptors.pop())
            self._descriptors.append(_LOST)
        if not data:
            raise ChannelClosed("the other side has closed")
        return self._decoder.feed(data)

    def take(self, count: int) -> tuple[int, ...]:
        """The descriptors of the message at hand: messages and descriptors come in the same order. OSError where this
        process cannot open as many; what comes after is in order."""
        if self._descriptors[0] == _LOST:
            self._descriptors.popleft()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return tuple(self._descriptors.popleft() for _ in range(count))

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those that wait in `take`."""
        return tuple(descriptor for descriptor in self._descriptors if descriptor != _LOST)

    def close(self) -> None:
        self._socket.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self._descriptors.clear()
