"""What people who look after a server are told: apps and their versions, containers, functions, calls, the server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kedge._version import __version__
from kedge.model import protocol as p
from kedge.model.ids import deployment_id, function_id
from kedge.model.payload import FAILURE, ErrorInfo, Payload, Result
from kedge.model.spec import (
    AppSpec,
    AutoscalerSettings,
    CodeSpec,
    Concurrency,
    EnvironmentSpec,
    GpuRequest,
    MethodSpec,
    ParameterSpec,
    Resources,
    ScheduleSpec,
    Variant,
    WebSpec,
)
from kedge.server import office as office_module
from tests.server.fake_engine import FakeEngine, hold
from tests.server.shell import POOL, Peer, app, inputs, running, spawned
from tests.wire.loops import on_loop, until

D = deployment_id("main", "demo")
DEPLOYED = function_id(D, "square")


def version(number: int, **options: Any) -> AppSpec:
    return app(f"ap-v{number}", ephemeral=False, **options)


async def deploy(peer: Peer, spec: AppSpec) -> Any:
    reply = await peer.ask(lambda n: p.AppDeployed(n, spec))
    assert reply.error is None, reply.error
    return reply.value


async def asked(peer: Peer, make: Any) -> Any:
    reply = await peer.ask(make)
    assert reply.error is None, reply.error
    return reply.value


async def refused(peer: Peer, make: Any) -> ErrorInfo:
    reply = await peer.ask(make)
    assert reply.error is not None, reply.value
    return reply.error


# ---------------------------------------------------------------- apps


@on_loop
async def test_apps_that_run_and_apps_that_are_deployed(tmp_path: Path) -> None:
    web = (MethodSpec(web=WebSpec(kind="asgi_app")),)
    async with running(tmp_path) as shell:
        shell.office.about["web"] = "http://127.0.0.1:5334"
        peer = await shell.client(p.AppCreated(1, replace(app("ap-1"), name="run")))
        await peer.ask(lambda n: p.AppCreated(n, replace(app("ap-2", ephemeral=False), name="stays")))
        await deploy(peer, replace(version(1, methods=web), tag="first"))
        found = {one["app"]: one for one in await asked(peer, p.AppsRequested)}
        assert [(one["name"], one["state"], one["ephemeral"]) for one in found.values()] == [
            ("demo", "deployed", False),
            ("run", "ephemeral", True),
            ("stays", "detached", False),
        ]
        demo = found[D]
        assert (demo["version"], demo["tag"], demo["environment"], demo["containers"]) == (1, "first", "main", 1)
        assert demo["functions"] == ["square"]
        assert demo["labels"] == {"square": "demo-square"}
        assert demo["urls"] == {"square": "http://127.0.0.1:5334/demo-square/"}
        assert all(one["created_at"] > 1e9 for one in found.values())
        assert [one["app"] for one in await asked(peer, lambda n: p.AppsRequested(n, name="run"))] == ["ap-1"]
        assert [one["app"] for one in await asked(peer, lambda n: p.AppsRequested(n, name=D))] == [D]
        assert await asked(peer, lambda n: p.AppsRequested(n, "staging")) == []


@on_loop
async def test_what_all_versions_of_an_app_run_counts_as_its_own(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        peer = await shell.client()
        await deploy(peer, version(1))
        peer.say(p.InputsSubmitted("fc-1", DEPLOYED, 0, [Payload()], total=1))
        await until(lambda: shell.engine.only.held)
        await deploy(peer, version(2))
        (demo,) = await asked(peer, p.AppsRequested)
        assert (demo["version"], demo["containers"], demo["running"]) == (2, 2, 1)


@on_loop
async def test_the_history_of_a_deployed_app_outlives_server_and_app(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        await deploy(peer, replace(version(1), tag="first"))
        await deploy(peer, version(2))
        assert (await asked(peer, lambda n: p.AppRolledBack(n, "demo")))["version"] == 3
        (function,) = await asked(peer, p.FunctionsRequested)
        containers = await asked(peer, p.ContainersRequested)  # that of version 2 may be on its way out
        assert (function["version"], max(one["version"] for one in containers)) == (3, 3)
        history = await asked(peer, lambda n: p.AppsRequested(n, "main", "demo", history=True))
        assert (history[0]["containers"], history[2]["containers"]) == (1, 0)
        rows = [(one["version"], one["tag"], one["origin_version"], one["current"], one["kept"]) for one in history]
        assert rows == [(3, "first", 1, True, True), (2, "", 0, False, True), (1, "first", 0, False, True)]
        assert history[0]["deployed_at"] >= history[2]["deployed_at"]
        assert history[0]["functions"] == ["square"]
        assert (await asked(peer, lambda n: p.AppStopped(D, n)))["app"] == D
        (demo,) = await asked(peer, p.AppsRequested)
        assert (demo["state"], demo["containers"], demo["version"]) == ("stopped", 0, 3)
        assert demo["stopped_at"] > 1e9
    async with running(tmp_path) as shell:
        peer = await shell.client()
        (demo,) = await asked(peer, p.AppsRequested)
        assert (demo["app"], demo["state"], demo["version"]) == (D, "stopped", 3)
        history = await asked(peer, lambda n: p.AppsRequested(n, "", D, history=True))
        assert [(one["version"], one["current"], one["kept"]) for one in history] == [
            (3, False, False),
            (2, False, False),
            (1, False, False),
        ]


@on_loop
async def test_the_history_of_what_was_never_deployed(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client(p.AppCreated(1, app()))
        error = await refused(peer, lambda n: p.AppsRequested(n, "staging", "demo", history=True))
        assert error.type == "NotFoundError"
        assert error.message == "no app 'demo' is or was deployed in the environment 'staging'"


# ---------------------------------------------------------------- containers


@on_loop
async def test_containers_and_what_they_run(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        two = Concurrency(2, 2, declared=True)
        peer = await shell.client(p.AppCreated(1, app(concurrency=two)), inputs("a", "b"))
        await until(lambda: shell.engine.containers and len(shell.engine.only.held) == 2)
        (found,) = await asked(peer, p.ContainersRequested)
        assert {key: found[key] for key in ("app", "app_name", "function", "state", "process", "inputs")} == {
            "app": "ap-1",
            "app_name": "demo",
            "function": "square",
            "state": "ready",
            "process": 4711,
            "inputs": 2,
        }
        assert found["age_s"] >= 0
        assert "launch" not in found
        assert await asked(peer, lambda n: p.ContainersRequested(n, app="ap-2")) == []
        assert await asked(peer, lambda n: p.ContainersRequested(n, container="ct-nobody")) == []


@on_loop
async def test_one_container_comes_with_what_it_was_started_with_and_without_its_token(tmp_path: Path) -> None:
    environment = EnvironmentSpec(
        python="/opt/python", python_version="3.11", sys_path=("/lib",), variables=(("A", "1"),), directory="/data"
    )
    spec = replace(app(env=(("B", "2"),)), environment=environment, code=CodeSpec(root="/code/abc", module="script"))
    async with running(tmp_path, FakeEngine(hold)) as shell:
        peer = await shell.client(p.AppCreated(1, spec), inputs("a"))
        await until(lambda: shell.engine.containers and shell.engine.only.held)
        launch = shell.engine.only.launch
        (found,) = await asked(peer, lambda n: p.ContainersRequested(n, container=launch.container))
        assert found["launch"] == {
            "environment": "main",
            "python": "/opt/python",
            "directory": "/data",
            "sys_path": ["/lib"],
            "code": "/code/abc",
            "variables": {"A": "1"},
            "env": {"B": "2"},
            "alias_modal": False,
            "image": False,
            "cpu": 0.125,
        }
        assert launch.token not in str(found)


@on_loop
async def test_containers_of_all_versions_belong_to_the_deployment(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        peer = await shell.client()
        await deploy(peer, version(1))
        peer.say(p.InputsSubmitted("fc-1", DEPLOYED, 0, [Payload()], total=1))
        await until(lambda: shell.engine.only.held)
        await deploy(peer, version(2))
        assert (await asked(peer, p.ServerRequested))["deployments"] == {"ap-v1": D, "ap-v2": D}
        found = await asked(peer, lambda n: p.ContainersRequested(n, app=D))
        assert [(one["app"], one["version"], one["inputs"]) for one in found] == [(D, 1, 1), (D, 2, 0)]
        assert [one["state"] for one in found] == ["leaving", "ready"], "the old one finishes what it runs"
        assert len(await asked(peer, lambda n: p.ContainersRequested(n, app="ap-v1"))) == 1


# ---------------------------------------------------------------- functions


@on_loop
async def test_a_function_with_its_settings_and_the_numbers_of_its_pools(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "concurrency": Concurrency(8, 4, declared=True),
        "autoscaler": AutoscalerSettings(1, 5, 2, 30.0),
        "resources": Resources(2.0, None, 512, None, (GpuRequest("H100", 2), GpuRequest("A100"))),
        "parameters": (ParameterSpec("size", "int", Payload(data=b"1")), ParameterSpec("name", "str")),
        "env": (("SECRET", "hidden"),),
        "is_class": True,
        "methods": (MethodSpec("run", is_async=True, concurrency_limit=3),),
        "serialized": Payload(data=b"code"),
    }
    async with running(tmp_path) as shell:
        shell.driver.submit(p.NodeJoined("gpus", 8.0, 65536, {"H100": 2}))
        peer = await shell.client(p.AppCreated(1, app(**options)))
        spec = app(**options).functions[0]
        peer.say(p.VariantBound(Variant(function=POOL, variant="v1", parameters=Payload(data=b"p"), spec=spec)))
        peer.say(p.InputsSubmitted("fc-1", f"{POOL}@v1", 0, [Payload()], "run", total=1))
        await peer.results("fc-1", 1)
        (found,) = await asked(peer, p.FunctionsRequested)
        assert (found["function"], found["name"], found["app"], found["app_name"]) == (POOL, "square", "ap-1", "demo")
        settings = found["settings"]
        assert (settings["max_inputs"], settings["target_inputs"], settings["max_containers"]) == (8, 4, 5)
        assert (settings["cpu"], settings["memory"], settings["gpu"]) == (2.0, 512, ["H100:2", "A100"])
        assert settings["parameters"] == [
            {"name": "size", "type": "int", "required": False},
            {"name": "name", "type": "str", "required": True},
        ]
        assert settings["variables"] == ["SECRET"]
        assert found["methods"][0]["name"] == "run"
        (pool,) = found["pools"]
        assert (pool["variant"], pool["finished"], pool["autoscaler"]["buffer_containers"]) == ("v1", 1, 2)
        for text in ("hidden", "launch"):
            assert text not in str(found)
        (one,) = await asked(peer, lambda n: p.FunctionsRequested(n, function=POOL))
        assert one["launch"]["env"] == {"SECRET": "hidden"}


@on_loop
async def test_functions_of_a_deployed_app_are_those_of_its_current_version(tmp_path: Path) -> None:
    schedule = ScheduleSpec(cron="0 6 * * *")
    async with running(tmp_path) as shell:
        shell.office.runs = {DEPLOYED: {"next": 1234.5, "last": 1000.0, "missed": 2}}.__getitem__
        peer = await shell.client()
        await deploy(peer, version(1))
        await deploy(peer, version(2, schedule=schedule))
        (found,) = await asked(peer, p.FunctionsRequested)
        assert (found["function"], found["app"], found["version"], found["deployed"]) == (DEPLOYED, D, 2, True)
        assert (found["schedule"]["cron"], found["next_run"]) == ("0 6 * * *", 1234.5)
        assert (found["last_run"], found["missed_runs"]) == (1000.0, 2)
        assert [one["version"] for one in await asked(peer, lambda n: p.FunctionsRequested(n, app=D))] == [2]
        own = function_id("ap-v1", "square")
        (old,) = await asked(peer, lambda n: p.FunctionsRequested(n, function=own))
        assert (old["function"], old["version"]) == (own, 1)
        assert await asked(peer, lambda n: p.FunctionsRequested(n, "staging")) == []


# ---------------------------------------------------------------- calls


@on_loop
async def test_calls_newest_first_with_those_that_are_over(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        settings = AutoscalerSettings(max_containers=1)
        spec = app(concurrency=Concurrency(2, 2, declared=True), autoscaler=settings)
        peer = await shell.client(p.AppCreated(1, spec))
        for call in ("fc-1", "fc-2"):
            peer.say(spawned("a", call=call))
        peer.say(p.OutputsRequested("fc-1", request=1), p.OutputsRequested("fc-2", request=2))
        await until(lambda: shell.engine.containers and len(shell.engine.only.held) == 2)
        shell.engine.only.finish(Result(FAILURE, error=ErrorInfo("ValueError", "no")))
        await peer.results("fc-2", 1)
        peer.say(inputs("b", "c", "d", call="fc-3"), spawned("e", call="fc-4"))
        await until(lambda: len(shell.plane.calls.by_id) == 2)
        found = await asked(peer, lambda n: p.CallsRequested(n, POOL))
        assert {one["call"] for one in found[:2]} == {"fc-3", "fc-4"}
        calls = {one["call"]: one for one in found}
        assert (calls["fc-3"]["inputs"], calls["fc-3"]["durable"], calls["fc-4"]["durable"]) == (3, False, True)
        assert (sum(one["running"] for one in found), sum(one["queued"] for one in found)) == (2, 2)
        over = [(one["state"], one["done"], one["failed"]) for one in found[2:]]
        assert over == [("failed", 1, 1), ("failed", 1, 1)]
        assert all(one["changed_at"] > 1e9 for one in found)
        assert [one["call"] for one in await asked(peer, lambda n: p.CallsRequested(n, POOL, 1))] == [found[0]["call"]]
        assert await asked(peer, lambda n: p.CallsRequested(n, f"{POOL}x")) == []


@on_loop
async def test_calls_of_all_versions_and_variants_are_those_of_the_function(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        await deploy(peer, version(1))
        spec = version(1).functions[0]
        peer.say(p.VariantBound(Variant(function=DEPLOYED, variant="v1", parameters=Payload(data=b"p"), spec=spec)))
        for number, pool in enumerate((DEPLOYED, f"{DEPLOYED}@v1", function_id("ap-v1", "square")), 1):
            call = f"fc-{number}"
            peer.say(p.InputsSubmitted(call, pool, 0, [Payload()], durable=True, total=1))
            peer.say(p.OutputsRequested(call, request=number))
            await peer.results(call, 1)
        found = await asked(peer, lambda n: p.CallsRequested(n, DEPLOYED))
        assert {(one["call"], one["variant"], one["state"]) for one in found} == {
            ("fc-1", "", "done"),
            ("fc-2", "v1", "done"),
            ("fc-3", "", "done"),
        }


# ---------------------------------------------------------------- the server, and the office itself


@on_loop
async def test_the_server_says_what_it_is_and_what_it_has(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        shell.office.about |= {"address": shell.path, "web": "http://127.0.0.1:5334"}
        shell.driver.submit(p.NodeJoined("gpus", 8.0, 65536, {"H100": 4}))
        gpu = Resources(gpus=(GpuRequest("H100", 3),))
        peer = await shell.client(p.AppCreated(1, app(resources=gpu)), inputs("a", "b", total=2))
        await until(lambda: shell.engine.containers and shell.engine.only.held)
        shell.plane.drop("something stale")
        found = await asked(peer, p.ServerRequested)
        assert (found["version"], found["process"], found["home"]) == (__version__, os.getpid(), str(tmp_path))
        assert (found["address"], found["web"]) == (shell.path, "http://127.0.0.1:5334")
        machine = next(one for one in found["machines"] if one["name"] == "gpus")
        assert machine["gpus"] == {"H100": {"count": 4, "used": 3}}
        assert (machine["cpu"], machine["cpu_used"], machine["containers"]) == (8.0, 0.125, 1)
        assert found["disk"]["free_bytes"] > 0
        assert (found["apps"], found["containers"]) == ({"ephemeral": 1}, {"ready": 1})
        assert found["inputs"] == {"running": 1, "queued": 1}
        assert (found["failures"], found["sessions"]) == (0, 1)
        assert found["dropped"]["something stale"] == 1
        assert found["up_s"] >= 0
        assert found["memory_bytes"] > 2**20


@on_loop
async def test_a_question_that_fails_is_answered_with_its_name_and_the_next_one_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()

        def broken(*_: Any) -> Any:
            raise RuntimeError("a bug")

        monkeypatch.setattr(shell.office.inventory, "containers", broken)
        error = await refused(peer, p.ContainersRequested)
        assert error == ErrorInfo("InternalError", "the kedge server failed on ContainersRequested; its log says where")
        assert "RuntimeError: a bug" in caplog.text
        assert await asked(peer, p.AppsRequested) == []


@on_loop
async def test_questions_that_wait_for_the_disk_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(office_module, "MAX_UNANSWERED", 2)
    async with running(tmp_path) as shell:
        peer = await shell.client(*(p.AppsRequested(n) for n in range(1, 5)))
        replies = [await peer.hear(p.Reply, lambda reply, n=n: reply.request == n) for n in range(1, 5)]  # type: ignore[misc]
        assert [reply.error and reply.error.type for reply in replies] == [
            None,
            None,
            "ResourceExhaustedError",
            "ResourceExhaustedError",
        ]
        assert await asked(peer, p.AppsRequested) == []


@on_loop
async def test_a_store_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        path = shell.store.writer.path
        try:
            shell.store.writer.path = path.with_name("nothing.db")
            error = await refused(peer, lambda n: p.CallsRequested(n, POOL))
        finally:
            shell.store.writer.path = path
        assert error.type == "ServiceError"
        assert "nothing.db cannot be read: unable to open database file" in error.message
