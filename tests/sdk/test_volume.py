"""`kedge.Volume`: how it is declared, and what programs do with its files."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import kedge
from kedge.exception import (
    AlreadyExistsError,
    DeprecationError,
    ExecutionError,
    InvalidError,
    NotFoundError,
    VolumeBusyError,
)
from kedge.model import protocol as p
from kedge.model.spec import VolumeMount, VolumeRef
from kedge.sdk import client as client_module
from kedge.sdk import context, volume_mounts, volume_upload
from kedge.sdk import volume as volume_module
from kedge.sdk.client import Client
from kedge.sdk.volume import FileEntryType, Volume
from kedge.server.volume_desk import VolumeDesk
from kedge.server.volumes import Volumes
from tests.cli.live import Live
from tests.server.shell import TOKEN


def data() -> Volume:
    return kedge.Volume.from_name("data", create_if_missing=True)


# ---------------------------------------------------------------- declaring


def test_the_old_lookup_needs_no_server_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))
    with pytest.warns(DeprecationError, match=r"write Volume.from_name\(…\)"):
        found = kedge.Volume.lookup("data", create_if_missing=True)
    assert found.ref_at("/data") == VolumeRef(target="/data", name="data", create=True)


def test_a_function_with_volumes() -> None:
    app = kedge.App("app", volumes={"/shared": kedge.Volume.from_name("shared"), "/own": kedge.Volume.from_name("a")})

    @app.function(
        serialized=True,
        volumes={PurePosixPath("/own/"): data().read_only(), "/part": data().with_mount_options(sub_path="a/b/")},
    )
    def f() -> None: ...

    @app.function(serialized=True)
    def g() -> None: ...

    assert f.spec.volumes == (
        VolumeRef(target="/own", name="data", read_only=True, create=True),
        VolumeRef(target="/part", name="data", sub_path="a/b", create=True),
        VolumeRef(target="/shared", name="shared"),
    )
    assert [ref.name for ref in g.spec.volumes] == ["a", "shared"]
    varied = f.with_options(volumes={"/only": data()})
    assert [ref.target for ref in varied.spec.volumes] == ["/only"]


def test_a_class_with_volumes() -> None:
    app = kedge.App("app")

    @app.cls(serialized=True, volumes={"/data": kedge.Volume.from_id("vo-0123456789abcdef")})
    class C:
        @kedge.method()
        def f(self) -> None: ...

    assert app.registered_classes["C"].spec.volumes == (VolumeRef(target="/data", id="vo-0123456789abcdef"),)


@pytest.mark.parametrize(
    ("volumes", "text"),
    [
        ({"data": data()}, r"app.function: volumes: 'data' must be an absolute path in the container, such as '/data'"),
        ({"/": data()}, "nothing can be mounted at '/'; choose a path of its own"),
        ({"/a/../etc": data()}, r"'/a/\.\./etc' cannot be a path to mount at"),
        ({"/proc/x": data()}, "nothing can be mounted at '/proc/x'"),
        ({"/tmp/": data()}, "nothing can be mounted at '/tmp'"),
        ({"/a": data(), "/a/": data()}, "two volumes are mounted at '/a'"),
        ({"/a": data(), "/a/b": data()}, "'/a/b' lies inside of '/a', where another volume is mounted"),
        ({"/a": "data"}, r"what is mounted at '/a' must be a kedge.Volume, such as .*, not 'data'"),
        ([data()], r"volumes must be a dict such as \{'/data': kedge.Volume"),
    ],
)
def test_volumes_that_are_refused(volumes: Any, text: str) -> None:
    with pytest.raises(InvalidError, match=text):

        @kedge.App("app").function(volumes=volumes)
        def f() -> None: ...


def test_an_app_and_a_function_that_contradict_each_other() -> None:
    app = kedge.App("app", volumes={"/data": data()})
    with pytest.raises(InvalidError, match="'/data/x' lies inside of '/data'"):

        @app.function(volumes={"/data/x": data()})
        def f() -> None: ...


@pytest.mark.parametrize("make", [
    lambda: kedge.Volume.from_name("a b"),
    lambda: kedge.Volume.from_name(".hidden"),
    lambda: kedge.Volume.from_name("a", create_if_missing=1),  # type: ignore[arg-type]
    lambda: data().with_mount_options(sub_path="../x"),
    lambda: kedge.Volume.from_id(""),
])  # fmt: skip
def test_handles_that_are_refused(make: Any) -> None:
    with pytest.raises(InvalidError):
        make()


def test_a_handle_can_be_sent() -> None:
    again = pickle.loads(pickle.dumps(data().read_only()))
    assert again.ref_at("/x") == data().read_only().ref_at("/x")
    assert repr(again) == "Volume 'data'"


# ---------------------------------------------------------------- using


class Harbour:
    """A server with volumes, and this process as its client."""

    def __init__(self, live: Live, volumes: Volumes, desk: VolumeDesk) -> None:
        self.live = live
        self.volumes = volumes
        self.desk = desk

    def mount(self, container: str = "ct-1", **options: Any) -> VolumeMount:
        """A container has the volume `data`, and this process is it."""
        ref = VolumeRef(target="/data", name="data", create=True, **options)

        async def mount() -> VolumeMount:
            return self.volumes.mount(ref, "main", container, 0)

        control: Any = object()
        context.set_container(app_id="ap-1", container=container, address=self.live.shell.path, control=control)
        mounted: VolumeMount = self.live.do(mount)
        return mounted


@pytest.fixture
def harbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harbour]:
    with Live(tmp_path / "home") as live:
        made: list[Any] = []

        async def furnish() -> None:
            volumes = Volumes(tmp_path / "volumes", durable=False)
            desk = VolumeDesk(volumes, lambda session: here.container if (here := context.container()) else "")
            live.shell.office.attend(desk.answers)
            live.shell.office.departures.append(desk.departed)
            made.extend((volumes, desk))

        async def close() -> None:
            await made[1].close()
            await made[0].close()

        live.do(furnish)
        client = Client.connect(live.shell.path)
        client_module.use(client)
        try:
            yield Harbour(live, *made)
        finally:
            context.clear_container()
            client.close()
            live.do(close)


def put(volume: Volume, force: bool = False, **files: bytes) -> None:
    with volume.batch_upload(force=force) as batch:
        for name, content in files.items():
            batch.put_file(io.BytesIO(content), name)


def paths(volume: Volume, path: str = "/") -> list[str]:
    return [entry.path for entry in volume.iterdir(path)]


def test_files_go_in_and_come_out(harbour: Harbour, tmp_path: Path) -> None:
    volume = data()
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "run.sh").write_text("#!/bin/sh")
    (source / "run.sh").chmod(0o755)
    (source / "sub" / "x").write_bytes(b"x")
    with volume.batch_upload() as batch:
        batch.put_directory(source, "/tree")
        batch.put_file(source / "run.sh", PurePosixPath("/one/run.sh"), mode=0o600)
        batch.put_file(io.BytesIO(b"from memory"), "note.txt")
    assert paths(volume) == ["note.txt", "one", "one/run.sh", "tree", "tree/run.sh", "tree/sub", "tree/sub/x"]
    top = {entry.path: entry for entry in volume.listdir("/")}
    assert top["tree"].type is FileEntryType.DIRECTORY
    assert (top["note.txt"].type, top["note.txt"].size) == (FileEntryType.FILE, 11)
    assert [entry.path for entry in volume.listdir("/note.txt")] == ["note.txt"]
    assert b"".join(volume.read_file("/note.txt")) == b"from memory"
    goal = io.BytesIO()
    assert volume.read_file_into_fileobj("tree/sub/x", goal) == 1
    volume.copy_files(["/tree/run.sh"], "/copy.sh")
    volume.remove_file("/tree", recursive=True)
    assert paths(volume) == ["copy.sh", "note.txt", "one", "one/run.sh"]


def test_a_large_file_travels_in_parts(harbour: Harbour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_module, "CHUNK", 1000)
    monkeypatch.setattr(volume_upload, "CHUNK", 1000)
    content = bytes(range(256)) * 100
    volume = data()
    put(volume, large=content, exact=b"x" * 2000, empty=b"")
    parts = list(volume.read_file("large"))
    assert max(map(len, parts)) <= 1000
    assert b"".join(parts) == content
    assert b"".join(volume.read_file("exact")) == b"x" * 2000
    assert list(volume.read_file("empty")) == []
    for part in volume.read_file("large"):
        assert part == content[:1000]
        break
    harbour.live.until(lambda: not harbour.desk._open)  # the rest is not wanted


def test_an_existing_file_is_only_replaced_by_force(harbour: Harbour) -> None:
    volume = data()
    put(volume, a=b"old")
    for kind in (FileExistsError, AlreadyExistsError):
        with pytest.raises(kind, match="'a' exists in the volume; force=True"):
            put(volume, a=b"new", b=b"new")
    assert paths(volume) == ["a"], "nothing of that upload is there"
    put(volume, force=True, a=b"new")
    assert b"".join(volume.read_file("a")) == b"new"


def test_an_upload_that_fails_leaves_nothing(harbour: Harbour) -> None:
    volume = data()
    with pytest.raises(ZeroDivisionError), volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"x"), "a")
        raise ZeroDivisionError
    with (
        pytest.raises(InvalidError, match="'text' was opened as text; open it in binary mode"),
        volume.batch_upload() as batch,
    ):
        batch.put_file(io.BytesIO(b"x"), "a")
        batch.put_file(io.StringIO("x"), "text")  # type: ignore[arg-type]
    assert paths(volume) == []


def test_what_cannot_be_uploaded(harbour: Harbour, tmp_path: Path) -> None:
    with data().batch_upload() as batch:
        with pytest.raises(FileNotFoundError, match="there is no file 'none' here"):
            batch.put_file("none", "/x")
        with pytest.raises(InvalidError, match=r"is no file; put_directory\(\) takes directories"):
            batch.put_file(tmp_path, "/x")
        with pytest.raises(InvalidError, match="'/x/' is a directory; write the path of the file: '/x/NAME'"):
            batch.put_file(io.BytesIO(), "/x/")
        with pytest.raises(FileNotFoundError, match="is no directory here"):
            batch.put_directory(tmp_path / "none", "/")
        with pytest.raises(InvalidError, match="not 7"):
            batch.put_file(7, "/x")  # type: ignore[arg-type]
        with pytest.raises(InvalidError, match="its name is not UTF-8; give it another one"):
            batch.put_file(io.BytesIO(), "/bad\udcff")
        batch.put_file(io.BytesIO(), "/x")
        with pytest.raises(InvalidError, match="was put into this upload before"):
            batch.put_file(io.BytesIO(), "x")
    with pytest.raises(InvalidError, match="leads out of the volume"), data().batch_upload() as batch:
        batch.put_file(io.BytesIO(), "../x")


def test_files_that_are_not_there(harbour: Harbour) -> None:
    volume = data()
    for kind in (FileNotFoundError, NotFoundError):
        with pytest.raises(kind, match="there is no 'none' in the volume"):
            list(volume.read_file("none"))
    with pytest.raises(FileNotFoundError):
        volume.listdir("none")
    with pytest.raises(FileNotFoundError):
        volume.remove_file("none")
    with pytest.raises(InvalidError, match=r"takes a list of paths; write \['a'\]"):
        volume.copy_files("a", "b")
    with pytest.raises(NotFoundError, match=r"there is no volume 'other'.*create_if_missing=True"):
        kedge.Volume.from_name("other").listdir("/")


def test_files_travel_to_another_machine(harbour: Harbour, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TCP, where no path is shared."""
    monkeypatch.setattr(volume_module, "CHUNK", 1000)
    monkeypatch.setattr(volume_upload, "CHUNK", 1000)

    async def listen() -> str:
        return await harbour.live.shell.rpc.listen("tcp://127.0.0.1:0")

    far = Client.connect(harbour.live.do(listen), TOKEN)
    client_module.use(far)
    try:
        put(data(), f=b"x" * 5000)
        assert b"".join(data().read_file("f")) == b"x" * 5000
    finally:
        far.close()


