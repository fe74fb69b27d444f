"""What the process engine promises about containers: how they start, what is heard of them, how they end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

import kedge
from kedge.model.protocol import RECORDS, ContainerLost, ContainerStarted, OutputCaptured
from tests.engines.rig import Rig, alive, descriptors, ended, make_launch, mapped, with_rig

SLEEP = "import time; print('up', flush=True); time.sleep(600)"


@with_rig
async def test_a_container_is_forked_and_its_end_is_reported_after_its_output(it: Rig) -> None:
    end, output = await it.run("import os; print(os.getpid())")
    [started] = it.of(ContainerStarted)
    assert started.how == "fork"
    assert output == b"%d\n" % started.process
    assert (end.exit_code, end.signal, end.reason, end.out_of_memory) == (0, None, "left by itself", False)
    assert it.facts[-1] is end


@with_rig
async def test_kedge_is_the_servers_own_whatever_an_environment_has_installed_as_kedge(it: Rig, tmp_path: Path) -> None:
    fake = tmp_path / "site-packages" / "kedge"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise RuntimeError('another version of kedge')")
    packages = str(fake.parent)
    path = (packages, *(entry for entry in sys.path if entry))
    end, output = await it.run("import kedge; print(kedge.__file__)", variables={"PYTHONPATH": packages}, sys_path=path)
    assert (output.decode().strip(), end.exit_code) == (kedge.__file__, 0)


@with_rig
async def test_an_exit_code_is_reported(it: Rig) -> None:
    end, _ = await it.run("raise SystemExit(7)")
    assert (end.exit_code, end.signal, end.reason) == (7, None, "left with exit code 7")


@with_rig
async def test_a_deadly_signal_is_reported(it: Rig) -> None:
    end, _ = await it.run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert (end.exit_code, end.signal, end.reason) == (None, signal.SIGSEGV, "killed by signal 11 (SIGSEGV)")


@with_rig
async def test_a_container_killed_from_outside_is_noticed(it: Rig) -> None:
    container = it.launch(SLEEP)
    await it.says(container)
    os.kill((await it.started(container)).process, signal.SIGKILL)
    end = await it.lost(container)
    assert (end.signal, end.out_of_memory, end.reason) == (signal.SIGKILL, False, "killed by signal 9 (SIGKILL)")


@pytest.mark.slow
@with_rig
async def test_an_exception_of_the_runtime_ends_on_stderr(it: Rig) -> None:
    end, _ = await it.run("raise ValueError('broken')")
    assert end.exit_code == 70
    assert b"ValueError: broken" in it.output(end.container, 2)


@with_rig
async def test_output_is_complete_including_binary_and_the_last_words(it: Rig) -> None:
    end, output = await it.run(
        """
        import os, sys
        block = bytes(range(256)) * 4096
        for _ in range(4):
            view = memoryview(block)
            while view:
                view = view[os.write(1, view):]
        os.write(2, b"the last words")
        os.kill(os.getpid(), 9)
        """
    )
    assert output == bytes(range(256)) * 4096 * 4
    assert it.output(end.container, 2) == b"the last words"
    assert {(fact.app, fact.pool) for fact in it.of(OutputCaptured)} == {("ap-app", "fu-app-f")}
    assert all(fact.at > 0 for fact in it.of(OutputCaptured))


@with_rig
async def test_many_lines_travel_in_few_messages(it: Rig) -> None:
    _, output = await it.run("for number in range(20_000): print(number)")
    assert output == b"".join(b"%d\n" % number for number in range(20_000))
    assert len(it.of(OutputCaptured)) < 2_000


@with_rig
async def test_a_container_has_a_session_of_its_own_no_input_and_no_foreign_descriptors(it: Rig) -> None:
    _, output = await it.run(
        """
        import os
        print(os.getsid(0) == os.getpid(), os.read(0, 1))
        print([number for number in range(3, 256) if number != records and os.path.exists(f"/proc/self/fd/{number}")])
        """
    )
    assert output == b"True b''\n[]\n"


RECORDING = """
import os, subprocess
assert not os.get_inheritable(records) and not os.get_blocking(records)
assert os.write(records, b"a record") == 8
listing = subprocess.run(["ls", "/proc/self/fd"], close_fds=False, capture_output=True, text=True).stdout.split()
print(len(listing))
"""


@with_rig
async def test_a_forked_container_has_a_pipe_for_records_which_its_children_do_not_have(it: Rig) -> None:
    end, output = await it.run(RECORDING)
    assert it.of(ContainerStarted)[0].how == "fork"
    assert (output, it.output(end.container, 2)) == (b"4\n", b""), "three, and the one that lists them"
    assert it.output(end.container, RECORDS) == b"a record"
    assert it.facts[-1] is end


@with_rig
async def test_so_has_a_fresh_one(it: Rig, tmp_path: Path) -> None:
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "held_open.py").write_text("import os; held = os.pipe()")
    path = (*sys.path[1:], str(tmp_path / "site-packages"))
    end, output = await it.run(RECORDING, sys_path=path, preload=("held_open",))
    assert it.of(ContainerStarted)[0].how == "spawn"
    assert (output, it.output(end.container, 2)) == (b"4\n", b"")
    assert it.output(end.container, RECORDS) == b"a record"


@pytest.mark.slow
@with_rig
async def test_the_environment_is_the_users(it: Rig, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("value = 'from the user'")
    _, output = await it.run(
        "import os, sys, mine; print(os.getcwd(), os.environ['COLOUR'], mine.value, sys.path[0], flush=True)",
        variables={"COLOUR": "green"},
        sys_path=(str(tmp_path), *sys.path[1:]),
        directory=str(tmp_path),
    )
    assert output.decode().split("\n")[0] == f"{tmp_path} green from the user {tmp_path}"


@pytest.mark.slow
@with_rig
async def test_a_missing_directory_is_survived(it: Rig) -> None:
    end, output = await it.run("import os; print(os.getcwd())", directory="/not/there")
    assert (output, end.exit_code) == (b"/\n", 0)


@pytest.mark.slow
@with_rig
async def test_siblings_draw_different_random_numbers(it: Rig) -> None:
    source = "import random, numpy; print(random.random(), numpy.random.random())"
    await it.run(source, preload=("numpy", "numpy.random"))
    assert (await it.fork_servers(1))[0].safe
    ends = [await it.run(source, preload=("numpy", "numpy.random")) for _ in range(3)]
    assert len({number for _, output in ends for number in output.split()}) == 6


@pytest.mark.slow
@with_rig
async def test_numerical_libraries_get_the_threads_of_the_cpu(it: Rig) -> None:
    source = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['OPENBLAS_NUM_THREADS'])"
    assert (await it.run(source))[1] == b"1 1\n"
    assert (await it.run(source, cpu=2.5))[1] == b"3 3\n"
    assert (await it.run(source, cpu=2.5, variables={"OMP_NUM_THREADS": "5"}))[1] == b"5 3\n"


@pytest.mark.slow
@with_rig
async def test_an_interpreter_that_is_not_there_is_a_lost_container(it: Rig) -> None:
    end, _ = await it.run("pass", python="/not/a/python")
    assert end.exit_code == 127
    assert b"cannot start /not/a/python: " in it.output(end.container, 2)


# ---------------------------------------------------------------- ending


@with_rig
async def test_a_kill_without_grace_ends_it_at_once(it: Rig) -> None:
    container = it.launch(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    await it.says(container)
    it.engine.kill(container)
    end = await it.lost(container)
    assert (end.signal, end.reason, end.out_of_memory) == (signal.SIGKILL, "killed on request", False)


@with_rig
async def test_a_kill_with_grace_lets_it_leave(it: Rig) -> None:
    container = it.launch(
        """
        import signal, sys
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        print("up", flush=True)
        signal.sigwait([signal.SIGTERM])
        print("bye")
        sys.exit(3)
        """
    )
    await it.says(container)
    it.engine.kill(container, 600.0)
    assert (await it.lost(container)).exit_code == 3
    assert it.output(container) == b"up\nbye\n"


@pytest.mark.slow
@with_rig
async def test_grace_ends(it: Rig) -> None:
    container = it.launch(
        """
        import signal, time
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        print("up", flush=True)
        signal.sigwait([signal.SIGTERM])
        print("no", flush=True)
        time.sleep(600)
        """
    )
    await it.says(container)
    it.engine.kill(container, 0.05)
    await it.says(container, b"no")
    assert (await it.lost(container)).signal == signal.SIGKILL


@with_rig
async def test_a_container_can_be_killed_before_it_has_a_process(it: Rig) -> None:
    container = it.launch(SLEEP)
    it.engine.kill(container)
    end = await it.lost(container)
    assert end.reason in ("killed before it had a process", "killed on request")
    await it.run("pass")
    assert len(it.of(ContainerLost, container)) == 1
    it.engine.kill(container)  # gone already: nothing happens
    it.engine.kill("ct-unknown")
    assert (await it.run("pass"))[0].exit_code == 0


@with_rig
async def test_grace_counts_for_a_container_that_is_just_being_born(it: Rig) -> None:
    await it.run("pass")
    container = it.launch(SLEEP)
    it.engine.kill(container, 600.0)  # in one frame with its launch: its process does not exist yet
    assert (await it.lost(container)).signal == signal.SIGTERM


DESCENDANTS = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
other_session = subprocess.Popen(["sleep", "600"], start_new_session=True)
read, write = os.pipe()
if os.fork() == 0:                       # a daemon as the book says: new session, second fork, parent gone
    os.setsid()
    if os.fork() == 0:
        deep = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"], start_new_session=True)
        os.write(write, f"{os.getpid()} {deep.pid}".encode())
        time.sleep(600)
    os._exit(0)
os.wait()
print(child.pid, other_session.pid, os.read(read, 100).decode(), flush=True)
"""


