"""All lists of what is in environments look alike.

What has a name there (dicts, queues, secrets, volumes) is listed of the environment in use. What runs (apps, functions,
containers) is listed of all of them, which are a column as soon as there is another one than `main`."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from kedge.cli import confirm
from kedge.model import protocol as p
from tests.cli.live import Live
from tests.server.shell import app, inputs

CREATE = {"dict": "NAME", "queue": "NAME", "secret": "NAME KEY=VALUE", "volume": "NAME"}
HEADINGS = {
    "dict": ["name", "id", "keys", "created"],
    "queue": ["name", "id", "items", "created"],
    "secret": ["name", "variables", "created", "changed"],
    "volume": ["name", "id", "created"],
}


def make(live: Live, kind: str, name: str, *words: str) -> None:
    assert live.run(kind, "create", name, *(["A=1"] if kind == "secret" else []), *words).exit_code == 0


@pytest.mark.parametrize("kind", list(CREATE))
def test_what_has_a_name_is_listed_of_the_environment_in_use(
    live_with_volumes: Live, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_with_volumes
    assert live.run(kind, "list").stdout == (
        f"There are no {kind}s in the environment 'main'. `kedge {kind} create {CREATE[kind]}` makes one.\n"
    )
    make(live, kind, "a")
    make(live, kind, "b", "--env", "staging")
    heading, row = live.run(kind, "list").stdout.splitlines()
    assert heading.split() == HEADINGS[kind]
    assert row.split()[0] == "a"
    assert [(one["name"], one["environment"]) for one in live.json(kind, "list")] == [("a", "main")]
    assert [(one["name"], one["environment"]) for one in live.json(kind, "list", "-e", "staging")] == [("b", "staging")]
    monkeypatch.setenv("KEDGE_ENVIRONMENT", "staging")
    heading, row = live.run(kind, "list").stdout.splitlines()
    assert (heading.split(), row.split()[0]) == (HEADINGS[kind], "b")
    monkeypatch.setenv("KEDGE_ENVIRONMENT", "test")
    assert live.run(kind, "list").stdout.startswith(f"There are no {kind}s in the environment 'test'. ")


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("dict", " with all that it holds?"),
        ("queue", " with all that it holds?"),
        ("secret", "? New containers of apps that use it do not start."),
        ("volume", " with all its files?"),
    ],
)
def test_who_deletes_is_told_what_and_where(
    live_with_volumes: Live, kind: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_with_volumes
    make(live, kind, "a", "-e", "staging")
    monkeypatch.setattr(confirm, "at_a_terminal", lambda: True)
    no = live.run(kind, "delete", "a", "-e", "staging", input="n\n")
    assert no.stderr.startswith(f"Delete the {kind} a (environment staging){loss}")
    assert (no.exit_code, no.stderr.splitlines()[-1]) == (1, "Nothing was deleted.")
    yes = live.run(kind, "delete", "a", "-e", "staging", input="y\n")
    assert (yes.exit_code, yes.stdout) == (0, "a has been deleted.\n")
    assert live.json(kind, "list", "-e", "staging") == []


def test_what_runs_is_listed_of_all_environments(live: Live) -> None:
    lists = {"app": 1, "function": 1, "container": 2}
    live.say(p.AppCreated(1, app()), inputs("a"))
    live.until(lambda: live.engine.containers and live.engine.only.held)
    for kind in lists:
        assert "environment" not in live.run(kind, "list").stdout.splitlines()[0]
        assert [one["environment"] for one in live.json(kind, "list")] == ["main"]
    live.deploy(replace(app("ap-v2", ephemeral=False), environment_name="staging"))
    live.until(lambda: len(live.engine.containers) == 2)
    for kind, place in lists.items():
        heading, *rows = live.run(kind, "list").stdout.splitlines()
        assert heading.split()[place] == "environment"
        assert sorted(row.split()[place] for row in rows) == ["main", "staging"]
        assert sorted(one["environment"] for one in live.json(kind, "list")) == ["main", "staging"]
