"""One small process per machine that holds every container of it: process, output pipes, kill timer.

It stands outside the user's interpreters and outside the data path: no user code, no asyncio, no pickle, one thread.
What it learns it reports; it decides nothing. It is the subreaper of all it started. Since containers adopt their own
orphans, a process that suddenly has the supervisor as its parent belonged to a container that is gone, and is killed.

Nothing outlives it: when the server's end of the socket closes (also by `kill -9` of the server), everything is killed
and it leaves; when it is killed itself, the kernel kills fork servers and containers (system.die_with).
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from kedge.engines import spawn, system, threads, wrapping
from kedge.engines.bounds import Bounds
from kedge.engines.container import ORPHANED, Container
from kedge.engines.errands import Errands
from kedge.engines.lineage import Birth
from kedge.engines.loop import Loop
from kedge.engines.nursery import Nursery
from kedge.engines.rooms import DIED, Room, Rooms
from kedge.engines.uplink import Uplink
from kedge.engines.warden import Warden
from kedge.model.protocol import (
    ContainerLaunched,
    ContainerLost,
    ContainerStarted,
    ForkServerWarmed,
    KillContainer,
    OutputCaptured,
    SupervisorStopped,
    VolumeAnswered,
    VolumeRemounted,
)
from kedge.model.spec import NAMESPACE, Launch

_LAST_LINES_S = 1.0
"""How long a container that has ended may owe its exit status, or a stranger may hold its output open."""
_REFILL_S = 0.005
"""How long after a start the next one is prepared: a burst goes first."""
_BURIAL_S = 5.0
"""How long the end of everything may take: only a process stuck in the kernel needs longer than milliseconds."""


class Supervisor:
    """Launches, watches and ends containers, as the server says."""

    def __init__(self, sock: socket.socket, runtime: Sequence[str], runner: str) -> None:
        self._loop = Loop()
        self._uplink = Uplink(self._loop, sock, self._hear, self._loop.stop, self._congestion)
        self._runtime = runtime
        self._runner = runner
        self._containers: dict[str, Container] = {}
        self._errands = Errands(self._loop)
        self._rooms = Rooms(self._loop, self._errands, self._rooms_lost)
        self._nursery = Nursery(self._loop, self, self._rooms, runtime, runner)
        self._warden = Warden(self._loop, self._exceeded, self._say)
        self._memory_kills = system.MemoryKills(self._warden.memory_events)
        self._alarm, self._bell = socket.socketpair()
        for end in (self._alarm, self._bell):
            end.setblocking(False)

    def run(self) -> None:
        """Serves until the server is gone or says so; then nothing of what it started is left."""
        system.set_name("kedge-super")
        system.adopt_orphans()
        signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._loop.stop())
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self._loop.watch(self._alarm.fileno(), self._children_changed)
        try:
            self._loop.run()
        finally:
            self._bury_all()
            self._rooms.clear_all()
            self._warden.close()
            self._uplink.flush()

    def report(self, message: Any) -> None:
        self._uplink.send(message)

    # ------------------------------------------------------------ what the server says

    def _hear(self, messages: list[Any]) -> None:
        self._rooms.expect([message.launch for message in messages if type(message) is ContainerLaunched])
        for message in messages:
            self._obey(message)

    def _obey(self, message: Any) -> None:
        match message:
            case ContainerLaunched():
                self._launch(message.launch)
            case ForkServerWarmed():
                self._nursery.warm(message.launch)
            case KillContainer():
                self._kill(message.container, message.grace_s)
            case VolumeRemounted():
                self._remount(message)
            case SupervisorStopped():
                self._loop.stop()

    def _launch(self, launch: Launch) -> None:
        if launch.container in self._containers:
            return  # said twice
        container = self._containers[launch.container] = Container(launch, self, self._loop)
        container.bounds = self._warden.admit(launch)
        try:
            self._rooms.make_scratch(launch)
            if launch.isolation.rung == NAMESPACE:
                runtime = launch.environment.runtime or self._runtime
                self._rooms.take(launch, runtime, partial(self._house, container))
                self._loop.later(_REFILL_S, self._rooms.refill)
                return
        except OSError as error:
            self._house(container, str(error))
            return
        self._place(container)

    def _house(self, container: Container, room: Room | str) -> None:
        if isinstance(room, str):
            container.why = room if room == DIED else ""
            self.stillborn(container.name, f"what it is to find around it cannot be made: {room}")
            return
        container.room = room
        self._place(container)

    def _place(self, container: Container) -> None:
        try:
            self._nursery.place(container)
        except OSError as error:
            container.fail(f"cannot start a process: {error}")

    def _rooms_lost(self) -> None:
        for container in self._containers.values():
            if container.room is not None and not container.gone:
                container.why = DIED

    def _remount(self, message: VolumeRemounted) -> None:
        def answer(error: str) -> None:
            self.report(VolumeAnswered(message.request, error))

        container = self._containers.get(message.container)
        if container is None or container.gone or not container.process:
            answer("the container is not there")
        else:
            self._rooms.remount(container.launch, container.process, message.mount, answer)

    def _kill(self, name: str, grace_s: float) -> None:
        container = self._containers.get(name)
        if container is None or container.gone:
            return
        if not container.process:
            if self._rooms.withdraw(name) or self._nursery.withdraw(name):
                self.stillborn(name, "killed before it had a process")
            else:
                container.condemned = grace_s
            return
        if container.deadline is not None:
            container.deadline.cancel()
        if grace_s > 0:
            self._rooms.ask_to_leave(container.launch, container.process, container.pidfd)
            container.deadline = self._loop.later(grace_s, lambda: self._kill_now(container))
        else:
            self._kill_now(container)

    def _kill_now(self, container: Container) -> None:
        container.killed = True
        system.send_signal(signal.SIGKILL, container.process, container.pidfd)

    def _exceeded(self, name: str) -> None:
        """It has gone beyond a limit."""
        container = self._containers[name]
        if container.process and not container.gone:
            self._kill_now(container)

    def _say(self, name: str, text: str) -> None:
        """A line of this process among what a container writes."""
        launch = self._containers[name].launch
        self.report(OutputCaptured(name, 2, text.encode(), time.time(), launch.app, launch.pool))

    def _congestion(self, congested: bool) -> None:
        for container in self._containers.values():
            if container.process and not container.gone:  # the last lines are few, and read without regard
                (container.output.pause if congested else container.output.resume)()

    # ------------------------------------------------------------ births

    def of_fork_server(self) -> Bounds:
        return self._warden.of_fork_server()

    def spawn_fresh(self, birth: Birth) -> None:
        """A container from a new interpreter, where a fork is not safe."""
        launch = birth.launch
        environment = launch.environment
        runtime = environment.runtime or self._runtime
        variables = threads.sized(dict(environment.variables), launch.function.resources.cpu)
        try:
            descriptor, stdout, stderr, records = birth.hand_over()
            bounds = self._warden.admit(launch, fresh=True)
            arguments, entry = self._rooms.way_in(launch, birth.room, runtime, self._runner, variables)
            process = spawn.spawn(arguments, variables, descriptor, (stdout, stderr), records, bounds, entry)
        except OSError as error:
            birth.fail(f"cannot start a process: {error}")
            return
        birth.keep_own()
        self._containers[birth.name].own_child = True
        self.born(birth.name, process, "spawn")

    def born(self, name: str, process: int, how: str = "fork") -> None:
        container = self._containers[name]
        container.process = process
        # Until the process is reaped, which only this supervisor orders, the number cannot become a stranger's.
        container.pidfd = system.open_pidfd(process)
        self._warden.born(name, process)
        if container.pidfd is not None:
            self._loop.watch(container.pidfd, lambda: self._gone(container))
        self.report(ContainerStarted(name, process, how))
        if not self._uplink.congested:
            container.output.resume()
        if container.condemned is not None:
            self._kill(name, container.condemned)

    def stillborn(self, name: str, reason: str) -> None:
        """There is no process, and there will be none."""
        container = self._containers.pop(name)
        container.close()
        self._warden.gone(name)
        self._rooms.clear(container.launch)
        self.report(ContainerLost(name, reason, blameless=container.blameless))

    # ------------------------------------------------------------ ends

    def ended(self, name: str, exit_code: int | None, number: int | None) -> None:
        """A fork server says how its child has ended."""
        container = self._containers.get(name)
        if container is not None:  # else it took longer to say so than anybody waited
            container.fate = (exit_code, number)
            self._gone(container)

    def orphaned(self, names: Sequence[str]) -> None:
        """Their fork server has died, and they with it: this process is their parent now."""
        for name in names:
            container = self._containers[name]
            container.own_child = True
            if container.fate is None:
                container.why = ORPHANED
                system.send_signal(signal.SIGKILL, container.process, container.pidfd)
            self._look_after(container)

    def _children_changed(self) -> None:
        try:
            while self._alarm.recv(4096):
                pass
        except BlockingIOError:
            pass
        self._nursery.check()
        self._rooms.check()
        for container in [each for each in self._containers.values() if each.own_child]:
            self._look_after(container)
        self._sweep()

    def _look_after(self, container: Container) -> None:
        if container.fate is None:
            try:
                container.fate = system.peek_exit(container.process)
            except ChildProcessError:  # not handed down to this process yet
                return
        if container.fate is not None:
            self._gone(container)

    def _gone(self, container: Container) -> None:
        """Its process has ended: ends what it left behind, and reads its last lines."""
        if not container.gone:
            container.gone = True
            if container.pidfd is not None:
                self._loop.forget(container.pidfd)
            if container.deadline is not None:
                container.deadline.cancel()
            system.kill_group(container.process)
            if container.room is not None:
                container.room.end()
            container.finding = self._warden.gone(container.name)
            self._sweep()
            container.output.drain()
            container.deadline = self._loop.later(_LAST_LINES_S, lambda: self._bury(container))
            if container.own_child:
                self._look_after(container)
        self.settle(container)

    def settle(self, container: Container) -> None:
        """Reports the end of a container once everything about it is known."""
        if container.gone and container.fate is not None and container.output.ended:
            self._bury(container)

    def _bury(self, container: Container) -> None:
        if self._containers.pop(container.name, None) is None:
            return
        container.close()
        if container.own_child:
            system.reap(container.process)
        self._nursery.released(container.name)
        self._rooms.clear(container.launch)
        container.fate = wrapping.fate(container.launch.isolation.rung, container.fate or (None, None))
        exit_code, number = container.fate
        finding = container.finding
        suspicious = number == signal.SIGKILL and not (container.killed or finding.reason or finding.counted)
        starved = suspicious and self._memory_kills.claim()
        self.report(
            ContainerLost(
                container=container.name,
                reason=container.explained(starved),
                exit_code=exit_code,
                signal=number,
                out_of_memory=starved or (finding.out_of_memory and exit_code != 0),
                peak_memory=finding.peak_memory,
                blameless=container.blameless,
            )
        )

    def _sweep(self) -> None:
        """Kills what containers left behind. Called again when that has ended, for what it leaves behind itself."""
        known = {*self._nursery.processes(), *self._warden.processes()}
        known |= {*self._rooms.processes(), *self._errands.processes()}
        known |= {container.process for container in self._containers.values()}
        for process in system.children():
            if process not in known and not (system.peek_exit(process) and system.reap(process)):
                system.send_signal(signal.SIGKILL, process, None)

    def _bury_all(self) -> None:
        """Kills everything below this process, and waits until it is gone."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for container in self._containers.values():
            if container.process:
                system.send_signal(signal.SIGKILL, container.process, container.pidfd)
                system.kill_group(container.process)
        end = time.monotonic() + _BURIAL_S
        own = {*self._nursery.processes(), *(each.process for each in self._containers.values() if each.own_child)}
        while time.monotonic() < end:
            for process in {*system.children(), *own}:
                system.send_signal(signal.SIGKILL, process, None)
            try:
                while ended := os.waitpid(-1, os.WNOHANG)[0]:
                    own.discard(ended)
            except ChildProcessError:
                return
            time.sleep(0.002)


def main(descriptor: int, runtime: Sequence[str], runner: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = int(os.environ.pop(spawn.FILE_LIMIT_VARIABLE, soft))
    try:  # four descriptors a container; containers get the limit back that they would have had
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if before != hard:
            spawn.file_limit = (before, hard)
    except (ValueError, OSError):
        pass
    Supervisor(socket.socket(fileno=descriptor), runtime, runner).run()
