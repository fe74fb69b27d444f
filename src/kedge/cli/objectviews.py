"""What `kedge dict` and `kedge queue` do: values are loaded here, the server knows only their bytes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import click

from kedge.cli import named, tables
from kedge.cli.asking import Facts, ask, connected, provided
from kedge.cli.confirm import confirmed
from kedge.cli.tables import Column
from kedge.exception import NotFoundError
from kedge.model.protocol import ObjectsRequested
from kedge.sdk import client as client_module
from kedge.sdk import config, validation
from kedge.sdk.dicts import Dict
from kedge.sdk.queues import Queue

_NOTHING = object()


def show_list(kind: str, environment: str | None, as_json: bool) -> None:
    size = "keys" if kind == "dict" else "items"
    columns = (
        Column("name", lambda one: one["name"]),
        Column("id", lambda one: one["id"]),
        Column(size, lambda one: tables.count(one["size"]), right=True),
        Column("created", lambda one: tables.when(one["created_at"])),
    )
    named.show_list(kind, columns, partial(_listing, kind), environment, as_json)


def create(kind: str, name: str, environment: str | None) -> None:
    validation.name("NAME", name)
    where = config.environment(environment)
    with provided() as client:
        made: Facts = ask(client, lambda request: ObjectsRequested(request, kind, "create", name, where))
    print(f"The {kind} {name} has been made: {made['id']}")


def delete(kind: str, name: str, environment: str | None, yes: bool, allow_missing: bool) -> int:
    return named.delete(
        kind,
        name,
        environment,
        yes,
        allow_missing,
        find=lambda request, where: ObjectsRequested(request, kind, "find", name, where),
        listing=partial(_listing, kind),
        remove=lambda request, where, _: ObjectsRequested(request, kind, "delete", name, where),
        loss=" with all that it holds?",
    )


def _listing(kind: str, request: int, where: str) -> ObjectsRequested:
    return ObjectsRequested(request, kind, "list", environment=where)


# ---------------------------------------------------------------- dicts


def clear_dict(name: str, environment: str | None, yes: bool) -> int:
    with _in_use():
        found = Dict.from_name(name, environment_name=environment)
        count = found.len()
        if not confirmed(f"Remove all {count} keys of the dict {name}?", yes):
            click.echo("Nothing was removed.", err=True)
            return 1
        found.clear()
    print(f"{name} is empty.")
    return 0


def get(name: str, key: str, environment: str | None, as_json: bool) -> None:
    with _in_use():
        found = Dict.from_name(name, environment_name=environment)
        value = _NOTHING
        for meant in _meanings(key):
            value = found.get(meant, _NOTHING)
            if value is not _NOTHING:
                break
    if value is _NOTHING:
        raise NotFoundError(f"the dict {name} has no key {key!r}; `kedge dict items {name}` shows what it has")
    if as_json:
        tables.print_json(value)
    else:
        print(value if isinstance(value, str) else repr(value))


def items(name: str, count: int | None, environment: str | None, as_json: bool) -> None:
    with _in_use():
        found = Dict.from_name(name, environment_name=environment)
        shown = [{"key": key, "value": value} for key, value in islice(found.items(), count)]
        total = found.len()
    columns = (
        Column("key", lambda one: repr(one["key"])),
        Column("value", lambda one: repr(one["value"])),
    )
    tables.show(shown, columns, as_json=as_json, empty=f"The dict {name} is empty.")
    if not as_json and total > len(shown):
        click.echo(f"{total - len(shown)} more; `kedge dict items {name} --all` shows them too.", err=True)


def _meanings(key: str) -> Iterator[Any]:
    yield key
    try:
        yield ast.literal_eval(key)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return


# ---------------------------------------------------------------- queues


def clear_queue(name: str, environment: str | None, partition: str | None, everything: bool, yes: bool) -> int:
    with _in_use():
        found = Queue.from_name(name, environment_name=environment)
        count = found.len(partition=partition, total=everything)
        which = "in all partitions" if everything else f"in the partition {partition}" if partition else "in it"
        if not confirmed(f"Remove {count} items of the queue {name} ({which})?", yes):
            click.echo("Nothing was removed.", err=True)
            return 1
        found.clear(partition=partition, all=everything)
    print(f"{count} items have been removed from {name}.")
    return 0


def peek(name: str, count: int, environment: str | None, partition: str | None, as_json: bool) -> None:
    with _in_use():
        found = list(islice(Queue.from_name(name, environment_name=environment).iterate(partition=partition), count))
    if as_json:
        tables.print_json(found)
        return
    for value in found:
        print(repr(value))
    if not found:
        click.echo(f"The queue {name} has nothing there.", err=True)


def length(name: str, environment: str | None, partition: str | None, total: bool) -> None:
    with _in_use():
        print(Queue.from_name(name, environment_name=environment).len(partition=partition, total=total))


@contextmanager
def _in_use() -> Iterator[None]:
    """Handles use the server in use."""
    with connected() as client:
        client_module.use(client)
        yield
