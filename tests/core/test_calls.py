"""What becomes of calls: duplicates, cancels, durable results, sessions that go."""

from __future__ import annotations

import pytest

from kedge.core.calls import CANCEL_MEMORY
from kedge.core.outbox import STORE
from kedge.model import protocol as p
from kedge.model.payload import FAILURE, SUCCESS, TERMINATED, Payload
from kedge.model.spec import AutoscalerSettings, RetryPolicy
from tests.core.conftest import F, Make, function


def test_results_go_to_the_session_and_are_forgotten(bench: Make) -> None:
    b = bench(function(slots=4))
    b.submit(3)
    b.ready()
    b.finish("ct-1")
    assert b.statuses() == {0: SUCCESS, 1: SUCCESS, 2: SUCCESS}
    assert len(b.orders(p.OutputsDelivered)) == 1
    assert b.plane.calls.by_id == {}


def test_a_resend_of_open_inputs_is_dropped(bench: Make) -> None:
    b = bench(function(slots=4))
    b.submit(3)
    b.submit(3)
    b.ready()
    assert len(b.running("ct-1")) == 3
    b.submit(5)
    assert b.running("ct-1") == ["fc-1:0", "fc-1:1", "fc-1:2", "fc-1:3"]
    b.finish("ct-1")
    b.finish("ct-1")
    assert list(b.statuses()) == [0, 1, 2, 3, 4]


def test_a_resend_from_another_session_takes_the_results_with_it(bench: Make) -> None:
    """The connection broke and came back before the server saw that the old one was gone."""
    b = bench(function(slots=4), function("other"))
    b.submit(2)
    b.send(p.AppCreated(2, b.plane.apps["ap-1"].spec), "se-2")
    b.submit(2, session="se-2")
    b.send(p.SessionClosed(), "se-1")
    b.ready()
    b.finish("ct-1")
    assert b.statuses(session="se-1") == {}
    assert b.statuses(session="se-2") == {0: SUCCESS, 1: SUCCESS}


def test_an_empty_call_leaves_nothing_behind(bench: Make) -> None:
    b = bench(function())
    b.submit(0, total=0)
    assert b.plane.calls.by_id == {}
    assert b.started == []


def test_inputs_that_do_not_fit_their_call_are_dropped(bench: Make) -> None:
    b = bench(function(), function("g"))
    b.submit(1)
    b.submit(1, pool="fu-1-g", first=1)
    b.submit(1, durable=True, first=1)
    assert b.plane.dropped == {"inputs that do not fit their call": 2}
    assert b.started == ["ct-1"]


# ---------------------------------------------------------------- cancels


def test_a_cancel_closes_at_once_and_holds_the_slot(bench: Make) -> None:
    b = bench(function())
    b.submit(1)
    b.ready()
    b.send(p.CallCancelled("fc-1"), "se-1")
    assert b.statuses() == {0: TERMINATED}
    assert b.error() == "the input was cancelled"
    assert b.orders(p.InputsCancelled, "ct-1") == [p.InputsCancelled([1], "cancelled")]
    assert b.plane.pools[F].running == 1
    b.submit(1, "fc-2")
    assert b.running("ct-1") == ["fc-1:0"]
    b.finish("ct-1", 1)
    assert b.running("ct-1") == ["fc-2:0"]
    assert list(b.statuses()) == [0]


def test_who_cancels_hears_that_it_was_noted(bench: Make) -> None:
    """Also where there is nothing to cancel (any more), and once per request."""
    b = bench(function())
    b.submit(1)
    b.send(p.CallCancelled("fc-1", request=7), "se-1")
    b.send(p.CallCancelled("fc-1", request=8), "se-2")
    b.send(p.CallCancelled("fc-99", request=9), "se-2")
    assert [b.replies(number) for number in (7, 8, 9)] == [[p.Reply(number)] for number in (7, 8, 9)]
    b.send(p.CallCancelled("fc-1"), "se-1")
    assert b.last == []


def test_a_cancel_of_some_inputs(bench: Make) -> None:
    b = bench(function(slots=2))
    b.submit(4)
    b.ready("ct-1")
    b.send(p.CallCancelled("fc-1", indices=[1, 3, 99]), "se-1")
    assert b.statuses() == {1: TERMINATED, 3: TERMINATED}
    assert b.orders(p.InputsCancelled) == [p.InputsCancelled([2], "cancelled")]


