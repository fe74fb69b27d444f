"""How long inputs wait, how many may, and what becomes of code that does not end."""

from __future__ import annotations

from kedge.core.fleet import DISMISSAL_GRACE_S
from kedge.core.overdue import OVERDUE_GRACE_S
from kedge.core.patience import MOST_REQUESTS
from kedge.model import protocol as p
from kedge.model.payload import FAILURE, SUCCESS, TERMINATED, TIMEOUT, Payload
from kedge.model.spec import AutoscalerSettings, Batching, MethodSpec, RetryPolicy, WebSpec
from tests.core.conftest import Bench, F, Make, function

ONE = AutoscalerSettings(min_containers=1, max_containers=1)


# ---------------------------------------------------------------- how many wait


def test_inputs_beyond_the_bound_are_refused(bench: Make) -> None:
    b = bench(function(max_queued_inputs=2, autoscaler=ONE))
    b.ready()
    b.submit(1, "fc-0")
    b.finish("ct-1", run_s=6.0)
    b.submit(4)
    assert b.running("ct-1") == ["fc-1:0"]
    assert b.statuses() == {3: FAILURE}, "one runs, two wait"
    error = b.results["se-1", "fc-1", 3].error
    assert error is not None
    assert error.type == "ResourceExhaustedError"
    assert error.message == (
        "as many inputs wait for f as max_queued_inputs=2 allows; try again in about 6 s, or raise max_queued_inputs "
        "or max_containers"
    )
    assert error.retry_after == 6.0
    b.finish("ct-1")
    b.submit(1, first=3)
    assert b.statuses() == {3: FAILURE, 0: SUCCESS}, "the same input again is welcome when there is room"


def test_requests_have_a_bound_of_their_own(bench: Make) -> None:
    b = bench(function(methods=(MethodSpec(web=WebSpec(kind="asgi_app")),), autoscaler=ONE))
    b.ready()
    b.submit(MOST_REQUESTS + 2)
    assert b.statuses() == {MOST_REQUESTS + 1: FAILURE}, "one runs, the others wait"
    assert b.results["se-1", "fc-1", MOST_REQUESTS + 1].error.retry_after > 0


def test_arguments_of_a_refused_input_stay_with_its_caller(bench: Make) -> None:
    b = bench(function(max_queued_inputs=1, autoscaler=ONE))
    large = Payload(blob="b1", size=10**6)
    b.submit(1)
    b.send(p.InputsSubmitted("fc-2", F, 0, [large]), "se-1")
    b.send(p.InputsSubmitted("fc-3", F, 0, [Payload(blob="b2", size=10**6)], durable=True), "se-1")
    assert b.orders(p.PayloadReleased) == [p.PayloadReleased(["b2"])], "nobody can send a durable one again"
    statistics = b.plane.pools[F].statistics()
    assert (statistics["submitted"], statistics["refused"], statistics["failed"]) == (1, 2, 0)
    b.ready()
    b.finish("ct-1")
    assert b.results.pop(("se-1", "fc-2", 0)).status == FAILURE
    b.send(p.InputsSubmitted("fc-2", F, 0, [large]), "se-1")
    b.finish("ct-1")
    assert b.results["se-1", "fc-2", 0].status == SUCCESS
    assert b.orders(p.PayloadReleased) == [p.PayloadReleased(["b1"])]


def test_inputs_that_find_a_slot_do_not_wait(bench: Make) -> None:
    b = bench(function(slots=10, max_queued_inputs=1, autoscaler=ONE))
    b.ready()
    b.submit(11)
    assert len(b.running("ct-1")) == 10
    assert b.statuses() == {}


def test_retries_and_what_comes_back_are_not_refused(bench: Make) -> None:
    b = bench(function(max_queued_inputs=1, autoscaler=ONE))
    b.submit(1)
    b.ready()
    b.submit(1, "fc-2")
    b.lose("ct-1")
    assert b.results == {}


# ---------------------------------------------------------------- how long


