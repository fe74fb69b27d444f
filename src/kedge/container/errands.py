"""Threads that work for a request: AnyIO's, in which Starlette and FastAPI run plain `def` code.

* There are as many as the container takes inputs at once, and at least as many as AnyIO itself would have: its number
  is a second and hidden limit otherwise.
* A request that is cancelled or out of time interrupts what runs there for it, as in the thread of a slot, and ends
  only when that has ended. What is begun afterwards is cleaning up, and left alone.
* They live as long as the container. AnyIO ties them to the task under which a loop runs, and takes each request for
  one where it finds none: it gets one that never ends.

Nothing here imports AnyIO: where user code has not done that, there is nothing to do.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any

from kedge.container.guard import LoopShelter, ThreadGuard, guarded
from kedge.container.job import Job
from kedge.sdk.context import InputContext, get_input

Find = Callable[[int], Job | None]

_of_thread: dict[int, Errand] = {}
"""What each thread is about."""
_local = threading.local()


class Errand:
    """One call that a thread runs for a job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        if job.errands is None:
            job.errands = set()
        self.context = InputContext(job.context.call, job.context.index)
        """Has the shields of this thread alone."""
        self.guard: ThreadGuard | None = None
        self._is_cleanup = bool(job.reason)
        self._ticket = [True]
        """Whoever takes it decides whether the call is made: the thread, or the task that waits no longer."""
        self._ended = False
        self._tell: Callable[[], object] | None = None

    @property
    def reason(self) -> str:
        return self._job.reason

    def interrupt(self) -> None:
        """Its job is no longer wanted."""
        if self.guard is not None:
            self.guard.interrupt(self)

    def run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """On the thread."""
        if not self._take_ticket():
            return None
        try:
            return function(*args) if self._is_cleanup else self._run_guarded(function, args)
        finally:
            self._ended = True
            if self._tell is not None:
                self._tell()

    async def end(self) -> None:
        """On the loop, where nobody waits for its result any more: comes back when its code has really ended."""
        if self._take_ticket():
            return
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        self._tell = lambda: loop.call_soon_threadsafe(ended.set)
        while not self._ended:
            try:
                await ended.wait()
            except asyncio.CancelledError:
                pass  # the one that brought us here is raised afterwards

    def _take_ticket(self) -> bool:
        try:
            return self._ticket.pop()
        except IndexError:
            return False

    def _run_guarded(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        guard = self.guard = _guard()
        thread = threading.get_ident()
        _of_thread[thread] = self
        errands = self._job.errands
        assert errands is not None
        errands.add(self)  # first this, then a look at the reason: whoever cancels does it the other way round
        try:
            value, failure = guarded(guard, self, function, *args)
        finally:
            errands.discard(self)
            del _of_thread[thread]
        if failure is None:
            return value
        try:
            raise failure
        finally:
            del failure


def _guard() -> ThreadGuard:
    """That of the calling thread."""
    guard: ThreadGuard | None = getattr(_local, "guard", None)
    if guard is None:
        guard = _local.guard = ThreadGuard()
    return guard


class TaskShelter(LoopShelter):
    """The shelter of what runs on the loop, and of the threads that work for it."""

    def enter(self, current: InputContext) -> None:
        errand = _of_thread.get(threading.get_ident())
        if errand is None or errand.guard is None:
            super().enter(current)
        else:
            errand.guard.enter(errand.context)

    def leave(self, current: InputContext) -> bool:
        errand = _of_thread.get(threading.get_ident())
        if errand is None or errand.guard is None:
            return super().leave(current)
        return errand.guard.leave(errand.context)


class AnyioThreads:
    """AnyIO on the user's loop, once user code has imported it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, find: Find, max_inputs: int) -> None:
        """`find` gives the job of a lease."""
        self._loop = loop
        self._find = find
        self._limiter: Any = None
        self._usual = 0.0
        self._root: asyncio.Task[Any] | None = None
        if "anyio" in sys.modules:
            loop.run_until_complete(self._adopt(max_inputs))

    def resize(self, max_inputs: int) -> None:
        """The container takes another number of inputs from now on. On any thread."""
        if self._limiter is not None:
            self._loop.call_soon_threadsafe(self._resize, max_inputs)

    async def _adopt(self, max_inputs: int) -> None:
        import anyio.to_thread

        self._limiter = anyio.to_thread.current_default_thread_limiter()
        self._usual = self._limiter.total_tokens
        self._resize(max_inputs)
        self._root = self._loop.create_task(asyncio.Event().wait(), name="kedge: root of AnyIO's threads")
        self._root.add_done_callback(asyncio.base_events._run_until_complete_cb)  # type: ignore[attr-defined]
        original = anyio.to_thread.run_sync

        async def run_sync(func: Any, *args: Any, abandon_on_cancel: bool = False, **options: Any) -> Any:
            current = get_input()
            job = self._find(current.lease) if current is not None else None
            if job is None or job.exchange is None or abandon_on_cancel or options.get("cancellable"):
                return await original(func, *args, abandon_on_cancel=abandon_on_cancel, **options)
            errand = Errand(job)
            try:
                return await original(errand.run, func, args, **options)
            except asyncio.CancelledError:
                if job.reason:
                    await errand.end()
                raise

        vars(anyio.to_thread)["run_sync"] = run_sync

    def _resize(self, max_inputs: int) -> None:
        self._limiter.total_tokens = max(self._usual, max_inputs)
