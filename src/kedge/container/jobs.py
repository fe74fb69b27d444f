"""One input on its way through user code, from its payload to its result. What runs where is the executor's business.

* A batch is one job: one call for all its members (see `members`).
* Every input has a copy of the context that the enter hooks left behind: what it sets in context variables is its own.
* Whatever user code raises fails this input and nothing else, `SystemExit` and `KeyboardInterrupt` included.
* Arguments that cannot be loaded and results that cannot be sent are failures of the input, too.
* User code runs armed (see `guard`), the runtime's own steps do not.
* `started` is set while user code runs, and only then: its time is what a timeout limits.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Callable
from types import CoroutineType
from typing import Any

from msgspec import Struct

from kedge.container.guard import Guard, exception_for, guarded
from kedge.container.members import Arguments, Members, Parameters
from kedge.container.session import TIMED_OUT
from kedge.container.stream import Stream
from kedge.exception import ExecutionError, FunctionTimeoutError
from kedge.model.payload import FAILURE, TERMINATED, TIMEOUT, Payload, Result
from kedge.model.protocol import Dispatch
from kedge.sdk.blobs import BlobStore
from kedge.sdk.context import InputContext, enter_input
from kedge.sdk.serializer import error_info, from_payload, to_payload
from kedge.sdk.service import Service

clock = time.perf_counter

CANCELLED = Result(TERMINATED)
_END: Any = object()


class Entry(Struct, frozen=True):
    """One callable of the service, resolved once."""

    function: Callable[..., Any]
    is_async: bool
    is_generator: bool
    name: str
    """How it is shown to people: `square()`, `Model.predict()`."""
    arguments: str
    """How an error names the arguments, and below the result."""
    result: str
    timeout: float
    """Seconds that one input may run."""
    overrun: str
    """What is said of an input that ran longer."""
    parameters: Parameters | None = None
    """Where it takes batches."""


class Job:
    """One input, or one batch, that has a slot."""

    __slots__ = (
        "context", "dispatch", "entry", "guard", "members", "reason", "started", "stream", "task", "timeout", "told"
    )  # fmt: skip

    def __init__(
        self, dispatch: Dispatch, entry: Entry, stream: Stream | None = None, members: Members | None = None
    ) -> None:
        self.dispatch = dispatch
        """Of a batch: its first member, by whose lease it goes."""
        self.entry = entry
        self.stream = stream
        self.members = members
        """All inputs of a batch; None for an input of its own."""
        self.context = InputContext(
            dispatch.call,
            dispatch.index,
            dispatch.attempt,
            dispatch.method,
            () if members is None else members.inputs,
            dispatch.lease,
        )
        self.reason = ""
        """Why it is no longer wanted; empty while it is."""
        self.guard: Guard | None = None
        """Of the thread that runs it, once one does."""
        self.task: asyncio.Task[None] | None = None
        self.told = False
        """Whether its task has been cancelled, or its asynchronous generator."""
        self.started = 0.0
        """When user code began; 0 before, and after its end."""
        self.timeout = dispatch.timeout or entry.timeout
        """Seconds that it may run; for a batch, those of the next member whose time is over."""
        if members is not None:
            self.timeout = min(one.timeout or entry.timeout for one in members.dispatches)

    @property
    def overrun(self) -> str:
        """What is said of it where it ran longer."""
        if self.members is not None and len({one.timeout for one in self.members.dispatches}) > 1:
            return f"the batch of {self.entry.name} ran longer than the timeouts of all its inputs"
        if self.dispatch.timeout:
            return f"the input ran longer than timeout={self.dispatch.timeout:.10g} s of this call"
        return self.entry.overrun

    def overdue(self, started: float, now: float) -> list[int]:
        """Its time is over: that of these leases. Other members of a batch may have more."""
        if self.members is None:
            return [self.dispatch.lease]
        limits = [(one.timeout or self.entry.timeout, one.lease) for one in self.members.dispatches]
        self.timeout = min((limit for limit, _ in limits if started + limit > now), default=math.inf)
        return [lease for limit, lease in limits if started + limit <= now]

    @property
    def leases(self) -> list[int]:
        """Of all inputs in it."""
        return [self.dispatch.lease] if self.members is None else self.members.leases

    @property
    def words(self) -> tuple[str, ...]:
        """What a task is told with its cancellation."""
        return (self.overrun,) if self.reason == TIMED_OUT else ()

    def start_clock(self) -> None:
        """User code begins."""
        self.started = clock()
        self.context.deadline = self.started + self.timeout

    def stop_clock(self) -> float:
        """User code has ended: the seconds it took."""
        if self.context.voice is not None:
            self.context.voice.end()
        started, self.started = self.started, 0.0
        return clock() - started if started else 0.0

    def results(self, result: Result) -> list[Result]:
        """What is reported of each member of a batch of which `result` is said as a whole."""
        assert self.members is not None
        return [result] * len(self.members.dispatches) if self.reason else self.members.results(result)

    def cancel(self, reason: str) -> None:
        """Marks it, then interrupts it where it runs. A task is cancelled on its own loop, by the executor."""
        if self.reason:
            return
        self.context.cancelled = TIMED_OUT if reason == TIMED_OUT else "cancelled"
        self.reason = reason
        if self.guard is not None:
            self.guard.interrupt(self)
        if self.stream is not None:
            self.stream.close()

    def cancel_task(self) -> None:
        """On the loop: cancels its task, once, and not before a shielded block has ended."""
        if self.context.shields:
            self.context.held_back = self.cancel_task
        elif self.task is not None and not self.told:
            self.told = True
            self.task.cancel(*self.words)


class Runner:
    """Runs jobs of one service: `run` on the thread that calls it, `run_async` as a task."""

    def __init__(
        self, service: Service, blobs: BlobStore, drive: Callable[[Any], Any], prepare: Callable[[BaseException], None]
    ) -> None:
        """`drive` runs a coroutine that a sync one returned, `prepare` sees an exception before it is described."""
        self.entries = {method.name: _entry(service, method.name) for method in service.spec.methods}
        self.has_async = any(entry.is_async for entry in self.entries.values())
        self.has_sync = not all(entry.is_async for entry in self.entries.values())
        self.shortest_timeout = min([service.spec.timeout, *(entry.timeout for entry in self.entries.values())])
        self._service = service
        self._blobs = blobs
        self._drive = drive
        self.prepare = prepare
        self._base = contextvars.copy_context()

    def entry(self, method: str) -> Entry:
        """The callable behind a method; for an unknown one, something that fails when it is called."""
        return self.entries.get(method) or _missing(self._service, method)

    # ------------------------------------------------------------ on a thread

    def run(self, job: Job, guard: Guard) -> tuple[Result, float]:
        """Runs the job here, interruptible through `guard`: its result and the seconds of user code. For a batch: the
        result of all members that have none of their own."""
        job.guard = job.context.shelter = guard
        context = self._base.copy()
        if job.stream is not None or job.entry.is_generator:
            failure = self._stream(job, guard, context)
            payload = None
        elif job.members is not None:
            payload, failure = guarded(guard, job, context.run, self._call_batch, job, job.members)
        else:
            payload, failure = guarded(guard, job, context.run, self._call, job)
        run_s = job.stop_clock()
        if failure is None:
            return self.result(job, payload, None), run_s
        failures = [failure]
        del failure
        return context.run(self._conclude, job, failures), run_s

    def _conclude(self, job: Job, failures: list[BaseException]) -> Result:
        """What the frames of a failure hold dies here, where it still belongs to the input: its last words do, too."""
        return self.result(job, None, failures.pop())

    def _call(self, job: Job) -> Payload:
        entry = job.entry
        enter_input(job.context)
        args, kwargs = from_payload(job.dispatch.payload, self._blobs, what=entry.arguments)
        job.start_clock()
        value = entry.function(*args, **kwargs)
        if type(value) is CoroutineType:
            value = self._drive(value)
        return to_payload(value, self._blobs, entry.result)

    def _call_batch(self, job: Job, members: Members) -> None:
        args, kwargs = self._open_batch(job, members)
        if members.present:
            job.start_clock()
            value = job.entry.function(*args, **kwargs)
            if type(value) is CoroutineType:
                value = self._drive(value)
            self._close_batch(job, members, value)

    def _open_batch(self, job: Job, members: Members) -> tuple[list[list[Any]], dict[str, list[Any]]]:
        """The arguments of a batch; from here on its context speaks of those that user code gets."""
        entry, context = job.entry, job.context

        def load(payload: Payload) -> Arguments:
            args, kwargs = from_payload(payload, self._blobs, what=entry.arguments)
            return args, kwargs

        assert entry.parameters is not None, f"{entry.name} takes no batches"
        enter_input(context)
        arguments = members.gather(entry.parameters, load, self._failed)
        if 0 < len(members.present) < len(members.dispatches):
            first = members.dispatches[members.present[0]]
            context.call, context.index, context.attempt, context.lease = (
                first.call,
                first.index,
                first.attempt,
                first.lease,
            )
            context.members = members.inputs
        return arguments

    def _close_batch(self, job: Job, members: Members, value: Any) -> None:
        entry = job.entry
        members.deal(entry.name, value, lambda item: to_payload(item, self._blobs, entry.result), self._failed)

    def _stream(self, job: Job, guard: Guard, context: contextvars.Context) -> BaseException | None:
        iterator, failure = guarded(guard, job, context.run, self._open, job)
        stream = job.stream
        while failure is None and stream is not None:
            value, failure = guarded(guard, job, context.run, self._next, iterator, job.entry.result)
            if value is None:
                break
            if not stream.put(value) and not job.context.shields:
                failure = exception_for(job)()
                _quietly(context.run, getattr(iterator, "throw", None), failure)
        _quietly(context.run, getattr(iterator, "close", None))
        return failure

    def _open(self, job: Job) -> Any:
        _check_stream(job)
        enter_input(job.context)
        args, kwargs = from_payload(job.dispatch.payload, self._blobs, what=job.entry.arguments)
        job.start_clock()
        return iter(job.entry.function(*args, **kwargs))

    def _next(self, iterator: Any, what: str) -> Payload | None:
        value = next(iterator, _END)
        return None if value is _END else to_payload(value, self._blobs, what)

    # ------------------------------------------------------------ on the loop

    async def run_async(self, job: Job, loop: asyncio.AbstractEventLoop) -> tuple[Result, float]:
        """Runs the job in the current task. Only the loop's own end can make this raise."""
        payload: Payload | None = None
        failure: BaseException | None = None
        entry = job.entry
        try:
            enter_input(job.context)
            if job.stream is not None or entry.is_generator:
                _check_stream(job)
            if job.members is not None:
                await self._await_batch(job, job.members)
            else:
                args, kwargs = from_payload(job.dispatch.payload, self._blobs, what=entry.arguments)
                job.start_clock()
                if job.stream is None:
                    payload = to_payload(await entry.function(*args, **kwargs), self._blobs, entry.result)
                else:
                    await self._stream_async(job, job.stream, entry.function(*args, **kwargs), loop)
        except BaseException as error:
            failure = error
        run_s = job.stop_clock()
        try:
            return self.result(job, payload, failure), run_s
        finally:
            del failure

    async def _await_batch(self, job: Job, members: Members) -> None:
        args, kwargs = self._open_batch(job, members)
        if members.present:
            job.start_clock()
            self._close_batch(job, members, await job.entry.function(*args, **kwargs))

    def context(self) -> contextvars.Context:
        """A context for one task."""
        return self._base.copy()

    async def _stream_async(self, job: Job, stream: Stream, iterator: Any, loop: asyncio.AbstractEventLoop) -> None:
        try:
            async for value in iterator:
                try:
                    put = await stream.put_async(to_payload(value, self._blobs, job.entry.result), loop)
                    if not put and job.told:
                        await asyncio.sleep(0)  # takes what the task was sent, and what has not reached it yet
                except asyncio.CancelledError:
                    put = False
                if not put and not job.context.shields:
                    job.told = True
                    cancelled = asyncio.CancelledError(*job.words)
                    if hasattr(iterator, "athrow"):
                        await iterator.athrow(cancelled)
                    raise cancelled
        finally:
            if hasattr(iterator, "aclose"):
                await iterator.aclose()

    # ------------------------------------------------------------ ends

    def result(self, job: Job, payload: Payload | None, failure: BaseException | None) -> Result:
        """What is reported. For a cancelled job the session puts the word to it, whatever stands here."""
        count = job.stream.count if job.stream is not None else 0
        if job.reason == TIMED_OUT:
            late = FunctionTimeoutError(job.overrun)
            if failure is not None:
                self.prepare(failure)
                late.with_traceback(failure.__traceback__)  # where it was when its time was over
            return Result(TIMEOUT, error=error_info(late), count=count)
        if job.reason:
            return Result(TERMINATED, count=count) if count else CANCELLED
        if failure is not None:
            return self._failed(failure, count)
        return Result(payload=payload, count=count)

    def _failed(self, failure: BaseException, count: int = 0) -> Result:
        self.prepare(failure)
        return Result(FAILURE, error=error_info(failure), count=count)


