"""Limits of containers hold, where the kernel enforces them and where kedge watches; and an end says which it was."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from kedge.engines import cgroups, warden
from kedge.model.spec import NAMESPACE, Bind, Isolation, Limits
from tests.engines.rig import Rig, alive, eventually, rig, with_rig
from tests.engines.sandbox import missing

FOUND = cgroups.find(kin={os.getpid(), os.getppid()})


def needs(controller: str) -> pytest.MarkDecorator:
    lacking = FOUND.lacking.get(controller)
    return pytest.mark.skipif(lacking is not None, reason=f"no control group for {controller}: {lacking}")


def limited(**limits: float) -> Isolation:
    return Isolation(limits=Limits(**limits))  # type: ignore[arg-type]


def groups(it: Rig) -> list[str]:
    """Groups that an engine has made for its containers."""
    return [
        os.path.join(directory, name)
        for root in {home.directory for home in FOUND.homes.values()}
        for place in Path(root).glob(f"kedge-{it.engine.supervisor}-*")
        for directory, names, _ in os.walk(place)
        for name in names
        if name.startswith("ct-")
    ]


EATER = """
import time
held = []
while True:
    held.append(b"x" * (1 << 20))
    time.sleep(PAUSE)
"""
"""Takes a MiB again and again."""
QUICK, SLOW = EATER.replace("PAUSE", "0"), EATER.replace("PAUSE", "0.01")


def below(source: str) -> str:
    """The same in a child process that its container survives."""
    return f"""
    import subprocess, sys, time
    subprocess.run([sys.executable, "-c", {source!r}])
    print("survived", flush=True)
    time.sleep(600)
    """


@needs("memory")
@with_rig
async def test_a_container_above_its_memory_is_ended_and_says_how_much_it_had(it: Rig) -> None:
    end, _ = await it.run(QUICK, isolation=limited(memory=64))
    assert (end.out_of_memory, end.signal) == (True, 9)
    assert end.peak_memory is not None
    assert 60 <= end.peak_memory <= 64
    assert end.reason == (
        f"out of memory: it used {end.peak_memory} MiB, and its limit is 64 MiB; write memory=(64, 128) (MiB) to "
        "give it twice as much"
    )


@needs("memory")
@with_rig
async def test_a_child_process_without_memory_takes_its_container_along(it: Rig) -> None:
    end, _ = await it.run(below(QUICK), isolation=limited(memory=64))
    assert (end.out_of_memory, end.signal, end.peak_memory is not None) == (True, 9, True)
    assert end.reason.startswith("out of memory: it used ")


@needs("memory")
@with_rig
async def test_a_neighbours_end_for_memory_explains_no_other_end(it: Rig) -> None:
    bystander = it.launch("import time; print('up', flush=True); time.sleep(600)")
    await it.says(bystander)
    await it.run(QUICK, isolation=limited(memory=64))
    os.kill((await it.started(bystander)).process, 9)
    end = await it.lost(bystander)
    assert (end.out_of_memory, end.reason) == (False, "killed by signal 9 (SIGKILL)")


@needs("memory")
@pytest.mark.skipif(FOUND.homes.get("memory", (0, ""))[0] != 1, reason="the test bounds a group of version 1")
@with_rig
async def test_one_without_limits_that_the_machine_has_no_memory_for_says_so(it: Rig) -> None:
    await it.run("print('up')")
    [shared] = Path(FOUND.homes["memory"].directory).glob(f"kedge-{it.engine.supervisor}-*/shared")
    (shared / "memory.limit_in_bytes").write_text(str(200 * 2**20))  # stands in for a machine that is full
    end, _ = await it.run(QUICK)
    assert (end.out_of_memory, end.peak_memory) == (True, None)
    assert end.reason == "killed by the kernel: the machine or its memory limit had no memory left"


@with_rig
async def test_memory_below_the_limit_is_left_alone(it: Rig) -> None:
    end, output = await it.run("held = bytearray(20 << 20); print(len(held))", isolation=limited(memory=256))
    assert (end.exit_code, end.out_of_memory, output) == (0, False, b"20971520\n")


@needs("memory")
@with_rig
async def test_a_container_that_leaves_by_itself_says_what_it_had(it: Rig) -> None:
    end, _ = await it.run("held = bytearray(b'x') * (30 << 20)", isolation=limited(memory=256))
    assert end.peak_memory is not None
    assert 30 <= end.peak_memory < 100


SPINNER = """
import os, time
end = time.monotonic() + 1.0
while time.monotonic() < end: pass
print(time.process_time())
"""


@needs("cpu")
@pytest.mark.slow
@with_rig
async def test_cpu_has_a_quota(it: Rig) -> None:
    _, output = await it.run(SPINNER, isolation=limited(cpu=0.25))
    assert float(output) < 0.6, "a quarter of a second, and as much again for the first period"


FORKS = """
import os, time
made = 0
try:
    while made < 200:
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
        made += 1
