"""Both forms of what is written once: the blocking one as it is, and an `aio` that runs it in a thread.

For calls that wait for disks and servers, not for inputs: those have two implementations (`dual`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

from kedge.sdk.dual import Dual, StaticDual

P = ParamSpec("P")
R = TypeVar("R")
_END: Any = object()


def both(blocking: Callable[Concatenate[Any, P], R]) -> Dual[P, R, P, Awaitable[R]]:
    """A method in both forms."""

    async def asynchronous(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        import asyncio

        return await asyncio.to_thread(blocking, self, *args, **kwargs)

    return Dual(blocking, asynchronous)


def both_each(blocking: Callable[Concatenate[Any, P], Iterator[R]]) -> Dual[P, Iterator[R], P, AsyncIterator[R]]:
    """The same for one that gives many values."""

    async def asynchronous(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        import asyncio

        values = blocking(self, *args, **kwargs)
        try:
            while (value := await asyncio.to_thread(next, values, _END)) is not _END:
                yield value
        finally:
            close: Callable[[], None] = getattr(values, "close", lambda: None)
            await asyncio.to_thread(close)

    return Dual(blocking, asynchronous)


def both_static(blocking: Callable[P, R]) -> StaticDual[P, R, P, Awaitable[R]]:
    """The same for what is called on a class."""

    async def asynchronous(*args: P.args, **kwargs: P.kwargs) -> R:
        import asyncio

        return await asyncio.to_thread(blocking, *args, **kwargs)

    return StaticDual(blocking, asynchronous)