def test_an_input_that_waits_for_too_long_is_over(bench: Make) -> None:
    b = bench(function(queue_timeout=2.0, autoscaler=ONE))
    b.ready()
    b.submit(2)
    b.wait(1.0)
    b.submit(1, "fc-2")
    b.wait(1.1)
    assert b.statuses() == {1: TIMEOUT}
    assert b.error(1) == (
        "the input waited longer than queue_timeout=2 s for f (running: 1, containers: 1); raise the timeout, "
        "max_containers, or what else limits them"
    )
    error = b.results["se-1", "fc-1", 1].error
    assert error is not None
    assert error.type == "QueueTimeoutError"
    b.wait(1.0)
    assert b.statuses("fc-2") == {0: TIMEOUT}
    b.wait(100.0)
    assert b.running("ct-1") == ["fc-1:0"], "what runs is not counted"


def test_a_call_has_a_bound_of_its_own(bench: Make) -> None:
    b = bench(function(autoscaler=ONE))
    b.ready()
    b.submit(1)
    b.submit(1, "fc-2", queue_timeout=1.0)
    b.submit(1, "fc-3")
    b.wait(1.1)
    assert b.statuses("fc-2") == {0: TIMEOUT}
    assert b.statuses("fc-3") == {}


def test_another_attempt_may_wait_as_long_as_it_must(bench: Make) -> None:
    b = bench(function(queue_timeout=1.0, retries=RetryPolicy(1, 1.0, 5.0), autoscaler=ONE))
    b.ready()
    b.submit(1)
    b.finish("ct-1", status=FAILURE)
    b.wait(6.0)
    assert b.running("ct-1") == ["fc-1:0"]


def test_a_loss_is_no_reason_to_give_up_waiting(bench: Make) -> None:
    b = bench(function(queue_timeout=1.0, autoscaler=ONE))
    b.submit(1)
    b.ready()
    b.lose("ct-1")
    b.wait(5.0)
    assert b.results == {}


def test_looks_at_the_queue_are_few(bench: Make) -> None:
    """Two hundred inputs that are due one after the other within 20 ms do not cost a look each."""
    b = bench(function(queue_timeout=1.0, autoscaler=ONE))
    b.ready()
    for number in range(200):
        b.submit(1, f"fc-{number}")
        b.now += 0.0001
    moments: dict[float, int] = {}
    while (due := b.plane.next_deadline()) is not None and due < 2.0:
        b.send(p.TimePassed(), after=max(0.0, due - b.now))
        moments[b.now] = len(b.results)
    assert len(b.results) == 199
    assert len(moments) < 10


def test_what_was_granted_ahead_and_comes_back_has_waited_all_the_time(bench: Make) -> None:
    """It was in a container when the queue was looked at, and never had a slot."""
    b = bench(function(queue_timeout=2.0, autoscaler=ONE))
    b.ready()
    b.submit(1, "fc-0")
    b.finish("ct-1", 1, run_s=0.0001)
    b.submit(1, "fc-1")
    b.wait(1.0)
    b.submit(1, "fc-2", queue_timeout=0.5)
    assert b.credited("ct-1") == [0]
    b.wait(0.6)
    b.send(p.InputsReturned([3]), "ct-1")
    b.wait(0.1)
    assert b.statuses("fc-2") == {0: TIMEOUT}


# ---------------------------------------------------------------- a deadline of one call


def test_a_timeout_of_a_call_travels_with_its_inputs(bench: Make) -> None:
    b = bench(function(autoscaler=ONE))
    b.ready()
    b.submit(1, timeout=2.5)
    assert [d.timeout for d in b.leases["ct-1"].values()] == [2.5]


def test_the_last_resort_knows_the_timeout_of_a_call(bench: Make) -> None:
    b = bench(function(slots=2, timeout=20.0, autoscaler=ONE))
    b.ready()
    b.submit(1)
    b.submit(1, "fc-2", timeout=5.0)
    b.wait(5.0 + OVERDUE_GRACE_S + 0.1)
    assert b.statuses("fc-2") == {0: TIMEOUT}
    assert "timeout=5 s" in b.error(call="fc-2")
    assert b.statuses() == {}


