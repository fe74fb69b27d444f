"""The supervisor's side of fork servers: what is known of one, and of all those of one (app, environment, user)."""

from __future__ import annotations

import os
import signal
import zlib
from collections import deque
from collections.abc import Iterable
from typing import Protocol

import msgspec

from kedge.engines import system
from kedge.engines.bounds import Bounds
from kedge.engines.channel import Channel, ChannelClosed, CodeShown, ContainerForked
from kedge.engines.rooms import Room
from kedge.model.spec import NAMESPACE, Launch

_MAX_UNANSWERED = 32
"""Forks asked for and not answered: keeps sockets from filling, so that the supervisor never blocks on a server."""


class Birth(Protocol):
    """A container about to exist."""

    name: str
    launch: Launch
    bounds: Bounds
    room: Room | None
    """Its pid namespace, where it has one of its own."""

    def hand_over(self) -> tuple[int, int, int, int]:
        """Descriptors for its process: launch, stdout, stderr, records. `keep_own` closes this side's copies."""

    def keep_own(self) -> None: ...

    def fail(self, reason: str) -> None:
        """There will be no process."""


class Lineage:
    """Everything about the fork servers of one (app, environment, user)."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.key = f"{launch.app_name}/{zlib.crc32(msgspec.msgpack.encode(launch.environment)):08x}"
        """What people see."""
        self.current: ForkServer | None = None
        self.coming: ForkServer | None = None
        self.struck: dict[str, str] = {}
        """Module → why no server of this lineage holds it."""
        self.refused = ""
        """Why this lineage gets fresh processes for good."""
        self.deaths = 0

    def lacking(self, preload: Iterable[str]) -> bool:
        """Whether `preload` names anything that the newest server neither holds nor could not hold."""
        newest = self.coming or self.current
        held = newest.preload if newest else ()
        return any(name not in held and name not in self.struck for name in preload)


class ForkServer:
    """The supervisor's side of one fork server."""

    def __init__(self, lineage: Lineage, preload: tuple[str, ...], process: int, channel: Channel, output: int) -> None:
        self.lineage = lineage
        self.preload = preload
        self.process = process
        self.channel = channel
        self.output: int | None = output
        self.ready = False
        self.retired = False
        self.dead = False
        self.waiting: deque[Birth] = deque()
        self.unanswered: set[str] = set()
        self.children: set[str] = set()
        self.last_words = b""
        self._shown: set[str] = set()
        """Code that it knows of."""

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.unanswered or self.children)

    def submit(self, birth: Birth) -> None:
        """Forks for it, or does so when the server is ready."""
        self.waiting.append(birth)
        self.serve()

    def serve(self) -> None:
        while self.ready and self.waiting and len(self.unanswered) < _MAX_UNANSWERED:
            birth = self.waiting.popleft()
            try:
                descriptors: tuple[int, ...] = birth.hand_over()
                if birth.room is not None:
                    descriptors += birth.room.keys
            except OSError as error:
                birth.fail(f"no pipes for its output: {error}")
                continue
            self.unanswered.add(birth.name)
            try:
                self._show(birth.launch)
                self.channel.send(ContainerForked(birth.name, birth.bounds), descriptors)
            except ChannelClosed:
                self.kill()
            finally:
                birth.keep_own()

    def _show(self, launch: Launch) -> None:
        """Containers with files of their own cannot keep the bytecode of what they import."""
        code = launch.code
        if launch.isolation.rung != NAMESPACE or not code.digest or code.root in self._shown:
            return
        self._shown.add(code.root)
        try:
            directory = os.open(code.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:  # whoever imports from there is told
            return
        try:
            self.channel.send(CodeShown(code.root), (directory,))
        finally:
            os.close(directory)

    def kill(self) -> None:
        """Its end is noticed like any other, and tells everybody who waits for it."""
        self.ready = False
        if not self.dead:
            system.send_signal(signal.SIGKILL, self.process, None)
