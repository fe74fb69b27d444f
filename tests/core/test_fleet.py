"""Containers come and go: how many, when, and what is said where they do not."""

from __future__ import annotations

import pytest

from kedge.core.backoff import BACKOFF_S
from kedge.core.fleet import EXIT_GRACE_S, LAST_MOMENT_S, MAX_CRASHES
from kedge.core.outbox import ENGINE
from kedge.core.room import LASTING_S
from kedge.model import protocol as p
from kedge.model.payload import INIT_FAILURE, SUCCESS, ErrorInfo
from kedge.model.spec import AutoscalerSettings, GpuRequest, MethodSpec, Resources
from tests.core.conftest import Bench, F, Make, function

G = "fu-1-g"
HOUR = AutoscalerSettings(scaledown_window=3600.0)
WHOLE = Resources(cpu=4.0)


def count(b: Bench, pool: str = F) -> int:
    return b.plane.pools[pool].fleet.ready


# ---------------------------------------------------------------- up


def test_a_burst_starts_what_it_needs_once(bench: Make) -> None:
    b = bench(function(slots=10, target=8))
    b.submit(20)
    b.submit(10, "fc-2")
    b.submit(2, "fc-3")
    assert len(b.started) == 4
    b.submit(1, "fc-4")
    assert len(b.started) == 5


def test_min_containers_start_with_the_app(bench: Make) -> None:
    b = bench(function(autoscaler=AutoscalerSettings(min_containers=2)))
    assert len(b.started) == 2
    b.ready()
    b.lose("ct-1", exit_code=0)
    assert len(b.started) == 3


def test_max_containers(bench: Make) -> None:
    b = bench(function(autoscaler=AutoscalerSettings(max_containers=3)))
    b.submit(50)
    assert len(b.started) == 3


def test_the_buffer_comes_on_top_of_what_inputs_need(bench: Make) -> None:
    settings = AutoscalerSettings(min_containers=1, buffer_containers=1, max_containers=4, scaledown_window=5.0)
    b = bench(function(autoscaler=settings))
    counts = []
    for number in range(5):
        b.submit(1, f"fc-{number}")
        b.ready()
        b.wait(30.0)
        counts.append(count(b))
    assert counts == [2, 3, 4, 4, 4]


def test_buffer_while_active(bench: Make) -> None:
    b = bench(function(autoscaler=AutoscalerSettings(buffer_containers=2, scaledown_window=5.0)))
    b.submit(1)
    assert len(b.started) == 3
    b.ready()
    b.wait(60.0)
    assert count(b) == 3, "the buffer stays while something runs"
    b.finish("ct-1")
    b.wait(20.0)
    assert count(b) == 0


def test_an_order_names_node_and_devices(bench: Make) -> None:
    b = bench(function(resources=Resources(gpus=(GpuRequest("H100", 2),))), gpus={"L4": 1, "H100": 2})
    b.submit(1)
    assert b.orders(p.StartContainer, ENGINE) == [p.StartContainer("ct-1", F, "n1", [1, 2])]


def test_a_backlog_that_drains_starts_nothing(bench: Make) -> None:
    b = bench(function(slots=10, target=8))
    b.submit(1, "fc-0")
    b.ready(after=0.5)
    b.finish("ct-1", 1, run_s=0.001)
    b.submit(50)
    assert b.started == ["ct-1"]
    assert "sooner than a start" in str(b.plane.pools[F].statistics()["reason"])


def test_a_backlog_behind_a_long_input_starts_one_after_all(bench: Make) -> None:
    """All was short so far. Then one input holds the only slot, and hope must end."""
    b = bench(function())
    b.submit(1, "fc-0")
    b.ready(after=0.5)
    b.finish("ct-1", 1, run_s=0.001)
    b.submit(1, "fc-long")
    b.submit(5, "fc-1")
    assert b.started == ["ct-1"]
    b.wait(3.0)
    assert len(b.started) > 1


