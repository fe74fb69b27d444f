"""`kedge dict` and `kedge queue`: what containers and programs share."""

from __future__ import annotations

import click

from kedge.cli.apps import JSON, YES
from kedge.cli.outcome import finish, not_empty
from kedge.cli.secret import ENVIRONMENT, MISSING, NAME

PARTITION = click.option(
    "-p", "--partition", metavar="NAME", callback=not_empty, help="Partition (default: the one without a name)."
)


@click.group("dict")
def dicts() -> None:
    """Dicts: keys and values that functions share (kedge.Dict).

    \b
        kedge dict list
        kedge dict items results
        kedge dict get results Ada
        kedge dict delete results
    """


@dicts.command("clear")
@ENVIRONMENT
@YES
@NAME
def dict_clear(name: str, environment: str | None, yes: bool) -> None:
    """Remove all keys of a dict."""
    from kedge.cli import objectviews

    finish(lambda: objectviews.clear_dict(name, environment, yes))


@dicts.command("get")
@JSON
@ENVIRONMENT
@NAME
@click.argument("key", metavar="KEY")
def dict_get(name: str, key: str, environment: str | None, as_json: bool) -> None:
    """Show the value of a key.

    KEY is a text; where there is none like it, it is read as a number or a tuple.

    \b
        kedge dict get results Ada
        kedge dict get results "('Ada', 1)"
    """
    from kedge.cli import objectviews

    finish(lambda: objectviews.get(name, key, environment, as_json))


@dicts.command("items")
@JSON
@ENVIRONMENT
@click.option("-a", "--all", "everything", is_flag=True, help="All of them.")
@NAME
@click.argument("count", metavar="[N]", type=click.IntRange(1), default=20)
def dict_items(name: str, count: int, environment: str | None, everything: bool, as_json: bool) -> None:
    """Show the first N keys of a dict with their values."""
    from kedge.cli import objectviews

    finish(lambda: objectviews.items(name, None if everything else count, environment, as_json))


@click.group("queue")
def queues() -> None:
    """Queues: what functions hand on to each other (kedge.Queue).

    \b
        kedge queue list
        kedge queue len jobs
        kedge queue peek jobs 5
        kedge queue clear jobs --all
    """


@queues.command("clear")
@ENVIRONMENT
@YES
@PARTITION
@click.option("-a", "--all", "everything", is_flag=True, help="All partitions.")
@NAME
def queue_clear(name: str, environment: str | None, yes: bool, partition: str | None, everything: bool) -> None:
    """Remove the items of one partition, or of all."""
    from kedge.cli import objectviews

    finish(lambda: objectviews.clear_queue(name, environment, partition, everything, yes))


@queues.command("peek")
@JSON
@ENVIRONMENT
@PARTITION
@NAME
@click.argument("count", metavar="[N]", type=click.IntRange(1), default=1)
def queue_peek(name: str, count: int, environment: str | None, partition: str | None, as_json: bool) -> None:
    """Show the first N items and leave them where they are."""
    from kedge.cli import objectviews

    finish(lambda: objectviews.peek(name, count, environment, partition, as_json))


@queues.command("len")
@ENVIRONMENT
@PARTITION
@click.option("-t", "--total", is_flag=True, help="Of all partitions together.")
@NAME
def queue_len(name: str, environment: str | None, partition: str | None, total: bool) -> None:
    """Print the number of items."""
    from kedge.cli import objectviews

    finish(lambda: objectviews.length(name, environment, partition, total))


# ---------------------------------------------------------------- what both have


def _shared(group: click.Group, kind: str) -> None:
    @group.command("list", help=f"List {kind}s that have a name.")
    @JSON
    @ENVIRONMENT
    def show_list(as_json: bool, environment: str | None) -> None:
        from kedge.cli import objectviews

        finish(lambda: objectviews.show_list(kind, environment, as_json))

    @group.command("create", help=f"Make an empty {kind}.")
    @ENVIRONMENT
    @NAME
    def create(name: str, environment: str | None) -> None:
        from kedge.cli import objectviews

        finish(lambda: objectviews.create(kind, name, environment))

    @group.command("delete", help=f"Delete a {kind} with all that it holds.")
    @ENVIRONMENT
    @YES
    @MISSING
    @NAME
    def delete(name: str, environment: str | None, yes: bool, allow_missing: bool) -> None:
        from kedge.cli import objectviews

        finish(lambda: objectviews.delete(kind, name, environment, yes, allow_missing))


_shared(dicts, "dict")
_shared(queues, "queue")
