"""Batches in a real container process, against a plane that only talks."""

from __future__ import annotations

import re
from typing import Any

import pytest
from msgspec import structs

from kedge.model.payload import PICKLE, Payload
from kedge.model.protocol import Dispatch, InputsDispatched, InputsOverran
from kedge.model.spec import Batching, FunctionSpec, MethodSpec
from kedge.sdk.serializer import arguments_payload
from tests.container.fake_plane import FakePlane, function

UNLOADABLE = Payload(PICKLE, b"\x80\x05cnowhere\nThing\n.")
EVERYWHERE = [(1, False), (1, True), (3, False), (3, True)]
"""Where user code runs: `max_inputs`, and whether it is async. On the main thread, a slot thread, or as a task."""


def bakery(name: str, max_inputs: int = 1, is_async: bool = False, method: str = "", **more: Any) -> FunctionSpec:
    methods = (MethodSpec(name=method, is_async=is_async, batching=Batching(1000, 10)),)
    return function(name, max_inputs, module="bakery", methods=methods, is_class=bool(method), **more)


def batch(plane: FakePlane, *values: Any, **more: Any) -> list[Dispatch]:
    """One batch with an input for each value; a Payload stands for itself."""
    payloads = [value if isinstance(value, Payload) else arguments_payload((value,), {}, None) for value in values]
    inputs = [plane.input(payload=payload, **more) for payload in payloads]
    return [structs.replace(input, batch=inputs[0].lease, members=len(inputs)) for input in inputs]


def send(plane: FakePlane, *values: Any, **more: Any) -> list[int]:
    """Dispatches one batch: its leases."""
    inputs = batch(plane, *values, **more)
    plane.send(InputsDispatched(inputs))
    return [input.lease for input in inputs]


def call(plane: FakePlane, *values: Any, **more: Any) -> list[Any]:
    return [plane.value(lease) for lease in send(plane, *values, **more)]


def keywords(*args: Any, **kwargs: Any) -> Payload:
    return arguments_payload(args, kwargs, None)


def failure(plane: FakePlane, lease: int) -> tuple[str, str]:
    """Type and text of what an input failed with."""
    result = plane.result(lease).result
    assert result.status == "failure"
    assert result.error is not None
    return result.error.type, result.error.message


def status(plane: FakePlane, lease: int) -> str:
    return plane.result(lease).result.status


def hears(plane: FakePlane) -> None:
    """Waits until the container has taken all that was said so far: it answers for an input that never starts."""
    probe = plane.input("probe")
    plane.cancel(probe.lease)
    plane.send(InputsDispatched([probe]))
    assert status(plane, probe.lease) == "terminated"


# ---------------------------------------------------------------- what the code gets, and what callers get


@pytest.mark.parametrize(("max_inputs", "is_async"), EVERYWHERE)
def test_one_call_for_all_members_and_a_result_for_each(plane: FakePlane, max_inputs: int, is_async: bool) -> None:
    plane.start(bakery("square_async" if is_async else "square", max_inputs, is_async))
    assert call(plane, 2, 3, 4) == [4, 9, 16]
    assert call(plane, 5) == [25]
    plane.drain()
    assert plane.wait_exit() == 0


@pytest.mark.parametrize("max_inputs", [1, 3])
def test_a_coroutine_from_a_plain_function_is_awaited(plane: FakePlane, max_inputs: int) -> None:
    plane.start(bakery("awaited", max_inputs))
    assert call(plane, 2, 3) == [4, 9]


def test_a_lone_input_is_a_batch_of_one(plane: FakePlane) -> None:
    plane.start(bakery("square"))
    assert plane.call(7) == 49
    assert failure(plane, plane.dispatch(payload=keywords(wrong=1)))[0] == "InvalidError"


def test_members_may_come_in_several_frames(plane: FakePlane) -> None:
    plane.start(bakery("facts"))
    inputs = batch(plane, *range(5))
    for input in inputs:
        plane.send(InputsDispatched([input]))
    assert [plane.value(input.lease)[0] for input in inputs] == [5] * 5


def test_a_thousand_members(plane: FakePlane) -> None:
    plane.start(bakery("square", 2))
    assert call(plane, *range(1000)) == [x * x for x in range(1000)]


