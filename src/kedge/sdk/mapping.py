"""`.map`: many inputs of one call, a bounded way ahead of their results.

Inputs are read and results handed out by turns, each only as far as the other side keeps up (`map_window`, `feeds`).
A map that ends early, by an error, a `break` or Ctrl-C, cancels what it had started.
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from types import FrameType
from typing import Any

from kedge.exception import InvalidError
from kedge.sdk.async_link import AsyncLink
from kedge.sdk.client import Client
from kedge.sdk.feeds import Feed, PromptFeed, Run, TaskFeed, ThreadFeed, at_once, is_prompt
from kedge.sdk.target import Target
from kedge.sdk.tracebacks import is_user_file

_REFILL_MASK = 63
"""A consumer that takes its time looks for room every 64 results."""


def map(
    target: Target,
    iterators: Sequence[Iterable[Any]],
    kwargs: Mapping[str, Any],
    order_outputs: bool = True,
    return_exceptions: bool = False,
    star: bool = False,
) -> Iterator[Any]:
    """The results of one input per item, lazily: nothing happens before the first is asked for.

    Args:
        target: What to call.
        iterators: One per positional argument, zipped; with `star` a single one of argument tuples.
        kwargs: The same for every input.
        order_outputs: In the order of the inputs, or as they come.
        return_exceptions: Give the exception of a failed input as its result; otherwise the first one ends the map.
        star: See `iterators`.
    """
    arguments = zipped(target, iterators, star)
    prompt = all(is_prompt(iterator) for iterator in iterators)
    run = Run(target, kwargs, order_outputs, return_exceptions)
    return LazyMap(_results(run, arguments, prompt), target.name)


def map_async(
    target: Target,
    iterators: Sequence[Iterable[Any] | AsyncIterable[Any]],
    kwargs: Mapping[str, Any],
    order_outputs: bool = True,
    return_exceptions: bool = False,
    star: bool = False,
) -> AsyncIterator[Any]:
    """`map` for event loops; takes async iterators too."""
    run = Run(target, kwargs, order_outputs, return_exceptions)
    return LazyAsyncMap(_results_async(run, iterators, star), target.name)


def zipped(target: Target, iterators: Sequence[Iterable[Any]], star: bool = False) -> Iterator[Sequence[Any]]:
    """The positional arguments of each input."""
    for iterator in iterators:
        if not hasattr(iterator, "__iter__"):
            raise InvalidError(
                f"an async iterator needs an event loop: write `async for … in {target.name or 'f'}.map.aio(…)`"
            )
    return (tuple(item) for item in iterators[0]) if star else zip(*iterators, strict=False)


async def zipped_async(
    iterators: Sequence[Iterable[Any] | AsyncIterable[Any]], star: bool = False
) -> AsyncGenerator[Sequence[Any], None]:
    """`zipped` for a mixture of async and plain iterators; plain ones that may block are read by a thread."""
    nexts = [_next_of(iterator) for iterator in iterators]
    while True:
        item = []
        for following in nexts:
            value = await following()
            if value is _END:
                return
            item.append(value)
        yield tuple(item[0]) if star else item


_END: Any = object()


def _next_of(iterator: Iterable[Any] | AsyncIterable[Any]) -> Callable[[], Any]:
    if isinstance(iterator, AsyncIterable):
        from_loop = aiter(iterator)
        return lambda: anext(from_loop, _END)
    plain = iter(iterator)
    if not is_prompt(iterator):
        return lambda: asyncio.to_thread(next, plain, _END)

    async def at_once() -> Any:
        return next(plain, _END)

    return at_once


def user_line() -> str:
    """`file.py:12` of the nearest frame outside kedge; empty where there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}" if frame is not None else ""


# ---------------------------------------------------------------- what the caller holds


class _Lazy:
    """Warns where nobody ever asked for a result: the call has not happened then."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = False
        self._where = user_line()

    def __del__(self) -> None:
        if not self._started and not sys.is_finalizing():
            where = f" ({self._where})" if self._where else ""
            warnings.warn(
                f"{self._name}.map{where} was never iterated, so nothing was called: write `for result in …`, "
                f"`list(…)`, or use {self._name}.for_each(…)",
                RuntimeWarning,
                stacklevel=2,
            )


class LazyMap(_Lazy, Iterator[Any]):
    """The results of a map."""

    def __init__(self, results: Generator[Any, None, None], name: str) -> None:
        super().__init__(name)
        self._results = results

    def __iter__(self) -> Iterator[Any]:
        # The generator itself: a `for` loop then pays nothing for this wrapper.
        self._started = True
        return self._results

    def __next__(self) -> Any:
        self._started = True
        return next(self._results)

    def close(self) -> None:
        """Cancels what is unfinished."""
        self._started = True
        self._results.close()


class LazyAsyncMap(_Lazy, AsyncIterator[Any]):
    """The results of a map on an event loop."""

    def __init__(self, results: AsyncGenerator[Any, None], name: str) -> None:
        super().__init__(name)
        self._results = results

    def __aiter__(self) -> AsyncIterator[Any]:
        self._started = True
        return self._results

    def __anext__(self) -> Any:
        self._started = True
        return anext(self._results)

    async def aclose(self) -> None:
        """Cancels what is unfinished."""
        self._started = True
        await self._results.aclose()


def _results(run: Run, arguments: Iterator[Sequence[Any]], prompt: bool) -> Generator[Any, None, None]:
    link = Client.current().link()
    window, call, blobs = run.window, run.call, link.blobs
    feed: Feed = PromptFeed(run, arguments, link) if prompt else ThreadFeed(run, arguments, link, at_once)
    try:
        run.begin(link)
        while True:
            feed.advance()
            call.settle()
            over = feed.over
            while (result := window.take()) is not None:
                yield run.value(result, blobs)
                if not window.taken & _REFILL_MASK:
                    feed.advance()
                    run.retry(link)
            if feed.error is not None:
                raise feed.error
            if over and window.idle:
                return
            patience = run.retry(link)
            if not call.ready and not feed.can_advance:
                link.wait(call, patience)
    finally:
        feed.stop()
        run.end(link)


async def _results_async(
    run: Run, iterators: Sequence[Iterable[Any] | AsyncIterable[Any]], star: bool
) -> AsyncGenerator[Any, None]:
    link = await Client.current().async_link()
    window, call, blobs = run.window, run.call, link.blobs
    feed = _async_feed(run, iterators, star, link)
    try:
        run.begin(link)
        while True:
            feed.advance()
            call.settle()
            over = feed.over
            while (result := window.take()) is not None:
                yield run.value(result, blobs)
                if not window.taken & _REFILL_MASK:
                    feed.advance()
                    run.retry(link)
            if feed.error is not None:
                raise feed.error
            if over and window.idle:
                return
            patience = run.retry(link)
            if not call.ready and not feed.can_advance:
                await link.wait(call, patience)
    finally:
        feed.stop()
        run.end(link)


def _async_feed(run: Run, iterators: Sequence[Iterable[Any] | AsyncIterable[Any]], star: bool, link: AsyncLink) -> Feed:
    plain = [iterator for iterator in iterators if not isinstance(iterator, AsyncIterable)]
    if len(plain) < len(iterators):
        return TaskFeed(run, zipped_async(iterators, star), link)
    arguments = zipped(run.target, plain, star)
    if all(is_prompt(iterator) for iterator in plain):
        return PromptFeed(run, arguments, link)
    return ThreadFeed(run, arguments, link, asyncio.get_running_loop().call_soon_threadsafe)
