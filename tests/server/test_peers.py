"""Code in containers that are kept apart is known by its processes, and cannot have others do what it cannot."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kedge.engines import kernel, namespaces
from kedge.model import protocol as p
from kedge.model.ids import function_id
from kedge.model.spec import Launch
from kedge.server import peers
from tests.server.fake_engine import FakeEngine, hold
from tests.server.shell import Peer, Shell, app, inputs, running
from tests.wire.loops import on_loop, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")

ASKED: list[tuple[Callable[[int], Any], str]] = [
    (lambda n: p.AppCreated(n, app()), "run an app"),
    (lambda n: p.AppDeployed(n, app(ephemeral=False)), "deploy an app"),
    (lambda n: p.TokensChanged(n, "create", name="mine"), "see or change tokens"),
    (lambda n: p.ContainersRequested(n, secrets=True), "see the values of secrets"),
    (lambda n: p.FunctionsRequested(n, secrets=True), "see the values of secrets"),
]


@pytest.mark.parametrize(("make", "what"), ASKED)
@on_loop
async def test_code_inside_cannot_have_itself_let_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[int], Any], what: str
) -> None:
    monkeypatch.setattr(peers, "is_inside", lambda process: process == os.getpid())
    async with running(tmp_path) as shell:
        client = await shell.client()
        error = (await client.ask(make)).error
        assert error is not None
        assert error.type == "PermissionDeniedError"
        assert f"code in a container cannot {what}" in error.message
        assert 'isolation="process"' in error.message
        assert (await client.ask(lambda n: p.ContainersRequested(n))).error is None, "everything else goes on"


@on_loop
async def test_code_inside_ends_and_watches_its_own_app_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Callable[[int], Any], str]] = [
        (lambda n: p.AppStopped("ap-2", n), "stop another app"),
        (lambda n: p.AppStopped("dp-2", n), "stop another app"),
        (lambda n: p.ContainerStopRequested(n, there.container), "stop a container of another app"),
        (lambda n: p.ContainerStopRequested(n, "ct-99"), "stop a container of another app"),
        (lambda n: p.CallsRequested(n, "f", 1), "list the calls of functions"),
        (lambda n: p.SecretsChanged(n, "update", "s", values={"NAME": "x"}), "change secrets"),
        (lambda n: p.SecretsChanged(n, "delete", "s"), "change secrets"),
    ]
    async with running(tmp_path, FakeEngine(hold)) as shell:
        here, there = [await _held(shell, f"ap-{number}") for number in (1, 2)]
        monkeypatch.setattr(peers, "is_inside", lambda process: process == os.getpid())
        stranger = await _inside(shell, None)
        peer = await _inside(shell, here)
        for make, what in asked:
            for one in (stranger, peer):
                error = (await one.ask(make)).error
                assert error is not None
                assert error.type == "PermissionDeniedError"
                assert error.message == (
                    f"code in a container cannot {what}; do it from outside, or give the app that is to do it "
                    'isolation="process"'
                )
        peer.say(p.OutputSubscribed("ap-2"), p.OutputSubscribed("ap-1"))
        reply = await peer.ask(lambda n: p.ContainerStopRequested(n, here.container, graceful=False))
        assert (reply.error, reply.value) == (None, {"container": here.container})
        assert [shell.output.watchers(app) != [] for app in ("ap-1", "ap-2")] == [True, False]
        assert shell.plane.apps["ap-2"].stopped == ""
        neighbour = await _inside(shell, there)
        assert (await neighbour.ask(lambda n: p.AppStopped("ap-2", n))).error is None


async def _held(shell: Shell, id: str) -> Launch:
    """What a container of a new app was started with, which holds an input."""
    known = list(shell.engine.containers)
    call = f"fc-{id}"
    pool = function_id(id, "square")
    await shell.client(p.AppCreated(1, app(id)), replace(inputs("a", call=call), pool=pool))
    await until(lambda: any(one.held for name, one in shell.engine.containers.items() if name not in known))
    return next(one.launch for name, one in shell.engine.containers.items() if name not in known)


async def _inside(shell: Shell, launch: Launch | None) -> Peer:
    peer = await shell.stranger()
    peer.say(p.Hello(p.CLIENT, launch.container, launch.token) if launch else p.Hello(p.CLIENT))
    await peer.hear(p.Welcome)
    return peer


def test_a_process_beside_this_one_is_not_inside() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(["sleep", "60"]) as child:
        assert peers.process_of(ours) == os.getpid()
        assert not any(map(peers.is_inside, (os.getpid(), child.pid, 1, 0)))
        child.kill()
    assert peers.is_inside(child.pid), "who has gone could have been anybody"


@pytest.mark.skipif(not namespaces.is_administrator(), reason="only administrators make namespaces directly")
def test_a_process_in_a_pid_namespace_below_this_one_is_inside() -> None:
    source = f"""
import os, time
from kedge.engines import kernel
process = kernel.clone({kernel.NEWPID})
if process == 0:
    os.fork()
    time.sleep(600)
print(process, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            init = int(child.stdout.readline())
            assert peers.is_inside(init)
            assert not peers.is_inside(child.pid)
        finally:
            os.kill(init, signal.SIGKILL)
            child.kill()