def test_a_long_timeout_of_a_call_is_respected(bench: Make) -> None:
    b = bench(function(slots=2, timeout=20.0, autoscaler=ONE))
    b.ready()
    b.submit(1, timeout=100.0)
    b.wait(100.0)
    assert b.statuses() == {}
    b.wait(OVERDUE_GRACE_S + 0.1)
    assert b.statuses() == {0: TIMEOUT}


# ---------------------------------------------------------------- code that goes on


def overrun(b: Bench, *leases: int) -> None:
    b.send(p.InputsOverran(list(leases)), "ct-1")


def test_the_caller_of_code_that_goes_on_is_told_at_once(bench: Make) -> None:
    methods = (MethodSpec("a", timeout=2.0), MethodSpec("b"))
    b = bench(function(slots=2, is_class=True, methods=methods, timeout=7.0, autoscaler=ONE))
    b.ready()
    b.submit(1, method="a")
    b.submit(1, "fc-2", method="b")
    overrun(b, 1, 2)
    assert b.statuses() == {0: TIMEOUT}
    assert b.error() == "the input ran longer than timeout=2 s, and its code has not ended since it was told to"
    assert "timeout=7 s" in b.error(call="fc-2")
    b.submit(1, "fc-3")
    assert len(b.running("ct-1")) == 2, "its slot is held until the code has ended"
    b.finish("ct-1", 1)
    assert b.running("ct-1") == ["fc-2:0", "fc-3:0"]


def test_another_attempt_waits_until_the_code_has_ended(bench: Make) -> None:
    b = bench(function(retries=RetryPolicy(1, 1.0, 0.0), cancellation_grace=100.0, autoscaler=ONE))
    b.ready()
    b.submit(1)
    overrun(b, 1)
    b.wait(50.0)
    assert b.results == {}
    assert [d.attempt for d in b.leases["ct-1"].values()] == [0]
    b.finish("ct-1", 1, status=TIMEOUT)
    b.wait(0.1)
    assert [d.attempt for d in b.leases["ct-1"].values()] == [1]


def test_another_attempt_runs_elsewhere_when_the_code_never_ends(bench: Make) -> None:
    b = bench(function(retries=RetryPolicy(1, 1.0, 0.0), cancellation_grace=5.0, autoscaler=ONE))
    b.ready()
    b.submit(1)
    overrun(b, 1)
    b.wait(5.1)
    assert b.drained() == ["ct-1", "ct-1"]
    b.ready("ct-2")
    assert b.running("ct-2") == []
    b.lose("ct-1", signal=9)
    b.wait(0.1)
    assert [d.attempt for d in b.leases["ct-2"].values()] == [1]
    b.send(p.InputsOverran([2]), "ct-2")
    assert b.statuses() == {0: TIMEOUT}


def test_a_container_that_ends_its_code_late_leaves_by_itself(bench: Make) -> None:
    """It was told to take nothing more when the grace was over; the code ended after all, before its sibling did."""
    b = bench(function(slots=2, cancellation_grace=2.0, autoscaler=ONE))
    b.ready()
    b.submit(1)
    b.submit(1, "fc-2")
    b.send(p.CallCancelled("fc-1"), "se-1")
    b.wait(2.1)
    assert b.statuses() == {0: TERMINATED}
    assert [o for _, o in b.commands if isinstance(o, p.ContainerDrained)] == [
        p.ContainerDrained("it holds code that does not end")
    ]
    notice = next(o for _, o in b.commands if isinstance(o, p.Notice))
    assert notice.text == (
        "1 input of f did not end 2 s after its code was told to: ct-1 gets nothing new and is replaced "
        "when its other inputs have ended (1)"
    )
    b.finish("ct-1", 1)
    b.finish("ct-1", 2)
    assert b.statuses("fc-2") == {0: SUCCESS}


