"""One descriptor that gives every call two forms: `f.remote(x)` blocks, `await f.remote.aio(x)` does not.

Both forms keep the parameter and return types of what they are made of. Nothing is generated, nothing is wrapped in a
loop thread: the two implementations are written by the class that uses the descriptor.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from kedge.exception import AsyncUsageWarning

P = ParamSpec("P")
Q = ParamSpec("Q")
R_co = TypeVar("R_co", covariant=True)
A_co = TypeVar("A_co", covariant=True)


def loop_is_running() -> bool:
    """Whether an event loop runs in this thread. Does not import asyncio: where nobody did, no loop can run."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


class DualCall(Generic[P, R_co, Q, A_co]):
    """A bound call: call it to block, call its `aio` in async code."""

    __slots__ = ("__self__", "_pair")

    def __init__(self, pair: Dual[P, R_co, Q, A_co], instance: Any) -> None:
        self._pair = pair
        self.__self__ = instance

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        if loop_is_running():
            self._pair.warn_about_loop()
        return self._pair.blocking(self.__self__, *args, **kwargs)

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

    def warn_about_loop(self) -> None:
        warnings.warn(
            f".{self.name}(…) blocks the running event loop and every task on it; "
            f"write `await ….{self.name}.aio(…)` (or `async for` where it gives many values)",
            AsyncUsageWarning,
            stacklevel=3,
        )
