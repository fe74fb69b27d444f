"""One call from the caller's side: arguments out, values back, and an end for the work when the caller gives up.

Every function here takes a `Target` and exists twice: blocking, and for event loops. Whatever interrupts a wait
(Ctrl-C, a cancelled task, a closed generator) cancels what was being waited for; spawned calls live on.

Maps are in `mapping`, results of spawned calls in `function_call`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Mapping, Sequence
from typing import Any

from kedge.model.payload import Payload
from kedge.model.protocol import (
    STREAM_WINDOW,
    AutoscalerUpdated,
    CallClosed,
    ConcurrencyUpdated,
    InputsSubmitted,
    StatisticsRequested,
    StreamCredited,
)
from kedge.sdk import context, mapping
from kedge.sdk.async_link import AsyncLink
from kedge.sdk.calls import SingleCall, SpawnCall, StreamCall
from kedge.sdk.client import Client, new_call_id
from kedge.sdk.feeds import template
from kedge.sdk.function_call import FunctionCall, FunctionStats
from kedge.sdk.link import Link
from kedge.sdk.map_window import is_refusal, submission
from kedge.sdk.serializer import arguments_payload, from_payload, from_result
from kedge.sdk.target import Target

SPAWN_CHUNK = 500
SPAWN_CHUNK_BYTES = 8 * 1024 * 1024
"""Inputs of one message of a spawned map: one transaction of the server's disk."""
SPAWN_AHEAD = 4
"""Messages that may be on their way to the disk, so that neither side waits for the other."""

map = mapping.map
map_async = mapping.map_async

Arguments = tuple[Sequence[Any], Mapping[str, Any]]


# ---------------------------------------------------------------- one input, one result


