"""`kedge token`: who may use a server from elsewhere, and who may call its guarded web functions."""

from __future__ import annotations

import click

from kedge.cli.apps import JSON, YES
from kedge.cli.outcome import finish, not_empty


@click.group("token")
def token() -> None:
    """Tokens: who may come in from elsewhere.

    API tokens (ak-…) are for clients on other machines, proxy tokens (wk-…) for requests to web functions that are
    declared with requires_proxy_auth=True. The secret of a token is shown once, when it is made.

    \b
        kedge token create laptop
        kedge token create --proxy partner
        kedge token list
        kedge token delete ak-0123abcd
    """


@token.command("create")
@JSON
@click.option("--proxy", is_flag=True, help="For web functions, instead of for clients.")
@click.argument("name", metavar="[NAME]", required=False, default="")
def token_create(name: str, proxy: bool, as_json: bool) -> None:
    """Make a token and show its secret, which cannot be shown again.

    NAME is for you: it says whose it is.

    \b
        kedge token create laptop
        kedge token create --proxy partner --json
    """
    from kedge.cli import tokenviews

    finish(lambda: tokenviews.create(name, proxy, as_json))


@token.command("list")
@JSON
def token_list(as_json: bool) -> None:
    """List tokens, without their secrets."""
    from kedge.cli import tokenviews

    finish(lambda: tokenviews.show_list(as_json))


@token.command("delete")
@YES
@click.argument("id", metavar="ID", callback=not_empty)
def token_delete(id: str, yes: bool) -> None:
    """Make a token good for nothing. Clients that came in with it lose their connection.

    \b
        kedge token delete ak-0123abcd
    """
    from kedge.cli import tokenviews

    finish(lambda: tokenviews.delete(id, yes))
