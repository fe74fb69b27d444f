"""A whole server in this process: store, plane, driver and rpc as in production, with a fake engine."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from kedge.core.plane import Plane
from kedge.model import protocol as p
from kedge.model.ids import function_id
from kedge.model.payload import Payload, Result
from kedge.model.spec import AppSpec, CodeSpec, EnvironmentSpec, FunctionSpec
from kedge.server.driver import Driver
from kedge.server.launches import Launches
from kedge.server.logs import OutputLog
from kedge.server.objects import Objects
from kedge.server.office import Office
from kedge.server.outfit import Outfitter
from kedge.server.recovery import Recovery
from kedge.server.rpc import Rpc
from kedge.server.schedules import Schedules
from kedge.server.store import Store
from kedge.server.tokens import Tokens
from kedge.server.vault import Vault, used_in
from kedge.wire.transport import AsyncConnection
from tests.server.fake_engine import FakeEngine
from tests.wire.loops import until

M = TypeVar("M")
TOKEN = "the token of this server"
POOL = function_id("ap-1", "square")


def app(id: str = "ap-1", ephemeral: bool = True, **options: Any) -> AppSpec:
    function = FunctionSpec(name="square", module="script", qualname="square", **options)
    environment = EnvironmentSpec(python="python", python_version="3.11")
    return AppSpec(
        app=id, name="demo", functions=(function,), code=CodeSpec(), environment=environment, ephemeral=ephemeral
    )


def inputs(*data: str, call: str = "fc-1", first: int = 0, **options: Any) -> p.InputsSubmitted:
    options.setdefault("total", first + len(data))
    return p.InputsSubmitted(call, POOL, first, [Payload(data=one.encode()) for one in data], **options)


def spawned(*data: str, **options: Any) -> p.InputsSubmitted:
    return inputs(*data, durable=True, **options)


class Peer:
    """A client, or whoever connects."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.reason: str | None = None
        self._numbers = itertools.count(100)
        self.connection = AsyncConnection(p.ToClient, self._heard, self._closed)

    def _heard(self, connection: AsyncConnection, messages: list[Any]) -> None:
        self.messages += messages

    def _closed(self, connection: AsyncConnection, reason: str) -> None:
        self.reason = reason

    def say(self, *messages: Any) -> None:
        for message in messages:
            self.connection.send(message)
        self.connection.flush()

    async def ask(self, make: Callable[[int], Any]) -> p.Reply:
        number = next(self._numbers)
        self.say(make(number))
        return await self.hear(p.Reply, lambda reply: reply.request == number)

    async def hear(self, kind: type[M], condition: Callable[[M], Any] = lambda message: True) -> M:
        """The first message of a kind for which something is true, once it is there."""
        found: list[M] = []

        def look() -> bool:
            found[:] = [m for m in self.messages if isinstance(m, kind) and condition(m)]
            return bool(found) or self.reason is not None

        await until(look)
        assert found, f"closed ({self.reason}) after {self.messages}"
        return found[0]

    async def results(self, call: str, count: int) -> dict[int, Result]:
        def got() -> dict[int, Result]:
            delivered = [m for m in self.messages if isinstance(m, p.OutputsDelivered) and m.call == call]
            return {output.index: output.result for m in delivered for output in m.outputs}

        await until(lambda: len(got()) >= count)
        return got()

    async def refused(self) -> str:
        """The reason of a refusal, after which the connection is closed."""
        reason = (await self.hear(p.Refused)).reason
        await until(lambda: self.reason is not None)
        return reason


class Shell:
    def __init__(
        self,
        directory: Path,
        engine: FakeEngine | None = None,
        clock: Callable[[], float] = time.time,
        **rpc: Any,
    ) -> None:
        self.directory = directory
        self.engine = engine or FakeEngine()
        self.store = Store(directory, clock=clock)
        self.path = str(directory / "plane.sock")
        self._rpc_options = rpc
        self._ids = itertools.count(1)

    async def start(self) -> None:
        self.store.open()
        self.vault = Vault(self.store.writer, self.directory, self.store.clock)
        await self.vault.open()
        outfitter = Outfitter(self.directory, self.path, vault=self.vault)
        self.launches = Launches(self.path, str(self.directory), self.store, outfitter)
        self.output = OutputLog(self.directory / "logs" / "logs.db", self.launches.place)
        self.plane = Plane(lambda prefix: f"{prefix}-{next(self._ids)}")
        self.driver = Driver(self.plane, self.engine, self.store, self.launches, self.output)
        self.engine.report = self.driver.report
        self.tokens = Tokens(self.store.writer, TOKEN)
        await self.tokens.open()
        self.office = Office(self.driver, self.launches, self.store, self.tokens)
        self.vault.used = lambda: used_in(self.plane)
        self.objects = Objects(self.directory, True, self.driver.send, self.driver.flush_all, self.store.clock)
        self.objects.dicts.place = self.launches.payloads.place
        await self.objects.open()
        self.office.attend(self.vault.answers)
        self.office.attend(self.objects.answers)
        self.office.departures += [self.vault.session_closed, self.objects.session_closed]
        self.rpc = Rpc(self.driver, self.launches, self.office, str(self.directory), **self._rpc_options)
        self.recovery = Recovery(self.driver, self.store)
        driver, register = self.driver, self.store.register
        self.schedules = Schedules(self.plane, driver.links, driver.submit, register, self.output.say, self.store.clock)
        driver.journal.announce = self.schedules.changed
        self.driver.submit(p.NodeJoined("local", 64.0, 65536))
        await self.recovery.run()
        await self.rpc.listen(self.path)
        await self.schedules.open()

    async def stop(self) -> None:
        """As if it had been killed: nobody is told anything."""
        self.driver.ending = True
        self.schedules.close()
        self.recovery.close()
        self.driver.archive.close()
        self.office.close()
        self.rpc.close()
        self.rpc.close_all()
        await self.engine.close()
        self.output.close_all()
        self.vault.close()
        self.objects.close()
        self.store.close()
        await asyncio.sleep(0)

    async def stranger(self, address: str = "") -> Peer:
        """A connection that has not said anything."""
        peer, loop = Peer(), asyncio.get_running_loop()
        if address:
            host, _, port = address.removeprefix("tcp://").rpartition(":")
            await loop.create_connection(lambda: peer.connection, host, int(port))
        else:
            await loop.create_unix_connection(lambda: peer.connection, self.path)
        return peer

    async def client(self, *messages: Any) -> Peer:
        """A client that is welcome, and has said `messages`."""
        peer = await self.stranger()
        peer.say(p.Hello(p.CLIENT))
        await peer.hear(p.Welcome)
        peer.say(*messages)
        return peer

    async def on_disk(self) -> None:
        """Everything that the store was told so far is written."""
        await self.store.writer.ask(lambda tx: None)


@asynccontextmanager
async def running(directory: Path, engine: FakeEngine | None = None, **options: Any) -> AsyncGenerator[Shell, None]:
    shell = Shell(directory, engine, **options)
    await shell.start()
    try:
        yield shell
    finally:
        await shell.stop()