def test_what_is_measured_is_the_last_seconds(bench: Make) -> None:
    """Thousands that ended long ago do not speak for slots that are stuck now."""
    b = bench(function())
    b.submit(1, "fc-0")
    b.ready(after=5.0)
    b.finish("ct-1", 1, run_s=0.001)
    b.submit(2000)
    for _ in range(1990):
        b.finish("ct-1", next(iter(b.leases["ct-1"])), run_s=0.001, after=0.005)
        due = b.plane.next_deadline()
        if due is not None and due <= b.now:
            b.send(p.TimePassed())
    assert b.started == ["ct-1"]
    b.wait(5.0)
    assert len(b.started) > 1


def test_a_buffer_does_not_grow_with_every_message(bench: Make) -> None:
    """A backlog that drains in time: the buffer comes on top of what works on it, not of what is there."""
    b = bench(function(autoscaler=AutoscalerSettings(buffer_containers=1)))
    b.submit(1)
    b.ready()
    b.finish("ct-1", run_s=0.0001)
    for number in range(30):
        b.submit(3, f"fc-{number + 2}")
    assert len(b.started) == 2


def test_methods_ask_for_no_more_than_the_function_may_run(bench: Make) -> None:
    methods = (MethodSpec("a", concurrency_limit=1), MethodSpec("b"))
    b = bench(function(slots=10, is_class=True, methods=methods, concurrency_limit=3))
    b.submit(100, method="a")
    assert len(b.started) == 3


def test_what_drains_asks_for_no_container_of_a_method(bench: Make) -> None:
    methods = (MethodSpec("a", concurrency_limit=1), MethodSpec("b"))
    b = bench(function(slots=10, is_class=True, methods=methods))
    b.submit(1, method="a")
    b.ready()
    b.send(p.ContainerLeaving(), "ct-1")
    b.submit(1, "fc-2", method="a")
    assert len(b.started) == 2


def test_slots_that_containers_do_not_offer_are_offered_by_others(bench: Make) -> None:
    b = bench(function(slots=10))
    b.submit(1)
    b.ready()
    b.send(p.SlotsChanged(2), "ct-1")
    b.submit(1, "fc-2")
    assert len(b.started) == 1
    b.submit(1, "fc-3")
    assert len(b.started) == 2
    b.ready()
    b.send(p.SlotsChanged(10), "ct-1")
    b.submit(15, "fc-4")
    assert len(b.started) == 2
    b.send(p.SlotsChanged(1), "ct-1")
    assert len(b.started) == 2, "what runs already needs no other place"


# ---------------------------------------------------------------- down


def test_idle_containers_leave_after_the_window(bench: Make) -> None:
    b = bench(function(autoscaler=AutoscalerSettings(scaledown_window=10.0)))
    b.submit(2)
    b.ready()
    b.finish("ct-1", after=1.0)
    b.finish("ct-2", after=4.0)
    b.wait(9.9 - 4.0)
    assert count(b) == 2
    b.wait(0.2)
    assert count(b) == 1
    b.wait(4.0)
    assert count(b) == 0
    assert (ENGINE, p.KillContainer("ct-1", EXIT_GRACE_S)) in b.commands


def test_use_starts_the_window_anew(bench: Make) -> None:
    b = bench(function(autoscaler=AutoscalerSettings(scaledown_window=10.0)))
    for number in range(5):
        b.submit(1, f"fc-{number}")
        b.ready()
        b.finish("ct-1")
        b.wait(8.0)
    assert b.started == ["ct-1"]
    b.wait(3.0)
    assert count(b) == 0


def test_busy_containers_stay(bench: Make) -> None:
    b = bench(function(autoscaler=AutoscalerSettings(scaledown_window=1.0)))
    b.submit(1)
    b.ready()
    b.wait(300.0)
    assert count(b) == 1


def test_min_containers_stay(bench: Make) -> None:
    b = bench(function(autoscaler=AutoscalerSettings(min_containers=1, scaledown_window=5.0)))
    b.submit(4)
    b.ready()
    for container in b.started:
        b.finish(container)
    b.wait(1000.0)
    assert count(b) == 1


