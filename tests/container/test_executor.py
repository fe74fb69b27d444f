"""A real container process against a plane that only talks."""

from __future__ import annotations

import os
import sys

import pytest

from kedge.model.payload import PICKLE, Payload
from kedge.model.protocol import (
    ConcurrencyChanged,
    ContainerReady,
    Heartbeat,
    InputsDispatched,
    InputsRecalled,
    StreamCredited,
    StreamValues,
)
from kedge.model.spec import Concurrency
from tests.container.fake_plane import FakePlane, function, service_class

COUNTER = {"add": False, "add_async": True, "place": False, "place_async": True, "rest": False, "release": True}


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("max_inputs", [1, 4])
@pytest.mark.parametrize("is_async", [False, True])
def test_an_input_comes_back_as_its_result(plane: FakePlane, max_inputs: int, is_async: bool) -> None:
    plane.start(function("square_async" if is_async else "square", max_inputs, is_async=is_async))
    assert [plane.call(x) for x in (2, 3, 4)] == [4, 9, 16]
    plane.drain()
    assert plane.wait_exit() == 0


def test_ready_tells_how_long_it_took(plane: FakePlane) -> None:
    plane.start(function("square"))
    (ready,) = plane.of(ContainerReady)
    assert ready.startup_s > 0


def test_large_values_travel_as_files(plane: FakePlane) -> None:
    plane.start(function("twice"))
    lease = plane.dispatch(b"x" * 1_000_000)
    assert plane.value(lease) == b"x" * 2_000_000
    payload = plane.finished[lease].result.payload
    assert payload is not None
    assert payload.blob
    assert not payload.data


def test_user_code_knows_its_input_and_context_variables_are_its_own(plane: FakePlane) -> None:
    plane.start(function("where"))
    first, second = plane.input(), plane.input()
    plane.send(InputsDispatched([first]))
    seen = plane.value(first.lease)
    assert seen["input"] == f"in-{first.call[3:]}-{first.index}"
    assert seen["call"] == first.call
    assert seen["local"] is False
    plane.send(InputsDispatched([second]))
    assert plane.value(second.lease)["before"] == "nothing"


def test_with_one_slot_sync_code_has_the_main_thread(plane: FakePlane) -> None:
    plane.start(function("where"))
    assert plane.call()["main"] is True


@pytest.mark.parametrize("max_inputs", [1, 4])
def test_the_module_is_imported_on_the_main_thread(plane: FakePlane, max_inputs: int) -> None:
    plane.start(function("where", max_inputs))
    seen = plane.call()
    assert (seen["imported on main"], seen["main"]) == (True, max_inputs == 1)


def test_with_more_slots_sync_code_has_threads_which_are_used_again(plane: FakePlane) -> None:
    plane.start(function("where", 4))
    calls = [plane.call() for _ in range(5)]
    assert not any(call["main"] for call in calls)
    assert len({call["thread"] for call in calls}) == 1


@pytest.mark.parametrize("max_inputs", [1, 2])
def test_a_sync_function_may_return_a_coroutine(plane: FakePlane, max_inputs: int) -> None:
    plane.start(function("returns_coroutine", max_inputs))
    assert plane.call(1) == 2


# ---------------------------------------------------------------- concurrency


@pytest.mark.parametrize(("name", "is_async"), [("meet", False), ("meet_async", True)])
def test_eighteen_inputs_at_six_are_three_rounds_with_an_id_each(plane: FakePlane, name: str, is_async: bool) -> None:
    plane.start(function(name, 6, is_async=is_async))
    inputs = [plane.input(6, credited=number >= 6) for number in range(18)]
    plane.send(InputsDispatched(inputs))
    results = [plane.value(dispatch.lease) for dispatch in inputs]
    assert {peak for peak, _, _ in results} == {6}
    assert [input for _, input, _ in results] == [f"in-{d.call[3:]}-{d.index}" for d in inputs]
    threads = {thread for _, _, thread in results}
    assert len(threads) == (1 if is_async else 6)


