"""Volumes in real containers: who sees what, and that nothing of it gets lost."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.model.spec import NAMESPACE
from kedge.sdk.volume import Volume
from tests.e2e import volume_functions as v
from tests.e2e.commands import Place, eventually, place
from tests.engines.sandbox import missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing(NAMESPACE)), reason="containers cannot have file systems of their own here"),
]


@pytest.fixture(scope="module")
def volume(kedge_home: Path) -> Iterator[Volume]:
    """The app of `volume_functions` runs while the tests of this module do."""
    with v.app.run():
        yield v.shared


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> None:
    """Each test begins with an empty volume."""
    if "volume" in request.fixturenames:
        shared: Volume = request.getfixturevalue("volume")
        for function in (v.one, v.other):
            function.remote({}, reload=True)
        for entry in shared.listdir("/"):
            shared.remove_file(entry.path, recursive=True)
        for function in (v.one, v.other):
            assert function.remote({}, reload=True) == {}


def files(volume: Volume) -> dict[str, str]:
    return {
        entry.path: b"".join(volume.read_file(entry.path)).decode()
        for entry in volume.iterdir("/")
        if entry.type.name == "FILE"
    }


def test_a_container_sees_its_snapshot_until_it_reloads(volume: Volume) -> None:
    assert v.one.remote({"d/f": "1"}, commit=True) == {"d/f": "1"}
    assert files(volume) == {"d/f": "1"}
    assert v.other.remote({}) == {}, "it sees what was there when it came up to date"
    assert v.other.remote({}, reload=True) == {"d/f": "1"}
    v.one.remote({"d/f": "2"}, commit=True)
    assert v.other.remote({}) == {"d/f": "1"}
    assert v.other.remote({}, reload=True) == {"d/f": "2"}


def test_the_last_writer_of_a_file_wins_and_other_files_stay(volume: Volume) -> None:
    v.one.remote({"both": "one", "of one": "1"})
    v.other.remote({"both": "other", "of other": "2"}, commit=True)
    v.one.remote({}, commit=True)
    assert files(volume) == {"both": "one", "of one": "1", "of other": "2"}
    v.other.remote({"more": "3"}, commit=True)
    assert files(volume)["both"] == "one", "what it had committed before is not committed again"
    assert v.other.remote({}, reload=True) == files(volume)


def test_a_reload_keeps_what_was_not_committed(volume: Volume) -> None:
    v.one.remote({"a": "1"}, commit=True)
    assert v.other.remote({"b": "2"}) == {"b": "2"}
    assert v.other.remote({}, reload=True) == {"a": "1", "b": "2"}


def test_what_is_written_is_committed_by_itself(volume: Volume) -> None:
    v.one.remote({"f": "text"})
    eventually(lambda: files(volume) == {"f": "text"})


def test_directories_are_moved_and_links_are_kept(volume: Volume) -> None:
    v.rearrange.remote()
    assert {entry.path: entry.type.name for entry in volume.iterdir("/")} == {
        "link": "SYMLINK",
        "moved": "DIRECTORY",
        "moved/sub": "DIRECTORY",
        "moved/sub/kept": "FILE",
        "out": "SYMLINK",
    }
    assert b"".join(volume.read_file("link")) == b"kept"
    with pytest.raises(Exception, match="leads out of the volume"):
        list(volume.read_file("out"))


def test_what_a_killed_container_has_written_is_kept(volume: Volume, tmp_path: Path) -> None:
    assert v.write_and_die.remote("f", str(tmp_path / "marker")) == "survived"
    assert files(volume) == {"f": "written before its end"}


def test_read_only_and_a_part_of_a_volume(volume: Volume) -> None:
    error, there = v.parts.remote("text")
    assert (error, there) == ("Read-only file system", ["f"])
    eventually(lambda: files(volume) == {"part/deep/f": "text"})


def test_a_reload_is_refused_while_files_are_open(volume: Volume) -> None:
    v.reload_with_open_file.spawn().get()
    v.one.remote({"news": "1"}, commit=True)
    refused, there = v.reload_with_open_file.remote()
    assert "cannot be reloaded while files of it are open" in refused
    assert there == ["held", "news"]


def test_the_hooks_of_a_container_write_too(volume: Volume) -> None:
    assert v.Library().ready.remote() is True
    eventually(lambda: files(volume) == {"opened": "by enter", "closed": "by exit"})


# ---------------------------------------------------------------- programs and servers

PROGRAM = """
import os, kedge
app = kedge.App("notes")
notes = kedge.Volume.from_name("notes", create_if_missing=True)

@app.function(volumes={"/notes": notes}, scaledown_window=60)
def write(name: str, text: str = "text"):
    open(f"/notes/{name}", "w").write(text)

@app.function(volumes={"/notes": notes})
def read() -> str:
    return ",".join(sorted(os.listdir("/notes")))

@app.function(volumes={"/missing": kedge.Volume.from_name("missing")})
def lost(): ...

@app.local_entrypoint()
def main():
    print("there:", read.remote())
"""

SITE = """
import json, os, kedge
app = kedge.App("site")
pages = kedge.Volume.from_name("pages", create_if_missing=True)

@app.function(schedule=kedge.Period(seconds=1), volumes={"/pages": pages})
def collect():
    count = len(os.listdir("/pages"))
    open(f"/pages/{count}.json", "w").write(json.dumps({"count": count}))
    pages.commit()
    pages.reload()

@app.function(volumes={"/pages": pages.read_only()})
@kedge.concurrent(max_inputs=4)
@kedge.fastapi_endpoint(label="pages")
def show():
    pages.reload()
    return {"pages": sorted(os.listdir("/pages"))}
"""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path) as made:
        made.write("notes.py", PROGRAM)
        made.write("board.py", SITE)
        yield made


def test_the_end_of_a_program_loses_nothing(here: Place) -> None:
    here.write("only.py", PROGRAM.replace('@app.function(volumes={"/missing"', '# @app.function(volumes={"/missing"'))
    here.kedge("run", "only.py::write", "--name", "f")
    assert "there: f\n" in here.kedge("run", "only.py::main").stdout


def test_a_volume_that_is_missing_is_told_before_anything_runs(here: Place) -> None:
    failed = here.kedge("run", "notes.py::main", code=1)
    assert "there is no volume 'missing' in the environment 'main'; there are notes. Create it with" in failed.stderr


def test_a_killed_server_loses_nothing_of_its_containers(here: Place) -> None:
    here.write("only.py", PROGRAM.replace('@app.function(volumes={"/missing"', '# @app.function(volumes={"/missing"'))
    here.kedge("server", "start")
    here.kedge("deploy", "only.py")
    process = json.loads(here.kedge("server", "status", "--json").stdout)["process"]
    here.program("import kedge; kedge.Function.from_name('notes', 'write').remote('f', 'uncommitted')")
    os.kill(process, signal.SIGKILL)
    here.kedge("server", "start")
    eventually(lambda: here.kedge("volume", "get", "notes", "f", "-", code=None).stdout == "uncommitted")


def test_a_site_shows_what_a_schedule_has_written(here: Place) -> None:
    here.kedge("deploy", "board.py")
    web = json.loads(here.kedge("server", "status", "--json").stdout)["web"]

    def pages() -> list[str]:
        with urllib.request.urlopen(f"{web}/pages/") as answer:
            found: list[str] = json.load(answer)["pages"]
            return found

    first = eventually(pages)
    eventually(lambda: len(pages()) > len(first))
