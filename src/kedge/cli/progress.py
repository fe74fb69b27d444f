"""The statistics of an app's pools, as a few live lines, one plain line, or the sentence at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

POOLS_SHOWN = 8
"""Pools with a line of their own; a screen has to have room for output too."""
BAR_CELLS = 16
WIDE = 110
"""Columns of a terminal from which there is room for a bar."""
NARROW = 100
"""Columns below which words are left out."""
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"

Statistics = dict[str, Any]


def number(value: float) -> str:
    return f"{value:,.0f}"


def plural(count: int, noun: str) -> str:
    """
    >>> plural(1, "container"), plural(1200, "input")
    ('1 container', '1,200 inputs')
    """
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def seconds(value: float) -> str:
    """
    >>> seconds(3.21), seconds(75), seconds(3700)
    ('3.2 s', '1:15 min', '1:01 h')
    """
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(int(value), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02} h"


def spinner(elapsed: float) -> str:
    """The sign of something that goes on."""
    return _SPINNER[int(elapsed * 10) % len(_SPINNER)]


def busy_pools(pools: Sequence[Statistics]) -> list[Statistics]:
    """Those that were asked for something or have containers."""
    return [pool for pool in pools if pool["submitted"] or pool["containers"] or pool["starting"]]


def live_lines(console: Console, title: str, pools: Sequence[Statistics], elapsed: float) -> list[str]:
    """One line per pool, ready for the terminal and never wider than it."""
    sign = spinner(elapsed)
    busy = busy_pools(pools)
    if not busy:
        return render(console, Text.assemble((sign, "cyan"), f" {title}  ", (seconds(elapsed), "dim")))
    # What still works comes first, and stays in its order.
    busy.sort(key=lambda pool: not _unfinished(pool))
    table = Table.grid(padding=(0, 2))
    rows = [_cells(console.width, sign, pool) for pool in busy[:POOLS_SHOWN]]
    for _ in rows[0]:
        table.add_column(no_wrap=True, overflow="ellipsis")
    for row, cells in enumerate(rows):
        table.add_row(*cells, Text("" if row else seconds(elapsed), "dim"))
    lines = render(console, table)
    if len(busy) > POOLS_SHOWN:
        lines += render(console, Text(f"  … and {len(busy) - POOLS_SHOWN} more", "dim"))
    for pool in busy:
        if pool["waiting_for_room"]:
            lines += render(console, Text(f"  {label(pool)} waits for room: {pool['waiting_for_room']}", "yellow"))
            break
    return lines


def starting_lines(console: Console, functions: Sequence[tuple[str, str]]) -> list[str]:
    """One line per function that still starts, with what it printed last."""
    lines = []
    for name, said in functions[:POOLS_SHOWN]:
        lines += render(
            console, Text.assemble("  ", (name, "bold"), " is starting", (f"  {said}" if said else "", "dim"))
        )
    if len(functions) > POOLS_SHOWN:
        lines += render(console, Text(f"  … and {len(functions) - POOLS_SHOWN} more", "dim"))
    return lines


def starting_line(functions: Sequence[tuple[str, str]], elapsed: float) -> str:
    """The same for a file.

    >>> starting_line([("M", "shard 3 of 8"), ("N", "")], 20.2)
    'still starting: M, N (20 s); M: shard 3 of 8'
    """
    said = "".join(f"; {name}: {last}" for name, last in functions if last)
    return f"still starting: {', '.join(name for name, _ in functions)} ({elapsed:.0f} s){said}"


def _cells(width: int, sign: str, pool: Statistics) -> list[Any]:
    done = f"{number(pool['finished'])} of {plural(pool['submitted'], 'input')}"
    up = containers(pool)
    if width < NARROW:
        done = f"{number(pool['finished'])}/{number(pool['submitted'])}"
        up = f"{pool['containers']} up" + (f" +{pool['starting']}" if pool["starting"] else "")
    failed = f", {number(pool['failed'])} failed" if pool["failed"] else ""
    bar = ProgressBar(max(pool["submitted"], 1), pool["finished"], width=BAR_CELLS)
    return [
        Text.assemble((sign if _unfinished(pool) else "✓", "cyan"), " ", (label(pool), "bold")),
        *([bar] if width >= WIDE else []),
        Text.assemble(done, (failed, "red")),
        Text(_activity(pool), "dim"),
        Text(up),
    ]


def render(console: Console, what: Any) -> list[str]:
    """Lines with the terminal's codes; too long ones end in an ellipsis."""
    with console.capture() as capture:
        console.print(what, no_wrap=True, overflow="ellipsis", crop=True, soft_wrap=False)
    return [line.rstrip() for line in capture.get().splitlines()]


def label(pool: Statistics) -> str:
    """The function's name, and for a variant the first characters of its digest: `Model@9f3c`."""
    variant = str(pool["pool"]).partition("@")[2]
    return f"{pool['name']}@{variant[:4]}" if variant else str(pool["name"])


def containers(pool: Statistics) -> str:
    up, starting = pool["containers"], pool["starting"]
    if not up and starting:
        return f"{plural(starting, 'container')} starting"
    return plural(up, "container") + (f" + {starting} starting" if starting else "")


def _unfinished(pool: Statistics) -> bool:
    return bool(pool["finished"] + pool["cancelled"] < pool["submitted"])


def _activity(pool: Statistics) -> str:
    queued = pool["backlog"] + pool["delayed"]
    parts = [f"{number(pool['running'])} running"] if pool["running"] else []
    if queued:
        parts.append(f"{number(queued)} queued")
    return ", ".join(parts)


def plain_line(pools: Sequence[Statistics], elapsed: float) -> str:
    """The same for a file: the sums only."""
    busy = busy_pools(pools)
    if not busy:
        return ""
    keys = ("containers", "starting", "submitted", "finished", "failed", "running", "backlog", "delayed")
    total = {key: sum(pool[key] for pool in busy) for key in keys}
    done = f"{number(total['finished'])} of {plural(total['submitted'], 'input')}"
    parts = [done, _activity(total), containers(total)]
    if total["failed"]:
        parts.append(f"{number(total['failed'])} failed")
    return ", ".join(part for part in parts if part) + f" ({seconds(elapsed)})"


def summary(word: str, pools: Sequence[Statistics], elapsed: float) -> str:
    """What was done, when it is over: `Done: 4,312 inputs in 11 containers, 6.2 s`."""
    finished, submitted, failed, cancelled, started = (
        sum(pool[key] for pool in pools) for key in ("finished", "submitted", "failed", "cancelled", "started")
    )
    if not submitted:
        return f"{word} after {seconds(elapsed)}"
    done = plural(submitted, "input")
    if finished < submitted:
        done = f"{number(finished)} of {done}"
    parts = [f"{done} in {plural(started, 'container')}", seconds(elapsed)]
    if cancelled:
        parts.insert(1, f"{number(cancelled)} cancelled")
    if failed:
        parts.insert(1, f"{number(failed)} failed")
    return f"{word}: {', '.join(parts)}"
