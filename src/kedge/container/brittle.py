"""Where an interruption must not be raised: between a lock of the standard library and what protects it.

An exception that comes from outside may be raised between any two instructions of a thread. `with lock:` bears that;
`Handler.acquire` of logging, `Condition.__enter__` (under queues, events and semaphores) and the locks of imports do
not: the lock is taken, the exception is raised before anybody knows, and all siblings wait for ever. So:

* `raise_in` looks where the thread stands, and leaves it alone in the modules that hold such locks, but for the places
  which are known to be harmless. Whoever interrupts tries again a moment later.
* Threads that wait in a queue for one lock stand there all the time. `make_sturdy` lets the two that many inputs share
  take their locks in one step that nothing can get into: conditions, and handlers of logging.

What user code does with locks of its own is its own business: `with lock:` is safe, `lock.acquire()` before a `try` is
not, as with Ctrl-C.

An exception set for a thread is raised where the thread stands in Python code, or when a call into C that it makes from
there has returned. That is what makes looking worth while.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import operator
import os
import queue
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

set_exception = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)

_LIBRARY = os.path.dirname(threading.__file__)
_MODULES = ("threading.py", "queue.py", "logging/__init__.py", "concurrent/futures/_base.py")
_OWN = [os.path.join(os.path.dirname(__file__), name) for name in ("children.py", "wake.py")]
_BRITTLE = frozenset((*(f"{_LIBRARY}/{name}" for name in _MODULES), "<frozen importlib._bootstrap>", *_OWN))
"""Files whose code takes locks for its callers; and of kedge's own, what opens and closes pipes for them."""


def raise_in(thread: int, exception: type[BaseException]) -> bool:
    """Sets the exception for a thread, unless that stands where it would do harm: then nothing, and False."""
    harmless = _harmless_places()
    # No call may stand between the look and the exception, or the thread could move on meanwhile: Python lets others
    # run after calls, where functions begin, and where loops go round. A `for` asks `sys._current_frames` without one.
    for frames in iter(sys._current_frames, None):
        if thread not in frames:
            return True
        frame = frames[thread]
        caller = frame.f_back
        starts = caller is not None and caller.f_back is not None and _START in (caller.f_code, caller.f_back.f_code)
        may = frame.f_code.co_filename not in _BRITTLE or ((frame.f_code, frame.f_lasti) in harmless and not starts)
        if may:
            set_exception(thread, exception)
        frames.clear()  # this frame is in it, and would keep alive what the others hold
        return may
    return False


_START = threading.Thread.start.__code__ if sys.version_info < (3, 12) else None
"""It waits for the new thread, which Python 3.11 does not tell from this one before it runs: the exception would be
raised there."""


def may_raise_at(frame: FrameType | None) -> bool:
    """The same question for the main thread, asked by its signal handler."""
    return (
        frame is None
        or frame.f_code.co_filename not in _BRITTLE
        or frame.f_code in _JOINS
        or (frame.f_code, frame.f_lasti) in _harmless_places()
    )


_JOINS = frozenset(
    function.__code__
    for function in (threading.Thread.join, getattr(threading.Thread, "_wait_for_tstate_lock", threading.Thread.join))
)
"""A signal ends this wait too, and the lock that it waits for is nobody else's."""


@functools.cache
def _harmless_places() -> frozenset[tuple[CodeType, int]]:
    """Where functions begin that have not done anything yet, where a queue takes its lock (it goes on with a call, and
    there the exception is raised then), and where `Condition.wait` waits."""
    import dis

    places: set[tuple[CodeType, int]] = set()
    beginnings: list[Callable[..., Any]] = [
        queue.Queue.put,
        queue.Queue.get,
        threading.Semaphore.acquire,
        threading.Event.wait,
        threading.Condition.wait,
        logging.Logger.debug,
        logging.Logger.info,
        logging.Logger.warning,
        logging.Logger.error,
        logging.Logger.isEnabledFor,
        logging.Logger._log,
    ]
    if sys.version_info >= (3, 13):  # who has let others run at such a place hears of the exception at the next one
        beginnings = []
    for function in beginnings:
        steps = dis.get_instructions(function)
        # Without RESUME, in Python 3.10, a frame that has not begun stands before its first instruction.
        places.add((function.__code__, next((step.offset for step in steps if step.opname == "RESUME"), -1)))
    for function in (queue.Queue.put, queue.Queue.get):
        code = function.__code__
        places.update(
            (code, step.offset) for step in dis.get_instructions(code) if step.opname in ("BEFORE_WITH", "SETUP_WITH")
        )
    wait, attribute, waits = threading.Condition.wait.__code__, "", False
    for step in dis.get_instructions(wait):
        if step.opname.startswith("STORE_FAST") and step.argval == "gotit":
            waits = True  # from here on the lock of the condition is given back and taken again, whatever happens
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attribute = step.argval
        elif step.opname in ("PRECALL", "CALL", "CALL_METHOD") and attribute == "acquire" and waits:
            places.add((wait, step.offset))
    return frozenset(places)


# ---------------------------------------------------------------- taking a lock in one step


class _Door(property):
    """`__enter__` or `__exit__` of a lock for the condition that stands on it: found without a call, called from C."""

    def __call__(self, condition: threading.Condition, *outcome: Any) -> Any:
        """As an attribute of the class it is a function, which `ExitStack` wants."""
        assert self.fget is not None
        return self.fget(condition)(*outcome)


def make_sturdy() -> None:
    """Changes conditions and handlers of this process. A second time, or in a fork of a process where this was done, it
    costs nothing."""
    _harmless_places()  # no signal handler should have to wait for it
    condition: Any = threading.Condition
    condition.__enter__ = _Door(operator.attrgetter("_lock.__enter__"))
    condition.__exit__ = _Door(operator.attrgetter("_lock.__exit__"))
    handler: Any = logging.Handler
    handler.handle = _handle
    handler = logging.StreamHandler
    handler.flush = _flush


_plain_handle, _plain_flush = logging.Handler.handle, logging.StreamHandler.flush
_acquire, _release = logging.Handler.acquire, logging.Handler.release


def _has_plain_lock(handler: logging.Handler) -> bool:
    """Some handlers do more than taking the lock."""
    kind = type(handler)
    return kind.acquire is _acquire and kind.release is _release and handler.lock is not None


def _handle(self: logging.Handler, record: logging.LogRecord) -> bool:
    if not _has_plain_lock(self):
        return _plain_handle(self, record)
    passed: Any = self.filter(record)
    if passed:
        with self.lock:  # type: ignore[union-attr]
            self.emit(record if passed is True else passed)
    return passed  # type: ignore[no-any-return]


def _flush(self: logging.StreamHandler[Any]) -> None:
    if not _has_plain_lock(self):
        _plain_flush(self)
        return
    with self.lock:  # type: ignore[union-attr]
        if self.stream and hasattr(self.stream, "flush"):
            self.stream.flush()
