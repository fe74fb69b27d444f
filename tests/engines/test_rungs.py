"""The same promises on every rung of the isolation ladder that this machine has."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from kedge.model.protocol import ContainerStarted
from kedge.model.spec import BUBBLEWRAP, GVISOR, NAMESPACE, OCI, Bind, VolumeMount
from tests.engines.rig import Rig, ended, eventually, rig
from tests.engines.sandbox import isolated, mounted, needs, scratches

pytestmark = pytest.mark.slow
SLEEP = "import time; print('up', flush=True); time.sleep(600)"


@pytest.fixture(params=[NAMESPACE, BUBBLEWRAP, OCI, GVISOR])
def rung(request: pytest.FixtureRequest) -> str:
    needs(request.param)
    return str(request.param)


def play(scenario: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with rig() as it:
            await scenario(it)

    asyncio.run(run())


def test_it_is_apart_and_leaves_nothing(rung: str, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("secret")
    (tmp_path / "shown").write_text("text")
    source = f"""
import json, os, socket
open("/tmp/mine", "w").write("x")
refused = ""
try:
    open("/shown.txt", "w")
except OSError as error:
    refused = error.strerror
with open("/usr/mine", "w") as file:
    file.write("x")
print(json.dumps([
    len([name for name in os.listdir("/proc") if name.isdigit()]) < 4,
    socket.gethostname(), os.path.exists({str(tmp_path / "private")!r}), open("/shown.txt").read(), refused,
]))
"""

    async def scenario(it: Rig) -> None:
        isolation = isolated(tmp_path, rung, binds=(Bind(str(tmp_path / "shown"), "/shown.txt"),))
        end, output = await it.run(source, isolation=isolation)
        assert (end.exit_code, it.output(end.container, 2)) == (0, b"")
        assert json.loads(output) == [True, end.container, False, "text", "Read-only file system"]
        assert not os.path.exists("/usr/mine")
        await eventually(lambda: not scratches(tmp_path))

    play(scenario)
    assert mounted(tmp_path) == []


def test_it_reaches_the_socket_of_its_server_and_no_network(rung: str, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    source = f"""
import socket
socket.socket(socket.AF_UNIX).connect({str(path)!r})
try:
    socket.create_connection(("192.0.2.1", 80), timeout=10)
except OSError as error:
    print("only that", flush=True)
"""

    async def scenario(it: Rig) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()
            binds = (Bind(str(path), str(path), read_only=False),)
            end, output = await it.run(source, isolation=isolated(tmp_path, rung, network=False, binds=binds))
        assert (end.exit_code, output) == (0, b"only that\n"), it.output(end.container, 2)

    play(scenario)


def test_changes_of_a_volume_are_kept_apart(rung: str, tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "a").write_text("first")
    mount = VolumeMount(
        target="/data",
        volume="v",
        lower=str(tmp_path / "lower"),
        upper=str(tmp_path / "upper"),
        work=str(tmp_path / "work"),
    )

    async def scenario(it: Rig) -> None:
        source = "open('/data/b', 'w').write('mine'); print(open('/data/a').read())"
        end, output = await it.run(source, isolation=isolated(tmp_path, rung, volumes=(mount,)))
        assert (end.exit_code, output) == (0, b"first\n"), it.output(end.container, 2)

    play(scenario)
    assert (tmp_path / "upper" / "b").read_text() == "mine"
    assert os.listdir(tmp_path / "lower") == ["a"]


def test_ends_are_told_apart(rung: str, tmp_path: Path) -> None:
    async def scenario(it: Rig) -> None:
        end, _ = await it.run("raise SystemExit(7)", isolation=isolated(tmp_path, rung))
        assert (end.exit_code, end.signal) == (7, None)
        end, _ = await it.run("import os; os.kill(os.getpid(), 11)", isolation=isolated(tmp_path, rung))
        assert (end.exit_code, end.signal) == (None, 11)
        leaves = "import signal, sys; signal.signal(15, lambda *_: sys.exit(5)); " + SLEEP
        container = it.launch(leaves, isolation=isolated(tmp_path, rung))
        await it.says(container)
        it.engine.kill(container, 60.0)
        end = await it.lost(container)
        assert (end.exit_code, end.signal) == (5, None)
        container = it.launch(SLEEP, isolation=isolated(tmp_path, rung))
        await it.says(container)
        it.engine.kill(container)
        end = await it.lost(container)
        assert (end.signal, end.reason) == (9, "killed on request")

    play(scenario)


def test_it_ends_with_its_supervisor(rung: str, tmp_path: Path) -> None:
    marker = f"kedge-test-{os.getpid()}-{rung}"

    def running() -> list[int]:
        found = []
        for name in filter(str.isdecimal, os.listdir("/proc")):
            try:
                if marker.encode() in Path(f"/proc/{name}/environ").read_bytes():
                    found.append(int(name))
            except OSError:
                continue
        return found

    async def scenario(it: Rig) -> None:
        container = it.launch(SLEEP, isolation=isolated(tmp_path, rung), variables={"MARKER": marker})
        await it.says(container)
        process = it.of(ContainerStarted, container)[0].process
        os.kill(it.engine.supervisor, 9)
        await it.lost(container)
        await ended(process)
        await eventually(lambda: not running())

    play(scenario)
