"""Named stories, second part: what load does. Credits, limits, scaling, and machines that are full."""

from __future__ import annotations

from functools import partial

from kedge.model import protocol as p
from kedge.model.payload import SUCCESS, TERMINATED, TIMEOUT
from kedge.model.spec import AutoscalerSettings, Concurrency, GpuRequest, MethodSpec, Resources
from kedge.sim.client import SimClient
from kedge.sim.machine import FROZEN, NEST, OK, STUBBORN, work
from kedge.sim.stage import F, every, is_running, only, scenario, stage, wait
from kedge.sim.world import World, app, function

G = "fu-story-g"
"""The pool of a second function."""
ONE = AutoscalerSettings(min_containers=1, max_containers=1)
WHOLE = Resources(cpu=4.0)
"""All of the machine that `stage` makes."""


def prime(world: World, client: SimClient, seconds: float, count: int = 20) -> None:
    """Lets the plane learn how long inputs take."""
    call = client.call(F, [work(OK, seconds) for _ in range(count)], window=1)
    wait(world, lambda: call.over)


# ---------------------------------------------------------------- credits


@scenario
def credits_are_recalled_from_behind_a_long_input(seed: int) -> World:
    """A container that holds credits and reports nothing gives them back, for whoever has a slot."""
    world, client = stage(seed, function("f", autoscaler=AutoscalerSettings(min_containers=2, max_containers=2)))
    wait(world, lambda: sum(c.ready for c in world.engine.containers.values()) == 2)
    prime(world, client, 0.0001)
    call = client.call(F, [work(OK, 50.0)] + [work(OK, 0.0001) for _ in range(200)])
    wait(world, lambda: len(call.results) == 200, 5.0)
    assert is_running(world)()
    world.settle(100.0)
    assert every(call)
    return world


@scenario
def a_recall_crosses_a_start(seed: int) -> World:
    """While credits are called back, the long input ends and one of them starts: it runs on, the others come back."""
    world, client = stage(seed, function("f", autoscaler=ONE), latency=(0.002, 0.002))
    wait(world, lambda: bool(world.engine.containers) and only(world).ready)
    prime(world, client, 0.0001)
    call = client.call(
        F, [work(OK, 0.0175)] + [work(OK, 0.0001) for _ in range(5)] + [work(OK, 0.05) for _ in range(5)]
    )
    wait(world, lambda: any(type(message) is p.InputsReturned for _, _, message in world.trace) or call.over)
    world.settle(100.0)
    assert every(call)
    assert world.checks.attempts == 31
    return world


@scenario
def credited_inputs_are_cancelled(seed: int) -> World:
    """They have not started: they end at once, and their credits are free again."""
    world, client = stage(seed, function("f", autoscaler=ONE))
    wait(world, lambda: bool(world.engine.containers) and only(world).ready)
    prime(world, client, 0.0001)
    call = client.call(F, [work(OK, 0.005)] + [work(OK, 0.0001) for _ in range(50)])
    wait(world, lambda: only(world).session.waiting > 0)
    client.cancel(call, list(range(1, 51)))
    world.settle(100.0)
    assert list(call.statuses.values()) == [SUCCESS] + [TERMINATED] * 50
    assert world.checks.attempts < 40
    return world


# ---------------------------------------------------------------- up and down


@scenario
def a_drain_crosses_a_dispatch(seed: int) -> World:
    """An input comes in the instant in which the last container is told to leave: it runs in a new one."""
    world, client = stage(seed, function("f", autoscaler=AutoscalerSettings(scaledown_window=1.0)))
    first = client.call(F, [work()])
    wait(world, lambda: first.over)
    container = only(world)
    wait(world, lambda: world.plane.containers[container.id].state == "draining")
    assert not container.leaving
    second = client.call(F, [work()])
    world.settle(100.0)
    assert every(second)
    assert world.ids["ct"] == 2
    return world


@scenario
def to_zero_and_back(seed: int) -> World:
    world, client = stage(seed, function("f", autoscaler=AutoscalerSettings(scaledown_window=2.0)))
    for rounds in range(1, 4):
        call = client.call(F, [work(OK, 0.5) for _ in range(4)])
        wait(world, partial(getattr, call, "over"))
        world.run(world.now + 10.0)
        assert not world.engine.containers
        assert world.ids["ct"] == 4 * rounds
    world.settle(100.0)
    return world


@scenario
def a_steady_load_starts_and_stops_nothing(seed: int) -> World:
    """After settling, constant load at target leaves the containers alone."""
    settings = AutoscalerSettings(scaledown_window=5.0)
    world, client = stage(seed, function("f", concurrency=Concurrency(5, 4, True), autoscaler=settings))
    calls = [client.call(F, [work(OK, 0.1) for _ in range(1000)], window=4) for _ in range(3)]
    world.run(10.0)
    before = world.ids["ct"]
    world.run(20.0)
    assert world.ids["ct"] == before == len(world.engine.containers)
    world.settle(1000.0)
    assert all(every(call) for call in calls)
    return world


