"""Classes: instances by parameters, pools per instance, local use, and what is refused."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

import kedge
from kedge.exception import ExecutionError, InvalidError
from kedge.model.spec import FunctionSpec
from kedge.sdk import context, parameters, service
from tests.sdk import declared_things
from tests.sdk.fakes import record, running

Greeter: Any = declared_things.Greeter


@pytest.fixture(autouse=True)
def _running() -> Any:
    declared_things.app.started("ap-1")
    declared_things.log.clear()
    yield
    declared_things.app.stopped()


def test_methods_are_handles_of_the_instances_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = record(monkeypatch)
    Greeter(times=2).shout.remote("ada")
    target = recorder.target
    assert (target.method, target.name) == ("shout", "Greeter.shout")
    assert target.variant is not None
    assert target.pool == f"fu-1-Greeter@{target.variant.variant}"
    assert parameters.decode(target.variant.parameters) == {"prefix": "hello", "times": 2}  # type: ignore[arg-type]
    list(Greeter().letters.remote_gen("ada"))
    assert recorder.target.is_generator


def test_equal_parameters_meet_in_one_pool() -> None:
    pools = {
        Greeter(times=2, prefix="a").shout.target().pool,
        Greeter(prefix="a", times=2).greet.target().pool,
        pickle.loads(pickle.dumps(Greeter(prefix="a", times=2))).greet.target().pool,
    }
    assert len(pools) == 1
    assert Greeter(times=3).shout.target().pool not in pools


def test_defaults_are_the_declared_pool() -> None:
    assert Greeter().shout.target().pool == "fu-1-Greeter"
    assert Greeter(times=1, prefix="hello").shout.target().variant is None


def test_options_and_parameters_make_one_variant() -> None:
    both = Greeter.with_options(retries=5)(times=2).shout.target()
    assert both.variant.spec.retries.max_retries == 5
    assert both.variant.parameters is not None
    assert both.pool != Greeter(times=2).shout.target().pool
    assert Greeter.with_concurrency(max_inputs=4)().shout.target().variant.spec.concurrency.max_inputs == 4
    assert Greeter.spec.concurrency.max_inputs == 1


def test_limits_of_calls_share_the_containers_of_the_instance() -> None:
    hasty = Greeter.with_options(timeout=5)(times=2)
    target = hasty.shout.target()
    assert (target.pool, target.timeout) == (Greeter(times=2).shout.target().pool, 5.0)
    assert target.variant == Greeter(times=2).shout.target().variant, "its containers know nothing of it"
    assert Greeter.with_options(timeout=5)().shout.target().variant is None
    again = pickle.loads(pickle.dumps(hasty)).greet.with_options(queue_timeout=2).target()
    assert (again.pool, again.method, again.timeout, again.queue_timeout) == (target.pool, "greet", 5.0, 2.0)
    assert hasty.greet.with_options(timeout=3).local("ada") == "hello ada"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Greeter(time=3), r"Greeter has no parameter 'time'. Did you mean 'times'\?"),
        (lambda: Greeter(times="3"), r"Greeter\(times=…\) must be int, not str \('3'\)"),
        (lambda: Greeter(times=True), r"must be int, not bool"),
        (lambda: Greeter(mood="happy"), r"Greeter has no parameter 'mood'"),
        (lambda: Greeter(3), r"Greeter takes its parameters by name only; write Greeter\(prefix=…, times=…\)"),
        (lambda: Greeter(prefix="x" * 20_000), r"parameters of Greeter take \d+ bytes, the limit is 16384"),
    ],
)
def test_wrong_parameters(make: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        make()


def test_a_parameter_without_default_must_be_given() -> None:
    @kedge.App().cls(serialized=True)
    class Model:
        name: str = kedge.parameter()
        data: bytes = kedge.parameter(default=b"\xff")

        @kedge.method()
        def show(self) -> tuple[str, bytes]:
            return self.name, self.data

    made: Any = Model
    with pytest.raises(InvalidError, match=r"Model needs name; write Model\(name=…\)"):
        made()
    assert made(name="x").show.local() == ("x", b"\xff")


def test_without_an_instance_a_method_says_so() -> None:
    with pytest.raises(AttributeError, match=r"Greeter.shout.remote needs an instance: write Greeter\(\).shout.remote"):
        Greeter.shout.remote("x")
    restored = pickle.loads(pickle.dumps(Greeter))
    with pytest.raises(AttributeError, match=r"Greeter.shout needs an instance"):
        restored.shout.remote("x")
    assert restored(times=2).shout.target() == Greeter(times=2).shout.target()


def test_unknown_and_plain_attributes() -> None:
    greeter = Greeter(times=3)
    assert greeter.times == 3
    assert greeter.mood == "plain"
    assert greeter.made_with == 3
    assert declared_things.log == [], "plain attributes do not enter"
    with pytest.raises(AttributeError, match=r"Greeter has no method or attribute 'shoot'. Did you mean 'shout'\?"):
        _ = greeter.shoot
    with pytest.raises(AttributeError, match=r"would set it on this handle only, not in containers"):
        greeter.times = 4


def test_a_plain_method_is_not_callable_from_outside() -> None:
    @kedge.App().cls(serialized=True)
    class Model:
        def helper(self) -> None: ...

        @kedge.method()
        def run(self) -> None: ...

    with pytest.raises(AttributeError, match=r"Model.helper has no @kedge.method\(\)"):
        _ = Model().helper


def test_local_makes_the_object_and_enters_once() -> None:
    greeter = Greeter(times=2)
    assert greeter.shout.local("ada") == "HELLO ADAHELLO ADA"
    assert greeter.shout.local("bob") == "HELLO BOBHELLO BOB"
    assert list(greeter.letters.local("ab")) == ["a", "b"]
    assert declared_things.log == ["base enter", "connect"]


def test_local_of_an_async_method_enters_on_the_loop() -> None:
    greeter = Greeter()

    async def main() -> str:
        with pytest.raises(ExecutionError, match=r"has the async hook connect, which a sync .local\(\) cannot run"):
            Greeter().shout.local("x")
        first: str = await greeter.whisper.local("Ada")
        await greeter.whisper.local("Bob")
        return first

    assert asyncio.run(main()) == "hello ada"
    assert declared_things.log == ["base enter", "base enter", "connect"]


def test_inside_of_the_class_methods_work_in_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = record(monkeypatch)
    assert Greeter().plainly.local("ada") == "hello ada"
    found = service.find_service(declared_things, Greeter.spec)
    instance = found.create({"prefix": "hi", "times": 2})
    assert instance.greet.local("bo") == "hi bo"
    assert instance.greet("bo") == "hi bo"
    instance.greet.remote("bo")
    assert recorder.target.pool == Greeter(prefix="hi", times=2).greet.target().pool


def test_inside_of_a_variants_container_self_means_the_variant() -> None:
    variant = Greeter.with_options(retries=5)(times=2)
    spec: FunctionSpec = variant.shout.target().variant.spec
    found = service.find_service(declared_things, spec)
    instance = found.create({"times": 2})
    assert instance.greet.target().pool == Greeter(times=2).greet.target().pool
    context.set_container(app_id="ap-1", app_name="declared", function=spec)
    try:
        assert instance.greet.target().pool == variant.greet.target().pool
        assert Greeter(times=2).greet.target().pool == Greeter(times=2).greet.target().pool
    finally:
        context.clear_container()


def test_the_handle_stands_for_the_class() -> None:
    user = Greeter.get_user_code()
    assert isinstance(user(), Greeter)

    class Louder(Greeter):  # type: ignore[misc]
        @kedge.method()
        def shout(self, name: str) -> str:
            return "!"

    assert Louder.__mro__[1] is user
    app = running()
    app.cls(serialized=True)(Louder)
    handle: Any = app.registered_classes["Louder"]
    assert [method.name for method in handle.spec.methods] == ["greet", "shout", "plainly", "whisper", "letters"]
    assert handle().shout.local("x") == "!"
    assert handle().greet.target().pool == "fu-1-Louder"


def test_live_changes_belong_to_the_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = record(monkeypatch)
    Greeter(times=2).update_autoscaler(min_containers=1)
    Greeter(times=2).update_concurrency(max_inputs=4)
    asyncio.run(Greeter(times=2).update_concurrency.aio(target_inputs=2))
    assert [call[0] for call in recorder.calls] == [
        "update_autoscaler", "update_concurrency", "update_concurrency_async"
    ]  # fmt: skip
    assert [call[2] for call in recorder.calls[1:]] == [
        {"max_inputs": 4, "target_inputs": None}, {"max_inputs": None, "target_inputs": 2}
    ]  # fmt: skip
    assert {call[1].pool for call in recorder.calls} == {Greeter(times=2).shout.target().pool}
    with pytest.raises(
        InvalidError, match=r"methods share the containers .* write Greeter\(…\).update_autoscaler\(…\)"
    ):
        Greeter().shout.update_autoscaler(min_containers=1)
    with pytest.raises(InvalidError, match=r"write Greeter\(…\).update_concurrency\(…\)"):
        Greeter().shout.update_concurrency(max_inputs=1)
    with pytest.raises(InvalidError, match=r"write Greeter.with_options\(…\)\(…\).shout"):
        Greeter().shout.with_options(timeout=3, gpu="H100")


def test_parameters_have_one_encoding() -> None:
    one = parameters.encode("M", {"b": True, "a": b"x"})
    two = parameters.encode("M", {"a": b"x", "b": True})
    assert one == two
    assert parameters.decode(one) == {"a": b"x", "b": True}
    with pytest.raises(kedge.exception.DeserializationError, match="parameters come as msgpack"):
        parameters.decode(kedge.model.payload.Payload(format="p"))  # type: ignore[attr-defined]
