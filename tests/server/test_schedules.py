"""Scheduled functions run when they are due: once, also when servers die in between, and with a word where they did
not."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kedge.model import protocol as p
from kedge.model.payload import PICKLE, Result
from kedge.model.spec import ScheduleSpec
from kedge.sdk.serializer import arguments_payload, from_payload
from kedge.server import schedules as schedules_module
from kedge.server.logreader import LogReader, Selection
from kedge.server.schedules import NO_ARGUMENTS
from tests.server.fake_engine import FakeEngine
from tests.server.shell import Peer, Shell, running
from tests.server.test_deployments import DEMO, SQUARE, deployed, disks, version
from tests.server.test_store import Clock, Disk
from tests.wire.loops import on_loop, until

HOUR = 3600.0
HOURLY = ScheduleSpec(period=(("hours", 1.0),))
DAILY = ScheduleSpec(cron="0 12 * * *")

__all__ = ["disks"]


class Place:
    """One state directory, with servers one after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self.runs: list[str] = []
        """Calls that containers have got, in their order."""

    @asynccontextmanager
    async def server(self) -> AsyncGenerator[Shell, None]:
        def work(dispatch: p.Dispatch) -> Any:
            assert dispatch.payload == NO_ARGUMENTS
            self.runs.append(dispatch.call)
            return Result()

        async with running(self.directory, FakeEngine(work), clock=self.clock) as shell:
            yield shell

    async def pass_time(self, shell: Shell, seconds: float) -> None:
        """Time passes, the timer looks, and what it has begun has ended."""
        self.clock.now += seconds
        await look(shell)

    def rows(self) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.directory / "state.db")) as database:
            return database.execute("SELECT function, began, settled, ran, missed FROM schedules").fetchall()

    def recorded(self) -> int:
        with contextlib.closing(sqlite3.connect(self.directory / "state.db")) as database:
            return int(database.execute("SELECT count(*) FROM results").fetchone()[0])


async def look(shell: Shell) -> None:
    shell.schedules.look()
    await shell.on_disk()
    await until(lambda: not shell.plane.calls.by_id)
    await shell.on_disk()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def deploy(shell: Shell, id: str, schedule: ScheduleSpec | None) -> Peer:
    peer = await shell.client()
    assert (await deployed(peer, version(id, schedule=schedule))).error is None
    return peer


def facts(shell: Shell) -> dict[str, Any]:
    return shell.schedules.facts(SQUARE)


def test_a_run_has_no_arguments_as_callers_send_them() -> None:
    assert arguments_payload((), {}, None) == NO_ARGUMENTS
    assert NO_ARGUMENTS.format == PICKLE
    assert from_payload(NO_ARGUMENTS, None) == ((), {})


@on_loop
async def test_a_function_runs_each_time_that_it_is_due(place: Place) -> None:
    async with place.server() as shell:
        await deploy(shell, "ap-1", HOURLY)
        began = place.clock.now
        assert facts(shell) == {"next": began + HOUR, "last": None, "missed": 0}
        await place.pass_time(shell, HOUR - 1)
        assert place.runs == []
        await place.pass_time(shell, 1)
        assert len(place.runs) == 1
        await place.pass_time(shell, 1)
        assert len(place.runs) == 1
        await place.pass_time(shell, HOUR)
        assert len(set(place.runs)) == 2
        assert facts(shell) == {
            "next": began + 3 * HOUR,
            "last": began + 2 * HOUR,
            "missed": 0,
        }
        # It is a call like any other that was spawned.
        peer = await shell.client(p.OutputsRequested(place.runs[0]))
        assert (await peer.results(place.runs[0], 1))[0].status == "success"


@on_loop
async def test_the_timer_comes_by_itself(place: Place) -> None:
    async with place.server() as shell:
        await deploy(shell, "ap-1", ScheduleSpec(period=(("seconds", 1.0),)))
        # The clock of the test has moved, the timer was set before: it looks again within a second.
        place.clock.now += 1
        await until(lambda: place.runs)