def test_every_task_may_have_a_thread_of_the_loop_s(plane: FakePlane) -> None:
    parties = (os.cpu_count() or 1) + 40
    plane.start(function("meet_in_threads", parties, is_async=True))
    inputs = [plane.input(parties) for _ in range(parties)]
    plane.send(InputsDispatched(inputs))
    assert {plane.value(dispatch.lease) for dispatch in inputs} == {parties}


def test_slots_grow_and_shrink_live(plane: FakePlane) -> None:
    plane.start(function("meet"))
    inputs = [plane.input(3, credited=number > 0) for number in range(3)]
    plane.send(InputsDispatched(inputs))
    plane.send(ConcurrencyChanged(Concurrency(3, 3)))
    assert {plane.value(dispatch.lease)[0] for dispatch in inputs} == {3}
    plane.send(ConcurrencyChanged(Concurrency(1, 1)))
    assert plane.call(1)[0] == 3
    plane.drain()
    assert plane.wait_exit() == 0


def test_a_class_mixes_threads_and_tasks_on_the_same_slots(plane: FakePlane) -> None:
    plane.start(service_class("Counter", 3, COUNTER))
    resting = [plane.dispatch(name, method="rest") for name in ("a", "b")]
    plane.noted("begin a", "begin b")
    assert plane.call(5, method="add_async") == 5
    assert plane.call(method="place") is False
    assert plane.call(method="place_async") is True
    plane.call("b", method="release")
    plane.call("a", method="release")
    assert [plane.value(lease) for lease in resting] == ["a", "b"]


def test_a_class_with_one_slot_runs_everything_on_the_main_thread(plane: FakePlane) -> None:
    plane.start(service_class("Counter", 1, COUNTER))
    assert plane.call(method="place") is True, "and no loop runs around sync code"
    assert plane.call(method="place_async") is True
    assert plane.call(1, method="add") == 1
    assert plane.call(2, method="add_async") == 3
    assert plane.call(3, method="add") == 6


# ---------------------------------------------------------------- batches


def test_tiny_credited_inputs_share_frames(plane: FakePlane) -> None:
    plane.start(function("square"))
    plane.send(InputsDispatched([plane.input(x, credited=x > 0) for x in range(500)]))
    plane.until(lambda: len(plane.finished) == 500)
    assert plane.frames < 250
    assert not plane.returned


def test_results_do_not_wait_for_the_long_input_behind_them(plane: FakePlane) -> None:
    plane.start(function("first_then_fast"))
    inputs = [plane.input("", credited=n > 0) for n in range(20)] + [plane.input("long", credited=True)]
    plane.send(InputsDispatched(inputs))
    plane.until(lambda: len(plane.finished) == 20)
    plane.until(lambda: inputs[-1].lease in plane.started)
    assert inputs[-1].lease not in plane.finished
    plane.allow("long")
    assert plane.value(inputs[-1].lease) == "long"


def test_credits_are_recalled_from_under_a_long_input(plane: FakePlane) -> None:
    plane.start(function("first_then_fast"))
    inputs = [plane.input("long"), *(plane.input("", credited=True) for _ in range(5))]
    plane.send(InputsDispatched(inputs))
    plane.noted("begin long")
    plane.send(InputsRecalled([dispatch.lease for dispatch in inputs]))
    plane.until(lambda: len(plane.returned) == 5)
    plane.allow("long")
    plane.value(inputs[0].lease)
    assert plane.returned == [dispatch.lease for dispatch in inputs[1:]]


# ---------------------------------------------------------------- failures


FAILURES = {
    "value": ("ValueError", "the oven is cold"),
    "exit": ("SystemExit", "3"),
    "interrupt": ("KeyboardInterrupt", "by hand"),
    "cancelled": ("CancelledError", "by hand"),
    "unpicklable": ("SerializationError", "cannot be sent to another process"),
}


@pytest.mark.parametrize("max_inputs", [1, 2])
@pytest.mark.parametrize("is_async", [False, True])
def test_whatever_user_code_raises_fails_that_input_only(plane: FakePlane, max_inputs: int, is_async: bool) -> None:
    plane.start(function("fail_async" if is_async else "fail", max_inputs, is_async=is_async))
    for kind, (type, message) in FAILURES.items():
        result = plane.result(plane.dispatch(kind)).result
        assert result.status == "failure"
        assert result.error is not None
        assert result.error.type == type
        assert message in result.error.message
        assert plane.call("") == "fine"


