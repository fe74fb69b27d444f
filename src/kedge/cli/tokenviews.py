"""What `kedge token` does: asks the server, and shows what it says."""

from __future__ import annotations

import click

from kedge.cli import tables
from kedge.cli.asking import Facts, ask, connected
from kedge.cli.choice import one_of
from kedge.cli.confirm import confirmed
from kedge.cli.tables import Column
from kedge.model.protocol import TokensChanged

NOTHING = "There are no tokens. `kedge token create` makes one for a client, with --proxy for web functions."
_FOR = {"api": "clients", "proxy": "web functions"}

LIST = (
    Column("id", lambda token: token["id"]),
    Column("for", lambda token: _FOR[token["kind"]]),
    Column("name", lambda token: token["name"] or tables.NONE),
    Column("created", lambda token: tables.when(token["created_at"])),
)


def create(name: str, proxy: bool, as_json: bool) -> None:
    with connected() as client:
        kind = "proxy" if proxy else "api"
        made: Facts = ask(client, lambda request: TokensChanged(request, "create", kind, name))
    if as_json:
        tables.print_json(made)
        return
    for line in tables.describe({"id": made["id"], "secret": made["secret"]}):
        print(line)
    click.echo("\nThe secret is not shown again. It is used like this:", err=True)
    if proxy:
        click.echo(f'    curl -H "Kedge-Key: {made["id"]}" -H "Kedge-Secret: $SECRET" URL', err=True)
    else:
        click.echo(f"    KEDGE_SERVER=tcp://HOST:PORT KEDGE_TOKEN={made['id']}.$SECRET kedge app list", err=True)


def show_list(as_json: bool) -> None:
    with connected() as client:
        found: list[Facts] = ask(client, lambda request: TokensChanged(request, "list"))
    tables.show(found, LIST, as_json=as_json, empty=NOTHING)


def delete(text: str, yes: bool) -> int:
    with connected() as client:
        found: list[Facts] = ask(client, lambda request: TokensChanged(request, "list"))
        token = one_of(text, found, id="id", name="name", what="token")
        name = f" ({token['name']})" if token["name"] else ""
        if not confirmed(f"Delete the token {token['id']}{name}? Whoever uses it is shut out.", yes):
            click.echo("Nothing was deleted.", err=True)
            return 1
        ask(client, lambda request: TokensChanged(request, "delete", id=token["id"]))
    print(f"{token['id']} has been deleted.")
    return 0