@scenario
def short_inputs_wait_behind_a_long_one(seed: int) -> World:
    """All inputs so far were short, so a backlog seems no reason for another container. One long input changes that."""
    world, client = stage(seed, function("f"))
    prime(world, client, 0.001)
    long = client.call(F, [work(OK, 3600.0)])
    wait(world, is_running(world))
    short = client.call(F, [work(OK, 0.001) for _ in range(10)])
    wait(world, lambda: short.over, 10.0)
    assert not long.over
    world.settle(5000.0)
    assert every(short)
    return world


@scenario
def containers_serve_one_input_each(seed: int) -> World:
    world, client = stage(seed, function("f", single_use_containers=True))
    call = client.call(F, [work(OK, 0.05) for _ in range(50)])
    wait(world, lambda: call.over)
    assert world.ids["ct"] >= 50
    assert world.checks.peak[F] == 1
    world.settle(100.0)
    assert every(call)
    return world


@scenario
def the_autoscaler_is_changed_while_it_works(seed: int) -> World:
    """A lower maximum lets containers finish and go; a shorter window holds for those that are busy or idle now."""
    settings = AutoscalerSettings(scaledown_window=3600.0)
    world, client = stage(seed, function("f", autoscaler=settings))
    call = client.call(F, [work(OK, 5.0) for _ in range(20)])
    wait(world, is_running(world, count=20))
    client.update(F, max_containers=2)
    wait(world, lambda: call.over)
    wait(world, lambda: len(world.engine.containers) == 2, 5.0)
    for _ in range(50):
        client.update(F, scaledown_window=10.0)
    wait(world, lambda: not world.engine.containers, 20.0)
    client.update(F, scaledown_window=0.0, min_containers=1)
    world.settle(100.0)
    assert every(call)
    return world


@scenario
def an_app_is_stopped_in_mid_burst(seed: int) -> World:
    """Everything is cancelled at once; the request is answered when the last container has gone."""
    world, client = stage(seed, function("f", concurrency=Concurrency(4, 4, True)), connects_early=0.0)
    call = client.call(F, [work(OK, 100.0) for _ in range(20)])
    wait(world, is_running(world, count=4))
    request = client.stop("ap-story")
    wait(world, lambda: request in client.replies, 20.0)
    assert not world.engine.containers
    assert every(call, TERMINATED)
    late = client.call(F, [work()])
    world.settle(100.0)
    assert "has stopped" in late.refused
    assert not world.plane.apps
    assert not world.plane.pools
    return world


# ---------------------------------------------------------------- limits


@scenario
def a_function_has_a_concurrency_limit(seed: int) -> World:
    """Three inputs at once over all containers, and no more containers than they need."""
    world, client = stage(seed, function("f", concurrency=Concurrency(2, 2, True), concurrency_limit=3))
    call = client.call(F, [work(OK, 0.5) for _ in range(30)])
    wait(world, is_running(world, count=3))
    world.settle(100.0)
    assert every(call)
    assert world.ids["ct"] == 2
    return world


@scenario
def methods_have_limits(seed: int) -> World:
    """A full method makes others wait for nothing: they share the slots that are left."""
    methods = (MethodSpec("slow", concurrency_limit=1), MethodSpec("fast", concurrency_limit=3))
    world, client = stage(seed, function("f", is_class=True, methods=methods, autoscaler=ONE))
    slow = client.call(F, [work(OK, 1.0) for _ in range(5)], method="slow")
    fast = client.call(F, [work(OK, 0.1) for _ in range(30)], method="fast")
    wait(world, lambda: fast.over)
    assert len(slow.results) <= 2
    assert world.checks.peak[F] == 4
    world.settle(100.0)
    assert every(slow)
    return world


# ---------------------------------------------------------------- full machines


@scenario
def idle_containers_make_room(seed: int) -> World:
    """Another function needs the machine: what idles leaves before its window is over, as many as that takes."""
    window = AutoscalerSettings(scaledown_window=3600.0)
    f, g = function("f", autoscaler=window, resources=Resources(1.0)), function("g", resources=WHOLE)
    world, client = stage(seed, f, g)
    first = client.call(F, [work() for _ in range(4)])
    wait(world, lambda: first.over and world.plane.pools[F].fleet.ready == 4)
    second = client.call(G, [work()])
    wait(world, lambda: second.over, 10.0)
    third = client.call(F, [work()])
    world.settle(100.0)
    assert every(third)
    return world


