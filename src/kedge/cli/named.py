"""What `kedge dict`, `queue`, `secret` and `volume` do alike: what they name is in one environment, the one in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from kedge.cli import choice, tables
from kedge.cli.asking import Facts, ask, connected
from kedge.cli.confirm import confirmed
from kedge.cli.tables import Column
from kedge.exception import NotFoundError
from kedge.sdk import config

Listing = Callable[[int, str], Any]
"""Asks for those of an environment, by the number of the request."""


def show_list(
    kind: str, columns: Sequence[Column], listing: Listing, environment: str | None, as_json: bool, create: str = "NAME"
) -> None:
    """`create`: what is written behind `kedge KIND create`."""
    where = config.environment(environment)
    with connected() as client:
        found: list[Facts] = ask(client, lambda request: listing(request, where))
    empty = f"There are no {kind}s in the environment {where!r}. `kedge {kind} create {create}` makes one."
    tables.show(found, columns, as_json=as_json, empty=empty)


def delete(
    kind: str,
    name: str,
    environment: str | None,
    yes: bool,
    allow_missing: bool,
    *,
    find: Callable[[int, str], Any],
    listing: Listing,
    remove: Callable[[int, str, Facts], Any],
    loss: str,
) -> int:
    """Gives the exit code. `remove` gets what `find` was answered; `loss` ends the question that a person is asked."""
    where = config.environment(environment)
    with connected() as client:
        try:
            found: Facts = ask(client, lambda request: find(request, where))
        except NotFoundError:
            if not allow_missing:
                there = ask(client, lambda request: listing(request, where))
                raise choice.absent(kind, name, where, there) from None
            print(f"There is no {kind} {name}.")
            return 0
        if not confirmed(f"Delete the {kind} {name} (environment {where}){loss}", yes):
            click.echo("Nothing was deleted.", err=True)
            return 1
        ask(client, lambda request: remove(request, where, found))
    print(f"{name} has been deleted.")
    return 0
