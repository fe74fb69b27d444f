"""Help: every command of those who look after a server says how it is used."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from kedge.cli.main import main

GROUPS = ("app", "container", "function", "shell", "token")
OBVIOUS = ("token list",)


def commands(command: click.Command, path: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, f"{path} {name}")
    elif path not in OBVIOUS:
        yield path


@pytest.mark.parametrize("path", [path for name in GROUPS for path in commands(main.commands[name], name)])
def test_every_command_has_an_example(path: str) -> None:
    result = CliRunner().invoke(main, [*path.split(), "-h"])
    assert result.exit_code == 0
    usage, _, rest = result.output.partition("\n")
    assert f"kedge {path}" in rest, f"{usage}: no line begins with it"


@pytest.mark.parametrize("name", GROUPS)
def test_every_group_is_in_the_list_with_a_sentence_that_fits(name: str) -> None:
    listed = CliRunner().invoke(main, ["-h"], terminal_width=80).output
    (line,) = [line for line in listed.splitlines() if line.split()[:1] == [name]]
    assert not line.endswith("..."), line
