"""Which fork server a container comes from. One lineage per (app, environment, user); never shared across apps.

The rules, in their order:

* A lineage has at most one server that forks and one that is being prepared. No server yet: one is started, and its
  first containers wait for it, since loading a package once before the fork costs no more than after it.
* A launch that wants modules which the present server lacks is served by it at once, while a better one, holding what
  both want, is prepared. The old one goes when its last container has gone: containers die with their fork server.
* A module that makes forking unsafe, or kills the server that loads it, is struck out for this lineage. Whoever waited
  gets a fresh process; a server without the module is prepared for those who come later.
* Where the runtime alone is unsafe, or servers keep dying, the lineage gets fresh processes for good.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, Protocol

from msgspec.structs import replace

from kedge.engines import boot, spawn, system, threads
from kedge.engines.bounds import Bounds
from kedge.engines.channel import (
    Channel,
    ChannelClosed,
    ContainerBorn,
    ContainerEnded,
    ContainerReaped,
    FromForkServer,
    ServerPrepared,
    ServerReady,
)
from kedge.engines.lineage import Birth, ForkServer, Lineage
from kedge.engines.loop import Loop
from kedge.engines.rooms import Rooms
from kedge.model.protocol import ForkServerReported
from kedge.model.spec import NAMESPACE, PROCESS, EnvironmentSpec, Isolation, Launch, Limits
from kedge.wire.codec import FrameError

MAX_FORK_SERVERS = 8
"""Servers kept for lineages without containers. A bare one takes 15 to 25 MB, one with torch 250 MB."""
MAX_LINEAGES = 256
"""Lineages remembered without a server: what they remember (struck modules) is cheap to learn again."""
_PREPARATION_S = 60.0
"""A server that is not ready by then is stuck in an import."""
_MAX_DEATHS = 3
"""Servers of one lineage that may die while in use before it gets fresh processes."""
_LAST_WORDS = 2000
"""Bytes of a fork server's output that are kept to explain its death."""


Key = tuple[str, EnvironmentSpec, str, Isolation]
"""App name, environment, image, and what of the isolation is not one container's own. The user is the supervisor's."""


class Ward(Protocol):
    """What the supervisor is to the nursery."""

    def report(self, message: Any) -> None: ...
    def born(self, container: str, process: int) -> None: ...
    def stillborn(self, container: str, reason: str) -> None: ...
    def ended(self, container: str, exit_code: int | None, number: int | None) -> None: ...
    def spawn_fresh(self, birth: Birth) -> None: ...
    def orphaned(self, containers: Sequence[str]) -> None: ...
    def of_fork_server(self) -> Bounds: ...