@scenario
def two_functions_share_room_for_one(seed: int) -> World:
    """Both have work, and the machine holds one container: each gets its turn, and no start is in vain."""
    world, client = stage(seed, function("f", resources=WHOLE), function("g", resources=WHOLE))
    calls = [client.call(pool, [work(OK, 0.1) for _ in range(20)]) for pool in (F, G)]
    wait(world, lambda: not world.outstanding, 60.0)
    assert world.ids["ct"] <= 6
    world.settle(100.0)
    assert all(every(call) for call in calls)
    return world


@scenario
def a_small_call_arrives_while_a_map_fills_the_machine(seed: int) -> World:
    """A function that has no container gets one from a function that has several, without waiting for the map's end."""
    world, client = stage(seed, function("f", resources=Resources(1.0)), function("g", resources=Resources(1.0)))
    long = client.call(F, [work(OK, 1.0) for _ in range(300)])
    wait(world, is_running(world, count=4))
    small = client.call(G, [work()])
    wait(world, lambda: small.over, 5.0)
    assert len(long.results) < 50
    world.settle(1000.0)
    assert every(long)
    return world


@scenario
def who_waits_for_a_gpu_evicts_nobody_in_vain(seed: int) -> World:
    """Idle containers without a GPU stay: their going would not help."""
    window = AutoscalerSettings(scaledown_window=3600.0)
    world, client = stage(
        seed, function("f", autoscaler=window), function("g", resources=Resources(gpus=(GpuRequest("H100"),)))
    )
    world.join("other", 4.0, gpus={"H100": 1})
    idle = client.call(F, [work()])
    wait(world, lambda: idle.over)
    holds = client.call(G, [work(OK, 50.0)])
    wait(world, is_running(world, G))
    waits = client.call(G, [work()])
    world.run(world.now + 10.0)
    again = client.call(F, [work()])
    wait(world, lambda: again.over)
    assert sum(c.pool == F for c in world.engine.containers.values()) == 1
    world.settle(200.0)
    assert every(holds)
    assert every(waits)
    return world


@scenario
def nested_calls_on_a_full_machine(seed: int) -> World:
    """Every slot waits for calls to a function that has no container: it gets one beyond the room there is."""
    f, g = function("f", resources=Resources(1.0)), function("g", resources=Resources(1.0))
    world, client = stage(seed, f, g)
    outer = client.call(F, [work(OK, 1.0) for _ in range(4)])
    wait(world, is_running(world, count=4))
    direct = client.call(G, [work(OK, 0.1)])
    nested = client.call(F, [work(NEST, 0.1, G) for _ in range(8)])
    world.settle(100.0)
    assert all(every(call) for call in (outer, direct, nested))
    return world


@scenario
def stubborn_code_holds_its_slot(seed: int) -> World:
    """A cancelled input that runs on keeps its slot: max_inputs counts code, not wishes."""
    world, client = stage(seed, function("f", concurrency=Concurrency(2, 2, True), autoscaler=ONE))
    stubborn = client.call(F, [work(STUBBORN, 10.0) for _ in range(2)])
    wait(world, is_running(world, count=2))
    client.cancel(stubborn)
    after = client.call(F, [work(OK, 0.1)])
    world.run(world.now + 5.0)
    assert stubborn.over
    assert not after.over
    world.settle(100.0)
    assert every(after)
    return world


@scenario
def a_frozen_input_is_over_and_its_siblings_finish(seed: int) -> World:
    """One input never ends: its caller hears so after timeout and grace, its siblings finish, what waits runs
    elsewhere."""
    slots = Concurrency(3, 3, True)
    world, client = stage(seed, function("f", concurrency=slots, timeout=20.0, autoscaler=ONE))
    frozen = client.call(F, [work(FROZEN, 1e6)])
    wait(world, is_running(world))
    first = only(world)
    early = client.call(F, [work(OK, 5.0)])
    wait(world, lambda: early.over, 10.0)
    world.run(world.now + 15.0)
    late = client.call(F, [work(OK, 15.0), work(OK, 15.0)])
    wait(world, lambda: frozen.over, 30.0)
    assert every(frozen, TIMEOUT)
    assert not late.over
    after = client.call(F, [work(OK, 0.1) for _ in range(5)])
    wait(world, lambda: late.over and after.over, 60.0)
    assert every(late)
    assert every(after)
    wait(world, lambda: first.id not in world.engine.containers)
    world.settle(100.0)
    return world


@scenario
def an_ephemeral_app_ends_with_its_program(seed: int) -> World:
    world, _ = stage(seed)
    owner = SimClient(world, app("mine", function("f", concurrency=Concurrency(3, 3, True)), ephemeral=True))
    call = owner.call("fu-mine-f", [work(OK, 100.0) for _ in range(3)])
    wait(world, is_running(world, "fu-mine-f", 3))
    owner.leave()
    wait(world, lambda: "ap-mine" not in world.plane.apps, 20.0)
    assert not world.engine.containers
    assert call.left
    world.settle(100.0)
    return world
