"""`kedge image`: what is built, building ahead, what was printed, making room."""

from __future__ import annotations

import contextlib
import fcntl
import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import msgspec
import pytest

from kedge.cli import confirm, imageviews
from kedge.cli.main import main
from kedge.exception import ImageBuildError
from kedge.images.store import Built, Layer, Store
from kedge.model.spec import AppSpec, BuiltImage, CodeSpec, EnvironmentSpec, FunctionSpec, ImageSpec
from kedge.sdk import image_builds
from kedge.server import register

STEPS = ("debian_slim 3.12", "pip_install numpy")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KEDGE_SERVER", raising=False)
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path / "home")


def add(store: Store, id: str, at: float = 1e9, name: str = "") -> None:
    """An image of two steps, the first of which all of them have."""
    image = BuiltImage(id=f"im-{id}", python="", python_version="3.12", packages="")
    layers = ("ba5e", id)
    for layer, title in zip(layers, STEPS, strict=True):
        store.directory(layer).mkdir(parents=True, exist_ok=True)
        store.keep_layer(Layer(id=layer, title=title, image=image))
        store.logs.mkdir(parents=True, exist_ok=True)
        store.log_of(layer).write_text(f"output of {title} in {layer}\n")
    store.keep_image(Built(image=image, layers=layers, titles=STEPS, at=at))
    if name:
        store.publish(name, image.id)


def run(*words: str, **options: Any) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, ["image", *words], **options)


@pytest.fixture
def used(store: Store) -> Iterator[None]:
    """A server has im-aaaa01."""
    add(store, "aaaa01")
    with open(store.open_turn("im-aaaa01"), "wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_SH)
        yield


def test_there_are_none(store: Store) -> None:
    assert run("list").stdout == f"{imageviews.NOTHING}\n"
    assert json.loads(run("list", "--json").stdout) == []
    result = run("logs")
    assert (result.exit_code, result.stderr) == (1, "Error: no image was built on this machine, so there are no logs\n")
    assert run("prune").stdout.startswith("Removed 0 images")


def test_what_is_built_is_listed_the_latest_first(store: Store, used: None) -> None:
    add(store, "bbbb02", at=2e9, name="tools")
    lines = run("list").stdout.splitlines()
    assert lines[0].split() == ["id", "name", "python", "packages", "size", "built", "used", "steps"]
    assert lines[1].split()[:3] == ["im-bbbb02", "tools", "3.12"]
    assert lines[1].endswith("debian_slim 3.12 → pip_install numpy")
    assert lines[2].split()[:3] == ["im-aaaa01", "-", "3.12"]
    facts = {one["id"]: one for one in json.loads(run("list", "--json").stdout)}
    assert (facts["im-aaaa01"]["used"], facts["im-bbbb02"]["used"]) == (True, False)
    assert facts["im-bbbb02"]["names"] == ["tools"]


def test_logs_of_an_image_a_name_or_a_step(store: Store) -> None:
    add(store, "aaaa01", name="tools")
    text = run("logs", "im-aaaa01").stdout
    assert text.index("output of debian_slim 3.12 in ba5e") < text.index("output of pip_install numpy in aaaa01")
    assert "step 2 of 2: pip_install numpy" in text
    assert run("logs", "aaaa").stdout == text
    assert run("logs", "tools").stdout == text
    assert run("logs", "ba5e").stdout == "output of debian_slim 3.12 in ba5e\n"
    assert "output of" in run("logs").stdout
    store.log_of("runtimes").write_text("compiled for containers\n")  # of no step
    assert "output of" in run("logs").stdout
    result = run("logs", "nope")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: there is no image 'nope'; `kedge image list` shows all\n",
    )


