"""When a schedule is due: pure functions of the declaration and of times, in seconds since the epoch.

A cron line counts in the time of its zone, as Debian's cron does: what falls into the hour that a clock skips runs
right after it, what falls into an hour that comes twice runs once, and what runs every hour or minute runs in each. A
period counts in UTC from the moment at which it was deployed, always from there, so that it never drifts: a month from
the 31st ends on the last day of a shorter month, and two months on the 31st again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple

from kedge.model.spec import AppSpec, ScheduleSpec

LATE_S = 60.0
"""Seconds by which a run may be late. What is later than that was missed: a restart takes less, an outage more."""
MANY = 1000
"""Missed runs that are counted one by one."""
SHORTEST_S = 1.0
"""Seconds of the shortest period: what runs more often should be a loop."""

_MONTHS = {"years": 12, "months": 1}
_SECONDS = {"weeks": 604800.0, "days": 86400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
_AVERAGE_MONTH_S = 146097 * 86400 / 4800


Next = Callable[[float], float | None]
"""The first due time after another time; None where there is none in the next 50 years."""


def mistake(spec: AppSpec) -> str:
    """Why a schedule of this app can never run; empty where all can."""
    for function in spec.functions:
        if function.schedule is None:
            continue
        if function.is_class:
            return f"{function.name} is a class, and only functions have a schedule; put it on a function that uses it"
        try:
            if timetable(function.schedule, 0.0)(0.0) is None:
                raise ValueError(f"the schedule {describe(function.schedule)} is never due")
        except ValueError as error:
            return f"schedule of {function.name}: {error}"
    return ""


def timetable(schedule: ScheduleSpec, began: float) -> Next:
    """`began` is when it was deployed. ValueError says what is wrong with it."""
    return _cron(schedule.cron, schedule.timezone) if schedule.cron else _period(schedule.period, began)


def describe(schedule: ScheduleSpec) -> str:
    """
    >>> describe(ScheduleSpec(period=(("hours", 4.0), ("minutes", 30.0))))
    'every 4 hours 30 minutes'
    >>> describe(ScheduleSpec(cron="0 9 * * 1-5", timezone="Europe/Berlin"))
    '0 9 * * 1-5 (Europe/Berlin)'
    """
    if schedule.cron:
        return f"{schedule.cron} ({schedule.timezone})"
    parts = [f"{amount:g} {unit if amount != 1 else unit.removesuffix('s')}" for unit, amount in schedule.period]
    return f"every {' '.join(parts)}"


def digest(schedule: ScheduleSpec) -> str:
    """Equal for equal schedules."""
    text = f"{schedule.cron}\n{schedule.timezone if schedule.cron else ''}\n{schedule.period!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------- what has become due


class Due(NamedTuple):
    """What has become of a schedule between two looks at the clock."""

    run: float | None
    """The due time that is to be run now."""
    missed: list[float]
    """Those that nobody ran in time; where there are more, the first MANY."""
    next: float | None


def due(next_after: Next, settled: float, now: float) -> Due:
    """`settled` is the last due time that needs no more thought. Of several that are due the last one runs, if it is
    not later than LATE_S; what was due before is missed."""
    passed = list(_between(next_after, settled, now, MANY))
    if len(passed) < MANY:
        recent = passed[-1:]
    else:
        recent = list(_between(next_after, max(settled, now - LATE_S), now, MANY))[-1:]
    run = recent[0] if recent and recent[0] >= now - LATE_S else None
    missed = [time for time in passed if time != run]
    return Due(run, missed, next_after(max(settled, now)))


def _between(next_after: Next, start: float, end: float, limit: int) -> Iterator[float]:
    """Due times after `start`, up to `end`."""
    time = next_after(start)
    while time is not None and time <= end and limit:
        yield time
        limit -= 1
        time = next_after(time)


# ---------------------------------------------------------------- cron


def _cron(line: str, zone: str) -> Next:
    from cronsim import CronSim, CronSimError

    known = _zone(zone)
    if len(line.split()) != 5:
        raise ValueError(
            f"{line!r} has {len(line.split())} fields; it needs five: minute, hour, day of month, month, day of week"
        )
    try:
        CronSim(line, datetime.fromtimestamp(0, UTC))
    except CronSimError as error:
        raise ValueError(f"{line!r} is no cron line ({str(error).lower()}); '0 9 * * 1-5' is one") from None

    def next_after(time: float) -> float | None:
        for moment in CronSim(line, datetime.fromtimestamp(time, known)):
            found = moment.timestamp()
            if found > time:  # an hour that comes twice: it has been due in the first one
                return found
        return None

    return next_after


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # a KeyError where there is no such file, others for strange names
        raise ValueError(f"timezone={name!r} is not known; write an IANA name such as 'Europe/Berlin'") from None


# ---------------------------------------------------------------- periods


def _period(parts: tuple[tuple[str, float], ...], began: float) -> Next:
    unknown = [unit for unit, amount in parts if unit not in _MONTHS and unit not in _SECONDS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no unit of a period; there are {', '.join((*_MONTHS, *_SECONDS))}")
    months = round(sum(amount * _MONTHS.get(unit, 0) for unit, amount in parts))
    seconds = sum(amount * _SECONDS.get(unit, 0) for unit, amount in parts)
    length = months * _AVERAGE_MONTH_S + seconds
    if not SHORTEST_S <= length < 100 * 366 * 86400 or months < 0 or seconds < 0:
        raise ValueError(f"a period must be from {SHORTEST_S:g} s to a hundred years long")
    start = datetime.fromtimestamp(began, UTC)

    def at(count: int) -> float:
        return (_plus_months(start, count * months) + timedelta(seconds=count * seconds)).timestamp()

    def next_after(time: float) -> float | None:
        count = max(1, int((time - began) / length) - 2)
        try:
            while (found := at(count)) <= time:
                count += 1
        except (ValueError, OverflowError):  # the calendar ends with the year 9999
            return None
        return found

    return next_after


def _plus_months(start: datetime, months: int) -> datetime:
    if not months:
        return start
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    for day in range(start.day, start.day - 4, -1):
        try:
            return start.replace(year=year, month=month + 1, day=day)
        except ValueError:
            if day <= 28:
                raise
    raise AssertionError