# ---------------------------------------------------------------- live control


def test_slots_can_be_changed_while_the_pool_works(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=ONE))
    b.ready()
    b.submit(20)
    b.send(p.ConcurrencyUpdated(3, F, max_inputs=2), "se-1")
    assert b.replies(3) == [p.Reply(3, {"max_inputs": 2, "target_inputs": 2})]
    assert b.orders(p.ConcurrencyChanged, "ct-1")[0].concurrency.max_inputs == 2
    for lease in (1, 2):
        b.finish("ct-1", lease)
    assert len(b.running("ct-1")) == 2
    b.finish("ct-1", 3)
    assert len(b.running("ct-1")) == 2
    b.send(p.ConcurrencyUpdated(4, F, max_inputs=6, target_inputs=3), "se-1")
    assert len(b.running("ct-1")) == 6
    b.send(p.ConcurrencyUpdated(5, F, target_inputs=7), "se-1")
    error = b.replies(5)[0].error
    assert error is not None
    assert error.message == "target_inputs=7 is above max_inputs=6; lower the one or raise the other"


def test_a_container_that_was_on_its_way_hears_of_the_change(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=ONE))
    b.send(p.ConcurrencyUpdated(3, F, max_inputs=2), "se-1")
    b.ready()
    assert [o.concurrency.max_inputs for o in b.orders(p.ConcurrencyChanged, "ct-1")] == [2]
    b.submit(5)
    assert len(b.running("ct-1")) == 2


def test_a_container_may_take_fewer_by_its_own_wish(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=AutoscalerSettings(min_containers=2, max_containers=2)))
    b.ready()
    b.send(p.SlotsChanged(1), "ct-1")
    b.submit(6)
    assert len(b.running("ct-1")) == 1
    assert len(b.running("ct-2")) == 4
    b.send(p.SlotsChanged(3), "ct-1")
    assert len(b.running("ct-1")) == 2
    b.send(p.SlotsChanged(9), "ct-1")
    b.submit(10, "fc-2")
    assert len(b.running("ct-1")) == 4, "more than max_inputs is not its own to say"


def test_credits_are_called_back_from_who_takes_fewer(bench: Make) -> None:
    b = bench(function(slots=2, autoscaler=ONE))
    b.ready()
    b.submit(2)
    b.finish("ct-1", run_s=0.0001)
    b.submit(10, "fc-2")
    assert b.credited("ct-1") != []
    b.send(p.SlotsChanged(1), "ct-1")
    assert b.orders(p.InputsRecalled, "ct-1") != []


def test_a_container_leaves_when_its_code_asks(bench: Make) -> None:
    b = bench(function(slots=2, autoscaler=ONE))
    b.ready()
    b.submit(2)
    b.send(p.ContainerLeaving("stop_fetching_inputs"), "ct-1")
    assert b.drained() == ["ct-1"]
    assert ("engine", p.KillContainer("ct-1", 30.0)) not in b.commands, "it may finish what it runs"
    b.submit(1, "fc-2")
    b.ready("ct-2")
    assert b.running("ct-2") == ["fc-2:0"]
    b.finish("ct-1")
    assert ("engine", p.KillContainer("ct-1", 30.0)) in b.commands


# ---------------------------------------------------------------- corners of the above


def test_batches_and_limits_together_say_how_many_may_come_in(bench: Make) -> None:
    methods = (MethodSpec(batching=Batching(8, 0)),)
    b = bench(function(slots=10, methods=methods, concurrency_limit=8, max_queued_inputs=2, autoscaler=ONE))
    b.ready()
    b.submit(100)
    assert len(b.running("ct-1")) == 8
    assert len(b.statuses()) == 90, "two wait"
    b.finish("ct-1", run_s=4.0)
    b.submit(50, "fc-2")
    error = next(result.error for (_, call, _), result in b.results.items() if call == "fc-2")
    assert error is not None
    assert error.retry_after == 0.5, "eight of them run at once, four seconds each: one has begun by then"