def call(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs one input and returns its value, or raises what it raised."""
    link = Client.current().link()
    message = _first_message(target, arguments_payload(args, kwargs, link.blobs, target.name))
    pending = SingleCall(message)
    calls = link.registry.calls
    calls[message.call] = pending
    try:
        if target.variant is None:
            link.send([message])
        else:
            link.send([*link.registry.announce(target.pool, target.variant), message])
        link.wait(pending)
    except BaseException:
        link.cancel(message.call)
        raise
    finally:
        del calls[message.call]
    return _value_of(pending, link, target)


async def call_async(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`call` for event loops. Cancelling the task cancels the input."""
    link = await Client.current().async_link()
    message = _first_message(target, arguments_payload(args, kwargs, link.blobs, target.name))
    pending = SingleCall(message)
    calls = link.registry.calls
    calls[message.call] = pending
    try:
        link.send([*link.registry.announce(target.pool, target.variant), message])
        await link.wait(pending)
    except BaseException:
        link.cancel(message.call)
        raise
    finally:
        del calls[message.call]
    return _value_of(pending, link, target)


def _first_message(target: Target, payload: Payload, stream: bool = False) -> InputsSubmitted:
    """The only input of a new call."""
    return InputsSubmitted(
        new_call_id(),
        target.pool,
        0,
        [payload],
        target.method,
        False,
        context.current_input_id() or "",
        stream,
        1,
        target.timeout,
        target.queue_timeout,
    )


def _value_of(pending: SingleCall, link: Link | AsyncLink, target: Target) -> Any:
    result = pending.result
    if result is None:
        assert pending.failure is not None
        raise pending.failure
    if result.error is not None and is_refusal(result):
        link.registry.discard(pending.message.payloads)  # nobody else has taken them
    return from_result(result, link.blobs, target.name)


# ---------------------------------------------------------------- one input, many values


def stream(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Generator[Any, None, None]:
    """Runs a generator and yields its values as they come. Closing it cancels the input."""
    link = Client.current().link()
    message = _first_message(target, arguments_payload(args, kwargs, link.blobs, target.name), stream=True)
    pending = StreamCall(message)
    link.registry.calls[message.call] = pending
    try:
        link.send([*link.registry.announce(target.pool, target.variant), message])
        while True:
            while pending.values:
                value = pending.values.popleft()
                _credit(pending, link)
                yield from_payload(value, link.blobs, consume=True, what=f"a value of {target.name}")
            if _stream_is_over(pending, link, target):
                return
            link.wait(pending)
    finally:
        del link.registry.calls[message.call]
        if pending.result is None and pending.failure is None:
            link.cancel(message.call)
        link.registry.discard(pending.values)


async def stream_async(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
    """`stream` for event loops."""
    link = await Client.current().async_link()
    message = _first_message(target, arguments_payload(args, kwargs, link.blobs, target.name), stream=True)
    pending = StreamCall(message)
    link.registry.calls[message.call] = pending
    try:
        link.send([*link.registry.announce(target.pool, target.variant), message])
        while True:
            while pending.values:
                value = pending.values.popleft()
                _credit(pending, link)
                yield from_payload(value, link.blobs, consume=True, what=f"a value of {target.name}")
            if _stream_is_over(pending, link, target):
                return
            await link.wait(pending)
    finally:
        del link.registry.calls[message.call]
        if pending.result is None and pending.failure is None:
            link.cancel(message.call)
        link.registry.discard(pending.values)


def _stream_is_over(pending: StreamCall, link: Link | AsyncLink, target: Target) -> bool:
    """Whether the generator has ended; raises what ended it otherwise. False: wait for more."""
    pending.ready = False
    if pending.values:
        pending.ready = True
        return False
    if pending.result is not None:
        _value_of(pending, link, target)
        return True
    if pending.failure is not None:
        raise pending.failure
    return False


def _credit(pending: StreamCall, link: Link | AsyncLink) -> None:
    """One more value was taken. Credits go back by half windows, which keeps the sender busy at little cost."""
    pending.credit += 1
    if pending.credit >= STREAM_WINDOW // 2 and pending.result is None:
        values, pending.credit = pending.credit, 0
        link.send([StreamCredited(pending.message.call, 0, values)])


# ---------------------------------------------------------------- durable calls


def spawn(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> FunctionCall[Any]:
    """Starts one input that outlives this process; returns once the input is on the server's disk."""
    return _spawn_all(target, ((args, kwargs),))


async def spawn_async(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> FunctionCall[Any]:
    """`spawn` for event loops."""

    async def one() -> AsyncGenerator[Arguments, None]:
        yield args, kwargs

    return await _spawn_all_async(target, one())


def spawn_map(target: Target, iterators: Sequence[Iterable[Any]], kwargs: Mapping[str, Any]) -> FunctionCall[Any]:
    """Starts one durable call with an input per item; returns once all of them are on disk."""
    return _spawn_all(target, ((args, kwargs) for args in mapping.zipped(target, iterators)))


async def spawn_map_async(
    target: Target, iterators: Sequence[Iterable[Any] | AsyncIterable[Any]], kwargs: Mapping[str, Any]
) -> FunctionCall[Any]:
    """`spawn_map` for event loops; takes async iterators too."""

    async def inputs() -> AsyncGenerator[Arguments, None]:
        async for args in mapping.zipped_async(iterators):
            yield args, kwargs

    return await _spawn_all_async(target, inputs())


def _spawn_all(target: Target, inputs: Iterable[Arguments]) -> FunctionCall[Any]:
    link = Client.current().link()
    call = template(target, durable=True)
    pending = SpawnCall()
    link.registry.calls[call.call] = pending
    try:
        link.send(link.registry.announce(target.pool, target.variant))
        chunk = _Chunk(pending, call)
        for args, kwargs in inputs:
            chunk.add(arguments_payload(args, kwargs, link.blobs, target.name))
            if chunk.full:
                link.send([chunk.take()])
                while len(pending.chunks) >= SPAWN_AHEAD:
                    link.wait(pending)
                    _check_accepted(pending)
        link.send(chunk.last())
        while pending.chunks:
            link.wait(pending)
            _check_accepted(pending)
    except BaseException:
        link.cancel(call.call)
        raise
    finally:
        del link.registry.calls[call.call]
    return FunctionCall(call.call)


async def _spawn_all_async(target: Target, inputs: AsyncGenerator[Arguments, None]) -> FunctionCall[Any]:
    link = await Client.current().async_link()
    call = template(target, durable=True)
    pending = SpawnCall()
    link.registry.calls[call.call] = pending
    try:
        link.send(link.registry.announce(target.pool, target.variant))
        chunk = _Chunk(pending, call)
        async for args, kwargs in inputs:
            chunk.add(arguments_payload(args, kwargs, link.blobs, target.name))
            if chunk.full:
                link.send([chunk.take()])
                while len(pending.chunks) >= SPAWN_AHEAD:
                    await link.wait(pending)
                    _check_accepted(pending)
        link.send(chunk.last())
        while pending.chunks:
            await link.wait(pending)
            _check_accepted(pending)
    except BaseException:
        link.cancel(call.call)
        raise
    finally:
        del link.registry.calls[call.call]
    return FunctionCall(call.call)


class _Chunk:
    """The inputs of a durable call that go to the disk together, bounded in number and bytes."""

    def __init__(self, pending: SpawnCall, call: InputsSubmitted) -> None:
        self._pending = pending
        self._call = call
        self._first = 0
        self._payloads: list[Payload] = []
        self._size = 0

    @property
    def full(self) -> bool:
        return len(self._payloads) >= SPAWN_CHUNK or self._size >= SPAWN_CHUNK_BYTES

    def add(self, payload: Payload) -> None:
        self._payloads.append(payload)
        self._size += len(payload.data)

    def take(self) -> InputsSubmitted:
        message = submission(self._call, self._first, self._payloads)
        self._pending.chunks[self._first] = message
        self._first += len(self._payloads)
        self._payloads, self._size = [], 0
        return message

    def last(self) -> list[InputsSubmitted | CallClosed]:
        """What is left, and that nothing follows. A call without inputs is one too: the store should know it."""
        messages: list[InputsSubmitted | CallClosed] = []
        if self._payloads or not self._first:
            messages.append(self.take())
        self._pending.closing = CallClosed(self._call.call, self._first)
        return [*messages, self._pending.closing]


def _check_accepted(pending: SpawnCall) -> None:
    pending.ready = False
    if pending.failure is not None:
        raise pending.failure


# ---------------------------------------------------------------- live numbers and settings


def statistics(target: Target) -> FunctionStats:
    """What the plane knows of the target's pool now."""
    link = Client.current().link()
    link.send(link.registry.announce(target.pool, target.variant))
    return _stats(link.request(lambda number: StatisticsRequested(number, target.pool)))


async def statistics_async(target: Target) -> FunctionStats:
    """`statistics` for event loops."""
    link = await Client.current().async_link()
    link.send(link.registry.announce(target.pool, target.variant))
    return _stats(await link.request(lambda number: StatisticsRequested(number, target.pool)))


def _stats(value: dict[str, Any]) -> FunctionStats:
    return FunctionStats(
        value["backlog"],
        value["containers"],
        value["running"],
        value["headroom"],
        value["cancelled"],
        value["bursts"],
        value["loop_blocks"],
        value["wait_p50_s"],
        value["wait_p95_s"],
        value["run_p50_s"],
        value["run_p95_s"],
    )


def update_autoscaler(target: Target, **settings: Any) -> dict[str, Any]:
    """Changes min_containers, max_containers, buffer_containers or scaledown_window of a running pool.

    Returns the settings now in force. What is left out or None stays as it is.
    """
    link = Client.current().link()
    link.send(link.registry.announce(target.pool, target.variant))
    changed: dict[str, Any] = link.request(lambda number: AutoscalerUpdated(number, target.pool, **settings))
    return changed


async def update_autoscaler_async(target: Target, **settings: Any) -> dict[str, Any]:
    """`update_autoscaler` for event loops."""
    link = await Client.current().async_link()
    link.send(link.registry.announce(target.pool, target.variant))
    changed: dict[str, Any] = await link.request(lambda number: AutoscalerUpdated(number, target.pool, **settings))
    return changed


def update_concurrency(target: Target, **settings: Any) -> dict[str, Any]:
    """Changes max_inputs, target_inputs or both of a running pool: the numbers now in force. None leaves one as it
    is."""
    link = Client.current().link()
    link.send(link.registry.announce(target.pool, target.variant))
    changed: dict[str, Any] = link.request(lambda number: ConcurrencyUpdated(number, target.pool, **settings))
    return changed


async def update_concurrency_async(target: Target, **settings: Any) -> dict[str, Any]:
    """`update_concurrency` for event loops."""
    link = await Client.current().async_link()
    link.send(link.registry.announce(target.pool, target.variant))
    changed: dict[str, Any] = await link.request(lambda number: ConcurrencyUpdated(number, target.pool, **settings))
    return changed
