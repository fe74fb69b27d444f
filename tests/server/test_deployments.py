"""Deployed apps on disk: what is current comes back, what never was does not, and a full disk is said."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from kedge.model import protocol as p
from kedge.model.ids import deployment_id, function_id
from kedge.model.payload import SUCCESS, ErrorInfo, Payload
from kedge.model.spec import AppSpec, FunctionSpec, MethodSpec, ScheduleSpec, Variant, WebSpec
from kedge.server import writer as writer_module
from kedge.server.register import Deployed
from kedge.server.writer import Writer
from tests.server.fake_engine import FakeEngine, hold
from tests.server.shell import Peer, Shell, app, running
from tests.server.test_store import Clock, Disk
from tests.wire.loops import on_loop, until

DEMO = deployment_id("main", "demo")
SQUARE = function_id(DEMO, "square")


def version(id: str, **options: Any) -> AppSpec:
    return app(id, ephemeral=False, **options)


async def deployed(peer: Peer, spec: AppSpec, **options: Any) -> p.Reply:
    return await peer.ask(lambda number: p.AppDeployed(number, spec, **options))


async def called(peer: Peer, pool: str, call: str, data: bytes = b"1") -> str:
    """The status of one call."""
    peer.say(p.InputsSubmitted(call, pool, 0, [Payload(data=data)], total=1))
    return (await peer.results(call, 1))[0].status


def stored_apps(shell: Shell) -> list[str]:
    with contextlib.closing(sqlite3.connect(shell.directory / "state.db")) as database:
        return [app for (app,) in database.execute("SELECT app FROM apps ORDER BY app")]


# ---------------------------------------------------------------- what is written


@on_loop
async def test_a_deploy_is_on_disk_before_its_reply(tmp_path: Path) -> None:
    async with running(tmp_path, clock=Clock()) as shell:
        peer = await shell.client()
        reply = await deployed(peer, replace(version("ap-1"), tag="first"))
        assert (reply.error, reply.value["app"], reply.value["version"]) == (None, DEMO, 1)
        with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as database:
            assert database.execute(
                "SELECT deployment, name, app, version, stopped_at FROM deployments"
            ).fetchall() == [(DEMO, "demo", "ap-1", 1, 0.0)]
            assert database.execute(
                "SELECT version, app, tag, created_at, origin_version FROM versions"
            ).fetchall() == [(1, "ap-1", "first", 1_000_000_000.0, 0)]
        assert await called(peer, SQUARE, "fc-1") == SUCCESS


@on_loop
async def test_the_current_version_serves_again_after_a_restart_and_numbers_go_on(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        for id in ("ap-1", "ap-2", "ap-3"):
            await deployed(peer, version(id))
    async with running(tmp_path) as shell:
        assert [one.spec.app for one in shell.plane.deployments.versions(DEMO)] == ["ap-3", "ap-2", "ap-1"]
        current = shell.plane.deployments.current(DEMO)
        assert current is not None
        assert (current.spec.app, current.spec.version, current.spec.deployment) == ("ap-3", 3, DEMO)
        peer = await shell.client()
        assert await called(peer, SQUARE, "fc-1") == SUCCESS
        assert shell.engine.started[-1].app == "ap-3"
        assert (await deployed(peer, version("ap-4"))).value["version"] == 4
        back = await peer.ask(lambda number: p.AppRolledBack(number, "demo", version=1))
        assert (back.value["version"], back.value["origin_version"]) == (5, 1)
    async with running(tmp_path) as shell:
        peer = await shell.client()
        assert await called(peer, SQUARE, "fc-2") == SUCCESS
        assert shell.engine.started[-1].app == "ap-1"
        history = await shell.store.register.versions(DEMO)
        assert [(one.version, one.app, one.origin_version) for one in history] == [
            (5, "ap-1", 1),
            (4, "ap-4", 0),
            (3, "ap-3", 0),
            (2, "ap-2", 0),
            (1, "ap-1", 0),
        ]


@on_loop
async def test_a_rollback_after_a_restart_leads_to_what_was_current_before(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        await deployed(peer, version("ap-good"))
        await deployed(peer, version("ap-bad"))
        await peer.ask(lambda number: p.AppRolledBack(number, "demo"))
        await deployed(peer, version("ap-next"))
        numbers = {n: app.spec.app for n, app in shell.plane.deployments.by_id[DEMO].versions.items()}
    async with running(tmp_path) as shell:
        assert {n: app.spec.app for n, app in shell.plane.deployments.by_id[DEMO].versions.items()} == numbers
        peer = await shell.client()
        back = await peer.ask(lambda number: p.AppRolledBack(number, "demo"))
        assert (back.value["version"], back.value["origin_version"]) == (5, 1)
        current = shell.plane.deployments.current(DEMO)
        assert current is not None
        assert current.spec.app == "ap-good"


@on_loop
async def test_a_session_that_ends_takes_nothing_along_that_is_just_being_written(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        shell.driver.submit(p.AppCreated(1, version("ap-detached")), "se-1")
        shell.driver.submit(p.AppDeployed(1, version("ap-deployed")), "se-2")
        shell.driver.submit(p.SessionClosed(), "se-3")
        await until(lambda: shell.plane.deployments.current(DEMO) is not None)
        await shell.on_disk()
        assert stored_apps(shell) == ["ap-deployed", "ap-detached"]
        peer = await shell.client()
        await peer.ask(lambda number: p.AppStopped("ap-detached", number))
        await peer.ask(lambda number: p.AppStopped(DEMO, number))
        await shell.on_disk()
        assert stored_apps(shell) == []


@on_loop
async def test_a_deploy_that_is_said_again_after_a_restart_is_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        await deployed(await shell.client(), version("ap-1"))
    async with running(tmp_path) as shell:
        reply = await deployed(await shell.client(), version("ap-1"))
        assert (reply.error, reply.value["version"]) == (None, 1)


@on_loop
async def test_what_never_became_current_does_not_come_back(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with running(tmp_path, engine) as shell:
        peer = await shell.client()
        await deployed(peer, version("ap-1"))
        engine.ready = False
        peer.say(p.AppDeployed(7, version("ap-2")))
        await until(lambda: "ap-2" in {launch.app for launch in engine.started})
        assert stored_apps(shell) == ["ap-1", "ap-2"]
    async with running(tmp_path) as shell:
        assert [one.spec.app for one in shell.plane.deployments.versions(DEMO)] == ["ap-1"]
        peer = await shell.client()
        assert await called(peer, SQUARE, "fc-1") == SUCCESS
        await shell.on_disk()
        assert stored_apps(shell) == ["ap-1"]
        # Its deployer sends the same again.
        assert (await deployed(peer, version("ap-2"))).value["version"] == 2


@on_loop
async def test_specs_of_versions_that_the_plane_has_forgotten_are_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        for number in range(1, 25):
            await deployed(peer, version(f"ap-{number:02}"))
        await until(lambda: len(shell.plane.deployments.versions(DEMO)) <= 20)
        await deployed(peer, version("ap-25"))
        await shell.on_disk()
        there = sorted(one.spec.app for one in shell.plane.deployments.versions(DEMO))
        assert stored_apps(shell) == there
        assert len(there) <= 21
        assert len(await shell.store.register.versions(DEMO)) == 25


@on_loop
async def test_a_stopped_app_keeps_its_history_and_its_numbers(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, clock=clock) as shell:
        peer = await shell.client()
        await deployed(peer, version("ap-1"))
        await deployed(peer, version("ap-2"))
        clock.now += 60
        assert (await peer.ask(lambda number: p.AppStopped(DEMO, number))).error is None
    async with running(tmp_path, clock=clock) as shell:
        assert await shell.store.register.deployments() == [
            Deployed(DEMO, "main", "demo", "", 2, 0, stopped_at=clock.now)
        ]
        assert [one.version for one in await shell.store.register.versions(DEMO)] == [2, 1]
        assert stored_apps(shell) == []
        peer = await shell.client()
        peer.say(p.InputsSubmitted("fc-1", SQUARE, 0, [Payload()], total=1))
        refusal = await peer.hear(p.CallRefused)
        assert "demo" in refusal.error.message
        assert "has been stopped; deploy it again" in refusal.error.message
        assert (await deployed(peer, version("ap-3"))).value["version"] == 3


@on_loop
async def test_labels_lead_to_the_current_version_after_a_restart(tmp_path: Path) -> None:
    web = (MethodSpec(web=WebSpec(kind="asgi_app")),)
    async with running(tmp_path) as shell:
        peer = await shell.client()
        labels = (await deployed(peer, version("ap-1", methods=web))).value["labels"]
        assert labels == {"square": "demo-square"}
    async with running(tmp_path) as shell:
        route = shell.plane.routes.find("demo-square")
        assert route is not None
        assert route.function == SQUARE


@on_loop
async def test_pools_of_parameters_come_back_under_the_id_of_the_deployment(tmp_path: Path) -> None:
    spec = version("ap-1").functions[0]
    variant = Variant(function=SQUARE, variant="9f", parameters=Payload(data=b"p"), spec=spec)
    async with running(tmp_path) as shell:
        peer = await shell.client()
        await deployed(peer, version("ap-1"))
        peer.say(p.VariantBound(variant))
        assert await called(peer, f"{SQUARE}@9f", "fc-1") == SUCCESS
        await deployed(peer, version("ap-2"))
    async with running(tmp_path) as shell:
        peer = await shell.client()
        assert await called(peer, f"{SQUARE}@9f", "fc-2") == SUCCESS
        assert shell.engine.started[-1].pool == function_id("ap-2", "square") + "@9f"
        await peer.ask(lambda number: p.AppStopped(DEMO, number))
        await shell.on_disk()
        with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as database:
            assert database.execute("SELECT * FROM variants").fetchall() == []


@on_loop
async def test_spawned_inputs_of_a_deployed_app_run_in_the_version_that_is_current_after_a_restart(
    tmp_path: Path,
) -> None:
    engine = FakeEngine(hold)
    async with running(tmp_path, engine) as shell:
        peer = await shell.client()
        await deployed(peer, version("ap-1"))
        peer.say(p.InputsSubmitted("fc-1", SQUARE, 0, [Payload(data=b"1")], durable=True, total=1))
        await peer.hear(p.InputsAccepted)
        await deployed(peer, version("ap-2"))
    async with running(tmp_path) as shell:
        peer = await shell.client()
        peer.say(p.OutputsRequested("fc-1"))
        assert (await peer.results("fc-1", 1))[0].status == SUCCESS
        assert {launch.app for launch in shell.engine.started} == {"ap-2"}


# ---------------------------------------------------------------- served apps


@on_loop
async def test_a_served_app_that_its_program_claims_goes_on_after_a_restart(tmp_path: Path) -> None:
    served = deployment_id("main", "demo", True)
    async with running(tmp_path, clock=Clock()) as shell:
        peer = await shell.client()
        clock = shell.store.clock
        assert isinstance(clock, Clock)
        for id in ("ap-1", "ap-2"):
            clock.now += 1
            assert (await deployed(peer, app(id))).value["app"] == served
    async with running(tmp_path) as shell:
        peer = await shell.client()
        assert await called(peer, function_id(served, "square"), "fc-1") == SUCCESS
        assert shell.engine.started[-1].app == "ap-2"
        await shell.on_disk()
        assert stored_apps(shell) == ["ap-2"]
        assert await shell.store.register.deployments() == []
        shell.recovery.end_unclaimed(["ap-2"], [])
        await until(lambda: not shell.plane.apps)
        await shell.on_disk()
        assert stored_apps(shell) == []


# ---------------------------------------------------------------- a full disk


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> list[Disk]:
    """Every database of a store that is opened from now on, the last one last."""
    monkeypatch.setattr(writer_module, "RETRY_S", 0.01)
    opened: list[Disk] = []
    original = Writer.connect

    def connect(self: Writer) -> Any:
        database = original(self)
        if self.path.name != "state.db":  # what is kept beside it has a database of its own
            return database
        opened.append(Disk(database))
        return opened[-1]

    monkeypatch.setattr(Writer, "connect", connect)
    return opened


@on_loop
async def test_a_deploy_on_a_full_disk_is_refused_and_the_version_before_it_serves(
    tmp_path: Path, disks: list[Disk]
) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        await deployed(peer, version("ap-1"))
        disks[-1].full = True
        error = (await deployed(peer, version("ap-2"))).error
        assert error is not None
        assert error.type == "ServiceError"
        assert error.message.endswith("database or disk is full")
        assert await called(peer, SQUARE, "fc-1") == SUCCESS
        assert {launch.app for launch in shell.engine.started} == {"ap-1"}
        disks[-1].full = False
        assert (await deployed(peer, version("ap-2"))).value["version"] == 2
    async with running(tmp_path) as shell:
        assert await called(await shell.client(), SQUARE, "fc-2") == SUCCESS
        assert shell.engine.started[-1].app == "ap-2"


@on_loop
async def test_a_disk_that_fills_up_in_the_middle_of_a_deploy_is_said_and_written_later(
    tmp_path: Path, disks: list[Disk]
) -> None:
    engine = FakeEngine()
    async with running(tmp_path, engine) as shell:
        peer = await shell.client()
        await deployed(peer, version("ap-1"))
        engine.ready = False
        peer.say(p.AppDeployed(7, version("ap-2")))
        await until(lambda: engine.started[-1].app == "ap-2")
        container = engine.containers[engine.started[-1].container]
        await until(lambda: container.messages)  # it is welcome
        disks[-1].full = True
        container.say(p.ContainerReady())
        error = (await peer.hear(p.Reply, lambda reply: reply.request == 7)).error
        assert error is not None
        assert error.message.startswith("version 2 of demo serves, but is not on disk yet, and a restart of the server")
        engine.ready = True
        assert await called(peer, SQUARE, "fc-1") == SUCCESS
        disks[-1].full = False

        def written() -> bool:
            with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as database:
                return database.execute("SELECT version FROM deployments").fetchall() == [(2,)]

        await until(written)


@on_loop
async def test_a_stop_that_the_disk_refuses_is_said_and_written_later(tmp_path: Path, disks: list[Disk]) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        await deployed(peer, version("ap-1"))
        disks[-1].full = True
        error = (await peer.ask(lambda number: p.AppStopped(DEMO, number))).error
        assert error is not None
        assert error.message.startswith("demo has stopped, but that is not on disk yet, and a restart of the server")
        disks[-1].full = False
        await until(lambda: stored_apps(shell) == [])
    async with running(tmp_path) as shell:
        assert shell.plane.deployments.current(DEMO) is None


@on_loop
async def test_a_change_that_is_written_late_does_not_undo_a_later_one(tmp_path: Path, disks: list[Disk]) -> None:
    async with running(tmp_path) as shell:
        register = shell.store.register
        disks[-1].full = True
        for app_id, number, spec in (("ap-1", 1, version("ap-1")), ("ap-2", 2, version("ap-2")), ("", 2, None)):
            told: list[str] = []
            changed = p.DeploymentChanged(DEMO, "main", "demo", app_id, number)
            register.change(changed, spec, lambda value, error, told=told: told.append(error))
            await until(lambda told=told: told)
            assert told[0].endswith("database or disk is full")
        disks[-1].full = False

        def written() -> bool:
            with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as database:
                return bool(database.execute("SELECT * FROM deployments").fetchall())

        await until(written)
        assert [(one.app, one.version) for one in await register.deployments()] == [("", 2)]


# ---------------------------------------------------------------- what is refused


@on_loop
async def test_a_schedule_that_can_never_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        reply = await deployed(peer, version("ap-1", schedule=ScheduleSpec(cron="0 25 * * *")))
        assert reply.error == ErrorInfo(
            "InvalidError", "schedule of square: '0 25 * * *' is no cron line (bad hour); '0 9 * * 1-5' is one"
        )
        assert stored_apps(shell) == []


# ---------------------------------------------------------------- formats


FORMAT_2 = """
CREATE TABLE apps (app TEXT PRIMARY KEY, spec BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE variants (pool TEXT PRIMARY KEY, app TEXT NOT NULL, variant BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE calls (
    call TEXT PRIMARY KEY, pool TEXT NOT NULL, method TEXT NOT NULL, parent TEXT NOT NULL, total INTEGER NOT NULL,
    function TEXT NOT NULL, changed REAL NOT NULL,
    timeout REAL NOT NULL DEFAULT 0, queue_timeout REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE inputs (
    call TEXT NOT NULL, position INTEGER NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (call, position)
) WITHOUT ROWID;
CREATE TABLE results (
    call TEXT NOT NULL, position INTEGER NOT NULL, status TEXT NOT NULL, result BLOB NOT NULL,
    PRIMARY KEY (call, position)
) WITHOUT ROWID;
CREATE TABLE blobs (name TEXT PRIMARY KEY, call TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX blobs_of_calls ON blobs (call);
CREATE TABLE imports (key TEXT PRIMARY KEY, modules TEXT NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 2;
"""


def as_in_format_2(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A detached app as format 2 wrote it: without the fields that came later."""
    spec = msgspec.to_builtins(app("ap-1", ephemeral=False))
    for name in ("environment_name", "deployment", "version", "tag", "created_at", "origin_version"):
        del spec[name]
    for function in spec["functions"]:
        del function["schedule"]
    change(spec)
    return msgspec.msgpack.encode(spec)


@on_loop
async def test_a_state_of_format_2_is_taken_over_with_its_apps_and_calls(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as database:
        database.executescript(FORMAT_2)
        good = as_in_format_2(lambda spec: None)
        bad = as_in_format_2(lambda spec: spec["functions"][0]["methods"][0].update(web="asgi_app"))
        database.executemany("INSERT INTO apps VALUES (?, ?)", [("ap-1", good), ("ap-bad", bad)])
        pool = function_id("ap-1", "square")
        database.execute("INSERT INTO calls VALUES ('fc-1', ?, '', '', 1, 'square', 1e9, 0, 0)", (pool,))
        database.execute("INSERT INTO inputs VALUES ('fc-1', 0, ?)", (msgspec.msgpack.encode(Payload(data=b"1")),))
        database.commit()
    async with running(tmp_path) as shell:
        assert list(shell.plane.apps) == ["ap-1"]
        assert "the app ap-bad was stored by another version of kedge and cannot be read" in caplog.text
        peer = await shell.client()
        peer.say(p.OutputsRequested("fc-1"))
        assert (await peer.results("fc-1", 1))[0].status == SUCCESS
        assert (await deployed(peer, version("ap-2"))).value["version"] == 1
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (3,)


def test_a_function_of_this_format_is_read_again() -> None:
    spec = FunctionSpec(
        name="f",
        module="m",
        qualname="f",
        methods=(MethodSpec(web=WebSpec(kind="asgi_app", custom_domains=("a.example",))),),
        schedule=ScheduleSpec(period=(("hours", 1.0),)),
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=FunctionSpec) == spec
