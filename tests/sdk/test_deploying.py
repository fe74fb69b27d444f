"""Deploying from a program: what the server is told, what becomes of the app here, and what is said where it fails."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kedge
from kedge.exception import ConnectionError, ExecutionError, InvalidError, NotFoundError, RemoteError
from kedge.model import protocol as p
from kedge.model.ids import deployment_id
from kedge.model.payload import ErrorInfo
from kedge.sdk import client as client_module
from kedge.sdk import context, output, runner, server_process
from kedge.sdk.serializer import error_info
from tests.sdk.fake_plane import FakePlane
from tests.sdk.test_runner import Shown


def square(x: int) -> int:
    return x * x


def page() -> object:
    return None


@pytest.fixture
def app() -> kedge.App:
    made = kedge.App("shop")
    made.function(serialized=True)(square)
    made.function(serialized=True)(kedge.asgi_app()(page))
    return made


@pytest.fixture(autouse=True)
def home(tmp_path: Path, plane: FakePlane, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))
    monkeypatch.setenv("KEDGE_SERVER", plane.address)
    plane.web = "http://127.0.0.1:5334"
    yield tmp_path
    for client in [client_module.running()]:
        if client is not None:
            client.close()


def test_deploying_sends_the_app_and_makes_its_handles_work(plane: FakePlane, app: kedge.App) -> None:
    assert app.deploy(tag="v1.2", strategy="recreate") is app
    (message,) = plane.heard(p.AppDeployed)
    spec = message.app
    assert (spec.name, spec.tag, spec.ephemeral, spec.environment_name) == ("shop", "v1.2", False, "main")
    assert message.strategy == "recreate"
    assert [function.name for function in spec.functions] == ["square", "page"]
    assert spec.functions[0].serialized is not None
    assert spec.environment.directory == os.getcwd()
    id = deployment_id("main", "shop")
    assert app.app_id == id
    assert app.registered_functions["square"].target().app == id
    assert app.registered_functions["page"].get_web_url() == "http://127.0.0.1:5334/shop-page/"
    app.deploy()
    first, second = plane.heard(p.AppDeployed)
    assert first.app.app != second.app.app, "each version is an app of its own"


def test_another_name_and_environment(plane: FakePlane, app: kedge.App, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(app.deploy.aio(name="other", environment_name="staging"))
    assert app.app_id == deployment_id("staging", "other")
    monkeypatch.setenv("KEDGE_ENVIRONMENT", "testing")
    app.deploy()
    assert list(plane.deployed) == [("staging", "other"), ("testing", "shop")]


def test_progress_is_shown_where_somebody_looks(plane: FakePlane, app: kedge.App) -> None:
    shown = Shown()
    with output.show_on(shown):
        app.deploy()
    assert shown.notices == ["f is up"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "big bang"}, "deploy: strategy is one of rolling, recreate, not 'big bang'"),
        ({"name": "my shop"}, "deploy: name may hold letters"),
        ({"tag": "a b"}, "deploy: tag may hold letters"),
        ({"environment_name": "No"}, "environment_name is 'No'"),
    ],
)
def test_words_are_checked_before_anything_is_sent(
    plane: FakePlane, app: kedge.App, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidError, match=message):
        app.deploy(**settings)
    assert plane.said == []
    assert app.app_id is None


def test_an_app_without_a_name_needs_one(plane: FakePlane) -> None:
    with pytest.raises(InvalidError, match=r"found by its name: write kedge.App\('NAME'\), or app.deploy\(name='NAME"):
        kedge.App().deploy()


def test_where_it_cannot_be_deployed(plane: FakePlane, app: kedge.App) -> None:
    app.started("ap-1")
    with pytest.raises(ExecutionError, match=r"leave its `with app.run\(\)"):
        app.deploy()
    app.stopped()
    context.set_container(app_id="ap-1")
    try:
        with pytest.raises(ExecutionError, match=r"one of its containers, .* Put app.deploy\(\) under `if __name__"):
            app.deploy()
    finally:
        context.clear_container()


def test_why_containers_do_not_start_is_the_cause(plane: FakePlane, app: kedge.App) -> None:
    try:
        _ = {}["weights"]  # type: ignore[var-annotated]
    except KeyError as error:
        info = error_info(error)
    text = "square cannot start: 'weights'. Version 3 of shop goes on serving"
    plane.refuse_deploy = ErrorInfo(info.type, text, info.traceback, info.payload, info.module, (), info.frames)
    with pytest.raises(RemoteError, match="Version 3 of shop goes on serving") as caught:
        app.deploy()
    assert isinstance(caught.value.__cause__, KeyError)
    assert app.app_id is None


def test_what_the_server_refuses_is_raised_as_it_is(plane: FakePlane, app: kedge.App) -> None:
    plane.refuse_deploy = ErrorInfo("InvalidError", "the label 'x' belongs to somebody else")
    with pytest.raises(InvalidError, match="the label 'x' belongs to somebody else"):
        app.deploy()


def test_a_named_server_that_is_not_there_is_an_error(app: kedge.App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_SERVER", "/nobody/plane.sock")
    with pytest.raises(
        ConnectionError, match=r"no kedge server answers at /nobody/plane.sock: .*KEDGE_SERVER names it"
    ):
        app.deploy()


def test_the_server_of_the_machine_is_started_and_that_is_said(
    plane: FakePlane, app: kedge.App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KEDGE_SERVER")
    made: list[bool] = []

    class Process:
        def __init__(self, private: bool) -> None:
            made.append(private)
            self.address = server_process.ServerAddress(plane.address)
            self.facts = {"notes": ["port 5334 is taken"]}

    monkeypatch.setattr(runner, "ServerProcess", Process)
    shown = Shown()
    with output.show_on(shown):
        app.deploy()
    assert made == [False]
    assert shown.notices[0].startswith("started the server of this machine; it stays, and `kedge server stop`")
    assert shown.notices[1] == "port 5334 is taken"


def test_a_server_that_somebody_else_starts_at_the_same_time_is_used(
    plane: FakePlane, app: kedge.App, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KEDGE_SERVER")

    def taken(private: bool) -> Any:
        (home / "server").mkdir()
        facts = {"address": plane.address, "process": os.getpid()}
        (home / "server" / "server.json").write_text(json.dumps(facts))
        raise ConnectionError("a server is running already")

    monkeypatch.setattr(runner, "ServerProcess", taken)
    app.deploy()
    assert len(plane.heard(p.AppDeployed)) == 1


# ---------------------------------------------------------------- found again


def test_an_app_is_found_by_name_and_stopped(plane: FakePlane, app: kedge.App) -> None:
    app.deploy()
    found = kedge.App.lookup("shop")
    assert (found.name, found.app_id) == ("shop", deployment_id("main", "shop"))
    assert asyncio.run(kedge.App.lookup.aio("shop")).app_id == found.app_id
    found.stop()
    assert plane.heard(p.AppStopped)[0].app == found.app_id


def test_an_app_that_is_not_there(plane: FakePlane, app: kedge.App) -> None:
    app.deploy()
    with pytest.raises(NotFoundError, match=r"no app 'shpo' is deployed; .* Did you mean 'shop'\?"):
        kedge.App.lookup("shpo")
    made = kedge.App.lookup("new", create_if_missing=True, environment_name="staging")
    assert made.app_id == deployment_id("staging", "new")
    assert plane.deployed["staging", "new"].app.functions == ()
    with pytest.raises(InvalidError, match=r"App.lookup: name may hold"):
        kedge.App.lookup("a b")


def test_only_what_runs_can_be_stopped(plane: FakePlane) -> None:
    with pytest.raises(ExecutionError, match=r"neither runs nor is deployed; kedge.App.lookup\('idle'\) finds"):
        kedge.App("idle").stop()
    app = kedge.App("busy")
    with app.run():
        app.stop()
        assert app.app_id is None
    assert len(plane.heard(p.AppStopped)) >= 1
