"""The timer of scheduled functions: submits an input of the current version of a deployed app when its time has come.

A run is a spawned call whose id follows from the function and its due time. So it is on disk before anything runs, it
goes on after a restart, and whatever happens between its writing and the note that it was written, it is not submitted
twice. Runs that were missed (no server, a suspended machine) are not made up for: they are counted and said, in the
server's log and in that of the app.

The clock of the wall may jump. It is looked at every LOOK_S at the latest; where it goes back by much, what was due
comes again, and what has run already is known by its id.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from kedge.core.plane import Plane
from kedge.model import protocol as p
from kedge.model.ids import CALL, function_id
from kedge.model.payload import Payload
from kedge.model.spec import AppSpec, ScheduleSpec
from kedge.server.link import Link
from kedge.server.register import Register, ScheduleRow
from kedge.server.timetable import MANY, digest, due, timetable

log = logging.getLogger("kedge.server.schedules")

SESSION = "se-schedules"
LOOK_S = 30.0
"""Seconds after which the clock is looked at again: it may have been set, or have stood still with the machine."""
RETRY_S = 5.0
"""Seconds after which a run that the disk refused is submitted again."""
ASTRAY_S = 60.0
"""Seconds by which the clock may go back without meaning anything: what was looked at is not looked at again."""
NO_ARGUMENTS = Payload(data=b"\x80\x05\x95\x06\x00\x00\x00\x00\x00\x00\x00)}\x94\x86\x94.")
"""The arguments of a call without any, `((), {})`, as callers pickle them."""


class Schedule:
    """One function with a schedule."""

    def __init__(self, row: ScheduleRow, app_name: str, spec: ScheduleSpec) -> None:
        self.row = row
        """As it is on disk, or soon will be."""
        self.app_name = app_name
        self.spec = spec
        self.next_after = timetable(spec, row.began)
        self.looked = row.settled
        """Due times up to here have been dealt with, though perhaps not written."""
        self.next: float | None = None
        self.refused: float | None = None
        """A due time whose run the disk did not take."""

    @property
    def pool(self) -> str:
        return function_id(self.row.deployment, self.row.function)

    def call(self, due: float) -> str:
        """The id of a run: the same for ever."""
        text = f"{self.row.deployment}/{self.row.function}/{due:.6f}"
        return f"{CALL}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


class Schedules:
    """A session of the driver's like any other. `say` puts a line into the log of an app: (deployment, name of the app,
    name of the function, text).

    Example:
        schedules = Schedules(driver.plane, driver.links, driver.submit, store.register, say)
        driver.journal.announce = schedules.changed
        await schedules.open()  # after recovery
    """

    def __init__(
        self,
        plane: Plane,
        links: dict[str, Link],
        submit: Callable[[Any, str], None],
        register: Register,
        say: Callable[[str, str, str, str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._plane = plane
        self._links = links
        self._submit = submit
        self._register = register
        self._say = say
        self._clock = clock
        self._schedules: dict[str, Schedule] = {}
        """By pool."""
        self._flying: dict[str, tuple[Schedule, float]] = {}
        """Runs on their way to the disk, by call."""
        self._timer: asyncio.TimerHandle | None = None
        self._opened = False

    async def open(self) -> None:
        """Goes on with what the disk remembers. Says what was missed meanwhile."""
        rows = {(row.deployment, row.function): row for row in await self._register.schedules()}
        self._adopt_all(rows)
        await self._note_what_was_written()
        self._adopt_all(rows)  # there may have been deploys meanwhile
        self._opened = True
        self.look()

    def close(self) -> None:
        self._links.pop(SESSION, None)
        if self._timer is not None:
            self._timer.cancel()

    def changed(self, message: p.DeploymentChanged) -> None:
        """Another version of a deployment is current, or none."""
        if not self._opened:
            return
        app = self._plane.apps.get(message.app)
        kept = self._adopt(message.deployment, app.spec, {}) if app is not None else []
        mine = [schedule for schedule in self._schedules.values() if schedule.row.deployment == message.deployment]
        for schedule in mine:
            if schedule.pool not in kept:
                del self._schedules[schedule.pool]
        if app is not None and len(mine) > len(kept):
            self._register.forget_schedules(message.deployment, [self._schedules[id].row.function for id in kept])
        self.look()

    def facts(self, function: str) -> dict[str, Any]:
        """What there is to know of the runs of a function (by its id under its deployment): {"next", "last": seconds
        since the epoch or None, "missed": how many}; nothing where it has no schedule."""
        schedule = self._schedules.get(function)
        if schedule is None:
            return {}
        row = schedule.row
        next_run = schedule.next if schedule.refused is None else schedule.refused
        return {"next": next_run, "last": row.ran or None, "missed": row.missed}

    # ------------------------------------------------------------ which schedules there are

    def _adopt_all(self, rows: dict[tuple[str, str], ScheduleRow]) -> None:
        """The schedules of all current versions, and no others."""
        adopted: list[str] = []
        for app in self._plane.apps.values():
            spec = app.spec
            if spec.deployment and not spec.ephemeral and self._plane.deployments.current(spec.deployment) is app:
                adopted += self._adopt(spec.deployment, spec, rows)
        self._schedules = {id: self._schedules[id] for id in adopted}

    def _adopt(self, deployment: str, spec: AppSpec, rows: dict[tuple[str, str], ScheduleRow]) -> list[str]:
        """The schedules of the current version. One that has not changed goes on as it is. Gives their pools."""
        adopted, now = [], self._clock()
        for function in spec.functions:
            if function.schedule is None:
                continue
            id, mark = function_id(deployment, function.name), digest(function.schedule)
            there = self._schedules.get(id)
            if there is None or there.row.digest != mark:
                row = rows.get((deployment, function.name))
                if row is None or row.digest != mark:
                    row = ScheduleRow(deployment, function.name, mark, began=now, settled=now)
                    self._register.save_schedule(row)
                self._links.setdefault(SESSION, _Ear(self._heard))
                try:
                    self._schedules[id] = Schedule(row, spec.name, function.schedule)
                except ValueError as error:  # its zone is not known here any more
                    log.error("%s will not run by itself: %s", id, error)
                    continue
            adopted.append(id)
        return adopted

    async def _note_what_was_written(self) -> None:
        """A server that is killed between the writing of a run and the note of it leaves a run that was not missed."""
        now, runs = self._clock(), dict[str, tuple[Schedule, float]]()
        for schedule in self._schedules.values():
            found = due(schedule.next_after, schedule.row.settled, now)
            for time_due in [*found.missed, *([] if found.run is None else [found.run])]:
                runs[schedule.call(time_due)] = schedule, time_due
        for call in sorted(await self._register.known_calls(list(runs)), key=lambda call: runs[call][1]):
            self._ran(*runs[call])

    # ------------------------------------------------------------ time passes

    def look(self) -> None:
        """Submits what is due, and says what was missed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now, delay = self._clock(), LOOK_S
        for schedule in list(self._schedules.values()):
            self._settle(schedule, now)
            if schedule.next is not None:
                delay = min(delay, max(0.0, schedule.next - now))
            if schedule.refused is not None:
                delay = min(delay, RETRY_S)
        if self._schedules:
            self._timer = asyncio.get_running_loop().call_later(delay, self.look)

    def _settle(self, schedule: Schedule, now: float) -> None:
        if schedule.looked > now + ASTRAY_S:
            before = _text(schedule.looked)
            log.warning("the clock has gone back: %s counts from now, not from %s", schedule.pool, before)
            schedule.looked = now
            schedule.row = schedule.row._replace(settled=now)
        found = due(schedule.next_after, schedule.looked, now)
        schedule.next = found.next
        missed, run = found.missed, found.run
        schedule.looked = max(schedule.looked, now)
        if schedule.refused is not None:
            if run is None and not missed:
                run = schedule.refused
            else:
                missed = [schedule.refused, *missed]
            schedule.refused = None
        if missed:
            self._missed(schedule, missed)
        if run is not None:
            call = schedule.call(run)
            self._flying[call] = schedule, run
            self._submit(p.InputsSubmitted(call, schedule.pool, 0, [NO_ARGUMENTS], durable=True, total=1), SESSION)

    def _missed(self, schedule: Schedule, missed: list[float]) -> None:
        row = schedule.row
        row = row._replace(missed=row.missed + len(missed), settled=max(row.settled, missed[-1]))
        schedule.row = row
        self._register.save_schedule(row)
        if len(missed) == 1:
            text = f"the run of {row.function} that was due at {_text(missed[0])} was missed"
        else:
            number = f"at least {MANY}" if len(missed) >= MANY else f"{len(missed)}"
            text = f"{number} runs of {row.function} were missed, the first at {_text(missed[0])}"
        text += ", and is not made up for" if len(missed) == 1 else ", and are not made up for"
        log.warning("%s: %s", schedule.app_name, text)
        self._say(row.deployment, schedule.app_name, row.function, text)

    def _ran(self, schedule: Schedule, time_due: float) -> None:
        row = schedule.row
        schedule.row = row._replace(settled=max(row.settled, time_due), ran=max(row.ran, time_due))
        schedule.looked = max(schedule.looked, time_due)
        self._register.save_schedule(schedule.row)

    # ------------------------------------------------------------ what became of a run

    def _heard(self, message: Any) -> None:
        kind = type(message)
        if kind is not p.InputsAccepted and kind is not p.CallRefused:
            return
        schedule, time_due = self._flying.pop(message.call, (None, 0.0))
        if schedule is None:
            return
        if kind is p.InputsAccepted:
            log.debug("%s runs as %s, due at %s", schedule.pool, message.call, _text(time_due))
            self._ran(schedule, time_due)
            return
        log.error("%s, due at %s, could not be run: %s", schedule.pool, _text(time_due), message.error.message)
        if message.error.type == "ServiceError" and self._schedules.get(schedule.pool) is schedule:
            schedule.refused = time_due
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(RETRY_S, self.look)


class _Ear:
    """Where the driver sends what it has for the session of the schedules."""

    def __init__(self, heard: Callable[[Any], None]) -> None:
        self.send = heard
        self.writable = asyncio.Event()
        self.writable.set()
        self.unread = 0
        self.closed = False

    def flush(self) -> None: ...

    def close(self, reason: str) -> None: ...

    def pause_reading(self, paused: bool) -> None: ...


def _text(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
