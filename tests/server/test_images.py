"""Images as sessions ask for them: one build for all who wait, and none for nobody."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from kedge.exception import ImageBuildError, InvalidError, NotFoundError
from kedge.model import protocol as p
from kedge.model.spec import ImageSpec, ImageStep, SecretRef
from kedge.server.images import Images
from tests.images.kit import Site, recipe, step
from tests.wire.loops import on_loop, until

pytestmark = pytest.mark.slow

BASE = step("debian_slim")


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def site(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, shelf, monkeypatch)


class Front:
    """A server's images, and what its sessions were told."""

    def __init__(self, site: Site) -> None:
        self.told: list[tuple[str, p.ImageProgressed]] = []
        self.images = Images(site.home, lambda session, message: self.told.append((session, message)), self.values)
        self._requests = 0

    def values(self, ref: SecretRef, environment: str) -> dict[str, str]:
        if ref.name != "known":
            raise NotFoundError(f"there is no secret {ref.name!r} in {environment}")
        return {"TOKEN": "tok-3n-secret"}

    async def ask(self, session: str, *steps: ImageStep, **wishes: Any) -> dict[str, Any]:
        self._requests += 1
        message = p.ImageRequested(self._requests, recipe(*steps), **wishes)
        answer = self.images.answers[p.ImageRequested](message, session)
        return await answer if asyncio.iscoroutine(answer) else answer

    def states(self, session: str) -> list[str]:
        return [message.state for name, message in self.told if name == session and message.state != "output"]


def builders(site: Site) -> list[int]:
    """Processes that build images of this home."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes() if entry.name.isdecimal() else b""
            if b"kedge.images" in words and str(site.wheels).encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


class Deaf:
    """A place for packages that never answers: a build that asks it hangs."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._hear, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.set()
        await reader.read(-1)
        writer.close()


@on_loop
async def test_sessions_that_ask_for_one_image_wait_for_one_build(site: Site) -> None:
    site.wheel("lib", "1.0")
    front = Front(site)
    steps = BASE, step("pip_install", packages=["lib"])
    answers = await asyncio.gather(front.ask("se-1", *steps), front.ask("se-2", *steps))
    assert answers[0] == answers[1]
    assert not answers[0]["cached"]
    for session in ("se-1", "se-2"):
        assert front.states(session) == ["started", "finished", "started", "finished"]
    built = front.images.find(answers[0]["id"])
    assert built is not None
    assert built.python_version == site.store.images()[0].image.python_version
    assert [Path(path).is_dir() for path in built.runtime] == [True]
    await front.images.close()


@on_loop
async def test_what_is_there_is_answered_at_once_and_without_a_process(site: Site) -> None:
    front = Front(site)
    first = await front.ask("se-1", BASE)
    message = p.ImageRequested(9, recipe(BASE))
    answer = front.images.answers[p.ImageRequested](message, "se-2")
    assert answer == {"id": first["id"], "cached": True, "seconds": 0.0}
    await front.images.close()
    assert Front(site).images.find(first["id"]) is not None, "another server of this home has it, too"


