"""The engine of one machine, seen from the server: it starts the supervisor and talks to it.

Should the supervisor die, its containers die with it: each is reported lost, what is left of their sessions is killed,
and a new supervisor takes over. What was asked for meanwhile is kept until it is there. In this one case a process that
a container's descendant put into a session of its own escapes: only the supervisor adopts those.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from kedge.engines import boot, system
from kedge.engines.base import Report
from kedge.model.protocol import (
    ContainerLaunched,
    ContainerLost,
    ContainerStarted,
    ForkServerWarmed,
    FromSupervisor,
    KillContainer,
    SupervisorStopped,
    VolumeAnswered,
    VolumeRemounted,
)
from kedge.model.spec import Launch, VolumeMount
from kedge.wire.transport import AsyncConnection

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0
"""Between supervisors that die one after another."""
_LEAVING_S = 2.0
"""How long a supervisor may live without a connection: the end of its interpreter takes milliseconds."""
_PARTING_S = 10.0
"""How long a supervisor may take to end everything; after that it is killed, and the kernel ends the rest."""


def _nobody(fact: Any) -> None:
    """Nothing has been asked for yet."""


class ProcessEngine:
    """Containers as processes of this machine, forked where that is safe. See `base.Engine` for what it promises.

        engine = ProcessEngine(report=print)
        await engine.open()
        engine.start(launch)
        ...
        await engine.close()

    `runner` names the module that is the life of a container (see `child`); `runtime` are directories that it needs
    beyond kedge's own. Both are for tests and for other runtimes.
    """

    def __init__(
        self, report: Report = _nobody, *, runner: str = "kedge.container.main", runtime: Sequence[str] = ()
    ) -> None:
        self.report = report
        """Called with each fact."""
        self._runner = runner
        self._runtime = [*runtime, *runtime_directories()]
        self._connection: AsyncConnection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pending: list[Any] = []
        """What the supervisor has not been told, because there is none just now."""
        self._living: dict[str, int] = {}
        """Containers that have not been reported lost, and their processes."""
        self._remounts: set[int] = set()
        """Requests that nobody has answered."""
        self._closing = False
        self._ended = asyncio.Event()
        self._begun: socket.socket | None = None
        """The way to a supervisor that has been started, and that nobody has asked for anything yet."""
        self._revival: asyncio.Task[None] | None = None
        self._pause = _FIRST_PAUSE_S

    @property
    def supervisor(self) -> int:
        """The supervisor's process id; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    def begin(self) -> None:
        """Starts the supervisor, which takes its time to load. OSError where no process can be made."""
        ours, theirs = socket.socketpair()
        # Isolated and without site: it needs nothing of the user's, and starts in half the time.
        arguments = boot.command(
            sys.executable, boot.SUPERVISOR, theirs.fileno(), self._runtime, self._runner, options=["-I", "-S"]
        )
        with theirs:
            try:
                self._process = _started(arguments, theirs.fileno())
            except OSError:
                ours.close()
                raise
        self._begun = ours

    async def open(self) -> None:
        """There is a supervisor from here on. OSError where no process can be made."""
        if self._begun is None:
            self.begin()
        ours, self._begun = self._begun, None
        assert ours is not None
        self._ended.clear()
        try:
            _, self._connection = await asyncio.get_running_loop().create_unix_connection(
                lambda: AsyncConnection(FromSupervisor, self._on_messages, self._on_closed), sock=ours
            )
        except BaseException:
            ours.close()  # the supervisor leaves at once
            raise
        for message in self._pending:
            self._connection.send(message)
        self._pending.clear()

    def start(self, launch: Launch) -> None:
        self._living[launch.container] = 0
        self._tell(ContainerLaunched(launch))

    def warm(self, launch: Launch) -> None:
        self._tell(ForkServerWarmed(launch))

    def kill(self, container: str, grace_s: float = 0.0) -> None:
        if container in self._living:
            self._tell(KillContainer(container, grace_s))

    def remount(self, container: str, mount: VolumeMount, request: int) -> None:
        if container in self._living:
            self._remounts.add(request)
            self._tell(VolumeRemounted(request, container, mount))
        else:
            loop = asyncio.get_running_loop()
            loop.call_soon(self.report, VolumeAnswered(request, "the container is not there"))

    async def close(self) -> None:
        self._closing = True
        if self._revival is not None:
            self._revival.cancel()
            await asyncio.gather(self._revival, return_exceptions=True)
        if self._begun is not None:
            self._begun.close()  # the supervisor leaves
        if self._connection is not None and self._process is not None:
            self._connection.send(SupervisorStopped())
            self._connection.flush()
            try:
                await asyncio.wait_for(self._ended.wait(), _PARTING_S)
            except TimeoutError:
                self._process.kill()
                await self._ended.wait()
        if self._process is not None:
            await asyncio.to_thread(_farewell, self._process)
        self._living.clear()

    def _tell(self, message: Any) -> None:
        if self._connection is None or self._connection.closed:
            self._pending.append(message)
        else:
            self._connection.send(message)

    def _on_messages(self, _: AsyncConnection, messages: list[Any]) -> None:
        self._pause = _FIRST_PAUSE_S
        for message in messages:
            if isinstance(message, ContainerStarted):
                self._living[message.container] = message.process
            elif isinstance(message, ContainerLost):
                self._living.pop(message.container, None)
            elif isinstance(message, VolumeAnswered):
                self._remounts.discard(message.request)
            if not self._closing:
                self.report(message)

    def _on_closed(self, _: AsyncConnection, reason: str) -> None:
        self._connection = None
        self._ended.set()
        if not self._closing:
            self._revival = asyncio.get_running_loop().create_task(self._revive(reason))

    async def _revive(self, reason: str) -> None:
        """The supervisor is gone: so are its containers. Says so, and starts another."""
        assert self._process is not None
        status = await asyncio.to_thread(_farewell, self._process)
        cause = f"signal {-status}" if status < 0 else f"exit code {status}"
        waiting = {message.launch.container for message in self._pending if isinstance(message, ContainerLaunched)}
        lost = {name: process for name, process in self._living.items() if name not in waiting}
        await asyncio.to_thread(system.kill_sessions, {process for process in lost.values() if process})
        for name in lost:
            del self._living[name]
            self.report(ContainerLost(name, f"the supervisor of its machine died ({cause}, {reason})", blameless=True))
        for request in self._remounts:
            self.report(VolumeAnswered(request, "the container is not there"))
        self._remounts.clear()
        self._pending = [message for message in self._pending if not isinstance(message, VolumeRemounted)]
        while True:
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE_S)
            try:
                await self.open()
                return
            except OSError:  # no process can be made now
                continue


def _farewell(process: subprocess.Popen[bytes]) -> int:
    """The exit status of a process that has closed its connection; one that lives on is killed."""
    try:
        return process.wait(_LEAVING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _started(arguments: list[str], descriptor: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        pass_fds=[descriptor],
        start_new_session=True,  # a terminal's Ctrl-C is for the caller, not for it
        cwd="/",
    )


def runtime_directories() -> list[str]:
    """Where the container side of kedge and its two dependencies are installed, without importing them."""
    found: dict[str, None] = {}
    for name in ("kedge", "msgspec", "cloudpickle"):
        specification = importlib.util.find_spec(name)
        if specification is None or specification.origin is None:
            raise ModuleNotFoundError(f"{name} is not installed; containers need it: pip install kedge")
        found[os.path.dirname(os.path.dirname(os.path.abspath(specification.origin)))] = None
    return list(found)
