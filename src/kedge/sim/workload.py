"""A whole world from one seed: machines, functions, programs that call them, and what goes wrong meanwhile.

Each seed switches some kinds of faults on and others off, so that rare combinations do not drown in common ones.
Whatever is drawn stays possible to finish: the containers that must be kept never fill the machines.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from kedge.model import protocol as p
from kedge.model.ids import function_id
from kedge.model.payload import Payload
from kedge.model.spec import (
    AppSpec,
    AutoscalerSettings,
    Batching,
    Concurrency,
    FunctionSpec,
    GpuRequest,
    MethodSpec,
    Resources,
    RetryPolicy,
    Variant,
)
from kedge.sim.client import SimCall, SimClient
from kedge.sim.link import Conditions
from kedge.sim.machine import DEAF, FAIL, FLAKY, FROZEN, NEST, OK, POISON, STUBBORN, work
from kedge.sim.world import World, app, function

BOUND_S = 50_000.0
"""Virtual seconds in which everything ends once faults have stopped."""
SPANS_S = (0.5, 5.0, 30.0)
"""Seconds over which things happen."""
SERVICES_S = (0.00002, 0.001, 0.02, 0.3)
"""Typical times of user code: shorter than a round trip, about as long, longer, much longer."""
DEVICES = (
    (),
    (GpuRequest("H100"),),
    (GpuRequest("L4", 2), GpuRequest("ANY")),
    (GpuRequest("H100", 1, 0.3), GpuRequest("L4", 1, 0.5)),
)
"""What functions ask for where machines have GPUs."""
LEAF = "leaf"
"""The function that nested calls go to; it never nests."""


class Summary(NamedTuple):
    seed: int
    events: int
    virtual_s: float
    attempts: int
    containers: int
    digest: str


def run_seed(seed: int) -> Summary:
    """Runs the world of a seed to its end; Violation or AssertionError where it breaks a rule."""
    world = build(seed)
    return finish(world)


def finish(world: World) -> Summary:
    """Lets everything happen, ends the faults, and waits until the world has come to rest."""
    world.run(world.span)
    world.settle(BOUND_S)
    started = world.ids.get("ct", 0)
    return Summary(world.seed, world.events, world.now, world.checks.attempts, started, world.digest)


def build(seed: int) -> World:
    """The world of a seed, with all that happens still ahead of it."""
    random = Random(seed)
    thorough = random.random() < 0.6
    size = random.choice((5, 30, 100)) if thorough else random.choice((200, 1500))
    span = random.choice(SPANS_S)
    world = World(seed, draw_conditions(random, span), 1 if thorough else 29)
    for number in range(random.choice((1, 1, 2))):
        world.join(f"node-{number}", float(random.choice((4, 16))), 16384, random.choice(({}, {"H100": 2, "L4": 4})))
    deployed = draw_app(random, world, "deployed")
    owned = draw_app(random, world, "owned", ephemeral=True)
    world.deploy(deployed)
    if random.random() < 0.3:
        first = deployed.functions[0]
        world.bind(Variant(function=function_id(deployed.app, first.name), variant="other", spec=first))
    programs = [SimClient(world), SimClient(world, owned), SimClient(world)]
    plan = Plan(world, random, span, deployed, owned, programs)
    plan.calls(size)
    plan.faults()
    world.span = span
    return world


def some(random: Random, probability: float, value: float) -> float:
    """`value` in some worlds, 0 in the others."""
    return value if random.random() < probability else 0.0


def draw_conditions(random: Random, span: float) -> Conditions:
    slow = random.choice((0.0001, 0.002, 0.05))
    return Conditions(
        latency=(slow / 10, slow),
        late_frames=some(random, 0.3, 0.02),
        coalesce=random.choice((0.0, 0.0001, 0.01)),
        start=(0.001, random.choice((0.01, 1.0))),
        imports=(0.001, random.choice((0.05, 3.0))),
        exit_hooks=(0.0001, random.choice((0.01, 5.0))),
        connects_early=random.choice((0.0, 0.5, 1.0)),
        never_starts=some(random, 0.2, 0.1),
        crashes_starting=some(random, 0.2, 0.2),
        fails_starting=some(random, 0.25, 0.2),
        hangs_starting=some(random, 0.1, 0.05),
        hangs_exiting=some(random, 0.2, 0.3),
        crash_rate=some(random, 0.4, random.choice((0.2, 2.0)) / span * 5),
        leave_rate=some(random, 0.2, 1.0 / span),
        wish_rate=some(random, 0.2, 5.0 / span),
        frames_lost=some(random, 0.5, 0.5),
    )


def draw_app(random: Random, world: World, name: str, ephemeral: bool = False) -> AppSpec:
    functions = [draw_function(random, world, f"f{number}") for number in range(random.choice((1, 2, 3)))]
    leaf = function(LEAF, concurrency=Concurrency(2, 2, True), autoscaler=AutoscalerSettings(scaledown_window=2.0))
    return app(name, *functions, leaf, ephemeral=ephemeral)


def draw_function(random: Random, world: World, name: str) -> FunctionSpec:
    maximum, target = random.choice(((1, 1), (1, 1), (4, 3), (10, 8), (50, 40)))
    gpus = random.choice(DEVICES)
    vram = random.choice((None, 20480)) if gpus and not any(gpu.fraction for gpu in gpus) else None
    if not all(node.gpus for node in world.nodes.values()):
        gpus, vram = (), None
    small = not gpus and random.random() < 0.6
    options: dict[str, object] = {
        "concurrency": Concurrency(maximum, target, maximum > 1),
        "autoscaler": AutoscalerSettings(
            min_containers=random.choice((0, 0, 1)) if small else 0,
            max_containers=random.choice((None, None, 1, 3)),
            buffer_containers=random.choice((0, 0, 0, 1)),
            scaledown_window=random.choice((0.5, 2.0, 20.0)),
        ),
        "resources": Resources(0.125)
        if small
        else Resources(random.choice((0.125, 0.5, 1.0)), None, 1024, gpus=gpus, vram=vram),
        "retries": random.choice((RetryPolicy(), RetryPolicy(3, 2.0, random.choice((0.0, 0.1)), 1.0))),
        "startup_timeout": random.choice((300.0, 10.0)),
        "concurrency_limit": random.choice((None, None, None, 3)),
        "timeout": random.choice((300.0, 300.0, 1.0)),
        "cancellation_grace": random.choice((0.1, 3.0, 10.0)),
        "queue_timeout": random.choice((None, None, None, 2.0)),
        "max_queued_inputs": random.choice((None, None, None, 50)),
    }
    kind = random.random()
    if kind < 0.15:
        options["single_use_containers"] = True
        options["concurrency"] = Concurrency()
    elif kind < 0.3:
        limits = (
            MethodSpec("a", concurrency_limit=2),
            MethodSpec("b", concurrency_limit=1, timeout=random.choice((None, 0.5))),
            MethodSpec("c"),
        )
        options["methods"] = limits
        options["is_class"] = True
    elif kind < 0.42:
        batching = Batching(random.choice((2, 8)), random.choice((0, 50)))
        options["methods"] = (MethodSpec(batching=batching, concurrency_limit=random.choice((None, None, 2))),)
    return function(name, **options)


class Plan:
    """What the programs of a world do, and what is done to it, spread over its span."""

    def __init__(
        self, world: World, random: Random, span: float, deployed: AppSpec, owned: AppSpec, programs: list[SimClient]
    ) -> None:
        self._world = world
        self._random = random
        self._span = span
        self._deployed = deployed
        self._owned = owned
        self._programs = programs
        self._made: list[tuple[SimClient, SimCall]] = []
        self._odd = random.random() < 0.5
        self._service_s = random.choice(SERVICES_S)

    def _later(self, action: object, *arguments: object) -> None:
        assert callable(action)
        self._world.at(self._random.random() * self._span, lambda _: action(*arguments))

    # ------------------------------------------------------------ calls

    def calls(self, size: int) -> None:
        random = self._random
        for number in range(random.choice((2, 8, 20))):
            apps = [self._deployed, self._owned] if number % 3 == 1 else [self._deployed]
            app = random.choice(apps)
            client = self._programs[1] if app is self._owned else random.choice(self._programs)
            chosen = random.choice(app.functions)
            count = 1 if random.random() < 0.3 else random.randint(1, size)
            options: dict[str, object] = {
                "method": random.choice(chosen.methods).name,
                "durable": random.random() < 0.25,
                "stream": random.random() < 0.05 and chosen.methods[0].batching is None,
                "window": random.choice((0, 10, 1000)),
                "get_after": random.random() * self._span,
                "timeout": some(random, 0.1, random.choice((0.5, 5.0))),
                "queue_timeout": some(random, 0.1, random.choice((0.2, 3.0))),
            }
            payloads = [self._payload(app, chosen) for _ in range(count)]
            pool = function_id(app.app, chosen.name)
            if app is self._deployed and chosen is app.functions[0] and self._world.variants and number % 2:
                pool += "@other"
            self._later(self._call, client, pool, payloads, options)

    def _payload(self, app: AppSpec, chosen: FunctionSpec) -> Payload:
        random = self._random
        seconds = random.expovariate(1 / self._service_s)
        roll = random.random() if self._odd else 1.0
        if roll < 0.03:
            return work(FAIL, seconds)
        if roll < 0.06:
            return work(FLAKY, seconds, random.randint(1, 3))
        if roll < 0.09:
            return work(STUBBORN, seconds + random.random() * 10)
        if roll < 0.095:
            return work(POISON, seconds)
        if roll < 0.097:
            return work(random.choice((FROZEN, DEAF)), 1000.0)
        if roll < 0.12:
            return work(OK, seconds * 100)
        if roll < 0.2 and chosen.name != LEAF:
            return work(NEST, seconds, function_id(app.app, LEAF))
        return work(OK, seconds)

    def _call(self, client: SimClient, pool: str, payloads: list[Payload], options: dict[str, object]) -> None:
        call = client.call(pool, payloads, **options)
        random = self._random
        if random.random() < 0.25:
            indices = None if random.random() < 0.6 else sorted(random.sample(range(len(payloads)), len(payloads) // 2))
            terminate = random.random() < 0.2
            self._world.after(random.random() * self._span / 3, lambda _: client.cancel(call, indices, terminate))

    # ------------------------------------------------------------ faults

    def faults(self) -> None:
        random, world = self._random, self._world
        if random.random() < 0.4:
            for _ in range(random.randint(1, 4)):
                self._later(random.choice(self._programs).lose_link)
        if random.random() < 0.25:
            self._later(world.crash_plane, random.choice((0.01, 1.0)))
        if random.random() < 0.2:
            self._later(random.choice(self._programs).leave)
        if random.random() < 0.2:
            self._later(self._lose_node)
        if random.random() < 0.2:
            self._later(lambda: world.engine.lose_supervisor())
        if any(node.gpus for node in world.nodes.values()):
            for _ in range(random.randint(0, 5)):
                self._later(self._measure)
        if random.random() < 0.3:
            for _ in range(random.randint(1, 3)):
                self._later(self._update)
        if random.random() < 0.15:
            self._later(self._stop)

    def _stop(self) -> None:
        client = self._programs[0]
        if client.session:
            client.stop(self._random.choice((self._deployed, self._owned)).app)

    def _measure(self) -> None:
        """Containers use some memory of their GPUs, whatever they have declared."""
        containers = [container for container in self._world.engine.containers.values() if container.devices]
        self._world.feed(p.VramMeasured({one.id: self._random.randint(100, 40_000) for one in containers}))

    def _update(self) -> None:
        random = self._random
        chosen = random.choice(self._deployed.functions)
        if random.random() < 0.4:
            most = random.choice((1, 2, 5, 20))
            numbers = random.choice(({"max_inputs": most}, {"max_inputs": most, "target_inputs": max(1, most - 1)}))
            self._programs[0].change_concurrency(function_id(self._deployed.app, chosen.name), **numbers)
            return
        small = chosen.resources == Resources(0.125)
        settings = random.choice(
            (
                {"min_containers": 2 if small else 0, "max_containers": 4},
                {"min_containers": 0},
                {"max_containers": 1, "min_containers": 0},
                {"buffer_containers": 2},
                {"scaledown_window": random.choice((0.0, 1.0, 60.0))},
            )
        )
        self._programs[0].update(function_id(self._deployed.app, chosen.name), **settings)

    def _lose_node(self) -> None:
        world = self._world
        if world.up and world.nodes:
            node = self._random.choice(list(world.nodes.values()))
            world.lose(node.node)
            world.after(self._random.random() * self._span, lambda _: self._join(node.node, node.cpu, node.gpus))

    def _join(self, name: str, cpu: float, gpus: dict[str, int]) -> None:
        self._world.join(name, cpu, 16384, gpus)
