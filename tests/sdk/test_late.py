"""Handles by name: when they ask, what they ask, what they become, and what they say where there is no such thing."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import kedge
from kedge.exception import DeprecationError, InvalidError, NotFoundError
from kedge.model import protocol as p
from kedge.model.ids import deployment_id
from kedge.model.spec import AppSpec, CodeSpec, EnvironmentSpec
from kedge.sdk import context
from kedge.sdk.client import Client
from tests.sdk.fake_plane import FakePlane
from tests.sdk.fakes import Recorder, record

SHOP = deployment_id("main", "shop")

app = kedge.App("shop")


@app.function(serialized=True)
def square(x: int) -> int:
    return x * x


@app.function(serialized=True)
def values(n: int) -> Iterator[int]:
    yield from range(n)


@app.cls(serialized=True)
class Model:
    size: str = kedge.parameter()
    fast: bool = kedge.parameter(default=False)

    @kedge.method()
    def generate(self, text: str) -> str:
        return text

    @kedge.asgi_app()
    def web(self) -> object:
        return None


@app.function(serialized=True)
@kedge.asgi_app()
def page() -> object:
    return None


@pytest.fixture
def shop(plane: FakePlane, client: Client) -> FakePlane:
    """A plane on which the app is deployed."""
    spec = AppSpec(
        app="ap-1",
        name="shop",
        functions=app.function_specs(),
        code=CodeSpec(),
        environment=EnvironmentSpec(python="", python_version="3.11"),
        ephemeral=False,
    )
    plane.deployed["main", "shop"] = p.AppDeployed(1, spec)
    return plane


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return record(monkeypatch)


def asked(plane: FakePlane) -> list[tuple[str, str, str, int | None]]:
    return [(m.environment, m.app, m.name, m.version) for m in plane.heard(p.FunctionRequested)]


def test_nothing_is_asked_before_it_is_used_and_then_once(shop: FakePlane, recorder: Recorder) -> None:
    handle = kedge.Function.from_name("shop", "square")
    assert (repr(handle), handle.name) == ("<kedge.Function square>", "square")
    assert asked(shop) == []
    handle.remote(3)
    handle.spawn(3)
    assert asked(shop) == [("main", "shop", "square", None)]
    assert [call[0] for call in recorder.calls] == ["call", "spawn"]
    assert recorder.target.app == SHOP
    assert recorder.target.pool == f"fu-{SHOP[3:]}-square"
    assert recorder.target.variant is None
    assert handle.object_id == f"fu-{SHOP[3:]}-square"
    assert handle.is_generator is False


def test_every_way_of_calling_works(shop: FakePlane, recorder: Recorder) -> None:
    def find(name: str = "square") -> Any:
        return kedge.Function.from_name("shop", name)

    list(find().map([1]))
    list(find().starmap([(1,)]))
    find().for_each([1])
    find().spawn_map([1])
    find().get_current_stats()
    find().update_autoscaler(max_containers=2)
    find().update_concurrency(max_inputs=2)
    list(find("values").remote_gen(2))
    assert [call[0] for call in recorder.calls] == [
        "map", "map", "map", "spawn_map", "statistics", "update_autoscaler", "update_concurrency", "stream",
    ]  # fmt: skip
    assert len(asked(shop)) == 8


def test_async_code_asks_by_its_own_connection(shop: FakePlane, recorder: Recorder, client: Client) -> None:
    def find(name: str = "square") -> Any:
        return kedge.Function.from_name("shop", name)

    async def main() -> None:
        await find().remote.aio(3)
        await find().spawn.aio(3)
        assert [value async for value in find().map.aio([1])] == ["map_async"]
        assert [value async for value in find().starmap.aio([(1,)])] == ["map_async"]
        await find().for_each.aio([1])
        await find().spawn_map.aio([1])
        await find().get_current_stats.aio()
        await find().update_autoscaler.aio(max_containers=2)
        await find().update_concurrency.aio(max_inputs=2)
        assert [value async for value in find("values").remote_gen.aio(2)] == ["stream_async"]
        handle = find()
        assert await handle.hydrate.aio() is handle
        model = kedge.Cls.from_name("shop", "Model")
        await model(size="x").generate.remote.aio("hi")
        await kedge.Cls.from_name("shop", "Model")(size="x").update_autoscaler.aio(max_containers=2)
        assert await find("page").get_web_url.aio() == "http://127.0.0.1:1/shop-page/"
        assert await find().get_web_url.aio() is None

    shop.web = "http://127.0.0.1:1"
    asyncio.run(main())
    assert all(call[0].endswith("_async") for call in recorder.calls)
    assert client._link is None, "nothing was asked by the blocking connection, which would have stopped the loop"


def test_options_are_checked_at_once_and_applied_later(shop: FakePlane, recorder: Recorder) -> None:
    handle = kedge.Function.from_name("shop", "square")
    variant = handle.with_options(cpu=2.0, timeout=5).with_concurrency(max_inputs=7)
    with pytest.raises(InvalidError, match="max_containers must be at least 1"):
        handle.with_options(max_containers=0)
    with pytest.raises(InvalidError, match=r"with_concurrency: .*max_inputs"):
        handle.with_concurrency(max_inputs=0)
    with pytest.raises(InvalidError, match="max_batch_size"):
        handle.with_batching(max_batch_size=0, wait_ms=1)
    assert asked(shop) == []
    variant.remote(3)
    target = recorder.target
    assert target.variant is not None
    assert (target.variant.spec.resources.cpu, target.variant.spec.concurrency.max_inputs) == (2.0, 7)
    assert target.timeout == 5.0
    handle.remote(3)
    assert recorder.target.variant is None, "the handle that it was made of stays as it was"
    assert len(asked(shop)) == 1, "and what was found is shared"
    with pytest.raises(InvalidError, match="square takes no batches"):
        handle.with_batching(max_batch_size=2, wait_ms=1).remote(1)


def test_a_class_takes_parameters_and_gives_methods(shop: FakePlane, recorder: Recorder) -> None:
    found = kedge.Cls.from_name("shop", "Model")
    assert (repr(found), found.name) == ("<kedge.Cls Model>", "Model")
    instance = found(size="large")
    assert instance.size == "large"
    method = instance.generate
    assert asked(shop) == []
    assert method.name == "Model.generate"
    method.remote("hi")
    target = recorder.target
    assert (target.method, target.name) == ("generate", "Model.generate")
    assert target.variant is not None
    assert b"large" in target.variant.parameters.data  # type: ignore[union-attr]
    here = Model(size="large").generate  # type: ignore[call-arg]
    app.started(SHOP)
    try:
        assert here.target().pool == target.pool, "the same pool as from the program that declares it"
    finally:
        app.stopped()
    instance.update_autoscaler(min_containers=1)
    assert recorder.target.pool == target.pool
    assert instance.fast is False, "known now, so its defaults are"
    assert len(asked(shop)) == 1


def test_a_method_can_be_named_like_a_function(shop: FakePlane, recorder: Recorder) -> None:
    with pytest.raises(InvalidError, match=r"Model needs size; write Model\(size=…\)"):
        kedge.Function.from_name("shop", "Model.generate").remote("hi")
    assert asked(shop) == [("main", "shop", "Model.generate", None), ("main", "shop", "Model", None)]


@pytest.mark.parametrize(
    ("use", "kind", "message"),
    [
        (
            lambda: kedge.Function.from_name("shop", "sqare").remote(1),
            NotFoundError,
            r"has no function or class 'sqare'; it has square, values, Model, page. Did you mean 'square'\?",
        ),
        (
            lambda: kedge.Function.from_name("shp", "square").hydrate(),
            NotFoundError,
            r"no app 'shp' is deployed; deployed there: shop. Deploy it. Did you mean 'shop'\?",
        ),
        (
            lambda: kedge.Function.from_name("shop", "Model").remote(1),
            InvalidError,
            r"Model is a class, not a function; write kedge.Cls.from_name\('shop', 'Model'\)\(…\).generate",
        ),
        (
            lambda: kedge.Cls.from_name("shop", "square").hydrate(),
            InvalidError,
            r"square is a function, not a class; write kedge.Function.from_name\('shop', 'square'\)",
        ),
        (
            lambda: kedge.Cls.from_name("shop", "Model")(sise="x").generate.remote(1),
            InvalidError,
            r"Model has no parameter 'sise'. Did you mean 'size'\?",
        ),
        (
            lambda: kedge.Cls.from_name("shop", "Model")(size="x").generat.remote(1),
            NotFoundError,
            r"Model has no method or attribute 'generat'. Did you mean 'generate'\?",
        ),
        (
            lambda: kedge.Cls.from_name("shop", "Model")("x"),
            InvalidError,
            r"Model takes its parameters by name only; write Model\(size=…, fast=…\)",
        ),
        (
            lambda: kedge.Cls.from_name("shop", "Model").generate.remote(1),
            AttributeError,
            r"Model.generate needs an instance: write Model\(…\).generate.remote\(…\)",
        ),
        (lambda: kedge.Function.from_name("shop", "square").remote_gen(1), InvalidError, "square is not a generator"),
        (
            lambda: kedge.Function.from_name("shop", "page").remote(),
            InvalidError,
            r"page is a web function \(@kedge.asgi_app\): .remote\(…\) cannot call it. .* page.get_web_url\(\) gives",
        ),
        (lambda: kedge.Function.from_name("shop", "square", version=0), InvalidError, "version must be at least 1"),
        (lambda: kedge.Function.from_name("my shop", "square"), InvalidError, "from_name: app_name may hold letters"),
        (lambda: kedge.Cls.from_name("shop", ""), InvalidError, "Cls.from_name: name must be a non-empty string"),
        (
            lambda: kedge.Function.from_name("shop", "square", environment_name="No"),
            InvalidError,
            "environment_name is 'No'",
        ),
        (lambda: kedge.Function.from_name("shop", "square").nonsense, AttributeError, "no attribute 'nonsense'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_there_is_said_with_what_is(
    shop: FakePlane, use: Callable[[], Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        use()


def test_versions_and_environments_are_passed_on(
    shop: FakePlane, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kedge.Function.from_name("shop", "square", version=3).remote(1)
    assert recorder.target.app == "ap-v3", "this version, also when it is not current any more"
    monkeypatch.setenv("KEDGE_ENVIRONMENT", "testing")
    handle = kedge.Function.from_name("shop", "square")
    monkeypatch.delenv("KEDGE_ENVIRONMENT")
    with pytest.raises(NotFoundError):
        handle.hydrate()
    with pytest.raises(NotFoundError):
        kedge.Cls.from_name("shop", "Model", environment_name="staging").hydrate()
    assert [(e, v) for e, _, _, v in asked(shop)] == [("main", 3), ("testing", None), ("staging", None)]


def test_a_container_looks_in_the_environment_of_its_app(
    shop: FakePlane, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.set_container(app_id="ap-77", app_name="other")
    try:
        kedge.Function.from_name("shop", "square").remote(1)
        assert recorder.target.app == SHOP, "not the container's own app"
    finally:
        context.clear_container()


def test_handles_are_pickled_before_and_after_they_are_known(shop: FakePlane, recorder: Recorder) -> None:
    handles: list[Any] = [
        kedge.Function.from_name("shop", "square"),
        kedge.Function.from_name("shop", "square").with_options(timeout=3),
        kedge.Function.from_name("shop", "square").hydrate(),
    ]
    for handle in handles:
        again = pickle.loads(pickle.dumps(handle))
        again.remote(1)
        assert recorder.target.pool == f"fu-{SHOP[3:]}-square"
    cls = pickle.loads(pickle.dumps(kedge.Cls.from_name("shop", "Model")))
    pickle.loads(pickle.dumps(cls(size="x"))).generate.remote("hi")
    first = recorder.target
    pickle.loads(pickle.dumps(cls.hydrate()))(size="x").generate.remote("hi")
    assert recorder.target == first
    pickle.loads(pickle.dumps(kedge.Cls.from_name("shop", "Model")(size="x").generate)).remote("hi")
    assert recorder.target == first


def test_a_function_is_found_by_its_id(shop: FakePlane, recorder: Recorder) -> None:
    id = f"fu-{SHOP[3:]}-square"
    kedge.Function.from_id(id).remote(1)
    assert recorder.target.pool == id
    assert shop.heard(p.FunctionRequested)[0].function == id


def test_old_spellings_ask_at_once(shop: FakePlane) -> None:
    with pytest.warns(DeprecationError, match=r"write kedge.Function.from_name\('shop', 'square'\)"):
        kedge.Function.lookup("shop", "square")
    with pytest.warns(DeprecationError, match=r"write kedge.Cls.from_name\('shop', 'Model'\)"):
        kedge.Cls.lookup("shop", "Model")
    assert len(asked(shop)) == 2


# ---------------------------------------------------------------- addresses


def test_addresses_of_functions_and_of_methods_of_instances(shop: FakePlane) -> None:
    shop.web = "http://127.0.0.1:5334"
    assert kedge.Function.from_name("shop", "page").get_web_url() == "http://127.0.0.1:5334/shop-page/"
    assert kedge.Function.from_name("shop", "square").get_web_url() is None
    model = kedge.Cls.from_name("shop", "Model")
    assert model(size="x").web.get_web_url() == "http://127.0.0.1:5334/shop-model-web/?size=x"
    url = model(size="a&b ü", fast=True).web.get_web_url()
    assert url == "http://127.0.0.1:5334/shop-model-web/?size=a%26b%20%C3%BC&fast=true"


def test_a_server_that_listens_since_a_moment_is_asked_again(shop: FakePlane, client: Client) -> None:
    assert client.link().welcome.web == ""
    shop.web = "http://127.0.0.1:40001"
    assert kedge.Function.from_name("shop", "page").get_web_url() == "http://127.0.0.1:40001/shop-page/"


def test_a_server_without_requests_says_so(shop: FakePlane) -> None:
    with pytest.raises(kedge.exception.ExecutionError, match=r"answers no HTTP requests; start it with an address"):
        kedge.Function.from_name("shop", "page").get_web_url()


def test_the_old_property_still_gives_the_address(shop: FakePlane) -> None:
    shop.web = "http://127.0.0.1:5334"
    with pytest.warns(DeprecationError, match=r"page.web_url is an old spelling; write page.get_web_url\(\)"):
        assert kedge.Function.from_name("shop", "page").web_url == "http://127.0.0.1:5334/shop-page/"


def test_keywords_of_live_changes_are_named_as_people_know_them(shop: FakePlane) -> None:
    handle: Any = kedge.Function.from_name("shop", "square")
    with pytest.raises(InvalidError, match=r"update_concurrency has no parameter 'max_input'. Did you mean 'max_inpu"):
        handle.update_concurrency(max_input=3)
    with pytest.raises(InvalidError, match=r"update_autoscaler takes keyword arguments only, but got 3 by position"):
        handle.update_autoscaler(3)
