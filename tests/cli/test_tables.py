"""Tables, JSON, and what a part of an id stands for."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from kedge.cli import serverfacts, tables
from kedge.cli.choice import matching, one_of
from kedge.cli.tables import Column
from kedge.exception import InvalidError, NotFoundError

COLUMNS = (
    Column("name", lambda one: one["name"]),
    Column("count", lambda one: str(one["count"]), right=True),
    Column("address", lambda one: one["address"], folds=True),
)
LONG = "http://127.0.0.1:5334/" + "x" * 100
FACTS = [
    {"name": "a", "count": 7, "address": LONG},
    {"name": "much longer", "count": 12345, "address": "-"},
]


def test_columns_stand_below_each_other_and_numbers_at_their_ends() -> None:
    assert tables.table(COLUMNS, FACTS) == [
        "name         count  address",
        f"a                7  {LONG}",
        "much longer  12345  -",
    ]


def test_on_a_narrow_terminal_what_people_copy_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in tables.table(COLUMNS, FACTS, width=60)]
    assert all(len(line) <= 60 for line in lines)
    begin = lines[0].index("address")
    assert "".join(line[begin:].strip() for line in lines[1:-1]) == LONG


def test_nothing_steers_the_terminal() -> None:
    facts = [{"name": "evil\x1b[2J\x07", "count": 1, "address": "[bold]x[/bold]\n"}]
    text = "\n".join(tables.table(COLUMNS, facts))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]x[/bold]" in text


def test_json_is_whole_and_an_empty_list_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(FACTS, COLUMNS, as_json=True, empty="nothing")
    assert json.loads(capsys.readouterr().out) == FACTS
    tables.show([], COLUMNS, as_json=True, empty="nothing")
    assert capsys.readouterr().out == "[]\n"
    tables.show([], COLUMNS, as_json=False, empty="Nothing is there.")
    assert capsys.readouterr().out == "Nothing is there.\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ct-0123abcd", ["ct-0123abcd"]),
        ("ct-0123", ["ct-0123abcd", "ct-0123ffff"]),
        ("0123a", ["ct-0123abcd"]),
        ("ffff", ["ct-0123ffff"]),
        ("ct-", []),
        ("12", []),
        ("", []),
        ("ct-9", []),
    ],
)
def test_parts_of_ids(text: str, found: list[str]) -> None:
    assert matching(text, ["ct-0123abcd", "ct-0123ffff", "ct-99"]) == found


APPS: list[dict[str, Any]] = [
    {"id": "ap-111122", "name": "chat", "old": 1},
    {"id": "ap-333344", "name": "chat", "old": 0},
    {"id": "ap-333355", "name": "ap-111122", "old": 0},
]


def chosen(text: str) -> str:
    found = one_of(text, APPS, id="id", name="name", what="app", prefer=lambda app: app["old"], advice="Look.")
    return str(found["id"])


def test_an_id_comes_before_a_name_and_a_name_before_a_part_of_an_id() -> None:
    assert chosen("ap-111122") == "ap-111122"
    assert chosen("chat") == "ap-333344"
    assert chosen("ap-1111") == "ap-111122"


def test_what_is_not_clear_or_not_there() -> None:
    with pytest.raises(InvalidError) as several:
        chosen("ap-3333")
    assert str(several.value) == (
        "'ap-3333' stands for 2 apps: ap-333344 (chat), ap-333355 (ap-111122); write the whole id"
    )
    with pytest.raises(NotFoundError) as missing:
        chosen("chta")
    assert str(missing.value) == "there is no app 'chta'. Did you mean 'chat'? There are: chat, ap-111122. Look."
    with pytest.raises(NotFoundError, match=r"^there is no app 'x'\. Look\.$"):
        one_of("x", [], id="id", name="name", what="app", advice="Look.")


def test_a_server_in_sentences() -> None:
    machine = {
        "name": "local",
        "cpu": 8.0,
        "cpu_used": 0.25,
        "memory": 65536,
        "memory_used": 1024,
        "gpus": {"H100": {"count": 4, "used": 3}},
    }
    facts: dict[str, Any] = {"machines": [machine], "disk": {"free_bytes": 3 * 2**30}, "failures": 0, "dropped": {}}
    assert list(serverfacts.lines(facts)) == [
        "Containers on local have asked for 0.25 of 8 cores, 1,024 of 65,536 MiB, 3 of 4 H100.",
        "Its disk has 3.0 GiB free.",
    ]
    trouble = {"disk": {"error": "Permission denied"}, "failures": 2, "dropped": {"b": 1, "a": 2000}}
    assert list(serverfacts.lines(facts | trouble))[1:] == [
        "Its disk: Permission denied.",
        "It has failed on 2 messages and gone on; `kedge server logs` says where. Please report it.",
        "Came too late and was dropped: a (2,000), b (1).",
    ]
