"""What one input's cancellation or timeout means inside of a container, for its own code and for its siblings."""

from __future__ import annotations

import sys
import time

import pytest

import kedge
from kedge.exception import RemoteError
from kedge.model.protocol import InputsDispatched, InputsOverran
from kedge.model.spec import FunctionSpec
from kedge.sdk.serializer import to_exception
from tests.container.fake_plane import FakePlane, function, service_class

pytestmark = pytest.mark.slow  # seconds of waiting on purpose

slow = pytest.mark.slow
THREADS = [pytest.param(1, id="main thread"), pytest.param(2, id="slot thread")]


def protected(name: str, max_inputs: int = 1, **more: object) -> FunctionSpec:
    return function(name, max_inputs, module="protected", **more)  # type: ignore[arg-type]


def journal_of(plane: FakePlane, name: str, *, stream: bool = False, reason: str = "cancelled") -> list[str]:
    """What an input notes of itself that is cancelled once it has begun, and is reported as that."""
    lease = plane.dispatch(name, stream=stream)
    plane.noted(f"begin {name}")
    plane.cancel(lease, reason=reason)
    assert plane.result(lease).result.status == ("terminated" if reason == "cancelled" else reason)
    journal = plane.journal()
    return [line.replace(name, "it") for line in journal[journal.index(f"begin {name}") + 1 :]]


# ---------------------------------------------------------------- shield


@pytest.mark.parametrize("max_inputs", THREADS)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hold", ["kept it although cancelled", "InputCancellation it in the context of nothing"]),
        ("hold_nested", ["kept it although told", "InputCancellation it in the context of nothing"]),
        ("hold_and_fail", ["InputCancellation it in the context of ValueError"]),
        (
            "hold_twice",
            ["kept it although cancelled", "InputCancellation it in the context of nothing", "it has cleaned up"],
        ),
        ("hold_in_a_coroutine", ["kept it although cancelled", "InputCancellation it in the context of nothing"]),
    ],
)
def test_a_shield_holds_an_interruption_back_to_its_end(
    plane: FakePlane, max_inputs: int, name: str, expected: list[str]
) -> None:
    plane.start(protected("tell", max_inputs))
    assert journal_of(plane, name) == expected
    plane.drain()
    assert plane.wait_exit() == 0


@pytest.mark.parametrize("max_inputs", THREADS)
def test_a_shield_does_not_outlive_its_input(plane: FakePlane, max_inputs: int) -> None:
    plane.start(protected("tell", max_inputs))
    for name in ("hold_and_fail", "hold_in_a_coroutine", "hold_nested"):
        assert journal_of(plane, name)[-1].startswith("InputCancellation it in the context of ")


@pytest.mark.parametrize("max_inputs", THREADS)
def test_a_shield_holds_a_timeout_back(plane: FakePlane, max_inputs: int) -> None:
    plane.start(protected("tell", max_inputs, timeout=0.2))
    result = plane.result(plane.dispatch("hold")).result
    assert result.status == "timeout"
    assert plane.journal() == [
        "begin hold",
        "kept hold although timeout",
        "InputTimeout hold in the context of nothing",
    ]


def test_what_was_sent_before_the_shield_is_raised_before_it(plane: FakePlane) -> None:
    plane.start(protected("tell", 2))
    assert journal_of(plane, "hold_later") == ["InputCancellation it in the context of nothing"]


@pytest.mark.parametrize("max_inputs", THREADS)
def test_a_shield_in_another_thread_is_no_shield_of_the_input(plane: FakePlane, max_inputs: int) -> None:
    plane.start(protected("tell", max_inputs))
    assert journal_of(plane, "hold_elsewhere") == ["InputCancellation it in the context of nothing"]
    plane.noted("its thread was not interrupted")


@pytest.mark.parametrize("max_inputs", THREADS)
@pytest.mark.parametrize("name", ["hold_a_generator", "hold_a_full_stream"])
def test_a_shield_around_a_yield_lets_the_generator_go_on(plane: FakePlane, max_inputs: int, name: str) -> None:
    plane.start(protected("tell_values", max_inputs, stream=True))
    assert journal_of(plane, name, stream=True) == ["kept it although told"]


