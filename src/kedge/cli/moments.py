"""Moments as people write them: how long ago, a time of day, a date."""

from __future__ import annotations

import datetime
import re

EXAMPLES = "10m, 2h, 1d, 14:30, 2026-01-31 or 2026-01-31T14:30"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGO = re.compile(r"(?:(\d+(?:\.\d+)?)([smhdw]))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def moment(text: str, now: datetime.datetime) -> float:
    """Seconds since the epoch. ValueError where it is none.

    Args:
        text: An age (`10m`, `1h30m`), a time of day (`14:30`, the last one that was), or a date with or without a time
            in ISO format. Without a zone it is local time.
        now: The present as local time.

    >>> now = datetime.datetime(2026, 1, 31, 12, 0)
    >>> [now.timestamp() - moment(text, now) for text in ("90s", "1h30m", "11:59", "12:01", "2026-01-30T12:00")]
    [90.0, 5400.0, 60.0, 86340.0, 86400.0]
    """
    text = text.strip()
    if _AGO.fullmatch(text):
        return now.timestamp() - sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    try:
        if ":" not in text[:3]:
            return datetime.datetime.fromisoformat(text).timestamp()
        time = datetime.time.fromisoformat(text.zfill(5))
        found = datetime.datetime.combine(now.date(), time)
        if found.timestamp() > now.timestamp():
            found -= datetime.timedelta(days=1)
        return found.timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no moment; write for example {EXAMPLES}") from None