def test_user_code_knows_all_of_its_inputs(plane: FakePlane) -> None:
    plane.start(bakery("facts"))
    inputs = batch(plane, 1, 2, 3)
    plane.send(InputsDispatched(inputs))
    count, first, lease, members, main = plane.value(inputs[2].lease)
    assert (count, main) == (3, True)
    assert (first, lease) == (f"in-{inputs[0].call[3:]}-{inputs[0].index}", inputs[0].lease)
    assert members == tuple((input.call, input.index) for input in inputs)


def test_a_method_gets_lists_after_self(plane: FakePlane) -> None:
    plane.start(bakery("Oven", method="bake"))
    assert call(plane, "rye", "wheat", method="bake") == ["rye at 200", "wheat at 200"]


def test_positional_and_keyword_arguments_are_the_same(plane: FakePlane) -> None:
    plane.start(bakery("bake"))
    payloads = [keywords(1, degrees=9), keywords(flour=2, degrees=8), keywords(degrees=7, flour=3)]
    assert call(plane, *payloads) == [(1, 9), (2, 8), (3, 7)]
    assert plane.journal() == ["3 at [9, 8, 7]"]


def test_large_arguments_and_results_travel_as_files(plane: FakePlane) -> None:
    plane.start(bakery("wrapped"))
    payloads = [arguments_payload((letter * 500_000,), {}, plane.blobs) for letter in "ab"]
    leases = send(plane, *payloads)
    assert [plane.value(lease) for lease in leases] == [("a" * 500_000,), ("b" * 500_000,)]
    assert all(payload.blob for payload in payloads)
    results = [plane.finished[lease].result.payload for lease in leases]
    assert all(payload is not None and payload.blob for payload in results)


# ---------------------------------------------------------------- members that fail alone


def test_a_member_that_cannot_be_loaded_fails_alone(plane: FakePlane) -> None:
    plane.start(bakery("facts"))
    inputs = batch(plane, UNLOADABLE, 2, 3)
    plane.send(InputsDispatched(inputs))
    kind, text = failure(plane, inputs[0].lease)
    assert kind == "DeserializationError"
    assert "an argument of facts()" in text
    count, first, lease, members, _ = plane.value(inputs[1].lease)
    assert count == 2
    assert (first, lease) == (f"in-{inputs[1].call[3:]}-{inputs[1].index}", inputs[1].lease)
    assert members == tuple((input.call, input.index) for input in inputs[1:])


def test_a_member_whose_arguments_do_not_fit_fails_alone(plane: FakePlane) -> None:
    plane.start(bakery("bake"))
    leases = send(plane, keywords(1, degrees=9), keywords(2), keywords(3, degrees=7), keywords(4, heat=5, degrees=6))
    assert [plane.value(leases[0]), plane.value(leases[2])] == [(1, 9), (3, 7)]
    kind, text = failure(plane, leases[1])
    assert kind == "InvalidError"
    assert re.fullmatch(
        r"bake\(\) cannot be called like this: missing a required (keyword-only )?argument: 'degrees'. Its parameters "
        r"are \(flour, degrees\): give one value for each, and it gets a list of them",
        text,
    )
    assert "got an unexpected keyword argument 'heat'" in failure(plane, leases[3])[1]
    assert plane.journal() == ["2 at [9, 7]"]


def test_code_is_not_called_for_a_batch_of_which_nothing_fits(plane: FakePlane) -> None:
    plane.start(bakery("bake"))
    assert {failure(plane, lease)[0] for lease in send(plane, 1, 2)} == {"InvalidError"}
    assert plane.journal() == []


def test_where_the_signature_does_not_tell_the_majority_does(plane: FakePlane) -> None:
    plane.start(bakery("wrapped"))
    leases = send(plane, keywords(1, x=1, y=2), keywords(1, 2), keywords(3, 4))
    assert [plane.value(leases[1]), plane.value(leases[2])] == [(1, 2), (3, 4)]
    assert failure(plane, leases[0]) == (
        "InvalidError",
        "wrapped() was called with 1 positional argument and x, y, and the other inputs of its batch with 2 positional "
        "arguments: inputs that share a batch must give the same arguments; name the parameters instead of *args or "
        "**kwargs",
    )
    assert call(plane, keywords(b=1, a=2), keywords(a=3, b=4)) == [(1, 2), (4, 3)]
    assert plane.journal() == ["[2]", "[0, 'a', 'b']"]


