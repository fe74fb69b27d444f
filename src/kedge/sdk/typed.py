"""What type checkers see of decorators: the user's own parameters and results, kept through every one of them.

Nothing here runs. A coroutine function is called for what it returns when awaited, a generator for its values.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from typing import dataclass_transform as dataclass_transform

    from kedge.sdk.function import Function
else:

    def dataclass_transform(**_: Any) -> Callable[[Any], Any]:
        """For type checkers only, and Python 3.10 has none."""
        return lambda decorator: decorator


P = ParamSpec("P")
R = TypeVar("R")
L = TypeVar("L")


class FunctionDecorator(Protocol):
    """`@app.function()` as type checkers see it: the user's own parameters and result are kept."""

    @overload
    def __call__(self, function: Batched[R, L], /) -> Function[..., R, L]: ...

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Function[P, R, Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(self, function: Callable[P, AsyncIterator[R]], /) -> Function[P, R, AsyncIterator[R]]: ...

    @overload
    def __call__(self, function: Callable[P, Iterator[R]], /) -> Function[P, R, Iterator[R]]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Function[P, R, R]: ...


class Batched(Generic[R, L]):
    """What type checkers see of a batched function: it gives lists (`L`) where it runs, and its callers get single
    values. On an instance it is a `Function`."""

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type) -> Batched[R, L]: ...

        @overload
        def __get__(self, instance: object, owner: type) -> Function[..., R, L]: ...

        def __get__(self, instance: object | None, owner: type) -> Any: ...


class BatchedDecorator(Protocol):
    """The function takes and returns lists; callers give and get single values."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, ...], Coroutine[Any, Any, list[R]]], /
    ) -> Batched[R, Coroutine[Any, Any, list[R]]]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[Any, ...], list[R]], /) -> Batched[R, list[R]]: ...


class Method(Generic[P, R, L]):
    """What type checkers see of a decorated method: on an instance it is a `Function`."""

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type) -> Method[P, R, L]: ...

        @overload
        def __get__(self, instance: object, owner: type) -> Function[P, R, L]: ...

        def __get__(self, instance: object | None, owner: type) -> Any: ...


class MethodDecorator(Protocol):
    """`@kedge.method()` as type checkers see it: the method's own parameters and result, without self."""

    @overload
    def __call__(self, function: Batched[R, L], /) -> Batched[R, L]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> Method[P, R, Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], AsyncIterator[R]], /
    ) -> Method[P, R, AsyncIterator[R]]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Iterator[R]], /) -> Method[P, R, Iterator[R]]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Method[P, R, R]: ...