class Nursery:
    """Starts, chooses and retires fork servers."""

    def __init__(self, loop: Loop, ward: Ward, rooms: Rooms, runtime: Sequence[str], runner: str) -> None:
        self._loop = loop
        self._rooms = rooms
        self._ward = ward
        self._runtime = runtime
        self._runner = runner
        self._lineages: dict[Key, Lineage] = {}
        """The least recently used first."""
        self._servers: dict[int, ForkServer] = {}
        """By process."""
        self._parents: dict[str, ForkServer] = {}
        """By container, for those that live."""

    def processes(self) -> list[int]:
        return list(self._servers)

    def place(self, birth: Birth) -> None:
        """Has the container forked where that is safe, started fresh elsewhere."""
        if not forks(birth.launch):
            self._ward.spawn_fresh(birth)
            return
        lineage = self.warm(birth.launch)
        server = lineage.current or lineage.coming
        if server is None:
            self._ward.spawn_fresh(birth)
        else:
            server.submit(birth)

    def warm(self, launch: Launch) -> Lineage:
        """Sees to it that a server which suits `launch` is there or on its way."""
        key = (launch.app_name, launch.environment, launch.function.image.digest, _shared(launch.isolation))
        lineage = self._lineages.pop(key, None) or Lineage(launch)
        self._lineages[key] = lineage
        if not lineage.refused and (lineage.lacking(launch.preload) or not (lineage.current or lineage.coming)):
            self._improve(lineage, launch.preload)
        self._forget_lineages()
        return lineage

    def withdraw(self, container: str) -> bool:
        """Takes back a container that no server has been asked for yet; False where one has."""
        for server in self._servers.values():
            for birth in server.waiting:
                if birth.name == container:
                    server.waiting.remove(birth)
                    self._retire_if_idle(server)
                    return True
        return False

    def released(self, container: str) -> None:
        """The end of a container has been dealt with."""
        server = self._parents.pop(container, None)
        if server is not None:
            server.children.discard(container)
            try:
                server.channel.send(ContainerReaped(container))
            except ChannelClosed:
                pass
            self._retire_if_idle(server)

    def check(self) -> None:
        """Some child of this process has changed: buries fork servers that have ended."""
        for process in list(self._servers):
            fate = system.peek_exit(process)
            if fate is not None:
                system.reap(process)
                self._died(self._servers.pop(process), fate)

    # ------------------------------------------------------------ starting

    def _improve(self, lineage: Lineage, preload: Sequence[str]) -> None:
        """Starts preparing a server that holds what the present one holds and `preload`; at most one at a time."""
        if lineage.coming is None:
            present = lineage.current.preload if lineage.current else ()
            wanted = tuple(dict.fromkeys((*present, *preload)))
            self._start(lineage, tuple(name for name in wanted if name not in lineage.struck))

    def _start(self, lineage: Lineage, preload: tuple[str, ...]) -> None:
        environment = lineage.launch.environment
        confined = lineage.launch.isolation.rung == NAMESPACE
        runtime = environment.runtime or self._runtime
        ours, theirs = socket.socketpair()
        output, writer = os.pipe()
        arguments = boot.command(environment.python, boot.FORK_SERVER, spawn.LAUNCH_FD, runtime, self._runner)
        variables = threads.single(dict(environment.variables))
        try:
            bounds = self._ward.of_fork_server()
            entry = self._rooms.fork_server_entry(lineage.launch, runtime) if confined else None
            process = spawn.spawn(arguments, variables, theirs.fileno(), (writer, writer), bounds=bounds, entry=entry)
        except OSError:  # no process can be made now; the container that wants it will say so
            ours.close()
            os.close(output)
            return
        finally:
            theirs.close()
            os.close(writer)
        ours.setblocking(False)
        os.set_blocking(output, False)
        server = ForkServer(lineage, preload, process, Channel(ours, FromForkServer), output)
        lineage.coming = self._servers[process] = server
        self._loop.watch(ours.fileno(), lambda: self._hear(server))
        self._loop.watch(output, lambda: self._listen(server))
        try:
            mounts = (self._rooms.base.mount,) if confined else ()
            order = ServerPrepared(environment.sys_path, preload, environment.alias_modal, confined)
            server.channel.send(order, mounts)
        except ChannelClosed:
            server.kill()
        self._loop.later(_PREPARATION_S, lambda: self._give_up(server))
        self._evict()

    def _give_up(self, server: ForkServer) -> None:
        if not (server.ready or server.dead):
            server.last_words += f"\nnot ready after {_PREPARATION_S:.0f} s".encode()
            server.kill()

    def _listen(self, server: ForkServer) -> None:
        if server.output is None:
            return
        try:
            data = os.read(server.output, 32 * _LAST_WORDS)
        except BlockingIOError:
            return
        server.last_words = (server.last_words + data)[-_LAST_WORDS:]
        if not data:
            self._loop.forget(server.output)
            os.close(server.output)
            server.output = None

    def _hear(self, server: ForkServer) -> None:
        try:
            messages = server.channel.receive()
        except (ChannelClosed, FrameError):
            # Dead or beside itself. What waits on it is told when its end is noticed.
            self._hang_up(server)
            server.kill()
            return
        for message in messages:
            if isinstance(message, ContainerEnded):
                self._ward.ended(message.container, message.exit_code, message.signal)
            elif isinstance(message, ContainerBorn):
                self._answered(server, message)
            elif isinstance(message, ServerReady):
                self._prepared(server, message)

    def _answered(self, server: ForkServer, message: ContainerBorn) -> None:
        server.unanswered.discard(message.container)
        if message.error:
            self._ward.stillborn(message.container, message.error)
        else:
            server.children.add(message.container)
            self._parents[message.container] = server
            self._ward.born(message.container, message.process)
        server.serve()
        self._retire_if_idle(server)

    def _prepared(self, server: ForkServer, message: ServerReady) -> None:
        lineage = server.lineage
        lineage.coming = None
        if message.unsafe:
            reason = f"importing {message.culprit}: {message.unsafe}" if message.culprit else message.unsafe
            self._abandon(server, [message.culprit] if message.culprit else [], reason)
            server.kill()
            return
        lineage.struck.update(message.skipped)
        skipped = "; ".join(f"{name}: {reason}" for name, reason in message.skipped.items())
        self._ward.report(
            ForkServerReported(
                key=lineage.key,
                process=server.process,
                reason=f"without {skipped}" if skipped else "",
                seconds=message.seconds,
            )
        )
        before, lineage.current = lineage.current, server
        server.ready = True
        server.serve()
        if before is not None:
            self._retire(before)

    # ------------------------------------------------------------ ending

    def _abandon(self, server: ForkServer, culprits: Sequence[str], reason: str) -> None:
        """This server will never fork: strikes out what made it so, and finds other ways for those who wait."""
        lineage = server.lineage
        self._ward.report(ForkServerReported(key=lineage.key, process=server.process, safe=False, reason=reason))
        if culprits:
            lineage.struck.update(dict.fromkeys(culprits, reason))
        else:
            lineage.refused = reason
        births = list(server.waiting)
        server.waiting.clear()
        for birth in births:
            if lineage.current is not None:
                lineage.current.submit(birth)
            else:
                self._ward.spawn_fresh(birth)
        if not lineage.refused and (lineage.current is None or lineage.lacking(server.preload)):
            self._improve(lineage, server.preload)

    def _died(self, server: ForkServer, fate: tuple[int | None, int | None]) -> None:
        lineage = server.lineage
        server.dead = True
        server.ready = False
        self._hang_up(server)
        self._listen(server)
        words = server.last_words.decode(errors="replace").strip()
        cause = f"signal {fate[1]}" if fate[1] is not None else f"exit code {fate[0]}"
        reason = f"its fork server died ({cause})" + (f": {words}" if words else "")
        if lineage.coming is server:
            lineage.coming = None
            self._abandon(server, server.preload, reason)
        if lineage.current is server:
            lineage.current = None
            lineage.deaths += 1
            if lineage.deaths >= _MAX_DEATHS:
                lineage.refused = reason
            self._ward.report(ForkServerReported(key=lineage.key, process=server.process, safe=False, reason=reason))
        for container in server.unanswered:
            self._ward.stillborn(container, reason)
        for container in server.children:
            self._parents.pop(container, None)
        self._ward.orphaned(sorted(server.children))
        for birth in server.waiting:
            self.place(birth)

    def _hang_up(self, server: ForkServer) -> None:
        if server.channel.fileno() >= 0:
            self._loop.forget(server.channel.fileno())
            server.channel.close()

    def _retire(self, server: ForkServer) -> None:
        server.retired = True
        if server.lineage.current is server:
            server.lineage.current = None
        self._retire_if_idle(server)

    def _retire_if_idle(self, server: ForkServer) -> None:
        if server.retired and server.idle:
            self._hang_up(server)

    def _evict(self) -> None:
        """Retires the least recently used servers without containers beyond the bound."""
        excess = len(self._servers) - MAX_FORK_SERVERS
        for lineage in list(self._lineages.values()):
            server = lineage.current
            if excess > 0 and server is not None and server.idle:
                self._retire(server)
                excess -= 1

    def _forget_lineages(self) -> None:
        excess = len(self._lineages) - MAX_LINEAGES
        for key, lineage in list(self._lineages.items()):
            if excess > 0 and lineage.current is None and lineage.coming is None:
                del self._lineages[key]
                excess -= 1


def forks(launch: Launch) -> bool:
    """Whether containers like this one may come from a fork server at all."""
    return launch.isolation.rung in (PROCESS, NAMESPACE) and not launch.isolation.entrypoint


def _shared(isolation: Isolation) -> Isolation:
    """What containers of one fork server have in common. Binds are the newest version's code and the like: the server
    has those of its first container, and needs what they all have."""
    if isolation.rung == PROCESS:
        return Isolation()
    own = Isolation()
    return replace(
        isolation,
        binds=own.binds,
        own=own.own,
        volumes=own.volumes,
        scratch=own.scratch,
        network=own.network,
        devices=own.devices,
        limits=Limits(),
    )
