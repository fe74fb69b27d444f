"""Waits of slot threads that an interruption can end.

An exception that is set for a thread from outside is raised when the thread runs Python code again; one that waits in C
does not. On the main thread a signal ends such a wait. For slot threads, `install` makes the common ones wakeable:

* `time.sleep`;
* what stands on `threading.Condition`: `Event.wait`, `Queue.get`, `Semaphore`, `Barrier`, `Future.result`;
* child processes: `Popen.wait`, `communicate`, and with them all of `subprocess.run`;
* the event loop under a coroutine that a plain function returned.

A thread that waits leaves something at its bell, by which whoever has set the exception wakes it: the exception is
raised where the wait was, as on the main thread. So nothing polls, and nothing is killed. Only containers do this, only
slot threads listen, and only while the input may still be interrupted: cleaning up after that waits as always.

Not woken: `Lock.acquire` (nobody may release it for its owner), `Thread.join`, `SimpleQueue.get`, sockets (unless
somebody asks for it, see `sockets`) and files, `os.waitpid`, `os.system`, and whatever else is written in C.
"""

from __future__ import annotations

import functools
import operator
import os
import select
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from kedge.container.wake import Wake

_bells: dict[int, Bell] = {}
"""By thread."""

_sleep = time.sleep
_allocate_lock = threading.Lock
_CONDITION_WAIT = threading.Condition.wait.__code__


class Bell:
    """Wakes the thread that makes it. Rung by another thread, once per input."""

    __slots__ = ("_pipe", "listening", "lock", "loop", "socket")

    def __init__(self) -> None:
        self.listening = False
        """Whether its thread is in user code that has not been interrupted yet."""
        self.lock: Any = None
        """What the thread waits for, or has waited for: nobody else needs it to be locked."""
        self.loop: Callable[[], object] | None = None
        """Ends the wait of the event loop that the thread runs; False where that does not wait."""
        self.socket: Callable[[], object] | None = None
        """Ends the wait for the socket that the thread waits for."""
        self._pipe: Wake | None = None
        _bells[threading.get_ident()] = self

    def ring(self) -> None:
        """Ends the wait. The exception must be set already."""
        self.listening = False
        for wake in (self.lock and self.lock.release, self.loop, self.socket):
            if wake is not None:
                try:
                    wake()
                except RuntimeError:
                    pass  # not locked: that wait has just ended; or a loop that is closed
        if self._pipe is not None:
            self._pipe.set()

    def fileno(self) -> int:
        """Readable once it has been rung."""
        if self._pipe is None:
            self._pipe = Wake()
        return self._pipe.fileno()

    def silence(self) -> None:
        """Forgets that it was rung."""
        self.lock = self.socket = None
        if self._pipe is not None:
            self._pipe.clear()


def install() -> None:
    """Replaces the waits of this process. Goes before user code is imported, which may take `sleep` by name."""
    time.sleep = _Time().sleep
    if "_allocate_lock" in _CONDITION_WAIT.co_names:
        threading._allocate_lock = _lock_for_wait  # type: ignore[attr-defined]
    if hasattr(os, "pidfd_open") and hasattr(subprocess, "_PopenSelector"):
        subprocess._PopenSelector = _Selector
        _replace_in_popen()


def leave_loop(end_wait: Callable[[], object] | None) -> None:
    """The calling thread runs an event loop for its input; None: no longer. See `Bell.loop`."""
    bell = _bells.get(threading.get_ident())
    if bell is not None:
        bell.loop = end_wait


def listening_bell() -> Bell | None:
    bell = _bells.get(threading.get_ident())
    return bell if bell is not None and bell.listening else None


class _Time:
    """Its bound method is `time.sleep`: unlike a function, it may be an attribute of a class, as a builtin may."""

    def sleep(self, seconds: Any, /) -> None:
        bell = listening_bell()
        if bell is not None:
            if not isinstance(seconds, (int, float)) and hasattr(seconds, "__index__"):
                seconds = operator.index(seconds)
            if isinstance(seconds, (int, float)) and 0 < seconds <= threading.TIMEOUT_MAX:
                lock = _allocate_lock()
                lock.acquire()
                bell.lock = lock
                if bell.listening:
                    lock.acquire(True, seconds)
                return
        _sleep(seconds)

    sleep.__doc__ = _sleep.__doc__
    sleep.__module__, sleep.__qualname__ = "time", "sleep"

    def __reduce__(self) -> Any:
        return __import__, ("time",)


def _lock_for_wait() -> Any:
    """In place of `threading._allocate_lock`. `Condition.wait` makes a lock of its own for every wait, and bears that
    it is released early: `notify` passes over it, and an exception takes it from the queue (it may come by Ctrl-C)."""
    lock = _allocate_lock()
    bell = listening_bell()
    if bell is not None and sys._getframe(1).f_code is _CONDITION_WAIT:
        bell.lock = lock
    return lock


class _Selector(selectors.PollSelector):
    """In place of the one by which `Popen.communicate` reads: listens to the bell as well."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        bell = listening_bell()
        if bell is None:
            return super().select(timeout)
        descriptor = bell.fileno()
        self.register(descriptor, selectors.EVENT_READ)
        try:
            ready = super().select(timeout) if bell.listening else []
        finally:
            self.unregister(descriptor)
        return [(key, events) for key, events in ready if key.fd != descriptor]


def _replace_in_popen() -> None:
    popen: Any = subprocess.Popen
    wait, communicate = popen._wait, popen.communicate

    @functools.wraps(wait)
    def wakeable_wait(self: Any, timeout: float | None) -> Any:
        bell = listening_bell() if timeout is None and self.returncode is None else None
        if bell is not None:
            _wait_for_exit(self.pid, bell)
        return wait(self, timeout)

    @functools.wraps(communicate)
    def wakeable_communicate(self: Any, input: Any = None, timeout: float | None = None) -> Any:
        if timeout is not None or self._communication_started or listening_bell() is None:
            return communicate(self, input, timeout)
        # With one pipe it would take a short cut, a plain read that nothing wakes. So the long way, as with two.
        try:
            streams = self._communicate(input, None, None)
        finally:
            self._communication_started = True
        self.wait()
        return streams

    popen._wait, popen.communicate = wakeable_wait, wakeable_communicate


def _wait_for_exit(process: int, bell: Bell) -> None:
    try:
        descriptor = os.pidfd_open(process)
    except OSError:
        return  # it is gone, or this machine does not allow it
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(bell.fileno(), select.POLLIN)
        if bell.listening:
            poll.poll()
    finally:
        os.close(descriptor)
