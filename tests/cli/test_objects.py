"""`kedge dict` and `kedge queue`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kedge
from kedge.cli import confirm
from kedge.sdk import client as client_module
from kedge.sdk.client import Client
from tests.cli.live import Live


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    made = Client.connect(live.shell.path)
    client_module.use(made)
    yield made
    made.close()


def test_there_are_none(live: Live) -> None:
    assert live.run("dict", "list").stdout == (
        "There are no dicts in the environment 'main'. `kedge dict create NAME` makes one.\n"
    )
    assert live.run("queue", "list", "-e", "staging").stdout.startswith(
        "There are no queues in the environment 'staging'"
    )


@pytest.mark.parametrize("kind", ["dict", "queue"])
def test_they_are_made_listed_and_deleted(live: Live, kind: str) -> None:
    assert live.run(kind, "create", "a").stdout.startswith(f"The {kind} a has been made: {kind[:2]}-")
    assert f"there is a {kind} 'a' in the environment 'main' already" in live.run(kind, "create", "a").stderr
    assert [(one["name"], one["size"]) for one in live.json(kind, "list")] == [("a", 0)]
    assert live.run(kind, "list").stdout.splitlines()[1].split()[0] == "a"
    assert "--yes (-y) says that you mean it" in live.run(kind, "delete", "a").stderr
    assert live.run(kind, "delete", "-y", "a").stdout == "a has been deleted.\n"
    missing = live.run(kind, "delete", "-y", "a")
    text = f"Error: there is no {kind} 'a' in the environment 'main'. There are none\n"
    assert (missing.exit_code, missing.stderr) == (1, text)
    assert live.run(kind, "delete", "-y", "--allow-missing", "a").stdout == f"There is no {kind} a.\n"


@pytest.mark.usefixtures("client")
def test_a_dict_is_looked_at(live: Live) -> None:
    d = kedge.Dict.from_name("d", create_if_missing=True)
    d.update({"Ada": {"age": 36}, 7: "seven", ("a", 1): [1]})
    assert live.run("dict", "get", "d", "Ada").stdout == "{'age': 36}\n"
    assert live.json("dict", "get", "d", "Ada") == {"age": 36}
    assert live.run("dict", "get", "d", "7").stdout == "seven\n"
    assert live.run("dict", "get", "d", "('a', 1)").stdout == "[1]\n"
    missing = live.run("dict", "get", "d", "Bob")
    assert missing.stderr == "Error: the dict d has no key 'Bob'; `kedge dict items d` shows what it has\n"
    shown = live.run("dict", "items", "d", "2")
    assert shown.stdout.splitlines()[1].split(maxsplit=1) == ["'Ada'", "{'age': 36}"]
    assert len(shown.stdout.splitlines()) == 3
    assert shown.stderr == "1 more; `kedge dict items d --all` shows them too.\n"
    assert len(live.json("dict", "items", "d", "--all")) == 3
    assert live.run("dict", "clear", "-y", "d").stdout == "d is empty.\n"
    assert live.run("dict", "items", "d").stdout == "The dict d is empty.\n"


@pytest.mark.usefixtures("client")
def test_a_queue_is_looked_at(live: Live) -> None:
    q = kedge.Queue.from_name("q", create_if_missing=True)
    q.put_many(["a", {"b": 1}, 3])
    q.put("x", partition="p")
    assert live.run("queue", "peek", "q").stdout == "'a'\n"
    assert live.json("queue", "peek", "q", "5") == ["a", {"b": 1}, 3]
    assert live.run("queue", "peek", "q", "-p", "nothing").stderr == "The queue q has nothing there.\n"
    assert [live.run("queue", "len", "q", *words).stdout for words in ((), ("-p", "p"), ("--total",))] == [
        "3\n", "1\n", "4\n"
    ]  # fmt: skip
    assert live.run("queue", "clear", "-y", "q").stdout == "3 items have been removed from q.\n"
    assert live.run("queue", "len", "q", "--total").stdout == "1\n"
    assert live.run("queue", "clear", "-y", "--all", "q").exit_code == 0
    assert q.len(total=True) == 0


@pytest.mark.usefixtures("client")
def test_a_person_is_asked_first(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    kedge.Queue.from_name("q", create_if_missing=True).put(1)
    kedge.Dict.from_name("d", create_if_missing=True)["a"] = 1
    monkeypatch.setattr(confirm, "at_a_terminal", lambda: True)
    no = live.run("queue", "clear", "q", input="n\n")
    assert "Remove 1 items of the queue q (in it)?" in no.stderr
    assert "Remove all 1 keys of the dict d?" in live.run("dict", "clear", "d", input="n\n").stderr
    assert [live.run("queue", "len", "q").stdout, len(live.json("dict", "items", "d"))] == ["1\n", 1]


def test_there_is_no_such_one(live: Live) -> None:
    for words in (("dict", "get", "d", "a"), ("queue", "len", "d"), ("dict", "clear", "-y", "d")):
        assert f"there is no {words[0]} 'd' in the environment 'main'; there are none" in live.run(*words).stderr
