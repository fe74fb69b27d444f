"""Programs whose images read files of the caller: what containers find, what is built again, and from far away."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.model.spec import NAMESPACE
from tests.e2e.commands import Place, place
from tests.engines.sandbox import missing

pytestmark = pytest.mark.slow

APP = """
import json, os
from pathlib import Path
import kedge

HERE = Path(__file__).parent
image = (
    kedge.Image.debian_slim()
    .pip_install_from_requirements(HERE / "requirements.txt")
    .env({"MODE": "fast"})
    .add_local_dir(HERE / "data", "/root/data", ignore=["**/*.log"])
    .add_local_file("note.txt", "/notes/")
    .add_local_python_source("helpers")
)
app = kedge.App("reader", image=image)

with image.imports():
    import tiny_of_the_image

def facts(more=None):
    import helpers
    return {
        "tiny": tiny_of_the_image.VALUE,
        "mode": os.environ["MODE"],
        "data": sorted(path.name for path in Path("/root/data").rglob("*") if path.is_file()),
        "note": Path("/notes/note.txt").read_text(),
        "helper": helpers.VALUE,
        "more": more,
    }

@app.function()
def read():
    return facts()

@app.cls()
class Reader:
    number: int = kedge.parameter()

    @kedge.method()
    def read(self):
        return facts(self.number)

@app.local_entrypoint()
def main():
    try:
        tiny_of_the_image
        here = True
    except NameError:
        here = False
    print(json.dumps([here, read.remote(), Reader(number=7).read.remote()]))
"""


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Place]:
    if reason := missing(NAMESPACE):
        pytest.skip(f"files cannot be put anywhere here: {reason}")
    (tmp_path / "desk").mkdir()
    with place(tmp_path / "desk", PIP_NO_INDEX="1", UV_FIND_LINKS=str(tmp_path)) as made:
        made.write("app.py", APP)
        made.write("data/a.csv", "a")
        made.write("data/deep/b.csv", "b")
        made.write("data/deep/c.log", "c")
        made.write("note.txt", "first")
        made.write("helpers.py", "VALUE = 1\n")
        made.write("requirements.txt", "-r more/local.txt\n")
        made.write("more/local.txt", "tiny-of-the-image==1.0\n")
        wheel(tmp_path)
        yield made


def wheel(directory: Path) -> None:
    """A package that only this test has."""
    about = "tiny_of_the_image-1.0.dist-info"
    with zipfile.ZipFile(directory / "tiny_of_the_image-1.0-py3-none-any.whl", "w") as file:
        file.writestr("tiny_of_the_image.py", "VALUE = 42\n")
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-of-the-image\nVersion: 1.0\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")


def expected(note: str = "first", helper: int = 1, more: int | None = None) -> dict[str, Any]:
    data = ["a.csv", "b.csv"]
    return {"tiny": 42, "mode": "fast", "data": data, "note": note, "helper": helper, "more": more}


def test_containers_find_what_the_program_has_added_and_only_what_is_new_is_built(desk: Place) -> None:
    first = desk.kedge("run", "app.py")
    assert json.loads(first.stdout) == [False, expected(), expected(more=7)]
    assert "building the image: pip_install_from_requirements requirements.txt (step 2 of 3)" in first.stderr
    desk.write("note.txt", "second")
    desk.write("helpers.py", "VALUE = 2\n")
    again = desk.kedge("run", "app.py")
    assert json.loads(again.stdout)[1] == expected("second", 2)
    assert "building" not in again.stderr, "what is added when a container starts builds nothing"
    desk.write("app.py", APP.replace('"fast"', '"slow"'))
    changed = desk.kedge("run", "app.py")
    assert "building the image: env MODE (step 3 of 3)" in changed.stderr
    assert "pip_install" not in changed.stderr
    forced = desk.kedge("run", "app.py", KEDGE_FORCE_BUILD="1")
    assert "building the image: pip_install_from_requirements requirements.txt (step 2 of 3)" in forced.stderr


SPACES = """
import kedge
from tools.text import clean

app = kedge.App("spaces", image=kedge.Image.debian_slim().add_local_python_source("extra"))

@app.function()
def tidy(text):
    from extra.late import shout
    return shout(clean(text))

@app.local_entrypoint()
def main():
    print(tidy.remote("  a  "))
