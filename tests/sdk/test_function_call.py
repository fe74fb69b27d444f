"""Durable calls: spawned, found again, waited for, read in parts."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator

import pytest

from kedge import exception
from kedge.model import protocol as p
from kedge.model.payload import Result
from kedge.sdk import invocation
from kedge.sdk.client import Client
from kedge.sdk.function_call import READ_AHEAD, FunctionCall, InputStatus
from kedge.sdk.serializer import to_payload
from kedge.sdk.target import Target
from tests.sdk.conftest import target
from tests.sdk.fake_plane import FakePlane

SQUARE = target("square")


@pytest.fixture(autouse=True)
def functions(plane: FakePlane, client: Client) -> None:
    def bad(x: int) -> None:
        raise ValueError(f"bad {x}")

    plane.functions.update(square=lambda x: x * x, bad=bad)


def test_spawn_returns_once_the_input_is_on_disk(plane: FakePlane) -> None:
    call = invocation.spawn(SQUARE, (3,), {})
    (submitted,) = plane.heard(p.InputsSubmitted)
    assert submitted.durable
    assert plane.wait_heard(p.CallClosed)[0] == p.CallClosed(call.object_id, 1)
    assert call.get() == 9
    assert call.get() == 9, "reading does not consume"
    assert call.get(timeout=0) == 9


def test_spawn_waits_for_the_disk(plane: FakePlane) -> None:
    plane.silent_about.add(p.InputsSubmitted)
    calls: list[FunctionCall[int]] = []
    thread = threading.Thread(target=lambda: calls.append(invocation.spawn(SQUARE, (3,), {})))
    thread.start()
    (submitted,) = plane.wait_heard(p.InputsSubmitted)
    assert calls == []
    plane.tell_all(p.InputsAccepted(submitted.call, 0, 1))
    thread.join(30)
    assert calls[0].object_id == submitted.call


def test_a_refused_spawn_says_why() -> None:
    with pytest.raises(exception.NotFoundError, match="no running function gone"):
        invocation.spawn(target("gone"), (1,), {})


def test_spawn_in_a_loop() -> None:
    async def main() -> tuple[int, int]:
        call = await invocation.spawn_async(SQUARE, (4,), {})
        return await call.get.aio(), await call.get.aio(timeout=0)

    assert asyncio.run(main()) == (16, 16)


def test_what_the_function_raised_is_raised_by_get() -> None:
    call = invocation.spawn(target("bad"), (3,), {})
    for _ in range(2):
        with pytest.raises(ValueError, match="bad 3"):
            call.get()


def test_get_runs_out_of_time_with_pythons_own_error(plane: FakePlane, held: Target) -> None:
    call = invocation.spawn(held, (1,), {})
    plane.stored[call.object_id] = {}
    for timeout in (0, 0.01):
        with pytest.raises(
            TimeoutError, match=f"input 0 of {call.object_id} has no result after {timeout} s; it goes on"
        ):
            call.get(timeout=timeout)
    plane.wait_heard(p.OutputsForgotten)

    async def main() -> None:
        with pytest.raises(TimeoutError, match="has no result"):
            await call.get.aio(timeout=0.01)

    asyncio.run(main())
    assert plane.heard(p.CallCancelled) == []


def test_a_result_that_comes_later_is_delivered(plane: FakePlane, held: Target) -> None:
    call = invocation.spawn(held, (1,), {})
    plane.stored[call.object_id] = {}
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(call.get(timeout=30)))
    thread.start()
    plane.wait_heard(p.OutputsRequested)
    plane.tell_all(p.OutputsDelivered(call.object_id, [p.Output(0, Result(payload=to_payload(5, None)))]))
    thread.join(30)
    assert got == [5]


def test_unknown_and_expired_calls() -> None:
    call = FunctionCall.from_id("fc-0123456789abcdef")
    for timeout in (None, 0):
        with pytest.raises(exception.OutputExpiredError, match="there is no call fc-0123456789abcdef"):
            call.get(timeout=timeout)
    with pytest.raises(exception.NotFoundError, match="there is no call"):
        call.num_inputs()

    async def main() -> None:
        with pytest.raises(exception.OutputExpiredError, match="there is no call"):
            await call.get.aio(timeout=0)

    asyncio.run(main())


@pytest.mark.parametrize("text", ["", "in-0123-4", "call"])
def test_from_id_refuses_what_is_no_id(text: str) -> None:
    with pytest.raises(exception.InvalidError, match="is not the id of a call; it looks like 'fc-"):
        FunctionCall.from_id(text)


def test_handles_are_values() -> None:
    call = FunctionCall.from_id("fc-0123456789abcdef")
    assert pickle.loads(pickle.dumps(call)) == call
    assert len({call, FunctionCall.from_id(call.object_id)}) == 1
    assert repr(call) == "FunctionCall.from_id('fc-0123456789abcdef')"


# ---------------------------------------------------------------- many inputs


def test_spawn_map_is_one_call_of_many_inputs(plane: FakePlane) -> None:
    count = 2 * READ_AHEAD + 3
    call = invocation.spawn_map(SQUARE, (range(count),), {})
    assert plane.wait_heard(p.CallClosed) == [p.CallClosed(call.object_id, count)]
    assert call.num_inputs() == count
    assert call.get(index=7) == 49
    assert list(call.iter()) == [i * i for i in range(count)]
    assert list(call.iter(start=2, end=4)) == [4, 9]

    async def collect() -> list[int]:
        assert await call.num_inputs.aio() == count
        return [value async for value in call.iter.aio(start=count - 2)]

    assert asyncio.run(collect()) == [(count - 2) ** 2, (count - 1) ** 2]


def test_spawn_map_of_an_async_iterator(plane: FakePlane) -> None:
    async def numbers() -> AsyncIterator[int]:
        for i in range(600):
            yield i

    async def main() -> FunctionCall[int]:
        return await invocation.spawn_map_async(SQUARE, (numbers(),), {})

    call = asyncio.run(main())
    assert call.get(index=599) == 599 * 599
    assert [len(m.payloads) for m in plane.heard(p.InputsSubmitted)] == [500, 100]


def test_an_empty_spawn_map_has_no_inputs(plane: FakePlane) -> None:
    call = invocation.spawn_map(SQUARE, ([],), {})
    assert [message.payloads for message in plane.heard(p.InputsSubmitted)] == [[]], "the store should know the call"
    plane.stored[call.object_id] = {}
    assert plane.wait_heard(p.CallClosed) == [p.CallClosed(call.object_id, 0)]
    assert list(call.iter()) == []


def test_large_inputs_go_to_the_disk_in_several_messages(plane: FakePlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame has a limit: what is spawned together is bounded in bytes, not only in number."""
    monkeypatch.setattr(invocation, "SPAWN_CHUNK_BYTES", 5000)
    call = invocation.spawn_map(SQUARE, ([b"x" * 2000] * 7,), {})
    assert [len(message.payloads) for message in plane.heard(p.InputsSubmitted)] == [3, 3, 1]
    assert [message.first for message in plane.heard(p.InputsSubmitted)] == [0, 3, 6]
    assert call.num_inputs() == 7