@pytest.mark.parametrize("max_inputs", [1, 3])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hold_async", ["kept it although cancelled", "CancelledError it in the context of nothing"]),
        ("hold_plain", ["kept it although cancelled", "left it", "CancelledError it in the context of nothing"]),
        ("hold_nested_async", ["kept it although told", "CancelledError it in the context of nothing"]),
        ("hold_and_fail_async", ["CancelledError it in the context of ValueError"]),
        ("hold_a_task", ["kept it although told", "CancelledError it in the context of nothing"]),
        ("hold_in_an_executor", ["its thread was not interrupted", "CancelledError it in the context of nothing"]),
    ],
)
def test_a_shield_holds_the_cancellation_of_tasks_back(
    plane: FakePlane, max_inputs: int, name: str, expected: list[str]
) -> None:
    plane.start(protected("tell_async", max_inputs, is_async=True))
    assert journal_of(plane, name) == expected
    plane.drain()
    assert plane.wait_exit() == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hold_a_generator_async", ["kept it although told"]),
        ("hold_a_full_stream_async", ["kept it although told", "it has cleaned up"]),
    ],
)
def test_a_shield_around_a_yield_lets_the_asynchronous_generator_go_on(
    plane: FakePlane, name: str, expected: list[str]
) -> None:
    plane.start(protected("tell_values_async", 2, is_async=True, stream=True))
    assert journal_of(plane, name, stream=True) == expected


@pytest.mark.parametrize("max_inputs", [1, 3])
def test_no_interruption_lands_in_a_shielded_block(plane: FakePlane, max_inputs: int) -> None:
    plane.start(protected("hammer", max_inputs))
    for number in range(40):
        assert journal_of(plane, f"n{number}") == ["it was left alone inside"]


def test_a_shield_elsewhere_does_nothing_and_each_block_has_its_own(plane: FakePlane) -> None:
    with kedge.shield(), kedge.shield():
        pass
    plane.start(protected("facts_of_shields"))
    assert plane.call() == (
        "this kedge.shield() protects a block already; write `with kedge.shield():` anew for each block"
    )


# ---------------------------------------------------------------- sockets


@pytest.mark.parametrize("max_inputs", THREADS)
def test_a_wait_for_a_socket_can_be_ended(plane: FakePlane, max_inputs: int) -> None:
    """On the main thread by a signal; in the thread of a slot where the function asks for it."""
    plane.start(protected("wait_for_a_socket", max_inputs, interrupt_sockets=max_inputs > 1))
    for how in plane.call("names"):
        (line,) = (line for line in journal_of(plane, how) if line != "receives")
        assert line.startswith("InputCancellation it"), how


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
def test_without_being_asked_for_sockets_are_left_alone(plane: FakePlane) -> None:
    plane.start(protected("wait_for_a_socket", 2))
    lease = plane.dispatch("recv")
    plane.noted("receives")
    plane.until(plane.is_asleep)
    plane.cancel(lease)
    plane.until(plane.is_asleep)
    assert lease not in plane.finished


def test_sockets_that_nobody_interrupts_are_as_ever(plane: FakePlane) -> None:
    plane.start(protected("facts_of_sockets", 2, interrupt_sockets=True))
    assert plane.call() == [
        b"hello",
        "timed out",
        "timed out",
        "BlockingIOError",
        b"",
        "ConnectionRefusedError",
        b"secret",
    ]


# ---------------------------------------------------------------- code that does not end in time