def _entry(service: Service, name: str) -> Entry:
    spec, method = service.spec, service.method(name)
    shown = f"{spec.name}.{name}()" if name else f"{spec.name}()"
    timeout, owner = (spec.timeout, f"{spec.name}()" if not name else spec.name)
    if method.timeout is not None:
        timeout, owner = method.timeout, shown
    return Entry(
        service.callable_for(name),
        method.is_async,
        method.is_generator,
        shown,
        f"an argument of {shown}",
        f"a value yielded by {shown}" if method.is_generator else f"the result of {shown}",
        timeout,
        f"the input ran longer than timeout={timeout:.10g} s of {owner}",
        Parameters(shown, service.callable_for(name)) if method.batching is not None else None,
    )


def _missing(service: Service, method: str) -> Entry:
    owner = service.spec.name

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ExecutionError(f"the container of {owner} has no method {method!r}; its code differs from the caller's")

    shown = f"{owner}.{method}()"
    parameters = Parameters(shown, fail)
    return Entry(fail, False, False, shown, "the arguments", "the result", service.spec.timeout, "", parameters)


def _check_stream(job: Job) -> None:
    if job.stream is None:
        raise ExecutionError(f"{job.dispatch.method or 'the function'} is a generator; call it with .remote_gen()")
    if not job.entry.is_generator:
        raise ExecutionError(f"{job.dispatch.method or 'the function'} is no generator; call it with .remote()")


def _quietly(run: Callable[..., Any], call: Callable[..., Any] | None, *args: Any) -> None:
    """Ends a generator. What it raises meanwhile changes nothing: its input is over."""
    if call is not None:
        try:
            run(call, *args)
        except BaseException:
            pass