def test_the_youngest_empties(bench: Make) -> None:
    """Inputs gather in the oldest container, so that the others become idle and leave."""
    b = bench(function(slots=4, autoscaler=AutoscalerSettings(scaledown_window=10.0)))
    b.submit(12)
    b.ready()
    for container in b.started:
        b.finish(container)
    for number in range(20):
        b.submit(2, f"fc-x{number}")
        b.wait(1.0)
        b.finish("ct-1")
    assert [c.id for c in b.plane.containers.values() if c.state == "ready"] == ["ct-1"]


def test_draining_containers_get_nothing(bench: Make) -> None:
    b = bench(function(autoscaler=AutoscalerSettings(scaledown_window=1.0)))
    b.submit(1)
    b.ready()
    b.finish("ct-1")
    b.wait(2.0)
    b.submit(1, "fc-2")
    assert b.running("ct-1") == []
    assert b.started == ["ct-1", "ct-2"]


# ---------------------------------------------------------------- changed settings


def test_a_lower_maximum_lets_idle_ones_go_at_once_and_busy_ones_when_they_are_done(bench: Make) -> None:
    b = bench(function(autoscaler=HOUR))
    b.submit(4)
    b.ready()
    b.finish("ct-4")
    b.send(p.AutoscalerUpdated(5, F, max_containers=1), "se-1")
    assert b.drained() == ["ct-4"]
    b.finish("ct-1")
    assert b.drained() == ["ct-1"]
    b.finish("ct-2")
    assert b.drained() == ["ct-2"]
    b.finish("ct-3")
    assert b.drained() == []
    assert count(b) == 1


def test_a_shorter_window_holds_for_busy_containers_too(bench: Make) -> None:
    b = bench(function(autoscaler=HOUR))
    b.submit(1)
    b.ready()
    b.send(p.AutoscalerUpdated(5, F, scaledown_window=5.0), "se-1")
    b.wait(60.0)
    b.finish("ct-1")
    b.wait(6.0)
    assert count(b) == 0


def test_updates_do_not_pile_up_wakeups(bench: Make) -> None:
    b = bench(function(autoscaler=AutoscalerSettings(min_containers=1, scaledown_window=10.0)))
    b.ready()
    for _ in range(100):
        b.send(p.AutoscalerUpdated(5, F, scaledown_window=10.0), "se-1", after=0.001)
    b.wait(20.0)
    before = len(b.commands), b.plane.agenda._sequence
    b.wait(1000.0)
    assert b.plane.agenda._sequence - before[1] <= 110


def test_use_does_not_pile_up_wakeups(bench: Make) -> None:
    """A container that is idle for a moment a thousand times is looked at once per window."""
    b = bench(function(autoscaler=AutoscalerSettings(scaledown_window=60.0)))
    for number in range(500):
        b.submit(1, f"fc-{number}")
        b.ready()
        b.finish("ct-1", after=0.001)
    assert len(b.plane.agenda._due) <= 3


@pytest.mark.parametrize("window", [0.0, 1e-9, 0.001])
def test_a_window_of_nothing_does_not_spin(bench: Make, window: float) -> None:
    b = bench(function(autoscaler=AutoscalerSettings(min_containers=1, scaledown_window=window)))
    b.ready()
    b.wait(1.0)
    assert b.plane.agenda._sequence <= 110
    b.submit(3)
    b.ready()
    b.wait(1.0)
    for container in b.started:
        b.finish(container)
    b.wait(1.0)
    assert count(b) == 1


# ---------------------------------------------------------------- starts that fail


def failed(b: Bench, container: str) -> None:
    b.send(p.ContainerFailed(ErrorInfo("ImportError", "no module named torch")), container)


def test_a_failed_start_is_told_to_those_who_wait(bench: Make) -> None:
    b = bench(function())
    b.submit(2)
    failed(b, "ct-1")
    assert b.results == {}, "the other container may do better"
    failed(b, "ct-2")
    assert b.statuses() == {0: INIT_FAILURE, 1: INIT_FAILURE}
    assert b.error() == "no module named torch"
    assert (ENGINE, p.KillContainer("ct-1", EXIT_GRACE_S)) in b.commands


