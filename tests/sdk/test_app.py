"""Apps: what they hold, how they run, and how they are put together."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

import kedge
import kedge.sdk.runner
from kedge.exception import ExecutionError, InvalidError, UnavailableError
from kedge.sdk import context
from tests.sdk.fakes import running


def square(x: int) -> int:
    return x * x


class Running:
    """What the runner gives back."""

    def __init__(self, app: kedge.App, detach: bool, name: str | None, environment: str | None) -> None:
        self.app, self.detach, self.name, self.environment = app, detach, name, environment
        self.closed = 0

    def close(self) -> None:
        self.closed += 1
        self.app.stopped()

    async def close_async(self) -> None:
        self.close()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Running]:
    made: list[Running] = []

    def run_app(
        app: kedge.App, *, detach: bool = False, name: str | None = None, environment_name: str | None = None
    ) -> Running:
        app.started(f"ap-{len(made)}")
        made.append(Running(app, detach, name, environment_name))
        return made[-1]

    async def run_app_async(app: kedge.App, **settings: Any) -> Running:
        return run_app(app, **settings)

    monkeypatch.setattr(kedge.sdk.runner, "run_app", run_app)
    monkeypatch.setattr(kedge.sdk.runner, "run_app_async", run_app_async)
    return made


def test_run_starts_and_stops(started: list[Running]) -> None:
    app = kedge.App("mine")
    handle = app.function()(square)
    with app.run(detach=True, name="other", environment_name="testing") as entered:
        assert entered is app
        assert (app.app_id, handle.target().app) == ("ap-0", "ap-0")
        assert (started[0].detach, started[0].name, started[0].environment) == (True, "other", "testing")
        with pytest.raises(ExecutionError, match="runs already; leave the first"), app.run():
            pass
    assert started[0].closed == 1
    assert app.app_id is None

    async def main() -> None:
        async with app.run():
            assert handle.target().app == "ap-1", "a new run is a new app"

    asyncio.run(main())
    assert started[1].closed == 1


def test_run_ends_when_the_block_raises(started: list[Running]) -> None:
    with pytest.raises(ZeroDivisionError), kedge.App().run():
        _ = 1 / 0
    assert started[0].closed == 1


def test_an_app_does_not_run_inside_of_its_container() -> None:
    context.set_container(app_id="ap-1")
    try:
        with pytest.raises(ExecutionError, match=r"one of its containers.*under `if __name__"):
            kedge.App().run().__enter__()
    finally:
        context.clear_container()


def test_include_lends_the_id() -> None:
    main, part = kedge.App("main", tags={"a": "1"}), kedge.App("part", tags={"a": "2", "b": "3"})
    handle = part.function()(square)
    assert main.include(part) is main
    assert main.tags == {"a": "1", "b": "3"}
    assert main.registered_functions == {"square": handle}
    with pytest.raises(ExecutionError, match=r"App\('part'\) is not running"):
        handle.target()
    main.started("ap-5")
    assert handle.target().pool == "fu-5-square"
    assert [spec.name for spec in main.function_specs()] == ["square"]


def test_include_refuses_two_of_one_name_and_other_things() -> None:
    main, part = kedge.App(), kedge.App()
    main.function()(square)
    part.function()(square)
    with pytest.raises(InvalidError, match="both apps have a function or class 'square'"):
        main.include(part)
    with pytest.raises(InvalidError, match=r"App.include takes another App, not 3"):
        main.include(3)  # type: ignore[arg-type]


def test_entrypoints() -> None:
    app = kedge.App()

    @app.local_entrypoint()
    def main(count: int = 3) -> int:
        return count

    @app.local_entrypoint(name="other")
    def second() -> None: ...

    assert main(4) == 4
    assert app.registered_entrypoints == {"main": main, "other": second}
    assert (main.name, main.__name__, main.raw(1)) == ("main", "main", 1)
    with pytest.raises(InvalidError, match=r"two local entry points 'main'; give one of them name="):
        app.local_entrypoint()(main.raw)
    with pytest.raises(InvalidError, match="decorates a plain function, not"):
        app.local_entrypoint()(app.function()(square))  # type: ignore[arg-type]


def test_the_image_can_be_set_later() -> None:
    app = kedge.App()
    assert app.image is None
    app.image = kedge.Image.debian_slim()
    assert app.function()(square).spec.image == app.image.spec
    with pytest.raises(InvalidError, match=r"image must be a kedge.Image"):
        app.image = "debian"  # type: ignore[assignment]


def test_names_and_later_parts() -> None:
    with pytest.raises(InvalidError, match="App: name may hold letters, digits"):
        kedge.App("my app")
    app: Any = kedge.App("x")
    for use in (lambda: app.get_dashboard_url, lambda: app.logs, lambda: app.run(interactive=True)):
        with pytest.raises(UnavailableError, match="does not exist in this version of kedge yet"):
            use()
    with pytest.raises(AttributeError, match="App has no attribute 'functoin'"):
        _ = app.functoin


def test_labels_can_be_set_and_read() -> None:
    app = kedge.App(tags={"team": "sea"})
    assert app.get_tags() == {"team": "sea"}
    app.set_tags({"stage": "new"})
    assert app.get_tags() == {"stage": "new"}
    with pytest.raises(InvalidError, match=r"App.set_tags: tags: stage must be a string, not 3"):
        app.set_tags({"stage": 3})  # type: ignore[dict-item]


def test_a_deployed_app_runs_beside_itself(started: list[Running]) -> None:
    """While a run goes on its handles mean the run, before and after it what is deployed."""
    app = kedge.App("mine")
    handle = app.function()(square)
    app.deployed("ap-77", 2)
    assert (app.app_id, handle.target().app, app.runs) == ("ap-77", "ap-77", False)
    assert pickle.loads(pickle.dumps(app)).app_id == "ap-77"
    with app.run():
        assert handle.target().app == "ap-0"
    assert handle.target().app == "ap-77"
    part = kedge.App("part")
    other = part.function(name="other")(square)
    app.include(part)
    assert other.target().app == "ap-77"


def test_a_pickled_app_is_the_running_one() -> None:
    again = pickle.loads(pickle.dumps(running("x", "ap-7")))
    assert (again.name, again.app_id) == ("x", "ap-7")
