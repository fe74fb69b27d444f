"""`kedge shell`: a shell where a function runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from kedge.cli.shellviews import one_to_enter
from kedge.model import protocol as p
from kedge.model.spec import EnvironmentSpec
from kedge.sdk import alias
from kedge.server.inventory import Inventory
from tests.cli.live import Live
from tests.server.shell import app, inputs

APP = """
import kedge

app = kedge.App("demo")

@app.function(cpu=3.0)
def train() -> None: ...

@app.cls()
class Model:
    @kedge.method()
    def run(self) -> None: ...
"""


def shell(home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("KEDGE_")}
    return subprocess.run(
        [sys.executable, "-m", "kedge.cli.main", "shell", *words],
        env={**own, "KEDGE_HOME": str(home), "SHELL": "/bin/sh", **variables},
        cwd=home,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def test_a_shell_with_what_a_function_would_find(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(APP)
    command = 'echo "$OMP_NUM_THREADS $KEDGE_IS_REMOTE $(pwd)"; exit 3'
    plain = shell(tmp_path, "-c", command)
    assert (plain.returncode, plain.stdout, plain.stderr) == (3, f"1 1 {tmp_path}\n", "")
    declared = shell(tmp_path, "script.py::train", "-c", command)
    assert (declared.returncode, declared.stdout) == (3, f"3 1 {tmp_path}\n")
    assert shell(
        tmp_path, "script.py::Model", "-c", "python -c 'import sys; print(sys.executable)'"
    ).stdout.strip() == (sys.executable)


def test_beside_a_function_with_an_image_it_says_so(tmp_path: Path) -> None:
    source = APP.replace("cpu=3.0", "image=kedge.Image.debian_slim()")
    (tmp_path / "script.py").write_text(source)
    found = shell(tmp_path, "script.py::train", "-c", "pwd")
    assert (found.returncode, found.stdout) == (0, f"{tmp_path}\n")
    assert "the function has an image, and this shell is beside it" in found.stderr
    assert "`kedge shell ct-…` is within a container of it" in found.stderr
    assert shell(tmp_path, "script.py::Model", "-c", "pwd").stderr == ""


def test_import_modal_means_kedge_in_the_file_and_in_the_shell(tmp_path: Path) -> None:
    (tmp_path / "lg.py").write_text(APP.replace("import kedge", "import modal as kedge, modal.exception"))
    program = "import lg, modal.gpu, modal, kedge; print(modal is kedge, modal.gpu is kedge.gpu, lg.app.name)"
    found = shell(tmp_path, "lg.py::train", "-c", f"python -c '{program}'")
    assert (found.returncode, found.stdout) == (0, "True True demo\n"), found.stderr


def test_the_shell_is_that_of_the_user_and_is_told_by_its_exit_code(tmp_path: Path) -> None:
    mine = tmp_path / "myshell"
    mine.write_text('#!/bin/sh\necho "mine: $*"\nexit 9\n')
    mine.chmod(0o700)
    found = shell(tmp_path, "-c", "anything", SHELL=str(mine))
    assert (found.returncode, found.stdout) == (9, "mine: -c anything\n")


def test_a_file_that_does_not_import_and_one_without_the_function(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(APP)
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    broken = shell(tmp_path, "broken.py", "-c", "true")
    assert broken.returncode == 2
    assert "ModuleNotFoundError: No module named 'no_such_module'" in broken.stderr
    assert "Error: importing broken.py failed, so there is no shell." in broken.stderr
    missing = shell(tmp_path, "script.py::trian", "-c", "true")
    assert missing.returncode == 1
    assert "Error: script.py has no function 'trian'. Did you mean 'train'? It has: train, Model.run, Model" in (
        missing.stderr
    )


def test_a_shell_of_a_function_and_of_a_container_of_a_server(live: Live) -> None:
    environment = EnvironmentSpec(
        python=sys.executable, python_version="3.11", variables=(("PATH", os.defpath),), directory=str(live.home)
    )
    spec = replace(app(env=(("NAME", "value"),)), environment=environment)
    live.say(p.AppCreated(1, spec), inputs("a"))
    live.until(lambda: live.engine.containers and live.engine.only.held)
    container = live.engine.only.launch.container
    command = 'echo "$NAME ${KEDGE_CONTAINER_ID:-none}"'
    assert shell(live.home, "demo.square", "-c", command).stdout == "value none\n"
    assert shell(live.home, container, "-c", command).stdout == f"value {container}\n"
    unknown = shell(live.home, "demo.sqare", "-c", command)
    assert unknown.returncode == 1
    assert "the app demo has no function 'sqare'. Did you mean 'square'?" in unknown.stderr


def facts(container: str, **changes: object) -> dict[str, object]:
    common = {"app": "de-1", "app_name": "demo", "function": "square", "environment": "main"}
    return {**common, "state": "ready", "process": 7, "container": container, **changes}


@pytest.mark.parametrize(
    ("containers", "entered"),
    [
        ([], None),
        ([facts("ct-1"), facts("ct-2")], "ct-2"),
        ([facts("ct-1", app_name="other", app="de-2"), facts("ct-2", function="cube")], None),
        ([facts("ct-1", environment="staging")], None),
        ([facts("ct-1"), facts("ct-2", state="leaving"), facts("ct-3", state="starting")], "ct-1"),
        ([facts("ct-1", state="starting", process=None)], None),
    ],
)
def test_the_container_that_is_entered(containers: list[dict[str, object]], entered: str | None) -> None:
    for app_of in ("demo", "de-1"):
        assert one_to_enter(containers, app_of, "square", "main") == entered


@pytest.mark.parametrize("ref", ["demo.square", "square", "script.py::square"])
def test_a_function_with_an_image_is_entered_where_a_container_of_it_runs(
    live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ref: str
) -> None:
    became: list[tuple[bool, str | None]] = []
    monkeypatch.setattr(
        "kedge.cli.surroundings.become",
        lambda command, launch, container: became.append((launch["image"], container and container["container"])) or 0,
    )
    around = Inventory._surroundings
    monkeypatch.setattr(Inventory, "_surroundings", lambda *words: around(*words) | {"image": True})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    image = 'image=kedge.Image.debian_slim(), name="square"'
    (tmp_path / "script.py").write_text(APP.replace("cpu=3.0", image))
    try:
        live.say(p.AppCreated(1, app()))
        beside = live.run("shell", ref, "-c", "true")
        live.say(inputs("a"))
        live.until(lambda: live.engine.containers and live.engine.only.held)
        within = live.run("shell", ref, "-c", "true")
    finally:
        alias.uninstall()
        sys.modules.pop("script", None)
    container = live.engine.only.launch.container
    assert became == [(True, None), (True, container)], within.output
    assert "this shell is beside it" in beside.stderr
    assert within.stderr == f"kedge: the function has an image, and this shell is within {container}\n"


def test_without_a_server_there_is_no_container(own_home: Path) -> None:
    found = shell(own_home, "ct-1", "-c", "true")
    assert (found.returncode, found.stderr) == (
        1,
        "Error: no server is running, so neither a container nor an app is.\n",
    )


@pytest.mark.parametrize("words", [("-h",), ("--help",)])
def test_help_has_examples(tmp_path: Path, words: tuple[str, ...]) -> None:
    found = shell(tmp_path, *words)
    assert "kedge shell ct-0123" in found.stdout
