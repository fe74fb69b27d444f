"""One descriptor that gives every call two forms: `f.remote(x)` blocks, `await f.remote.aio(x)` does not.

Both forms keep the parameter and return types of what they are made of. Nothing is generated, nothing is wrapped in a
loop thread: the two implementations are written by the class that uses the descriptor.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from types import CodeType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from kedge.exception import AsyncUsageWarning
from kedge.sdk import context
from kedge.sdk.usage import is_own

P = ParamSpec("P")
Q = ParamSpec("Q")
R_co = TypeVar("R_co", covariant=True)
A_co = TypeVar("A_co", covariant=True)


_told: set[tuple[CodeType, int]] = set()
"""Places that were warned of."""


def loop_is_running() -> bool:
    """Whether an event loop runs in this thread. Does not import asyncio: where nobody did, no loop can run, nor where
    another thread is still in the middle of it."""
    running = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    return running is not None and running() is not None


class DualCall(Generic[P, R_co, Q, A_co]):
    """A bound call: call it to block, call its `aio` in async code."""

    __slots__ = ("__self__", "_pair")

    def __init__(self, pair: Dual[P, R_co, Q, A_co], instance: Any) -> None:
        self._pair = pair
        self.__self__ = instance

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        if loop_is_running():
            return self._block_loop(*args, **kwargs)
        return self._pair.blocking(self.__self__, *args, **kwargs)

    def _block_loop(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        self._pair.warn_about_loop(self.__self__)
        here = context.container()
        control = here.control if here is not None else None
        if control is None:
            return self._pair.blocking(self.__self__, *args, **kwargs)
        control.block_loop(True)
        try:
            return self._pair.blocking(self.__self__, *args, **kwargs)
        finally:
            control.block_loop(False)

    def aio(self, *args: Q.args, **kwargs: Q.kwargs) -> A_co:
        """The same for async code: await it, or iterate it with `async for` where it gives many values."""
        return self._pair.asynchronous(self.__self__, *args, **kwargs)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self._pair.blocking.__doc__

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self._pair.blocking.__get__(self.__self__)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<{self.__self__!r}.{self._pair.name}>"


class Dual(Generic[P, R_co, Q, A_co]):
    """Class attribute that makes a `DualCall` on access: `remote = Dual(_remote, _remote_async)`."""

    def __init__(
        self, blocking: Callable[Concatenate[Any, P], R_co], asynchronous: Callable[Concatenate[Any, Q], A_co]
    ) -> None:
        self.blocking: Callable[..., R_co] = blocking
        self.asynchronous: Callable[..., A_co] = asynchronous
        self.name = ""
        self.__doc__ = blocking.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Dual[P, R_co, Q, A_co]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> DualCall[P, R_co, Q, A_co]: ...

    def __get__(self, instance: object | None, owner: type) -> Dual[P, R_co, Q, A_co] | DualCall[P, R_co, Q, A_co]:
        return self if instance is None else DualCall(self, instance)

    def warn_about_loop(self, instance: Any) -> None:
        level, place = 4, sys._getframe(3)
        while place.f_back is not None and is_own(place):  # `d[key] = value` is such a call as well
            level, place = level + 1, place.f_back
        if context.container() is not None:
            # Python forgets what it has warned of whenever somebody changes its filters, as many libraries do.
            if (place.f_code, place.f_lineno) in _told:
                return
            _told.add((place.f_code, place.f_lineno))
        name = getattr(instance, "name", None)
        shown = f"{name if isinstance(name, str) else '…'}.{self.name}"
        warnings.warn(
            f"{shown}(…) blocks the running event loop and every task on it; "
            f"write `await {shown}.aio(…)` (or `async for` where it gives many values)",
            AsyncUsageWarning,
            stacklevel=level,
        )


class StaticDual(Generic[P, R_co, Q, A_co]):
    """The same for what is called on a class: `lookup = StaticDual(blocking, asynchronous)`."""

    def __init__(self, blocking: Callable[P, R_co], asynchronous: Callable[Q, A_co]) -> None:
        self._blocking = blocking
        self._asynchronous = asynchronous
        self.__doc__ = blocking.__doc__
        self.__wrapped__ = blocking

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return self._blocking(*args, **kwargs)

    def aio(self, *args: Q.args, **kwargs: Q.kwargs) -> A_co:
        """The same for async code."""
        return self._asynchronous(*args, **kwargs)
