"""`Cron` and `Period`: when a function of a deployed app runs by itself."""

from __future__ import annotations

from typing import Any

from kedge.exception import InvalidError
from kedge.model.spec import ScheduleSpec
from kedge.sdk import context, validation

_FIELDS = {
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day of month": "1 to 31, or L for the last",
    "month": "1 to 12, or JAN to DEC",
    "day of week": "0 to 7 or SUN to SAT, where 0 and 7 are Sunday",
}


class Schedule:
    """Base of `Cron` and `Period`."""

    def __init__(self, text: str, spec: ScheduleSpec) -> None:
        self._text = text
        self.spec = spec
        """As it is sent."""

    def __repr__(self) -> str:
        return self._text


class Cron(Schedule):
    """A schedule in cron's five fields: minute, hour, day of month, month, day of week.

    Args:
        cron_string: For example `"5 4 * * *"` for 04:05 every day.
        timezone: An IANA name; hours are local to it.

    Example:
        kedge.Cron("0 9 * * 1-5", timezone="Europe/Berlin")
    """

    def __init__(self, cron_string: str, timezone: str = "UTC") -> None:
        validation.text("Cron: cron_string", cron_string)
        validation.text("Cron: timezone", timezone)
        fields = cron_string.split()
        if len(fields) != len(_FIELDS):
            raise InvalidError(
                f"Cron({cron_string!r}) has {len(fields)} fields; it needs five: minute, hour, day of month, month, "
                f"day of week, such as '0 9 * * 1-5'"
            )
        if context.container() is None:  # a container imports what its caller has checked, without these packages
            _check_zone(timezone)
            _check_cron(cron_string, fields)
        self.cron_string = cron_string
        self.timezone = timezone
        text = f"Cron({cron_string!r}, timezone={timezone!r})"
        super().__init__(text, ScheduleSpec(cron=" ".join(fields), timezone=timezone))


def _check_zone(timezone: str) -> None:
    import zoneinfo

    try:
        zoneinfo.ZoneInfo(timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        from kedge.sdk.usage import nearest

        advice = nearest(timezone, zoneinfo.available_timezones())
        raise InvalidError(
            f"Cron: timezone={timezone!r} is no time zone.{advice} Write an IANA name, such as 'Europe/Berlin'"
        ) from error


def _check_cron(cron_string: str, fields: list[str]) -> None:
    wrong = _wrong_field(" ".join(fields))
    if wrong is None:
        return
    if wrong == 2 and _wrong_field(" ".join([*fields[:3], "*", fields[4]])) is None:
        raise InvalidError(
            f"Cron({cron_string!r}) names a time that never comes: no month {fields[3]!r} has a day {fields[2]!r}"
        )
    name, values = list(_FIELDS.items())[wrong]
    raise InvalidError(
        f"Cron({cron_string!r}): the {name}, field {wrong + 1}, cannot be {fields[wrong]!r}; it takes {values}, '*', "
        f"lists (1,15), ranges (1-5) and steps (*/10)"
    )


def _wrong_field(cron: str) -> int | None:
    """Which of the five fields is wrong; None where none is."""
    from datetime import datetime

    import cronsim

    try:
        times = cronsim.CronSim(cron, datetime(2024, 1, 1))
    except cronsim.CronSimError as error:
        name = str(error).removeprefix("Bad ").replace("-", " ")
        return list(_FIELDS).index(name) if name in _FIELDS else 0
    return None if next(times, None) is not None else 2


class Period(Schedule):
    """A schedule by time between runs.

    Example:
        kedge.Period(hours=4, minutes=30)
    """

    def __init__(
        self,
        *,
        years: int = 0,
        months: int = 0,
        weeks: int = 0,
        days: int = 0,
        hours: int = 0,
        minutes: int = 0,
        seconds: float = 0,
    ) -> None:
        parts: dict[str, float] = {
            "years": years,
            "months": months,
            "weeks": weeks,
            "days": days,
            "hours": hours,
            "minutes": minutes,
        }
        for name, value in parts.items():
            validation.whole_number(f"Period: {name}", value)
        parts["seconds"] = validation.number("Period: seconds", seconds, "seconds")
        self.parts = {name: value for name, value in parts.items() if value}
        if not self.parts or seconds < 0:
            raise InvalidError("Period(…) must be longer than nothing; write for example Period(hours=4)")
        text = f"Period({', '.join(f'{name}={value:g}' for name, value in self.parts.items())})"
        if list(self.parts) == ["seconds"] and seconds < SHORTEST_S:
            raise InvalidError(f"{text} is shorter than {SHORTEST_S:g} s; for more runs, let one run do more")
        super().__init__(text, ScheduleSpec(period=tuple((name, float(value)) for name, value in self.parts.items())))


SHORTEST_S = 1.0
"""A period below it would be a loop, with a call that is stored each time."""


def schedule_of(what: str, value: Any) -> ScheduleSpec:
    """The spec of a `Cron` or `Period`."""
    if not isinstance(value, Schedule):
        raise InvalidError(
            f"{what} is a kedge.Cron or kedge.Period, such as schedule=kedge.Cron('0 9 * * 1-5') or "
            f"schedule=kedge.Period(hours=4), not {value!r}"
        )
    return value.spec