def test_one_that_fails_beside_others_that_serve_is_no_news(bench: Make) -> None:
    b = bench(function())
    b.submit(1, "fc-0")
    b.ready()
    b.submit(3)
    failed(b, "ct-2")
    assert b.results == {}


def test_starts_after_a_failure_wait_longer_each_time(bench: Make) -> None:
    b = bench(function())
    starts = []
    for number in range(1, 6):
        b.submit(1, f"fc-{number}")
        b.wait(BACKOFF_S * 2**number)
        assert len(b.started) == number
        starts.append(b.now)
        failed(b, f"ct-{number}")
        b.lose(f"ct-{number}", exit_code=1)
        b.submit(1, f"fc-again-{number}")
        assert len(b.started) == number, "not before the delay"
        b.send(p.CallCancelled(f"fc-again-{number}"), "se-1")


def test_a_crash_loop_is_told_after_three(bench: Make) -> None:
    b = bench(function(autoscaler=AutoscalerSettings(max_containers=1)))
    b.submit(1)
    for number in range(1, MAX_CRASHES + 1):
        assert b.results == {}
        b.lose(f"ct-{number}", signal=11, reason="segfault")
        b.wait(BACKOFF_S * 2**number)
    assert b.statuses() == {0: INIT_FAILURE}
    assert b.error() == (
        "the container died 3 times in a row while it was starting; the last one was segfault. "
        "Its output shows what it did last; starts go on at growing intervals."
    )


def test_crashes_beside_others_that_start_are_not_a_loop(bench: Make) -> None:
    b = bench(function())
    b.submit(10)
    for container in b.started[:5]:
        b.lose(container, exit_code=1)
    assert b.results == {}
    b.ready(b.started[5])
    assert b.running(b.started[5]) == ["fc-1:0"]


def test_a_success_ends_the_row(bench: Make) -> None:
    b = bench(function(autoscaler=AutoscalerSettings(max_containers=1)))
    b.submit(1)
    b.lose("ct-1", exit_code=1)
    b.wait(1.0)
    b.lose("ct-2", exit_code=1)
    b.wait(2.0)
    b.ready("ct-3")
    b.lose("ct-3", exit_code=1)
    b.lose("ct-4", exit_code=1)
    b.wait(1.0)
    b.ready("ct-5")
    b.finish("ct-5")
    assert b.statuses() == {0: SUCCESS}


def test_the_loss_of_a_machine_is_not_a_crash_of_its_containers(bench: Make) -> None:
    b = bench(function())
    b.submit(10)
    b.send(p.NodeLost("n1"))
    assert b.results == {}
    b.send(p.NodeJoined("n1", 4.0, 8192))
    assert len(b.started) == 20
    assert b.results == {}


def test_the_loss_of_a_supervisor_is_not_a_crash_of_its_containers(bench: Make) -> None:
    b = bench(function())
    b.submit(5)
    for container in list(b.started):
        b.lose(container, reason="the supervisor of its machine died", blameless=True)
    assert b.results == {}
    b.ready()
    assert len(b.started) == 10
    assert b.plane.pools[F].running == 5


def test_startup_timeout(bench: Make) -> None:
    b = bench(function(startup_timeout=30.0, autoscaler=AutoscalerSettings(max_containers=2)))
    b.submit(1)
    b.wait(10.0)
    b.submit(1, "fc-2")
    b.wait(21.0)
    assert (ENGINE, p.KillContainer("ct-1")) in b.commands
    assert b.results == {}, "the second container has ten seconds left"
    b.wait(10.0)
    assert (
        b.error() == "the container was not ready 30 s after its start (startup_timeout): import and @enter took longer"
    )
    assert b.statuses("fc-2") == {0: INIT_FAILURE}


def test_startup_timeout_is_timeout_by_default(bench: Make) -> None:
    b = bench(function(timeout=5.0))
    b.submit(1)
    b.wait(6.0)
    assert b.statuses() == {0: INIT_FAILURE}


