"""When schedules are due: across summer time, leap days and short months; and what was missed."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kedge.model.spec import ScheduleSpec
from kedge.server.timetable import LATE_S, MANY, Due, Next, describe, digest, due, mistake, timetable
from tests.server.shell import app

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: Any = UTC) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def shown(time: float | None, zone: Any = UTC) -> str:
    return "" if time is None else datetime.fromtimestamp(time, zone).strftime("%Y-%m-%d %H:%M:%S%z")[:-2]


def run_of(next_after: Next, start: float, count: int, zone: Any = UTC) -> list[str]:
    times = []
    for _ in range(count):
        found = next_after(start)
        assert found is not None
        assert found > start
        times.append(shown(found, zone))
        start = found
    return times


def cron(line: str, zone: str = "UTC") -> Next:
    return timetable(ScheduleSpec(cron=line, timezone=zone), 0.0)


def every(began: str, **parts: float) -> Next:
    return timetable(ScheduleSpec(period=tuple(parts.items())), at(began))


# ---------------------------------------------------------------- cron


def test_a_cron_line_counts_in_the_time_of_its_zone() -> None:
    assert run_of(cron("0 9 * * 1-5"), at("2026-01-30T09:00"), 2) == [
        "2026-02-02 09:00:00+00",
        "2026-02-03 09:00:00+00",
    ]
    found = run_of(cron("0 9 * * *", "Europe/Berlin"), at("2026-03-28T00:00"), 2, BERLIN)
    assert found == ["2026-03-28 09:00:00+01", "2026-03-29 09:00:00+02"]


def test_what_falls_into_a_skipped_hour_runs_right_after_it_and_once() -> None:
    found = run_of(cron("30 2 * * *", "Europe/Berlin"), at("2026-03-28T00:00"), 3, BERLIN)
    assert found == ["2026-03-28 02:30:00+01", "2026-03-29 03:00:00+02", "2026-03-30 02:30:00+02"]
    both = run_of(cron("0,30 2 * * *", "Europe/Berlin"), at("2026-03-28T12:00"), 2, BERLIN)
    assert both == ["2026-03-29 03:00:00+02", "2026-03-30 02:00:00+02"]


def test_what_falls_into_a_repeated_hour_runs_in_the_first_and_once() -> None:
    line = cron("30 2 * * *", "Europe/Berlin")
    found = run_of(line, at("2026-10-24T12:00"), 2, BERLIN)
    assert found == ["2026-10-25 02:30:00+02", "2026-10-26 02:30:00+01"]
    between = at("2026-10-25T01:10")  # 02:10 for the second time
    assert run_of(line, between, 1, BERLIN) == ["2026-10-26 02:30:00+01"]


def test_what_runs_every_hour_or_minute_runs_in_every_one_that_there_is() -> None:
    found = run_of(cron("15 * * * *", "Europe/Berlin"), at("2026-10-25T00:00"), 3, BERLIN)
    assert found == ["2026-10-25 02:15:00+02", "2026-10-25 02:15:00+01", "2026-10-25 03:15:00+01"]
    found = run_of(cron("*/30 * * * *", "Europe/Berlin"), at("2026-03-29T00:29"), 3, BERLIN)
    assert found == ["2026-03-29 01:30:00+01", "2026-03-29 03:00:00+02", "2026-03-29 03:30:00+02"]


def test_leap_days_and_last_days() -> None:
    found = run_of(cron("0 0 29 2 *"), at("2026-01-01T00:00"), 2)
    assert found == ["2028-02-29 00:00:00+00", "2032-02-29 00:00:00+00"]
    found = run_of(cron("0 12 31 * *"), at("2026-01-31T12:00"), 2)
    assert found == ["2026-03-31 12:00:00+00", "2026-05-31 12:00:00+00"]


# ---------------------------------------------------------------- periods


def test_a_period_counts_from_its_start() -> None:
    table = every("2026-01-01T10:00", hours=4, minutes=30)
    assert run_of(table, at("2026-01-01T10:00"), 2) == ["2026-01-01 14:30:00+00", "2026-01-01 19:00:00+00"]
    assert run_of(table, at("2026-06-01T00:00"), 1) == ["2026-06-01 04:00:00+00"]
    assert run_of(table, at("2020-01-01T00:00"), 1) == ["2026-01-01 14:30:00+00"]


def test_months_end_on_their_last_day_and_do_not_drift() -> None:
    table = every("2026-01-31T08:00", months=1)
    assert run_of(table, at("2026-01-31T08:00"), 4) == [
        "2026-02-28 08:00:00+00",
        "2026-03-31 08:00:00+00",
        "2026-04-30 08:00:00+00",
        "2026-05-31 08:00:00+00",
    ]
    assert run_of(every("2024-02-29T00:00", years=1), at("2024-02-29T00:00"), 4) == [
        "2025-02-28 00:00:00+00",
        "2026-02-28 00:00:00+00",
        "2027-02-28 00:00:00+00",
        "2028-02-29 00:00:00+00",
    ]
    mixed = every("2026-01-31T00:00", months=1, days=1)
    assert run_of(mixed, at("2026-01-31T00:00"), 2) == ["2026-03-01 00:00:00+00", "2026-04-02 00:00:00+00"]


@given(
    st.dictionaries(
        st.sampled_from(["years", "months", "weeks", "days", "hours", "minutes"]), st.integers(1, 30), min_size=1
    ),
    st.integers(0, 2**31),
    st.integers(0, 2**31),
)
def test_of_every_period_the_next_due_time_is_the_first_one(parts: dict[str, int], began: int, later: int) -> None:
    table = timetable(ScheduleSpec(period=tuple((unit, float(n)) for unit, n in parts.items())), float(began))
    found = table(float(began + later))
    assert found is not None
    assert found > began + later
    first = table(float(began))
    if first != found:
        assert first is not None
        assert first <= began + later
        # Asked for right before it, and at the time before that, the answer is the same.
        assert table(found - 0.001) == found


def test_a_period_beyond_the_calendar_is_never_due() -> None:
    assert every("2026-01-01T00:00", years=90)(at("9990-01-01T00:00")) is None


# ---------------------------------------------------------------- what became due


def test_what_is_due_runs_and_the_next_one_is_known() -> None:
    table = cron("0 * * * *")
    now = at("2026-01-01T12:00:01")
    assert due(table, at("2026-01-01T11:00"), now) == Due(at("2026-01-01T12:00"), [], at("2026-01-01T13:00"))
    assert due(table, at("2026-01-01T12:00"), now) == Due(None, [], at("2026-01-01T13:00"))


def test_of_several_the_last_runs_if_it_is_hardly_late_and_the_others_are_missed() -> None:
    table = cron("* * * * *")
    settled, now = at("2026-01-01T12:00"), at("2026-01-01T12:03:30")
    found = due(table, settled, now)
    assert found.run == at("2026-01-01T12:03")
    assert found.missed == [at("2026-01-01T12:01"), at("2026-01-01T12:02")]
    daily = due(cron("0 12 * * *"), at("2026-01-01T12:00"), at("2026-01-02T12:00") + LATE_S + 1)
    assert (daily.run, daily.missed) == (None, [at("2026-01-02T12:00")])


def test_years_of_missed_runs_are_counted_to_a_bound_and_the_last_still_runs() -> None:
    found = due(cron("* * * * *"), at("2020-01-01T00:00"), at("2026-01-01T00:00:10"))
    assert found.run == at("2026-01-01T00:00")
    assert len(found.missed) == MANY
    assert found.missed[0] == at("2020-01-01T00:01")
    assert found.next == at("2026-01-01T00:01")


def test_a_clock_that_went_back_makes_nothing_due_twice() -> None:
    table = cron("0 * * * *")
    settled = at("2026-01-01T12:00")
    assert due(table, settled, at("2026-01-01T11:30")) == Due(None, [], at("2026-01-01T13:00"))


# ---------------------------------------------------------------- what can never run


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (ScheduleSpec(cron="0 9 * *"), "'0 9 * *' has 4 fields; it needs five: minute, hour, day of month, month"),
        (ScheduleSpec(cron="61 9 * * *"), "'61 9 * * *' is no cron line (bad minute); '0 9 * * 1-5' is one"),
        (ScheduleSpec(cron="0 0 31 2 *"), "is no cron line (bad day-of-month)"),
        (ScheduleSpec(cron="0 9 * * *", timezone="Mars/Base"), "timezone='Mars/Base' is not known; write an IANA name"),
        (ScheduleSpec(cron="0 9 * * *", timezone="../etc/passwd"), "timezone='../etc/passwd' is not known"),
        (ScheduleSpec(cron="0 9 * * *", timezone="Europe"), "timezone='Europe' is not known"),
        (ScheduleSpec(period=(("fortnights", 1.0),)), "'fortnights' is no unit of a period; there are years, months"),
        (ScheduleSpec(period=(("seconds", 0.01),)), "a period must be from 1 s to a hundred years long"),
        (ScheduleSpec(), "a period must be from 1 s to a hundred years long"),
        (ScheduleSpec(period=(("years", 1e9),)), "a period must be from 1 s to a hundred years long"),
    ],
)
def test_what_can_never_run_is_named_with_its_function(schedule: ScheduleSpec, text: str) -> None:
    found = mistake(app(schedule=schedule))
    assert found.startswith("schedule of square: ")
    assert text in found


def test_what_can_run_is_no_mistake_and_classes_have_no_schedule() -> None:
    good = ScheduleSpec(cron="0 9 * * 1-5", timezone="America/New_York")
    assert mistake(app(schedule=good)) == ""
    assert mistake(app()) == ""
    spec = app(schedule=good, is_class=True)
    assert "square is a class, and only functions have a schedule" in mistake(spec)
    assert mistake(replace(spec, functions=())) == ""


def test_equal_schedules_have_equal_digests_and_others_do_not() -> None:
    schedules = [
        ScheduleSpec(cron="0 9 * * *"),
        ScheduleSpec(cron="0 9 * * *", timezone="Europe/Berlin"),
        ScheduleSpec(period=(("hours", 1.0),)),
        ScheduleSpec(period=(("hours", 2.0),)),
    ]
    assert len({digest(schedule) for schedule in schedules}) == 4
    assert digest(schedules[0]) == digest(ScheduleSpec(cron="0 9 * * *"))
    assert all(describe(a) != describe(b) for a, b in itertools.combinations(schedules, 2))
