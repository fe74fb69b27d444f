"""`.map`: laziness, order, bounds on both sides, failures, and iterators of every kind."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from kedge import exception
from kedge.model import protocol as p
from kedge.model.payload import INLINE_LIMIT
from kedge.sdk import invocation
from kedge.sdk.client import Client
from kedge.sdk.map_window import MAX_INPUTS
from kedge.sdk.target import Target
from tests.sdk.conftest import target
from tests.sdk.fake_plane import FakePlane

SQUARE = target("square")


@pytest.fixture(autouse=True)
def functions(plane: FakePlane, client: Client) -> None:
    def odd(x: int) -> int:
        if x % 2 == 0:
            raise ValueError(f"{x} is even")
        return x

    plane.functions.update(
        square=lambda x: x * x, add=lambda a, b, c=0: a + b + c, odd=odd, nothing=lambda x: None, big=np.ones
    )


def run(*iterators: Any, of: Target = SQUARE, **options: Any) -> Any:
    return invocation.map(of, iterators, options.pop("kwargs", {}), **options)


def run_async(*iterators: Any, of: Target = SQUARE, **options: Any) -> list[Any]:
    async def collect() -> list[Any]:
        return [value async for value in invocation.map_async(of, iterators, options.pop("kwargs", {}), **options)]

    return asyncio.run(collect())


async def agen(n: int) -> AsyncIterator[int]:
    for i in range(n):
        if i % 100 == 0:
            await asyncio.sleep(0)
        yield i


KINDS: dict[str, Any] = {
    "range": range,
    "list": lambda n: list(range(n)),
    "generator": lambda n: (i for i in range(n)),
    "iterator": lambda n: iter(range(n)),
    "async": agen,
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "async"])
@pytest.mark.parametrize("count", [0, 1, 3, 2500])
def test_every_kind_of_iterator_gives_every_result_in_order(kind: str, count: int) -> None:
    assert list(run(KINDS[kind](count))) == [i * i for i in range(count)]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("count", [0, 1, 2500])
def test_the_same_on_an_event_loop(kind: str, count: int) -> None:
    assert run_async(KINDS[kind](count)) == [i * i for i in range(count)]


def test_iterators_are_zipped_and_the_shortest_one_ends_the_map() -> None:
    assert list(run([1, 2, 3], (10, 20), of=target("add"))) == [11, 22]
    assert list(run(iter([1, 2]), itertools.count(10), of=target("add"), kwargs={"c": 100})) == [111, 113]
    assert run_async(agen(3), [10, 20, 30, 40], of=target("add")) == [10, 21, 32]
    assert run_async(agen(3), (i for i in (5, 6)), of=target("add")) == [5, 7]


def test_star_unpacks_each_item() -> None:
    assert list(run([(1, 2), [3, 4]], of=target("add"), star=True)) == [3, 7]
    assert run_async([(1, 2)], of=target("add"), star=True) == [3]


def test_none_is_a_result_like_any_other() -> None:
    assert list(run([1, 2], of=target("nothing"))) == [None, None]


def test_inputs_of_a_list_travel_in_few_messages(plane: FakePlane) -> None:
    assert len(list(run(range(5000)))) == 5000
    messages = plane.heard(p.InputsSubmitted)
    assert len({m.call for m in messages}) == 1
    assert len(messages) <= 5000 / 125
    assert [m.first for m in messages] == list(itertools.accumulate([0, *(len(m.payloads) for m in messages[:-1])])), (
        "consecutive, each once"
    )
    assert plane.heard(p.CallCancelled) == []


# ---------------------------------------------------------------- laziness and bounds


def test_nothing_happens_before_the_first_result_is_asked_for(plane: FakePlane) -> None:
    read: list[int] = []
    results = run(read.append(i) or i for i in range(3))
    assert plane.said == []
    assert read == []
    assert next(results) == 0
    results.close()


def test_a_map_that_is_dropped_without_a_look_warns(plane: FakePlane) -> None:
    with pytest.warns(RuntimeWarning, match=r"square\.map \(test_mapping\.py:\d+\) was never iterated"):
        run([1])
    with pytest.warns(RuntimeWarning, match="for_each"):
        invocation.map_async(SQUARE, ([1],), {})
    assert plane.said == []


def test_a_lazy_iterator_is_read_only_a_window_ahead(plane: FakePlane, held: Target) -> None:
    read: list[int] = []
    results = run((read.append(i) or i for i in itertools.count()), of=held)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(next(results)))
    thread.start()
    plane.wait_for(lambda: len(plane.inputs()) == MAX_INPUTS)
    assert len(read) == MAX_INPUTS
    call = plane.inputs()[0][0]
    for index in range(1, 600):
        plane.finish(call, index, index)
    plane.functions["f"] = lambda: None
    invocation.call(target("f"), (), {})  # everything before it has been read
    assert len(read) == MAX_INPUTS, "results that nobody has taken count"
    plane.finish(call, 0, "first")
    thread.join(30)
    assert got == ["first"]
    assert [next(results) for _ in range(599)] == list(range(1, 600))
    plane.wait_for(lambda: len(plane.inputs()) > MAX_INPUTS)
    results.close()


def test_results_come_out_while_the_iterator_blocks(plane: FakePlane) -> None:
    gate = threading.Event()

    def blocking() -> Iterator[int]:
        yield 3
        assert gate.wait(30)
        yield 4

    results = run(blocking())
    assert next(results) == 9
    gate.set()
    assert list(results) == [16]


def test_an_iterator_may_wait_for_results_of_its_own_map() -> None:
    got: list[int] = []
    first = threading.Event()

    def feedback() -> Iterator[int]:
        yield 2
        assert first.wait(30)
        yield got[0] + 1

    for value in run(feedback()):
        got.append(value)
        first.set()
    assert got == [4, 25]


def test_an_async_iterator_may_wait_for_results_of_its_own_map() -> None:
    async def main() -> list[int]:
        got: list[int] = []
        first = asyncio.Event()

        async def feedback() -> AsyncIterator[int]:
            yield 2
            await first.wait()
            yield got[0] + 1

        async for value in invocation.map_async(SQUARE, (feedback(),), {}):
            got.append(value)
            first.set()
        return got

    assert asyncio.run(main()) == [4, 25]


def test_the_iterator_runs_in_the_callers_context() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    variable.set(7)
    assert list(run(variable.get() for _ in range(2))) == [49, 49]


def test_unordered_results_come_as_they_are_ready(plane: FakePlane, held: Target) -> None:
    results = run([0, 1], of=held, order_outputs=False)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(next(results)))
    thread.start()
    (submitted,) = plane.wait_heard(p.InputsSubmitted)
    plane.finish(submitted.call, 1, "second")
    thread.join(30)
    assert got == ["second"]
    results.close()


# ---------------------------------------------------------------- failures


def test_the_first_failure_is_raised_and_cancels_the_rest(plane: FakePlane, held: Target) -> None:
    got: list[int] = []
    results = run([1, 2, 3], of=target("odd"))
    with pytest.raises(ValueError, match="2 is even"):
        got.extend(results)
    assert got == [1]
    plane.wait_heard(p.CallCancelled)


def test_failures_can_be_results(plane: FakePlane) -> None:
    one, two, three = run([1, 2, 3], of=target("odd"), return_exceptions=True)
    assert (one, three) == (1, 3)
    assert isinstance(two, ValueError)
    assert plane.heard(p.CallCancelled) == []
    assert [type(r) for r in run_async([1, 2], of=target("odd"), return_exceptions=True)] == [int, ValueError]


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_an_argument_that_cannot_be_sent_ends_the_map(kind: str) -> None:
    values: Any = [1, threading.Lock()]
    with pytest.raises(exception.SerializationError, match=r"argument 0 of square, of type _thread\.lock"):
        list(run(values if kind == "list" else iter(values)))


def test_what_the_iterator_raises_is_raised_here(plane: FakePlane) -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise KeyError("from the iterator")

    async def failing_async() -> AsyncIterator[int]:
        yield 1
        raise KeyError("from the iterator")

    with pytest.raises(KeyError, match="from the iterator"):
        list(run(failing()))
    with pytest.raises(KeyError, match="from the iterator"):
        run_async(failing_async())
    with pytest.raises(KeyError, match="from the iterator"):
        run_async(failing())


def test_leaving_the_loop_early_cancels_what_is_unfinished(plane: FakePlane, held: Target) -> None:
    results = run(range(10), of=held)
    thread = threading.Thread(target=next, args=(results,))
    thread.start()
    (submitted,) = plane.wait_heard(p.InputsSubmitted)
    plane.finish(submitted.call, 0, 0)
    thread.join(30)
    results.close()
    plane.wait_heard(p.CallCancelled, call=submitted.call)


def test_a_cancelled_task_cancels_its_map_and_its_feed(plane: FakePlane, held: Target) -> None:
    closed: list[bool] = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    async def main() -> None:
        async def consume() -> None:
            async for _ in invocation.map_async(held, (endless(),), {}):
                pass

        task = asyncio.create_task(consume())
        await asyncio.to_thread(plane.wait_heard, p.InputsSubmitted)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.to_thread(plane.wait_heard, p.CallCancelled)

    asyncio.run(main())
    assert closed == [True]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("ordered", [True, False])
def test_a_map_waits_where_the_queue_of_its_function_is_full(plane: FakePlane, kind: str, ordered: bool) -> None:
    ran: list[int] = []
    plane.functions["square"] = lambda x: ran.append(x) or x * x
    plane.lets_in["square"] = 20
    if kind != "async":
        assert sorted(run(KINDS[kind](700), order_outputs=ordered)) == [i * i for i in range(700)]
        assert sorted(ran) == list(range(700)), "each once"
        ran.clear()
    results = run_async(KINDS[kind](300), order_outputs=ordered)
    assert sorted(results) == [i * i for i in range(300)]
    assert sorted(ran) == list(range(300))
    assert not ordered or results == sorted(results)
    assert plane.heard(p.CallCancelled) == []


def test_a_full_queue_is_no_failure_of_an_input(plane: FakePlane) -> None:
    plane.lets_in["odd"] = 1
    got = list(run(range(4), of=target("odd"), return_exceptions=True))
    assert [type(value) for value in got] == [ValueError, int, ValueError, int]


def test_files_of_arguments_that_were_not_let_in_are_removed(plane: FakePlane) -> None:
    plane.functions["length"] = len
    plane.lets_in["length"] = 0
    plane.retry_after = 60.0
    large = bytes(2 * INLINE_LIMIT)
    with pytest.raises(exception.ResourceExhaustedError) as caught:
        invocation.call(target("length"), (large,), {})
    assert caught.value.retry_after == 60.0
    assert os.listdir(plane.blobs.directory) == []

    async def give_up() -> None:
        task = asyncio.create_task(anext(invocation.map_async(target("length"), ([large, large],), {})))
        await asyncio.to_thread(plane.wait_heard, p.InputsSubmitted, 2)
        await invocation.call_async(target("nothing"), (0,), {})  # everything before it has been read
        assert len(os.listdir(plane.blobs.directory)) == 2, "they wait to be sent again"
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(give_up())
    plane.wait_heard(p.CallCancelled)
    assert os.listdir(plane.blobs.directory) == []


def test_a_refused_map_says_why() -> None:
    with pytest.raises(exception.NotFoundError, match="no running function gone"):
        list(run([1], of=target("gone")))


def test_an_async_iterator_without_a_loop_is_refused_with_the_fix() -> None:
    with pytest.raises(exception.InvalidError, match=r"async for … in square\.map\.aio"):
        run(agen(1))


def test_files_of_results_that_nobody_took_are_removed(plane: FakePlane) -> None:
    results = run([INLINE_LIMIT] * 5, of=target("big"))
    assert next(results).sum() == INLINE_LIMIT
    results.close()
    plane.wait_heard(p.CallCancelled)
    plane.functions["f"] = lambda: None
    invocation.call(target("f"), (), {})
    assert os.listdir(plane.blobs.directory) == []


def test_a_map_goes_on_after_a_restart(plane: FakePlane, held: Target) -> None:
    results = run(range(300), of=held)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.extend(results))
    thread.start()
    plane.wait_for(lambda: len(plane.inputs()) == 300)
    call = plane.inputs()[0][0]
    for index in range(0, 300, 2):
        plane.finish(call, index, index)
    plane.stop_listening()
    plane.listen()
    plane.wait_for(lambda: {(call, index) for index in range(1, 300, 2)} <= set(plane.inputs()[300:]))
    for index in range(300):
        plane.finish(call, index, index)
    thread.join(30)
    assert got == list(range(300))
