"""The only owner of a Plane: gives it every message with the time, and carries out what it orders.

Commands are addressed messages. A session's or container's go to its connection; the engine's and the store's are
methods calls. What a message causes leaves in one frame per connection, right after it was handled. Durable inputs
are on disk before the plane hears of them; whatever the same session says next waits behind them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from kedge.core.outbox import ENGINE, STORE
from kedge.core.plane import Plane
from kedge.engines.base import Engine
from kedge.model import protocol as p
from kedge.model.payload import ErrorInfo
from kedge.server.launches import Launches
from kedge.server.logs import OutputLog
from kedge.server.store import Store
from kedge.wire.transport import AsyncConnection

log = logging.getLogger("kedge.server")


class Driver:
    """Joins plane, engine, store and connections on one event loop."""

    def __init__(self, plane: Plane, engine: Engine, store: Store, launches: Launches, output: OutputLog) -> None:
        self.plane = plane
        self.links: dict[str, AsyncConnection] = {}
        """Connections by address: sessions and containers."""
        self.idle = asyncio.Event()
        """Set while no container exists."""
        self.idle.set()
        self._engine = engine
        self._store = store
        self._launches = launches
        self._output = output
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._dirty: dict[AsyncConnection, None] = {}
        self._behind: dict[str, deque[Any]] = {}
        """Messages of sessions that wait for an earlier one of theirs to be on disk."""
        self._store_commands: dict[type, Callable[[Any], None]] = {
            p.OutputsRecorded: store.record,
            p.OutputsWanted: self._send_recorded,
            p.CallExpired: store.expire,
            p.PayloadReleased: store.release,
        }

    # ------------------------------------------------------------ messages come in

    def submit(self, message: Any, sender: str = "") -> None:
        """One message of a session, a container (`sender`), the engine or the shell itself."""
        waiting = self._behind.get(sender)
        if waiting is not None:
            waiting.append(message)
        elif type(message) is p.InputsSubmitted and message.durable:
            self._behind[sender] = deque()
            self._store.accept(message, lambda error: self._accepted(message, sender, error))
        else:
            self._handle(message, sender)

    def _accepted(self, message: p.InputsSubmitted, sender: str, error: str) -> None:
        """A durable submission is on disk, or cannot be."""
        if error:
            self.send(sender, p.CallRefused(message.call, ErrorInfo("ServiceError", error)))
        else:
            self._handle(message, sender)
        for later in self._behind.pop(sender):
            self.submit(later, sender)
        self.flush(sender)

    def _handle(self, message: Any, sender: str) -> None:
        kind = type(message)
        if kind is p.AppCreated:
            if not message.app.ephemeral:
                self._store.save_app(message.app)
        elif kind is p.AppStopped:
            self._store.forget_app(message.app)
        elif kind is p.CallClosed:
            call = self.plane.calls.by_id.get(message.call)
            if call is not None and call.durable:
                self._store.total(message.call, message.total)
        elif kind is p.ContainerReady:
            self._launches.learn(sender, message.imports)
        elif kind is p.ContainerLost:
            self._launches.forget(message.container)
            self._output.close(message.container)
        commands = self.plane.handle(message, self._loop.time(), sender)
        for address, order in commands:
            if address == ENGINE:
                self._order(order)
            elif address == STORE:
                self._store_commands[type(order)](order)
            else:
                self.send(address, order)
        due = self.plane.next_deadline()
        if due is not None and (self._timer is None or due < self._timer_at):
            self._arm(due)

    def restore(self, message: Any) -> None:
        """Something that the store remembers from before a restart: handled without being stored again."""
        self._handle(message, "")

    def report(self, fact: Any) -> None:
        """What the engine has to say."""
        kind = type(fact)
        if kind is p.OutputCaptured:
            self._captured(fact)
        elif kind is p.ForkServerReported:
            log.log(logging.INFO if fact.safe else logging.WARNING, "fork server %s: %s", fact.key, fact.reason or "up")
        else:
            self.submit(fact)
        if not self.plane.containers:
            self.idle.set()

    # ------------------------------------------------------------ orders go out

    def send(self, address: str, message: Any) -> None:
        link = self.links.get(address)
        if link is not None:
            self._dirty[link] = None
            link.send(message)

    def flush(self, address: str) -> None:
        link = self.links.get(address)
        if link is not None:
            link.flush()

    def flush_all(self) -> None:
        """Writes what has been sent since the last time, one frame per connection."""
        links, self._dirty = self._dirty, {}
        for link in links:
            link.flush()

    def _order(self, order: p.StartContainer | p.KillContainer) -> None:
        if isinstance(order, p.KillContainer):
            self._engine.kill(order.container, order.grace_s)
            return
        self.idle.clear()
        pool = self.plane.pools[order.pool]
        launch = self._launches.make(order, pool.spec, pool.parameters, self.plane.apps[pool.app].spec)
        self._engine.start(launch)

    def _send_recorded(self, wanted: p.OutputsWanted) -> None:
        def deliver(outputs: list[p.Output]) -> None:
            self.send(wanted.session, p.OutputsDelivered(wanted.call, outputs, wanted.request))

        self._store.read_outputs(wanted.call, wanted.indices, deliver)

    # ------------------------------------------------------------ time

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_at(due, self._time_passed)

    def _time_passed(self) -> None:
        self._timer = None
        self._handle(p.TimePassed(), "")

    # ------------------------------------------------------------ what passes by the plane

    def relay_values(self, message: p.StreamValues, container: str) -> None:
        """Values of a generator on their way to its caller."""
        call = self.plane.calls.by_id.get(message.call)
        input = call.open.get(message.index) if call is not None else None
        if call is None or input is None or input.container is None or input.container.id != container:
            self.plane.drop("values of a stream that is over")
            return
        self.send(call.session, message)

    def relay_credit(self, message: p.StreamCredited) -> None:
        call = self.plane.calls.by_id.get(message.call)
        input = call.open.get(message.index) if call is not None else None
        if input is not None and input.container is not None:
            self.send(input.container.id, message)

    def subscribe(self, app: str, session: str) -> None:
        self._output.subscribe(app, session)

    def unsubscribe(self, session: str) -> None:
        self._output.unsubscribe(session)

    def _captured(self, fact: p.OutputCaptured) -> None:
        app, pool = self._launches.origin(fact.container)
        message = p.OutputCaptured(fact.container, fact.stream, fact.data, fact.at, app, pool)
        for session in self._output.write(message):
            self.send(session, message)