def test_what_an_earlier_server_let_in_is_not_refused(bench: Make) -> None:
    """It is on disk, and its caller was told so."""
    b = bench(function(max_queued_inputs=2, autoscaler=ONE))
    b.send(p.CallRestored("fc-9", F, "", 4, []))
    b.send(p.InputsSubmitted("fc-9", F, 0, [Payload(data=b"0")] * 4, durable=True, total=4))
    assert b.orders(p.OutputsRecorded) == []
    b.ready()
    for lease in (1, 2, 3, 4):
        b.finish("ct-1", lease)
    assert [len(o.outputs) for _, o in b.commands if isinstance(o, p.OutputsRecorded)] == [1, 1, 1, 1]


def test_each_call_hears_how_long_it_might_wait(bench: Make) -> None:
    """Also where several are too late in the same moment."""
    b = bench(function(queue_timeout=3.0, autoscaler=ONE))
    b.ready()
    b.submit(1, "fc-0")
    b.submit(1, "fc-1")
    b.wait(1.0)
    b.submit(1, "fc-2", queue_timeout=2.0)
    b.wait(2.1)
    assert "queue_timeout=3 s" in b.error(call="fc-1")
    assert "queue_timeout=2 s" in b.error(call="fc-2")
    statistics = b.plane.pools[F].statistics()
    assert (statistics["submitted"], statistics["finished"], statistics["failed"], statistics["cancelled"]) == (
        3,
        2,
        2,
        0,
    )


def test_a_frozen_container_gives_back_what_it_holds_ahead(bench: Make) -> None:
    """It cannot even answer the recall: so it must go, and what was credited runs elsewhere."""
    b = bench(function(timeout=5.0, autoscaler=ONE))
    b.ready()
    b.submit(1, "fc-0")
    b.finish("ct-1", 1, run_s=0.0001)
    b.submit(4)
    assert b.credited("ct-1") == [1, 2, 3]
    b.wait(5.0 + OVERDUE_GRACE_S + 0.1)
    assert b.statuses() == {0: TIMEOUT}
    assert ("engine", p.KillContainer("ct-1", DISMISSAL_GRACE_S)) in b.commands
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    for _ in range(3):
        b.finish("ct-2")
    assert b.statuses() == {0: TIMEOUT, **dict.fromkeys((1, 2, 3), SUCCESS)}


def test_the_last_resort_knows_the_timeout_of_a_method(bench: Make) -> None:
    """Also where its input came while others were watched that may run for longer."""
    methods = (MethodSpec("long"), MethodSpec("short", timeout=1.0))
    b = bench(function(slots=3, is_class=True, methods=methods, autoscaler=ONE))
    b.ready()
    b.submit(1, "fc-long", method="long")
    b.wait(7.0)
    b.submit(1, method="short")
    b.wait(1.0 + OVERDUE_GRACE_S + 0.1)
    assert b.statuses() == {0: TIMEOUT}
    assert "timeout=1 s" in b.error()
    assert b.statuses("fc-long") == {}


def test_inputs_that_freeze_together_hear_their_own_timeouts(bench: Make) -> None:
    b = bench(function(slots=3, timeout=6.0, autoscaler=ONE))
    b.ready()
    b.submit(1)
    b.wait(1.0)
    b.submit(1, "fc-2", timeout=5.0)
    b.wait(20.0)
    assert "timeout=6 s" in b.error()
    assert "timeout=5 s" in b.error(call="fc-2")


def test_the_last_resort_knows_the_timeout_of_what_was_credited(bench: Make) -> None:
    b = bench(function(autoscaler=ONE))
    b.ready()
    b.submit(1, "fc-0")
    b.finish("ct-1", 1, run_s=0.0001)
    b.submit(1, "fc-1")
    b.submit(1, "fc-2", timeout=1.0)
    assert b.credited("ct-1") == [0]
    b.finish("ct-1", 2, run_s=0.0001)
    b.wait(1.0 + OVERDUE_GRACE_S + 0.1)
    assert b.statuses("fc-2") == {0: TIMEOUT}


