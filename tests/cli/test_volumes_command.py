"""`kedge volume`: files come and go as with the commands that everybody knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedge.cli import confirm
from tests.cli.live import Live


@pytest.fixture
def stocked(live_with_volumes: Live, tmp_path: Path) -> Live:
    """A volume `data` with a few files."""
    live = live_with_volumes
    local = tmp_path / "stock"
    (local / "sub").mkdir(parents=True)
    (local / "a.txt").write_text("a")
    (local / "sub" / "b.txt").write_text("bb")
    assert live.run("volume", "create", "data").exit_code == 0
    assert live.run("volume", "put", "data", str(local), "/d").stdout == "2 files put into the volume data.\n"
    return live


def test_volumes_are_made_listed_renamed_and_deleted(stocked: Live) -> None:
    again = stocked.run("volume", "create", "data")
    assert (again.exit_code, again.stderr) == (
        1,
        "Error: there is a volume 'data' in the environment 'main' already\n",
    )
    assert [one["name"] for one in stocked.json("volume", "list")] == ["data"]
    assert stocked.run("volume", "rename", "data", "other", "-y").exit_code == 0
    missing = stocked.run("volume", "delete", "data", "-y")
    assert missing.stderr == "Error: there is no volume 'data' in the environment 'main'. There are other\n"
    assert stocked.run("volume", "delete", "data", "-y", "--allow-missing").stdout == "There is no volume data.\n"
    assert stocked.run("volume", "delete", "other", "-y").stdout == "other has been deleted.\n"
    assert stocked.json("volume", "list") == []


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 1)])
def test_a_person_is_asked_before_files_are_lost(
    stocked: Live, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    assert "--yes (-y) says that you mean it" in stocked.run("volume", "delete", "data").stderr
    monkeypatch.setattr(confirm, "at_a_terminal", lambda: True)
    stocked.run("volume", "delete", "data", input=answer)
    assert len(stocked.json("volume", "list")) == left


def test_files_are_listed(stocked: Live) -> None:
    assert stocked.run("volume", "ls", "data", "/d").stdout.splitlines()[1].split()[:2] == ["d/a.txt", "file"]
    everything = stocked.json("volume", "ls", "data", "-r")
    assert [(one["path"], one["type"]) for one in everything] == [
        ("d", "dir"),
        ("d/a.txt", "file"),
        ("d/sub", "dir"),
        ("d/sub/b.txt", "file"),
    ]
    assert [one["path"] for one in stocked.json("volume", "ls", "data", "/d/*.txt")] == ["d/a.txt"]
    missing = stocked.run("volume", "ls", "data", "/none")
    assert (missing.exit_code, missing.stderr) == (1, "Error: there is no '/none' in the volume\n")


def test_files_are_put(stocked: Live, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("note")
    assert stocked.run("volume", "put", "data", str(note)).exit_code == 0
    again = stocked.run("volume", "put", "data", str(note))
    assert (again.exit_code, again.stderr) == (
        1,
        "Error: 'note.txt' exists in the volume; force=True (--force) replaces what is there\n",
    )
    assert stocked.run("volume", "put", "data", str(note), "--force").exit_code == 0
    assert stocked.run("volume", "put", "data", str(note), "/d/").exit_code == 0
    assert stocked.run("volume", "get", "data", "d/note.txt", "-").stdout == "note"
    assert "there is no file or directory" in stocked.run("volume", "put", "data", str(tmp_path / "none")).stderr


def test_files_are_got(stocked: Live, tmp_path: Path) -> None:
    goal = tmp_path / "goal"
    goal.mkdir()
    assert stocked.run("volume", "get", "data", "/d/a.txt", str(goal)).stdout == f"{goal / 'a.txt'}\n"
    assert (goal / "a.txt").read_text() == "a"
    again = stocked.run("volume", "get", "data", "/d/a.txt", str(goal))
    assert (again.exit_code, again.stderr) == (1, f"Error: {goal / 'a.txt'} is here already; --force replaces it\n")
    assert stocked.run("volume", "get", "data", "/d/a.txt", str(goal), "--force").exit_code == 0
    assert stocked.run("volume", "get", "data", "/d", str(goal)).stdout == f"2 files in {goal / 'd'}\n"
    assert (goal / "d" / "sub" / "b.txt").read_text() == "bb"
    assert "--force replaces what is there" in stocked.run("volume", "get", "data", "/d", str(goal)).stderr
    whole = tmp_path / "whole"
    assert stocked.run("volume", "get", "data", "/", str(whole)).exit_code == 0
    assert (whole / "d" / "a.txt").read_text() == "a"
    assert not list(goal.rglob(".*")), "nothing half-made is left"


def test_names_with_the_marks_of_patterns_are_names(stocked: Live, tmp_path: Path) -> None:
    (tmp_path / "[id]").mkdir()
    (tmp_path / "[id]" / "what?.tsx").write_text("page")
    assert stocked.run("volume", "put", "data", str(tmp_path / "[id]"), "/pages/[id]").exit_code == 0
    assert "pages/[id]/what?.tsx" in stocked.run("volume", "ls", "data", "/pages/[id]").stdout
    assert stocked.run("volume", "get", "data", "/pages/[id]/what?.tsx", str(tmp_path / "page")).exit_code == 0
    assert (tmp_path / "page").read_text() == "page"
    nothing = stocked.run("volume", "get", "data", "/pages/*.py", str(tmp_path / "none"))
    assert (nothing.exit_code, "nothing in the volume matches '/pages/*.py'" in nothing.stderr) == (1, True)
    assert not (tmp_path / "none").exists()


def test_files_are_copied_and_removed(stocked: Live) -> None:
    assert stocked.run("volume", "cp", "data", "/d/a.txt", "/copy.txt").exit_code == 0
    assert "cp -r" in stocked.run("volume", "cp", "data", "/d", "/e").stderr
    assert stocked.run("volume", "cp", "data", "/d", "/e", "-r").exit_code == 0
    assert stocked.run("volume", "cp", "data", "/d").exit_code == 2
    assert "rm -r" in stocked.run("volume", "rm", "data", "/d").stderr
    assert stocked.run("volume", "rm", "data", "/d", "-r").exit_code == 0
    left = [one["path"] for one in stocked.json("volume", "ls", "data", "-r")]
    assert left == ["copy.txt", "e", "e/a.txt", "e/sub", "e/sub/b.txt"]
