"""`FunctionCall`: the handle of a spawned call, which lives on the server and not in this process.

Reading a result does not consume it: any process may ask for it, again and again, until the server lets it expire.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from kedge.exception import InvalidError, NotFoundError, OutputExpiredError
from kedge.model.ids import CALL, input_id
from kedge.model.payload import Result
from kedge.model.protocol import CallCancelled, CallRequested, OutputsForgotten, OutputsRequested
from kedge.sdk.async_link import AsyncLink
from kedge.sdk.calls import Collector, Pending
from kedge.sdk.client import Client
from kedge.sdk.dual import Dual
from kedge.sdk.link import Link
from kedge.sdk.serializer import from_result

R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

READ_AHEAD = 500
"""Results that `iter` asks for at once: a bound for memory, not for speed."""


@dataclass(frozen=True)
class FunctionStats:
    """Live numbers of a function's containers."""

    backlog: int
    """Inputs that wait for a container."""
    num_total_runners: int
    """Containers that are up."""
    num_running_inputs: int
    input_headroom: int
    """Free slots of the containers that are up."""
    num_cancelled_inputs: int = 0
    bursts: int = 0
    """Inputs that a container took beyond `target_inputs`."""
    loop_blocks: int = 0
    """How often user code blocked the event loop of a container for long."""
    wait_p50_s: float | None = None
    """The median of how long inputs waited for a slot lately; None where there were none. 95th percentile below."""
    wait_p95_s: float | None = None
    run_p50_s: float | None = None
    """The same for how long their code ran."""
    run_p95_s: float | None = None


class InputStatus(enum.IntEnum):
    """What became of an input."""

    PENDING = 0
    SUCCESS = 1
    FAILURE = 2
    INIT_FAILURE = 3
    TERMINATED = 4
    TIMEOUT = 5
    INTERNAL_FAILURE = 6

    @classmethod
    def of(cls, name: str) -> InputStatus:
        """The status that the server calls `name`; what is queued or running is PENDING."""
        return cls.__members__.get(name.upper(), cls.PENDING)


@dataclass(frozen=True)
class InputInfo:
    """One input of a call, and the inputs that it has called in turn, as far as they are known."""

    input_id: str
    function_call_id: str
    task_id: str
    """The container, where it is known."""
    status: InputStatus
    function_name: str
    module_name: str = ""
    children: list[InputInfo] = field(default_factory=list)


