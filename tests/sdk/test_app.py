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

    def __init__(self, app: kedge.App, detach: bool, name: str | None) -> None:
        self.app, self.detach, self.name = app, detach, name
        self.closed = 0

    def close(self) -> None:
        self.closed += 1
        self.app.stopped()

    async def close_async(self) -> None:
        self.close()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Running]:
    made: list[Running] = []

    def run_app(app: kedge.App, *, detach: bool = False, name: str | None = None) -> Running:
        app.started(f"ap-{len(made)}")
        made.append(Running(app, detach, name))
        return made[-1]

    async def run_app_async(app: kedge.App, *, detach: bool = False, name: str | None = None) -> Running:
        return run_app(app, detach=detach, name=name)

    monkeypatch.setattr(kedge.sdk.runner, "run_app", run_app)
    monkeypatch.setattr(kedge.sdk.runner, "run_app_async", run_app_async)
    return made


def test_run_starts_and_stops(started: list[Running]) -> None:
    app = kedge.App("mine")
    handle = app.function()(square)
    with app.run(detach=True, name="other") as entered:
        assert entered is app
        assert (app.app_id, handle.target().app) == ("ap-0", "ap-0")
        assert (started[0].detach, started[0].name) == (True, "other")
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
    for use in (app.deploy, lambda: kedge.App.lookup("x"), lambda: app.set_tags, lambda: app.run(interactive=True)):
        with pytest.raises(UnavailableError, match="does not exist in this version of kedge yet"):
            use()
    with pytest.raises(AttributeError, match="App has no attribute 'functoin'"):
        _ = app.functoin


def test_a_pickled_app_is_the_running_one() -> None:
    again = pickle.loads(pickle.dumps(running("x", "ap-7")))
    assert (again.name, again.app_id) == ("x", "ap-7")