def test_the_traceback_shows_the_user_s_frames_only(plane: FakePlane) -> None:
    plane.start(function("fail"))
    error = plane.result(plane.dispatch("value")).result.error
    assert error is not None
    assert "shop.py" in error.traceback
    assert "in deeper" in error.traceback
    assert "kedge/container" not in error.traceback


def test_arguments_that_cannot_be_loaded_fail_the_input(plane: FakePlane) -> None:
    plane.start(function("square", 2))
    lease = plane.dispatch(payload=Payload(PICKLE, b"\x80\x05cnowhere\nThing\n."))
    error = plane.result(lease).result.error
    assert error is not None
    assert error.type == "DeserializationError"
    assert "an argument of square()" in error.message
    assert plane.call(3) == 9


def test_a_method_the_code_does_not_have_fails_the_input(plane: FakePlane) -> None:
    plane.start(function("square"))
    error = plane.result(plane.dispatch(1, method="cube")).result.error
    assert error is not None
    assert "no method 'cube'" in error.message
    assert plane.call(3) == 9


@pytest.mark.parametrize("max_inputs", [1, 2])
def test_a_child_that_comes_back_out_of_user_code_ends_there(plane: FakePlane, max_inputs: int) -> None:
    plane.start(function("fail", max_inputs))
    assert plane.call("fork") == plane.process
    assert plane.call("") == "fine"


# ---------------------------------------------------------------- cancelling


def cancelled(plane: FakePlane, lease: int) -> bool:
    return plane.result(lease).result.status == "terminated"


def test_one_slot_a_sleeping_sync_input_is_interrupted_on_the_main_thread(plane: FakePlane) -> None:
    plane.start(function("snooze"))
    lease = plane.dispatch("a")
    plane.noted("begin a")
    plane.cancel(lease)
    assert cancelled(plane, lease)
    assert plane.journal() == ["begin a", "InputCancellation a", "finally a"]


def test_a_timeout_is_another_exception_and_another_status(plane: FakePlane) -> None:
    plane.start(function("snooze"))
    lease = plane.dispatch("a")
    plane.noted("begin a")
    plane.cancel(lease, reason="timeout")
    assert plane.result(lease).result.status == "timeout"
    assert "InputTimeout a" in plane.journal()


def test_code_that_swallows_its_cancellation_is_cancelled_all_the_same(plane: FakePlane) -> None:
    plane.start(function("swallow"))
    lease = plane.dispatch("a")
    plane.noted("begin a")
    plane.cancel(lease)
    assert cancelled(plane, lease)


def test_one_sync_thread_is_cancelled_and_its_siblings_see_nothing(plane: FakePlane) -> None:
    plane.start(function("spin", 3))
    leases = {name: plane.dispatch(name) for name in "abc"}
    plane.noted("begin a", "begin b", "begin c")
    plane.cancel(leases["b"])
    assert cancelled(plane, leases["b"])
    assert "InputCancellation b" in plane.journal()
    again = plane.dispatch("b2")
    plane.noted("begin b2")
    plane.cancel(leases["a"], leases["c"], again)
    assert all(cancelled(plane, lease) for lease in (leases["a"], leases["c"], again))
    assert sorted(line for line in plane.journal() if line.startswith("Input")) == [
        f"InputCancellation {name}" for name in ("a", "b", "b2", "c")
    ]


def test_a_subset_of_async_siblings_is_cancelled(plane: FakePlane) -> None:
    plane.start(function("snooze_async", 4, is_async=True))
    leases = {name: plane.dispatch(name) for name in "abcd"}
    plane.noted("begin a", "begin b", "begin c", "begin d")
    plane.cancel(leases["a"], leases["c"])
    assert cancelled(plane, leases["a"])
    assert cancelled(plane, leases["c"])
    assert set(plane.finished) == {leases["a"], leases["c"]}
    assert sorted(plane.journal()[4:]) == ["CancelledError a", "CancelledError c"]