class _Gather:
    """`FunctionCall.gather(*calls)`, also as `.aio`."""

    def __call__(self, *calls: FunctionCall[T]) -> list[T]:
        """Waits for all calls and returns their results in order; the first failure is raised, and the calls go on.

        Example:
            FunctionCall.gather(square.spawn(2), square.spawn(3))  # [4, 9]
        """
        link = Client.current().link()
        group = Pending()
        collectors = [call._collector(link, 0, 1, group) for call in calls]
        for collector in collectors:
            link.registry.collect(collector)
        values: dict[int, Any] = {}
        try:
            link.send([collector.request for collector in collectors])
            while len(values) < len(calls):
                group.ready = False
                for position, (call, collector) in enumerate(zip(calls, collectors, strict=True)):
                    if collector.ready and position not in values:
                        values[position] = call._value(collector, 0, link)
                if len(values) < len(calls):
                    link.wait(group)
        finally:
            for call, collector in zip(calls, collectors, strict=True):
                call._forget(link, collector)
        return [values[position] for position in range(len(calls))]

    async def aio(self, *calls: FunctionCall[T]) -> list[T]:
        """The same for async code."""
        tasks = [asyncio.ensure_future(call.get.aio()) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()


class FunctionCall(Generic[R_co]):
    """A call that goes on without its caller. Made by `.spawn()` and `.spawn_map()`, found again by its id.

    Example:
        call = train.spawn("dataset")
        print(call.object_id)
        print(call.get(timeout=60))
    """

    gather: ClassVar[_Gather] = _Gather()

    def __init__(self, object_id: str) -> None:
        self._object_id = object_id

    @property
    def object_id(self) -> str:
        """The id to find this call by: `FunctionCall.from_id(id)`."""
        return self._object_id

    @staticmethod
    def from_id(function_call_id: str, client: Any = None) -> FunctionCall[Any]:
        """The handle of a call that any process has spawned. Nothing is asked before it is used.

        Raises InvalidError where the text cannot be the id of a call.
        """
        if not str(function_call_id).startswith(f"{CALL}-"):
            raise InvalidError(
                f"{function_call_id!r} is not the id of a call; it looks like '{CALL}-0123456789abcdef', and "
                "`call.object_id` gives it"
            )
        return FunctionCall(function_call_id)

    def __repr__(self) -> str:
        return f"FunctionCall.from_id({self._object_id!r})"

    def __reduce__(self) -> Any:
        return FunctionCall, (self._object_id,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FunctionCall) and other._object_id == self._object_id

    def __hash__(self) -> int:
        return hash(self._object_id)

    # ------------------------------------------------------------ one result

    def _get(self, timeout: float | None = None, *, index: int = 0) -> R_co:
        """Waits for the result and returns it, or raises what the function raised.

        Args:
            timeout: Seconds to wait; None for ever, 0 to look once.
            index: Which input of a `spawn_map`.

        Raises:
            TimeoutError: Python's own: there is no result within `timeout`.
            OutputExpiredError: The call is unknown, or its results are no longer kept.
        """
        link = Client.current().link()
        if timeout is not None and timeout <= 0:
            try:
                self._expect_done(link.request(self._facts), index)
            except NotFoundError as error:
                raise OutputExpiredError(str(error)) from None
            timeout = None
        collector = self._collector(link, index, index + 1)
        link.registry.collect(collector)
        try:
            link.send([collector.request])
            in_time = link.wait(collector, timeout)
        finally:
            self._forget(link, collector)
        if not in_time:
            raise TimeoutError(self._unfinished(index, timeout))
        value: R_co = self._value(collector, index, link)
        return value

    async def _get_async(self, timeout: float | None = None, *, index: int = 0) -> R_co:
        link = await Client.current().async_link()
        if timeout is not None and timeout <= 0:
            try:
                self._expect_done(await link.request(self._facts), index)
            except NotFoundError as error:
                raise OutputExpiredError(str(error)) from None
            timeout = None
        collector = self._collector(link, index, index + 1)
        link.registry.collect(collector)
        try:
            link.send([collector.request])
            await link.wait(collector, timeout)
        finally:
            self._forget(link, collector)
        if not collector.ready:
            raise TimeoutError(self._unfinished(index, timeout))
        value: R_co = self._value(collector, index, link)
        return value

    get = Dual(_get, _get_async)

    # ------------------------------------------------------------ many results

    def _num_inputs(self) -> int:
        """The number of inputs of the call, as far as they have been submitted."""
        return int(Client.current().request(self._facts)["inputs"])

    async def _num_inputs_async(self) -> int:
        return int((await Client.current().request_async(self._facts))["inputs"])

    num_inputs = Dual(_num_inputs, _num_inputs_async)

    def _iter(self, *, start: int = 0, end: int | None = None) -> Generator[R_co, None, None]:
        """The results of inputs `start` up to `end` (exclusive; None: all), in order, as they come."""
        last = self._num_inputs() if end is None else end
        link = Client.current().link()
        for first in range(start, last, READ_AHEAD):
            collector = self._collector(link, first, min(first + READ_AHEAD, last))
            link.registry.collect(collector)
            try:
                link.send([collector.request])
                for index in range(first, min(first + READ_AHEAD, last)):
                    while index not in collector.results and collector.failure is None:
                        collector.ready = False
                        if index not in collector.results:
                            link.wait(collector)
                    yield self._value(collector, index, link)
            finally:
                self._forget(link, collector)

    async def _iter_async(self, *, start: int = 0, end: int | None = None) -> AsyncGenerator[R_co, None]:
        last = await self._num_inputs_async() if end is None else end
        link = await Client.current().async_link()
        for first in range(start, last, READ_AHEAD):
            collector = self._collector(link, first, min(first + READ_AHEAD, last))
            link.registry.collect(collector)
            try:
                link.send([collector.request])
                for index in range(first, min(first + READ_AHEAD, last)):
                    while index not in collector.results and collector.failure is None:
                        collector.ready = False
                        await link.wait(collector)
                    yield self._value(collector, index, link)
            finally:
                self._forget(link, collector)

    iter = Dual(_iter, _iter_async)

    # ------------------------------------------------------------ its fate

    def _cancel(self, terminate_containers: bool = False) -> None:
        """Cancels every unfinished input of the call; returns when the server has taken note.

        An input that is over, or a call that nobody knows, is left as it is.

        Args:
            terminate_containers: Also kill the containers that work on them. Their other inputs run again elsewhere.
        """
        Client.current().request(lambda number: CallCancelled(self._object_id, terminate_containers, None, number))

    async def _cancel_async(self, terminate_containers: bool = False) -> None:
        await Client.current().request_async(
            lambda number: CallCancelled(self._object_id, terminate_containers, None, number)
        )

    cancel = Dual(_cancel, _cancel_async)

    def _get_call_graph(self) -> list[InputInfo]:
        """The inputs of the call and what became of each."""
        return self._graph(Client.current().request(self._facts))

    async def _get_call_graph_async(self) -> list[InputInfo]:
        return self._graph(await Client.current().request_async(self._facts))

    get_call_graph = Dual(_get_call_graph, _get_call_graph_async)

    # ------------------------------------------------------------ parts

    def _facts(self, number: int) -> CallRequested:
        return CallRequested(number, self._object_id)

    def _collector(self, link: Link | AsyncLink, start: int, end: int, group: Pending | None = None) -> Collector:
        return Collector(OutputsRequested(self._object_id, start, end, link.registry.next_request()), group)

    def _forget(self, link: Link | AsyncLink, collector: Collector) -> None:
        request = collector.request
        link.registry.forget(collector)
        link.send([OutputsForgotten(self._object_id, request.request)])

    def _value(self, collector: Collector, index: int, link: Link | AsyncLink) -> Any:
        result: Result | None = collector.results.pop(index, None)
        if result is None:
            assert collector.failure is not None
            raise collector.failure
        return from_result(result, link.blobs, self._object_id, consume=False)

    def _expect_done(self, facts: Any, index: int) -> None:
        """TimeoutError where the result is not there yet."""
        status = dict(facts["status"]).get(index, "queued")
        if InputStatus.of(status) is InputStatus.PENDING:
            raise TimeoutError(self._unfinished(index, 0))

    def _unfinished(self, index: int, timeout: float | None) -> str:
        return f"input {index} of {self._object_id} has no result after {timeout:g} s; it goes on"

    def _graph(self, facts: Any) -> list[InputInfo]:
        name = f"{facts['function']}.{facts['method']}".rstrip(".")
        return [
            InputInfo(
                input_id(self._object_id, index),
                self._object_id,
                "",
                InputStatus.of(status),
                name,
            )
            for index, status in facts["status"]
        ]
