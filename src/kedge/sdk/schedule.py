"""`Cron` and `Period`: when a function runs by itself. Values only; using one is refused until schedules exist."""

from __future__ import annotations

from kedge.exception import InvalidError
from kedge.sdk import validation


class Schedule:
    """Base of `Cron` and `Period`."""

    def __init__(self, text: str) -> None:
        self._text = text

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
        if len(fields) != 5:
            raise InvalidError(
                f"Cron({cron_string!r}) has {len(fields)} fields; it needs five: minute, hour, day of month, month, "
                f"day of week, such as '0 9 * * 1-5'"
            )
        self.cron_string = cron_string
        self.timezone = timezone
        super().__init__(f"Cron({cron_string!r}, timezone={timezone!r})")


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
        super().__init__(f"Period({', '.join(f'{name}={value:g}' for name, value in self.parts.items())})")
