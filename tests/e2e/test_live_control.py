"""Concurrency that changes while inputs run, deadlines of single calls, and queues with an end."""

from __future__ import annotations

import asyncio
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kedge
from kedge.exception import FunctionTimeoutError, InvalidError, QueueTimeoutError, ResourceExhaustedError
from tests.e2e import live_functions as functions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def running_live(kedge_home: Path) -> Iterator[None]:
    with functions.app.run():
        yield


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


class Gate:
    """Inputs that came to it stay until it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    @property
    def begun(self) -> int:
        marker = Path(f"{self.path}.begun")
        return len(marker.read_text().splitlines()) if marker.exists() else 0

    def wait(self, count: int) -> None:
        wait_until(lambda: self.begun >= count)

    def open(self) -> None:
        self.path.touch()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


# ---------------------------------------------------------------- update_concurrency


@pytest.mark.parametrize("function", [functions.one_slot, functions.tasks], ids=["threads", "tasks"])
def test_a_running_container_takes_more_at_once(function: kedge.Function[..., Any], gate: Gate) -> None:
    first = function.spawn(gate.name)
    gate.wait(1)
    more = function.spawn_map([gate.name] * 3)
    function.update_concurrency(max_inputs=4)
    gate.wait(4)
    gate.open()
    results = [first.get(timeout=30), *more.iter()]
    assert sorted(here for here, _ in results) == [1, 2, 3, 4]
    assert len({process for _, process in results}) == 1, "nothing was started anew"
    asyncio.run(function.update_concurrency.aio(max_inputs=1))
    peaks = [here for here, _ in function.map([gate.name] * 5)]
    assert peaks == [1] * 5


def test_a_lower_number_holds_for_what_starts_from_then_on(gate: Gate, tmp_path: Path) -> None:
    running = functions.eight_slots.spawn_map([gate.name] * 8)
    gate.wait(8)
    functions.eight_slots.update_concurrency(max_inputs=2)
    later = Gate(tmp_path / "later")
    later.open()
    waiting = functions.eight_slots.spawn_map([later.name] * 6)
    assert gate.begun == 8
    gate.open()
    assert sorted(here for here, _ in running.iter()) == list(range(1, 9)), "nothing was interrupted"
    assert all(call is not None for call in waiting.iter())
    assert max(here for here, _ in functions.eight_slots.map([later.name] * 12)) <= 2


def test_instances_of_a_class_have_numbers_of_their_own(gate: Gate) -> None:
    desk = functions.Desk(name="two")
    desk.update_concurrency(max_inputs=3)
    calls = desk.serve.spawn_map([gate.name] * 3)
    gate.wait(3)
    gate.open()
    assert len(list(calls.iter())) == 3
    assert [here for here, _ in functions.Desk().serve.map([gate.name] * 3)] == [1, 1, 1]


def test_a_target_above_the_maximum_is_refused_by_the_server() -> None:
    with pytest.raises(InvalidError, match=r"target_inputs=9 is above max_inputs=\d"):
        functions.nap_async.update_concurrency(target_inputs=9)


def test_the_example_of_the_documentation_runs() -> None:
    example = textwrap.dedent(str(kedge.Function.update_concurrency.__doc__).partition("Example:\n")[2])
    assert "update_concurrency" in example
    exec(example, {"f": functions.nap_async})
    functions.nap_async.update_concurrency(max_inputs=4, target_inputs=4)


# ---------------------------------------------------------------- from inside of the container


def test_user_code_lowers_what_its_container_takes() -> None:
    before, after, _ = functions.lower_to.remote(0, 0)
    assert (before, after) == (6, 6)
    assert functions.lower_to.remote(3, 0)[:2] == (6, 3)
    results = list(functions.lower_to.map([0] * 6, [0.2] * 6))
    assert {(before, after) for before, after, _ in results} == {(3, 3)}
    assert max(here for _, _, here in results) == 3


def test_a_container_that_has_had_enough_leaves_after_what_it_was_given() -> None:
    results = list(functions.leave_after.map([2] * 6))
    processes = list(dict.fromkeys(process for process, _ in results))
    assert len(processes) == 3
    assert sorted(number for _, number in results) == [1, 1, 1, 2, 2, 2]


# ---------------------------------------------------------------- deadlines of calls


def test_a_call_with_a_deadline_shares_the_containers_of_its_function(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    sibling = functions.nap.spawn(1.5)
    _, process = functions.nap.remote(0)
    hasty = functions.nap.with_options(timeout=0.3)
    with pytest.raises(FunctionTimeoutError, match=r"the input ran longer than timeout=0\.3 s of this call"):
        hasty.remote(60, str(marker))
    assert marker.read_text().startswith("InputTimeout")
    assert hasty.remote(0) == (0, process), "no container of its own"
    assert sibling.get(timeout=30) == (1.5, process), "and nothing happened to the others"


@pytest.mark.parametrize("function", [functions.nap, functions.nap_async], ids=["threads", "tasks"])
def test_every_form_of_a_call_keeps_to_it(function: kedge.Function[..., Any]) -> None:
    hasty = function.with_options(timeout=0.25)
    served, late = hasty.map([0, 60], return_exceptions=True)
    assert served[0] == 0
    assert isinstance(late, FunctionTimeoutError)
    with pytest.raises(FunctionTimeoutError, match=r"timeout=0\.25 s of this call"):
        hasty.spawn(60).get(timeout=30)
    with pytest.raises(FunctionTimeoutError, match=r"timeout=0\.25 s of this call"):
        asyncio.run(hasty.remote.aio(60))


def test_a_generator_keeps_to_it_too() -> None:
    values = []
    with pytest.raises(FunctionTimeoutError, match=r"timeout=0\.3 s of this call"):
        for value in functions.count_slowly.with_options(timeout=0.3).remote_gen(3):
            values.append(value)  # noqa: PERF402 - what came before the error counts
    assert values == [0, 1, 2]


def test_it_goes_before_the_limit_of_a_method() -> None:
    with pytest.raises(FunctionTimeoutError, match=r"timeout=0\.25 s of this call"):
        functions.Desk.with_options(timeout=0.25)().nap.remote(60)
    with pytest.raises(FunctionTimeoutError, match=r"timeout=0\.2 s of this call"):
        functions.Desk().nap.with_options(timeout=0.2).remote(60)
    assert functions.Desk().nap.remote(0.3) == 0.3


def test_a_call_may_refuse_to_wait(gate: Gate) -> None:
    blocker = functions.Desk(name="busy").serve.spawn(gate.name)
    gate.wait(1)
    with pytest.raises(QueueTimeoutError, match=r"the input waited longer than queue_timeout=0\.2 s"):
        functions.Desk.with_options(queue_timeout=0.2)(name="busy").serve.remote(gate.name)
    gate.open()
    assert blocker.get(timeout=30)[0] == 1


# ---------------------------------------------------------------- queues with an end


def test_an_input_that_waits_too_long_ends_and_one_that_runs_does_not(gate: Gate) -> None:
    calls = [functions.impatient.spawn(gate.name) for _ in range(2)]
    with pytest.raises(QueueTimeoutError, match=r"queue_timeout=0\.5 s"):
        calls[1].get(timeout=30)
    gate.open()
    assert calls[0].get(timeout=30)[0] == 1


def test_one_input_too_many_is_refused_and_told_when_to_come_back(gate: Gate, kedge_home: Path) -> None:
    blockers = [functions.crowded.spawn(gate.name)]
    gate.wait(1)
    blockers += [functions.crowded.spawn(gate.name) for _ in range(5)]
    with pytest.raises(ResourceExhaustedError, match="max_queued_inputs=5") as caught:
        functions.crowded.remote(gate.name, bytes(400_000))
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 0
    refused = functions.crowded.spawn(gate.name)
    with pytest.raises(ResourceExhaustedError, match="max_queued_inputs=5"):
        refused.get(timeout=30)
    gate.open()
    assert [call.get(timeout=30) for call in blockers] == [(1, 0)] * 6
    assert functions.crowded.remote(gate.name) == (1, 0)


def test_a_map_waits_for_room_in_the_queue(gate: Gate) -> None:
    """Also with arguments in files, and where the queue is full of others."""
    blockers = [functions.crowded.spawn(gate.name)]
    gate.wait(1)
    blockers += [functions.crowded.spawn(gate.name) for _ in range(5)]
    large = bytes(300_000)
    results = functions.crowded.map([gate.name] * 40, [large] * 40)
    first = threading.Thread(target=lambda: got.append(next(results)))
    got: list[Any] = []
    first.start()
    gate.open()
    first.join(30)
    assert [*got, *results] == [(1, 300_000)] * 40
    assert [call.get(timeout=30) for call in blockers] == [(1, 0)] * 6
    lazily = functions.crowded.map(gate.name for _ in range(300))
    assert list(lazily) == [(1, 0)] * 300
