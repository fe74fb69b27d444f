"""Named stories, third part: one input among many. What it does, or what is done to it, costs its siblings nothing."""

from __future__ import annotations

from kedge.model import protocol as p
from kedge.model.payload import FAILURE, INTERNAL_FAILURE, SUCCESS, TERMINATED, TIMEOUT
from kedge.model.spec import AutoscalerSettings, Concurrency, RetryPolicy
from kedge.sim.machine import DEAF, OK, POISON, STUBBORN, work
from kedge.sim.stage import F, every, is_running, only, scenario, stage, wait
from kedge.sim.world import World, function

ONE = AutoscalerSettings(min_containers=1, max_containers=1)
MANY = Concurrency(10, 10, True)


@scenario
def a_poison_input_kills_its_siblings_once(seed: int) -> World:
    """Those that were in a container when it died run alone afterwards: only one of them dies again."""
    world, client = stage(seed, function("f", concurrency=MANY, autoscaler=ONE))
    call = client.call(F, [work(POISON, 0.5)] + [work(OK, 1.0) for _ in range(9)])
    wait(world, is_running(world, count=10))
    world.settle(200.0)
    assert call.statuses == {0: INTERNAL_FAILURE, **dict.fromkeys(range(1, 10), SUCCESS)}
    assert world.checks.attempts == 10 + 4 + 9, "all once together, the poison four times more, its siblings once"
    return world


@scenario
def new_inputs_go_on_while_suspects_run(seed: int) -> World:
    """A poison input among many, and two containers at most: what comes meanwhile does not wait until it is given
    up, and dies with it once or twice."""
    world, client = stage(seed, function("f", concurrency=MANY, autoscaler=AutoscalerSettings(max_containers=2)))
    first = client.call(F, [work(POISON, 0.5), work(OK, 3.0)])
    wait(world, is_running(world, count=2))
    second = client.call(F, [work(OK, 2.0) for _ in range(30)])
    world.settle(500.0)
    assert first.statuses == {0: INTERNAL_FAILURE, 1: SUCCESS}
    assert every(second)
    assert world.checks.attempts <= 2 + 5 + 30 + 8 + 9, (
        "8 ran beside it when it died first, 9 when it died as a suspect"
    )
    return world


@scenario
def a_suspect_that_outlives_its_accident_is_cleared(seed: int) -> World:
    """A container dies early under long inputs: once they have run for longer, others run beside them again."""
    world, client = stage(seed, function("f", concurrency=MANY, autoscaler=ONE))
    call = client.call(F, [work(OK, 60.0) for _ in range(4)])
    wait(world, is_running(world, count=4))
    only(world).crash()
    wait(world, is_running(world, count=4), 10.0)
    world.settle(300.0)
    assert every(call)
    assert world.checks.attempts == 8
    return world


@scenario
def a_suspect_that_kills_again_is_known(seed: int) -> World:
    """It joined others that were cleared, and took them with it: that was its own loss, and they are not suspected."""
    world, client = stage(seed, function("f", concurrency=MANY, autoscaler=ONE))
    call = client.call(F, [work(OK, 60.0), work(OK, 60.0), work(POISON, 0.5)])
    wait(world, is_running(world, count=3))
    world.settle(600.0)
    assert call.statuses == {0: SUCCESS, 1: SUCCESS, 2: INTERNAL_FAILURE}
    assert world.checks.attempts <= 3 + 4 + 2 * 2, "the others die with it once more at most"
    return world


@scenario
def code_that_does_not_end_costs_its_container(seed: int) -> World:
    """A cancelled input goes on: its container gets nothing new, its sibling ends, then another takes over."""
    spec = function("f", concurrency=MANY, autoscaler=ONE, cancellation_grace=2.0)
    world, client = stage(seed, spec)
    stuck = client.call(F, [work(STUBBORN, 1000.0)])
    sibling = client.call(F, [work(OK, 6.0)])
    wait(world, is_running(world, count=2))
    first = only(world).id
    client.cancel(stuck)
    wait(world, lambda: stuck.over, 0.1)
    assert stuck.statuses == {0: TERMINATED}
    world.run(world.now + 3.0)
    late = client.call(F, [work(OK, 0.1)])
    wait(world, lambda: late.over, 2.0)
    assert is_running(world, count=2)(), "the stuck one and its sibling"
    world.settle(100.0)
    assert every(sibling)
    assert every(late)
    lost = [message for _, _, message in world.trace if isinstance(message, p.ContainerLost)]
    assert [message.container for message in lost][:1] == [first]
    return world


@scenario
def an_input_beyond_its_time_is_tried_again_when_it_has_ended(seed: int) -> World:
    """Its code goes on after its timeout: the caller hears nothing yet, since there is a retry; that waits for the end
    of the code, if need be of its container."""
    spec = function("f", autoscaler=ONE, timeout=1.0, cancellation_grace=2.0, retries=RetryPolicy(1, 1.0, 0.0))
    world, client = stage(seed, spec)
    call = client.call(F, [work(STUBBORN, 1000.0)])
    wait(world, is_running(world))
    world.run(world.now + 3.5)
    assert not call.over
    assert world.checks.attempts == 1
    world.settle(100.0)
    assert call.statuses == {0: TIMEOUT}
    assert world.checks.attempts == 2
    return world


