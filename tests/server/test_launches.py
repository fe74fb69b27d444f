"""A container proves who it is with the token of its own launch, and teaches what the next ones import."""

from __future__ import annotations

from pathlib import Path

from kedge.model.payload import Payload
from kedge.model.protocol import StartContainer
from kedge.server.chunks import Place
from kedge.server.launches import MAX_PRELOAD, Launches
from kedge.server.store import Store
from tests.server.shell import POOL, app
from tests.wire.loops import on_loop


def make(launches: Launches, container: str = "ct-1", **options: object) -> str:
    spec = app(**options)
    order = StartContainer(container, POOL, "local", [2, 3])
    return launches.make(order, spec.functions[0], Payload(data=b"parameters"), spec).token


@on_loop
async def test_each_launch_has_a_token_of_its_own(tmp_path: Path) -> None:
    launches = Launches("/plane.sock", "/home", Store(tmp_path))
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
    launch = Launches("/plane.sock", "/home", Store(tmp_path)).make(
        StartContainer("ct-1", POOL, "local", [2, 3]), spec.functions[0], Payload(data=b"parameters"), spec
    )
    assert (launch.address, launch.home, launch.devices) == ("/plane.sock", "/home", (2, 3))
    assert (launch.app, launch.app_name, launch.pool) == ("ap-1", "demo", POOL)
    assert launch.parameters == Payload(data=b"parameters")
    assert launch.function is spec.functions[0]


@on_loop
async def test_imports_that_a_container_reports_are_preloaded_by_the_next_also_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open()
    launches = Launches("/plane.sock", "/home", store)
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
    assert Launches("/plane.sock", "/home", again).make(order, spec.functions[0], None, spec).preload == preload
    again.close()
