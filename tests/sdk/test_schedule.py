"""Schedules: what a Cron and a Period may say, what is sent, and which functions may have one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import kedge
from kedge.exception import InvalidError
from kedge.model.spec import ScheduleSpec
from kedge.sdk import context


def tick(n: int = 1) -> int:
    return n


@pytest.mark.parametrize(
    ("schedule", "spec"),
    [
        (kedge.Cron("5 4 * * *"), ScheduleSpec(cron="5 4 * * *")),
        (kedge.Cron(" */5  9-17 * * mon-FRI", "Europe/Berlin"), ScheduleSpec("*/5 9-17 * * mon-FRI", "Europe/Berlin")),
        (kedge.Cron("0 0 L * *"), ScheduleSpec(cron="0 0 L * *")),
        (kedge.Period(hours=4, minutes=30), ScheduleSpec(period=(("hours", 4.0), ("minutes", 30.0)))),
        (kedge.Period(seconds=1.5), ScheduleSpec(period=(("seconds", 1.5),))),
        (kedge.Period(years=1, months=2, weeks=3), ScheduleSpec(period=(("years", 1), ("months", 2), ("weeks", 3)))),
    ],
    ids=repr,
)
def test_a_schedule_travels_with_its_function(schedule: Any, spec: ScheduleSpec) -> None:
    assert kedge.App().function(schedule=schedule)(tick).spec.schedule == spec


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kedge.Cron("60 * * * *"), r"the minute, field 1, cannot be '60'; it takes 0 to 59, '\*', lists"),
        (lambda: kedge.Cron("* 24 * * *"), r"the hour, field 2, cannot be '24'; it takes 0 to 23"),
        (lambda: kedge.Cron("* * 0 * *"), r"the day of month, field 3, cannot be '0'; it takes 1 to 31"),
        (lambda: kedge.Cron("* * * 13 *"), r"the month, field 4, cannot be '13'; it takes 1 to 12, or JAN to DEC"),
        (lambda: kedge.Cron("* * * * 8"), r"the day of week, field 5, cannot be '8'; it takes 0 to 7 or SUN to SAT"),
        (lambda: kedge.Cron("a b c d e"), r"the minute, field 1, cannot be 'a'"),
        (lambda: kedge.Cron("*/0 * * * *"), r"the minute, field 1, cannot be '\*/0'"),
        (lambda: kedge.Cron("0 0 30 2 *"), r"names a time that never comes: no month '2' has a day '30'"),
        (lambda: kedge.Cron("@daily"), r"has 1 fields; it needs five"),
        (lambda: kedge.Cron("0 9 * * 1", "Europe/Berln"), r"no time zone. Did you mean 'Europe/Berlin'\?"),
        (lambda: kedge.Cron("0 9 * * 1", "../etc/passwd"), r"is no time zone. Write an IANA name"),
        (lambda: kedge.Period(seconds=0.5), r"Period\(seconds=0.5\) is shorter than 1 s"),
        (lambda: kedge.Period(hours=-1), r"Period: hours must be at least 0, got -1"),
        (lambda: kedge.Period(hours=1.5), r"Period: hours must be a whole number"),  # type: ignore[arg-type]
    ],
    ids=range(14),
)
def test_what_is_no_time_is_refused_with_its_place(make: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        make()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (lambda x, y=1: x, r"app.function: schedule= runs job by itself, but it needs x; nobody gives it arguments"),
        (kedge.asgi_app()(lambda: None), r"answers requests \(@kedge.asgi_app\); put the schedule on a function of"),
        (
            kedge.batched(max_batch_size=2, wait_ms=1)(lambda xs: xs),  # type: ignore[call-overload]
            "takes batches of inputs",
        ),
    ],
    ids=["arguments", "web", "batched"],
)
def test_what_cannot_run_by_itself_gets_no_schedule(code: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        kedge.App().function(schedule=kedge.Period(days=1), serialized=True, name="job")(code)


def test_a_generator_gets_no_schedule() -> None:
    def count() -> Any:
        yield 1

    with pytest.raises(InvalidError, match="is a generator, whose values nobody would read"):
        kedge.App().function(schedule=kedge.Period(days=1), serialized=True, name="job")(count)


def test_a_text_is_no_schedule() -> None:
    with pytest.raises(InvalidError, match=r"schedule is a kedge.Cron or kedge.Period, .* not '0 9 \* \* \*'"):
        kedge.App().function(schedule="0 9 * * *")(tick)  # type: ignore[arg-type]


def test_a_container_takes_a_schedule_as_it_is() -> None:
    """It imports what its caller has checked, and need not have the packages for it."""
    context.set_container(app_id="ap-1")
    try:
        assert kedge.Cron("99 * * * *").spec.cron == "99 * * * *"
    finally:
        context.clear_container()
    program = (
        "import sys; from kedge.sdk import context; context.set_container(app_id='ap-1'); import kedge\n"
        "kedge.Cron('5 4 * * *', 'Europe/Berlin'); print('cronsim' in sys.modules, 'zoneinfo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]