def test_who_was_told_once_has_no_second_grace(bench: Make) -> None:
    """Its time was over, then it was cancelled: the grace runs from the first."""
    b = bench(function(retries=RetryPolicy(1, 1.0, 0.0), cancellation_grace=10.0, autoscaler=ONE))
    b.ready()
    b.submit(1)
    overrun(b, 1)
    b.wait(9.0)
    b.send(p.CallCancelled("fc-1"), "se-1")
    b.wait(1.1)
    assert b.statuses() == {0: TERMINATED}
    assert b.plane.containers["ct-1"].quarantined


def test_a_container_is_dismissed_once(bench: Make) -> None:
    b = bench(function(slots=3, cancellation_grace=1.0, autoscaler=ONE))
    b.ready()
    b.submit(3)
    b.send(p.CallCancelled("fc-1"), "se-1")
    b.wait(1.1)
    b.finish("ct-1", 1)
    b.finish("ct-1", 2)
    dismissals = [order for _, order in b.commands if isinstance(order, p.ContainerDrained) and order.cancel]
    assert len(dismissals) == 1


def test_looks_at_code_that_does_not_end_are_few(bench: Make) -> None:
    """Two hundred inputs that are overdue one after the other within 20 ms do not cost a look each."""
    b = bench(function(slots=300, cancellation_grace=1.0, autoscaler=ONE))
    b.ready()
    for number in range(200):
        b.submit(1, f"fc-{number}")
    for number in range(200):
        b.send(p.CallCancelled(f"fc-{number}"), "se-1", after=0.0001)
    looks = 0
    while (due := b.plane.next_deadline()) is not None and due < 3.0:
        looks += 1
        b.send(p.TimePassed(), after=max(0.0, due - b.now))
    assert b.plane.containers["ct-1"].doomed
    assert looks < 10


def test_overruns_are_said_in_any_order(bench: Make) -> None:
    """Before and after a cancel, an end, and a loss: each input has one result, and gives its slot back once."""
    b = bench(function(slots=4, cancellation_grace=100.0, autoscaler=ONE))
    b.ready()
    for number in (1, 2, 3, 4):
        b.submit(1, f"fc-{number}")
    overrun(b, 1)
    b.send(p.CallCancelled("fc-1"), "se-1")
    b.send(p.CallCancelled("fc-2"), "se-1")
    overrun(b, 1, 2)
    b.finish("ct-1", 1, 2, status=TIMEOUT)
    overrun(b, 1, 2)
    assert (b.statuses("fc-1"), b.statuses("fc-2")) == ({0: TIMEOUT}, {0: TERMINATED})
    assert b.plane.pools[F].running == 2
    b.finish("ct-1", 3)
    overrun(b, 3)
    b.lose("ct-1", signal=9)
    b.send(p.InputsOverran([4]), "ct-1")
    b.ready("ct-2")
    assert b.statuses("fc-3") == {0: SUCCESS}
    assert b.running("ct-2") == ["fc-4:0"]
    assert b.plane.dropped == {
        "overran a lease that is over": 3,
        "inputs overran by a container that is gone": 1,
    }


def test_a_wish_to_leave_may_come_before_the_container_is_ready(bench: Make) -> None:
    b = bench(function(autoscaler=ONE))
    b.send(p.ContainerLeaving("it asked to leave"), "ct-1")
    assert b.started == ["ct-1"], "the next one may do the same: it waits a moment"
    b.send(p.ContainerReady(), "ct-1")
    assert b.drained() == ["ct-1"]
    b.wait(1.0)
    assert b.started == ["ct-1", "ct-2"]
    b.submit(1)
    b.ready("ct-2")
    assert b.running("ct-2") == ["fc-1:0"]
