"""Named stories about GPUs that several containers share by memory."""

from __future__ import annotations

from kedge.model import protocol as p
from kedge.model.spec import AutoscalerSettings, GpuRequest, Resources
from kedge.sim.client import SimClient
from kedge.sim.link import Conditions
from kedge.sim.machine import OK, work
from kedge.sim.stage import F, every, is_running, scenario, wait
from kedge.sim.world import World, app, function

G = "fu-story-g"
H100 = 81559
LONG = AutoscalerSettings(scaledown_window=3600.0)


def vram(mebibytes: int) -> Resources:
    return Resources(gpus=(GpuRequest("H100"),), vram=mebibytes)


def machine(
    seed: int, *resources: Resources, gpus: int = 1, window: AutoscalerSettings = LONG
) -> tuple[World, SimClient]:
    """One machine with H100s, and functions f, g, … with these resources."""
    world = World(seed, Conditions())
    world.join("node", 64.0, gpus={"H100": gpus})
    names = ("f", "g", "h")[: len(resources)]
    world.deploy(
        app(
            "story",
            *(function(name, resources=each, autoscaler=window) for name, each in zip(names, resources, strict=True)),
        )
    )
    return world, SimClient(world)


def shares(world: World, pool: str = F) -> list[tuple[int, ...]]:
    """GPU memory that containers of a pool have, in the plane's books."""
    return [c.placement.vram for c in world.plane.containers.values() if c.pool.id == pool]


@scenario
def two_models_share_a_gpu(seed: int) -> World:
    """Three of 20 GiB and one of half fit; another one of 20 GiB waits for the room of somebody who ends."""
    half = Resources(gpus=(GpuRequest("H100", 1, 0.25),))
    world, client = machine(seed, vram(20480), half)
    first = client.call(G, [work(OK, 50.0)])
    wait(world, is_running(world, G))
    calls = [client.call(F, [work(OK, 10.0)]) for _ in range(3)]
    wait(world, is_running(world, count=2))
    world.run(world.now + 5.0)
    assert sum(map(sum, shares(world) + shares(world, G))) <= H100
    assert len(shares(world)) == 2, "a third one of 20 GiB does not fit beside a quarter"
    world.settle(200.0)
    assert every(first)
    assert all(every(call) for call in calls)
    return world


@scenario
def an_idle_model_leaves_for_one_that_is_called(seed: int) -> World:
    """Of those that are idle only as many go as make the room, and one on another device stays."""
    world, client = machine(seed, vram(30000), vram(60000), gpus=2)
    calls = [client.call(F, [work(OK, 5.0)]) for _ in range(3)]
    wait(world, lambda: all(call.over for call in calls))
    assert len(shares(world)) == 3
    wanted = client.call(G, [work()])
    wait(world, lambda: wanted.over, 60.0)
    assert len(shares(world)) == 2, "two share the other device, and their going would be in vain or too much"
    world.settle(100.0)
    return world


@scenario
def a_whole_gpu_is_nobody_s_beside(seed: int) -> World:
    """Who asks for a whole device waits until its sharers have left, and shares wait for it in turn."""
    world, client = machine(seed, Resources(gpus=(GpuRequest("H100"),)), vram(1000))
    shared = client.call(G, [work(OK, 20.0)])
    wait(world, is_running(world, G))
    whole = client.call(F, [work(OK, 20.0)])
    world.run(world.now + 5.0)
    assert not is_running(world)(), "it is shared"
    wait(world, is_running(world), 60.0)
    again = client.call(G, [work(OK, 1.0)])
    world.run(world.now + 5.0)
    assert not is_running(world, G)(), "somebody has it whole"
    world.settle(200.0)
    assert all(every(call) for call in (shared, whole, again))
    return world


@scenario
def code_uses_more_than_it_declared(seed: int) -> World:
    """Its share grows to what was measured, and those that come after it are counted with that from the start."""
    world, client = machine(seed, vram(10000), vram(20000))
    first = client.call(F, [work(OK, 10.0)])
    wait(world, is_running(world))
    ((id, _),) = world.engine.containers.items()
    world.feed(p.VramMeasured({id: 65000}))
    assert shares(world) == [(65000,)]
    others = client.call(G, [work(OK, 1.0)])
    world.run(world.now + 5.0)
    assert not is_running(world, G)(), "20 GB are not left, whatever was declared"
    wait(world, lambda: others.over, 60.0)
    assert every(first)
    again = client.call(F, [work(OK, 1.0)])
    wait(world, lambda: again.over, 60.0)
    assert shares(world) == [(65000,)]
    world.settle(100.0)
    return world


@scenario
def a_model_that_takes_all_comes_up_again(seed: int) -> World:
    """What was measured never makes a function impossible: at most it has a device for itself."""
    world, client = machine(seed, vram(10000))
    first = client.call(F, [work(OK, 5.0)])
    wait(world, is_running(world))
    ((id, _),) = world.engine.containers.items()
    world.feed(p.VramMeasured({id: 10 * H100}))
    second = client.call(F, [work(OK, 1.0)])
    world.run(world.now + 2.0)
    assert len(shares(world)) == 1
    world.engine.lose_supervisor()
    wait(world, lambda: first.over and second.over, 60.0)
    assert set(shares(world)) == {(H100,)}
    world.settle(100.0)
    return world
