"""Lists for people, as tables, and for programs, as JSON with keys that stay.

On a terminal a table is as wide as it; elsewhere every cell is whole, so that it can be searched and cut.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kedge.cli.lines import plain
from kedge.cli.progress import number, seconds

Facts = dict[str, Any]

ENDLESS = 100_000
"""Columns of what is no terminal."""
NONE = "-"


class Column(NamedTuple):
    title: str
    text: Callable[[Facts], str]
    right: bool = False
    """Numbers stand below each other at their ends."""
    folds: bool = False
    """On a narrow terminal it goes on below instead of being cut: for what people copy."""


def show(facts: Sequence[Facts], columns: Sequence[Column], *, as_json: bool, empty: str) -> None:
    """A table of `facts`, or the sentence `empty` where there are none; or all that is known of them as JSON."""
    if as_json:
        print_json(list(facts))
    elif not facts:
        print(empty)
    else:
        for line in table(columns, facts):
            print(line)


def with_environment(
    columns: Sequence[Column], facts: Sequence[Facts], environment: str | None, at: int = 1
) -> Sequence[Column]:
    """The columns for what is in one environment, or in all: then it is one of them, unless all is in the usual one."""
    if environment or all(one["environment"] == "main" for one in facts):
        return columns
    return [*columns[:at], Column("environment", lambda one: one["environment"]), *columns[at:]]


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(columns: Sequence[Column], facts: Sequence[Facts], width: int | None = None) -> list[str]:
    """The lines of a table, with a heading. `width` is that of the terminal, if any."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    console = Console(width=width) if terminal else Console(width=width or ENDLESS, color_system=None)
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        grid.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not column.folds,
            overflow="fold" if column.folds else "ellipsis",
        )
    for one in facts:
        grid.add_row(*(Text(clean(column.text(one))) for column in columns))
    with console.capture() as capture:
        console.print(grid)
    return [line.rstrip() for line in capture.get().splitlines()]


def describe(facts: Mapping[str, str]) -> list[str]:
    """Names and values below each other.

    >>> describe({"name": "chat", "state": "deployed"})
    ['name   chat', 'state  deployed']
    """
    width = max((len(name) for name in facts), default=0)
    return [f"{name:<{width}}  {clean(value)}" for name, value in facts.items()]


def clean(text: str) -> str:
    """What others have named, without what would steer a terminal."""
    return text if text.isprintable() else plain(text.encode("utf-8", "replace"))


# ---------------------------------------------------------------- single values


def when(moment: float | None, now: datetime.datetime | None = None) -> str:
    """A moment as local time, without the date where it is today.

    >>> today = datetime.datetime(2026, 1, 31, 12, 0)
    >>> when(today.timestamp() - 60, today), when(datetime.datetime(2026, 1, 30, 9, 5).timestamp(), today), when(0.0)
    ('11:59:00', '2026-01-30 09:05', '-')
    """
    if not moment:
        return NONE
    local = datetime.datetime.fromtimestamp(moment)
    now = now or datetime.datetime.now()
    return local.strftime("%H:%M:%S" if local.date() == now.date() else "%Y-%m-%d %H:%M")


def span(value: float | None) -> str:
    """A duration of any size.

    >>> span(0.0000123), span(0.0123), span(3.21), span(None)
    ('12 µs', '12 ms', '3.2 s', '-')
    """
    if value is None:
        return NONE
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1000:.0f} ms" if value < 1 else seconds(value)


def size(count: float) -> str:
    """
    >>> size(512), size(3 * 2**20), size(1536 * 2**30)
    ('512 B', '3.0 MiB', '1.5 TiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def count(value: float) -> str:
    return number(value)


def yes(value: object) -> str:
    return "yes" if value else NONE
