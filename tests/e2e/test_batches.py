"""Batches end to end: single values from callers, lists for the code, single results for callers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kedge
from kedge.exception import FunctionTimeoutError, InvalidError, RemoteError, SerializationError
from tests.e2e import batch_functions as functions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def running_batches(kedge_home: Path) -> Iterator[None]:
    with functions.app.run():
        yield


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def says(path: Path, text: str) -> Callable[[], bool]:
    return lambda: path.exists() and path.read_text() == text


async def gather(function: Any, *values: Any) -> list[Any]:
    return await asyncio.gather(*(function.remote.aio(value) for value in values), return_exceptions=True)


# ---------------------------------------------------------------- full, and not full


def test_a_map_runs_in_full_batches() -> None:
    assert list(functions.eights.map(range(64))) == [(x * x, 8) for x in range(64)]


def test_callers_that_know_nothing_of_each_other_share_a_batch() -> None:
    assert asyncio.run(gather(functions.eights, *range(8))) == [(x * x, 8) for x in range(8)]


def test_what_does_not_fill_a_batch_goes_when_its_time_has_come() -> None:
    results = list(functions.fours.starmap([(x, 1) for x in range(10)]))
    assert [value for value, _ in results] == list(range(1, 11))
    assert all(1 <= size <= 4 for _, size in results)
    assert functions.fours.remote(1, 2) == (3, 1)
    assert functions.fours.remote(ys=1, xs=2) == (3, 1)


def test_a_variant_with_other_batches() -> None:
    pairs = functions.eights.with_batching(max_batch_size=2, wait_ms=functions.LONG_MS)
    assert list(pairs.map(range(6))) == [(x * x, 2) for x in range(6)]


def test_local_calls_take_lists() -> None:
    assert functions.eights.local([1, 2, 3]) == [(1, 3), (4, 3), (9, 3)]


def test_a_method_takes_batches() -> None:
    served = list(functions.Kitchen(dish="stew").cook.map(["Ada", "Bob", "Cy", "Di"]))
    assert [dish for dish, _ in served] == [f"stew for {guest}" for guest in ("Ada", "Bob", "Cy", "Di")]
    assert sorted(count for _, count in served) == [1, 1, 2, 2]


def test_user_code_knows_the_ids_of_all_members() -> None:
    calls = [functions.who.spawn(name) for name in ("a", "b", "c")]
    seen = [call.get(timeout=60) for call in calls]
    assert len(set(seen)) == 1
    first, ids, _ = seen[0]
    assert ids[0] == first
    assert sorted(ids) == sorted(f"in-{call.object_id[3:]}-0" for call in calls)


@pytest.mark.parametrize("name", ["meet", "meet_async"])
def test_a_slot_is_a_batch(name: str) -> None:
    results = list(getattr(functions, name).map(range(6)))
    assert {(peak, size) for peak, size, _ in results} == {(3, 2)}
    assert len({process for _, _, process in results}) == 1


# ---------------------------------------------------------------- failures


def test_an_exception_goes_to_every_caller() -> None:
    errors = asyncio.run(gather(functions.wrong, "raise", "raise", "raise"))
    assert [(type(error), str(error)) for error in errors] == [(ValueError, "the oven is cold")] * 3


def test_a_result_that_is_no_list_of_the_right_length_says_what_it_was() -> None:
    for kind, described in {"short": "a list of 1 item", "dict": "a dict of 1 item"}.items():
        for error in asyncio.run(gather(functions.wrong, kind, kind, kind)):
            assert isinstance(error, InvalidError)
            assert f"wrong() returned {described} for a batch of 3 inputs; a @kedge.batched function" in str(error)


def test_one_result_that_cannot_be_sent_is_one_failure() -> None:
    fine, broken, other = functions.wrong.map(["locks", "lock", "fine"], return_exceptions=True)
    assert (fine, other) == ("locks", "fine")
    assert isinstance(broken, SerializationError)


def test_one_input_that_does_not_fit_is_one_failure() -> None:
    async def call() -> list[Any]:
        calls = (functions.fours.remote.aio(1, 2), functions.fours.remote.aio(1), functions.fours.remote.aio(5, ys=6))
        return await asyncio.gather(*calls, return_exceptions=True)

    fine, broken, other = asyncio.run(call())
    assert (fine[0], other[0]) == (3, 11)
    assert isinstance(broken, InvalidError)
    assert "missing a required argument: 'ys'" in str(broken)


def test_members_of_a_failed_batch_are_tried_again(tmp_path: Path) -> None:
    assert list(functions.fail_once.map([str(tmp_path / "count")] * 3)) == [3, 3, 3]


def test_members_of_a_batch_that_lost_its_container_run_again_one_by_one(tmp_path: Path) -> None:
    assert list(functions.die_once.map([str(tmp_path / "died")] * 3)) == [1, 1, 1]


def test_the_time_of_a_batch_is_over_for_everybody() -> None:
    for error in asyncio.run(gather(functions.oversleep, 0.0, 60.0)):
        assert isinstance(error, FunctionTimeoutError)
        assert "the input ran longer than timeout=1 s of oversleep()" in str(error)
    assert asyncio.run(gather(functions.oversleep, 0.0, 0.01)) == [0.0, 0.01]


# ---------------------------------------------------------------- cancelling


def hold_three(directory: Path) -> list[kedge.FunctionCall[str]]:
    calls = [functions.hold.spawn(str(directory / name)) for name in ("a", "b", "c")]
    wait_until(says(directory / "ended", "started"))
    return calls


def test_one_cancelled_member_loses_its_result_and_the_others_see_nothing(tmp_path: Path) -> None:
    calls = hold_three(tmp_path)
    calls[1].cancel()
    with pytest.raises(RemoteError, match="cancel"):
        calls[1].get(timeout=10)
    (tmp_path / "go").touch()
    assert [calls[0].get(timeout=30), calls[2].get(timeout=30)] == ["a", "c"]
    assert (tmp_path / "ended").read_text() == "started"


def test_the_code_is_interrupted_when_everybody_has_gone(tmp_path: Path) -> None:
    calls = hold_three(tmp_path)
    for call in calls:
        call.cancel()
    wait_until(says(tmp_path / "ended", "InputCancellation"))
    for call in calls:
        with pytest.raises(RemoteError, match="cancel"):
            call.get(timeout=10)


def test_an_input_that_is_cancelled_while_its_batch_fills_leaves_its_place(tmp_path: Path) -> None:
    gone = functions.hold.spawn(str(tmp_path / "gone"))
    gone.cancel()
    with pytest.raises(RemoteError, match="cancel"):
        gone.get(timeout=10)
    calls = hold_three(tmp_path)
    (tmp_path / "go").touch()
    assert [call.get(timeout=30) for call in calls] == ["a", "b", "c"]
