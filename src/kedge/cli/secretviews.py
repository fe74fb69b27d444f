"""What `kedge secret` does: asks the server, and shows what it says. Values are never echoed, not even in errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kedge.cli import confirm, named, tables
from kedge.cli.asking import Facts, ask, provided
from kedge.cli.tables import Column
from kedge.exception import InvalidError
from kedge.model.protocol import SecretsChanged
from kedge.sdk import config, validation

LIST = (
    Column("name", lambda secret: secret["name"]),
    Column("variables", lambda secret: ", ".join(secret["keys"]) or tables.NONE, folds=True),
    Column("created", lambda secret: tables.when(secret["created_at"])),
    Column("changed", lambda secret: tables.when(secret["updated_at"])),
)
STDIN = "-"


def show_list(environment: str | None, as_json: bool) -> None:
    named.show_list("secret", LIST, _listing, environment, as_json, create="NAME KEY=VALUE")


def create(
    name: str,
    variables: Sequence[str],
    environment: str | None,
    from_dotenv: Path | None,
    from_json: Path | None,
    force: bool,
) -> None:
    validation.name("NAME", name)
    where = config.environment(environment)
    values: dict[str, str] = {}
    if from_dotenv is not None:
        values |= _dotenv(from_dotenv)
    if from_json is not None:
        values |= _json(from_json)
    values |= _given(variables, used=from_json is not None and str(from_json) == STDIN)
    if not values:
        raise click.UsageError("a secret has variables: write KEY=VALUE, KEY=-, --from-dotenv or --from-json.")
    for key in values:
        validation.environment("the secret", {key: ""})
    with provided() as client:
        action = "replace" if force else "create"
        made: Facts = ask(client, lambda request: SecretsChanged(request, action, name, where, values))
    print(f"The secret {name} has {', '.join(made['keys'])}.")
    click.echo(f'\n    @app.function(secrets=[kedge.Secret.from_name("{name}")])', err=True)


def delete(name: str, environment: str | None, yes: bool, allow_missing: bool) -> int:
    return named.delete(
        "secret",
        name,
        environment,
        yes,
        allow_missing,
        find=lambda request, where: SecretsChanged(request, "info", name, where),
        listing=_listing,
        remove=lambda request, where, _: SecretsChanged(request, "delete", name, where),
        loss="? New containers of apps that use it do not start.",
    )


def _listing(request: int, where: str) -> SecretsChanged:
    return SecretsChanged(request, "list", environment=where)


# ---------------------------------------------------------------- values


def _given(variables: Sequence[str], used: bool) -> dict[str, str]:
    values: dict[str, str] = {}
    asked = [key for key, equals, value in map(_split, range(1, len(variables) + 1), variables) if value == STDIN]
    if asked and used:
        raise click.UsageError("standard input is read by --from-json - already; give the other values by a file.")
    lines = iter(_lines(asked)) if asked else iter(())
    for position, text in enumerate(variables, 1):
        key, _, value = _split(position, text)
        values[key] = next(lines) if value == STDIN else value
    return values


def _split(position: int, text: str) -> tuple[str, str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"argument {position} after NAME is not KEY=VALUE (it is not shown: it may be a value).")
    return key, equals, value


def _lines(keys: Sequence[str]) -> list[str]:
    """The values for these keys, from standard input."""
    if confirm.at_a_terminal():
        return [click.prompt(key, hide_input=True, err=True) for key in keys]
    text = sys.stdin.read()
    if not text.strip():
        raise click.UsageError(f"standard input is empty, so there is no value for {', '.join(keys)}.")
    if len(keys) == 1:
        return [text.removesuffix("\n").removesuffix("\r")]
    lines = text.splitlines()
    if len(lines) != len(keys):
        raise click.UsageError(
            f"standard input has {len(lines)} lines, for {len(keys)} values ({', '.join(keys)}); give a line to each."
        )
    return lines


def _dotenv(path: Path) -> dict[str, str]:
    from dotenv import dotenv_values

    if not path.is_file():
        raise InvalidError(f"--from-dotenv: there is no file {path}")
    return {key: value for key, value in dotenv_values(path).items() if value is not None}


def _json(path: Path) -> dict[str, str]:
    try:
        text = sys.stdin.read() if str(path) == STDIN else path.read_text()
        found: Any = json.loads(text)
    except OSError as error:
        raise InvalidError(f"--from-json: {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "it is no text"
        raise InvalidError(f"--from-json: {path} is no JSON ({where})") from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InvalidError(f'--from-json: {path} must hold an object of strings, such as {{"API_KEY": "…"}}')
    return found
