"""What an input starts belongs to it: its threads, and the work that it gives to pools of threads and processes.

Tasks and `asyncio.to_thread` copy the context in which they are made, and with it the input. Threads and pools do not;
here they get the input, and only that: other context variables are as Python has them. So `kedge.current_input()` and
the log know where a line of a child thread belongs, also in a pool that serves many inputs one after another. (Pools of
processes that are started afresh, not forked, are left alone: what those print comes by another road.)

The classes of pools are changed once somebody has imported them, at the start of the next thread: no pool takes work
before it starts one, and what it takes in that very moment belongs to the input that the thread inherits.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

from kedge.sdk.context import InputContext, enter_input, exit_input, get_input

_POOLS = {
    "concurrent.futures.thread": ("ThreadPoolExecutor", ("submit",)),
    "concurrent.futures.process": ("ProcessPoolExecutor", ("submit",)),
    "multiprocessing.pool": ("Pool", ("apply_async", "_map_async", "imap", "imap_unordered")),
}
"""By module: the class, and its methods that take work; the function comes first."""


def install(end_thread: Callable[[], object]) -> None:
    """Changes the classes of this process. `end_thread` is called at the end of each thread, by the thread."""
    thread: Any = threading.Thread
    start, bootstrap = thread.start, thread._bootstrap
    missing = dict(_POOLS)

    @functools.wraps(start)
    def start_in_input(self: Any) -> None:
        for module in [name for name in missing if name in sys.modules]:
            _adopt(sys.modules[module], *missing.pop(module, ("", ())))
        self.__dict__["_kedge_input"] = get_input()
        start(self)

    @functools.wraps(bootstrap)
    def bootstrap_in_input(self: Any) -> None:
        enter_input(self.__dict__.pop("_kedge_input", None))
        try:
            bootstrap(self)
        finally:
            end_thread()

    thread.start, thread._bootstrap = start_in_input, bootstrap_in_input


class Carried:
    """A function that runs for the input which gave it to a pool, or for none."""

    __slots__ = ("function", "input")

    def __init__(self, function: Callable[..., Any], input: InputContext | None) -> None:
        self.function = function
        self.input = input

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = enter_input(self.input)
        try:
            return self.function(*args, **kwargs)
        finally:
            exit_input(token)

    def __reduce__(self) -> Any:
        it = self.input
        fields = None if it is None else (it.call, it.index, it.attempt, it.method, it.members, it.lease)
        return _arrived, (self.function, fields)


class _Arrived(Carried):
    """In another process: the input is there for this call only."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        finally:
            if self.input is not None and self.input.voice is not None:
                self.input.voice.end()


def _arrived(function: Callable[..., Any], fields: Any) -> Carried:
    return _Arrived(function, None if fields is None else InputContext(*fields))


def _adopt(module: Any, pool: str, methods: tuple[str, ...]) -> None:
    for name in methods:
        owner = getattr(module, pool)
        setattr(owner, name, _carrying(getattr(owner, name)))


def _carrying(take: Any) -> Any:
    @functools.wraps(take)
    def take_from_input(self: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return take(self, Carried(function, get_input()) if _shares_memory(self) else function, *args, **kwargs)

    return take_from_input


def _shares_memory(pool: Any) -> bool:
    """Whether its work is done by threads or forked processes."""
    processes = getattr(pool, "_mp_context", None) or getattr(pool, "_ctx", None)
    return processes is None or processes.get_start_method() == "fork"