@on_loop
async def test_runs_go_to_the_current_version_and_end_with_the_app(place: Place) -> None:
    async with place.server() as shell:
        await deploy(shell, "ap-1", HOURLY)
        await place.pass_time(shell, HOUR)
        peer = await deploy(shell, "ap-2", HOURLY)
        await place.pass_time(shell, HOUR)
        assert [launch.app for launch in shell.engine.started] == ["ap-1", "ap-2"]
        assert len(place.runs) == 2
        await peer.ask(lambda number: p.AppStopped(DEMO, number))
        await place.pass_time(shell, HOUR)
        assert len(place.runs) == 2
        assert facts(shell) == {}
    assert place.rows() == []


@on_loop
async def test_an_unchanged_schedule_goes_on_and_a_changed_one_starts_anew(place: Place) -> None:
    async with place.server() as shell:
        await deploy(shell, "ap-1", HOURLY)
        began = place.clock.now
        place.clock.now += 600
        await deploy(shell, "ap-2", HOURLY)
        assert facts(shell)["next"] == began + HOUR
        await deploy(shell, "ap-3", ScheduleSpec(period=(("hours", 2.0),)))
        assert facts(shell)["next"] == began + 600 + 2 * HOUR
        await deploy(shell, "ap-4", None)
        assert facts(shell) == {}
        await shell.on_disk()
        assert place.rows() == []
        await deploy(shell, "ap-5", HOURLY)
        assert facts(shell)["next"] == began + 600 + HOUR


@on_loop
async def test_served_and_run_apps_do_not_run_by_themselves(place: Place) -> None:
    from tests.server.shell import app

    async with place.server() as shell:
        peer = await shell.client()
        assert (await deployed(peer, app("ap-1", schedule=HOURLY))).error is None
        peer.say(p.AppCreated(1, app("ap-2", schedule=HOURLY)))
        await peer.hear(p.Reply, lambda reply: reply.request == 1)
        await place.pass_time(shell, 2 * HOUR)
    assert (place.runs, place.rows()) == ([], [])


# ---------------------------------------------------------------- servers that were not there


@on_loop
async def test_a_period_goes_on_over_a_restart(place: Place) -> None:
    async with place.server() as shell:
        await deploy(shell, "ap-1", HOURLY)
        began = place.clock.now
        await place.pass_time(shell, HOUR)
    place.clock.now += 600
    async with place.server() as shell:
        await look(shell)
        assert len(place.runs) == 1
        assert facts(shell) == {"next": began + 2 * HOUR, "last": began + HOUR, "missed": 0}


