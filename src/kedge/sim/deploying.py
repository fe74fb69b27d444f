"""Named stories about deployed apps: versions come and go under load, and no call notices."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from kedge.model import protocol as p
from kedge.model.ids import deployment_id, function_id
from kedge.model.payload import INTERNAL_FAILURE, Payload
from kedge.model.spec import AutoscalerSettings, Concurrency, FunctionSpec, Resources, Variant
from kedge.sim.client import SimCall, SimClient
from kedge.sim.link import Conditions
from kedge.sim.machine import OK, work
from kedge.sim.stage import every, scenario, wait
from kedge.sim.world import World, app, function

SHOP = deployment_id("main", "shop")
POOL = function_id(SHOP, "f")
QUICK = AutoscalerSettings(scaledown_window=5.0)


class Deployer:
    """Somebody who deploys the app `shop` again and again."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.asked = 0
        self.refused: list[str] = []
        """What was said to deploys that failed."""
        world.peers["se-deployer"] = self._hear

    def deploy(self, *functions: FunctionSpec, strategy: str = p.ROLLING) -> None:
        self.asked += 1
        spec = replace(app(f"shop.{self._world.new_id('v')}", *functions), name="shop")
        self._world.feed(p.AppDeployed(self.asked, spec, strategy), "se-deployer")

    def roll_back(self) -> None:
        self.asked += 1
        self._world.feed(p.AppRolledBack(self.asked, "shop"), "se-deployer")

    def _hear(self, message: Any) -> None:
        if isinstance(message, p.Reply) and message.error is not None:
            self.refused.append(message.error.message)

    @property
    def version(self) -> int:
        deployment = self._world.plane.deployments.by_id.get(SHOP)
        return deployment.number if deployment is not None else 0


def shop(seed: int, *functions: FunctionSpec, cpu: float = 8.0, **conditions: Any) -> tuple[World, Deployer, SimClient]:
    """A machine on which version 1 of the app is current, and a program that calls it by name."""
    world = World(seed, Conditions(**conditions))
    world.join("node", cpu)
    deployer = Deployer(world)
    deployer.deploy(*functions)
    wait(world, lambda: deployer.version == 1)
    return world, deployer, SimClient(world)


def f(**options: Any) -> FunctionSpec:
    return function("f", **{"autoscaler": QUICK, "concurrency": Concurrency(4, 3, True), **options})


def trickle(world: World, client: SimClient, count: int, **options: Any) -> list[SimCall]:
    """So many calls over ten seconds."""
    calls: list[SimCall] = []

    def begin(payloads: list[Payload]) -> None:
        calls.append(client.call(POOL, payloads, **options))

    for number in range(count):
        world.after(10.0 * number / count, begin, [work(OK, world.draw((0.01, 2.0))) for _ in range(3)])
    return calls


@scenario
def rolling_deploys_lose_no_call(seed: int) -> World:
    """Ten versions within ten seconds of load: each call has its results, and the last version is what is left."""
    world, deployer, client = shop(seed, f())
    calls = trickle(world, client, 60)
    for number in range(1, 11):
        world.after(number * world.random.random(), lambda _: deployer.deploy(f()))
    world.run(world.now + 20.0)
    world.settle(100.0)
    assert len(calls) == 60
    assert all(every(call) for call in calls)
    assert {c.pool for c in world.engine.containers.values()} <= {function_id(current(world), "f")}
    return world


def current(world: World) -> str:
    found = world.plane.deployments.current(SHOP)
    assert found is not None
    return found.spec.app


@scenario
def deploys_that_cannot_start_are_not_noticed_by_callers(seed: int) -> World:
    """Every third start fails, and some containers hang: deploys succeed or say why, and the calls go on."""
    world, deployer, client = shop(seed, f(startup_timeout=3.0))
    world.conditions = Conditions(fails_starting=0.3, hangs_starting=0.1)
    calls = trickle(world, client, 40)
    for number in range(1, 13):
        world.after(1.5 * number, lambda _: deployer.deploy(f(startup_timeout=3.0)))
    world.run(world.now + 25.0)
    world.settle(200.0)
    assert all(call.over for call in calls)
    assert deployer.version + len(deployer.refused) == 13
    assert all("goes on serving" in text for text in deployer.refused)
    return world


@scenario
def recreate_and_rollback_on_a_machine_for_one_container(seed: int) -> World:
    """The new version needs what the old one has: it gets it once the old one has finished."""
    whole = f(resources=Resources(cpu=4.0))
    world, deployer, client = shop(seed, whole, cpu=4.0)
    calls = trickle(world, client, 30)
    world.after(1.0, lambda _: deployer.deploy(whole, strategy=p.RECREATE))
    world.after(5.0, lambda _: deployer.deploy(whole))
    world.after(9.0, lambda _: deployer.roll_back())
    world.run(world.now + 15.0)
    world.settle(200.0)
    assert all(every(call) for call in calls)
    assert (deployer.version, deployer.refused) == (4, [])
    return world


@scenario
def the_server_dies_between_deploys(seed: int) -> World:
    """Spawned calls by name survive versions and servers; parameters that were announced once are known for good."""
    world, deployer, client = shop(seed, f())
    pool = world.bind(Variant(function=POOL, variant="large", spec=f(timeout=50.0)))
    calls = trickle(world, client, 30, durable=True)
    other = [client.call(pool, [work(OK, 0.5) for _ in range(4)], durable=True)]
    for number in range(1, 5):
        world.after(2.0 * number, lambda _: deployer.deploy(f()))
        world.after(2.0 * number + world.random.random(), lambda _: world.crash_plane(0.3))
    world.run(world.now + 20.0)
    other.append(client.call(pool, [work(OK, 0.5) for _ in range(4)]))
    world.settle(200.0)
    assert all(every(call) for call in calls + other)
    return world


@scenario
def containers_die_while_versions_change(seed: int) -> World:
    world, deployer, client = shop(seed, f())
    world.conditions = Conditions(crash_rate=0.05, late_frames=0.05)
    calls = trickle(world, client, 40)
    for number in range(1, 6):
        world.after(2.0 * number * world.random.random(), lambda _: deployer.deploy(f()))
    world.run(world.now + 15.0)
    world.settle(300.0)
    assert all(call.over for call in calls)
    assert {s for call in calls for s in call.statuses.values()} <= {"success", INTERNAL_FAILURE}
    return world
