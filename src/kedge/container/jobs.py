"""Inputs on their way through user code, from payload to result. What runs where is the executor's business.

* A batch is one job: one call for all its members (see `members`).
* Every input has a copy of the context that the enter hooks left behind: what it sets in context variables is its own.
* Whatever user code raises fails this input and nothing else, `SystemExit` and `KeyboardInterrupt` included.
* Arguments that cannot be loaded and results that cannot be sent are failures of the input, too.
* User code runs armed (see `guard`), the runtime's own steps do not.
* A request is one job: its result says only that its code has ended, and how (see `exchange`).
* `started` is set while user code runs, and only then: its time is what a timeout limits.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Mapping
from types import CoroutineType
from typing import Any

import msgspec

from kedge.container.asgi import AsgiApp
from kedge.container.entries import Entry, WebApp, entry_of, missing
from kedge.container.exchange import Exchange
from kedge.container.guard import Guard, exception_for, guarded
from kedge.container.job import Job
from kedge.container.members import Arguments, Members
from kedge.container.output import say
from kedge.container.session import TIMED_OUT
from kedge.container.stream import Stream
from kedge.container.wsgi import WsgiApp
from kedge.exception import ExecutionError, FunctionTimeoutError
from kedge.model.payload import FAILURE, TERMINATED, TIMEOUT, Payload, Result
from kedge.model.web import Request
from kedge.sdk.blobs import BlobStore
from kedge.sdk.context import enter_input
from kedge.sdk.serializer import error_info, from_payload, to_payload
from kedge.sdk.service import Service

CANCELLED = Result(TERMINATED)
NO_WEB: Mapping[str, WebApp] = {}
_END: Any = object()
_decode_request = msgspec.msgpack.Decoder(Request).decode


class Runner:
    """Runs jobs of one service: `run` on the thread that calls it, `run_async` as a task."""

    def __init__(
        self,
        service: Service,
        blobs: BlobStore,
        drive: Callable[[Any], Any],
        web: Mapping[str, WebApp] = NO_WEB,
    ) -> None:
        """`drive` runs a coroutine that a sync one returned, `web` has the apps of web functions by method."""
        names = [method.name for method in service.spec.methods]
        self.entries = {name: entry_of(service, name, web.get(name)) for name in names}
        self.has_async = any(entry.is_async for entry in self.entries.values())
        self.has_sync = not all(entry.is_async for entry in self.entries.values())
        self.shortest_timeout = min([service.spec.timeout, *(entry.timeout for entry in self.entries.values())])
        self._service = service
        self._blobs = blobs
        self._drive = drive
        self._base = contextvars.copy_context()

    def entry(self, method: str) -> Entry:
        """The callable behind a method; for an unknown one, something that fails when it is called."""
        return self.entries.get(method) or missing(self._service, method)

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
        elif job.exchange is not None or job.entry.web is not None:
            payload, failure = guarded(guard, job, context.run, self._answer, job, guard)
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

    def _answer(self, job: Job, guard: Guard) -> None:
        enter_input(job.context)
        app, exchange, request = _request_of(job)
        assert isinstance(app, WsgiApp)
        job.start_clock()
        app.answer(exchange, request, guard, job.context)

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
            elif job.exchange is not None or entry.web is not None:
                app, exchange, request = _request_of(job)
                assert isinstance(app, AsgiApp)
                job.start_clock()
                await app.answer(exchange, request)
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

    def start_task(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]) -> None:
        """In a context of its own. A task copies that in which it is made, in Python 3.10 too."""
        self._base.copy().run(loop.create_task, coroutine)

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
                late.with_traceback(failure.__traceback__)  # where it was when its time was over
            return _told(job, Result(TIMEOUT, error=error_info(late), count=count))
        if job.reason:
            return Result(TERMINATED, count=count) if count else CANCELLED
        if failure is not None:
            return _told(job, self._failed(failure, count))
        return Result(payload=payload, count=count)

    def _failed(self, failure: BaseException, count: int = 0) -> Result:
        return Result(FAILURE, error=error_info(failure), count=count)


def _check_stream(job: Job) -> None:
    if job.stream is None:
        raise ExecutionError(f"{job.dispatch.method or 'the function'} is a generator; call it with .remote_gen()")
    if not job.entry.is_generator:
        raise ExecutionError(f"{job.dispatch.method or 'the function'} is no generator; call it with .remote()")


def _request_of(job: Job) -> tuple[WebApp, Exchange, Request]:
    """What a request needs; ExecutionError where one has come to what answers none, or something else to what does."""
    app, exchange = job.entry.web, job.exchange
    if app is None:
        raise ExecutionError(f"{job.entry.name} is no web function: a request cannot call it")
    if exchange is None:
        raise ExecutionError(f"{job.entry.name} is a web function: it answers requests to its address, and no calls")
    request = exchange.request = _decode_request(job.dispatch.payload.data)
    return app, exchange, request


def _told(job: Job, result: Result) -> Result:
    """The same result. Whoever sent a request sees nothing of what its code raised: the log has it."""
    if job.exchange is not None and result.error is not None:
        say(job.exchange.epitaph(job.entry.name, result))
    return result


def _quietly(run: Callable[..., Any], call: Callable[..., Any] | None, *args: Any) -> None:
    """Ends a generator. What it raises meanwhile changes nothing: its input is over."""
    if call is not None:
        try:
            run(call, *args)
        except BaseException:
            pass
