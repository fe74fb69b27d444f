"""`Partial`: a user's function with the marks of decorators on it, until `@app.function` or `@app.cls` takes it.

Each mark may be set once; what excludes each other is refused by whichever decorator comes second, at its own line.
In a class body a Partial stays where the function was: on an instance of a class it is the method's handle (or the
plain hook), so that `self.other.remote(x)`, `self.other.local(x)` and `self.other(x)` all work inside of methods.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kedge.exception import InvalidError
from kedge.model.spec import Batching, Concurrency, MethodSpec, WebSpec
from kedge.sdk.usage import where

CLS_ATTRIBUTE = "__kedge_cls__"
"""On a user's class: its handle. Looked up on the class itself, never inherited."""
CONCURRENCY_ATTRIBUTE = "__kedge_concurrency__"

_CALLS = frozenset(["remote", "remote_gen", "local", "map", "starmap", "for_each", "spawn", "spawn_map", "get_web_url"])


class Partial:
    """A function and what its decorators said so far."""

    def __init__(self, raw: Callable[..., Any]) -> None:
        self.raw = raw
        self.method = False
        self.enter: str | None = None
        """`snap` or `start`: when the hook runs."""
        self.exit = False
        self.is_generator: bool | None = None
        self.concurrency_limit: int | None = None
        self.timeout: float | None = None
        self.batching: Batching | None = None
        self.concurrency: Concurrency | None = None
        self.web: WebSpec | None = None
        functools.update_wrapper(self, raw)

    @classmethod
    def of(cls, decorator: str, function: Any) -> Partial:
        """The partial behind `function`, made where there is none; InvalidError where it is no plain function."""
        if isinstance(function, Partial):
            return function
        if isinstance(function, (staticmethod, classmethod)):
            kind = type(function).__name__
            raise InvalidError(f"@{decorator} cannot be used on a {kind}; write a normal method with self")
        if not inspect.isfunction(function):
            raise InvalidError(f"@{decorator} decorates a function, not {_describe(function)}")
        return cls(function)

    @property
    def name(self) -> str:
        return self.raw.__name__

    @property
    def is_interface(self) -> bool:
        """Whether callers reach it: a method, a batched method or a web method."""
        return self.method or self.batching is not None or self.web is not None

    @property
    def is_hook(self) -> bool:
        return self.enter is not None or self.exit

    def method_spec(self, name: str) -> MethodSpec:
        generator = inspect.isgeneratorfunction(self.raw) or inspect.isasyncgenfunction(self.raw)
        return MethodSpec(
            name=name,
            is_async=inspect.iscoroutinefunction(self.raw) or inspect.isasyncgenfunction(self.raw),
            is_generator=generator if self.is_generator is None else self.is_generator,
            concurrency_limit=self.concurrency_limit,
            timeout=self.timeout,
            batching=self.batching,
            web=self.web,
        )

    def refuse_mixed(self) -> None:
        """InvalidError where the marks set so far exclude each other."""
        if self.is_hook and self.is_interface:
            raise InvalidError(
                f"{self.raw.__qualname__} cannot be both a hook (@kedge.enter or @kedge.exit) and callable from "
                f"outside (@kedge.method or another decorator); split it into two methods"
            )
        if self.batching is not None and self.web is not None:
            raise InvalidError(
                f"{self.raw.__qualname__}: @kedge.batched and @kedge.{self.web.kind} cannot be combined; let a web "
                f"function call a batched one with .remote.aio()"
            )

    def __get__(self, instance: object | None, owner: type) -> Any:
        if instance is None:
            return self
        handle = vars(type(instance)).get(CLS_ATTRIBUTE)
        if handle is None or self.is_hook or not self.is_interface:
            return self.raw.__get__(instance)
        return handle.method_of_instance(instance, self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_hook or self.is_interface:
            return self.raw(*args, **kwargs)
        raise InvalidError(
            f"{self.raw.__qualname__} has decorators of kedge, but no @app.function() above them; add it as the "
            f"topmost one"
        )

    def __getattr__(self, name: str) -> Any:
        if name in _CALLS and "raw" in vars(self):
            owner, _, method = self.raw.__qualname__.rpartition(".")
            if owner and self.is_interface:
                raise AttributeError(
                    f"{owner}.{method}.{name} needs an instance: write {owner}().{method}.{name}(…), with the class's "
                    f"parameters in the first parentheses"
                )
            raise AttributeError(f"{self.raw.__qualname__} is not a function of an app yet; add @app.function() on top")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<partial {self.raw.__qualname__}>"

    def __reduce__(self) -> tuple[Any, ...]:
        state = {key: value for key, value in vars(self).items() if not key.startswith("__") and key != "raw"}
        return _restore, (self.raw, state)


def _restore(raw: Callable[..., Any], state: Mapping[str, Any]) -> Partial:
    partial = Partial(raw)
    vars(partial).update(state)
    return partial


def _describe(value: object) -> str:
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    return f"{value!r}"


def is_in_class(function: Callable[..., Any]) -> bool:
    """Whether a function was defined in the body of a class."""
    outer = function.__qualname__.rpartition(".")[0]
    return bool(outer) and not outer.endswith("<locals>")


def partials_of(user: type) -> dict[str, Partial]:
    """The decorated functions of a class and its bases: bases first, what a subclass overrides in the base's place."""
    found: dict[str, Partial] = {}
    for base in reversed(user.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Partial):
                found[name] = value
            else:
                found.pop(name, None)
    return found


def describe_place(partial: Partial) -> str:
    """`Model.generate (app.py:12)`."""
    return f"{partial.raw.__qualname__} ({where(partial.raw)})"
