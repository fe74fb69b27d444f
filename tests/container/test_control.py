"""How many inputs a container takes, changed while it runs: by its own code, by the plane, and both."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from kedge.model.protocol import (
    ConcurrencyChanged,
    ContainerDrained,
    ContainerLeaving,
    InputsDispatched,
    InputsFinished,
    InputsReturned,
    SlotsChanged,
)
from kedge.model.spec import Concurrency, FunctionSpec, MethodSpec
from tests.container.fake_plane import FakePlane, function

slow = pytest.mark.slow

BOTH = [pytest.param("", False, id="threads"), pytest.param("_async", True, id="tasks")]


def lever(name: str, max_inputs: int = 1, is_async: bool = False, **more: Any) -> FunctionSpec:
    return function(name, max_inputs, is_async=is_async, module="levers", **more)


def hooked(max_inputs: int) -> FunctionSpec:
    methods = (MethodSpec(name="hold"), MethodSpec(name="hold_async", is_async=True))
    return lever("Hooked", max_inputs, is_class=True, methods=methods)


def hold_many(plane: FakePlane, names: str, **more: Any) -> list[int]:
    """Dispatches an input for each letter, and waits until all have begun."""
    leases = [plane.dispatch(name, **more) for name in names]
    plane.noted(*(f"begin {name}" for name in names))
    return leases


def change(plane: FakePlane, max_inputs: int) -> None:
    plane.send(ConcurrencyChanged(Concurrency(max_inputs, max_inputs, True)))


def begun(plane: FakePlane) -> list[str]:
    return [line[6:] for line in plane.journal() if line.startswith("begin ")]


def has_read(plane: FakePlane, method: str = "") -> None:
    """Waits until a full container has taken in all that was sent: it answers for an input that never starts."""
    lease = plane.dispatch("never", method=method)
    plane.cancel(lease)
    assert plane.result(lease).result.status == "terminated"


# ---------------------------------------------------------------- by its own code


@pytest.mark.parametrize(("form", "is_async"), BOTH)
def test_lowering_interrupts_nothing_and_starts_nothing_until_enough_have_ended(
    plane: FakePlane, form: str, is_async: bool
) -> None:
    plane.start(lever(f"set_and_hold{form}", 4, is_async))
    first = [plane.dispatch(0, name) for name in "abc"]
    plane.noted("begin a", "begin b", "begin c")
    lowering = plane.dispatch(2, "d")
    plane.noted("begin d")
    assert plane.wait_for(SlotsChanged) == SlotsChanged(2)
    late = [plane.dispatch(0, name) for name in "ef"]  # the plane had not heard of it
    plane.until(lambda: plane.returned == late)
    for name in "abc":
        plane.allow(name)
    assert [plane.value(lease)[:2] for lease in first] == [(4, 4)] * 3
    again = plane.dispatch(0, "g")
    plane.noted("begin g")
    for name in "dg":
        plane.allow(name)
    assert plane.value(lowering) == (4, 2, 4)
    assert plane.value(again)[:2] == (2, 2)
    assert sorted(begun(plane)) == list("abcdg")


@pytest.mark.parametrize(("form", "is_async"), BOTH)
def test_what_was_lowered_can_be_raised_again(plane: FakePlane, form: str, is_async: bool) -> None:
    plane.start(lever(f"set_and_hold{form}", 3, is_async))
    plane.allow("a")
    assert plane.call(1, "a") == (3, 1, 1)
    raising = plane.dispatch(9, "b")
    plane.noted("begin b")
    more = [plane.dispatch(0, name) for name in "cde"]
    plane.noted("begin c", "begin d")
    plane.until(lambda: plane.of(SlotsChanged)[-1] == SlotsChanged(3))
    has_read(plane)
    assert "e" not in begun(plane), "never more than max_inputs"
    for name in "bcde":
        plane.allow(name)
    assert plane.value(raising)[:2] == (1, 3)
    assert [plane.value(lease)[:2] for lease in more] == [(3, 3)] * 3


def test_credited_inputs_go_back_when_fewer_are_taken(plane: FakePlane) -> None:
    plane.start(lever("set_when_allowed", 2))
    first, lowering = plane.dispatch(0, "a"), plane.dispatch(1, "b")
    credited = [plane.input(0, name, credited=True) for name in "cd"]
    plane.send(InputsDispatched(credited))
    has_read(plane)
    plane.allow("b")
    plane.until(lambda: plane.returned == [dispatch.lease for dispatch in credited])
    assert plane.wait_for(SlotsChanged) == SlotsChanged(1)
    for name in ("a", "b again"):
        plane.allow(name)
    assert (plane.value(first), plane.value(lowering)) == (1, 1)
    assert sorted(begun(plane)) == ["a", "b"]


def test_any_thread_may_change_it(plane: FakePlane) -> None:
    plane.start(lever("set_elsewhere", 5))
    assert plane.call(3) == 3
    assert plane.wait_for(SlotsChanged) == SlotsChanged(3)


def test_the_plane_hears_of_it_before_it_hears_of_the_input_s_end(plane: FakePlane) -> None:
    plane.start(lever("set_elsewhere", 5))
    for number in (4, 3, 2):
        assert plane.call(number) == number
    told = [m for m in plane.messages if isinstance(m, SlotsChanged | InputsFinished)]
    assert [type(m) for m in told] == [SlotsChanged, InputsFinished] * 3


def test_while_the_container_starts_it_cannot_be_asked_and_in_exit_hooks_it_can(plane: FakePlane) -> None:
    plane.start(hooked(3))
    text = "kedge.experimental.set_local_input_concurrency can be called once the container takes inputs, not while it"
    assert plane.journal() == [f"{text} starts"]
    plane.drain()
    assert plane.wait_exit() == 0
    assert plane.journal()[1:] == ["left with 3"]
    assert not plane.of(ContainerLeaving)


def test_a_child_that_user_code_forked_is_not_the_container(plane: FakePlane) -> None:
    plane.start(lever("ask_in_a_child", 2))
    assert plane.call() == 2
    (text,) = plane.journal()
    assert text == "kedge.experimental can be asked by the container itself, not by a child it forked"
    assert not plane.of(ContainerLeaving)


@pytest.mark.parametrize("max_inputs", [1, 3])
def test_an_interruption_in_the_middle_of_asking_breaks_nothing(plane: FakePlane, max_inputs: int) -> None:
    plane.start(lever("pester", max_inputs))
    for number in range(8):
        lease = plane.dispatch(number)
        plane.noted(f"begin {number}")
        plane.cancel(lease)
        assert plane.result(lease).result.status == "terminated"
        assert plane.journal()[-2:] == [f"begin {number}", f"end {number}"]
    plane.drain()
    assert plane.wait_exit() == 0


# ---------------------------------------------------------------- it wants to leave


@pytest.mark.parametrize(("form", "is_async"), BOTH)
@pytest.mark.parametrize("max_inputs", [1, 2])
def test_after_stop_fetching_inputs_what_was_granted_runs_and_nothing_else(
    plane: FakePlane, form: str, is_async: bool, max_inputs: int
) -> None:
    plane.start(lever(f"stop_and_hold{form}", max_inputs, is_async))
    first = [plane.dispatch(name) for name in "ab"[:max_inputs]]
    plane.send(InputsDispatched([plane.input("credited", credited=True)]))
    plane.noted("begin a")
    granted = plane.dispatch("c")  # was under way
    plane.send(InputsDispatched([plane.input("credited later", credited=True)]))
    plane.until(lambda: len(plane.returned) == 2)
    for name in "abc":
        plane.allow(name)
    assert [plane.value(lease) for lease in first] == list("ab"[:max_inputs])
    assert plane.value(granted) == "c"
    assert set(begun(plane)) == {*"ab"[:max_inputs], "c"}
    assert plane.of(ContainerLeaving) == [ContainerLeaving("stop_fetching_inputs")], "said once"
    order = [type(m) for m in plane.messages if isinstance(m, ContainerLeaving | InputsReturned | InputsFinished)]
    assert order[0] is ContainerLeaving
    plane.send(ContainerDrained("stop_fetching_inputs"))
    assert plane.wait_exit() == 0


# ---------------------------------------------------------------- by the plane


@pytest.mark.parametrize(
    ("spec", "methods"),
    [
        pytest.param(lever("hold"), [""], id="main thread"),
        pytest.param(hooked(1), ["hold"], id="loop, sync"),
        pytest.param(hooked(1), ["hold", "hold_async"], id="loop, mixed"),
        pytest.param(lever("hold_async", is_async=True), [""], id="tasks"),
        pytest.param(lever("hold", 2), [""], id="slot threads"),
    ],
)
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_more_slots_are_used_at_once(plane: FakePlane, spec: FunctionSpec, methods: list[str], busy: bool) -> None:
    """Whoever reads the socket and whatever runs meanwhile."""
    plane.start(spec)
    was = spec.concurrency.max_inputs
    early = [plane.dispatch(name, method=methods[0]) for name in "xy"[:was]] if busy else []
    plane.noted(*(f"begin {name}" for name in "xy"[: len(early)]))
    change(plane, 5)
    free = "abcde"[: 5 - len(early)]
    leases = [plane.dispatch(name, method=methods[number % len(methods)]) for number, name in enumerate(free)]
    if len(methods) > 1:  # the loop is free again when sync code has left the main thread
        plane.allow("x")
    plane.noted(*(f"begin {name}" for name in free))
    for name in f"xy{free}z":
        plane.allow(name)
    is_async = {method.name: method.is_async for method in spec.methods}
    ran_on_main = [plane.value(lease)[0] for lease in leases]
    expected = [is_async[methods[number % len(methods)]] for number in range(len(free))]
    assert ran_on_main == expected, "sync code runs on threads now"
    assert [plane.value(lease)[0] for lease in early] == [was == 1 or is_async[methods[0]]] * len(early)
    assert plane.call("z", method=methods[0]) == (is_async[methods[0]], 1)
    plane.drain()
    assert plane.wait_exit() == 0


@pytest.mark.parametrize("spec", [lever("hold"), hooked(1), lever("hold", 2)], ids=["main", "loop", "threads"])
def test_raised_and_lowered_again_one_runs_at_a_time(plane: FakePlane, spec: FunctionSpec) -> None:
    method = spec.methods[0].name
    plane.start(spec)
    change(plane, 3)
    three = hold_many(plane, "abc", method=method)
    change(plane, 1)
    later = [plane.dispatch(name, method=method) for name in "de"]
    plane.allow("a")
    plane.allow("b")
    assert [plane.value(lease)[0] for lease in three[:2]] == [False, False]
    has_read(plane, method)
    assert sorted(begun(plane)) == list("abc"), "one still runs"
    for name in "cde":
        plane.allow(name)
    assert [plane.value(lease) for lease in later] == [(False, 1), (False, 1)]
    plane.drain()
    assert plane.wait_exit() == 0


@pytest.mark.parametrize("how", ["drain", "signal", "lost"])
@pytest.mark.parametrize("spec", [lever("hold"), hooked(1)], ids=["main", "loop"])
def test_a_container_that_took_to_threads_ends_as_ever(plane: FakePlane, spec: FunctionSpec, how: str) -> None:
    plane.start(spec)
    change(plane, 2)
    leases = hold_many(plane, "ab", method=spec.methods[0].name)
    if how == "drain":
        plane.drain()
        plane.allow("a")
        plane.allow("b")
        assert sorted(plane.value(lease) for lease in leases) == [(False, 1), (False, 2)]
        assert plane.wait_exit() == 0
    elif how == "signal":
        os.kill(plane.process, signal.SIGTERM)
        assert plane.wait_exit() == 0
    else:
        plane.connection.close()
        done, status = os.waitpid(plane.process, 0)
        plane.code = os.waitstatus_to_exitcode(status)
        assert done == plane.process


@pytest.mark.parametrize("spec", [lever("hold"), hooked(1)], ids=["main", "loop"])
def test_inputs_on_threads_are_cancelled_one_by_one(plane: FakePlane, spec: FunctionSpec) -> None:
    plane.start(spec)
    method = spec.methods[0].name
    main = plane.dispatch("m", method=method)
    plane.noted("begin m")
    change(plane, 4)
    a, b, c = hold_many(plane, "abc", method=method)
    plane.cancel(main, b)
    assert plane.result(main).result.status == "terminated"
    assert plane.result(b).result.status == "terminated"
    plane.allow("a")
    plane.allow("c")
    assert (plane.value(a)[0], plane.value(c)[0]) == (False, False)


def test_a_lower_number_of_its_own_stays_in_force(plane: FakePlane) -> None:
    plane.start(lever("set_and_hold", 4))
    plane.allow("now")
    assert plane.call(3, "now") == (4, 3, 1)
    assert plane.wait_for(SlotsChanged) == SlotsChanged(3)
    change(plane, 8)
    plane.until(lambda: len(plane.of(SlotsChanged)) == 2)
    assert plane.of(SlotsChanged)[-1] == SlotsChanged(3), "said again, since the plane may have other ideas"
    assert plane.call(0, "now") == (3, 3, 1)
    change(plane, 2)
    assert plane.call(0, "now") == (2, 2, 1)
    change(plane, 8)
    assert plane.call(0, "now") == (3, 3, 1)
    assert plane.call(8, "now") == (3, 8, 1)


def test_a_number_above_the_maximum_counts_when_the_maximum_is_raised(plane: FakePlane) -> None:
    plane.start(lever("set_and_hold", 2))
    plane.allow("now")
    assert plane.call(5, "now") == (2, 2, 1)
    assert plane.wait_for(SlotsChanged) == SlotsChanged(2)
    change(plane, 9)
    plane.until(lambda: plane.of(SlotsChanged)[-1] == SlotsChanged(5))
    assert plane.call(0, "now") == (5, 5, 1)


# ---------------------------------------------------------------- calls that block the loop


def test_while_a_call_blocks_the_loop_nothing_new_begins_here(plane: FakePlane) -> None:
    """It could not begin, and it may be what the call waits for."""
    plane.start(lever("block_by_call", 4, is_async=True))
    first = plane.dispatch("a")
    plane.noted("blocks a")
    assert plane.wait_for(SlotsChanged) == SlotsChanged(1)
    second = plane.dispatch("b")
    plane.until(lambda: plane.returned == [second])
    plane.allow("a")
    assert plane.value(first) == "a"
    plane.until(lambda: plane.of(SlotsChanged)[-1] == SlotsChanged(4))
    plane.allow("c")
    assert plane.call("c") == "c"
    change(plane, 6)
    plane.allow("d")
    assert plane.call("d") == "d"
    assert plane.of(SlotsChanged)[-1] == SlotsChanged(6), "as many as there may be"


def test_a_call_that_blocks_the_loop_is_told_once_for_each_place(plane: FakePlane) -> None:
    plane.start(lever("block_by_call", 2, is_async=True))
    plane.allow("a")
    for _ in range(3):
        assert plane.call("a") == "a"
    told = [line for line in plane.journal() if line.startswith("AsyncUsageWarning levers.py:")]
    assert len(told) == 1
    assert "harbour.wait(…) blocks the running event loop" in told[0]
    assert "write `await harbour.wait.aio(…)`" in told[0]


def test_a_loop_in_a_thread_of_its_own_holds_nobody_up(plane: FakePlane) -> None:
    plane.start(lever("block_in_loop_of_its_own", 2))
    first = plane.dispatch("a")
    plane.noted("blocks a")
    plane.allow("b")
    assert plane.call("b") == "b"
    plane.allow("a")
    assert plane.value(first) == "a"
    assert not plane.of(SlotsChanged)