except OSError as error:
    print(made, error.strerror, flush=True)
else:
    print(made, "made", flush=True)
"""


@needs("pids")
@with_rig
async def test_processes_have_a_bound_and_all_of_them_go_with_their_container(it: Rig) -> None:
    _, output = await it.run(FORKS, isolation=limited(pids=32))
    assert output == b"31 Resource temporarily unavailable\n"
    await eventually(lambda: not groups(it))


BOMB = """
import os
print("up", flush=True)
while True:
    try:
        if os.fork() == 0:
            pass
    except OSError:
        continue
"""


@pytest.mark.slow
@needs("pids")
@with_rig
async def test_a_container_that_forks_without_end_leaves_room_for_others_and_ends_whole(it: Rig) -> None:
    bomb = it.launch(BOMB, isolation=limited(pids=64))
    await it.says(bomb)
    await it.says(bomb, b"kedge: a new process or thread was refused: this container may have 64 (", stream=2)
    end, output = await it.run("import os\nif os.fork() == 0: os._exit(0)\nprint('forked')")
    assert (end.exit_code, output) == (0, b"forked\n")
    it.engine.kill(bomb)
    assert (await it.lost(bomb)).reason == "killed on request"
    await eventually(lambda: not groups(it))


@needs("pids")
@with_rig
async def test_one_without_limits_has_no_group_of_its_own_and_is_bounded_with_all_others(it: Rig) -> None:
    _, output = await it.run("print(open('/proc/self/cgroup').read())")
    mine = [line for line in output.decode().splitlines() if f"/kedge-{it.engine.supervisor}-" in line]
    assert mine
    assert all(line.endswith("/shared") for line in mine)


NO_NAMESPACES = missing(NAMESPACE)


@pytest.mark.slow
@needs("memory")
@pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)
@with_rig
async def test_a_container_with_namespaces_of_its_own_has_the_same_limits(it: Rig, tmp_path: Path) -> None:
    def isolation(name: str, limits: Limits) -> Isolation:
        own = str(tmp_path / name)
        python = Bind(sys.prefix, sys.prefix)  # which may lie in what is hidden
        return Isolation(
            rung=NAMESPACE, shares_files=False, hidden=("/tmp",), binds=(python,), scratch=own, limits=limits
        )

    end, _ = await it.run(below(QUICK), isolation=isolation("one", Limits(memory=64)))
    assert end.reason.startswith("out of memory: it used 6"), end  # MiB, and the kernel counts in whole pages
    assert end.out_of_memory
    _, output = await it.run(FORKS, isolation=isolation("two", Limits(pids=32)))
    assert output.endswith(b" Resource temporarily unavailable\n")
    end, _ = await it.run(WRITES.format(directory="/tmp"), isolation=isolation("three", Limits(disk=4)))
    assert end.reason.endswith("MiB of disk, and ephemeral_disk=4 (MiB) is its limit")
    await eventually(lambda: not groups(it))


@needs("pids")
@pytest.mark.slow
@pytest.mark.parametrize("daemons", [False, True])
def test_one_that_forks_without_end_and_without_limits_is_ended_and_its_neighbours_go_on(
    monkeypatch: pytest.MonkeyPatch, daemons: bool
) -> None:
    monkeypatch.setenv(warden.PIDS_VARIABLE, "60")
    escape = "if os.fork(): os._exit(0)\n            os.setsid()" if daemons else "pass"

    async def play() -> None:
        async with rig() as it:
            neighbour = it.launch("import time; print('up', flush=True); time.sleep(600)")
            await it.says(neighbour)
            end, _ = await it.run(BOMB.replace("pass\n", f"{escape}\n", 1))
            assert re.fullmatch(r"ended by kedge: it had \d+ processes and threads, and may have 60", end.reason)
            assert alive((await it.started(neighbour)).process)
            end, output = await it.run("import os\nif os.fork() == 0: os._exit(0)\nprint('forked')")
            assert (end.exit_code, output) == (0, b"forked\n")

    asyncio.run(play())


@needs("pids")
@needs("memory")
@needs("cpu")
def test_no_group_outlives_the_engine() -> None:
    async def play() -> list[Path]:
        async with rig() as it:
            await it.started(it.launch("import time; time.sleep(600)", isolation=limited(memory=100, cpu=1.0)))
            return [Path(path).parent for path in groups(it)]

    found = asyncio.run(play())
    assert len(found) == 3
    assert not any(path.exists() for path in found)


@needs("pids")
def test_groups_of_a_server_that_was_killed_are_swept(tmp_path: Path) -> None:
    home = FOUND.homes["pids"]
    left = Path(home.directory) / "kedge-999999-12345" / "ct-left"
    left.mkdir(parents=True)
    engine = cgroups.Groups(FOUND)
    engine.open()
    try:
        assert not left.parent.exists()
    finally:
        engine.close()
    assert not os.path.exists(engine.controllers["pids"])


# ---------------------------------------------------------------- without control groups


@pytest.fixture
def without_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warden.SWITCH, "off")


@pytest.mark.slow
@pytest.mark.usefixtures("without_groups")
@with_rig
async def test_memory_is_watched_where_the_kernel_does_not_bound_it(it: Rig) -> None:
    end, _ = await it.run(SLOW, isolation=limited(memory=48))
    assert end.out_of_memory
    assert end.peak_memory is not None
    assert end.peak_memory > 48
    assert end.reason == (
        f"out of memory: it used {end.peak_memory} MiB, and its limit is 48 MiB; write memory=(48, 96) (MiB) to "
        "give it twice as much"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("without_groups")
@with_rig
async def test_memory_of_children_counts(it: Rig) -> None:
    end, _ = await it.run(below(SLOW), isolation=limited(memory=64))
    assert end.out_of_memory


@pytest.mark.slow
@pytest.mark.usefixtures("without_groups")
@with_rig
async def test_processes_are_counted_where_the_kernel_does_not_bound_them(it: Rig) -> None:
    bystander = it.launch("import time; print('up', flush=True); time.sleep(600)")
    await it.says(bystander)
    end, _ = await it.run(FORKS + "time.sleep(600)", isolation=limited(pids=64))
    assert re.fullmatch(r"ended by kedge: it had \d+ processes and threads, and may have 64", end.reason)
    assert alive((await it.started(bystander)).process)


@pytest.mark.usefixtures("without_groups")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core only")
@with_rig
async def test_cpu_is_bounded_by_cores(it: Rig) -> None:
    _, output = await it.run("import os; print(len(os.sched_getaffinity(0)))", isolation=limited(cpu=1.0))
    assert output == b"1\n"


# ---------------------------------------------------------------- disk

WRITES = """
import time
for number in range(8):
    with open("{directory}/%d" % number, "wb") as file:
        file.write(bytes(1 << 20))
time.sleep(600)
"""


@pytest.mark.slow
@with_rig
async def test_a_container_that_writes_too_much_is_ended(it: Rig, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    end, _ = await it.run(
        WRITES.format(directory=scratch), isolation=Isolation(scratch=str(scratch), limits=Limits(disk=4))
    )
    assert end.reason == "ended by kedge: its own files took 8 MiB of disk, and ephemeral_disk=4 (MiB) is its limit"


@with_rig
async def test_no_file_is_larger_than_the_disk_limit(it: Rig, tmp_path: Path) -> None:
    source = f"""
    try:
        with open({str(tmp_path / "large")!r}, "wb") as file:
            file.write(bytes(3 << 20))
    except OSError as error:
        print(error.strerror)
    """
    _, output = await it.run(source, isolation=limited(disk=2))
    assert output == b"File too large\n"


@with_rig
async def test_no_container_dumps_core(it: Rig) -> None:
    _, output = await it.run("import resource; print(resource.getrlimit(resource.RLIMIT_CORE)[0])")
    assert output == b"0\n"