def test_starts_do_not_leave_deadlines_behind(bench: Make) -> None:
    """A thousand containers with a day to start in, long gone: nothing waits for their day to end."""
    b = bench(
        function(single_use_containers=True, timeout=86400.0, autoscaler=AutoscalerSettings(scaledown_window=1.0))
    )
    for number in range(200):
        b.submit(1, f"fc-{number}")
        b.ready()
        b.finish(b.started[-1])
        b.lose(b.started[-1], exit_code=0)
        b.wait(2.0)
    assert len(b.plane.agenda._due) <= 3


def test_not_wanted_any_more_when_it_is_ready(bench: Make) -> None:
    """The app stopped while the container came up and could not hear it: it is told again."""
    b = bench(function())
    b.submit(1)
    b.send(p.AppStopped("ap-1", 9), "se-1")
    b.send(p.ContainerReady(), "ct-1")
    assert [type(order) for order in b.orders(p.ContainerDrained, "ct-1")] == [p.ContainerDrained]
    assert b.orders(p.ContainerDrained, "ct-1")[0].cancel


def test_a_connection_that_breaks_ends_the_container(bench: Make) -> None:
    b = bench(function())
    b.submit(2)
    b.ready("ct-1")
    for container in ("ct-1", "ct-2"):
        b.send(p.ContainerDisconnected(container))
        orders = b.orders(p.KillContainer, ENGINE)
        assert orders == [p.KillContainer(container, LAST_MOMENT_S)], "a dying process may say itself how it ended"
    assert b.plane.pools[F].running == 1, "its input waits until the process has surely gone"
    b.lose("ct-1", signal=9)
    b.lose("ct-2", signal=9)
    assert b.plane.pools[F].fleet._backoff.failures == 1, "one of them was starting"


# ---------------------------------------------------------------- room


def two(bench: Make, cpu: float = 4.0, **options: object) -> Bench:
    return bench(function("f", autoscaler=HOUR, **options), function("g", autoscaler=HOUR, **options), cpu=cpu)


def notices(bench: Bench) -> list[p.Notice]:
    return [order for _, order in bench.commands if isinstance(order, p.Notice)]


def test_what_waits_for_room_says_so_once_where_that_lasts(bench: Make) -> None:
    b = two(bench, resources=WHOLE)
    b.submit(1)
    b.ready()
    b.submit(1, "fc-2", G)
    b.submit(1, "fc-2", G)
    b.wait(LASTING_S * 0.9)
    assert notices(b) == [], "it may have room in a moment"
    b.wait(LASTING_S * 5)
    text = "g waits for room: a container asks for 4 cpu and 128 MiB; n1: 4 of 4 cpu and 128 of 65536 MiB are taken"
    assert notices(b) == [p.Notice("ap-1", text, "room")]
    assert "asks for 4 cpu" in str(b.plane.pools[G].statistics()["waiting_for_room"])
    b.lose("ct-1", exit_code=0)
    assert b.plane.pools[G].statistics()["waiting_for_room"] == ""


def test_what_has_room_again_in_a_moment_says_nothing_and_later_waits_anew(bench: Make) -> None:
    b = two(bench, resources=WHOLE)
    b.submit(1)
    b.ready()
    b.submit(1, "fc-2", G)
    b.wait(LASTING_S * 0.9)
    b.finish("ct-1")
    b.lose("ct-1", exit_code=0)
    b.ready("ct-2")
    b.submit(1, "fc-3")
    b.wait(LASTING_S * 0.9)
    assert notices(b) == [], "g waited for a moment and f for another one"
    b.wait(LASTING_S)
    assert [notice.text.partition(":")[0] for notice in notices(b)] == ["f waits for room"]


def test_an_idle_container_leaves_for_another_function(bench: Make) -> None:
    b = two(bench, resources=WHOLE)
    b.submit(1)
    b.ready()
    b.submit(1, "fc-2", G)
    b.finish("ct-1")
    assert b.drained() == ["ct-1"]
    b.lose("ct-1", exit_code=0)
    assert b.orders(p.StartContainer) == [p.StartContainer("ct-2", G, "n1", [])]


