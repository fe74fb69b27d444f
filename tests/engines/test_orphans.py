"""Nothing outlives what holds it: not the server, not the supervisor, not a fork server, however they end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kedge.engines import system
from kedge.model.protocol import ContainerLost, ContainerStarted, ForkServerReported
from tests.engines.rig import PATIENCE_S, Rig, alive, ended, site_packages, with_rig

ROOT = Path(__file__).parents[2]
FAMILY = """
import os, subprocess, time
child = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"])
escaped = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(os.getpid(), child.pid, escaped.pid, flush=True)
time.sleep(600)
"""
SERVER = f"""
import asyncio, json, sys
from tests.engines.rig import Rig, rig
from kedge.engines import system
from kedge.model.protocol import ForkServerReported

async def main():
    async with rig() as it:
        containers = [it.launch({FAMILY!r}) for _ in range(3)]
        found = [it.engine.supervisor]
        for container in containers:
            found += [int(word) for word in (await it.says(container)).split()]
        found += [fact.process for fact in it.of(ForkServerReported)]
        print(json.dumps(found), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_nothing_outlives_the_server(number: int) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, cwd=ROOT)
    assert server.stdout is not None
    with server, server.stdout:
        processes = json.loads(server.stdout.readline())
        assert len(processes) == 1 + 3 * 3 + 1
        assert all(alive(process) for process in processes)
        server.send_signal(number)
        server.wait(PATIENCE_S)
        asyncio.run(ended(*processes))


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_containers_die_with_the_supervisor_and_another_takes_over(number: int) -> None:
    @with_rig
    async def scenario(it: Rig) -> None:
        first = it.engine.supervisor
        forked = it.launch("import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid); time.sleep(600)")
        grandchild = int(await it.says(forked))
        processes = [
            first,
            (await it.started(forked)).process,
            grandchild,
            *(fact.process for fact in it.of(ForkServerReported)),
        ]
        os.kill(first, number)
        end = await it.lost(forked)
        cause = "signal 9" if number == signal.SIGKILL else "exit code 0"
        assert end.reason.startswith(f"the supervisor of its machine died ({cause}")
        after = await it.run("print('again')")  # asked for while there is none, perhaps
        assert after[1] == b"again\n"
        assert it.engine.supervisor != first
        await ended(*processes)
        assert len(it.of(ContainerLost, forked)) == 1

    scenario()


@pytest.mark.slow
@with_rig
async def test_fresh_containers_die_with_the_supervisor_too(it: Rig, tmp_path: Path) -> None:
    unsafe = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    path = (*sys.path[1:], site_packages(tmp_path, unsafe=unsafe))
    container = it.launch(FAMILY, sys_path=path, preload=("unsafe",))
    own, child, _ = (int(word) for word in (await it.says(container)).split())
    assert (await it.started(container)).how == "spawn"
    os.kill(it.engine.supervisor, signal.SIGKILL)
    await it.lost(container)
    await ended(own, child)


@pytest.mark.slow
@with_rig
async def test_containers_die_with_their_fork_server_and_the_next_ones_get_another(it: Rig) -> None:
    containers = [it.launch(FAMILY) for _ in range(3)]
    families = [[int(word) for word in (await it.says(container)).split()] for container in containers]
    [fork_server] = it.of(ForkServerReported)
    os.kill(fork_server.process, signal.SIGKILL)
    for container in containers:
        end = await it.lost(container)
        assert (end.signal, end.reason) == (signal.SIGKILL, "its fork server died")
    await ended(*(process for family in families for process in family))
    assert (await it.run("print('again')"))[1] == b"again\n"
    reports = it.of(ForkServerReported)
    assert [fact.safe for fact in reports] == [True, False, True]
    assert reports[1].reason == "its fork server died (signal 9)"
    assert [fact.how for fact in it.of(ContainerStarted)] == ["fork"] * 4


@pytest.mark.slow
@with_rig
async def test_a_lineage_whose_fork_servers_keep_dying_gets_fresh_processes(it: Rig) -> None:
    for _ in range(3):
        container = it.launch(FAMILY)
        await it.says(container)
        os.kill(it.of(ForkServerReported)[-1].process, signal.SIGKILL)
        await it.lost(container)
        await it.until(lambda: not it.of(ForkServerReported)[-1].safe)
    end, _ = await it.run("pass")
    assert (end.exit_code, it.of(ContainerStarted)[-1].how) == (0, "spawn")


@pytest.mark.slow
@with_rig
async def test_a_stopped_fork_server_hides_no_death(it: Rig) -> None:
    if not system.HAS_PIDFD:
        pytest.skip("without pidfds only the fork server knows")
    container = it.launch("import time; print('up', flush=True); time.sleep(600)")
    await it.says(container)
    [fork_server] = it.of(ForkServerReported)
    os.kill(fork_server.process, signal.SIGSTOP)
    it.engine.kill(container)
    end = await it.lost(container)
    assert (end.exit_code, end.signal) == (None, None)
    os.kill(fork_server.process, signal.SIGCONT)
    assert (await it.run("print('again')"))[1] == b"again\n"
    assert it.of(ForkServerReported) == [fork_server]
