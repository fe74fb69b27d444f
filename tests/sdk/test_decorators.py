"""Misuse of decorators is refused where they are written, with the fix in the message."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import kedge
from kedge.exception import InvalidError
from kedge.model.spec import Batching, Concurrency

app = kedge.App("decorators")


def plain(x: Any) -> Any:
    return x


def fresh() -> Callable[..., Any]:
    """A function that no decorator has touched."""

    def nested(x: Any) -> Any:
        return x

    nested.__qualname__ = nested.__name__ = "nested"
    return nested


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda: kedge.concurrent(plain), r"@kedge.concurrent was used without parentheses; write @kedge.concurrent\("),
        (lambda: kedge.concurrent(10), r"takes keyword arguments only, but got 10 by position; write @kedge.conc"),
        (lambda: kedge.concurrent(), r"kedge.concurrent needs max_inputs=…; write @kedge.concurrent\(max_inputs=10\)"),
        (lambda: kedge.concurrent(target_inputs=3), r"kedge.concurrent needs max_inputs=…"),
        (lambda: kedge.concurrent(max_input=3), r"no parameter 'max_input'. Did you mean 'max_inputs'\?"),
        (lambda: kedge.concurrent(max_inputs=0), r"max_inputs must be at least 1, got 0"),
        (lambda: kedge.concurrent(max_inputs=10**6), r"max_inputs=1000000 is more than one container.*at most 100000"),
        (lambda: kedge.concurrent(max_inputs=-1), r"max_inputs must be at least 1, got -1"),
        (
            lambda: kedge.concurrent(max_inputs=2.5),
            r"max_inputs must be a whole number \(at least 1\), not 2.5 \(float\)",
        ),
        (lambda: kedge.concurrent(max_inputs=True), r"must be a whole number \(at least 1\), not True \(bool\)"),
        (lambda: kedge.concurrent(max_inputs="5"), r"not '5' \(str\)"),
        (lambda: kedge.concurrent(max_inputs=None), r"max_inputs must be a whole number \(at least 1\), not None"),
        (lambda: kedge.concurrent(max_inputs=5, target_inputs=0), r"target_inputs must be at least 1, got 0"),
        (lambda: kedge.concurrent(max_inputs=5, target_inputs="a"), r"target_inputs must be a whole number"),
        (
            lambda: kedge.concurrent(max_inputs=5, target_inputs=6),
            r"target_inputs=6 is above max_inputs=5.*lower target",
        ),
        (lambda: kedge.batched(plain), r"@kedge.batched was used without parentheses"),
        (lambda: kedge.batched(max_batch_size=4), r"kedge.batched needs wait_ms=…"),
        (lambda: kedge.batched(max_batch_size=0, wait_ms=1), r"max_batch_size must be 1 to 1000, got 0"),
        (lambda: kedge.batched(max_batch_size=1001, wait_ms=1), r"max_batch_size must be 1 to 1000, got 1001"),
        (lambda: kedge.batched(max_batch_size=4, wait_ms=-1), r"wait_ms must be 0 to 600000, got -1"),
        (lambda: kedge.batched(max_batch_size=4, wait_ms=600_001), r"wait_ms must be 0 to 600000"),
        (lambda: kedge.method(plain), r"@kedge.method was used without parentheses; write @kedge.method\(\)"),
        (lambda: kedge.method(concurrency_limit=0), r"kedge.method: concurrency_limit must be at least 1"),
        (lambda: kedge.method(timeout=0), r"kedge.method: timeout must be more than 0 seconds"),
        (lambda: kedge.method(limit=3), r"kedge.method has no parameter 'limit'"),
        (lambda: kedge.enter(plain), r"@kedge.enter was used without parentheses"),
        (lambda: kedge.enter(snap=1), r"snap is True or False, not 1"),
        (lambda: kedge.exit(plain), r"@kedge.exit was used without parentheses"),
        (lambda: kedge.Retries(3), r"kedge.Retries takes keyword arguments only, but got 3"),
        (lambda: kedge.Retries(), r"kedge.Retries needs max_retries=…"),
        (lambda: kedge.Retries(max_retries=-1), r"max_retries must be at least 0, got -1"),
        (lambda: kedge.Retries(max_retries=1, backoff_coefficient=0.5), r"backoff_coefficient must be 1 to 10 times"),
        (lambda: kedge.Retries(max_retries=1, initial_delay=61), r"initial_delay must be 0 to 60 seconds, got 61"),
        (lambda: kedge.Retries(max_retries=1, max_delay=0.5), r"max_delay must be 1 to 60 seconds, got 0.5"),
        (lambda: kedge.Cron("* * *"), r"has 3 fields; it needs five"),
        (lambda: kedge.Period(), r"must be longer than nothing"),
        (lambda: kedge.web_server(plain), r"without parentheses; write @kedge.web_server\(8000\)"),
        (lambda: kedge.web_server(70_000), r"port must be 1 to 65535, got 70000"),
        (lambda: kedge.fastapi_endpoint(method="FETCH"), r"method is one of GET, POST.*not 'FETCH'"),
    ],
)
def test_misuse_is_refused_at_the_decorators_own_line(misuse: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidError, match=message) as caught:
        misuse()
    frames = traceback.extract_tb(caught.tb)
    assert [frame.filename for frame in frames].count(__file__) == 2, "raised while the user's line runs"


def test_concurrent_reaches_the_spec_of_functions_and_classes() -> None:
    target = kedge.App()

    @target.function(serialized=True)
    @kedge.concurrent(max_inputs=10, target_inputs=8)
    def function(x: int) -> int:
        return x

    @target.cls(serialized=True)
    @kedge.concurrent(max_inputs=5)
    class Model:
        @kedge.method()
        def run(self) -> None: ...

    assert function.spec.concurrency == Concurrency(10, 8, True)
    assert target.registered_classes["Model"].spec.concurrency == Concurrency(5, 5, True)


def test_concurrent_on_a_method_is_refused_at_its_line_in_every_order() -> None:
    with pytest.raises(InvalidError, match=r"is on the method run of .*Wrong \(test_decorators.py:\d+\).*(?s:.*)class"):

        class Wrong:
            @kedge.concurrent(max_inputs=3)
            def run(self) -> None: ...

    with pytest.raises(InvalidError, match=r"decorate the class instead"):

        class Above:
            @kedge.concurrent(max_inputs=3)
            @kedge.method()
            def run(self) -> None: ...

    with pytest.raises(
        InvalidError, match=r"on the method run .*@kedge.method\(concurrency_limit=…\)(?s:.*)|on the method"
    ):

        class Below:
            @kedge.method()
            @kedge.concurrent(max_inputs=3)
            def run(self) -> None: ...


def test_a_method_marked_concurrent_outside_of_a_class_is_refused_by_the_class() -> None:
    marked = kedge.concurrent(max_inputs=3)(fresh())
    with pytest.raises(
        InvalidError, match=r"on the method nested \(test_decorators.py:\d+\); decorate the class Model"
    ):

        @app.cls(serialized=True)
        class Model:
            run = kedge.method()(marked)


def test_concurrent_twice_or_in_the_wrong_order_is_refused() -> None:
    with pytest.raises(InvalidError, match=r"nested has @kedge.concurrent twice; keep one"):
        kedge.concurrent(max_inputs=2)(kedge.concurrent(max_inputs=3)(fresh()))
    with pytest.raises(InvalidError, match=r"Twice has @kedge.concurrent twice; keep one"):

        @kedge.concurrent(max_inputs=2)
        @kedge.concurrent(max_inputs=3)
        class Twice: ...

    target = kedge.App()
    with pytest.raises(InvalidError, match=r"stands above @app.function\(\); swap the order"):
        kedge.concurrent(max_inputs=2)(target.function()(plain))
    with pytest.raises(InvalidError, match=r"stands above @app.cls\(\); swap the order"):

        @kedge.concurrent(max_inputs=2)
        @target.cls(serialized=True)
        class Swapped:
            @kedge.method()
            def run(self) -> None: ...

    with pytest.raises(InvalidError, match=r"@kedge.concurrent decorates a function, not 3"):
        kedge.concurrent(max_inputs=2)(3)


def test_batched_rules() -> None:
    target = kedge.App()
    batched = kedge.batched(max_batch_size=8, wait_ms=20)
    handle: Any = target.function()(batched(fresh()))
    assert handle.spec.methods[0].batching == Batching(8, 20)

    def with_default(x: list[int], y: int = 3) -> list[int]:
        return x

    with pytest.raises(InvalidError, match=r"y of a @kedge.batched function cannot have a default.*remove `=3`"):
        batched(with_default)

    def values(x: list[int]) -> Iterator[int]:
        yield 1

    with pytest.raises(InvalidError, match=r"a generator cannot be @kedge.batched"):
        batched(values)  # type: ignore[call-overload]
    with pytest.raises(InvalidError, match=r"has @kedge.batched twice"):
        batched(batched(fresh()))
    with pytest.raises(InvalidError, match=r"@kedge.batched and @kedge.fastapi_endpoint cannot be combined"):
        batched(kedge.fastapi_endpoint()(fresh()))
    with pytest.raises(InvalidError, match=r"@kedge.batched and @kedge.fastapi_endpoint cannot be combined"):
        kedge.fastapi_endpoint()(batched(fresh()))


def test_batched_and_concurrent_go_together_in_either_order() -> None:
    target = kedge.App()
    batched, concurrent = kedge.batched(max_batch_size=8, wait_ms=20), kedge.concurrent(max_inputs=3)
    one: Any = target.function(name="one")(batched(concurrent(fresh())))
    two: Any = target.function(name="two")(concurrent(batched(fresh())))
    for handle in (one, two):
        assert handle.spec.concurrency.max_inputs == 3
        assert handle.spec.methods[0].batching == Batching(8, 20)


def test_a_batched_method_must_be_alone() -> None:
    with pytest.raises(
        InvalidError, match=r"Model.many is @kedge.batched, so it must be the only.*move one to another"
    ):

        @app.cls(serialized=True)
        class Model:
            @kedge.batched(max_batch_size=3, wait_ms=1)
            def many(self, x: list[int]) -> list[int]:
                return x

            @kedge.method()
            def one(self) -> None: ...


def test_hooks_and_methods_do_not_mix() -> None:
    def hook(self: Any) -> None: ...

    with pytest.raises(InvalidError, match=r"cannot be both a hook .* split it into two methods"):
        kedge.method()(kedge.enter()(hook))
    with pytest.raises(InvalidError, match=r"callable from outside \(@kedge.method or another decorator\)"):
        kedge.enter()(kedge.method()(hook))
    with pytest.raises(InvalidError, match=r"cannot be both a hook"):
        kedge.exit()(kedge.method()(hook))
    with pytest.raises(InvalidError, match=r"has @kedge.enter or @kedge.exit already"):
        kedge.exit()(kedge.enter()(hook))
    with pytest.raises(InvalidError, match=r"plain\(x\)|needs a method with self and no other parameters"):
        kedge.exit()(lambda self, kind: None)  # type: ignore[misc]
    with pytest.raises(InvalidError, match=r"has no self; @kedge.method is for methods of a class"):
        kedge.method()(lambda: None)  # type: ignore[call-overload]
    with pytest.raises(InvalidError, match=r"@kedge.method cannot be used on a staticmethod"):
        kedge.method()(staticmethod(plain))


def test_web_decorators_check_what_they_decorate() -> None:
    async def asynchronous() -> None: ...

    def with_parameter(x: int) -> None: ...

    def many() -> Iterator[int]:
        yield 1

    with pytest.raises(InvalidError, match=r"@kedge.asgi_app needs a plain function; write `def`"):
        kedge.asgi_app()(asynchronous)
    with pytest.raises(InvalidError, match=r"runs once per container, without arguments; remove x"):
        kedge.wsgi_app()(with_parameter)
    with pytest.raises(InvalidError, match=r"cannot be a generator; return a StreamingResponse"):
        kedge.fastapi_endpoint()(many)
    with pytest.raises(InvalidError, match=r"has @kedge.asgi_app and @kedge.wsgi_app; keep one"):
        kedge.wsgi_app()(kedge.asgi_app()(lambda: None))
    with pytest.warns(kedge.exception.DeprecationError, match="kedge.web_endpoint .* write kedge.fastapi_endpoint"):
        kedge.web_endpoint(method="POST")
