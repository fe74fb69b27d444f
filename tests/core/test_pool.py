"""Slots, credits, retries, losses: what becomes of inputs that meet containers."""

from __future__ import annotations

import pytest

from kedge.core.credits import CREDIT_WINDOW_S, MAX_CREDITS, STALL_S
from kedge.core.fleet import DISMISSAL_GRACE_S
from kedge.core.overdue import OVERDUE_GRACE_S
from kedge.core.suspects import MAX_LOSSES
from kedge.model import protocol as p
from kedge.model.payload import FAILURE, INTERNAL_FAILURE, SUCCESS, TIMEOUT, Result
from kedge.model.spec import AutoscalerSettings, MethodSpec, RetryPolicy
from tests.core.conftest import Bench, F, Make, function

ONE = AutoscalerSettings(min_containers=1, max_containers=1)
SHORT_S = 0.0001
WINDOW = int(CREDIT_WINDOW_S / SHORT_S)
"""Credits of a container with one slot, when inputs take SHORT_S."""


# ---------------------------------------------------------------- slots


def test_statistics_tell_waits_runs_and_bursts(bench: Make) -> None:
    b = bench(function(slots=2, target=1, autoscaler=ONE))
    b.ready()
    b.submit(4)
    b.finish("ct-1", run_s=0.5, after=2.0)
    numbers = b.plane.pools[F].statistics()
    assert (numbers["bursts"], numbers["cancelled"], numbers["running"]) == (2, 0, 2)
    assert numbers["wait_p50_s"] == 0.75e-6
    assert 1.5 < float(str(numbers["wait_p95_s"])) < 3.0
    assert 0.3 < float(str(numbers["run_p50_s"])) < 0.75


def test_every_input_that_was_let_in_is_counted_once_when_it_is_over(bench: Make) -> None:
    """Whatever became of it: a display that waits for them all comes to an end."""
    b = bench(function(queue_timeout=1.0, max_queued_inputs=4, retries=RetryPolicy(1, 1.0, 0.0), autoscaler=ONE))
    b.submit(6)
    b.send(p.CallCancelled("fc-1", indices=[0]), "se-1")
    b.ready()
    b.wait(1.1)
    for lease in (1, 2):
        b.finish("ct-1", lease, status=FAILURE)
        b.wait(0.1)
    numbers = b.plane.pools[F].statistics()
    assert {key: numbers[key] for key in ("submitted", "refused", "finished", "failed", "cancelled")} == {
        "submitted": 4,
        "refused": 2,
        "finished": 3,
        "failed": 3,
        "cancelled": 1,
    }
    b.submit(1, "fc-2")
    b.send(p.AppStopped("ap-1"), "se-1")
    numbers = b.plane.pools[F].statistics()
    assert (numbers["submitted"], numbers["finished"], numbers["cancelled"]) == (5, 3, 2)


def test_no_container_gets_more_than_it_may(bench: Make) -> None:
    b = bench(function(slots=3, autoscaler=ONE))
    b.ready()
    b.submit(10)
    assert len(b.running("ct-1")) == 3
    b.finish("ct-1", 1)
    assert len(b.running("ct-1")) == 3
    b.finish("ct-1", 2, 3)
    assert b.running("ct-1") == ["fc-1:3", "fc-1:4", "fc-1:5"]


def test_a_grant_carries_all_that_the_container_needs(bench: Make) -> None:
    b = bench(function())
    b.submit(1, method="m", stream=True)
    b.ready()
    (dispatch,) = b.leases["ct-1"].values()
    assert dispatch == p.Dispatch(1, "fc-1", 0, "m", dispatch.payload, 0, False, True)
    assert dispatch.payload.data == b"0"


def test_dispatches_travel_together(bench: Make) -> None:
    b = bench(function(slots=20, autoscaler=ONE))
    b.ready()
    b.submit(20)
    assert [len(order.inputs) for order in b.orders(p.InputsDispatched)] == [20]


def test_fullest_first_to_target_then_the_least_loaded(bench: Make) -> None:
    settings = AutoscalerSettings(min_containers=2, max_containers=2)
    b = bench(function(slots=4, target=2, autoscaler=settings))
    b.ready()
    loads = []
    for number in range(8):
        b.submit(1, f"fc-{number}")
        loads.append((len(b.running("ct-1")), len(b.running("ct-2"))))
    assert loads == [(1, 0), (2, 0), (2, 1), (2, 2), (3, 2), (3, 3), (4, 3), (4, 4)]


