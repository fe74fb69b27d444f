"""Which fork server a container comes from, what fork servers hold, and when a fork is not safe."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from kedge.engines import nursery
from kedge.model.protocol import RECORDS, ContainerStarted, ForkServerReported
from tests.engines.rig import (
    Rig,
    alive,
    children,
    descriptors,
    ended,
    eventually,
    make_launch,
    rig,
    site_packages,
    with_rig,
)

PARENT = "import os; print(os.getppid())"
HELD = "import sys; print(*sorted(name for name in sys.modules if name.startswith('held')))"
SLEEP = "import time; print('up', flush=True); time.sleep(600)"


@with_rig
async def test_twenty_containers_come_from_one_fork_server(it: Rig) -> None:
    outputs = {(await it.run(PARENT))[1] for _ in range(20)}
    [report] = it.of(ForkServerReported)
    assert outputs == {b"%d\n" % report.process}
    assert (report.safe, report.reason, report.key.split("/")[0]) == (True, "", "app")


@pytest.mark.slow
@with_rig
async def test_a_burst_is_served_by_one_fork_server(it: Rig) -> None:
    containers = [it.launch(SLEEP) for _ in range(50)]
    for container in containers:
        await it.says(container)
    assert len(it.of(ForkServerReported)) == 1
    assert len({fact.process for fact in it.of(ContainerStarted)}) == 50
    for container in containers:
        it.engine.kill(container)
    for container in containers:
        await it.lost(container)


@pytest.mark.slow
@with_rig
async def test_apps_and_environments_share_nothing(it: Rig) -> None:
    parents = {
        (await it.run(PARENT, app="one"))[1],
        (await it.run(PARENT, app="two"))[1],
        (await it.run(PARENT, app="two", variables={"COLOUR": "green"}))[1],
    }
    assert len(parents) == 3
    assert len({report.key for report in it.of(ForkServerReported)}) == 3


@pytest.mark.slow
@with_rig
async def test_warming_starts_a_fork_server_and_no_container(it: Rig, tmp_path: Path) -> None:
    path = (*sys.path[1:], site_packages(tmp_path, held_one=""))
    it.engine.warm(make_launch("ct-none", "", sys_path=path, preload=("held_one",)))
    [report] = await it.fork_servers(1)
    assert it.of(ContainerStarted) == []
    assert (await it.run(HELD + PARENT.replace("import os; ", ";import os;"), sys_path=path))[1] == (
        b"held_one\n%d\n" % report.process
    )


def test_kedges_own_runtime_is_safe_to_fork_from() -> None:
    async def scenario() -> None:
        async with rig("kedge.container.main") as it:
            end, _ = await it.run("")
            assert b"the container cannot reach its server at /nowhere" in it.output(end.container, RECORDS)
            assert (await it.started(end.container)).how == "fork"
            [report] = it.of(ForkServerReported)
            assert (report.safe, report.reason) == (True, "")

    asyncio.run(scenario())


@with_rig
async def test_only_installed_modules_are_held(it: Rig, tmp_path: Path) -> None:
    (tmp_path / "held_user.py").write_text("")
    (tmp_path / "random.py").write_text("raise RuntimeError('a file of the user is no part of the runtime')")
    installed = site_packages(tmp_path, held_good="", held_broken="raise RuntimeError('no display')")
    _, output = await it.run(
        HELD,
        sys_path=(str(tmp_path), installed, *sys.path[1:]),
        preload=("held_user", "held_broken", "held_good", "held_missing", "json"),
    )
    assert output == b"held_good\n"
    [report] = it.of(ForkServerReported)
    assert report.safe
    assert report.reason == (
        "without held_user: not installed; held_broken: RuntimeError: no display; held_missing: not installed"
    )


@with_rig
async def test_the_runtime_is_prepared_before_packages_are_loaded(it: Rig, tmp_path: Path) -> None:
    path = (*sys.path[1:], site_packages(tmp_path, held_good=""))
    _, output = await it.run(
        "import engine_standin, sys; print(engine_standin.held, 'held_good' in sys.modules)",
        sys_path=path,
        preload=("held_good",),
    )
    assert output == b"[] True\n"


UNSAFE = {
    "thread": ("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()", "1 thread"),
    "socket": ("import socket; held = socket.socket()", "it left socket:"),
    "pipe": ("import os; held = os.pipe()", "it left pipe:"),
    "loop": ("import select; held = select.epoll()", r"it left anon_inode:\[eventpoll\] open"),
    "process": ("import subprocess; held = subprocess.Popen(['sleep', '600'])", "it started a process"),
    "library": ("import sys; sys.modules['jax'] = sys", "jax does not survive a fork"),
}


@pytest.mark.parametrize("what", ["thread", *(pytest.param(each, marks=pytest.mark.slow) for each in list(UNSAFE)[1:])])
def test_what_makes_a_fork_unsafe_is_found_and_started_fresh(what: str, tmp_path: Path) -> None:
    source, reason = UNSAFE[what]

    @with_rig
    async def scenario(it: Rig) -> None:
        path = (*sys.path[1:], site_packages(tmp_path, held_good="", held_unsafe=source, held_late=""))
        options = {"sys_path": path, "preload": ("held_good", "held_unsafe", "held_late")}
        end, output = await it.run(HELD, **options)
        assert (end.exit_code, output) == (0, b"\n")
        assert it.of(ContainerStarted)[0].how == "spawn"
        # Those who come later are forked from a server that holds everything but the culprit.
        refused, report = await it.fork_servers(2)
        assert (refused.safe, report.safe) == (False, True)
        assert re.match(f"importing held_unsafe: .*{reason}", refused.reason), refused.reason
        assert (await it.run(HELD, **options))[1] == b"held_good held_late\n"
        assert it.of(ContainerStarted)[-1].how == "fork"
        await ended(refused.process)
        assert len(it.of(ForkServerReported)) == 2

    scenario()


@pytest.mark.slow
@with_rig
async def test_threads_that_have_ended_are_no_objection(it: Rig, tmp_path: Path) -> None:
    source = """
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(str, range(100)))
    """
    await it.run("pass", sys_path=(*sys.path[1:], site_packages(tmp_path, held_pool=source)), preload=("held_pool",))
    [report] = it.of(ForkServerReported)
    assert (report.safe, report.reason) == (True, "")


@pytest.mark.slow
@with_rig
async def test_an_unsafe_interpreter_gets_fresh_processes_for_good(it: Rig, tmp_path: Path) -> None:
    site_packages(tmp_path, sitecustomize=UNSAFE["thread"][0])
    options = {"variables": {"PYTHONPATH": str(tmp_path / "site-packages")}}
    for _ in range(2):
        assert (await it.run("print('fine')", **options))[1] == b"fine\n"
    assert [fact.how for fact in it.of(ContainerStarted)] == ["spawn", "spawn"]
    [report] = it.of(ForkServerReported)
    assert (report.safe, report.reason) == (False, "it started 1 thread")


@pytest.mark.slow
@with_rig
async def test_a_module_that_kills_the_fork_server_is_struck_out(it: Rig, tmp_path: Path) -> None:
    deadly = "import os, sys; print('goodbye', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)"
    options = {"sys_path": (*sys.path[1:], site_packages(tmp_path, held_deadly=deadly)), "preload": ("held_deadly",)}
    assert (await it.run(HELD, **options))[1] == b"\n"
    reports = await it.fork_servers(2)
    assert [report.safe for report in reports] == [False, True]
    assert reports[0].reason == "its fork server died (signal 11): goodbye"
    assert (await it.run(HELD, **options))[1] == b"\n"
    assert [fact.how for fact in it.of(ContainerStarted)] == ["spawn", "fork"]


@with_rig
async def test_a_better_fork_server_takes_over_and_the_old_one_stays_for_its_containers(
    it: Rig, tmp_path: Path
) -> None:
    path = (*sys.path[1:], site_packages(tmp_path, held_one="", held_two=""))
    stays = it.launch("print('up', flush=True);" + SLEEP, sys_path=path)
    await it.says(stays)
    [old] = it.of(ForkServerReported)
    # Served at once by what there is.
    assert (await it.run(HELD, sys_path=path, preload=("held_one",)))[1] == b"\n"
    _, better = await it.fork_servers(2)
    assert (await it.run(HELD, sys_path=path, preload=("held_one",)))[1] == b"held_one\n"
    # What others want is added to it.
    await it.run(HELD, sys_path=path, preload=("held_two",))
    _, _, best = await it.fork_servers(3)
    assert (await it.run(HELD, sys_path=path, preload=("held_two",)))[1] == b"held_one held_two\n"
    await ended(better.process)
    assert alive(old.process)
    it.engine.kill(stays)
    await it.lost(stays)
    await ended(old.process)
    assert alive(best.process)


@pytest.mark.slow
@with_rig
async def test_the_alias_is_there_before_anything_is_loaded(it: Rig, tmp_path: Path) -> None:
    path = (*sys.path[1:], site_packages(tmp_path, held_friend="import modal; name = modal.__name__"))
    options = {"sys_path": path, "preload": ("held_friend",), "alias_modal": True}
    assert (await it.run("import held_friend; print(held_friend.name)", **options))[1] == b"kedge\n"


@with_rig
async def test_packages_in_a_directory_that_was_not_there_before_are_found(it: Rig, tmp_path: Path) -> None:
    """Python remembers that it could not look there, also where nothing has asked for these packages yet."""
    (tmp_path / "later").mkdir()
    place = tmp_path / "later" / "site-packages"
    path = (*sys.path[1:], str(place), site_packages(tmp_path, held_now=""))
    source = """