@pytest.mark.parametrize("max_inputs", [1, 3])
@pytest.mark.parametrize("is_async", [False, True])
def test_an_input_that_goes_on_after_its_time_is_reported_once(
    plane: FakePlane, max_inputs: int, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kedge.container.deadlines.REPORT_S", 0.1)
    name = "linger_async" if is_async else "linger"
    plane.start(protected(name, max_inputs, is_async=is_async, timeout=0.1))
    assert plane.result(plane.dispatch("short")).result.status == "timeout"
    leases = []
    for letter in "abc"[:max_inputs]:
        leases.append(plane.dispatch(letter))
        plane.noted(f"lingers {letter}")
    plane.until(lambda: sorted(lease for told in plane.of(InputsOverran) for lease in told.leases) == leases)
    assert not set(leases) & set(plane.finished)
    for letter in "abc"[:max_inputs]:
        plane.allow(letter)
    assert {plane.result(lease).result.status for lease in leases} == {"timeout"}
    assert sorted(lease for told in plane.of(InputsOverran) for lease in told.leases) == leases


def test_a_cancelled_input_that_goes_on_is_no_news(plane: FakePlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller knows already."""
    monkeypatch.setattr("kedge.container.deadlines.REPORT_S", 0.0)
    plane.start(protected("linger", 2, timeout=0.5))
    lease = plane.dispatch("a")
    plane.noted("begin a")
    plane.cancel(lease)
    plane.noted("lingers a")
    late = plane.dispatch("b")
    plane.until(lambda: plane.of(InputsOverran))
    assert [told.leases for told in plane.of(InputsOverran)] == [[late]]
    plane.allow("a")
    plane.allow("b")
    assert plane.result(lease).result.status == "terminated"


# ---------------------------------------------------------------- a blocked loop


def blocks(plane: FakePlane) -> int:
    return sum(beat.loop_blocks for beat in plane.beats())


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedge.container.watchdog.BLOCKED_S", 0.15)
    monkeypatch.setattr("kedge.container.watchdog.PING_S", 0.02)
    monkeypatch.setattr("kedge.container.watchdog.REPORT_EVERY_S", 0.0)


@pytest.mark.usefixtures("watchful")
@pytest.mark.parametrize("name", ["here", "a task"])
def test_a_blocked_loop_is_reported_with_the_line_that_blocks_it(plane: FakePlane, name: str) -> None:
    plane.start(protected("block_in", 2, is_async=True))
    dispatch = plane.input(name)
    plane.send(InputsDispatched([dispatch]))
    plane.noted(f"begin {name}")
    sibling = plane.dispatch("nothing")
    plane.until(lambda: blocks(plane) == 1)
    assert sibling not in plane.finished
    plane.until(lambda: "in is_allowed" in plane.errors() or "in allowed" in plane.errors())
    first, *stack = plane.errors().splitlines()
    assert first.startswith("kedge: the event loop has been blocked for 0.")
    assert f"s by block_in() (input in-{dispatch.call[3:]}-{dispatch.index}): every other input of this" in first
    assert first.endswith(
        "Use `await asyncio.to_thread(...)` for the call that blocks, or make the function a plain def"
    )
    assert "protected.py" in stack[0]
    assert "    allowed(name)" in stack
    assert not [line for line in stack if "kedge/container" in line or "/asyncio/" in line]
    plane.allow(name)
    plane.value(dispatch.lease)
    plane.value(sibling)


@pytest.mark.usefixtures("watchful")
def test_a_place_that_blocks_again_is_counted_and_not_reported_again(plane: FakePlane) -> None:
    plane.start(protected("block_in", 2, is_async=True))
    for number, name in enumerate("abc", 1):
        lease = plane.dispatch(name)
        plane.until(lambda number=number: blocks(plane) == number)
        plane.allow(name)
        plane.value(lease)
    assert max(beat.loop_lag_s for beat in plane.beats()) >= 0.15
    assert plane.errors().count("the event loop has been blocked") <= 2, "the line may be another one"


@pytest.mark.usefixtures("watchful")
def test_with_one_slot_nobody_waits_for_a_blocked_loop(plane: FakePlane) -> None:
    plane.start(protected("block_in", 1, is_async=True))
    lease = plane.dispatch("a")
    plane.until(lambda: blocks(plane) == 1)
    plane.allow("a")
    plane.value(lease)
    assert plane.errors() == ""


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
def test_a_loop_that_waits_is_looked_at_a_few_times_a_second(plane: FakePlane) -> None:
    plane.start(function("nap_async", 3, is_async=True))
    plane.dispatch("a", 60)
    plane.noted("begin a")
    before, began = plane.switches(), time.monotonic()
    while time.monotonic() - began < 0.5:
        plane.poll(0.1)
    assert plane.switches() - before < 100


# ---------------------------------------------------------------- code that gets in the way of its interruption


@pytest.mark.parametrize("max_inputs", THREADS)
def test_an_interruption_that_a_finalizer_drops_is_sent_again(plane: FakePlane, max_inputs: int) -> None:
    plane.start(protected("finalize", max_inputs))
    for name in ("first", "second"):
        assert journal_of(plane, name) == ["it went on", "InputCancellation it in the context of nothing"]
    assert plane.errors() == "the last words of first\nthe last words of second\n"


@pytest.mark.parametrize(("name", "max_inputs"), [("fail_on_cancel", 1), ("fail_on_cancel", 2)])
def test_what_code_raises_when_it_is_cancelled_changes_nothing(plane: FakePlane, name: str, max_inputs: int) -> None:
    plane.start(protected(name, max_inputs))
    assert journal_of(plane, "a") == []
    assert journal_of(plane, "b") == []


@pytest.mark.parametrize("name", ["fail_on_cancel_async", "shrug"])
def test_what_tasks_make_of_their_cancellation_changes_nothing(plane: FakePlane, name: str) -> None:
    plane.start(protected(name, 2, is_async=True))
    assert journal_of(plane, "a") == []
    assert journal_of(plane, "b", reason="timeout") == []


@pytest.mark.parametrize("is_async", [False, True])
def test_who_raises_a_cancellation_himself_has_failed(plane: FakePlane, is_async: bool) -> None:
    plane.start(protected("raise_by_itself_async" if is_async else "raise_by_itself", 2, is_async=is_async))
    for what in ("CancelledError", "InputCancellation", "InputTimeout", *(["another task"] if is_async else [])):
        result = plane.result(plane.dispatch(what)).result
        assert result.status == "failure"
        error = to_exception(result.error, result.status)
        assert type(error) is RemoteError
        assert "which nobody had asked for: the input was not cancelled" in str(error)
        assert "protected.py" in str(error)


@pytest.mark.parametrize("max_inputs", THREADS)
@pytest.mark.parametrize("is_async", [False, True])
def test_what_an_input_held_is_let_go_when_it_ends_and_still_belongs_to_it(
    plane: FakePlane, max_inputs: int, is_async: bool
) -> None:
    plane.start(protected("hold_something_async" if is_async else "hold_something", max_inputs, is_async=is_async))
    for how in ("wait", "fail"):
        dispatch = plane.input(how)
        plane.send(InputsDispatched([dispatch]))
        plane.noted(f"begin {how}")
        if how == "wait":
            plane.cancel(dispatch.lease)
        plane.result(dispatch.lease)
        plane.noted(f"gone with in-{dispatch.call[3:]}-{dispatch.index}")


@pytest.mark.parametrize("max_inputs", THREADS)
def test_an_interruption_is_not_raised_in_a_thread_that_is_just_being_started(
    plane: FakePlane, max_inputs: int
) -> None:
    plane.start(protected("start_threads", max_inputs))
    for number in range(4):
        (line,) = journal_of(plane, f"n{number}")
        assert line.startswith("InputCancellation it")
    assert plane.errors() == ""


def test_a_class_of_both_kinds_is_cancelled_one_by_one(plane: FakePlane) -> None:
    plane.start(service_class("Mixed", 6, {"sync": False, "coro": True}, module="protected"))
    leases = {}
    for name in ("sync 1", "sync 2", "sync 3", "coro 1", "coro 2", "coro 3"):
        leases[name] = plane.dispatch(name, method=name[:4])
        plane.noted(f"begin {name}")
    for name in ("sync 2", "coro 2"):
        plane.cancel(leases[name])
        assert plane.result(leases[name]).result.status == "terminated"
    told = ["InputCancellation sync 2", "CancelledError coro 2"]
    assert plane.journal()[6:] == told
    for name in ("sync 1", "sync 3", "coro 1", "coro 3"):
        plane.allow(name)
        assert plane.value(leases[name]) == name
    assert plane.journal()[6:] == told


# ---------------------------------------------------------------- the input, for its own code


@pytest.mark.parametrize("is_async", [False, True])
def test_code_knows_its_input(plane: FakePlane, is_async: bool) -> None:
    assert kedge.current_input() is None
    plane.start(protected("facts_of_the_input_async" if is_async else "facts_of_the_input", 2, is_async=is_async))
    dispatch = plane.input()
    plane.send(InputsDispatched([dispatch]))
    facts = plane.value(dispatch.lease)
    remaining = facts.pop("remaining")
    assert 200 < remaining <= 300
    own = f"in-{dispatch.call[3:]}-{dispatch.index}"
    assert facts == {
        "id": own,
        "call_id": dispatch.call,
        "index": dispatch.index,
        "attempt": 0,
        "method": "",
        "ids": (own,),
        "cancelled": "",
        "same": True,
    }


@pytest.mark.parametrize(("reason", "known"), [("cancelled", "cancelled"), ("timeout", "timeout")])
def test_a_thread_that_nothing_interrupts_can_ask(plane: FakePlane, reason: str, known: str) -> None:
    plane.start(protected("work_in_a_thread", 2))
    assert journal_of(plane, "asking", reason=reason) == [f"its thread knows: {known}"]
