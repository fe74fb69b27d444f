"""Named stories, first part: the scars that systems like this one have collected, cancels, and containers that fail.

A scenario builds its world, plays its story, asserts what the story is about, and ends with `settle`, so that every
general check holds too. It takes a seed, which draws the delays.
"""

from __future__ import annotations

from kedge.model import protocol as p
from kedge.model.payload import INIT_FAILURE, INTERNAL_FAILURE, SUCCESS, TERMINATED
from kedge.model.spec import AutoscalerSettings, Concurrency, RetryPolicy
from kedge.sim import deploying, isolation, sharing, situations
from kedge.sim.client import SimCall, SimClient
from kedge.sim.machine import FLAKY, OK, POISON, STUBBORN, work
from kedge.sim.stage import SCENARIOS, F, dropped, every, is_running, only, scenario, stage, wait
from kedge.sim.world import World, function

__all__ = ["SCENARIOS", "deploying", "isolation", "sharing", "situations"]

# ---------------------------------------------------------------- the seven scars


@scenario
def a_lease_is_delivered_twice_while_its_input_runs(seed: int) -> World:
    """The same dispatch and the same result once more change nothing: the lease names the attempt."""
    world, client = stage(seed, function("f"))
    seen: list[p.InputsDispatched] = []
    said: list[tuple[p.InputsFinished, str]] = []
    call = client.call(F, [work(OK, 1.0)])
    wait(world, is_running(world))
    container = only(world)
    (run,) = container.runs.values()
    seen.append(p.InputsDispatched([run.dispatch]))
    container.down.send(seen[0])
    wait(world, lambda: call.over)
    finished = p.Finished(run.dispatch.lease, call.results[0], 1.0)
    said.append((p.InputsFinished([finished]), container.id))
    world.feed(*said[0])
    container.down.send(seen[0])
    world.settle(100.0)
    assert world.checks.attempts == 1
    assert dropped(world) == {"finished a lease that is over": 1}
    assert every(call)
    return world


@scenario
def a_cancel_lands_after_the_output_was_sent(seed: int) -> World:
    """The result stands, on the way from the container as on the way to the caller."""
    world, client = stage(seed, function("f"), latency=(0.01, 0.01))
    call = client.call(F, [work(OK, 1.0)])
    wait(world, is_running(world))
    wait(world, lambda: not is_running(world)())
    client.cancel(call)
    world.settle(100.0)
    assert call.statuses in ({0: SUCCESS}, {0: TERMINATED})
    first = call.statuses
    again = client.call(F, [work(OK, 1.0)])
    wait(world, lambda: again.over)
    client.cancel(again)
    world.settle(100.0)
    assert every(again)
    assert first == call.statuses
    assert dropped(world) == {}
    return world


@scenario
def a_retry_waits_until_its_predecessor_has_left(seed: int) -> World:
    """A broken connection is not the end of a process: its inputs run again only when it is surely gone."""
    world, client = stage(seed, function("f", retries=RetryPolicy(2, 1.0, 0.0)))
    call = client.call(F, [work(OK, 5.0), work(FLAKY, 0.1, 1)])
    wait(world, is_running(world, count=2), 10.0)
    victim = next(
        c for c in world.engine.containers.values() if any(run.dispatch.index == 0 for run in c.runs.values())
    )
    world.feed(p.ContainerDisconnected(victim.id, "reset"))
    victim.up.cut = True
    before = world.checks.attempts
    world.run(world.now + 0.00001)
    assert victim.alive
    assert world.checks.attempts <= before
    world.settle(100.0)
    assert every(call)
    assert world.checks.attempts == 4
    return world


@scenario
def an_output_arrives_before_the_caller_has_recorded_the_id(seed: int) -> World:
    """A spawned input is done before its caller has heard that it was accepted: the result waits for the question."""
    world, client = stage(seed, function("f", autoscaler=AutoscalerSettings(min_containers=1)))
    wait(world, lambda: any(c.ready for c in world.engine.containers.values()))
    client.down.latency = 2.0
    call = client.call(F, [work(OK, 0.0)], durable=True, get_after=1.0)
    wait(world, lambda: world.store.is_over(call.id))
    assert not call.accepted
    world.settle(100.0)
    assert every(call)
    return world


