"""An engine whose containers live in this process: they speak the real protocol over the real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kedge.engines.base import Report
from kedge.model import protocol as p
from kedge.model.payload import SUCCESS, TERMINATED, Payload, Result
from kedge.model.spec import Launch, VolumeMount
from kedge.wire.transport import AsyncConnection

Work = Callable[[p.Dispatch], Result | None]
"""What a container does with an input: its result, or None to go on until the test says `finish`."""


def succeed(dispatch: p.Dispatch) -> Result:
    return Result(SUCCESS, Payload(data=b"did " + dispatch.payload.data))


def hold(dispatch: p.Dispatch) -> None:
    return None


class FakeContainer:
    """One container: connects, is ready, and works as the engine's `work` says."""

    def __init__(self, engine: FakeEngine, launch: Launch) -> None:
        self.launch = launch
        self.engine = engine
        self.held: dict[int, p.Dispatch] = {}
        self.cancelled: list[int] = []
        self.messages: list[Any] = []
        self.connection = AsyncConnection(p.ToContainer, self._heard, lambda connection, reason: engine.deaf(self))

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self.connection, self.launch.address)
        self.say(p.Hello(p.CONTAINER, self.launch.container, self.launch.token))
        if self.engine.ready:
            self.say(p.ContainerReady(self.engine.imports))

    def say(self, message: Any) -> None:
        self.connection.send(message)

    def finish(self, result: Result | None = None) -> None:
        """Ends everything that is held."""
        held, self.held = self.held, {}
        self.say(p.InputsFinished([p.Finished(lease, result or succeed(d), 0.01) for lease, d in held.items()]))

    def _heard(self, connection: AsyncConnection, messages: list[Any]) -> None:
        self.messages += messages
        finished = []
        for message in messages:
            if isinstance(message, p.InputsDispatched):
                for dispatch in message.inputs:
                    result = self.engine.work(dispatch)
                    if result is None:
                        self.held[dispatch.lease] = dispatch
                    else:
                        finished.append(p.Finished(dispatch.lease, result, 0.01))
            elif isinstance(message, p.InputsCancelled):
                for lease in message.leases:
                    self.cancelled.append(lease)
                    if self.held.pop(lease, None) is not None:
                        finished.append(p.Finished(lease, Result(TERMINATED), 0.01))
            elif isinstance(message, p.ContainerDrained):
                self.engine.lose(self, "it has left")
        if finished:
            self.say(p.InputsFinished(finished))


class FakeEngine:
    """See `kedge.engines.base.Engine`. `start_fails`, `mute` and `ready` script what goes wrong."""

    def __init__(self, work: Work = succeed) -> None:
        self.work = work
        self.report: Report = lambda fact: None
        self.containers: dict[str, FakeContainer] = {}
        self.started: list[Launch] = []
        self.killed: list[tuple[str, float]] = []
        self.imports: list[str] = []
        self.start_fails: Exception | None = None
        self.mute = False
        """Containers start and are never heard of."""
        self.ready = True
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def only(self) -> FakeContainer:
        (container,) = self.containers.values()
        return container

    async def open(self) -> None:
        pass

    def start(self, launch: Launch) -> None:
        self.started.append(launch)
        if self.start_fails is not None:
            raise self.start_fails
        container = self.containers[launch.container] = FakeContainer(self, launch)
        task = asyncio.get_running_loop().create_task(self._come_up(container))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _come_up(self, container: FakeContainer) -> None:
        self.report(p.ContainerStarted(container.launch.container, 4711))
        if not self.mute:
            await container.connect()

    def remount(self, container: str, mount: VolumeMount, request: int) -> None:
        pass

    def warm(self, launch: Launch) -> None:
        pass

    def kill(self, container: str, grace_s: float = 0.0) -> None:
        self.killed.append((container, grace_s))
        known = self.containers.get(container)
        if known is not None and not grace_s:
            self.lose(known, "it was killed", signal=9)

    def deaf(self, container: FakeContainer) -> None:
        """Its connection is gone: if it was asked to leave, it does."""
        if any(container.launch.container == name for name, _ in self.killed):
            self.lose(container, "it was killed", signal=9)

    def lose(self, container: FakeContainer, reason: str, signal: int | None = None) -> None:
        """The process is gone; the server hears of it a moment later."""
        id = container.launch.container
        if self.containers.pop(id, None) is None:
            return
        container.connection.abort("the process is gone")
        lost = p.ContainerLost(id, reason, None if signal else 0, signal)
        asyncio.get_running_loop().call_soon(lambda: self.report(lost))

    async def close(self) -> None:
        self.report = lambda fact: None
        for task in list(self._tasks):
            task.cancel()
        for container in self.containers.values():
            container.connection.abort("the engine ends")
