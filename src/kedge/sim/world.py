"""Virtual time around one real `Plane`: what the server's shell, the sockets and the store do, without any of them.

The rules:

* One heap of things to come and one `Random`: the same seed gives the same world, event by event. Nothing reads a
  clock, and nothing iterates a set.
* The plane and the containers' sessions are the objects that production runs. Only their surroundings are simulated:
  clients, engine, links, user code and store.
* Every link keeps its order, as a stream socket does. Between links there is no order. What is sent in one instant is
  one frame. A cut link loses what is on its way.
* `heal` ends all faults; what follows must then come to rest, which `checks` demands.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush
from random import Random
from typing import TYPE_CHECKING, Any

from msgspec.msgpack import Encoder

from kedge.core.outbox import ENGINE, STORE
from kedge.core.plane import Plane
from kedge.model import protocol as p
from kedge.model.ids import pool_id
from kedge.model.spec import AppSpec, CodeSpec, EnvironmentSpec, FunctionSpec, Variant
from kedge.sim.checks import Checks
from kedge.sim.link import CALM, Conditions
from kedge.sim.machine import SimEngine
from kedge.sim.store import SimStore

if TYPE_CHECKING:
    from kedge.sim.client import SimClient

FOREVER = float("inf")
TRACE = 40
"""Events that a failure shows."""
SHOWN = 240
"""Characters of an event that are shown."""
MAX_EVENTS = 2_000_000
"""More than any world needs: where it takes so many, something goes round in circles."""
TIME_PASSED = p.TimePassed()


class World:
    def __init__(self, seed: int = 0, conditions: Conditions = CALM, check_every: int = 1) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.conditions = conditions
        self.now = 0.0
        self.span = 0.0
        """Seconds in which things go wrong, where a workload says so."""
        self.events = 0
        self.time_passed = 0
        self.outstanding = 0
        """Calls of clients that are still there and have not got everything."""
        self.trace: deque[tuple[float, str, Any]] = deque(maxlen=TRACE)
        self.clients: list[SimClient] = []
        self.peers: dict[str, Callable[[Any], None]] = {}
        """Who listens at an address: sessions and containers."""
        self.nodes: dict[str, p.NodeJoined] = {}
        self.deployed: dict[str, AppSpec] = {}
        """Apps that a restarted server knows again."""
        self.variants: list[Variant] = []
        """And their variants."""
        self.up = True
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._sequence = 0
        self.ids: dict[str, int] = {}
        """How many ids of each kind were made."""
        self._wake_at = FOREVER
        self._digest = blake2b(digest_size=8)
        self._encode = Encoder().encode
        self.store = SimStore(self)
        self.checks = Checks(self, check_every)
        self.plane = Plane(self.new_id)
        self.engine = SimEngine(self)

    # ------------------------------------------------------------ time

    def at(self, when: float, action: Callable[[Any], None], argument: Any = None) -> None:
        self._sequence += 1
        heappush(self._heap, (when, self._sequence, action, argument))

    def after(self, seconds: float, action: Callable[[Any], None], argument: Any = None) -> None:
        self.at(self.now + seconds, action, argument)

    def run(self, until: float = FOREVER, done: Callable[[], bool] | None = None) -> bool:
        """Lets time pass up to `until`, or until `done`; False where `done` did not come about. What breaks a rule
        carries the last events as a note."""
        try:
            self._run(until, done)
        except Exception as error:
            error.add_note("\n".join(self.last_events()))
            raise
        return done is None or done()

    def _run(self, until: float, done: Callable[[], bool] | None) -> None:
        heap = self._heap
        while heap and heap[0][0] <= until:
            when, _, action, argument = heappop(heap)
            self.now = when
            self.events += 1
            if self.events > MAX_EVENTS:
                self.checks.fail("progress", f"{self.events} events, and no end: {self.stuck()}")
            action(argument)
            if done is not None and done():
                return
        if until != FOREVER:
            self.now = until

    def last_events(self) -> list[str]:
        """What the plane was told last, oldest first."""
        return [f"{when:12.6f} {sender or '-':8} {str(message)[:SHOWN]}" for when, sender, message in self.trace]

    def draw(self, span: tuple[float, float]) -> float:
        return span[0] + (span[1] - span[0]) * self.random.random()

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    def latency(self) -> float:
        low, high = self.conditions.latency
        seconds = low + (high - low) * self.random.random()
        return seconds * 100 if self.chance(self.conditions.late_frames) else seconds

    def new_id(self, prefix: str) -> str:
        self.ids[prefix] = number = self.ids.get(prefix, 0) + 1
        return f"{prefix}-{number}"

    @property
    def digest(self) -> str:
        """Stands for every command that the plane has given, and when."""
        return self._digest.hexdigest()

    # ------------------------------------------------------------ the shell of the plane

    def feed(self, message: Any, sender: str = "") -> None:
        """One message reaches the plane, and what it orders sets out."""
        if not self.up:
            return
        self.trace.append((self.now, sender, message))
        commands = self.plane.handle(message, self.now, sender)
        for command in commands:
            self._digest.update(self._encode((self.now, command)))
            address, order = command
            peer = self.peers.get(address)
            if peer is not None:
                peer(order)
            elif address == ENGINE:
                self.engine.order(order)
            elif address == STORE:
                self.store.take(order)
        self.checks.handled(message, commands)
        self._plan_wake()

    def _plan_wake(self) -> None:
        due = self.plane.next_deadline()
        if due is not None and due < self._wake_at:
            self._wake_at = due
            self.at(max(due, self.now), self._wake, (self.plane, due))

    def _wake(self, planned: tuple[Plane, float]) -> None:
        plane, at = planned
        if plane is not self.plane or at != self._wake_at:
            return
        self._wake_at = FOREVER
        due = plane.next_deadline()
        if due is not None and due <= self.now:
            self.time_passed += 1
            self.feed(TIME_PASSED)
        else:
            self._plan_wake()

    # ------------------------------------------------------------ what is there

    def join(self, node: str, cpu: float, memory: int = 65536, gpus: dict[str, int] | None = None) -> None:
        self.nodes[node] = joined = p.NodeJoined(node, cpu, memory, gpus or {})
        self.feed(joined)

    def lose(self, node: str) -> None:
        """The machine is gone with all that ran on it, and nobody says so for its containers."""
        del self.nodes[node]
        self.engine.lose(node)
        self.feed(p.NodeLost(node))

    def deploy(self, app: AppSpec) -> None:
        """An app that no client owns."""
        self.deployed[app.app] = app
        self.feed(p.AppCreated(0, app))

    def bind(self, variant: Variant) -> str:
        """A pool with other options; gives its id."""
        self.variants.append(variant)
        self.feed(p.VariantBound(variant))
        return pool_id(variant.function, variant.variant)

    # ------------------------------------------------------------ faults, and their end

    def crash_plane(self, down_s: float) -> None:
        """The server dies, with it every container; after `down_s` another one reads what the store has kept."""
        if not self.up:
            return
        self.up = False
        self._wake_at = FOREVER
        self.engine.die()
        for client in self.clients:
            client.link_lost()
        self.after(down_s, self._boot)

    def _boot(self, _: object) -> None:
        self.up = True
        self.plane = Plane(self.new_id)
        self.engine = SimEngine(self)
        self.checks.restarted()
        for node in self.nodes.values():
            self.feed(node)
        for app in list(self.deployed.values()):
            self.feed(p.AppCreated(0, app))
        for spec in self.store.apps.values():
            self.feed(p.AppCreated(0, spec))
        for change in self.store.current.values():
            self.feed(change)
        for variant in self.variants:
            self.feed(p.VariantBound(variant))
        for message in self.store.restore():
            self.feed(message)

    def heal(self) -> None:
        self.conditions = self.conditions.healed()

    def settle(self, bound_s: float) -> None:
        """After healing: everything must end within `bound_s`, and the machine come to rest."""
        self.heal()
        if not self.run(self.now + bound_s, self._is_over):
            self.checks.fail(
                "progress", f"{self.outstanding} calls are not over {bound_s:g} s after all faults: {self.stuck()}"
            )
        self.checks.rest()

    def _is_over(self) -> bool:
        """Whether every call is, also spawned ones whose caller is gone."""
        return self.up and not self.outstanding and not any(call.open for call in self.plane.calls.by_id.values())

    def stuck(self) -> str:
        return "; ".join(str(call) for client in self.clients for call in client.calls.values() if not call.over)[:2000]


def app(name: str, *functions: FunctionSpec, ephemeral: bool = False) -> AppSpec:
    environment = EnvironmentSpec(python="python", python_version="3.11")
    return AppSpec(
        app=f"ap-{name}", name=name, functions=functions, code=CodeSpec(), environment=environment, ephemeral=ephemeral
    )


def function(name: str, **options: Any) -> FunctionSpec:
    return FunctionSpec(name=name, module="simulated", qualname=name, **options)