def test_a_result_that_cannot_be_sent_fails_its_member_alone(plane: FakePlane) -> None:
    plane.start(bakery("wrong"))
    leases = send(plane, "locks", "lock", "fine")
    assert [plane.value(leases[0]), plane.value(leases[2])] == ["locks", "fine"]
    kind, text = failure(plane, leases[1])
    assert kind == "SerializationError"
    assert "the result of wrong(), of type _thread.lock" in text


# ---------------------------------------------------------------- batches that fail


RETURNED = {
    "none": "nothing",
    "tuple": "a tuple of 3 items",
    "short": "a list of 1 item",
    "long": "a list of 9 items",
    "number": "a value of type int",
    "generator": "a value of type generator",
}


@pytest.mark.parametrize("is_async", [False, True])
def test_anything_but_a_list_of_the_right_length_fails_every_member(plane: FakePlane, is_async: bool) -> None:
    name = "wrong_async" if is_async else "wrong"
    plane.start(bakery(name, is_async=is_async))
    for kind, described in RETURNED.items():
        for lease in send(plane, kind, "b", "c"):
            assert failure(plane, lease) == (
                "InvalidError",
                f"{name}() returned {described} for a batch of 3 inputs; a @kedge.batched function returns a list with "
                f"one result per input, in their order",
            )


@pytest.mark.parametrize("max_inputs", [1, 2])
@pytest.mark.parametrize("is_async", [False, True])
def test_an_exception_goes_to_every_member_that_the_code_got(plane: FakePlane, max_inputs: int, is_async: bool) -> None:
    plane.start(bakery("wrong_async" if is_async else "wrong", max_inputs, is_async))
    leases = send(plane, "raise", UNLOADABLE, "c")
    assert failure(plane, leases[0]) == failure(plane, leases[2]) == ("ValueError", "the oven is cold")
    assert failure(plane, leases[1])[0] == "DeserializationError"
    assert "bakery.py" in plane.finished[leases[2]].result.error.traceback  # type: ignore[union-attr]
    assert {failure(plane, lease) for lease in send(plane, "exit", "b")} == {("SystemExit", "3")}
    assert call(plane, "locks", "fine") == ["locks", "fine"]


def test_a_method_the_code_does_not_have_fails_every_member(plane: FakePlane) -> None:
    plane.start(bakery("square"))
    for lease in send(plane, 1, 2, method="cube"):
        assert "no method 'cube'" in failure(plane, lease)[1]


# ---------------------------------------------------------------- slots


@pytest.mark.parametrize("is_async", [False, True])
def test_a_slot_is_a_batch(plane: FakePlane, is_async: bool) -> None:
    plane.start(bakery("meet_async" if is_async else "meet", 3, is_async))
    leases = [send(plane, *[3] * count) for count in (4, 1, 2, 5, 3, 1)]
    assert {plane.value(lease) for group in leases for lease in group} == {3}


def test_a_second_batch_waits_for_the_only_slot(plane: FakePlane) -> None:
    plane.start(bakery("wait"))
    first, second = send(plane, "a", "b"), send(plane, "c", "d")
    plane.noted("begin a b")
    plane.allow("c")
    assert plane.journal() == ["begin a b"]
    plane.allow("a")
    assert [plane.value(lease) for lease in first + second] == ["A", "B", "C", "D"]
    assert plane.journal() == ["begin a b", "begin c d"]


# ---------------------------------------------------------------- cancelling, timeouts, drains


@pytest.mark.parametrize(("max_inputs", "is_async"), EVERYWHERE)
def test_cancelling_a_member_drops_its_result_and_nothing_else(
    plane: FakePlane, max_inputs: int, is_async: bool
) -> None:
    plane.start(bakery("wait_async" if is_async else "wait", max_inputs, is_async))
    leases = send(plane, "a", "b", "c")
    plane.noted("begin a b c")
    plane.cancel(leases[0])
    plane.cancel(leases[2])
    hears(plane)
    plane.allow("a")
    assert plane.value(leases[1]) == "B"
    assert status(plane, leases[0]) == status(plane, leases[2]) == "terminated"
    assert plane.journal() == ["begin a b c"]


@pytest.mark.parametrize(("max_inputs", "is_async"), EVERYWHERE)
def test_code_that_nobody_waits_for_is_interrupted(plane: FakePlane, max_inputs: int, is_async: bool) -> None:
    plane.start(bakery("wait_async" if is_async else "wait", max_inputs, is_async))
    leases = send(plane, "a", "b", "c")
    plane.noted("begin a b c")
    plane.cancel(leases[1], leases[2])
    plane.cancel(leases[0])
    assert [status(plane, lease) for lease in leases] == ["terminated"] * 3
    seen = "CancelledError" if is_async else "InputCancellation"
    assert plane.journal() == ["begin a b c", f"{seen} a b c"]
    plane.allow("d")
    assert call(plane, "d") == ["D"]