def test_pruning_keeps_what_a_server_uses_or_has_a_name(
    store: Store, used: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for id, name in (("bbbb02", "tools"), ("cccc03", ""), ("dddd04", "")):
        add(store, id, name=name)
    asked = run("prune")
    assert asked.exit_code == 2
    assert "Remove 2 images that no running or deployed app has? There is no terminal" in asked.stderr
    monkeypatch.setattr(confirm, "at_a_terminal", lambda: True)
    assert run("prune", input="n\n").exit_code == 1
    assert len(store.images()) == 4
    done = json.loads(run("prune", "--yes", "--json").stdout)
    assert (done["images"], done["kept"]) == (2, 2)
    assert {built.image.id for built in store.images()} == {"im-aaaa01", "im-bbbb02"}
    assert store.layer("ba5e") is not None
    assert store.layer("cccc03") is None


def test_pruning_keeps_what_deployed_apps_have_while_the_server_is_stopped(store: Store) -> None:
    add(store, "aaaa01")
    add(store, "bbbb02")
    path = store.path.parent / "server" / "state.db"
    path.parent.mkdir()
    image = ImageSpec(id="im-aaaa01")
    spec = AppSpec(
        app="ap-1",
        name="shop",
        code=CodeSpec(),
        environment=EnvironmentSpec(python="", python_version=""),
        functions=(FunctionSpec(name="f", module="shop", qualname="f", image=image),),
        deployment="dp-1",
        ephemeral=False,
    )
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(register.SCHEMA)
        database.execute("INSERT INTO apps VALUES (?, ?)", (spec.app, msgspec.msgpack.encode(spec)))
        database.commit()
    assert run("prune", "--yes").stdout.startswith("Removed 1 image")
    assert [built.image.id for built in store.images()] == ["im-aaaa01"]
    path.write_bytes(b"this is no database at all, and was one yesterday" * 100)
    refused = run("prune", "--yes")
    assert refused.exit_code == 1
    assert "says which images deployed apps have, and cannot be read: file is not a database" in refused.stderr
    assert len(store.images()) == 1


APP = """
import os
import kedge
image = kedge.Image.debian_slim()
app = kedge.App("shop", image=image)
@app.function()
def f(): ...
@app.function(image=image.env({"A": "1"}))
def g(): ...
@app.function(image=kedge.Image())
def h(): ...
"""


class Server:
    """Stands for the session: images get ids by their number of steps."""

    def __init__(self) -> None:
        self.client = self
        self.left = False
        self.force = False
        self.error = ""

    def address(self, parcel: AppSpec, *, ephemeral: bool) -> AppSpec:
        return parcel

    def leave(self) -> None:
        self.left = True

    def built(self, client: Any, spec: AppSpec) -> AppSpec:
        from msgspec.structs import replace

        self.force = image_builds.wished(image_builds.FORCE, False)
        if self.error:
            raise ImageBuildError(self.error)
        functions = tuple(
            replace(one, image=replace(one.image, id=f"im-{len(one.image.steps)}")) if one.image.steps else one
            for one in spec.functions
        )
        return replace(spec, functions=functions)


@pytest.fixture
def server(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("KEDGE_FORCE_BUILD", "")
    monkeypatch.setattr("kedge.sdk.runner.Session.join", lambda machine: made)
    monkeypatch.setattr(image_builds, "built", made.built)
    (tmp_path / "shop_of_images.py").write_text(APP)
    yield made
    for name in ("shop_of_images", "broken_images", "plain_images"):
        sys.modules.pop(name, None)


def test_building_says_which_function_has_which_image(server: Server) -> None:
    result = run("build", "--no-alias", "shop_of_images.py")
    assert (result.exit_code, result.stdout) == (0, "im-1  f\nim-2  g\n")
    assert "2 images are there after" in result.stderr
    assert (server.left, server.force) == (True, False)
    assert run("build", "--no-alias", "--force", "shop_of_images.py").exit_code == 0
    assert server.force


def test_a_failed_build_is_one_error(server: Server) -> None:
    server.error = "step 2 of 2 failed (pip_install nope): exit code 1"
    result = run("build", "--no-alias", "shop_of_images.py")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: step 2 of 2 failed (pip_install nope): exit code 1\n"
    assert server.left


def test_what_cannot_be_built_as_written(server: Server, tmp_path: Path) -> None:
    assert run("build", "nope.py").exit_code == 2
    (tmp_path / "broken_images.py").write_text("import kedge\n1 / 0\n")
    result = run("build", "--no-alias", "broken_images.py")
    assert result.exit_code == 2
    assert "nothing was built" in result.stderr
    (tmp_path / "plain_images.py").write_text("import kedge\napp = kedge.App('p')\n@app.function()\ndef f(): ...\n")
    result = run("build", "--no-alias", "plain_images.py")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "p has no image: its functions run as this program does.\n"
