"""For how long an image counts as in use by a server, so that `kedge image prune` spares it."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from kedge.images.store import Built
from kedge.model import protocol as p
from kedge.model.ids import function_id
from kedge.model.spec import BuiltImage, ImageSpec, ImageStep
from kedge.server import images as images_module
from kedge.server.images import Images, images_of
from kedge.server.outfit import Outfitter
from tests.server.fake_engine import FakeEngine, hold
from tests.server.shell import Shell, app, inputs, running
from tests.wire.loops import on_loop, until

IMAGE = "im-1"
SPEC = ImageSpec(steps=(ImageStep("debian_slim"),), digest="d", id=IMAGE)


@pytest.fixture(autouse=True)
def planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for is the one image that is there."""
    monkeypatch.setattr(images_module, "planned", lambda *_: types.SimpleNamespace(image=IMAGE, steps=()))


def stocked(home: Path) -> Images:
    made = Images(home, lambda session, message: None)
    made.store.keep_image(Built(image=BuiltImage(id=IMAGE, python="", python_version="3.11", packages=""), layers=()))
    return made


def furnish(shell: Shell, home: Path) -> Images:
    """As `house` does it."""
    made = stocked(home)
    shell.launches.outfitter = Outfitter(shell.directory, shell.path, str(home / "work"), images=made)
    made.used = lambda: images_of(shell.plane)
    shell.office.attend(made.answers)
    shell.office.departures.append(made.departed)
    shell.driver.brought, shell.driver.over = made.brought, made.tidy
    return made


def spared(home: Path) -> bool:
    """Whether who looks from outside finds the image in use; where nobody uses it, it is gone afterwards."""
    other = stocked(home)
    return bool(other.prune(())["images"] == 0)


async def get(peer: Any) -> None:
    assert (await peer.ask(lambda n: p.ImageRequested(n, SPEC))).value["id"] == IMAGE


@on_loop
async def test_an_image_is_in_use_until_the_last_container_of_its_app_is_gone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with running(tmp_path, FakeEngine(hold)) as shell:
        furnish(shell, home)
        client = await shell.client()
        await get(client)
        assert spared(home), "its app is about to come"
        await client.ask(lambda n: p.AppCreated(n, app(image=SPEC)))
        pool = function_id("ap-1", "square")
        client.say(inputs("x"))
        await until(lambda: shell.engine.containers and shell.engine.only.held)
        assert shell.plane.pools[pool].fleet.containers
        assert spared(home)
        await client.ask(lambda n: p.AppStopped("ap-1", n))
        assert not shell.engine.containers
        assert not spared(home), "though the session that made the app goes on"


@on_loop
async def test_an_image_that_no_app_was_made_of_is_in_use_as_long_as_its_session(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with running(tmp_path) as shell:
        furnish(shell, home)
        one, two = await shell.client(), await shell.client()
        await get(one)
        await get(two)
        sessions = len(shell.driver.links)
        one.connection.close("enough")
        await until(lambda: len(shell.driver.links) < sessions)
        assert spared(home)
        two.connection.close("enough")
        await until(lambda: len(shell.driver.links) < sessions - 1)
        assert not spared(home)


@on_loop
async def test_what_one_app_leaves_another_may_still_have(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with running(tmp_path) as shell:
        furnish(shell, home)
        client, other = await shell.client(), await shell.client()
        await get(client)
        for id in ("ap-1", "ap-2"):
            await client.ask(lambda n, id=id: p.AppCreated(n, app(id, image=SPEC)))
        await client.ask(lambda n: p.AppStopped("ap-1", n))
        assert spared(home), "ap-2 has it"
        await get(other)
        await client.ask(lambda n: p.AppStopped("ap-2", n))
        assert spared(home), "the other session is about to make an app of it"
        await other.ask(lambda n: p.AppDeployed(n, app("ap-3", ephemeral=True, image=SPEC)))
        other.connection.close("enough")
        await until(lambda: "ap-3" not in shell.plane.apps)
        assert not spared(home)
