"""Calls and streams: what travels, what comes back, and how a caller that gives up ends the work."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kedge import exception
from kedge.model import protocol as p
from kedge.model.payload import INLINE_LIMIT
from kedge.model.spec import FunctionSpec, Variant
from kedge.sdk import context, invocation
from kedge.sdk.client import Client
from kedge.sdk.serializer import to_payload
from kedge.sdk.target import Target
from tests.sdk.conftest import target
from tests.sdk.fake_plane import FakePlane


def blob_files(plane: FakePlane) -> list[str]:
    directory = plane.blobs.directory
    return os.listdir(directory) if os.path.isdir(directory) else []


def test_a_call_is_one_message_there_and_one_value_back(plane: FakePlane, client: Client) -> None:
    plane.functions["add"] = lambda a, b=0: a + b
    assert invocation.call(target("add", method="m"), (2,), {"b": 3}) == 5
    (message,) = plane.heard(p.InputsSubmitted)
    assert (message.pool, message.first, message.method, message.total) == ("add", 0, "m", 1)
    assert not message.durable
    assert not message.stream
    assert message.parent == ""
    assert [type(m).__name__ for m in plane.said] == ["InputsSubmitted"]


def test_a_call_made_by_an_input_names_it_as_its_parent(plane: FakePlane, client: Client) -> None:
    plane.functions["f"] = lambda: None
    token = context.enter_input(context.InputContext("fc-0123", 4))
    try:
        invocation.call(target("f"), (), {})
    finally:
        context.exit_input(token)
    assert plane.heard(p.InputsSubmitted)[0].parent == "in-0123-4"


def test_a_variant_is_announced_once_and_before_its_first_input(plane: FakePlane, client: Client) -> None:
    plane.functions["f@9"] = lambda: None
    variant = Variant(function="f", variant="9", spec=FunctionSpec(name="f", module="m", qualname="f"))
    for _ in range(2):
        invocation.call(target("f@9", variant=variant), (), {})
    assert [type(m).__name__ for m in plane.said] == ["VariantBound", "InputsSubmitted", "InputsSubmitted"]


def test_what_the_function_raises_is_raised_here(plane: FakePlane, client: Client) -> None:
    def bad(x: int) -> None:
        raise ValueError(f"bad {x}")

    plane.functions["bad"] = bad
    with pytest.raises(ValueError, match="bad 7"):
        invocation.call(target("bad"), (7,), {})


def test_a_refused_call_says_why(plane: FakePlane, client: Client) -> None:
    with pytest.raises(exception.NotFoundError, match="there is no running function gone"):
        invocation.call(target("gone"), (1,), {})


def test_an_argument_that_cannot_be_sent_is_named_and_nothing_is_sent(plane: FakePlane, client: Client) -> None:
    with pytest.raises(exception.SerializationError, match="argument 0 of held"):
        invocation.call(target("held"), (threading.Lock(),), {})
    assert plane.heard(p.InputsSubmitted) == []


def test_large_values_travel_in_files_and_results_leave_none(plane: FakePlane, client: Client) -> None:
    plane.functions["double"] = lambda a: a * 2
    result = invocation.call(target("double"), (np.ones(INLINE_LIMIT),), {})
    assert result.sum() == 2 * INLINE_LIMIT
    (submitted,) = plane.heard(p.InputsSubmitted)
    assert submitted.payloads[0].blob
    assert blob_files(plane) == [submitted.payloads[0].blob], "the argument's file is the server's to remove"


def test_ctrl_c_cancels_the_call_and_is_raised(plane: FakePlane, client: Client, held: Target) -> None:
    noticed = threading.Event()

    def interrupt() -> None:
        plane.wait_heard(p.InputsSubmitted)
        # Again until it works: a signal in the instant before a system call waits for the call's end.
        while not noticed.wait(0.05):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        try:
            invocation.call(held, (1,), {})
        finally:
            noticed.set()
    thread.join()
    (submitted,) = plane.heard(p.InputsSubmitted)
    plane.wait_heard(p.CallCancelled, call=submitted.call)
    plane.functions["f"] = lambda: "still works"
    assert invocation.call(target("f"), (), {}) == "still works"


def test_a_cancelled_task_cancels_its_call(plane: FakePlane, client: Client, held: Target) -> None:
    async def call() -> None:
        task = asyncio.create_task(invocation.call_async(held, (1,), {}))
        (submitted,) = await asyncio.to_thread(plane.wait_heard, p.InputsSubmitted)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(plane.wait_heard, p.CallCancelled, 1, call=submitted.call)

    asyncio.run(call())


def test_the_file_of_a_result_that_nobody_waits_for_is_removed(plane: FakePlane, client: Client, held: Target) -> None:
    async def call() -> None:
        task = asyncio.create_task(invocation.call_async(held, (1,), {}))
        (submitted,) = await asyncio.to_thread(plane.wait_heard, p.InputsSubmitted)
        task.cancel()
        await asyncio.wait([task])
        payload = to_payload(np.ones(INLINE_LIMIT), plane.blobs)
        assert blob_files(plane)
        plane.finish(submitted.call, 0, payload)
        plane.functions["f"] = lambda: None
        await invocation.call_async(target("f"), (), {})  # comes after it on the same connection
        assert not blob_files(plane)

    asyncio.run(call())


# ---------------------------------------------------------------- streams


def count(n: int) -> Iterator[int]:
    yield from range(n)


def test_a_stream_gives_its_values_in_order_and_ends(plane: FakePlane, client: Client) -> None:
    plane.functions["count"] = count
    assert list(invocation.stream(target("count"), (1000,), {})) == list(range(1000))
    assert plane.heard(p.CallCancelled) == []

    async def collect() -> list[int]:
        return [value async for value in invocation.stream_async(target("count"), (500,), {})]

    assert asyncio.run(collect()) == list(range(500))


def test_a_reader_that_stands_still_is_sent_a_window_and_no_more(plane: FakePlane, client: Client) -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield made[-1]

    plane.functions["endless"] = endless
    stream = invocation.stream(target("endless"), (), {})
    assert next(stream) == 0
    plane.wait_for(lambda: len(made) == p.STREAM_WINDOW + 1)  # the last one waits for its credit
    for _ in range(p.STREAM_WINDOW // 2 - 1):
        next(stream)
    plane.wait_heard(p.StreamCredited, values=p.STREAM_WINDOW // 2)
    stream.close()
    plane.wait_heard(p.CallCancelled)


def test_what_a_generator_raises_comes_after_its_values(plane: FakePlane, client: Client) -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("after one")

    plane.functions["failing"] = failing
    got: list[int] = []
    with pytest.raises(ValueError, match="after one"):
        got.extend(invocation.stream(target("failing"), (), {}))
    assert got == [1]
    assert plane.heard(p.CallCancelled) == []


def test_a_stream_that_starts_anew_repeats_nothing_and_credits_what_it_drops(
    plane: FakePlane, client: Client, held: Target
) -> None:
    stream = invocation.stream(held, (), {})
    got: list[Any] = []
    reader = threading.Thread(target=lambda: got.extend(stream))
    reader.start()
    (submitted,) = plane.wait_heard(p.InputsSubmitted)
    values = [to_payload(i, None) for i in range(50)]
    plane.tell_all(p.StreamValues(submitted.call, 0, 0, values[:40]))
    plane.tell_all(p.StreamValues(submitted.call, 0, 0, values[:30]))
    plane.tell_all(p.StreamValues(submitted.call, 0, 30, values[30:]))
    plane.wait_for(lambda: plane.streams.get(submitted.call, 0) >= p.STREAM_WINDOW + 64)
    plane.finish(submitted.call, 0, None)
    reader.join(30)
    assert got == list(range(50))


def test_a_stream_in_a_loop_is_cancelled_by_closing_it(plane: FakePlane, client: Client) -> None:
    plane.functions["count"] = count

    async def some() -> int:
        stream = invocation.stream_async(target("count"), (10_000,), {})
        value = await anext(stream)
        await stream.aclose()
        await asyncio.to_thread(plane.wait_heard, p.CallCancelled)
        return value

    assert asyncio.run(some()) == 0


# ---------------------------------------------------------------- live numbers


def test_statistics_and_live_settings(plane: FakePlane, client: Client) -> None:
    stats = invocation.statistics(target("f"))
    assert (stats.backlog, stats.num_total_runners, stats.num_running_inputs, stats.input_headroom) == (3, 2, 4, 1)
    assert (stats.num_cancelled_inputs, stats.bursts, stats.loop_blocks) == (5, 6, 7)
    assert (stats.wait_p50_s, stats.wait_p95_s, stats.run_p50_s, stats.run_p95_s) == (0.1, 0.2, 0.3, None)
    invocation.update_autoscaler(target("f"), min_containers=2, scaledown_window=None)
    (message,) = plane.heard(p.AutoscalerUpdated)
    assert (message.pool, message.min_containers, message.max_containers) == ("f", 2, None)

    async def both() -> None:
        assert (await invocation.statistics_async(target("f"))).backlog == 3
        await invocation.update_autoscaler_async(target("f"), max_containers=5)

    asyncio.run(both())
    assert plane.heard(p.AutoscalerUpdated)[1].max_containers == 5


def test_live_concurrency(plane: FakePlane, client: Client) -> None:
    assert invocation.update_concurrency(target("f"), max_inputs=4, target_inputs=None) == {"max_inputs": 4}
    asyncio.run(invocation.update_concurrency_async(target("f"), max_inputs=None, target_inputs=2))
    said = [(m.pool, m.max_inputs, m.target_inputs) for m in plane.heard(p.ConcurrencyUpdated)]
    assert said == [("f", 4, None), ("f", None, 2)]


@pytest.mark.parametrize("count", [1, 600])
def test_limits_of_a_call_travel_with_all_of_its_inputs(plane: FakePlane, client: Client, count: int) -> None:
    plane.functions["f"] = lambda x: x
    hasty = target("f", timeout=5.0, queue_timeout=2.0)
    invocation.call(hasty, (0,), {})
    list(invocation.map(hasty, [range(count)], {}))
    list(invocation.map(hasty, [iter(range(count))], {}))
    invocation.spawn(hasty, (0,), {})
    invocation.spawn_map(hasty, [range(count)], {})

    async def again() -> None:
        await invocation.call_async(hasty, (0,), {})
        assert [x async for x in invocation.map_async(hasty, [range(count)], {})]
        await invocation.spawn_async(hasty, (0,), {})

    asyncio.run(again())
    messages = plane.heard(p.InputsSubmitted)
    assert len(messages) >= 8
    assert {(m.timeout, m.queue_timeout) for m in messages} == {(5.0, 2.0)}
    assert {m.total for m in plane.heard(p.InputsSubmitted, durable=False) if len(m.payloads) > 1} <= {-1}
    plane.functions["g"] = lambda n: iter(range(n))
    assert list(invocation.stream(target("g", timeout=7.0), (2,), {})) == [0, 1]
    assert [m.timeout for m in plane.heard(p.InputsSubmitted, pool="g")] == [7.0]
    invocation.call(target("f"), (0,), {})
    assert (plane.said[-1].timeout, plane.said[-1].queue_timeout) == (0.0, 0.0)