@scenario
def a_deaf_container_holds_nothing_up_for_ever(seed: int) -> World:
    """Code in C lets nothing else move in its container, which cannot give back what was granted ahead: it goes when
    the time of the code is over, and the others run elsewhere."""
    world, client = stage(seed, function("f", autoscaler=ONE, timeout=5.0))
    prime = client.call(F, [work(OK, 0.0001) for _ in range(20)], window=1)
    wait(world, lambda: prime.over)
    call = client.call(F, [work(DEAF, 1e6)] + [work(OK, 0.0001) for _ in range(20)])
    wait(world, lambda: call.over, 60.0)
    assert call.statuses == {0: TIMEOUT, **dict.fromkeys(range(1, 21), SUCCESS)}
    assert world.checks.attempts == 41
    world.settle(100.0)
    return world


@scenario
def nobody_is_blamed_for_the_supervisor(seed: int) -> World:
    """It dies again and again, also while containers start: nothing is charged, nobody hears of a crash loop."""
    world, client = stage(seed, function("f", concurrency=MANY, autoscaler=AutoscalerSettings(max_containers=4)))
    call = client.call(F, [work(OK, 20.0) for _ in range(10)])
    wait(world, is_running(world, count=10))
    for _ in range(6):
        wait(world, is_running(world), 10.0)
        world.engine.lose_supervisor()
    world.settle(500.0)
    assert every(call)
    return world


@scenario
def a_caller_hears_of_a_timeout_before_the_code_ends(seed: int) -> World:
    world, client = stage(seed, function("f", autoscaler=ONE, timeout=1.0, cancellation_grace=60.0))
    call = client.call(F, [work(STUBBORN, 20.0)])
    wait(world, is_running(world))
    wait(world, lambda: call.over, 3.0)
    assert call.statuses == {0: TIMEOUT}
    assert is_running(world)(), "the slot is held until the code ends"
    world.settle(100.0)
    assert world.ids["ct"] == 1, "it ended within its grace: nothing had to go"
    return world


@scenario
def siblings_of_a_terminated_container_run_again(seed: int) -> World:
    """`cancel(terminate_containers=True)` takes the container at once. Nobody suspects the siblings: they run together
    again."""
    world, client = stage(seed, function("f", concurrency=MANY, autoscaler=ONE))
    victim = client.call(F, [work(STUBBORN, 1000.0)])
    siblings = client.call(F, [work(OK, 3.0) for _ in range(5)])
    wait(world, is_running(world, count=6))
    client.cancel(victim, terminate=True)
    wait(world, lambda: victim.over, 0.1)
    wait(world, is_running(world, count=5), 2.0)
    world.settle(100.0)
    assert victim.statuses == {0: TERMINATED}
    assert every(siblings)
    assert world.checks.attempts == 11
    return world


@scenario
def fewer_inputs_are_allowed_while_many_run(seed: int) -> World:
    """A lower max_inputs interrupts nothing: new inputs wait until enough have ended."""
    world, client = stage(seed, function("f", concurrency=MANY, autoscaler=ONE))
    call = client.call(F, [work(OK, 1.0) for _ in range(30)])
    wait(world, is_running(world, count=10))
    client.change_concurrency(F, max_inputs=3)
    world.run(world.now + 1.5)
    assert len(only(world).runs) <= 3
    client.change_concurrency(F, max_inputs=20)
    wait(world, is_running(world, count=17), 1.0)
    world.settle(100.0)
    assert every(call)
    assert world.checks.attempts == 30
    return world


@scenario
def a_container_leaves_by_its_own_wish(seed: int) -> World:
    """It finishes what it runs, others get what follows."""
    world, client = stage(seed, function("f", concurrency=Concurrency(2, 2, True)))
    call = client.call(F, [work(OK, 5.0) for _ in range(2)])
    wait(world, is_running(world, count=2))
    first = only(world)
    first.ask_to_leave()
    world.run(world.now + 0.1)
    second = client.call(F, [work(OK, 1.0) for _ in range(2)])
    wait(world, lambda: second.over, 4.0)
    assert len(first.runs) == 2
    world.settle(100.0)
    assert every(call)
    assert world.checks.attempts == 4
    return world


@scenario
def a_full_queue_refuses_and_forgets_nothing(seed: int) -> World:
    world, client = stage(seed, function("f", autoscaler=ONE, max_queued_inputs=5, queue_timeout=10.0))
    world.run(5.0)
    call = client.call(F, [work(OK, 4.0) for _ in range(8)])
    wait(world, lambda: len(call.results) == 2, 1.0)
    assert call.statuses == {6: FAILURE, 7: FAILURE}, "one runs, five wait, two are refused"
    world.settle(100.0)
    statuses = [call.statuses[index] for index in range(8)]
    assert statuses == [SUCCESS] * 3 + [TIMEOUT] * 3 + [FAILURE] * 2, "after ten seconds nobody waits any longer"
    return world