try:
    import held_later as found
except ImportError:
    found = None
print(found is not None)
"""
    options = {"preload": ("held_now",), "sys_path": path}
    assert (await it.run(source, **options))[1] == b"False\n"
    site_packages(tmp_path / "later", held_later="")
    assert (await it.run(source, **options))[1] == b"True\n"
    assert [started.how for started in it.of(ContainerStarted)] == ["fork", "fork"]


@pytest.mark.slow
@with_rig
async def test_a_loaded_blas_gets_its_threads_back(it: Rig) -> None:
    count = """
    import ctypes, numpy
    libraries = {line.split()[5] for line in open("/proc/self/maps") if "openblas" in line}
    for library in map(ctypes.CDLL, libraries):
        for name in ("scipy_openblas_get_num_threads64_", "openblas_get_num_threads64_", "openblas_get_num_threads"):
            if hasattr(library, name):
                print(getattr(library, name)())
    """
    await it.run("pass", preload=("numpy",), cpu=2.0)
    assert it.of(ForkServerReported)[0].safe
    if os.cpu_count() == 1:
        pytest.skip("one core: the library never uses more than one thread")
    assert (await it.run(count, preload=("numpy",), cpu=2.0))[1] in (b"2\n", b"")  # nothing: numpy without OpenBLAS
    assert (await it.run(count, preload=("numpy",), cpu=0.5))[1] in (b"1\n", b"")


@pytest.mark.slow
def test_idle_fork_servers_are_bounded() -> None:
    @with_rig
    async def scenario(it: Rig) -> None:
        count = nursery.MAX_FORK_SERVERS + 3
        for number in range(count):
            await it.run("pass", app=f"app-{number}")
        processes = [report.process for report in it.of(ForkServerReported)]
        await ended(*processes[: count - nursery.MAX_FORK_SERVERS])
        assert [alive(process) for process in processes].count(True) == nursery.MAX_FORK_SERVERS
        before = descriptors(it.engine.supervisor)
        await it.run("pass", app="app-0")  # comes back, and another goes
        await ended(processes[count - nursery.MAX_FORK_SERVERS])
        await it.run("pass", app="app-0")
        assert descriptors(it.engine.supervisor) == before

    scenario()


@pytest.mark.slow
@with_rig
async def test_a_stuck_preparation_is_given_up(it: Rig, tmp_path: Path) -> None:
    path = (*sys.path[1:], site_packages(tmp_path, held_stuck="import time; time.sleep(600)"))
    container = it.launch("print('fine')", sys_path=path, preload=("held_stuck",))
    it.engine.kill(container)  # waits for the server, and can be taken back
    assert (await it.lost(container)).reason == "killed before it had a process"
    [fork_server] = await eventually(lambda: children(it.engine.supervisor))
    waiting = it.launch("print('fine')", sys_path=path, preload=("held_stuck",))
    other = it.launch("print('other')")
    assert await it.says(other) == b"other\n"  # so the supervisor has heard of the one before it
    os.kill(fork_server, signal.SIGKILL)  # as the supervisor does after a minute
    assert await it.says(waiting) == b"fine\n"
    assert (await it.started(waiting)).how == "spawn"
