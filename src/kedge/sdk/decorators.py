"""`concurrent`, `batched`, `method`, `enter`, `exit`: marks on functions and classes, checked at their own line.

A decorator here knows only what it decorates; `@app.function` and `@app.cls` read the marks (see `partial`).
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from kedge.exception import InvalidError
from kedge.model.spec import Batching, Concurrency
from kedge.sdk import validation
from kedge.sdk.partial import CONCURRENCY_ATTRIBUTE, Partial, is_in_class
from kedge.sdk.typed import BatchedDecorator, MethodDecorator
from kedge.sdk.usage import keywords_only, where

F = TypeVar("F")

MAX_BATCH_SIZE = 1000
"""Inputs of one batch: its arguments are in memory at once, and one failure fails all of them."""
MAX_BATCH_WAIT_MS = 10 * 60 * 1000


# ---------------------------------------------------------------- concurrent


MAX_SLOTS = 100_000
"""Slots of one container at most: far beyond what threads or an event loop can use, near enough to catch a typo."""


def concurrency_of(decorator: str, max_inputs: Any, target_inputs: Any) -> Concurrency:
    """Checked settings; `target_inputs` None means as many as `max_inputs`."""
    validation.whole_number(f"{decorator}: max_inputs", max_inputs, least=1)
    if max_inputs > MAX_SLOTS:
        raise InvalidError(
            f"{decorator}: max_inputs={max_inputs} is more than one container can run at once; "
            f"write at most {MAX_SLOTS}, and let more containers take the rest"
        )
    if target_inputs is None:
        return Concurrency(max_inputs, max_inputs, declared=True)
    validation.whole_number(f"{decorator}: target_inputs", target_inputs, least=1)
    if target_inputs > max_inputs:
        raise InvalidError(
            f"{decorator}: target_inputs={target_inputs} is above max_inputs={max_inputs}, which a container never "
            f"exceeds; raise max_inputs or lower target_inputs"
        )
    return Concurrency(max_inputs, target_inputs, declared=True)


def concurrency_changes(owner: str, max_inputs: Any, target_inputs: Any) -> dict[str, int | None]:
    """Checked numbers for a running function; None leaves one as it is."""
    if max_inputs is None and target_inputs is None:
        raise InvalidError(
            f"{owner}.update_concurrency() changes nothing; write {owner}.update_concurrency(max_inputs=…), "
            f"target_inputs=…, or both"
        )
    if max_inputs is None:
        validation.whole_number("update_concurrency: target_inputs", target_inputs, least=1, most=MAX_SLOTS)
    else:
        concurrency_of("update_concurrency", max_inputs, target_inputs)
    return {"max_inputs": max_inputs, "target_inputs": target_inputs}


@keywords_only("@kedge.concurrent(max_inputs=10)", name="kedge.concurrent")
def concurrent(*, max_inputs: int, target_inputs: int | None = None) -> Callable[[F], F]:
    """Lets one container work on many inputs at once. Stack it under `@app.function()` or `@app.cls()`.

    Async functions run their inputs as tasks of one event loop, sync functions on one thread per input: their code must
    be thread-safe. The methods of a class share the slots.

    Args:
        max_inputs: Inputs that a container never exceeds.
        target_inputs: Inputs per container at which routing and scaling aim. Between it and `max_inputs` a container
            takes a burst while more containers start. Default: `max_inputs`.

    Raises:
        InvalidError: below 1, not whole numbers, a target above the maximum, used on a method, used twice, or above
            `@app.function`.

    Example:
        @app.function()
        @kedge.concurrent(max_inputs=100, target_inputs=80)
        async def fetch(url: str) -> str: ...
    """
    settings = concurrency_of("kedge.concurrent", max_inputs, target_inputs)

    def decorate(target: F) -> F:
        marked: F = _mark_concurrent(target, settings)
        return marked

    return decorate


def _mark_concurrent(target: Any, settings: Concurrency) -> Any:
    form = f"@kedge.concurrent(max_inputs={settings.max_inputs})"
    if hasattr(type(target), "_kedge_handle"):
        above = "@app.cls()" if target._kedge_handle == "class" else "@app.function()"
        raise InvalidError(f"{form} stands above {above}; swap the order: {above} is the topmost decorator")
    if inspect.isclass(target):
        if CONCURRENCY_ATTRIBUTE in vars(target):
            raise InvalidError(f"{target.__name__} has @kedge.concurrent twice; keep one")
        setattr(target, CONCURRENCY_ATTRIBUTE, settings)
        return target
    partial = Partial.of("kedge.concurrent", target)
    if (partial.is_interface and is_in_class(partial.raw)) or partial.is_hook or is_in_class(partial.raw):
        owner, _, name = partial.raw.__qualname__.rpartition(".")
        raise InvalidError(
            f"@kedge.concurrent is on the method {name} of {owner} ({where(partial.raw)}): all methods of a class "
            f"share the slots of a container, so decorate the class instead:\n\n    @app.cls()\n    {form}\n"
            f"    class {owner}: …\n\n"
            f"To limit one method, write @kedge.method(concurrency_limit=…)"
        )
    if partial.concurrency is not None:
        raise InvalidError(f"{partial.name} has @kedge.concurrent twice; keep one")
    partial.concurrency = settings
    return partial


# ---------------------------------------------------------------- batched


def batching_of(decorator: str, max_batch_size: Any, wait_ms: Any) -> Batching:
    validation.whole_number(f"{decorator}: max_batch_size", max_batch_size, least=1, most=MAX_BATCH_SIZE)
    validation.whole_number(f"{decorator}: wait_ms", wait_ms, least=0, most=MAX_BATCH_WAIT_MS)
    return Batching(max_batch_size, wait_ms)


@keywords_only("@kedge.batched(max_batch_size=8, wait_ms=100)", name="kedge.batched")
def batched(*, max_batch_size: int, wait_ms: int) -> BatchedDecorator:
    """Collects single inputs into lists: the function runs once per batch. Stack it under `@app.function()`, or use it
    on the only method of an `@app.cls()` class.

    Each parameter becomes a list with one item per input, and the function returns a list with one result for each, in
    the same order. Callers notice nothing of it: they give single values and get single results. `.local()` calls the
    plain function, with lists.

    A batch takes one slot of its container: with `@kedge.concurrent(max_inputs=3)` three batches run at once. An
    exception goes to every caller of its batch. Cancelling one input drops its result; the code is interrupted when
    nobody waits for the batch any more. `kedge.current_input().ids` names all its inputs.

    Args:
        max_batch_size: Inputs of one batch at most, 1 to 1000.
        wait_ms: Milliseconds that the first input of a batch waits for others, 0 to 600000.

    Example:
        @app.function()
        @kedge.batched(max_batch_size=32, wait_ms=50)
        def embed(texts: list[str]) -> list[list[float]]: ...

        embed.remote("one text")
    """
    settings = batching_of("kedge.batched", max_batch_size, wait_ms)

    def decorate(function: Any) -> Any:
        partial = Partial.of("kedge.batched", function)
        if partial.batching is not None:
            raise InvalidError(f"{partial.name} has @kedge.batched twice; keep one")
        partial.batching = settings
        _check_batched(partial)
        partial.refuse_mixed()
        return partial

    return decorate


def _check_batched(partial: Partial) -> None:
    name = partial.raw.__qualname__
    if inspect.isgeneratorfunction(partial.raw) or inspect.isasyncgenfunction(partial.raw) or partial.is_generator:
        raise InvalidError(f"{name}: a generator cannot be @kedge.batched; return a list with one result per input")
    for parameter in inspect.signature(partial.raw).parameters.values():
        if parameter.default is not parameter.empty:
            raise InvalidError(
                f"{name}: {parameter.name} of a @kedge.batched function cannot have a default, because every parameter "
                f"is a list with one item per input; remove `={parameter.default!r}`"
            )


# ---------------------------------------------------------------- methods


@keywords_only("@kedge.method()", name="kedge.method")
def method(
    *, is_generator: bool | None = None, concurrency_limit: int | None = None, timeout: float | None = None
) -> MethodDecorator:
    """Makes a method of an `@app.cls()` class callable from outside: `Model().generate.remote("…")`.

    Args:
        is_generator: Whether it gives many values. Default: whether it is a generator function.
        concurrency_limit: Inputs of this method that one container runs at once. Without `@concurrent` on the class,
            a container has as many slots as its methods' limits add up to.
        timeout: Seconds that one input of this method may run. Default: the `timeout` of the class.

    Example:
        @app.cls()
        class Model:
            @kedge.method(concurrency_limit=4, timeout=60)
            def generate(self, prompt: str) -> str: ...
    """
    if is_generator is not None and not isinstance(is_generator, bool):
        raise InvalidError(f"kedge.method: is_generator is True or False, not {is_generator!r}")
    if concurrency_limit is not None:
        validation.whole_number("kedge.method: concurrency_limit", concurrency_limit, least=1)
    if timeout is not None:
        timeout = validation.seconds("kedge.method: timeout", timeout)

    def decorate(function: Any) -> Any:
        _refuse_handle("kedge.method", function)
        partial = Partial.of("kedge.method", function)
        if partial.method:
            raise InvalidError(f"{partial.raw.__qualname__} has @kedge.method twice; keep one")
        if partial.web is not None:
            raise InvalidError(
                f"{partial.raw.__qualname__} is a web method by @kedge.{partial.web.kind}; drop @kedge.method"
            )
        if not inspect.signature(partial.raw).parameters:
            raise InvalidError(f"{partial.raw.__qualname__} has no self; @kedge.method is for methods of a class")
        partial.method = True
        partial.is_generator, partial.concurrency_limit, partial.timeout = is_generator, concurrency_limit, timeout
        if partial.batching is not None:
            _check_batched(partial)
        partial.refuse_mixed()
        return partial

    return decorate


def _refuse_handle(decorator: str, target: Any) -> None:
    if hasattr(type(target), "_kedge_handle"):
        raise InvalidError(
            f"@{decorator} is for methods inside of a class; {target!r} is complete already. Remove one of the two"
        )


# ---------------------------------------------------------------- hooks


Hook = TypeVar("Hook", bound=Callable[[Any], Awaitable[None] | None])


@keywords_only("@kedge.enter()", name="kedge.enter")
def enter(*, snap: bool = False) -> Callable[[Hook], Hook]:
    """Runs a method when a container starts, before any input. Sync and async methods both work.

    Args:
        snap: Runs before all others with `snap=False`; needs `enable_memory_snapshot=True` on the class.

    Example:
        @app.cls()
        class Model:
            @kedge.enter()
            def load(self) -> None:
                self.weights = open("weights").read()
    """
    if not isinstance(snap, bool):
        raise InvalidError(f"kedge.enter: snap is True or False, not {snap!r}")

    def decorate(function: Any) -> Any:
        partial = _hook("kedge.enter", function)
        partial.enter = "snap" if snap else "start"
        partial.refuse_mixed()
        return partial

    return decorate


@keywords_only("@kedge.exit()", name="kedge.exit")
def exit() -> Callable[[Hook], Hook]:
    """Runs a method when a container leaves, after its last input.

    Example:
        @app.cls()
        class Model:
            @kedge.exit()
            def close(self) -> None:
                self.connection.close()
    """

    def decorate(function: Any) -> Any:
        partial = _hook("kedge.exit", function)
        partial.exit = True
        partial.refuse_mixed()
        return partial

    return decorate


def _hook(decorator: str, function: Any) -> Partial:
    _refuse_handle(decorator, function)
    partial = Partial.of(decorator, function)
    name = partial.raw.__qualname__
    if partial.is_hook:
        raise InvalidError(f"{name} has @kedge.enter or @kedge.exit already; keep one")
    if partial.concurrency is not None:
        raise InvalidError(f"{name}: @kedge.concurrent belongs on the class, not on a hook")
    if inspect.isgeneratorfunction(partial.raw) or inspect.isasyncgenfunction(partial.raw):
        raise InvalidError(f"{name}: a hook is a normal or async method, not a generator")
    parameters = list(inspect.signature(partial.raw).parameters)
    if len(parameters) != 1:
        shown = f"({', '.join(parameters)})"
        raise InvalidError(f"{name}{shown}: @{decorator}() needs a method with self and no other parameters")
    return partial