@scenario
def a_stale_attempt_reports_late(seed: int) -> World:
    """What a lost container said is still on its way when its input runs elsewhere: it is too late, and dropped."""
    world, client = stage(seed, function("f"))
    call = client.call(F, [work(OK, 1.0)])
    wait(world, is_running(world))
    container = only(world)
    container.up.latency = 5.0
    wait(world, lambda: not container.runs)
    container.crash()
    wait(world, lambda: call.over)
    assert world.checks.attempts == 2
    world.settle(100.0)
    assert every(call)
    assert dropped(world) == {"inputs finished by a container that is gone": 1}
    return world


@scenario
def a_container_crashes_while_it_drains(seed: int) -> World:
    """It had nothing to do any more: nobody loses anything, no failure is counted, and new inputs go elsewhere."""
    window = AutoscalerSettings(scaledown_window=1.0)
    world, client = stage(seed, function("f", autoscaler=window), exit_hooks=(5.0, 5.0))
    first = client.call(F, [work()])
    wait(world, lambda: bool(world.engine.containers) and only(world).leaving)
    draining = only(world)
    second = client.call(F, [work()])
    wait(world, is_running(world))
    assert draining.alive
    draining.crash()
    third = client.call(F, [work()])
    world.settle(100.0)
    assert every(first)
    assert every(second)
    assert every(third)
    assert world.ids["ct"] == 2
    return world


@scenario
def the_server_restarts_in_mid_burst(seed: int) -> World:
    """Callers send the same ids to the new server; what was spawned comes from the journal; nobody sees two results."""
    world, client = stage(seed, function("f", concurrency=Concurrency(4, 3, True)))
    mapped = client.call(F, [work(OK, 0.2) for _ in range(60)], window=20)
    spawned = client.call(F, [work(OK, 0.2) for _ in range(40)], durable=True)
    wait(world, lambda: len(mapped.results) >= 10 and len(world.store.calls[spawned.id].done) >= 5)
    done = len(world.store.calls[spawned.id].done)
    world.crash_plane(0.5)
    assert not world.engine.containers
    wait(world, lambda: world.up)
    assert len(world.plane.calls.by_id[spawned.id].done) >= done
    world.settle(1000.0)
    assert every(mapped)
    assert every(spawned)
    return world


# ---------------------------------------------------------------- bursts and cancels


@scenario
def a_burst_finds_no_container(seed: int) -> World:
    """From zero: as many containers as the burst needs at target, started once, and each at its maximum meanwhile."""
    world, client = stage(seed, function("f", concurrency=Concurrency(10, 8, True)))
    call = client.call(F, [work(OK, 3.0) for _ in range(80)])
    wait(world, is_running(world, count=80))
    assert world.ids["ct"] == 10
    world.settle(1000.0)
    assert every(call)
    assert world.ids["ct"] == 10
    return world


@scenario
def many_cancels_at_once(seed: int) -> World:
    """Callers hear at once; slots come back when the code has ended, also where it does not listen."""
    world, client = stage(seed, function("f", concurrency=Concurrency(4, 4, True), autoscaler=AutoscalerSettings(0, 2)))
    calls = [client.call(F, [work(STUBBORN if n % 3 else OK, 5.0) for _ in range(20)]) for n in range(6)]
    wait(world, is_running(world, count=8))
    for call in calls:
        client.cancel(call)
    wait(world, lambda: not world.outstanding, 1.0)
    assert all(every(call, TERMINATED) for call in calls)
    assert world.checks.attempts == 8
    after = client.call(F, [work(OK, 0.1)])
    world.settle(100.0)
    assert every(after)
    return world


@scenario
def a_cancel_comes_before_its_inputs(seed: int) -> World:
    """It is remembered: the inputs are cancelled when they come, and never run."""
    world, client = stage(seed, function("f"))
    client.up.send(p.CallCancelled("fc-early"))
    call = client.call(F, [work(), work()], id="fc-early")
    world.settle(100.0)
    assert every(call, TERMINATED)
    assert world.checks.attempts == 0
    return world