def test_the_forms_for_event_loops(harbour: Harbour) -> None:
    async def use() -> None:
        volume = data()
        async with volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b"text"), "f")
        assert [entry.path async for entry in volume.iterdir.aio("/")] == ["f"]
        assert [part async for part in volume.read_file.aio("f")] == [b"text"]
        assert [entry.path for entry in await volume.listdir.aio("/")] == ["f"]
        await volume.copy_files.aio(["f"], "g")
        await volume.remove_file.aio("f")
        assert (await volume.info.aio()).name == "data"
        async with kedge.Volume.ephemeral() as other:
            assert await other.listdir.aio("/") == []
        await kedge.Volume.delete.aio("data")

    asyncio.run(use())


def test_volumes_by_name(harbour: Harbour) -> None:
    kedge.Volume.objects.create("one")
    with pytest.raises(AlreadyExistsError):
        kedge.Volume.objects.create("one")
    kedge.Volume.objects.create("one", allow_existing=True)
    kedge.Volume.objects.create("two", environment_name="test")
    assert [volume.name for volume in kedge.Volume.objects.list()] == ["one"]
    kedge.Volume.rename("one", "three")
    id = kedge.Volume.from_name("three").object_id
    assert kedge.Volume.from_id(id).info().name == "three"
    with pytest.warns(DeprecationError, match=r"Volume.from_name\(…\)"):
        assert kedge.Volume.lookup("three").object_id == id
    kedge.Volume.delete("three")
    kedge.Volume.objects.delete("three", allow_missing=True)
    with pytest.raises(NotFoundError):
        kedge.Volume.delete("three")


