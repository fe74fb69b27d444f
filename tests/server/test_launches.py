"""A container proves who it is with the token of its own launch, and teaches what the next ones import."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from kedge.model.payload import Payload
from kedge.model.protocol import StartContainer
from kedge.model.spec import PROCESS, BuiltImage, ImageSpec, ImageStep
from kedge.server.chunks import Place
from kedge.server.launches import MAX_PRELOAD, Launches
from kedge.server.outfit import Outfitter
from kedge.server.store import Store
from tests.server.shell import POOL, app
from tests.wire.loops import on_loop


def make(launches: Launches, container: str = "ct-1", **options: object) -> str:
    spec = app(**options)
    order = StartContainer(container, POOL, "local", [2, 3])
    return launches.make(order, spec.functions[0], Payload(data=b"parameters"), spec).token


@on_loop
async def test_each_launch_has_a_token_of_its_own(tmp_path: Path) -> None:
    launches = Launches("/plane.sock", "/home", Store(tmp_path), Outfitter(tmp_path, "/plane.sock"))
    one, two = make(launches, "ct-1"), make(launches, "ct-2")
    assert one != two
    assert len(one) == 32
    assert launches.proves("ct-1", one)
    assert not launches.proves("ct-1", two)
    assert not launches.proves("ct-1", "")
    assert not launches.proves("ct-1", "é")
    assert not launches.proves("ct-9", "-" * 32)
    launches.forget("ct-1")
    assert not launches.proves("ct-1", one)
    assert launches.place("ct-2") == Place("ct-2", "ap-1", "demo", "square", POOL)
    assert launches.place("ct-1") is None


@on_loop
async def test_a_launch_says_all_that_the_container_needs(tmp_path: Path) -> None:
    spec = app()
    launch = Launches("/plane.sock", "/home", Store(tmp_path), Outfitter(tmp_path, "/plane.sock")).make(
        StartContainer("ct-1", POOL, "local", [2, 3]), spec.functions[0], Payload(data=b"parameters"), spec
    )
    assert (launch.address, launch.home, launch.devices) == ("/plane.sock", "/home", (2, 3))
    assert (launch.app, launch.app_name, launch.pool) == ("ap-1", "demo", POOL)
    assert launch.parameters == Payload(data=b"parameters")
    assert launch.function is spec.functions[0]


@on_loop
async def test_an_image_and_the_rungs_are_looked_up_once_for_a_launch(tmp_path: Path) -> None:
    asked: list[str] = []

    class Shelf:
        def find(self, image: str) -> BuiltImage:
            asked.append(image)
            return BuiltImage(id=image, python="/venv/bin/python", python_version="3.12", packages="/venv")

    class Rungs(dict[str, str]):
        def get(self, rung: str, *_: object) -> str:  # type: ignore[override]
            asked.append(rung)
            return ""

    outfitter = Outfitter(tmp_path, "/plane.sock", images=Shelf(), rungs=Rungs(), preferred=PROCESS)
    launches = Launches("/plane.sock", "/home", Store(tmp_path), outfitter)
    spec = app(image=ImageSpec(steps=(ImageStep("debian_slim"),), digest="d", id="im-1"))
    launch = launches.make(StartContainer("ct-1", POOL), spec.functions[0], None, spec)
    assert (launch.isolation.rung, launch.environment.python) == (PROCESS, "/venv/bin/python")
    assert asked == ["im-1", PROCESS]


@on_loop
async def test_imports_that_a_container_reports_are_preloaded_by_the_next_also_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open()
    launches = Launches("/plane.sock", "/home", store, Outfitter(tmp_path, "/plane.sock"))
    make(launches)
    launches.learn("ct-1", ["numpy", "torch"])
    launches.learn("ct-9", ["never"])
    launches.learn("ct-1", [f"module{i}" for i in range(200)])
    spec = app(preload=("mine",))
    order = StartContainer("ct-2", POOL)
    preload = launches.make(order, spec.functions[0], None, spec).preload
    assert preload[:3] == ("mine", "numpy", "torch")
    assert len(preload) == MAX_PRELOAD
    store.close()
    again = Store(tmp_path)
    again.open()
    later = Launches("/plane.sock", "/home", again, Outfitter(tmp_path, "/plane.sock"))
    assert later.make(order, spec.functions[0], None, spec).preload == preload
    again.close()


@on_loop
async def test_the_output_of_all_versions_of_a_deployed_app_belongs_to_it(tmp_path: Path) -> None:
    launches = Launches("/plane.sock", "/home", Store(tmp_path), Outfitter(tmp_path, "/plane.sock"))
    spec = replace(app(), deployment="ap-deployed", version=3)
    launch = launches.make(StartContainer("ct-1", POOL), spec.functions[0], None, spec)
    assert launch.app == "ap-1", "what runs in it calls its own version"
    assert launches.place("ct-1") == Place("ct-1", "ap-deployed", "demo", "square", POOL)


@on_loop
async def test_code_of_another_machine_runs_in_the_servers_own_python_without_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDGE_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    work = tmp_path / "work"
    launches = Launches("/plane.sock", "/home", Store(tmp_path), Outfitter(tmp_path, "/plane.sock", str(work)))
    spec = app()
    spec = replace(spec, environment=replace(spec.environment, python="", alias_modal=True))
    environment = launches.make(StartContainer("ct-1", POOL), spec.functions[0], None, spec).environment
    assert environment.python == sys.executable
    assert environment.python_version == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert environment.directory == str(work)
    assert work.is_dir()
    assert environment.alias_modal
    variables = dict(environment.variables)
    assert variables["LANG"] == "de_DE.UTF-8"
    assert variables["PATH"]
    assert "secret" not in variables.values()
    assert any(path.endswith("site-packages") for path in environment.sys_path)
    assert all(Path(path).name != "main" for path in environment.sys_path), "no directory of whoever started the server"