@scenario
def a_caller_leaves(seed: int) -> World:
    """What only it waited for is cancelled; what it spawned goes on, and whoever asks gets it."""
    world, client = stage(seed, function("f"))
    mapped = client.call(F, [work(OK, 10.0) for _ in range(10)])
    spawned = client.call(F, [work(OK, 10.0) for _ in range(3)], durable=True, get_after=1000.0)
    wait(world, is_running(world, count=13))
    client.leave()
    wait(world, lambda: not is_running(world, count=4)(), 1.0)
    other = SimClient(world)
    other.calls[spawned.id] = found = SimCall(spawned.id, F, spawned.payloads, durable=True)
    found.sent = 3
    found.accepted = dict.fromkeys(range(3))
    world.outstanding += 1
    other.ask(p.OutputsRequested(spawned.id, 0, None, 1))
    world.settle(100.0)
    assert every(found)
    assert not mapped.results
    assert world.checks.attempts == 13
    return world


# ---------------------------------------------------------------- containers that fail


@scenario
def a_poison_input_kills_its_containers(seed: int) -> World:
    """It is given up after four containers, and the user's retries are not spent on it; others come through."""
    world, client = stage(seed, function("f", retries=RetryPolicy(10, 1.0, 0.1)))
    poison = client.call(F, [work(POISON, 0.1)])
    others = client.call(F, [work(OK, 0.1) for _ in range(20)])
    world.settle(1000.0)
    assert every(poison, INTERNAL_FAILURE)
    error = poison.results[0].error
    assert error is not None
    assert "4 times, so the input is given up" in error.message
    assert every(others)
    return world


@scenario
def containers_crash_all_the_time(seed: int) -> World:
    """At least once: every input is run until it has a result; each result is seen once."""
    world, client = stage(seed, function("f", concurrency=Concurrency(3, 2, True)), crash_rate=1.0, frames_lost=0.5)
    call = client.call(F, [work(OK, 0.05) for _ in range(100)])
    wait(world, lambda: len(call.results) > 50)
    world.settle(1000.0)
    assert call.over
    assert list(call.statuses.values()).count(SUCCESS) >= 90
    return world


@scenario
def no_container_comes_up(seed: int) -> World:
    """A container that cannot import says why to everybody who waits; later ones may do better."""
    world, client = stage(seed, function("f"), fails_starting=1.0)
    call = client.call(F, [work() for _ in range(5)])
    wait(world, lambda: call.over)
    assert every(call, INIT_FAILURE)
    world.heal()
    world.run(world.now + 5.0)
    again = client.call(F, [work() for _ in range(5)])
    world.settle(100.0)
    assert every(again)
    return world


@scenario
def containers_crash_while_they_start(seed: int) -> World:
    """After three in a row those who wait are told; starts go on at growing intervals, and heal by themselves."""
    world, client = stage(seed, function("f", autoscaler=AutoscalerSettings(1, 1)), crashes_starting=1.0)
    call = client.call(F, [work()])
    wait(world, lambda: call.over)
    assert every(call, INIT_FAILURE)
    assert world.ids["ct"] == 3
    world.run(world.now + 300.0)
    assert world.ids["ct"] <= 15
    again = client.call(F, [work()])
    world.settle(200.0)
    assert again.over
    return world


@scenario
def containers_never_get_ready(seed: int) -> World:
    """startup_timeout ends the wait, with a text that names it."""
    world, client = stage(seed, function("f", startup_timeout=5.0), hangs_starting=1.0)
    call = client.call(F, [work()])
    wait(world, lambda: call.over, 6.0)
    error = call.results[0].error
    assert error is not None
    assert "not ready 5 s after its start (startup_timeout)" in error.message
    world.settle(100.0)
    return world


@scenario
def the_machine_is_lost_and_comes_back(seed: int) -> World:
    world, client = stage(seed, function("f", concurrency=Concurrency(5, 4, True)))
    call = client.call(F, [work(OK, 1.0) for _ in range(50)])
    wait(world, is_running(world, count=20))
    world.lose("node")
    world.run(world.now + 10.0)
    assert not world.engine.containers
    world.join("node", 4.0)
    world.settle(100.0)
    assert every(call)
    return world