@on_loop
async def test_what_was_due_while_no_server_ran_is_said_and_not_made_up_for(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with place.server() as shell:
        await deploy(shell, "ap-1", HOURLY)
    place.clock.now += 3 * HOUR + 600
    async with place.server() as shell:
        await look(shell)
        assert place.runs == []
        assert facts(shell)["missed"] == 3
        text = "3 runs of square were missed, the first at 2001-09-09 02:46:40 UTC, and are not made up for"
        assert f"demo: {text}" in caplog.text
    with LogReader(place.directory / "logs" / "logs.db") as reader:
        (entry,) = [reader.entry(number) for number in reader.find(Selection(app=DEMO))]
        assert (entry.app, entry.app_name, entry.function) == (DEMO, "demo", "square")
        assert bytes(entry.data).decode() == f"[kedge: {text}]\n"
    async with place.server() as shell:
        assert facts(shell)["missed"] == 3, "they are said once"


@on_loop
async def test_a_run_that_was_due_during_a_restart_is_late_and_not_missed(place: Place) -> None:
    async with place.server() as shell:
        await deploy(shell, "ap-1", DAILY)
        due = facts(shell)["next"]
        place.clock.now = due - 1
    place.clock.now = due + 5
    async with place.server() as shell:
        await look(shell)
        assert len(place.runs) == 1
        assert (facts(shell)["last"], facts(shell)["missed"]) == (due, 0)


@on_loop
@pytest.mark.parametrize("late", [5.0, 60 * HOUR], ids=["at once", "days later"])
async def test_a_server_that_dies_before_it_has_noted_a_run_does_not_run_it_again(
    place: Place, late: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.server() as shell:
        await deploy(shell, "ap-1", DAILY)
        due = facts(shell)["next"]
        # The run reaches the disk, the note of it does not.
        await shell.on_disk()
        monkeypatch.setattr(shell.store.register, "save_schedule", lambda row: None)
        await place.pass_time(shell, due - place.clock.now)
        assert len(place.runs) == 1
    assert place.rows()[0][3] == 0.0
    place.clock.now = due + late
    async with place.server() as shell:
        await look(shell)
        assert len(place.runs) == 1
        assert facts(shell)["last"] == due
        assert facts(shell)["missed"] == (0 if late < HOUR else 2)
    assert place.recorded() == 1


# ---------------------------------------------------------------- clocks that jump


@on_loop
async def test_a_clock_that_goes_back_runs_nothing_twice_and_one_that_was_far_ahead_is_forgotten(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with place.server() as shell:
        await deploy(shell, "ap-1", HOURLY)
        began = place.clock.now
        await place.pass_time(shell, HOUR)
        await place.pass_time(shell, -HOUR)
        await place.pass_time(shell, HOUR)
        assert len(place.runs) == 1
        await place.pass_time(shell, HOUR)
        assert len(place.runs) == 2
        # Years ahead for a moment, as a machine without a clock of its own may be.
        await place.pass_time(shell, 3 * 365 * 24 * HOUR + 120)
        place.clock.now = began + 2 * HOUR + 120
        await look(shell)
        assert "the clock has gone back: fu-" in caplog.text
        await place.pass_time(shell, HOUR - 100)
        assert len(place.runs) == 3
        assert facts(shell)["next"] == began + 4 * HOUR


@on_loop
async def test_a_machine_that_slept_runs_the_last_one_only_if_it_is_hardly_late(place: Place) -> None:
    async with place.server() as shell:
        await deploy(shell, "ap-1", HOURLY)
        await place.pass_time(shell, 5 * HOUR + 30)
        assert (len(place.runs), facts(shell)["missed"]) == (1, 4)
        await place.pass_time(shell, 5 * HOUR)
        assert (len(place.runs), facts(shell)["missed"]) == (2, 8)
        await place.pass_time(shell, HOUR + 600)
        assert (len(place.runs), facts(shell)["missed"]) == (2, 9)


# ---------------------------------------------------------------- a full disk


@on_loop
async def test_a_run_that_the_disk_refuses_runs_when_there_is_room_again(
    place: Place, disks: list[Disk], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(schedules_module, "RETRY_S", 0.01)
    async with place.server() as shell:
        await deploy(shell, "ap-1", HOURLY)
        began = place.clock.now
        disks[0].full = True
        place.clock.now += HOUR
        shell.schedules.look()
        await until(lambda: "could not be run" in caplog.text)
        assert "database or disk is full" in caplog.text
        place.clock.now += 600
        disks[0].full = False
        await until(lambda: place.runs)
        await until(lambda: facts(shell)["last"] == began + HOUR)
        assert facts(shell)["missed"] == 0
        disks[0].full = True
        place.clock.now = began + 2 * HOUR
        shell.schedules.look()
        await until(lambda: facts(shell)["next"] == began + 2 * HOUR)
        place.clock.now = began + 3 * HOUR
        await until(lambda: facts(shell)["missed"] == 1)
        disks[0].full = False
        await until(lambda: len(place.runs) == 2)
        assert facts(shell)["last"] in (began + HOUR, began + 3 * HOUR)


@on_loop
async def test_a_long_outage_of_many_schedules_is_looked_up_whatever_their_number(place: Place) -> None:
    async with place.server() as shell:
        assert await shell.store.register.known_calls([f"fc-{number}" for number in range(300_000)]) == set()
