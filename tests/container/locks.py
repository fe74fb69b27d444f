"""User code whose inputs share locks of the standard library, each in the form in which programs use it."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import kedge
from tests.container.shop import allowed, note

app = kedge.App("locks")

handler = logging.StreamHandler(open(os.devnull, "w"))  # noqa: SIM115 - as long as the container
log = logging.getLogger("locks")
log.addHandler(handler)
log.propagate = False
things: queue.Queue[int] = queue.Queue()
room = threading.Semaphore(1)
bell = threading.Condition()
future: Future[int] = Future()


def in_room() -> None:
    with room:
        pass


def in_bell() -> None:
    with bell:
        pass


@contextlib.contextmanager
def imported() -> Iterator[None]:
    importlib.import_module("tests.container.slow_import")
    yield


LOCKS = {
    "handler": (handler.lock, lambda: log.warning("said")),
    "flush": (handler.lock, handler.flush),
    "queue": (things.mutex, lambda: things.put(1)),
    "semaphore": (room._cond, in_room),
    "condition": (bell, in_bell),
    "future": (future._condition, future.done),
    "import": (imported(), lambda: importlib.import_module("tests.container.slow_import")),
    "registry": (getattr(logging, "_lock"), lambda: logging.getLogger("locks")),  # noqa: B009
}


@app.function()
def hold(how: str) -> str:
    """Holds the lock until the test allows it to go on."""
    with LOCKS[how][0]:
        note(f"held {how}")
        allowed(how)
    return how


@app.function()
def use(how: str) -> str:
    """Uses what the lock protects, then waits to be cancelled."""
    try:
        note(f"begin {how}")
        LOCKS[how][1]()
        note(f"used {how}")
        time.sleep(60)
    except BaseException as error:
        note(f"{type(error).__name__} {how}")
        raise
    return how


@app.cls()
class Sharing:
    @kedge.method()
    def hold(self, how: str) -> str:
        return hold.local(how)

    @kedge.method()
    def use(self, how: str) -> str:
        return use.local(how)

    @kedge.method()
    def try_it(self, how: str) -> str:
        """Whether others can still use it."""
        LOCKS[how][1]()
        return how

    @kedge.method()
    def churn(self, how: str) -> None:
        """Uses it all the time, with a little work in between."""
        while sum(range(1000)):
            LOCKS[how][1]()
            if how == "queue":
                things.get()

    @kedge.method()
    def permits(self) -> int:
        return room._value
