"""Whether files have changed: every way in which editors and people change them."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kedge.cli.watching import Watched

PATIENCE_S = 30.0


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A script with a module beside it, and a package."""
    (tmp_path / "app.py").write_text("import helper, pkg")
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "unrelated.py").write_text("")
    (tmp_path / "pkg" / "sub").mkdir(parents=True)
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (tmp_path / "pkg" / "sub" / "deep.py").write_text("")
    return tmp_path


@pytest.fixture
def watched(project: Path) -> Watched:
    return Watched([str(project / "app.py"), str(project / "helper.py")], [str(project / "pkg")])


def save(path: Path, text: str) -> None:
    path.write_text(text)


def save_by_rename(path: Path, text: str) -> None:
    other = path.with_name(f".{path.name}.swp")
    other.write_text(text)
    os.replace(other, path)


def replace_directory(project: Path) -> None:
    shutil.copytree(project / "pkg", project / "new")
    shutil.rmtree(project / "pkg")
    (project / "new" / "sub" / "deep.py").write_text("other")
    (project / "new").rename(project / "pkg")


CHANGES: dict[str, Callable[[Path], object]] = {
    "saved in place": lambda project: save(project / "helper.py", "x = 1"),
    "saved by rename": lambda project: save_by_rename(project / "app.py", "x = 1"),
    "deleted": lambda project: (project / "helper.py").unlink(),
    "deep in a package": lambda project: save(project / "pkg" / "sub" / "deep.py", "x = 1"),
    "new in a package": lambda project: save(project / "pkg" / "new.py", ""),
    "a new part of a package": lambda project: [
        (project / "pkg" / "part").mkdir(),
        save(project / "pkg" / "part" / "__init__.py", ""),
    ],
    "a directory is replaced": replace_directory,
}


@pytest.mark.parametrize("how", CHANGES)
def test_changes_are_seen(project: Path, watched: Watched, how: str) -> None:
    before = watched.state()
    CHANGES[how](project)
    assert watched.state() != before


@pytest.mark.parametrize("how", ["saved by rename", "a directory is replaced"])
def test_who_waits_for_changes_is_told(project: Path, watched: Watched, how: str) -> None:
    before, stop, found = watched.state(), threading.Event(), []
    thread = threading.Thread(target=lambda: found.append(watched.wait(before, stop)))
    thread.start()
    try:
        CHANGES[how](project)
    finally:
        thread.join(PATIENCE_S)
        stop.set()
        thread.join(PATIENCE_S)
    assert found == [watched.state()]


def test_a_change_before_anybody_waited_is_seen(project: Path, watched: Watched) -> None:
    before = watched.state()
    save(project / "app.py", "changed meanwhile")
    assert watched.wait(before, threading.Event()) == watched.state()


def test_what_does_not_belong_to_the_app_is_no_change(project: Path, watched: Watched) -> None:
    before = watched.state()
    save(project / "unrelated.py", "x = 1")
    save(project / "pkg" / "notes.txt", "x")
    (project / "pkg" / "__pycache__").mkdir()
    save(project / "pkg" / "__pycache__" / "x.py", "")
    assert watched.state() == before


def test_who_is_told_to_stop_stops(watched: Watched) -> None:
    stop = threading.Event()
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(watched.wait(watched.state(), stop)))
    thread.start()
    stop.set()
    thread.join(PATIENCE_S)
    assert found == [None]


def test_after_a_failed_import_new_files_beside_count_as_well(project: Path) -> None:
    """`import missing` fails until missing.py is there."""
    watched = Watched().extended(Watched([str(project / "app.py")]), loosely=True)
    before = watched.state()
    save(project / "missing.py", "")
    assert set(watched.state()) - set(before) == {str(project / "missing.py")}


def test_a_directory_that_is_gone_is_waited_for(project: Path, watched: Watched) -> None:
    shutil.rmtree(project / "pkg")
    assert str(project) in watched.places()
    assert all(os.path.isdir(place) for place in watched.places())


def test_an_earlier_look_counts_as_far_as_it_went(project: Path, watched: Watched) -> None:
    earlier = Watched([str(project / "app.py"), str(project / "unrelated.py")]).state()
    save(project / "app.py", "changed while it was imported")
    since = watched.since(earlier)
    assert (
        since[str(project / "app.py")] == earlier[str(project / "app.py")] != watched.state()[str(project / "app.py")]
    )
    assert since[str(project / "helper.py")] == watched.state()[str(project / "helper.py")]
    assert str(project / "unrelated.py") not in since