def test_a_container_that_comes_up_serves_before_it_leaves_for_others(bench: Make) -> None:
    """Two functions, room for one: evicting what has just started would go on forever."""
    b = two(bench, resources=WHOLE)
    b.submit(1)
    b.submit(1, "fc-2", G)
    b.ready("ct-1")
    assert b.running("ct-1") == ["fc-1:0"]
    assert b.drained() == []


def test_as_many_leave_as_are_needed(bench: Make) -> None:
    b = bench(
        function("f", autoscaler=HOUR, resources=Resources(1.0)), function("g", resources=Resources(2.0)), cpu=4.0
    )
    b.submit(4)
    b.ready()
    for container in ("ct-3", "ct-1", "ct-2", "ct-4"):
        b.finish(container, after=1.0)
    b.submit(1, "fc-2", G)
    assert b.drained() == ["ct-3", "ct-1"]
    b.submit(1, "fc-3", G)
    b.lose("ct-3", exit_code=0)
    assert b.drained() == []
    b.lose("ct-1", exit_code=0)
    assert [order.pool for order in b.orders(p.StartContainer)] == [G]
    assert b.drained() == ["ct-2", "ct-4"], "one more container, two more to leave"


def test_min_containers_are_not_evicted(bench: Make) -> None:
    keep = AutoscalerSettings(min_containers=1)
    b = bench(function("f", autoscaler=keep, resources=WHOLE), function("g"), cpu=4.0)
    b.ready()
    b.submit(1, "fc-2", G)
    assert b.drained() == []


def test_nobody_leaves_where_it_would_not_help(bench: Make) -> None:
    b = bench(
        function("f", autoscaler=HOUR),
        function("g", resources=Resources(gpus=(GpuRequest("H100"),))),
        gpus={"H100": 1},
    )
    b.submit(1)
    b.ready()
    b.finish("ct-1")
    b.submit(2, "fc-2", G)
    assert b.drained() == []


def test_who_needs_no_room_any_more_evicts_nobody(bench: Make) -> None:
    b = two(bench, resources=WHOLE)
    b.submit(1)
    b.ready()
    b.submit(1, "fc-2", G)
    b.send(p.CallCancelled("fc-2"), "se-1")
    b.finish("ct-1")
    assert b.drained() == []


def test_a_function_without_a_container_gets_one_from_a_function_with_several(bench: Make) -> None:
    b = two(bench, resources=Resources(1.0))
    b.submit(20)
    b.ready()
    b.submit(1, "fc-2", G)
    b.finish("ct-3")
    assert b.drained() == ["ct-3"]
    b.finish("ct-2")
    assert b.drained() == []
    b.lose("ct-3", exit_code=0)
    assert [order.pool for order in b.orders(p.StartContainer)] == [G]


def test_a_nested_call_gets_a_container_beyond_the_room_there_is(bench: Make) -> None:
    b = two(bench, resources=WHOLE)
    b.submit(1)
    b.ready()
    b.submit(1, "fc-2", G)
    assert len(b.started) == 1
    b.submit(1, "fc-3", G, parent="in-1-0")
    assert len(b.started) == 2
    b.submit(9, "fc-4", G, parent="in-1-0")
    assert len(b.started) == 2, "one is enough to move"


def test_room_is_used_before_it_is_overcommitted(bench: Make) -> None:
    b = two(bench, resources=WHOLE)
    b.send(p.NodeJoined("n2", 4.0, 8192))
    b.submit(1)
    b.submit(1, "fc-2", G, parent="in-1-0")
    assert b.orders(p.StartContainer)[0].node == "n2"


def test_a_gpu_that_is_nowhere_fails_at_once(bench: Make) -> None:
    b = bench(function(resources=Resources(gpus=(GpuRequest("H100"),))))
    b.submit(2)
    assert b.statuses() == {0: INIT_FAILURE, 1: INIT_FAILURE}
    assert "gpu H100 was asked for" in b.error()
