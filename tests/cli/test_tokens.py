"""`kedge token`: a secret is shown once."""

from __future__ import annotations

import pytest

from kedge.cli import confirm
from tests.cli.live import Live


def test_there_are_none(live: Live) -> None:
    assert live.run("token", "list").stdout == (
        "There are no tokens. `kedge token create` makes one for a client, with --proxy for web functions.\n"
    )


def test_a_token_for_a_client_is_shown_once_with_its_use(live: Live) -> None:
    made = live.run("token", "create", "laptop")
    assert made.exit_code == 0
    id, secret = (line.split()[1] for line in made.stdout.splitlines())
    assert live.shell.tokens.admits(f"{id}.{secret}")
    assert "The secret is not shown again." in made.stderr
    assert f"KEDGE_TOKEN={id}.$SECRET" in made.stderr
    assert secret not in made.stderr
    listed = live.run("token", "list")
    assert listed.stdout.splitlines()[1].split()[:3] == [id, "clients", "laptop"]
    assert secret not in listed.stdout
    assert [(one["id"], one["kind"], one["name"]) for one in live.json("token", "list")] == [(id, "api", "laptop")]


def test_a_token_for_web_functions(live: Live) -> None:
    made = live.json("token", "create", "--proxy", "partner")
    assert live.shell.tokens.allowed(made["id"], made["secret"])
    assert not live.shell.tokens.admits(f"{made['id']}.{made['secret']}")
    text = live.run("token", "create", "--proxy").stderr
    assert 'curl -H "Kedge-Key: wk-' in text
    assert "web functions" in live.run("token", "list").stdout


def test_a_token_is_deleted_by_its_name_or_the_beginning_of_its_id(live: Live) -> None:
    first, second = live.json("token", "create", "laptop"), live.json("token", "create")
    assert live.run("token", "delete", "-y", "laptop").stdout == f"{first['id']} has been deleted.\n"
    assert live.run("token", "delete", "-y", second["id"][:-2]).exit_code == 0
    assert live.json("token", "list") == []
    result = live.run("token", "delete", "-y", "laptop")
    assert (result.exit_code, result.stderr) == (1, "Error: there is no token 'laptop'.\n")


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 1)])
def test_a_person_is_asked_first(live: Live, monkeypatch: pytest.MonkeyPatch, answer: str, left: int) -> None:
    live.json("token", "create", "laptop")
    without = live.run("token", "delete", "laptop")
    assert without.exit_code == 2
    assert "--yes (-y) says that you mean it" in without.stderr
    monkeypatch.setattr(confirm, "at_a_terminal", lambda: True)
    live.run("token", "delete", "laptop", input=answer)
    assert len(live.json("token", "list")) == left