def test_a_cancel_of_a_delayed_retry(bench: Make) -> None:
    b = bench(function(retries=RetryPolicy(3, 1.0, 10.0)))
    b.submit(1)
    b.ready()
    b.finish("ct-1", status=FAILURE)
    b.send(p.CallCancelled("fc-1"), "se-1")
    assert b.statuses() == {0: TERMINATED}
    b.wait(20.0)
    assert b.running("ct-1") == []


def test_a_cancel_before_its_inputs_is_remembered(bench: Make) -> None:
    b = bench(function())
    b.send(p.CallCancelled("fc-1"), "se-1")
    b.submit(2)
    assert b.statuses() == {0: TERMINATED, 1: TERMINATED}
    b.submit(1, first=2)
    assert b.statuses()[2] == TERMINATED
    assert b.started == []


def test_cancels_are_remembered_for_so_many_calls(bench: Make) -> None:
    b = bench(function())
    for number in range(CANCEL_MEMORY + 1):
        b.plane.handle(p.CallCancelled(f"fc-{number}"), 0.0, "se-1")
    b.submit(1, "fc-0")
    b.submit(1, "fc-1")
    assert b.statuses("fc-0") == {}
    assert b.statuses("fc-1") == {0: TERMINATED}


def test_a_cancel_can_end_the_containers(bench: Make) -> None:
    b = bench(function())
    b.submit(2)
    b.ready()
    b.send(p.CallCancelled("fc-1", terminate_containers=True), "se-1")
    assert b.orders(p.KillContainer) == [p.KillContainer("ct-1"), p.KillContainer("ct-2")]


def test_a_result_after_the_cancel_is_not_seen(bench: Make) -> None:
    b = bench(function())
    b.submit(1)
    b.ready()
    b.send(p.CallCancelled("fc-1"), "se-1")
    b.finish("ct-1", 1)
    assert b.statuses() == {0: TERMINATED}


def test_a_cancel_after_the_result_changes_nothing(bench: Make) -> None:
    b = bench(function())
    b.submit(1)
    b.ready()
    b.finish("ct-1", 1)
    assert b.send(p.CallCancelled("fc-1"), "se-1") == []


# ---------------------------------------------------------------- durable calls


def test_a_durable_call_is_accepted_recorded_and_left_to_the_store(bench: Make) -> None:
    b = bench(function(slots=2))
    b.submit(2, durable=True, total=2)
    assert b.orders(p.InputsAccepted, "se-1") == [p.InputsAccepted("fc-1", 0, 2)]
    b.ready()
    b.finish("ct-1")
    (recorded,) = b.orders(p.OutputsRecorded, STORE)
    assert [(output.index, output.result.status) for output in recorded.outputs] == [(0, SUCCESS), (1, SUCCESS)]
    assert b.results == {}
    assert b.plane.calls.by_id == {}
    b.send(p.OutputsRequested("fc-1", 0, None, 7), "se-2")
    assert b.last == [(STORE, p.OutputsWanted("se-2", "fc-1", None, 7, 0, None))]
    b.send(p.CallRequested(8, "fc-1"), "se-2")
    assert b.last == [(STORE, p.CallWanted("se-2", "fc-1", 8))]


def test_whoever_asks_gets_what_is_there_and_what_comes(bench: Make) -> None:
    b = bench(function(slots=3))
    b.submit(3, durable=True, total=3)
    b.ready()
    b.finish("ct-1", 1)
    b.send(p.OutputsRequested("fc-1", 0, None, 7), "se-2")
    assert b.last == [(STORE, p.OutputsWanted("se-2", "fc-1", [0], 7))]
    b.send(p.OutputsRequested("fc-1", 2, 3, 8), "se-3")
    assert b.last == []
    b.finish("ct-1", 2, 3)
    assert b.statuses(session="se-2") == {1: SUCCESS, 2: SUCCESS}
    assert b.statuses(session="se-3") == {2: SUCCESS}


def test_two_questions_of_one_session_give_one_result(bench: Make) -> None:
    b = bench(function())
    b.submit(1, durable=True, total=1)
    b.send(p.OutputsRequested("fc-1", 0, None, 7), "se-2")
    b.send(p.OutputsRequested("fc-1", 0, 1, 8), "se-2")
    b.ready()
    b.finish("ct-1")
    assert b.statuses(session="se-2") == {0: SUCCESS}


def test_records_are_ordered_before_what_asks_for_them(bench: Make) -> None:
    """A startup that times out closes an input in the same step in which somebody asks for it."""
    b = bench(function(startup_timeout=1.0))
    b.submit(1, durable=True, total=2)
    b.send(p.OutputsRequested("fc-1", 0, None, 7), "se-2", after=5.0)
    kinds = [type(order) for address, order in b.last if address == STORE]
    assert kinds == [p.OutputsRecorded, p.OutputsWanted]