def test_a_volume_for_a_block(harbour: Harbour) -> None:
    with kedge.Volume.ephemeral() as volume:
        put(volume, f=b"x")
        assert paths(volume) == ["f"]
        assert kedge.Volume.objects.list() == []
    with pytest.raises(NotFoundError):
        paths(kedge.Volume.from_id(volume.object_id))


def test_volumes_of_an_app_are_there_when_it_starts(harbour: Harbour) -> None:
    app = kedge.App("app")

    @app.function(serialized=True, volumes={"/a": data()})
    def f() -> None: ...

    @app.function(serialized=True, volumes={"/b": kedge.Volume.from_name("missing")})
    def g() -> None: ...

    from tests.server.shell import app as blank

    spec = blank()
    client = Client.current()
    made = type(spec)(**{**{key: getattr(spec, key) for key in spec.__struct_fields__}, "functions": (f.spec,)})
    volume_mounts.provide(client, made)
    assert [one["name"] for one in client.request(lambda n: p.VolumesRequested(n))] == ["data"]
    missing = type(spec)(**{**{key: getattr(spec, key) for key in spec.__struct_fields__}, "functions": (g.spec,)})
    with pytest.raises(NotFoundError, match="there is no volume 'missing' in the environment 'main'; there are data"):
        volume_mounts.provide(client, missing)