@on_loop
async def test_a_runtime_holds_what_containers_need_and_nothing_else(site: Site) -> None:
    front = Front(site)
    built = front.images.find((await front.ask("se-1", BASE))["id"])
    assert built is not None
    names = {path.name for path in Path(built.runtime[0]).iterdir()}
    assert {"kedge", "msgspec", "cloudpickle"} <= names
    assert not {"pip", "click", "pytest", "setuptools", "rich"} & names
    code = "import sys; sys.path += sys.argv[1:]; import kedge.container.main, msgspec; print(msgspec.__file__)"
    process = await asyncio.create_subprocess_exec(
        built.python, "-I", "-c", code, *built.runtime, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert printed.decode().startswith(built.runtime[0])
    await front.images.close()


@on_loop
async def test_a_build_that_nobody_waits_for_ends_and_leaves_nothing(site: Site) -> None:
    front, deaf = Front(site), Deaf()
    async with deaf as address:
        steps = BASE, step("pip_install", packages=["lib"], find_links=address)
        first = asyncio.ensure_future(front.ask("se-1", *steps))
        await until(lambda: "started" in front.states("se-1"))
        second = asyncio.ensure_future(front.ask("se-2", *steps))
        await asyncio.wait_for(deaf.asked.wait(), 30)
        front.images.departed("se-1")
        await until(lambda: "waiting" in front.states("se-2"))
        assert builders(site), "somebody still waits"
        front.images.departed("se-2")
        await until(lambda: not builders(site))
        for waiter in (first, second):
            with pytest.raises(asyncio.CancelledError):
                await waiter
    assert [site.store.layer(path.name) is not None for path in site.store.layers.iterdir()] == [True]
    await front.images.close()


@on_loop
async def test_a_build_that_takes_too_long_is_ended(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    front, deaf = Front(site), Deaf()
    await front.ask("se-1", BASE)
    monkeypatch.setenv("KEDGE_IMAGE_TIMEOUT", "2")
    async with deaf as address:
        with pytest.raises(ImageBuildError, match=r"step 2 of 2 failed .*: not done after 2 s, so it was ended"):
            await front.ask("se-1", BASE, step("pip_install", packages=["lib"], find_links=address))
    assert not builders(site)
    await front.images.close()


@on_loop
async def test_builders_end_with_their_server(site: Site) -> None:
    front, deaf = Front(site), Deaf()
    async with deaf as address:
        waiter = asyncio.ensure_future(
            front.ask("se-1", BASE, step("pip_install", packages=["lib"], find_links=address))
        )
        await asyncio.wait_for(deaf.asked.wait(), 30)
        front.images.departed("se-1")  # as it is when a program ends that has a server of its own
        await front.images.close()
        assert not builders(site)
        with pytest.raises(asyncio.CancelledError):
            await waiter
    assert [site.store.layer(path.name) is not None for path in site.store.layers.iterdir()] == [True]


@on_loop
async def test_two_servers_of_a_home_build_a_step_once(site: Site) -> None:
    site.wheel("lib", "1.0")
    one, two = Front(site), Front(site)
    steps = BASE, step("pip_install", packages=["lib"])
    answers = await asyncio.gather(one.ask("se-1", *steps), two.ask("se-1", *steps))
    assert answers[0]["id"] == answers[1]["id"]
    told = [*one.states("se-1"), *two.states("se-1")]
    assert told.count("started") == 2, "each of the two steps once"
    await asyncio.gather(one.images.close(), two.images.close())


@on_loop
async def test_prune_spares_what_another_server_uses(site: Site) -> None:
    one, two = Front(site), Front(site)
    image = (await one.ask("se-1", BASE))["id"]
    assert two.images.prune(())["images"] == 0, "the other one has found it"
    one.images.release(())
    assert two.images.prune(())["images"] == 1
    assert one.images.find(image) is None
    await asyncio.gather(one.images.close(), two.images.close())


@on_loop
async def test_secrets_reach_their_step_and_nothing_else(site: Site) -> None:
    front = Front(site)
    known = [{"name": "known", "id": "", "environment": "", "required_keys": []}]
    with pytest.raises(ImageBuildError) as caught:
        await front.ask("se-1", BASE, step("pip_install", packages=["tok-3n-secret"], secrets=known))
    assert "tok-3n-secret" not in str(caught.value).partition("\n")[2]
    assert all("tok-3n-secret" not in message.text for _, message in front.told)
    with pytest.raises(NotFoundError, match="there is no secret 'other' in main"):
        await front.ask("se-1", BASE, step("pip_install", packages=["x"], secrets=[{"name": "other"}]))
    with pytest.raises(InvalidError, match="'text' is no reference to a secret"):
        await front.ask("se-1", BASE, step("pip_install", packages=["x"], secrets=["text"]))
    await front.images.close()


@on_loop
async def test_an_image_can_be_published(site: Site) -> None:
    front = Front(site)
    first = await front.ask("se-1", BASE, publish="base")
    assert site.store.named() == {"base": first["id"]}
    assert (await front.ask("se-1", BASE, publish="again"))["cached"]
    assert front.images.list()[0]["names"] == ["again", "base"]
    await front.images.close()


@on_loop
async def test_an_image_without_its_interpreter_is_not_there(site: Site) -> None:
    front = Front(site)
    built = front.images.find((await front.ask("se-1", BASE))["id"])
    assert built is not None
    os.unlink(built.python)
    await front.images.close()
    assert Front(site).images.find(built.id) is None


def test_no_steps_no_build(site: Site) -> None:
    images = Images(site.home, lambda session, message: None)
    with pytest.raises(InvalidError, match="an image without steps needs no build"):
        images.answers[p.ImageRequested](p.ImageRequested(1, ImageSpec()), "se-1")
