"""Questions before something is ended that others may need."""

from __future__ import annotations

import sys

import click


def at_a_terminal() -> bool:
    return sys.stdin.isatty()


def confirmed(question: str, yes: bool) -> bool:
    """Whether a person agrees. With `yes` they have already; without a terminal to ask on, click.UsageError says what
    to write."""
    if yes:
        return True
    if not at_a_terminal():
        raise click.UsageError(f"{question} There is no terminal to answer on; --yes (-y) says that you mean it.")
    try:
        return click.confirm(question, default=False, err=True)
    except click.Abort:  # the end of the input is no yes
        click.echo(err=True)
        return False