ENDS = ["time.sleep(600)", "sys.exit()", "os._exit(1)", "os.kill(os.getpid(), 9)"]


@pytest.mark.parametrize("last", [ENDS[0], *(pytest.param(end, marks=pytest.mark.slow) for end in ENDS[1:])])
def test_nothing_that_a_container_started_outlives_it(last: str) -> None:
    @with_rig
    async def scenario(it: Rig) -> None:
        container = it.launch(DESCENDANTS + last)
        descendants = [int(word) for word in (await it.says(container)).split()]
        assert len(descendants) == 4
        if last.startswith("time"):
            assert all(alive(process) for process in descendants)
            it.engine.kill(container)
        await it.lost(container)
        await ended(*descendants)

    scenario()


@pytest.mark.slow
@with_rig
async def test_descendants_of_others_stay(it: Rig) -> None:
    stays = it.launch(DESCENDANTS + "time.sleep(600)")
    goes = it.launch(DESCENDANTS)
    staying = [int(word) for word in (await it.says(stays)).split()]
    going = [int(word) for word in (await it.says(goes)).split()]
    await it.lost(goes)
    await ended(*going)
    assert all(alive(process) for process in staying)
    assert it.of(ContainerLost, stays) == []


# ---------------------------------------------------------------- books


@with_rig
async def test_no_descriptor_is_left_behind(it: Rig) -> None:
    async def life(number: int) -> None:
        container = it.launch("import subprocess; print('x'); subprocess.Popen(['sleep', '600'])")
        if number % 2:
            it.engine.kill(container)
        await it.lost(container)

    await life(0)
    fork_server = (await it.fork_servers(1))[0].process
    before = descriptors(it.engine.supervisor), descriptors(fork_server)
    for number in range(20):
        await life(number)
    await it.run("pass")
    assert (descriptors(it.engine.supervisor), descriptors(fork_server)) == before


@with_rig
async def test_the_supervisor_stays_small(it: Rig) -> None:
    await it.run("pass")
    files = mapped(it.engine.supervisor)
    assert "msgspec" in files
    assert [name for name in ("_asyncio", "_pickle", "_ssl", "libcrypto", "_sqlite3") if name in files] == []


@pytest.mark.slow
@with_rig
async def test_a_launch_said_twice_is_one_container(it: Rig) -> None:
    launch = make_launch("ct-twice", "print('once'); input()")
    it.engine.start(launch)
    it.engine.start(launch)
    await it.lost("ct-twice")
    await it.run("pass")
    assert len(it.of(ContainerStarted, "ct-twice")) == 1
    assert it.output("ct-twice") == b"once\n"
