"""How a container finds and makes what it serves, and what code may ask about where it runs."""

from __future__ import annotations

import asyncio
import inspect
import types
from typing import Any

import pytest

import kedge
from kedge import experimental
from kedge.exception import ExecutionError, InvalidError, UnavailableError
from kedge.sdk import context, parameters, registry, serializer
from kedge.sdk.context import InputContext
from kedge.sdk.service import Service, find_service, service_of
from tests.sdk import declared_things


def spec_of(name: str, app: kedge.App = declared_things.app) -> Any:
    return next(spec for spec in app.function_specs() if spec.name == name)


def test_functions_are_found_by_their_registered_name() -> None:
    for factor in (2, 3):
        found = find_service(declared_things, spec_of(f"times-{factor}"))
        assert found.create() is None
        assert found.callable_for("")(5) == 5 * factor
        assert (found.enter_hooks, found.exit_hooks) == ([], [])
    assert spec_of("times-2").qualname == spec_of("times-3").qualname


def test_the_apps_name_decides_between_two_apps() -> None:
    for app in (declared_things.app, declared_things.other):
        assert app.name is not None
        found = find_service(declared_things, spec_of("shared", app), app.name)
        assert found.callable_for("")() == f"of {app.name}"


def test_the_implicit_app_belongs_to_its_module() -> None:
    implicit = registry.apps_in(declared_things)[""]
    assert implicit is declared_things.implicit.app
    assert list(implicit.registered_functions) == ["implicit"]
    assert registry.apps_in(declared_things)["app"] is declared_things.app
    assert find_service(declared_things, implicit.function_specs()[0]).callable_for("")(3) == -3


def test_what_is_missing_is_named() -> None:
    empty = types.ModuleType("empty_module")
    with pytest.raises(
        ExecutionError, match=r"importing empty_module .* did not register 'square' \(it registered nothing"
    ):
        find_service(empty, spec_of("square"))


def test_a_class_is_made_with_its_parameters_before_its_constructor() -> None:
    found = find_service(declared_things, spec_of("Greeter"))
    with pytest.raises(ExecutionError, match=r"Greeter has no instance yet; create\(\) comes before inputs"):
        found.callable_for("shout")
    instance = found.create(parameters.encode("Greeter", {"prefix": "hi", "times": 2}))
    assert found.instance is instance
    assert (instance.prefix, instance.times, instance.mood, instance.made_with) == ("hi", 2, "plain", 2)
    assert found.callable_for("shout")("bo") == "HI BOHI BO"
    assert list(found.callable_for("letters")("ab")) == ["a", "b"]
    assert asyncio.run(found.callable_for("whisper")("BO")) == "hi bo"
    assert found.method("letters").is_generator
    with pytest.raises(ExecutionError, match=r"Greeter has no method 'nope'; it has greet, shout"):
        found.callable_for("nope")


def test_defaults_fill_what_was_not_given() -> None:
    found = find_service(declared_things, spec_of("Greeter"))
    assert found.create(None).times == 1
    assert Service(found.spec, found.user).create({"times": 5}).prefix == "hello"


def test_hooks_run_bases_first_and_leave_in_reverse() -> None:
    declared_things.log.clear()
    found = find_service(declared_things, spec_of("Greeter"))
    found.create()
    for hook in [*found.enter_hooks, *found.exit_hooks]:
        result = hook()
        if inspect.isawaitable(result):
            asyncio.run(_wait(result))
    assert declared_things.log == ["base enter", "connect", "close", "base exit"]


async def _wait(awaitable: Any) -> None:
    await awaitable


def test_snap_hooks_run_first() -> None:
    app, order = kedge.App(), []

    @app.cls(serialized=True, enable_memory_snapshot=True)
    class Model:
        @kedge.enter()
        def late(self) -> None:
            order.append("late")

        @kedge.enter(snap=True)
        def early(self) -> None:
            order.append("early")

        @kedge.method()
        def run(self) -> None: ...

    handle = app.registered_classes["Model"]
    found = Service(handle.spec, handle.get_user_code())
    found.create()
    for hook in found.enter_hooks:
        hook()
    assert order == ["early", "late"]


def test_code_by_value_is_served_without_its_module() -> None:
    app = kedge.App("by-value")

    @app.cls(serialized=True)
    class Model:
        size: int = kedge.parameter(default=2)

        @kedge.enter()
        def load(self) -> None:
            self.loaded = True

        @kedge.method()
        def run(self, x: int) -> int:
            return x * self.size if self.loaded else 0

        @kedge.method()
        def twice(self, x: int) -> int:
            return 2 * self.run.local(x)

    app.function(serialized=True, name="four")(lambda: 4)
    for spec in app.function_specs():
        assert spec.serialized is not None
        found = service_of(serializer.from_payload(spec.serialized, None), spec)
        found.create({"size": 5} if spec.is_class else None)
        for hook in found.enter_hooks:
            hook()
        if spec.is_class:
            assert (found.callable_for("run")(3), found.callable_for("twice")(3)) == (15, 30)
        else:
            assert found.callable_for("")() == 4
    with pytest.raises(ExecutionError, match="the serialized four is int, neither a function nor a class"):
        service_of(3, spec)


# ---------------------------------------------------------------- where code runs


def test_the_input_is_known_to_the_code_that_works_on_it() -> None:
    assert (kedge.current_input_id(), kedge.current_function_call_id()) == (None, None)
    outer = context.enter_input(InputContext("fc-12", 3, attempt=1))
    assert (kedge.current_input_id(), kedge.current_function_call_id()) == ("in-12-3", "fc-12")
    inner = context.enter_input(InputContext("fc-34", 0, members=(("fc-34", 0), ("fc-34", 1))))
    assert kedge.current_input_id() == "in-34-0"
    context.exit_input(inner)
    assert kedge.current_input_id() == "in-12-3"
    context.exit_input(outer)
    assert context.current_input() is None


class Control:
    def __init__(self) -> None:
        self.concurrency = 4
        self.stopped = False

    def get_concurrency(self) -> int:
        return self.concurrency

    def set_concurrency(self, inputs: int) -> None:
        self.concurrency = inputs

    def stop_fetching_inputs(self) -> None:
        self.stopped = True


def test_experimental_asks_its_container() -> None:
    with pytest.raises(ExecutionError, match="get_local_input_concurrency asks the container it runs in"):
        experimental.get_local_input_concurrency()
    control = Control()
    assert kedge.is_local()
    context.set_container(app_id="ap-1", control=control)
    try:
        assert not kedge.is_local()
        assert experimental.get_local_input_concurrency() == 4
        experimental.set_local_input_concurrency(2)
        experimental.stop_fetching_inputs()
        assert (control.concurrency, control.stopped) == (2, True)
        with pytest.raises(InvalidError, match="concurrency must be at least 1, got 0"):
            experimental.set_local_input_concurrency(0)
    finally:
        context.clear_container()
    with pytest.raises(UnavailableError, match=r"kedge.experimental.clustered does not exist"):
        _ = experimental.clustered
