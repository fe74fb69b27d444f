"""How commands end: an error of kedge is one line and exit code 1, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import click


def finish(command: Callable[[], int | None]) -> NoReturn:
    """Runs a command and ends the program with the exit code that it gives; None is 0."""
    import sys

    sys.exit(clean(command))


def clean(command: Callable[[], int | None]) -> int:
    """The exit code of a command."""
    from kedge.exception import Error

    try:
        return command() or 0
    except Error as error:
        click.echo(f"Error: {error}", err=True)
        return 1


def not_empty(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """An empty text is nearly always a variable of a script that was not set, and would select everything."""
    if value == "":
        raise click.BadParameter("it is empty; leave the option out, or give it something to look for.")
    return value