def test_single_use_containers_take_one_input_and_go(bench: Make) -> None:
    b = bench(function(single_use_containers=True))
    b.submit(3)
    b.ready("ct-1")
    assert b.running("ct-1") == ["fc-1:0"]
    b.finish("ct-1")
    assert b.drained() == ["ct-1"]
    assert b.running("ct-1") == []


def test_single_use_containers_never_count_on_draining_a_backlog(bench: Make) -> None:
    """One that is used up takes nothing more, however short its input is: others are started at once."""
    b = bench(function(single_use_containers=True))
    b.submit(1)
    b.ready(after=5.0)
    b.finish("ct-1", run_s=0.001)
    b.lose("ct-1")
    b.submit(1, "fc-2")
    b.ready()
    b.submit(3, "fc-3")
    assert len(b.started) == 5


# ---------------------------------------------------------------- limits


def test_concurrency_limit_over_all_containers(bench: Make) -> None:
    b = bench(function(slots=2, concurrency_limit=3))
    b.submit(10)
    assert b.started == ["ct-1", "ct-2"]
    b.ready()
    assert (len(b.running("ct-1")), len(b.running("ct-2"))) == (2, 1)
    b.finish("ct-1", 1)
    assert len(b.running("ct-1")) == 2
    b.send(p.CallCancelled("fc-1", indices=[1, 2]), "se-1")
    assert b.plane.pools[F].running == 3, "cancelled code still counts"


LIMITED = (MethodSpec("a", concurrency_limit=2), MethodSpec("b", concurrency_limit=1), MethodSpec("c"))


def test_slots_without_concurrent_are_the_sum_of_the_limits(bench: Make) -> None:
    b = bench(function(methods=LIMITED, autoscaler=ONE))
    b.ready()
    for method in "abc":
        b.submit(5, f"fc-{method}", method=method)
    assert sorted(b.running("ct-1")) == ["fc-a:0", "fc-a:1", "fc-b:0", "fc-c:0"]
    b.finish("ct-1", next(lease for lease, d in b.leases["ct-1"].items() if d.method == "b"))
    assert sorted(b.running("ct-1")) == ["fc-a:0", "fc-a:1", "fc-b:1", "fc-c:0"]


def test_limits_hold_within_max_inputs(bench: Make) -> None:
    b = bench(function(slots=5, methods=LIMITED, autoscaler=ONE))
    b.ready()
    b.submit(5, "fc-a", method="a")
    assert len(b.running("ct-1")) == 2
    b.submit(5, "fc-c", method="c")
    assert len(b.running("ct-1")) == 5


def test_a_full_method_asks_for_containers(bench: Make) -> None:
    b = bench(function(slots=10, methods=LIMITED))
    b.submit(4, "fc-b", method="b")
    assert len(b.started) == 4
    b.ready()
    assert [len(b.running(container)) for container in b.started] == [1, 1, 1, 1]


# ---------------------------------------------------------------- credits


def warm(bench: Make, **options: object) -> Bench:
    """A full container of a pool whose inputs are short, and `inputs` more that wait."""
    b = bench(function(autoscaler=ONE, **options))
    b.ready()
    b.submit(1, "fc-0")
    b.finish("ct-1", 1, run_s=SHORT_S)
    return b


def test_short_inputs_are_granted_ahead(bench: Make) -> None:
    b = warm(bench)
    b.submit(100)
    assert b.running("ct-1") == ["fc-1:0"]
    assert b.credited("ct-1") == list(range(1, WINDOW + 1))
    pool = b.plane.pools[F]
    assert (pool.running, pool.credited) == (1, WINDOW)
    assert pool.statistics()["backlog"] == 99


def test_long_inputs_are_not(bench: Make) -> None:
    b = bench(function(autoscaler=ONE))
    b.ready()
    b.submit(10)
    b.finish("ct-1", 1, run_s=0.1)
    assert b.credited("ct-1") == []


def test_credits_have_a_bound(bench: Make) -> None:
    b = bench(function(slots=100, autoscaler=ONE))
    b.ready()
    b.submit(1, "fc-0")
    b.finish("ct-1", 1, run_s=1e-9)
    b.submit(1000)
    assert len(b.credited("ct-1")) == MAX_CREDITS


def test_no_credits_under_a_limit_or_for_streams(bench: Make) -> None:
    limited = warm(bench, concurrency_limit=1)
    limited.submit(10)
    assert limited.credited("ct-1") == []
    streams = warm(bench)
    streams.submit(10, stream=True)
    assert streams.credited("ct-1") == []


