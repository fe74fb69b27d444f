"""Tests that are coroutines: each runs on a fresh event loop of each kind that is installed, within a generous time."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

LIMIT_S = 30.0


def factories() -> list[Callable[[], asyncio.AbstractEventLoop]]:
    found: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop]
    try:
        import uvloop
    except ImportError:
        return found
    return [*found, uvloop.new_event_loop]


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs the test on the loop that servers use: uvloop where it is installed."""
    return _on(test, factories()[-1:])


def on_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs the test on every kind of loop."""
    return _on(test, factories())


def _on(test: Callable[..., Coroutine[Any, Any, None]], kinds: list[Callable[[], Any]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        for factory in kinds:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(asyncio.wait_for(test(*args, **kwargs), LIMIT_S))

    return run


async def until(condition: Callable[[], Any], turn: Callable[[], Awaitable[Any]] | None = None) -> None:
    """Lets the loop run until something is true."""
    while not condition():
        await (turn() if turn else asyncio.sleep(0.001))
