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

from kedge.engines import kernel, namespaces
from kedge.model import protocol as p
from kedge.server import peers
from tests.server.shell import app, running
from tests.wire.loops import on_loop

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