def test_the_oldest_credit_takes_the_slot_that_becomes_free(bench: Make) -> None:
    b = warm(bench)
    b.submit(5)
    b.finish("ct-1", 2, run_s=SHORT_S)
    container = b.plane.containers["ct-1"]
    assert [input.index for input in container.credits.values()] == [2, 3, 4]
    assert container.running == 1


def test_a_started_credit_is_an_attempt(bench: Make) -> None:
    b = warm(bench, slots=2)
    b.submit(6)
    container = b.plane.containers["ct-1"]
    first = next(iter(container.credits))
    b.send(p.InputsFinished([p.Finished(2, Result(), SHORT_S)], started=[first]), "ct-1")
    assert first not in container.credits
    assert container.running == 2
    b.send(p.InputsStarted([first]), "ct-1")
    assert container.running == 2


def test_returned_credits_go_to_the_front_in_their_order(bench: Make) -> None:
    b = warm(bench)
    b.submit(WINDOW + 5)
    leases = list(b.plane.containers["ct-1"].credits)
    b.plane.containers["ct-1"].recalled = True
    b.send(p.InputsReturned(leases), "ct-1")
    waiting = [input.index for input in b.plane.pools[F].queue]
    assert waiting == list(range(1, WINDOW + 5))
    assert b.plane.pools[F].credited == 0


def test_credits_are_recalled_from_a_container_that_reports_nothing(bench: Make) -> None:
    b = warm(bench)
    b.submit(5)
    b.wait(STALL_S * 0.9)
    assert b.orders(p.InputsRecalled) == []
    b.wait(STALL_S * 0.2)
    recalls = [order for _, order in b.commands if isinstance(order, p.InputsRecalled)]
    assert recalls == [p.InputsRecalled([3, 4, 5, 6])]
    b.wait(1.0)
    assert sum(isinstance(order, p.InputsRecalled) for _, order in b.commands) == 1


def test_a_stall_is_noticed_also_behind_credits_that_were_cut_short(bench: Make) -> None:
    """A stream ends the row of credits: those that were given before it are watched all the same."""
    b = warm(bench)
    b.submit(2, "fc-1")
    b.wait(0.1)
    b.send(p.InputsReturned([3]), "ct-1")
    b.submit(1, "fc-2")
    b.submit(1, "fc-3", stream=True)
    b.finish("ct-1", 2, run_s=SHORT_S)
    assert [input.call.id for input in b.plane.containers["ct-1"].credits.values()] == ["fc-2"]
    b.wait(0.1)
    recalls = [order for _, order in b.commands if isinstance(order, p.InputsRecalled)]
    assert recalls == [p.InputsRecalled([3]), p.InputsRecalled([5])]


@pytest.mark.parametrize("finished_at", [2.674433 - STALL_S, 1e6 / 3, 0.1 + 0.2, 12345.678])
def test_the_watch_for_stalls_always_moves_on(bench: Make, finished_at: float) -> None:
    """Whatever floats make of `then + 10 ms`: the duty is never due again at the time at which it is done."""
    b = bench(function(autoscaler=ONE, timeout=1e6))
    b.ready()
    b.submit(1, "fc-0")
    b.now = finished_at - 0.003
    b.finish("ct-1", 1, run_s=SHORT_S)
    b.submit(8)
    b.finish("ct-1", 2, run_s=SHORT_S, after=0.003)
    b.wait(1.0)
    assert sum(isinstance(order, p.InputsRecalled) for _, order in b.commands) == 1


def test_no_credits_after_a_recall_until_something_moves(bench: Make) -> None:
    b = warm(bench)
    b.submit(3)
    b.wait(0.1)
    b.send(p.InputsReturned([3, 4]), "ct-1")
    b.leases["ct-1"] = {2: b.leases["ct-1"][2]}
    b.submit(3, "fc-2")
    assert b.credited("ct-1") == []
    b.finish("ct-1", 2, run_s=SHORT_S)
    assert b.credited("ct-1") != []


def test_cancelled_code_says_nothing_about_how_long_inputs_take(bench: Make) -> None:
    """A storm of cancels must not look like a stream of very short inputs."""
    b = bench(function(autoscaler=ONE))
    b.ready()
    b.submit(1, "fc-0")
    b.finish("ct-1", 1, run_s=1.0)
    for number in range(50):
        b.submit(1, f"fc-{number + 1}")
        b.send(p.CallCancelled(f"fc-{number + 1}"), "se-1")
        b.finish("ct-1", run_s=0.0)
    assert b.plane.pools[F].service_s == 1.0
    b.submit(20, "fc-last")
    assert b.credited("ct-1") == []


