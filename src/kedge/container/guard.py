"""Where synchronous user code can be interrupted, and only there.

* An exception may hit a thread between any two of its instructions, so it is let in only while a guard is *armed*: from
  the first to the last instruction of user code. Locks and sockets of the runtime are never held by an armed thread.
  Where it would leave a lock of the standard library behind, it waits a moment (see `brittle`).
* A cancel marks the job first and then interrupts; `arm` refuses a marked job. So a cancel that comes too early still
  counts, and one that comes too late hits nothing.
* Slot threads get the exception from outside (`PyThreadState_SetAsyncExc`). One that is pending when the code ends is
  revoked under the same lock that sent it, before the thread takes its next input.
  Where they wait, they are woken (see `waits`).
* The main thread gets a signal instead, which also breaks what blocks in a system call. Under a loop that waits it
  cancels the coroutine: an exception would be lost in the loop.
* In a shielded block (`kedge.shield`) nothing is let in; what came meanwhile is raised where the block ends.

An input is hit at most once: what it does then is cleaning up, and a second exception would tear that apart. Code that
goes on is the business of those outside (`core.overdue`). Only a hit that certainly reached nobody is repeated: Python
drops what is raised in a finalizer.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from kedge.container.brittle import may_raise_at, raise_in, set_exception
from kedge.container.session import TIMED_OUT
from kedge.container.waits import Bell
from kedge.exception import InputCancellation, InputTimeout
from kedge.sdk.context import InputContext

MAIN_SIGNAL: int = signal.SIGRTMIN + 6 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR1
"""Interrupts user code on the main thread. A real-time signal, since programs use SIGUSR1 themselves."""
AGAIN_S = 0.001
"""After this it is tried again where nothing has come of it: nearly always the reason has passed."""
LONGEST_AGAIN_S = 0.02

_guards: dict[int, Guard] = {}
"""By thread."""
_finalizing: set[int] = set()
"""Threads that are told of what a finalizer has raised: nothing that is raised there reaches user code either."""
_sleep = time.sleep


class Cancellable(Protocol):
    """What a guard needs to know of a job."""

    @property
    def reason(self) -> str:
        """Why it is no longer wanted: `cancelled`, `timeout`, or another word; empty while it is."""

    @property
    def context(self) -> InputContext: ...


class Guard(Protocol):
    """Also the shelter of what it guards, see `sdk.context.Shelter`."""

    def arm(self, job: Cancellable) -> bool:
        """Lets interruptions of `job` in; False where it is no longer wanted."""

    def disarm(self) -> None:
        """Nothing of the job reaches this thread any more."""

    def interrupt(self, job: Cancellable) -> None:
        """Raises in the thread's user code if it works on `job`. Called by other threads, after marking it."""

    def attempt(self, job: Cancellable) -> bool:
        """The same as far as it is possible now; False where it must be tried again."""

    def missed(self) -> Cancellable | None:
        """What was raised in the calling thread has reached nobody: the job that is to be interrupted again."""

    def enter(self, current: InputContext) -> None: ...

    def leave(self, current: InputContext) -> bool: ...


class ThreadGuard:
    """Guards the slot thread that makes it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._bell = Bell()
        self._job: Cancellable | None = None
        self._hit = False
        _guards[self._thread] = self

    def arm(self, job: Cancellable) -> bool:
        with self._lock:
            shielded = job.context.shields > 0  # a generator that has yielded in a shielded block
            if job.reason and not shielded:
                return False
            self._job = job
            self._bell.listening = not shielded
            return True

    def disarm(self) -> None:
        with self._lock:
            self._job = None
            self._bell.listening = False
            if self._hit:
                self._hit = False
                _revoke(self._thread)
                self._bell.silence()

    def interrupt(self, job: Cancellable) -> None:
        if not self.attempt(job):
            _insist(self, job)

    def attempt(self, job: Cancellable) -> bool:
        with self._lock:
            if self._job is not job or self._hit or job.context.shields:
                return True
            if self._thread in _finalizing or not raise_in(self._thread, exception_for(job)):
                return False
            self._hit = True
            self._bell.ring()
            return True

    def missed(self) -> Cancellable | None:
        with self._lock:
            if not self._hit:
                return None
            self._hit = False
            self._bell.listening = True
            return self._job

    def enter(self, current: InputContext) -> None:
        if not self._runs(current):
            return
        before = current.shields
        try:
            with self._lock:
                current.shields = before + 1
                self._bell.listening = False
            checkpoint()  # what was sent before is raised here, not in the block
        except BaseException:
            current.shields = before
            raise

    def leave(self, current: InputContext) -> bool:
        job = self._job
        if job is None or not current.shields or not self._runs(current):
            return False
        with self._lock:
            current.shields -= 1
            due = bool(job.reason) and not current.shields and not self._hit
            self._hit = self._hit or due
            self._bell.listening = not (current.shields or self._hit)
        if due:
            raise exception_for(job)
        return False

    def _runs(self, current: InputContext) -> bool:
        """Whether the calling thread is ours, and in the code of this input."""
        return self._job is not None and self._job.context is current and threading.get_ident() == self._thread


class MainGuard:
    """Guards the main thread. `install` goes before the first input.

    No lock: the handler runs on the very thread that arms and disarms.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._bell = Bell()
        self._job: Cancellable | None = None
        self._hit: Cancellable | None = None
        _guards[self._thread] = self

    @property
    def armed(self) -> bool:
        """Whether the main thread is in user code."""
        return self._job is not None

    def install(self) -> None:
        signal.signal(MAIN_SIGNAL, self._on_signal)

    def arm(self, job: Cancellable) -> bool:
        self._job = job
        if job.reason and not job.context.shields:
            self._job = None
            return False
        return True

    def disarm(self) -> None:
        self._job = self._hit = None

    def interrupt(self, job: Cancellable) -> None:
        if not self.attempt(job):
            # One that comes just before the code begins to wait in a system call does not end that wait.
            _insist(self, job)

    def attempt(self, job: Cancellable) -> bool:
        if self._job is not job or job.context.shields:
            return True
        signal.pthread_kill(self._thread, MAIN_SIGNAL)
        return False

    def missed(self) -> Cancellable | None:
        job, self._hit = self._hit, None
        if job is not None:
            self._job = job
        return job

    def enter(self, current: InputContext) -> None:
        if self._runs(current):
            current.shields += 1

    def leave(self, current: InputContext) -> bool:
        if current.shields and self._runs(current):
            current.shields -= 1
            job = self._job
            if job is not None and job.reason and not current.shields:
                self._job, self._hit = None, job
                raise exception_for(job)
        return False

    def _runs(self, current: InputContext) -> bool:
        return self._job is not None and self._job.context is current and threading.get_ident() == self._thread

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        job = self._job
        if job is None or not job.reason or job.context.shields:
            return
        if self._thread not in _finalizing and may_raise_at(frame):  # else it comes again
            self._job, self._hit = None, job
            end_wait = self._bell.loop
            if end_wait is None or not end_wait():
                raise exception_for(job)


