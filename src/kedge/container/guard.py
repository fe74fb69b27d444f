"""Where synchronous user code can be interrupted, and only there.

* An exception may hit a thread between any two of its instructions, so it is let in only while a guard is *armed*: from
  the first to the last instruction of user code. Locks and sockets of the runtime are never held by an armed thread.
* A cancel marks the job first and then interrupts; `arm` refuses a marked job. So a cancel that comes too early still
  counts, and one that comes too late hits nothing.
* Slot threads get the exception from outside (`PyThreadState_SetAsyncExc`). One that is pending when the code ends is
  revoked under the same lock that sent it, before the thread takes its next input.
  Where they wait, they are woken (see `waits`).
* The main thread gets a signal instead, which also breaks what blocks in a system call. Under a loop that waits it
  cancels the coroutine: an exception would be lost in the loop.

An input is hit at most once. Repeating and giving up belong to whoever escalates: `interrupt` is their one door.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable
from typing import Any, Protocol

from kedge.container.session import TIMED_OUT
from kedge.container.waits import Bell
from kedge.exception import InputCancellation, InputTimeout

# Two prototypes: clearing needs a NULL pointer, and py_object(None) would raise None instead.
_raise_in = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)
_revoke_in = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)

MAIN_SIGNAL: int = signal.SIGRTMIN + 6 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR1
"""Interrupts user code on the main thread. A real-time signal, since programs use SIGUSR1 themselves."""


class Cancellable(Protocol):
    """What a guard needs to know of a job."""

    reason: str
    """Why it is no longer wanted: `cancelled`, `timeout`, or another word; empty while it is."""


class Guard(Protocol):
    def arm(self, job: Cancellable) -> bool:
        """Lets interruptions of `job` in; False where it is no longer wanted."""

    def disarm(self) -> None:
        """Nothing of the job reaches this thread any more."""

    def interrupt(self, job: Cancellable) -> None:
        """Raises in the thread's user code if it works on `job`. Called by other threads, after marking it."""


class ThreadGuard:
    """Guards the slot thread that makes it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._bell = Bell()
        self._job: Cancellable | None = None
        self._hit = False

    def arm(self, job: Cancellable) -> bool:
        with self._lock:
            if job.reason:
                return False
            self._job = job
            self._bell.listening = True
            return True

    def disarm(self) -> None:
        with self._lock:
            self._job = None
            self._bell.listening = False
            if self._hit:
                self._hit = False
                _revoke_in(self._thread, None)
                self._bell.silence()

    def interrupt(self, job: Cancellable) -> None:
        with self._lock:
            if self._job is job and not self._hit:
                self._hit = True
                _raise_in(self._thread, exception_for(job))
                self._bell.ring()


class MainGuard:
    """Guards the main thread. `install` goes before the first input.

    No lock: the handler runs on the very thread that arms and disarms.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._bell = Bell()
        self._job: Cancellable | None = None

    @property
    def armed(self) -> bool:
        """Whether the main thread is in user code."""
        return self._job is not None

    def install(self) -> None:
        signal.signal(MAIN_SIGNAL, self._on_signal)

    def arm(self, job: Cancellable) -> bool:
        self._job = job
        if job.reason:
            self._job = None
            return False
        return True

    def disarm(self) -> None:
        self._job = None

    def interrupt(self, job: Cancellable) -> None:
        if self._job is job:
            signal.pthread_kill(self._thread, MAIN_SIGNAL)

    def _on_signal(self, number: int, frame: object) -> None:
        job = self._job
        if job is not None and job.reason:
            self._job = None
            end_wait = self._bell.loop
            if end_wait is None or not end_wait():
                raise exception_for(job)


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
    return value, failure