# ---------------------------------------------------------------- retries


def test_retries_wait_longer_each_time(bench: Make) -> None:
    b = bench(function(retries=RetryPolicy(4, 2.0, 1.0, 3.0), autoscaler=ONE))
    b.ready()
    b.submit(1)
    waits = []
    for attempt in range(5):
        (dispatch,) = b.leases["ct-1"].values()
        assert dispatch.attempt == attempt
        b.finish("ct-1", status=FAILURE)
        if b.results:
            break
        began = b.now
        while not b.leases["ct-1"]:
            due = b.plane.next_deadline()
            assert due is not None
            b.send(p.TimePassed(), after=max(0.0, due - b.now))
        waits.append(round(b.now - began, 3))
    assert waits == [1.0, 2.0, 3.0, 3.0]
    assert b.statuses() == {0: FAILURE}


def test_a_retry_without_delay_follows_at_once(bench: Make) -> None:
    b = bench(function(retries=RetryPolicy(1, 1.0, 0.0), autoscaler=ONE))
    b.ready()
    b.submit(1)
    b.finish("ct-1", status=FAILURE)
    assert b.plane.next_deadline() == b.now
    b.send(p.TimePassed())
    assert b.running("ct-1") == ["fc-1:0"]


@pytest.mark.parametrize(
    ("status", "again"), [(FAILURE, True), (TIMEOUT, True), (SUCCESS, False), ("terminated", False)]
)
def test_what_is_retried(bench: Make, status: str, again: bool) -> None:
    b = bench(function(retries=RetryPolicy(1), autoscaler=ONE))
    b.ready()
    b.submit(1)
    b.finish("ct-1", status=status)
    assert (b.statuses() == {}) is again


def test_streams_are_not_retried(bench: Make) -> None:
    """Their values have been delivered: another attempt would deliver them again."""
    b = bench(function(retries=RetryPolicy(3), autoscaler=ONE))
    b.ready()
    b.submit(1, stream=True)
    b.finish("ct-1", status=FAILURE)
    assert b.statuses() == {0: FAILURE}


def test_a_retry_makes_room_for_others_meanwhile(bench: Make) -> None:
    b = bench(function(retries=RetryPolicy(1, 1.0, 5.0), autoscaler=ONE))
    b.ready()
    b.submit(2)
    b.finish("ct-1", status=FAILURE)
    assert b.running("ct-1") == ["fc-1:1"]
    assert b.plane.pools[F].statistics()["delayed"] == 1


# ---------------------------------------------------------------- lost containers


def test_inputs_of_a_lost_container_run_elsewhere_first(bench: Make) -> None:
    b = bench(function(slots=2, autoscaler=AutoscalerSettings(max_containers=2)))
    b.submit(2)
    b.ready("ct-1")
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    assert b.running("ct-2") == ["fc-1:0"], "it may be to blame, so it runs alone"
    b.ready("ct-3")
    assert b.running("ct-3") == ["fc-1:1"]
    assert [d.attempt for d in b.leases["ct-2"].values()] == [0], "a loss costs no retry"


def test_reports_of_a_lost_container_come_too_late(bench: Make) -> None:
    b = bench(function())
    b.submit(1)
    b.ready()
    b.lose("ct-1")
    b.ready()
    b.finish("ct-1", 1)
    b.send(p.InputsStarted([1]), "ct-1")
    b.send(p.InputsReturned([1]), "ct-1")
    assert b.results == {}
    assert b.plane.dropped == {
        "inputs finished by a container that is gone": 1,
        "inputs started by a container that is gone": 1,
        "inputs returned by a container that is gone": 1,
    }
    b.finish("ct-2", 1)
    assert b.results == {}, "the lease of the first attempt means nothing in the second container"
    b.leases["ct-2"] = {}
    b.finish("ct-2", 2)
    assert b.statuses() == {0: SUCCESS}