class LoopShelter:
    """The shelter of all tasks on the loop of the thread that makes it. Whoever cancels a task looks whether its input
    has shields, and leaves what it held back."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def enter(self, current: InputContext) -> None:
        if threading.get_ident() == self._thread:
            current.shields += 1

    def leave(self, current: InputContext) -> bool:
        if threading.get_ident() != self._thread:
            return False
        current.shields -= 1
        interrupt = current.held_back
        if current.shields or interrupt is None:
            return False
        current.held_back = None
        interrupt()
        return True


def checkpoint() -> None:
    """An exception that was set for the calling thread from outside is raised here: where a function begins."""


class _Revoked(BaseException):
    """Takes the place of an exception that has come too late."""


def _revoke(thread: int) -> None:
    """Takes back what was set for the calling thread and has not been raised. Python can be told to forget it, but 3.12
    then goes on looking for it, at a third of its speed."""
    try:
        set_exception(thread, _Revoked)
        checkpoint()
    except _Revoked:
        pass


def repeat_what_finalizers_drop() -> None:
    """What is raised in `__del__` or in the callback of a weak reference goes to `sys.unraisablehook` and nowhere else.
    Where that is an interruption, it is sent again."""
    show = sys.unraisablehook

    def hook(unraisable: Any, /) -> None:
        thread = threading.get_ident()
        _finalizing.add(thread)
        try:
            dropped = isinstance(unraisable.exc_value, InputCancellation)
            if not dropped:
                show(unraisable)
        except InputCancellation:
            dropped = True
        guard = _guards.get(thread)
        job = guard.missed() if dropped and guard is not None else None
        if guard is not None and job is not None:
            _insist(guard, job)
        _finalizing.discard(thread)

    sys.unraisablehook = hook


def _insist(guard: Guard, job: Cancellable) -> None:
    """Interrupts again, beside the caller, until that has come to something."""

    def insist() -> None:
        pause = AGAIN_S
        _sleep(pause)
        while not guard.attempt(job):
            pause = min(pause * 2, LONGEST_AGAIN_S)
            _sleep(pause)

    try:
        _thread.start_new_thread(insist, ())
    except RuntimeError:
        pass  # user code has used up all threads: the grace period decides


def exception_for(job: Cancellable) -> type[InputCancellation]:
    """What user code sees of a cancel."""
    return InputTimeout if job.reason == TIMED_OUT else InputCancellation


def guarded(guard: Guard, job: Cancellable, call: Callable[..., Any], *args: Any) -> tuple[Any, BaseException | None]:
    """Calls user code where `job` may interrupt it: what it returned, or what it raised. Never raises."""
    value: Any = None
    failure: BaseException | None = None
    try:
        try:
            if guard.arm(job):
                value = call(*args)
            else:
                failure = exception_for(job)()
        except BaseException as error:
            failure = error
        guard.disarm()
    except BaseException as error:
        # An interruption between the last instruction of user code and disarm. There is no second one.
        guard.disarm()
        failure = error
    try:
        return value, failure
    finally:
        del failure  # or its traceback and this frame keep each other alive, and all that user code held
