"""Simulated programs that call functions: windows, cancels, lost connections, and resends under the same ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kedge.model import protocol as p
from kedge.model.ids import CALL
from kedge.model.payload import Payload, Result
from kedge.model.spec import AppSpec
from kedge.sim.link import Link
from kedge.sim.store import runs

if TYPE_CHECKING:
    from kedge.sim.world import World

RECONNECT_S = (0.001, 0.2)
NOTICED_S = (0.0001, 0.5)
"""How long the server takes to see that a connection is gone: also longer than the client takes to come back."""


class SimCall:
    """One call as its caller sees it."""

    __slots__ = (
        "accepted",
        "cancelled",
        "durable",
        "get_after",
        "id",
        "left",
        "method",
        "on_over",
        "over",
        "parent",
        "payloads",
        "pool",
        "queue_timeout",
        "refused",
        "requested",
        "results",
        "sent",
        "stream",
        "timeout",
        "window",
    )

    def __init__(self, id: str, pool: str, payloads: list[Payload], **options: Any) -> None:
        self.id = id
        self.pool = pool
        self.payloads = payloads
        self.method: str = options.get("method", "")
        self.durable: bool = options.get("durable", False)
        self.stream: bool = options.get("stream", False)
        self.parent: str = options.get("parent", "")
        self.timeout: float = options.get("timeout", 0.0)
        self.queue_timeout: float = options.get("queue_timeout", 0.0)
        self.window: int = options.get("window", 0) or len(payloads)
        self.get_after: float = options.get("get_after", 0.0)
        """Seconds from the acceptance of a durable call to the question for its results."""
        self.sent = 0
        self.accepted: dict[int, None] = {}
        self.requested = False
        self.results: dict[int, Result] = {}
        self.refused = ""
        self.cancelled = False
        self.over = False
        self.left = False
        """Its caller is gone."""
        self.on_over: Callable[[], None] | None = None

    @property
    def statuses(self) -> dict[int, str]:
        return {index: result.status for index, result in sorted(self.results.items())}

    def open(self) -> dict[int, Payload]:
        """What was sent and has no result."""
        return {index: self.payloads[index] for index in range(self.sent) if index not in self.results}

    def __repr__(self) -> str:
        missing = list(self.open())[:5]
        state = "over" if self.over else f"{len(self.results)} of {self.sent} sent inputs, missing {missing}"
        kind = f"{' durable' if self.durable else ''}{' cancelled' if self.cancelled else ''}"
        return f"<{self.id} to {self.pool}{kind}: {state}>"


class SimClient:
    def __init__(self, world: World, *apps: AppSpec) -> None:
        self.calls: dict[str, SimCall] = {}
        self.replies: dict[int, p.Reply] = {}
        self.notices: list[str] = []
        self.session = ""
        self.gone = False
        self._apps = apps
        self._requests = 0
        self._world = world
        self.up = Link(world, lambda frame: None)
        self.down = Link(world, lambda frame: None)
        world.clients.append(self)
        self._connect()

    # ------------------------------------------------------------ what programs do

    def call(self, pool: str, payloads: list[Payload], **options: Any) -> SimCall:
        """Calls `pool` with these inputs, at most `window` of them on their way at once."""
        world = self._world
        call = SimCall(options.pop("id", "") or world.new_id(CALL), pool, payloads, **options)
        self.calls[call.id] = call
        if self.gone:
            call.left = call.over = True
        else:
            world.outstanding += 1
            self._pump(call)
        return call

    def cancel(self, call: SimCall, indices: list[int] | None = None, terminate: bool = False) -> None:
        if indices is None:
            call.cancelled = True
        self.up.send(p.CallCancelled(call.id, terminate, indices))
        self._look_if_over(call)

    def stop(self, app: str) -> int:
        self._world.deployed.pop(app, None)
        return self.ask(p.AppStopped(app, self._next_request()))

    def update(self, pool: str, **settings: Any) -> int:
        return self.ask(p.AutoscalerUpdated(self._next_request(), pool, **settings))

    def change_concurrency(self, pool: str, **numbers: int) -> int:
        return self.ask(p.ConcurrencyUpdated(self._next_request(), pool, **numbers))

    def ask(self, message: Any) -> int:
        self.up.send(message)
        return int(message.request)

    def leave(self) -> None:
        """The program ends."""
        if not self.gone:
            self.gone = True
            self._abandon()
            if self.session:
                self.up.send(p.SessionClosed("bye"))
                self._hear_no_more()

    def lose_link(self) -> None:
        """The connection breaks. Both sides notice, each in its time, and the client comes back."""
        if not self.session:
            return
        session, world = self.session, self._world
        plane = world.plane
        self.link_lost()

        def notice(_: object) -> None:
            if world.plane is plane:
                world.feed(p.SessionClosed("connection lost"), session)

        world.after(world.draw(NOTICED_S), notice)

    def link_lost(self) -> None:
        if self.session:
            self.up.cut = self.down.cut = True
            self._hear_no_more()
        if not self.gone:
            self._world.after(self._world.draw(RECONNECT_S), self._connect)

    # ------------------------------------------------------------ connection

    def _connect(self, _: object = None) -> None:
        world = self._world
        if self.gone or self.session:
            return
        if not world.up:
            world.after(world.draw(RECONNECT_S), self._connect)
            return
        self.session = session = world.new_id("se")
        self.up = Link(world, lambda frame: self._to_plane(session, frame))
        self.down = Link(world, lambda frame: self._receive(session, frame))
        world.peers[session] = self.down.send
        for app in self._apps:
            self.ask(p.AppCreated(self._next_request(), app))
        for call in self.calls.values():
            if not call.over:
                self._resume(call)

    def _resume(self, call: SimCall) -> None:
        """The same inputs once more, twice where the first time may have been in vain: all but one are duplicates."""
        if call.durable:
            call.requested = False
            missing = {i: payload for i, payload in enumerate(call.payloads[: call.sent]) if i not in call.accepted}
        else:
            missing = call.open()
        for _ in range(1 if call.cancelled else 1 + self._world.chance(0.3)):
            for first, payloads in runs(missing):
                self._submit(call, first, payloads)
        if call.cancelled:
            self.up.send(p.CallCancelled(call.id))
        if call.durable and call.sent and not missing:
            self._request(call)
        self._pump(call)

    def _hear_no_more(self) -> None:
        del self._world.peers[self.session]
        self.session = ""

    def _abandon(self) -> None:
        for call in self.calls.values():
            if not call.over:
                call.left = True
                self._finish(call)

    def _to_plane(self, session: str, frame: list[Any]) -> None:
        world = self._world
        for message in frame:
            if type(message) is p.InputsSubmitted and message.durable:
                for restored in world.store.journal(message):
                    world.feed(restored)
            world.feed(message, session)

    def _next_request(self) -> int:
        self._requests += 1
        return self._requests

    # ------------------------------------------------------------ inputs go, results come

    def _pump(self, call: SimCall) -> None:
        if call.over or call.cancelled or not self.session:
            return
        known = len(call.accepted) if call.durable else len(call.results)
        room = min(len(call.payloads), known + call.window) - call.sent
        waiting = call.sent - known
        if room > 0 and (waiting == 0 or room * 4 >= call.window or call.sent + room == len(call.payloads)):
            first = call.sent
            call.sent += room
            self._submit(call, first, call.payloads[first : call.sent])

    def _submit(self, call: SimCall, first: int, payloads: list[Payload]) -> None:
        last = first + len(payloads) == len(call.payloads)
        total = len(call.payloads) if last else -1
        self.up.send(
            p.InputsSubmitted(
                call.id,
                call.pool,
                first,
                payloads,
                call.method,
                call.durable,
                call.parent,
                call.stream,
                total,
                call.timeout,
                call.queue_timeout,
            )
        )

    def _receive(self, session: str, frame: list[Any]) -> None:
        for message in frame:
            if type(message) is p.OutputsDelivered:
                self._results(session, message)
            elif type(message) is p.InputsAccepted:
                self._accepted(message)
            elif type(message) is p.CallRefused:
                call = self.calls[message.call]
                call.refused = message.error.message
                self._finish(call)
            elif type(message) is p.Reply:
                self.replies[message.request] = message
            elif type(message) is p.Notice:
                self.notices.append(message.text)

    def _results(self, session: str, message: p.OutputsDelivered) -> None:
        call = self._world.checks.delivered(self, session, message)
        for output in message.outputs:
            call.results[output.index] = output.result
        self._pump(call)
        self._look_if_over(call)

    def _accepted(self, message: p.InputsAccepted) -> None:
        call = self.calls[message.call]
        for index in range(message.first, message.first + message.count):
            call.accepted[index] = None
        self._pump(call)
        if len(call.accepted) >= call.sent and not call.requested:
            self._world.after(call.get_after, lambda _: self._request(call))
        self._look_if_over(call)

    def _request(self, call: SimCall) -> None:
        if self.session and not call.requested and not call.over:
            call.requested = True
            self.up.send(p.OutputsRequested(call.id, 0, None, self._next_request()))

    def _look_if_over(self, call: SimCall) -> None:
        expected = call.sent if call.cancelled else len(call.payloads)
        if not call.over and len(call.results) >= expected:
            self._finish(call)

    def _finish(self, call: SimCall) -> None:
        if call.over:
            return
        call.over = True
        self._world.outstanding -= 1
        if call.on_over is not None and not call.left:
            call.on_over()