# ---------------------------------------------------------------- inside a container


def test_commit_and_reload_outside_of_containers(harbour: Harbour) -> None:
    with pytest.raises(ExecutionError, match=r"Volume.commit\(\) works inside a container .* batch_upload\(\)"):
        data().commit()
    with pytest.raises(ExecutionError, match=r"Volume.reload\(\) works inside .* see the newest commit without it"):
        data().reload()


def test_a_commit_in_a_container(harbour: Harbour) -> None:
    mount = harbour.mount()
    Path(mount.upper, "f").write_text("text")
    volume = data()
    assert paths(volume) == []
    volume.commit()
    assert paths(volume) == ["f"]
    Path(mount.upper, "g").write_text("more")
    asyncio.run(volume.commit.aio())
    assert paths(volume) == ["f", "g"]


def test_a_volume_that_the_container_does_not_have(harbour: Harbour) -> None:
    harbour.mount()
    kedge.Volume.objects.create("other")
    with pytest.raises(ExecutionError, match=r"does not have this volume mounted; give it to its function"):
        kedge.Volume.from_name("other").commit()


def test_a_reload_with_open_files_is_a_runtime_error(harbour: Harbour) -> None:
    harbour.volumes.remount = lambda container, mount, request: harbour.volumes.answered(
        p.VolumeAnswered(request, "busy: f is open")
    )
    harbour.mount()
    volume = data()
    put(volume, f=b"x")
    for kind in (VolumeBusyError, RuntimeError, kedge.Error):
        with pytest.raises(kind, match=r"cannot be reloaded while files of it are open.*\(f is open\)"):
            volume.reload()


def test_what_a_commit_leaves_out_is_said(harbour: Harbour) -> None:
    mount = harbour.mount()
    os.mkfifo(Path(mount.upper, "pipe"))
    with pytest.warns(UserWarning, match="'pipe' is not kept in the volume data: it is a socket, a pipe or a device"):
        data().commit()
