"""One input on its way through user code, from its payload to its result. What runs where is the executor's business.

* Every input has a copy of the context that the enter hooks left behind: what it sets in context variables is its own.
* Whatever user code raises fails this input and nothing else, `SystemExit` and `KeyboardInterrupt` included.
* Arguments that cannot be loaded and results that cannot be sent are failures of the input, too.
* User code runs armed (see `guard`), the runtime's own steps do not.
* `started` is set while user code runs, and only then: its time is what a timeout limits.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from types import CoroutineType
from typing import Any

from msgspec import Struct

from kedge.container.guard import Guard, exception_for, guarded
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


class Job:
    """One input that has a slot."""

    __slots__ = ("context", "dispatch", "entry", "guard", "reason", "started", "stream", "task")

    def __init__(self, dispatch: Dispatch, entry: Entry, stream: Stream | None) -> None:
        self.dispatch = dispatch
        self.entry = entry
        self.stream = stream
        self.context = InputContext(
            dispatch.call, dispatch.index, dispatch.attempt, dispatch.method, lease=dispatch.lease
        )
        self.reason = ""
        """Why it is no longer wanted; empty while it is."""
        self.guard: Guard | None = None
        """Of the thread that runs it, once one does."""
        self.task: asyncio.Task[None] | None = None
        self.started = 0.0
        """When user code began; 0 before, and after its end."""

    @property
    def words(self) -> tuple[str, ...]:
        """What a task is told with its cancellation."""
        return (self.entry.overrun,) if self.reason == TIMED_OUT else ()

    def stop_clock(self) -> float:
        """User code has ended: the seconds it took."""
        started, self.started = self.started, 0.0
        return clock() - started if started else 0.0

    def cancel(self, reason: str) -> None:
        """Marks it, then interrupts it where it runs. A task is cancelled on its own loop, by the executor."""
        if self.reason:
            return
        self.context.cancelled = reason
        self.reason = reason
        if self.guard is not None:
            self.guard.interrupt(self)
        if self.stream is not None:
            self.stream.close()


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
        self._prepare = prepare
        self._base = contextvars.copy_context()

    def entry(self, method: str) -> Entry:
        """The callable behind a method; for an unknown one, something that fails when it is called."""
        return self.entries.get(method) or _missing(self._service, method)

    # ------------------------------------------------------------ on a thread

    def run(self, job: Job, guard: Guard) -> tuple[Result, float]:
        """Runs the job here, interruptible through `guard`: its result and the seconds of user code."""
        job.guard = guard
        context = self._base.copy()
        if job.stream is not None or job.entry.is_generator:
            failure = self._stream(job, guard, context)
            payload = None
        else:
            payload, failure = guarded(guard, job, context.run, self._call, job)
        run_s = job.stop_clock()
        try:
            return self.result(job, payload, failure), run_s
        finally:
            del failure  # or its traceback and this frame keep each other alive

    def _call(self, job: Job) -> Payload:
        entry = job.entry
        enter_input(job.context)
        args, kwargs = from_payload(job.dispatch.payload, self._blobs, what=entry.arguments)
        job.started = clock()
        value = entry.function(*args, **kwargs)
        if type(value) is CoroutineType:
            value = self._drive(value)
        return to_payload(value, self._blobs, entry.result)

    def _stream(self, job: Job, guard: Guard, context: contextvars.Context) -> BaseException | None:
        iterator, failure = guarded(guard, job, context.run, self._open, job)
        stream = job.stream
        while failure is None and stream is not None:
            value, failure = guarded(guard, job, context.run, self._next, iterator, job.entry.result)
            if value is None:
                break
            if not stream.put(value):
                failure = exception_for(job)()
                _quietly(context.run, getattr(iterator, "throw", None), failure)
        _quietly(context.run, getattr(iterator, "close", None))
        return failure

    def _open(self, job: Job) -> Any:
        _check_stream(job)
        enter_input(job.context)
        args, kwargs = from_payload(job.dispatch.payload, self._blobs, what=job.entry.arguments)
        job.started = clock()
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
            args, kwargs = from_payload(job.dispatch.payload, self._blobs, what=entry.arguments)
            job.started = clock()
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

    def context(self) -> contextvars.Context:
        """A context for one task."""
        return self._base.copy()

    async def _stream_async(self, job: Job, stream: Stream, iterator: Any, loop: asyncio.AbstractEventLoop) -> None:
        try:
            async for value in iterator:
                try:
                    put = await stream.put_async(to_payload(value, self._blobs, job.entry.result), loop)
                except asyncio.CancelledError:
                    put = False
                if not put:
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
            late = FunctionTimeoutError(job.entry.overrun)
            if failure is not None:
                self._prepare(failure)
                late.with_traceback(failure.__traceback__)  # where it was when its time was over
            return Result(TIMEOUT, error=error_info(late), count=count)
        if job.reason:
            return Result(TERMINATED, count=count) if count else CANCELLED
        if failure is not None:
            self._prepare(failure)
            return Result(FAILURE, error=error_info(failure), count=count)
        return Result(payload=payload, count=count)


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
    )


def _missing(service: Service, method: str) -> Entry:
    owner = service.spec.name

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ExecutionError(f"the container of {owner} has no method {method!r}; its code differs from the caller's")

    return Entry(fail, False, False, f"{owner}.{method}()", "the arguments", "the result", service.spec.timeout, "")


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
