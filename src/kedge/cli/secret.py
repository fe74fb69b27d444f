"""`kedge secret`: variables that the server keeps for containers."""

from __future__ import annotations

from pathlib import Path

import click

from kedge.cli.apps import JSON, YES
from kedge.cli.outcome import finish, not_empty

ENVIRONMENT = click.option(
    "-e", "--env", "environment", metavar="NAME", callback=not_empty, help="Environment that it is in (default: main)."
)
NAME = click.argument("name", metavar="NAME", callback=not_empty)
MISSING = click.option("--allow-missing", is_flag=True, help="Do nothing where there is none.")
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group("secret")
def secret() -> None:
    """Secrets: variables for containers, kept encrypted at the server.

    Functions name them: @app.function(secrets=[kedge.Secret.from_name("openai")]). Nothing shows the values again.

    \b
        kedge secret create openai OPENAI_API_KEY=-
        kedge secret create database --from-dotenv .env
        kedge secret list
        kedge secret delete openai
    """


@secret.command("list")
@JSON
@ENVIRONMENT
def secret_list(as_json: bool, environment: str | None) -> None:
    """List secrets with the names of their variables."""
    from kedge.cli import secretviews

    finish(lambda: secretviews.show_list(environment, as_json))


@secret.command("create")
@ENVIRONMENT
@click.option("--from-dotenv", metavar="FILE", type=_FILE, help="Take the variables of a .env file.")
@click.option(
    "--from-json", metavar="FILE", type=_FILE, help="Take the variables of a JSON object; - is standard input."
)
@click.option("--force", is_flag=True, help="Replace one that is there.")
@NAME
@click.argument("variables", metavar="[KEY=VALUE]...", nargs=-1)
def secret_create(
    name: str,
    variables: tuple[str, ...],
    environment: str | None,
    from_dotenv: Path | None,
    from_json: Path | None,
    force: bool,
) -> None:
    """Keep variables under a name.

    KEY=- reads the value from standard input, where neither the list of processes nor the history of the shell has it;
    on a terminal it is asked for. Several of them take a line each.

    \b
        kedge secret create openai OPENAI_API_KEY=-
        pass show database | kedge secret create database PASSWORD=- USER=kedge
        kedge secret create database --from-dotenv .env --force
    """
    from kedge.cli import secretviews

    finish(lambda: secretviews.create(name, variables, environment, from_dotenv, from_json, force))


@secret.command("delete")
@ENVIRONMENT
@YES
@MISSING
@NAME
def secret_delete(name: str, environment: str | None, yes: bool, allow_missing: bool) -> None:
    """Delete a secret. Containers that have its variables keep them; new ones do not start without it.

    \b
        kedge secret delete openai
    """
    from kedge.cli import secretviews

    finish(lambda: secretviews.delete(name, environment, yes, allow_missing))