@pytest.mark.parametrize(("max_inputs", "is_async"), EVERYWHERE)
def test_a_member_cancelled_before_the_start_is_not_given_to_the_code(
    plane: FakePlane, max_inputs: int, is_async: bool
) -> None:
    plane.start(bakery("wait_async" if is_async else "wait", max_inputs, is_async))
    inputs = batch(plane, "a", "b", "c")
    plane.cancel(inputs[0].lease)
    plane.send(InputsDispatched(inputs[:2]))
    plane.cancel(inputs[1].lease)
    plane.send(InputsDispatched(inputs[2:]))
    plane.noted("begin c")
    plane.allow("c")
    assert plane.value(inputs[2].lease) == "C"
    assert status(plane, inputs[0].lease) == status(plane, inputs[1].lease) == "terminated"


@pytest.mark.parametrize(("max_inputs", "is_async"), EVERYWHERE)
def test_the_time_of_a_batch_is_over_for_all_members(plane: FakePlane, max_inputs: int, is_async: bool) -> None:
    plane.start(bakery("wait_async" if is_async else "wait", max_inputs, is_async, timeout=0.5))
    leases = send(plane, "a", "b", "c")
    plane.noted("begin a b c")
    plane.cancel(leases[1])
    assert [status(plane, lease) for lease in leases] == ["timeout", "terminated", "timeout"]
    for lease in (leases[0], leases[2]):
        error = plane.finished[lease].result.error
        assert error is not None
        assert error.type == "FunctionTimeoutError"
        assert error.message.startswith("the input ran longer than timeout=0.5 s of wait")
    seen = "CancelledError" if is_async else "InputTimeout"
    assert plane.journal() == ["begin a b c", f"{seen} a b c"]


@pytest.mark.parametrize(("max_inputs", "is_async"), EVERYWHERE)
def test_a_member_whose_own_time_is_over_is_reported_and_the_code_goes_on(
    plane: FakePlane, max_inputs: int, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kedge.container.deadlines.REPORT_S", 0.01)
    plane.start(bakery("wait_async" if is_async else "wait", max_inputs, is_async))
    first, second = batch(plane, "a", "b")
    plane.send(InputsDispatched([first, structs.replace(second, timeout=0.2)]))
    overran = plane.wait_for(InputsOverran)
    assert overran.leases == [second.lease]
    plane.allow("a")
    assert plane.value(first.lease) == "A"
    assert status(plane, second.lease) == "timeout"
    assert plane.journal() == ["begin a b"]


def test_a_drain_lets_batches_finish(plane: FakePlane) -> None:
    plane.start(bakery("wait", 2))
    leases = send(plane, "a", "b")
    plane.noted("begin a b")
    plane.drain()
    plane.allow("a")
    assert [plane.value(lease) for lease in leases] == ["A", "B"]
    assert plane.wait_exit() == 0


@pytest.mark.parametrize(("max_inputs", "is_async"), EVERYWHERE)
def test_a_drain_that_cancels_interrupts_batches_and_reports_nothing(
    plane: FakePlane, max_inputs: int, is_async: bool
) -> None:
    plane.start(bakery("wait_async" if is_async else "wait", max_inputs, is_async))
    leases = send(plane, "a", "b", "c")
    plane.noted("begin a b c")
    plane.cancel(leases[1])
    plane.drain(cancel=True)
    assert plane.wait_exit() == 0
    assert set(plane.finished) == {leases[1]}
    assert len(plane.journal()) == 2


@pytest.mark.parametrize("is_async", [False, True])
def test_batches_and_cancels_in_one_breath_free_the_slot_once(plane: FakePlane, is_async: bool) -> None:
    plane.start(bakery("wait_async" if is_async else "wait", 2, is_async))
    for _ in range(30):
        leases = send(plane, "x", "y", "z")
        plane.cancel(leases[0])
        plane.cancel(*leases)
        assert [status(plane, lease) for lease in leases] == ["terminated"] * 3
    plane.drain()
    assert plane.wait_exit() == 0
    assert len(plane.finished) == 90