def test_a_repeated_report_is_dropped(bench: Make) -> None:
    b = bench(function(slots=2))
    b.submit(2)
    b.ready()
    b.finish("ct-1", 1)
    b.finish("ct-1", 1)
    b.send(p.InputsReturned([1]), "ct-1")
    assert b.plane.dropped == {"finished a lease that is over": 1, "returned a lease that is over": 1}
    assert b.statuses() == {0: SUCCESS}


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"signal": 9}, "killed by signal 9"),
        ({"exit_code": 3}, "left with exit code 3"),
        ({"out_of_memory": True, "signal": 9}, "out of memory"),
        ({"reason": "killed by signal 11 (SIGSEGV)", "signal": 11}, "killed by signal 11 (SIGSEGV)"),
        ({}, "lost"),
    ],
)
def test_an_input_is_given_up_after_so_many_containers(bench: Make, how: dict[str, object], text: str) -> None:
    b = bench(function(retries=RetryPolicy(10)))
    b.submit(1)
    for number in range(1, MAX_LOSSES + 1):
        assert b.results == {}
        b.ready()
        assert b.running(f"ct-{number}") == ["fc-1:0"]
        b.lose(f"ct-{number}", **how)
    assert b.statuses() == {0: INTERNAL_FAILURE}
    assert b.error() == (
        f"the container died while it ran this input, 4 times, so the input is given up; the last time it was {text}"
    )


def test_a_stream_ends_with_its_container(bench: Make) -> None:
    b = bench(function())
    b.submit(1, stream=True)
    b.ready()
    b.lose("ct-1", exit_code=1)
    assert b.error() == "the container died in the middle of the stream: left with exit code 1"


def test_suspects_run_in_slots_of_their_own(bench: Make) -> None:
    """An input whose container was lost is never granted ahead: if it is the one, it must be known to have started."""
    b = warm(bench)
    b.submit(10)
    assert b.credited("ct-1") != []
    b.lose("ct-1", signal=11)
    b.ready()
    assert len(b.running("ct-2")) == 1
    assert b.credited("ct-2") == []


# ---------------------------------------------------------------- inputs that nobody ends


def kills(b: Bench) -> list[str]:
    return [order.container for _, order in b.commands if isinstance(order, p.KillContainer)]


def test_an_input_that_its_container_does_not_end_is_over_for_its_caller(bench: Make) -> None:
    """The container enforces timeouts by itself; a frozen one does not."""
    b = bench(function(timeout=20.0, autoscaler=ONE))
    b.submit(1)
    b.ready()
    b.wait(20.0 + OVERDUE_GRACE_S - 0.1)
    assert b.results == {}
    b.wait(0.2)
    assert b.statuses() == {0: TIMEOUT}
    assert b.error().startswith("the input ran longer than timeout=20 s and could not be interrupted")
    assert b.drained() == ["ct-1", "ct-1"], "nothing new, and then nothing at all"
    assert ("engine", p.KillContainer("ct-1", DISMISSAL_GRACE_S)) in b.commands
    notice = next(order for _, order in b.commands if isinstance(order, p.Notice))
    assert notice.text == (
        "1 input of f did not end long after its time was over: ct-1 gets nothing new and is replaced"
    )


def test_siblings_of_an_overdue_input_finish_first(bench: Make) -> None:
    b = bench(function(slots=2, timeout=20.0, autoscaler=ONE))
    b.submit(1)
    b.ready()
    b.wait(15.0)
    b.submit(1, "fc-2")
    b.wait(20.0)
    assert b.statuses() == {0: TIMEOUT}
    assert not kills(b), "a sibling still runs there"
    b.submit(1, "fc-3")
    assert b.running("ct-1") == ["fc-1:0", "fc-2:0"], "it gets nothing new"
    b.finish("ct-1", 2)
    assert kills(b) == ["ct-1"]
    b.lose("ct-1")
    b.ready("ct-2")
    assert b.running("ct-2") == ["fc-3:0"]


def test_code_that_ignores_its_cancellation_does_not_keep_its_slot_for_ever(bench: Make) -> None:
    b = bench(function(cancellation_grace=2.0, autoscaler=ONE))
    b.submit(1)
    b.ready()
    b.send(p.CallCancelled("fc-1"), "se-1")
    b.submit(1, "fc-2")
    b.wait(1.9)
    assert kills(b) == []
    b.wait(0.2)
    assert kills(b) == ["ct-1"]
    b.ready("ct-2")
    assert b.running("ct-2") == ["fc-2:0"]


def test_short_inputs_leave_no_watches_behind(bench: Make) -> None:
    b = bench(function(autoscaler=ONE))
    b.ready()
    for number in range(50):
        b.submit(1, f"fc-{number}")
        b.finish("ct-1", number + 1, after=0.001)
    assert len(b.plane.agenda._due) <= 3