def test_the_tasks_beside_a_cancelled_one_finish_and_the_container_leaves_in_order(plane: FakePlane) -> None:
    plane.start(function("nap_async", 2, is_async=True))
    unwanted, wanted = plane.dispatch("a", 60), plane.dispatch("b", 0.2)
    plane.noted("begin a", "begin b")
    plane.cancel(unwanted)
    assert cancelled(plane, unwanted)
    assert plane.value(wanted) == "b"
    plane.drain()
    assert plane.wait_exit() == 0
    assert "Traceback" not in plane.errors()


def test_where_threads_and_tasks_share_a_container_only_the_cancelled_input_sees_it(plane: FakePlane) -> None:
    methods = {"nap": False, "nap_async": True}
    plane.start(service_class("Stubborn", 6, methods))
    leases = {}
    for method in methods:
        for name in (f"{method} 1", f"{method} 2"):
            leases[name] = plane.dispatch(name, 60, method=method)
            plane.noted(f"begin {name}")
    unwanted = [leases[f"{method} 1"] for method in methods]
    for method, lease in zip(methods, unwanted, strict=True):
        plane.cancel(lease)
        assert cancelled(plane, lease)
        for other in methods:
            assert plane.call(f"after {method}", 0, method=other) == f"after {method}"
    siblings = set(leases.values()) - set(unwanted)
    assert siblings.isdisjoint(plane.finished)
    heard = [line.strip() for line in plane.journal() if not line.startswith("begin")]
    assert heard == ["InputCancellation nap 1", "CancelledError nap_async 1"]


def test_a_cancel_beside_its_dispatch_never_runs_the_input(plane: FakePlane) -> None:
    plane.start(function("snooze_async", 2, is_async=True))
    early, late = plane.input("early"), plane.input("late")
    plane.cancel(early.lease)
    plane.send(InputsDispatched([early]))
    assert cancelled(plane, early.lease)
    assert plane.journal() == []
    plane.send(InputsDispatched([late]))
    plane.noted("begin late")
    plane.cancel(late.lease)
    assert cancelled(plane, late.lease)
    plane.cancel(early.lease, late.lease)
    plane.drain()
    assert plane.wait_exit() == 0
    assert len(plane.finished) == 2


@pytest.mark.parametrize("max_inputs", [1, 3])
@pytest.mark.parametrize("is_async", [False, True])
def test_dispatch_and_cancel_in_one_breath_frees_the_slot_once(
    plane: FakePlane, max_inputs: int, is_async: bool
) -> None:
    plane.start(function("snooze_async" if is_async else "spin", max_inputs, is_async=is_async))
    for _ in range(50):
        lease = plane.dispatch("x")
        plane.cancel(lease)
        plane.cancel(lease)
        assert cancelled(plane, lease)
    plane.drain()
    assert plane.wait_exit() == 0
    assert len(plane.finished) == 50


# ---------------------------------------------------------------- generators


@pytest.mark.parametrize("max_inputs", [1, 3])
@pytest.mark.parametrize("is_async", [False, True])
class TestGenerators:
    def start(self, plane: FakePlane, max_inputs: int, is_async: bool) -> None:
        name = "count_to_async" if is_async else "count_to"
        plane.start(function(name, max_inputs, is_async=is_async, stream=True))

    def test_values_come_in_order_and_the_result_counts_them(
        self, plane: FakePlane, max_inputs: int, is_async: bool
    ) -> None:
        self.start(plane, max_inputs, is_async)
        result = plane.result(plane.dispatch(50, stream=True)).result
        assert (result.status, result.count) == ("success", 50)
        assert plane.values == list(range(50))
        firsts = [message.first for message in plane.of(StreamValues)]
        assert firsts == sorted(set(firsts))

    def test_without_credit_the_generator_stands_still(self, plane: FakePlane, max_inputs: int, is_async: bool) -> None:
        self.start(plane, max_inputs, is_async)
        dispatch = plane.input(200, stream=True)
        plane.send(InputsDispatched([dispatch]))
        plane.until(lambda: len(plane.values) == 64)
        plane.noted("yield 64")
        assert "yield 65" not in plane.journal()
        plane.send(StreamCredited(dispatch.call, dispatch.index, 100))
        plane.until(lambda: len(plane.values) == 164)
        plane.noted("yield 164")
        assert "yield 165" not in plane.journal()
        plane.send(StreamCredited(dispatch.call, dispatch.index, 1000))
        assert plane.result(dispatch.lease).result.count == 200
        assert plane.values == list(range(200))

    def test_a_cancel_ends_a_generator_that_waits_for_its_reader(
        self, plane: FakePlane, max_inputs: int, is_async: bool
    ) -> None:
        self.start(plane, max_inputs, is_async)
        lease = plane.dispatch(200, stream=True)
        plane.noted("yield 64")
        plane.cancel(lease)
        assert cancelled(plane, lease)
        assert plane.finished[lease].result.count == 64
        assert plane.journal()[-2:] == ["CancelledError" if is_async else "InputCancellation", "closed"]
        assert plane.result(plane.dispatch(2, stream=True)).result.count == 2