def test_gather_gives_results_in_order_and_raises_the_first_failure(plane: FakePlane) -> None:
    calls = [invocation.spawn(SQUARE, (i,), {}) for i in range(3)]
    assert FunctionCall.gather(*calls) == [0, 1, 4]
    assert FunctionCall.gather() == []
    with pytest.raises(ValueError, match="bad 3"):
        FunctionCall.gather(*calls, invocation.spawn(target("bad"), (3,), {}))

    async def main() -> None:
        assert await FunctionCall.gather.aio(*calls) == [0, 1, 4]
        with pytest.raises(ValueError, match="bad 4"):
            await FunctionCall.gather.aio(*calls, await invocation.spawn_async(target("bad"), (4,), {}))

    asyncio.run(main())
    assert plane.heard(p.CallCancelled) == [], "the calls go on"


def test_gather_does_not_wait_for_the_rest_once_one_has_failed(plane: FakePlane, held: Target) -> None:
    waiting = invocation.spawn(held, (1,), {})
    plane.stored[waiting.object_id] = {}
    with pytest.raises(ValueError, match="bad 3"):
        FunctionCall.gather(waiting, invocation.spawn(target("bad"), (3,), {}))


def test_cancel_names_the_call(plane: FakePlane, held: Target) -> None:
    call = invocation.spawn(held, (1,), {})
    call.cancel()
    call.cancel(terminate_containers=True)
    asyncio.run(call.cancel.aio())
    said = plane.wait_heard(p.CallCancelled, 3, call=call.object_id)
    assert [m.terminate_containers for m in said] == [False, True, False]


def test_a_cancel_is_not_lost_with_its_server(plane: FakePlane, held: Target) -> None:
    call = invocation.spawn(held, (1,), {})
    plane.silent_about.add(p.CallCancelled)
    thread = threading.Thread(target=call.cancel)
    thread.start()
    plane.wait_heard(p.CallCancelled, call=call.object_id)
    plane.silent_about.clear()
    plane.disconnect()
    thread.join(30)
    assert not thread.is_alive()
    assert len(plane.wait_heard(p.CallCancelled, 2, call=call.object_id)) == 2


def test_the_call_graph_lists_the_inputs() -> None:
    call = invocation.spawn_map(target("bad"), ([1, 2],), {})
    first, second = call.get_call_graph()
    assert first.input_id == f"in-{call.object_id[3:]}-0"
    assert (first.status, first.function_name, first.children) == (InputStatus.FAILURE, "f", [])
    assert second.function_call_id == call.object_id
    assert InputStatus.of("running") is InputStatus.PENDING
    assert asyncio.run(call.get_call_graph.aio())[1] == second


def test_a_spawn_that_was_on_its_way_is_sent_again(plane: FakePlane) -> None:
    plane.silent_about.add(p.InputsSubmitted)
    calls: list[FunctionCall[int]] = []
    thread = threading.Thread(target=lambda: calls.append(invocation.spawn(SQUARE, (3,), {})))
    thread.start()
    plane.wait_heard(p.CallClosed)
    plane.silent_about.clear()
    plane.disconnect()
    thread.join(30)
    assert plane.wait_heard(p.CallClosed, 2)[-1].total == 1
    assert calls[0].get() == 9