@pytest.mark.parametrize(
    ("session", "number", "left"), [("se-2", 0, 0), ("se-2", 7, 0), ("se-2", 8, 1), ("se-3", 7, 1)]
)
def test_forgetting(bench: Make, session: str, number: int, left: int) -> None:
    """One request of a session, or, with request 0, all of them."""
    b = bench(function())
    b.submit(1, durable=True, total=1)
    b.send(p.OutputsRequested("fc-1", 0, None, 7), "se-2")
    b.send(p.OutputsForgotten("fc-1", number), session)
    b.ready()
    b.finish("ct-1")
    assert len(b.results) == left


def test_what_is_known_of_a_call(bench: Make) -> None:
    b = bench(function(slots=2))
    b.submit(4, durable=True, total=9, method="", parent="in-x-0")
    b.ready("ct-1")
    b.finish("ct-1", 1)
    b.send(p.CallRequested(5, "fc-1"), "se-2")
    assert b.replies(5)[0].value == {
        "inputs": 9,
        "done": 1,
        "function": "f",
        "method": "",
        "parent": "in-x-0",
        "status": [[0, SUCCESS], [1, "running"], [2, "running"], [3, "queued"]],
    }


def test_a_restored_call_runs_what_is_open(bench: Make) -> None:
    b = bench(function(slots=4))
    b.send(p.CallRestored("fc-9", F, "", 4, [(0, SUCCESS), (2, FAILURE)]))
    b.submit(4, "fc-9", durable=True, session="")
    b.ready()
    assert b.running("ct-1") == ["fc-9:1", "fc-9:3"]
    assert b.orders(p.InputsAccepted) == []
    b.send(p.OutputsRequested("fc-9", 0, None, 3), "se-1")
    assert b.last == [(STORE, p.OutputsWanted("se-1", "fc-9", [0, 2], 3))]
    b.finish("ct-1")
    assert b.statuses("fc-9") == {1: SUCCESS, 3: SUCCESS}
    assert b.plane.calls.by_id == {}


def test_argument_files_are_released_with_the_last_attempt(bench: Make) -> None:
    b = bench(function())
    b.send(p.InputsSubmitted("fc-1", F, 0, [Payload(blob="b1", size=10**6)]), "se-1")
    b.ready()
    assert b.orders(p.PayloadReleased) == []
    b.finish("ct-1")
    assert b.orders(p.PayloadReleased, STORE) == [p.PayloadReleased(["b1"])]


# ---------------------------------------------------------------- sessions


def test_a_closed_session_cancels_what_only_it_waits_for(bench: Make) -> None:
    b = bench(function(slots=2))
    b.send(p.AppCreated(2, b.plane.apps["ap-1"].spec), "se-owner")
    b.submit(3, "fc-1")
    b.submit(1, "fc-2", durable=True)
    b.submit(1, "fc-3", session="se-2")
    b.ready()
    b.send(p.SessionClosed(), "se-1")
    assert list(b.plane.calls.by_id) == ["fc-2", "fc-3"]
    assert b.orders(p.OutputsDelivered) == []
    assert sum(len(order.leases) for order in b.orders(p.InputsCancelled)) == 3
    for container in b.started:
        b.finish(container)
    assert b.statuses("fc-3", "se-2") == {0: SUCCESS}


def test_a_closed_session_is_no_longer_a_waiter(bench: Make) -> None:
    b = bench(function())
    b.submit(1, durable=True, total=1)
    b.send(p.OutputsRequested("fc-1", 0, None, 7), "se-2")
    b.send(p.SessionClosed(), "se-2")
    b.ready()
    b.finish("ct-1")
    assert b.results == {}


def test_containers_are_terminated_for_what_runs_in_them_only(bench: Make) -> None:
    """An input that is granted ahead has not started: there is nothing to terminate."""
    b = bench(function(autoscaler=AutoscalerSettings(min_containers=1, max_containers=1)))
    b.ready()
    b.submit(1, "fc-0")
    b.finish("ct-1", 1, run_s=0.0001)
    b.submit(1, "fc-1")
    b.submit(1, "fc-2")
    assert b.credited("ct-1") == [0]
    b.send(p.CallCancelled("fc-2", terminate_containers=True), "se-1")
    assert b.orders(p.KillContainer) == []
    b.send(p.CallCancelled("fc-1", terminate_containers=True), "se-1")
    assert b.orders(p.KillContainer) == [p.KillContainer("ct-1", 0.0)]