@pytest.mark.parametrize("max_inputs", [1, 2])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_value_that_cannot_be_sent_fails_the_stream_and_closes_the_generator(
    plane: FakePlane, max_inputs: int, is_async: bool
) -> None:
    name = "broken_stream_async" if is_async else "broken_stream"
    plane.start(function(name, max_inputs, is_async=is_async, stream=True))
    result = plane.result(plane.dispatch(3, stream=True)).result
    assert result.error is not None
    assert (result.status, result.count, result.error.type) == ("failure", 3, "SerializationError")
    assert plane.values == [0, 1, 2]
    assert plane.journal() == ["closed"]


def test_streams_and_plain_calls_are_not_mixed_up(plane: FakePlane) -> None:
    plane.start(function("count_to", stream=True))
    error = plane.result(plane.dispatch(3)).result.error
    assert error is not None
    assert "call it with .remote_gen()" in error.message


def test_a_plain_function_has_no_stream(plane: FakePlane) -> None:
    plane.start(function("square"))
    error = plane.result(plane.dispatch(3, stream=True)).result.error
    assert error is not None
    assert "call it with .remote()" in error.message


# ---------------------------------------------------------------- while user code blocks


@pytest.mark.parametrize(
    ("name", "max_inputs", "is_async"),
    [("first_then_fast", 1, False), ("first_then_fast", 3, False), ("block_loop", 2, True)],
)
def test_heartbeats_go_on_while_user_code_blocks(
    plane: FakePlane, name: str, max_inputs: int, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kedge.container.heartbeat.HEARTBEAT_S", 0.05)
    plane.start(function(name, max_inputs, is_async=is_async))
    lease = plane.dispatch("long")
    plane.noted("begin long")
    plane.until(lambda: len(plane.beats()) >= 3)
    assert {beat.running for beat in plane.beats()} == {1}
    if is_async:
        plane.until(lambda: any(beat.loop_lag_s > 0 for beat in plane.beats()))
    plane.allow("long")
    assert plane.value(lease) == "long"


def test_no_heartbeats_at_rest(plane: FakePlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedge.container.heartbeat.HEARTBEAT_S", 0.01)
    plane.start(function("square"))
    assert plane.call(2) == 4
    before = len(plane.beats())
    for _ in range(40):
        plane.poll(0.005)
    assert len(plane.of(Heartbeat)) == before


def test_a_blocked_loop_still_gives_back_what_is_recalled(plane: FakePlane) -> None:
    plane.start(function("block_loop", 1, is_async=True))
    blocking, credit = plane.input("long"), plane.input("short", credited=True)
    plane.send(InputsDispatched([blocking]))
    plane.noted("begin long")
    plane.send(InputsDispatched([credit]))
    plane.send(InputsRecalled([credit.lease]))
    plane.until(lambda: plane.returned == [credit.lease])
    plane.allow("long")
    assert plane.value(blocking.lease) == "long"


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
def test_a_container_at_rest_does_not_wake_up(plane: FakePlane) -> None:
    plane.start(function("square"))
    plane.call(1)
    plane.until(plane.is_asleep)
    assert plane.is_asleep()
    assert plane.is_asleep()
