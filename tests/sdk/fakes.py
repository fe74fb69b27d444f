"""A stand-in for `sdk.invocation` that records what handles ask for, and apps that count as running."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from kedge.sdk.app import App
from kedge.sdk.target import Target


class Recorder:
    """Answers every call with its own description, and remembers it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def _note(self, how: str, target: Target, *rest: Any) -> Any:
        self.calls.append((how, target, *rest))
        return how

    @property
    def target(self) -> Target:
        found: Target = self.calls[-1][1]
        return found

    def call(self, target: Target, args: Any, kwargs: Any) -> Any:
        return self._note("call", target, args, kwargs)

    async def call_async(self, target: Target, args: Any, kwargs: Any) -> Any:
        return self._note("call_async", target, args, kwargs)

    def stream(self, target: Target, args: Any, kwargs: Any) -> Iterator[Any]:
        yield self._note("stream", target, args, kwargs)

    async def stream_async(self, target: Target, args: Any, kwargs: Any) -> AsyncIterator[Any]:
        yield self._note("stream_async", target, args, kwargs)

    def spawn(self, target: Target, args: Any, kwargs: Any) -> Any:
        return self._note("spawn", target, args, kwargs)

    async def spawn_async(self, target: Target, args: Any, kwargs: Any) -> Any:
        return self._note("spawn_async", target, args, kwargs)

    def map(self, target: Target, iterators: Any, kwargs: Any, order: bool, errors: bool, star: bool = False) -> Any:
        self._note("map", target, iterators, kwargs, order, errors, star)
        return iter(["map"])

    async def map_async(
        self, target: Target, iterators: Any, kwargs: Any, order: bool, errors: bool, star: bool = False
    ) -> AsyncIterator[Any]:
        yield self._note("map_async", target, iterators, kwargs, order, errors, star)

    def spawn_map(self, target: Target, iterators: Any, kwargs: Any) -> Any:
        return self._note("spawn_map", target, iterators, kwargs)

    async def spawn_map_async(self, target: Target, iterators: Any, kwargs: Any) -> Any:
        return self._note("spawn_map_async", target, iterators, kwargs)

    def statistics(self, target: Target) -> Any:
        return self._note("statistics", target)

    async def statistics_async(self, target: Target) -> Any:
        return self._note("statistics_async", target)

    def update_autoscaler(self, target: Target, **settings: Any) -> Any:
        return self._note("update_autoscaler", target, settings)

    async def update_autoscaler_async(self, target: Target, **settings: Any) -> Any:
        return self._note("update_autoscaler_async", target, settings)

    def update_concurrency(self, target: Target, **settings: Any) -> Any:
        return self._note("update_concurrency", target, settings)

    async def update_concurrency_async(self, target: Target, **settings: Any) -> Any:
        return self._note("update_concurrency_async", target, settings)


def record(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Puts a recorder in the place of the invocation module."""
    import kedge.sdk.invocation

    recorder = Recorder()
    for name, member in vars(Recorder).items():
        if not name.startswith("_") and not isinstance(member, property):
            monkeypatch.setattr(kedge.sdk.invocation, name, getattr(recorder, name))
    return recorder


def running(name: str = "fake", app_id: str = "ap-1") -> App:
    """An app that counts as running."""
    app = App(name)
    app.started(app_id)
    return app
