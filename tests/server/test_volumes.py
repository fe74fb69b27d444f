"""Volumes on a server: what sessions may ask, and what becomes of what containers write."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kedge.exception import ExecutionError, InvalidError, NotFoundError, VolumeBusyError
from kedge.model import protocol as p
from kedge.model.spec import Launch, VolumeMount, VolumeRef
from kedge.server import volume_desk
from kedge.server.volume_desk import VolumeDesk
from kedge.server.volumes import Volumes
from tests.server.fake_engine import FakeEngine, hold
from tests.server.shell import Peer, Shell, app, inputs, running
from tests.server.test_volume_trees import content
from tests.wire.loops import on_loop, until


@asynccontextmanager
async def volumes_of(directory: Path, **options: Any) -> AsyncIterator[Volumes]:
    made = Volumes(directory / "volumes", durable=False, **options)
    await made.open()
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def server(directory: Path, engine: FakeEngine | None = None) -> AsyncIterator[tuple[Shell, Volumes, VolumeDesk]]:
    async with volumes_of(directory) as volumes, running(directory, engine) as shell:
        desk = VolumeDesk(volumes, shell.rpc.container_of)
        shell.office.attend(desk.answers)
        shell.office.departures.append(desk.departed)
        shell.driver.gone = volumes.ended
        try:
            yield shell, volumes, desk
        finally:
            await desk.close()


@asynccontextmanager
async def containers(directory: Path, count: int) -> AsyncIterator[tuple[Shell, Volumes, list[Launch]]]:
    """A server with so many containers, all at work."""
    engine = FakeEngine(hold)
    async with server(directory, engine) as (shell, volumes, _):
        calls = [inputs("x", call=f"fc-{number}") for number in range(count)]
        await shell.client(p.AppCreated(1, app()), *calls)
        await until(lambda: sum(len(one.held) for one in engine.containers.values()) == count)
        yield shell, volumes, [one.launch for one in engine.containers.values()]


async def code_of(shell: Shell, launch: Launch) -> Peer:
    """A client in a container."""
    peer = await shell.stranger()
    peer.say(p.Hello(p.CLIENT, launch.container, launch.token))
    await peer.hear(p.Welcome)
    return peer


def see(volumes: Volumes, name: str = "data", container: str = "ct-1", number: int = 0, **options: Any) -> VolumeMount:
    ref = VolumeRef(target=options.pop("target", "/data"), name=name, create=True, **options)
    return volumes.mount(ref, "main", container, number)


def write(mount: VolumeMount, path: str, text: str) -> None:
    place = Path(mount.upper, path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def tree(volumes: Volumes, name: str = "data") -> dict[str, Any]:
    volume = volumes.store.find(name, "main")
    return content(volumes.store.tree(volume.id, volumes.store.current(volume.id)))


async def value(peer: Peer, make: Any) -> Any:
    reply = await peer.ask(make)
    assert reply.error is None, reply.error
    return reply.value


async def error(peer: Peer, make: Any) -> str:
    reply = await peer.ask(make)
    assert reply.error is not None, reply.value
    return f"{reply.error.type}: {reply.error.message}"


def upload(volume: str, files: dict[str, bytes], name: str = "u", **options: Any) -> Any:
    parts = [p.UploadPart(path, 0, data) for path, data in files.items()]
    return lambda n: p.VolumeUploaded(n, volume, name, list(files), parts, last=True, **options)


# ---------------------------------------------------------------- containers


@on_loop
async def test_what_a_container_has_written_is_there_when_it_has_ended(tmp_path: Path) -> None:
    async with volumes_of(tmp_path) as volumes:
        mount = see(volumes)
        assert os.listdir(mount.lower) == []
        write(mount, "a/b", "text")
        assert tree(volumes) == {}
        volumes.ended("ct-1")
        await volumes.settled(mount.volume)
        assert tree(volumes) == {"a": None, "a/b": b"text"}
        assert not os.path.exists(mount.upper), "what it wrote is in the volume, and nowhere else"
        assert os.listdir(see(volumes, container="ct-2").lower) == ["a"]


@on_loop
async def test_a_container_sees_what_was_there_when_it_started(tmp_path: Path) -> None:
    async with volumes_of(tmp_path) as volumes:
        early = see(volumes)
        writer = see(volumes, container="ct-2")
        write(writer, "f", "new")
        assert await volumes.commit("ct-2", writer.volume) == []
        assert os.listdir(early.lower) == []
        assert os.listdir(see(volumes, container="ct-3").lower) == ["f"]


@on_loop
async def test_what_is_written_is_committed_by_itself(tmp_path: Path) -> None:
    async with volumes_of(tmp_path) as volumes:
        volumes.period = 0.05
        mount = see(volumes)
        write(mount, "f", "text")
        await until(lambda: tree(volumes) == {"f": b"text"})


@on_loop
async def test_a_server_that_was_killed_loses_nothing_of_its_containers(tmp_path: Path) -> None:
    dead = Volumes(tmp_path / "volumes", durable=False)
    mount = see(dead, sub_path="part")
    write(mount, "f", "uncommitted")
    dead.store.lease.close()  # as the kernel does
    async with volumes_of(tmp_path) as volumes:
        await until(lambda: tree(volumes) == {"part": None, "part/f": b"uncommitted"})
        await until(lambda: volumes.store.views(mount.volume) == [])
        await until(lambda: not os.path.exists(mount.upper))
    dead._threads.shutdown()


@on_loop
async def test_another_server_does_not_touch_what_living_containers_write(tmp_path: Path) -> None:
    async with volumes_of(tmp_path) as volumes:
        mount = see(volumes)
        write(mount, "f", "text")
        async with volumes_of(tmp_path) as other:
            await until(lambda: not other._ending)
            assert tree(other) == {}
        assert os.path.exists(mount.upper)


@on_loop
async def test_what_cannot_be_committed_is_kept_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with volumes_of(tmp_path) as volumes:
        volumes.period = 0.05
        monkeypatch.setattr("kedge.server.volumes.RETRY_S", 0.05)
        mount = see(volumes)
        write(mount, "f", "text")
        with monkeypatch.context() as patch:

            def full(*_: Any) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr("kedge.server.volume_store.apply", full)
            volumes.ended("ct-1")
            await volumes.settled(mount.volume)
            assert os.path.exists(mount.upper)
        assert "could not be committed, and is tried again" in caplog.text
        await until(lambda: tree(volumes) == {"f": b"text"})


@on_loop
async def test_a_reload_commits_and_shows_the_newest_tree(tmp_path: Path) -> None:
    async with volumes_of(tmp_path) as volumes:
        shown: list[tuple[str, VolumeMount]] = []

        def remount(container: str, mount: VolumeMount, request: int) -> None:
            shown.append((container, mount))
            write(one, "late", "written to the old place until the last moment")
            volumes.answered(p.VolumeAnswered(request))

        volumes.remount = remount
        one, other = see(volumes), see(volumes, container="ct-2")
        write(other, "other", "o")
        await volumes.commit("ct-2", other.volume)
        write(one, "own", "mine")
        await volumes.reload("ct-1", one.volume)
        ((container, fresh),) = shown
        assert (container, fresh.target) == ("ct-1", "/data")
        assert sorted(os.listdir(fresh.lower)) == ["other", "own"]
        assert os.listdir(fresh.upper) == []
        await volumes.settled(one.volume)
        assert tree(volumes) == {
            "other": b"o",
            "own": b"mine",
            "late": b"written to the old place until the last moment",
        }
        write(fresh, "after", "a")
        await volumes.commit("ct-1", one.volume)
        assert tree(volumes)["after"] == b"a"


@on_loop
async def test_a_reload_without_news_touches_nothing(tmp_path: Path) -> None:
    async with volumes_of(tmp_path) as volumes:
        one = see(volumes)
        write(one, "own", "mine")
        await volumes.reload("ct-1", one.volume)
        await volumes.reload("ct-1", one.volume)
        assert tree(volumes) == {"own": b"mine"}, "the engine, which cannot remount here, was not asked"


@on_loop
async def test_a_reload_is_refused_while_files_are_open(tmp_path: Path) -> None:
    async with volumes_of(tmp_path) as volumes:
        volumes.remount = lambda container, mount, request: volumes.answered(
            p.VolumeAnswered(request, "busy: python (7) has f open")
        )
        one, other = see(volumes), see(volumes, container="ct-2")
        write(other, "f", "o")
        await volumes.commit("ct-2", other.volume)
        with pytest.raises(
            VolumeBusyError, match=r"/data cannot be reloaded while files .*\(python \(7\) has f open\)"
        ):
            await volumes.reload("ct-1", one.volume)
        write(one, "g", "still the place where it writes")
        await volumes.commit("ct-1", one.volume)
        assert sorted(tree(volumes)) == ["f", "g"]
        assert len(os.listdir(volumes.store.directory / one.volume / "trees")) <= 3


@on_loop
async def test_a_container_that_ends_while_it_is_shown_another_tree(tmp_path: Path) -> None:
    async with volumes_of(tmp_path) as volumes:
        asked: list[VolumeMount] = []
        volumes.remount = lambda container, mount, request: asked.append(mount)
        one, other = see(volumes), see(volumes, container="ct-2")
        write(other, "f", "o")
        await volumes.commit("ct-2", other.volume)
        write(one, "own", "mine")
        reload = asyncio.ensure_future(volumes.reload("ct-1", one.volume))
        await until(lambda: asked)
        volumes.ended("ct-1")
        with pytest.raises(Exception, match="ct-1 ends"):
            await reload
        await volumes.settled(one.volume)
        assert tree(volumes) == {"f": b"o", "own": b"mine"}
        assert volumes.store.views(one.volume) == [volumes._mounted["ct-2"][0].view]


@on_loop
async def test_read_only_and_parts_of_a_volume(tmp_path: Path) -> None:
    async with volumes_of(tmp_path) as volumes:
        first = see(volumes, sub_path="models/llama")
        write(first, "w", "weights")
        volumes.ended("ct-1")
        await volumes.settled(first.volume)
        assert tree(volumes) == {"models": None, "models/llama": None, "models/llama/w": b"weights"}
        part = see(volumes, container="ct-2", sub_path="models", read_only=True)
        assert os.listdir(part.lower) == ["llama"]
        assert (part.upper, part.work) == ("", "")
        with pytest.raises(InvalidError, match="mounted read-only: there is nothing to commit"):
            await volumes.commit("ct-2", part.volume)
        with pytest.raises(InvalidError, match="is a file in the volume; only a directory can be mounted"):
            see(volumes, container="ct-3", sub_path="models/llama/w")
        with pytest.raises(NotFoundError, match="sub_path='none' is not in the volume"):
            see(volumes, container="ct-4", sub_path="none", read_only=True)
        with pytest.raises(ExecutionError, match="does not have this volume mounted"):
            await volumes.commit("ct-5", part.volume)


@on_loop
async def test_one_volume_at_two_places_of_a_container(tmp_path: Path) -> None:
    async with volumes_of(tmp_path) as volumes:
        one, two = see(volumes, target="/a"), see(volumes, number=1, target="/b")
        write(one, "f", "1")
        write(two, "g", "2")
        await volumes.commit("ct-1", one.volume)
        assert tree(volumes) == {"f": b"1", "g": b"2"}


@on_loop
async def test_a_volume_that_is_not_there(tmp_path: Path) -> None:
    async with volumes_of(tmp_path) as volumes:
        with pytest.raises(NotFoundError, match="there is no volume 'data' in the environment 'test'"):
            volumes.mount(VolumeRef(target="/data", name="data"), "test", "ct-1", 0)
        assert not (tmp_path / "volumes" / "servers").exists(), "nothing is made for who uses no volumes"


# ---------------------------------------------------------------- sessions


@on_loop
async def test_names_of_volumes(tmp_path: Path) -> None:
    async with server(tmp_path) as (shell, _, _):
        peer = await shell.client()
        assert "NotFoundError: there is no volume 'data'" in await error(peer, lambda n: p.VolumeRequested(n, "data"))
        made = await value(peer, lambda n: p.VolumeRequested(n, "data", create=True))
        assert (made["name"], made["environment"]) == ("data", "main")
        assert await value(peer, lambda n: p.VolumeRequested(n, id=made["id"])) == made
        assert await value(peer, lambda n: p.VolumesRequested(n)) == [made]
        assert "AlreadyExistsError" in await error(peer, lambda n: p.VolumeChanged(n, "create", name="data"))
        renamed = await value(peer, lambda n: p.VolumeChanged(n, "rename", made["id"], "other"))
        assert renamed == {**made, "name": "other"}
        assert await value(peer, lambda n: p.VolumeChanged(n, "delete", made["id"])) == renamed
        assert await value(peer, lambda n: p.VolumesRequested(n)) == []
        assert "NotFoundError: there is no volume" in await error(peer, lambda n: p.VolumeListed(n, made["id"]))


@on_loop
async def test_an_upload_is_seen_all_at_once(tmp_path: Path) -> None:
    async with server(tmp_path) as (shell, volumes, _):
        peer = await shell.client()
        volume = (await value(peer, lambda n: p.VolumeRequested(n, "data", create=True)))["id"]
        await value(peer, lambda n: p.VolumeUploaded(n, volume, "u", ["a", "b/c"]))
        first = p.UploadPart("a", 0, b"12")
        await value(peer, lambda n: p.VolumeUploaded(n, volume, "u", parts=[first]))
        rest = [p.UploadPart("a", 2, b"34"), p.UploadPart("b/c", 0, b"", 0o755)]
        await value(peer, lambda n: p.VolumeUploaded(n, volume, "u", parts=rest))
        assert tree(volumes) == {}
        await value(peer, lambda n: p.VolumeUploaded(n, volume, "u", last=True))
        assert tree(volumes) == {"a": b"1234", "b": None, "b/c": b""}
        listed = await value(peer, lambda n: p.VolumeListed(n, volume, "/", True))
        assert [(one[0], one[1], one[2]) for one in listed["entries"]] == [
            ("a", "file", 4),
            ("b", "directory", listed["entries"][1][2]),
            ("b/c", "file", 0),
        ]
        assert listed["entries"][2][4] == 0o755
        assert os.listdir(volumes.store.directory / volume / "drafts") == []


@on_loop
async def test_a_session_that_ends_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    async with server(tmp_path) as (shell, volumes, _):
        peer = await shell.client()
        volume = (await value(peer, lambda n: p.VolumeRequested(n, "data", create=True)))["id"]
        await value(peer, lambda n: p.VolumeUploaded(n, volume, "u", ["a"], [p.UploadPart("a", 0, b"1")]))
        drafts = volumes.store.directory / volume / "drafts"
        assert len(os.listdir(drafts)) == 1
        peer.connection.close()
        await until(lambda: os.listdir(drafts) == [])
        assert tree(volumes) == {}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("../x", "InvalidError: the path '../x' leads out of the volume"),
        ("a/../../x", "leads out of the volume"),
        ("nul\0", "holds a NUL character"),
        ("", "a file needs a name in the volume"),
        ("link/passwd", "'link/passwd' cannot be written: 'link' is a symbolic link in the volume"),
        ("file/x", "'file/x' cannot be written: 'file' is a file in the volume"),
        ("dir", "'dir' is a directory in the volume, and a file cannot take its place"),
        ("file", "AlreadyExistsError: 'file' exists in the volume; force=True (--force) replaces what is there"),
    ],
)
@on_loop
async def test_uploads_that_are_refused(tmp_path: Path, path: str, text: str) -> None:
    async with server(tmp_path) as (shell, volumes, _):
        mount = see(volumes)
        write(mount, "file", "f")
        write(mount, "dir/f", "f")
        Path(mount.upper, "link").symlink_to("/etc")
        await volumes.commit("ct-1", mount.volume)
        before = tree(volumes)
        peer = await shell.client()
        assert text in await error(peer, upload(mount.volume, {path: b"x"}))
        assert tree(volumes) == before
        assert (await value(peer, upload(mount.volume, {"fine": b"x"}, "next"))) is None


@on_loop
async def test_two_uploads_at_once_both_count(tmp_path: Path) -> None:
    async with server(tmp_path) as (shell, volumes, _):
        one, two = await shell.client(), await shell.client()
        volume = (await value(one, lambda n: p.VolumeRequested(n, "data", create=True)))["id"]
        for peer, name in ((one, "1"), (two, "2")):
            parts = [p.UploadPart("shared", 0, name.encode()), p.UploadPart(name, 0, b"")]
            await value(
                peer, lambda n, name=name, parts=parts: p.VolumeUploaded(n, volume, "u", ["shared", name], parts)
            )
        await value(two, lambda n: p.VolumeUploaded(n, volume, "u", last=True))
        late = await error(one, lambda n: p.VolumeUploaded(n, volume, "u", last=True))
        assert late.startswith("AlreadyExistsError: 'shared' exists"), "who comes second is told"
        assert tree(volumes) == {"shared": b"2", "2": b""}


@on_loop
async def test_a_file_is_read_as_it_was_when_reading_began(tmp_path: Path) -> None:
    async with server(tmp_path) as (shell, _, desk):
        peer = await shell.client()
        volume = (await value(peer, lambda n: p.VolumeRequested(n, "data", create=True)))["id"]
        await value(peer, upload(volume, {"f": b"old content"}))
        first = await value(peer, lambda n: p.VolumeRead(n, volume, "f", size=4))
        assert (first["data"], first["size"]) == (b"old ", 11)
        await value(peer, upload(volume, {"f": b"new"}, "next", force=True))
        rest = await value(peer, lambda n: p.VolumeRead(n, volume, "f", first["handle"], 4, 100))
        assert rest["data"] == b"content"
        assert not desk._open, "the file is closed at its end"
        other = await shell.client()
        begun = await value(peer, lambda n: p.VolumeRead(n, volume, "f", size=1))
        assert "NotFoundError" in await error(other, lambda n: p.VolumeRead(n, volume, "f", begun["handle"], 1, 1))
        peer.connection.close()
        await until(lambda: not desk._open)


@on_loop
async def test_who_reads_too_many_files_at_once_loses_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_desk, "MAX_OPEN", 2)
    async with server(tmp_path) as (shell, _, desk):
        peer = await shell.client()
        volume = (await value(peer, lambda n: p.VolumeRequested(n, "data", create=True)))["id"]
        await value(peer, upload(volume, {"f": b"content"}))
        first = await value(peer, lambda n: p.VolumeRead(n, volume, "f", size=1))
        for _ in range(2):
            await value(peer, lambda n: p.VolumeRead(n, volume, "f", size=1))
        assert len(desk._open) == 2
        assert "read too slowly" in await error(peer, lambda n: p.VolumeRead(n, volume, "f", first["handle"], 1, 1))


@on_loop
async def test_copying_and_removing(tmp_path: Path) -> None:
    async with server(tmp_path) as (shell, volumes, _):
        peer = await shell.client()
        volume = (await value(peer, lambda n: p.VolumeRequested(n, "data", create=True)))["id"]
        await value(peer, upload(volume, {"d/a": b"a", "d/e/b": b"b"}))
        await value(peer, lambda n: p.VolumeEdited(n, volume, "copy", ["/d/a"], "/x"))
        await value(peer, lambda n: p.VolumeEdited(n, volume, "copy", ["/d"], "/copy", True))
        assert tree(volumes)["x"] == b"a"
        assert tree(volumes)["copy/e/b"] == b"b"
        for action, paths, target, text in (
            ("copy", ["d"], "y", "is a directory; recursive=True"),
            ("copy", ["none"], "y", "there is no 'none' in the volume"),
            ("remove", ["d"], "", "is a directory; recursive=True"),
            ("remove", ["/"], "", "the root of a volume cannot be removed"),
            ("remove", ["../x"], "", "leads out of the volume"),
            ("eat", ["d"], "", "write remove or copy"),
        ):
            message = await error(peer, lambda n, a=action, f=paths, t=target: p.VolumeEdited(n, volume, a, f, t))
            assert text in message
        await value(peer, lambda n: p.VolumeEdited(n, volume, "remove", ["d", "x"], recursive=True))
        assert sorted(tree(volumes)) == ["copy", "copy/a", "copy/e", "copy/e/b"]


@on_loop
async def test_a_long_list_comes_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_desk, "PAGE", 2)
    async with server(tmp_path) as (shell, _, _):
        peer = await shell.client()
        volume = (await value(peer, lambda n: p.VolumeRequested(n, "data", create=True)))["id"]
        await value(peer, upload(volume, dict.fromkeys("abc", b"")))
        first = await value(peer, lambda n: p.VolumeListed(n, volume))
        assert ([one[0] for one in first["entries"]], first["more"]) == (["a", "b"], True)
        rest = await value(peer, lambda n: p.VolumeListed(n, volume, after="b"))
        assert ([one[0] for one in rest["entries"]], rest["more"]) == (["c"], False)


@on_loop
async def test_a_volume_without_a_name_goes_with_its_session(tmp_path: Path) -> None:
    async with server(tmp_path) as (shell, volumes, _):
        peer = await shell.client()
        made = await value(peer, lambda n: p.VolumeRequested(n, ephemeral=True))
        other = await value(peer, lambda n: p.VolumeRequested(n, ephemeral=True))
        mount = volumes.mount(VolumeRef(target="/data", id=made["id"]), "main", "ct-1", 0)
        await value(peer, lambda n: p.VolumeChanged(n, "release", other["id"]))
        assert not (volumes.store.directory / other["id"]).exists()
        peer.connection.close()
        await until(lambda: made["id"] in volumes._doomed)
        assert os.path.isdir(mount.lower), "a container has it still"
        volumes.ended("ct-1")
        await until(lambda: not (volumes.store.directory / made["id"]).exists())


@on_loop
async def test_what_a_container_has_written_last_is_seen_by_who_asks_after_its_end(tmp_path: Path) -> None:
    async with server(tmp_path) as (shell, volumes, _):
        peer = await shell.client()
        mount = see(volumes)
        for index in range(50):
            write(mount, f"f{index}", "x")
        volumes.ended("ct-1")
        listed = await value(peer, lambda n: p.VolumeListed(n, mount.volume))
        assert len(listed["entries"]) == 50


@on_loop
async def test_messages_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    async with server(tmp_path) as (shell, _, _):
        peer = await shell.client(p.VolumeListed(1, "vo-1", "x" * 10_000))
        assert "VolumeListed.path has 10000 characters" in await peer.refused()


@on_loop
async def test_the_files_of_a_container_that_has_ended_are_not_copied(tmp_path: Path) -> None:
    async with volumes_of(tmp_path) as volumes:
        mount = see(volumes)
        write(mount, "committed", "c")
        await volumes.commit("ct-1", mount.volume)
        write(mount, "last", "l")
        inodes = {name: os.stat(f"{mount.upper}/{name}").st_ino for name in ("committed", "last")}
        volumes.ended("ct-1")
        await volumes.settled(mount.volume)
        root = volumes.store.tree(mount.volume, volumes.store.current(mount.volume))
        assert os.stat(f"{root}/last").st_ino == inodes["last"], "nobody can write to it any more"
        assert os.stat(f"{root}/committed").st_ino != inodes["committed"], "its container could still write to it"


@on_loop
async def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    async with containers(tmp_path, 1) as (shell, volumes, (launch,)):
        mount = see(volumes, container=launch.container)
        write(mount, "f", "text")
        peer = await code_of(shell, launch)
        monkeypatch.setattr("kedge.server.volume_uppers.copy", full)
        failed = await error(peer, lambda n: p.VolumeCommitted(n, mount.volume, launch.container))
        assert failed.startswith("ServiceError: the volume vo-")
        assert "the disk is full; it is as it was" in failed
        monkeypatch.setattr(VolumeDesk, "_write", full)
        assert "takes no files: the disk is full" in await error(peer, upload(mount.volume, {"x": b"x"}))
        monkeypatch.undo()
        done = await value(peer, lambda n: p.VolumeCommitted(n, mount.volume, launch.container))
        assert done == {"left_out": []}


@pytest.mark.parametrize("kind", [p.VolumeCommitted, p.VolumeReloaded])
@on_loop
async def test_a_container_speaks_in_its_own_name_only(tmp_path: Path, kind: Any) -> None:
    async with containers(tmp_path, 2) as (shell, volumes, (one, two)):
        mount = see(volumes, container=one.container)
        write(mount, "half", "made")
        for peer in (await code_of(shell, two), await shell.client()):
            refused = await error(peer, lambda n: kind(n, mount.volume, one.container))
            assert refused == (
                f"PermissionDeniedError: only the container {one.container!r} itself can commit or reload what it has "
                "mounted, and this connection is not its; call commit() and reload() in the function that has the "
                "volume, not in a program that it starts"
            )
            assert "PermissionDeniedError" in await error(peer, lambda n: kind(n, mount.volume, ""))
        assert tree(volumes) == {}
        mine = await code_of(shell, one)
        assert await value(mine, lambda n: kind(n, mount.volume, one.container)) == {"left_out": []}
        assert tree(volumes) == {"half": b"made"}


@on_loop
async def test_who_leaves_a_desk_that_has_closed_leaves_no_work_behind(tmp_path: Path) -> None:
    """Nobody would wait for it: the loop ends."""
    async with server(tmp_path) as (_, _, desk):
        desk._ephemeral = {"se-1": ["vo-1"], "se-2": ["vo-2"]}
        desk.departed("se-1")
        assert len(desk._tasks) == 1
        await desk.close()
        assert not desk._tasks
        desk.departed("se-2")
        assert not desk._tasks