"""


@pytest.mark.parametrize("how", [["spaces.py"], ["-m", "jobs.spaces"]])
def test_packages_without_init_go_along(desk: Place, how: list[str]) -> None:
    desk.write("spaces.py", SPACES)
    desk.write("jobs/spaces.py", SPACES)
    desk.write("tools/text.py", "clean = str.strip\n")
    desk.write("extra/late.py", "shout = str.upper\n")
    assert desk.kedge("run", *how).stdout == "A\n"


BESIDE = """
from pathlib import Path
import kedge

HERE = Path(__file__).parent
app = kedge.App("beside", image=kedge.Image.debian_slim()STEPS)

@app.function()
def read():
    return sorted(path.read_text() for path in (HERE / "data").iterdir() if path.is_file())

@app.local_entrypoint()
def main():
    print(*read.remote())
"""


@pytest.mark.parametrize(
    ("file", "how", "steps"),
    [
        ("jobs/beside.py", ["-m", "jobs.beside"], ""),
        ("jobs/beside.py", ["-m", "jobs.beside"], ".add_local_dir('jobs', '/root/jobs')"),
        ("jobs/beside.py", ["-m", "jobs.beside"], ".add_local_python_source('jobs')"),
        ("jobs/beside.py", ["-m", "jobs.beside"], ".add_local_python_source('jobs', ignore=[])"),
        ("beside.py", ["beside.py"], ".add_local_dir('jobs/data', '/root/data')"),
    ],
)
def test_data_beside_a_module_is_beside_it_in_the_container(desk: Place, file: str, how: list[str], steps: str) -> None:
    desk.write("jobs/data/a.txt", "a")
    desk.write("jobs/data/b.txt", "b")
    desk.write(file, BESIDE.replace("STEPS", steps))
    assert desk.kedge("run", *how).stdout == "a b\n"


def test_data_that_is_not_in_the_container_is_named_with_the_step_that_brings_it(desk: Place) -> None:
    desk.write("beside.py", BESIDE.replace("STEPS", ""))
    failed = desk.kedge("run", "beside.py", code=1)
    data = desk.directory / "data"
    assert "FileNotFoundError: [Errno 2] No such file or directory: '/root/data'" in failed.stderr
    assert f"add .add_local_dir('{data}', '/root/data') to the image." in failed.stderr


def test_an_image_is_built_ahead_listed_and_removed(desk: Place) -> None:
    built = desk.kedge("image", "build", "app.py")
    assert "reader" not in built.stdout
    id, users = built.stdout.strip().split("  ")
    assert users == "read, Reader"
    (listed,) = json.loads(desk.kedge("image", "list", "--json").stdout)
    assert listed["id"] == id
    assert "tiny-of-the-image==1.0" in desk.kedge("image", "logs", id).stdout
    desk.kedge("server", "stop")
    assert json.loads(desk.kedge("image", "prune", "--yes", "--json").stdout)["images"] == 1
    assert desk.kedge("image", "list", "--json").stdout.strip() == "[]"


def test_a_failed_build_names_its_step_and_nothing_runs(desk: Place) -> None:
    desk.write("more/local.txt", "tiny-of-the-image==2.0\n")
    failed = desk.kedge("run", "app.py", code=None)
    assert failed.returncode != 0
    assert "step 2 of 3 failed (pip_install_from_requirements requirements.txt)" in failed.stderr
    assert "tiny-of-the-image==2.0" in failed.stderr
    assert "Traceback" not in failed.stderr
    os.unlink(desk.directory / "note.txt")
    missing = desk.kedge("run", "app.py", code=None)
    assert "Image.add_local_file (app.py:" in missing.stderr
    assert "there is no file" in missing.stderr


def test_another_machine_gets_what_it_needs(desk: Place, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    with place(tmp_path / "far", KEDGE_PORT="0", PIP_NO_INDEX="1", UV_FIND_LINKS=str(tmp_path)) as far:
        far.kedge("server", "start", "--listen", "tcp://127.0.0.1:0")
        token = json.loads(far.kedge("token", "create", "desk", "--json").stdout)
        address = json.loads(far.kedge("server", "status", "--json").stdout)["tcp"]
        variables = {"KEDGE_SERVER": address, "KEDGE_TOKEN": f"{token['id']}.{token['secret']}"}
        assert json.loads(desk.kedge("run", "app.py", **variables).stdout) == [False, expected(), expected(more=7)]
        desk.write("data/a.csv", "new")
        assert json.loads(desk.kedge("run", "app.py", **variables).stdout)[1] == expected()
        assert json.loads(desk.kedge("image", "list", "--json").stdout) == []
        assert len(json.loads(far.kedge("image", "list", "--json").stdout)) == 1
