"""Inputs that run too long, containers that must stop, and waits that both of them end."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from kedge.exception import FunctionTimeoutError
from kedge.model.protocol import InputsDispatched
from kedge.model.spec import Concurrency, FunctionSpec, MethodSpec
from kedge.sdk.serializer import arguments_payload, to_exception
from tests.container import shop
from tests.container.fake_plane import FakePlane, function

pytestmark = pytest.mark.slow  # seconds of waiting on purpose

slow = pytest.mark.slow

PLACES = [
    pytest.param("nap", 1, False, id="main thread"),
    pytest.param("nap", 3, False, id="slot thread"),
    pytest.param("nap_async", 1, True, id="the only task"),
    pytest.param("nap_async", 3, True, id="a task"),
]


def stubborn(max_inputs: int, **methods: MethodSpec) -> FunctionSpec:
    """The class of this name with these methods; the others are `hold` and so on."""
    return FunctionSpec(
        name="Stubborn",
        module="shop",
        qualname="Stubborn",
        is_class=True,
        methods=tuple(methods.values()),
        concurrency=Concurrency(max_inputs, max_inputs, max_inputs > 1),
    )


def method(name: str, is_async: bool = False, timeout: float | None = None) -> MethodSpec:
    return MethodSpec(name=name, is_async=is_async, timeout=timeout)


# ---------------------------------------------------------------- an input runs too long


@pytest.mark.parametrize(("name", "max_inputs", "is_async"), PLACES)
def test_an_input_that_runs_too_long_is_told_and_its_slot_is_free_again(
    plane: FakePlane, name: str, max_inputs: int, is_async: bool
) -> None:
    plane.start(function(name, max_inputs, is_async=is_async, timeout=0.3))
    late = plane.result(plane.dispatch("a", 60))
    text = f"the input ran longer than timeout=0.3 s of {name}()"
    assert late.run_s >= 0.3
    assert (late.result.status, late.result.payload) == ("timeout", None)
    assert plane.journal()[1] == (f"CancelledError a {text}" if is_async else "InputTimeout a")
    assert late.result.error is not None
    assert (late.result.error.type, late.result.error.message) == ("FunctionTimeoutError", text)
    assert "shop.py" in late.result.error.traceback, "it says where the code was"
    error = to_exception(late.result.error, late.result.status)
    assert type(error) is FunctionTimeoutError
    assert str(error) == text
    for _ in range(max_inputs):
        assert plane.call("b", 0) == "b"
    plane.drain()
    assert plane.wait_exit() == 0


@pytest.mark.parametrize("max_inputs", [2, pytest.param(4, marks=slow)])
@pytest.mark.parametrize("is_async", [False, True])
def test_the_timeout_of_a_method_counts_for_that_method_and_siblings_see_nothing(
    plane: FakePlane, max_inputs: int, is_async: bool
) -> None:
    hasty, calm = ("nap_async", "tidy") if is_async else ("nap", "hold_async")
    plane.start(stubborn(max_inputs, a=method(hasty, is_async, 0.3), b=method(calm, not is_async)))
    sibling = plane.dispatch("calm", method=calm)
    plane.noted("begin calm")
    late = plane.result(plane.dispatch("hasty", 60, method=hasty)).result
    assert late.status == "timeout"
    assert late.error is not None
    assert late.error.message == f"the input ran longer than timeout=0.3 s of Stubborn.{hasty}()"
    assert plane.call("again", 0, method=hasty) == "again"
    assert sibling not in plane.finished
    assert [line for line in plane.journal() if "calm" in line] == ["begin calm"]


# ---------------------------------------------------------------- a call brings its own timeout along


@pytest.mark.parametrize(("name", "max_inputs", "is_async"), PLACES)
def test_the_timeout_of_a_call_goes_before_that_of_its_function(
    plane: FakePlane, name: str, max_inputs: int, is_async: bool
) -> None:
    plane.start(function(name, max_inputs, is_async=is_async, timeout=600))
    if max_inputs > 1:  # deadlines are looked at when the first of those that run is due: in ten minutes
        plane.dispatch("sibling", 90)
        plane.noted("begin sibling")
    late = plane.result(plane.dispatch("a", 90, timeout=0.25))
    text = "the input ran longer than timeout=0.25 s of this call"
    assert late.result.status == "timeout"
    assert late.result.error is not None
    assert (late.result.error.type, late.result.error.message) == ("FunctionTimeoutError", text)
    ends = [line for line in plane.journal() if line.split()[0] in ("CancelledError", "InputTimeout")]
    assert ends == [f"CancelledError a {text}" if is_async else "InputTimeout a"]
    assert plane.call("b", 0) == "b"


@pytest.mark.parametrize(("name", "max_inputs", "is_async"), PLACES)
def test_the_timeout_of_a_call_may_be_longer(plane: FakePlane, name: str, max_inputs: int, is_async: bool) -> None:
    plane.start(function(name, max_inputs, is_async=is_async, timeout=0.1))
    assert plane.call("a", 0.3, timeout=60) == "a"
    assert plane.result(plane.dispatch("b", 60)).result.status == "timeout"


@pytest.mark.parametrize("is_async", [False, True])
def test_it_goes_before_that_of_a_method_too(plane: FakePlane, is_async: bool) -> None:
    name = "nap_async" if is_async else "nap"
    plane.start(stubborn(2, a=method(name, is_async, 0.1)))
    assert plane.call("a", 0.3, method=name, timeout=60) == "a"
    late = plane.result(plane.dispatch("b", 90, method=name, timeout=0.05)).result
    assert late.error is not None
    assert late.error.message == "the input ran longer than timeout=0.05 s of this call"


@pytest.mark.parametrize("max_inputs", [1, 2])
def test_an_input_with_a_timeout_of_its_own_that_waited_for_its_slot_is_noticed(
    plane: FakePlane, max_inputs: int
) -> None:
    """It was announced when nothing could be known of its start."""
    plane.start(function("nap", max_inputs, timeout=600))
    first = [plane.input("first", 0.3) for _ in range(max_inputs)]
    second = plane.input("second", 90, credited=True, timeout=0.2)
    plane.send(InputsDispatched([*first, second]))
    assert [plane.value(dispatch.lease) for dispatch in first] == ["first"] * max_inputs
    assert plane.result(second.lease).result.status == "timeout"


def test_arguments_that_take_long_to_load_do_not_hide_the_deadline(plane: FakePlane) -> None:
    plane.start(function("nap", 2, timeout=600))
    payload = arguments_payload((shop.SlowToLoad(), 90), {}, plane.blobs)
    assert plane.result(plane.dispatch(payload=payload, timeout=0.05)).result.status == "timeout"


def test_a_generator_keeps_to_the_timeout_of_its_call(plane: FakePlane) -> None:
    plane.start(function("count_to", 2, stream=True, timeout=600))
    result = plane.result(plane.dispatch(200, stream=True, timeout=0.3)).result
    assert (result.status, result.count) == ("timeout", 64)


@slow
def test_an_input_s_time_begins_when_its_own_code_does(plane: FakePlane) -> None:
    """One slot, and a credited input that waits longer than its timeout behind one that uses all of its own."""
    plane.start(function("nap", timeout=0.5))
    first, second = plane.input("a", 60), plane.input("b", 0.2, credited=True)
    plane.send(InputsDispatched([first, second]))
    assert plane.result(first.lease).result.status == "timeout"
    assert plane.value(second.lease) == "b"


@slow
@pytest.mark.parametrize("max_inputs", [1, 2])
def test_loading_the_arguments_does_not_count(plane: FakePlane, max_inputs: int) -> None:
    payload = arguments_payload((shop.SlowToLoad(),), {}, plane.blobs)
    plane.start(function("name_of", max_inputs, timeout=0.3))
    assert plane.value(plane.dispatch(payload=payload)) == "loaded"


@pytest.mark.parametrize("max_inputs", [1, 2])
def test_whatever_late_code_returns_it_is_late(plane: FakePlane, max_inputs: int) -> None:
    plane.start(function("swallow", max_inputs, timeout=0.2))
    result = plane.result(plane.dispatch("a")).result
    assert (result.status, result.payload) == ("timeout", None)
    assert result.error is not None
    assert "timeout=0.2 s" in result.error.message


@pytest.mark.parametrize(("name", "max_inputs", "is_async"), PLACES)
def test_a_cancel_that_comes_first_is_a_cancel(plane: FakePlane, name: str, max_inputs: int, is_async: bool) -> None:
    plane.start(function(name, max_inputs, is_async=is_async, timeout=60))
    lease = plane.dispatch("a", 90)
    plane.noted("begin a")
    plane.cancel(lease)
    result = plane.result(lease).result
    assert (result.status, result.error) == ("terminated", None)
    assert plane.journal()[1] == ("CancelledError a " if is_async else "InputCancellation a")


@pytest.mark.parametrize("max_inputs", [1, pytest.param(3, marks=slow)])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_generator_that_waits_for_its_reader_uses_up_its_time(
    plane: FakePlane, max_inputs: int, is_async: bool
) -> None:
    plane.start(
        function("count_to_async" if is_async else "count_to", max_inputs, is_async=is_async, stream=True, timeout=0.3)
    )
    result = plane.result(plane.dispatch(200, stream=True)).result
    assert (result.status, result.count) == ("timeout", 64)
    assert plane.values == list(range(64))
    assert plane.journal()[-2:] == ["CancelledError" if is_async else "InputTimeout", "closed"]
    assert plane.result(plane.dispatch(3, stream=True)).result.count == 3


@slow
@pytest.mark.parametrize(("name", "max_inputs", "is_async"), PLACES)
def test_an_end_and_a_deadline_in_the_same_moment_free_the_slot_once(
    plane: FakePlane, name: str, max_inputs: int, is_async: bool
) -> None:
    plane.start(function(name, max_inputs, is_async=is_async, timeout=0.02))
    leases = [plane.dispatch("x", 0.02 + (number % 5 - 2) * 0.0005) for number in range(40)]
    assert {plane.result(lease).result.status for lease in leases} <= {"success", "timeout"}
    assert plane.call("y", 0) == "y"
    plane.drain()
    assert plane.wait_exit() == 0
    assert len(plane.finished) == 41


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
@pytest.mark.parametrize(("name", "max_inputs"), [("nap", 1), ("nap", 3)])
def test_time_that_is_not_over_wakes_nobody(
    plane: FakePlane, name: str, max_inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kedge.container.heartbeat.HEARTBEAT_S", 600)
    plane.start(function(name, max_inputs, timeout=120))
    lease = plane.dispatch("a", 90)
    plane.noted("begin a")
    plane.until(plane.is_asleep)
    assert plane.is_asleep()
    plane.cancel(lease)
    plane.result(lease)
    plane.until(plane.is_asleep)
    assert plane.is_asleep()


# ---------------------------------------------------------------- waits of slot threads end


@pytest.mark.parametrize(
    "max_inputs", [pytest.param(1, marks=slow, id="main thread"), pytest.param(2, id="slot thread")]
)
def test_a_cancel_ends_the_wait_of_a_thread_and_leaves_it_as_good_as_new(plane: FakePlane, max_inputs: int) -> None:
    plane.start(function("wait_for", max_inputs))
    for how in shop.WAITS:
        lease = plane.dispatch(how)
        plane.noted(f"begin {how}")
        plane.cancel(lease)
        assert plane.result(lease).result.status == "terminated", how
        assert plane.call("next") == "next"
        journal = plane.journal()
        assert ("the coroutine too" if how == "coroutine" else f"InputCancellation {how}") in journal
    for line in plane.journal():
        if line.startswith("child "):
            plane.until(lambda line=line: not os.path.exists(f"/proc/{line[6:]}"))


def test_a_cancelled_waiter_takes_no_notification_from_its_siblings(plane: FakePlane) -> None:
    plane.start(function("wait_notified", 4))
    leases = []
    for name in "abc":
        leases.append(plane.dispatch(name))
        plane.noted(f"begin {name}")
    plane.cancel(leases[0])
    assert plane.result(leases[0]).result.status == "terminated"
    plane.call("")
    assert plane.value(leases[1]) == "b"
    assert leases[2] not in plane.finished
    plane.call("")
    assert plane.value(leases[2]) == "c"


def test_threads_that_the_input_started_sleep_on(plane: FakePlane) -> None:
    plane.start(function("sleep_in_a_thread", 2))
    lease = plane.dispatch()
    plane.noted("begin")
    plane.cancel(lease)
    plane.result(lease)
    plane.noted("its thread slept to the end: True")


def test_sleep_is_otherwise_python_s_own(plane: FakePlane) -> None:
    plane.start(function("sleep_facts", 2))
    here, elsewhere, same, name, documented = plane.call()
    assert here == elsewhere
    assert here[:3] == [True, None, ("ValueError", "sleep length must be non-negative")]
    assert (same, name, documented) == (True, "sleep", True)


def test_children_give_what_they_give_elsewhere(plane: FakePlane) -> None:
    plane.start(function("output_of_children", 2))
    assert plane.call() == shop.output_of_children.local()


# ---------------------------------------------------------------- a stop is bounded


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedge.container.deadlines.CANCEL_GRACE_S", 0.15)
    monkeypatch.setattr("kedge.container.deadlines.MAIN_PATIENCE_S", 0.1)


def leave(plane: FakePlane, how: str) -> None:
    if how == "drain":
        plane.drain(cancel=True)
    else:
        os.kill(plane.process, signal.SIGTERM)


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("how", ["drain", pytest.param("SIGTERM", marks=slow)])
@pytest.mark.parametrize(
    ("name", "max_inputs", "is_async"),
    [("hold", 3, False), ("hold_async", 1, True), ("hold_async", 3, True)],
)
def test_code_that_ignores_the_stop_is_left_behind_after_the_exit_hooks(
    plane: FakePlane, how: str, name: str, max_inputs: int, is_async: bool
) -> None:
    plane.start(stubborn(max_inputs, a=method(name, is_async)))
    for letter in "abc"[:max_inputs]:
        plane.dispatch(letter, method=name)
        plane.noted(f"begin {letter}")
    leave(plane, how)
    assert plane.wait_exit() == 0
    assert plane.journal()[-2:] == ["exit async", "exit sync"]
    assert f"of Stubborn.{name}() ha" in plane.errors()
    assert "not ended 0.15 s after the container was told to stop" in plane.errors()
    assert "without its exit hooks" not in plane.errors()
    assert plane.finished == {}


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("how", ["drain", pytest.param("SIGTERM", marks=slow)])
@pytest.mark.parametrize(
    ("name", "max_inputs", "is_async"), [("hold", 1, False), ("block", 1, True), ("block", 3, True)]
)
def test_code_that_holds_the_main_thread_costs_the_exit_hooks(
    plane: FakePlane, how: str, name: str, max_inputs: int, is_async: bool
) -> None:
    plane.start(stubborn(max_inputs, a=method(name, is_async)))
    plane.dispatch("a", method=name)
    plane.noted("begin a")
    leave(plane, how)
    assert plane.wait_exit() == 0
    assert not [line for line in plane.journal() if line.startswith("exit")]
    assert f"1 input of Stubborn.{name}() has not ended" in plane.errors()
    assert "without its exit hooks" in plane.errors()


@pytest.mark.parametrize("max_inputs", [1, 3])
def test_code_that_tidies_up_in_time_is_waited_for(
    plane: FakePlane, max_inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kedge.container.deadlines.CANCEL_GRACE_S", 60)
    plane.start(stubborn(max_inputs, a=method("tidy")))
    plane.dispatch("a", method="tidy")
    plane.noted("begin a")
    plane.drain(cancel=True)
    plane.noted("tidying a")
    plane.allow("a")
    assert plane.wait_exit() == 0
    assert plane.journal() == ["begin a", "tidying a", "tidy a", "exit async", "exit sync"]
    assert "told to stop" not in plane.errors()


@slow
@pytest.mark.usefixtures("short_grace")
def test_a_drain_that_waits_has_all_the_time(plane: FakePlane) -> None:
    plane.start(function("first_then_fast", 2))
    lease = plane.dispatch("long")
    plane.noted("begin long")
    plane.drain()
    for _ in range(4):
        plane.poll(0.2)
    plane.allow("long")
    assert plane.value(lease) == "long"
    assert plane.wait_exit() == 0


@pytest.mark.parametrize("is_async", [False, True])
def test_a_drain_may_turn_into_a_stop(plane: FakePlane, is_async: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedge.container.deadlines.CANCEL_GRACE_S", 0.15)
    name = "hold_async" if is_async else "hold"
    plane.start(stubborn(2, a=method(name, is_async)))
    plane.dispatch("a", method=name)
    plane.noted("begin a")
    plane.drain()
    plane.drain(cancel=True)
    assert plane.wait_exit() == 0
    assert plane.journal()[-1] == "exit sync"
