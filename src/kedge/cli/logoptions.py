"""The options of everything that shows logs: `kedge logs`, `kedge app logs`, `kedge container logs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from kedge.cli.outcome import not_empty

C = TypeVar("C", bound=Callable[..., Any])

_OPTIONS = {
    "input": click.option(
        "--input", callback=not_empty, metavar="ID", help="Lines of this input: in-…, or its end as lines show it."
    ),
    "call": click.option("--call", callback=not_empty, metavar="ID", help="Lines of all inputs of this call."),
    "function": click.option(
        "--function", callback=not_empty, metavar="NAME", help="Lines of this function, class or Class.method."
    ),
    "container": click.option("--container", callback=not_empty, metavar="ID", help="Lines of this container."),
    "since": click.option(
        "--since", callback=not_empty, metavar="WHEN", help="Not before this: 10m, 2h, 1d, 14:30, 2026-01-31T14:30."
    ),
    "until": click.option("--until", callback=not_empty, metavar="WHEN", help="Not after this."),
    "grep": click.option("--grep", metavar="REGEX", help="Lines in which this regular expression is found."),
    "stream": click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Lines of this stream."),
    "tail": click.option("-n", "--tail", metavar="N", type=click.IntRange(min=0), help="At most the last N lines."),
    "follow": click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now, until Ctrl-C."),
    "timestamps": click.option("--timestamps", is_flag=True, help="Begin each line with its local time."),
    "json": click.option("--json", is_flag=True, help="One JSON object per line, with all that is known of it."),
}


def log_options(*without: str) -> Callable[[C], C]:
    """Adds all of them, except for those that the command's own argument stands for."""

    def decorate(command: C) -> C:
        for name, option in reversed(_OPTIONS.items()):
            if name not in without:
                command = option(command)
        return command

    return decorate


def show_logs(words: dict[str, Any]) -> int:
    """Shows what the words of a command line ask for; gives the exit code."""
    from kedge.cli import logs
    from kedge.cli.logchoice import Options

    return logs.show(Options(**{name: word for name, word in words.items() if word is not None}))
