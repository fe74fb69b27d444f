"""`kedge run` as people use it: real processes, their exit codes, what they print, and what Ctrl-C does."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

LONG = 60.0
"""Seconds after which something has gone wrong; nothing here takes as long."""

APP = """
import sys, time
from pathlib import Path
import kedge

app = kedge.App("demo")

@app.function(max_containers=1)
@kedge.concurrent(max_inputs=4)
def square(x: int) -> int:
    print("squaring", x)
    print("careful", x, file=sys.stderr)
    return x * x

@app.function()
def divide(x: int, y: int) -> float:
    return x / y

@app.function()
def wait(started: str, ended: str) -> None:
    Path(started).touch()
    try:
        while True:
            time.sleep(0.01)
    except BaseException as error:
        Path(ended).write_text(type(error).__name__)
        raise

@app.local_entrypoint()
def main(n: int = 4):
    print("sum", sum(square.map(range(n))))

@app.local_entrypoint()
def divide_locally(y: int):
    divide.remote(1, y)

@app.local_entrypoint()
def wait_stubbornly(started: str, ended: str):
    try:
        wait.remote(started, ended)
    except KeyboardInterrupt:
        print("ignored", flush=True)
        time.sleep(1000)
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A state directory of its own; afterwards no process may be left that uses it."""
    home = tmp_path / "home"
    (tmp_path / "script.py").write_text(APP)
    variables = {key: value for key, value in os.environ.items() if not key.startswith("KEDGE_")}
    yield {**variables, "KEDGE_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    assert eventually(lambda: not processes_of(home)), f"left over: {processes_of(home)}"


def processes_of(home: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if any(str(home) in word for word in words):
            found.append(" ".join(words))
    return found


def eventually(condition: Callable[[], object]) -> bool:
    give_up = time.monotonic() + LONG
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True


def start(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    directory = Path(environment["KEDGE_HOME"]).parent
    return subprocess.Popen(
        [sys.executable, "-m", "kedge.cli.main", *words],
        env=environment,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(environment: dict[str, str], *words: str) -> tuple[int, str, str]:
    process = start(environment, *words)
    stdout, stderr = process.communicate(timeout=LONG)
    return process.returncode, stdout, stderr


def test_a_map_prints_its_result_and_what_containers_wrote(environment: dict[str, str]) -> None:
    code, stdout, stderr = run(environment, "run", "script.py::main", "--n", "4")
    assert code == 0, stderr
    assert sorted(stdout.splitlines()) == ["squaring 0", "squaring 1", "squaring 2", "squaring 3", "sum 14"]
    lines = stderr.splitlines()
    assert sorted(lines[:-1]) == ["careful 0", "careful 1", "careful 2", "careful 3"]
    assert lines[-1].startswith("kedge: Done: 4 inputs in 1 container, ")


def test_quiet_prints_the_result_only(environment: dict[str, str]) -> None:
    assert run(environment, "run", "-q", "script.py::main") == (0, "sum 14\n", "")
    assert run(environment, "run", "-q", "script.py::divide", "--x", "1", "--y", "4") == (0, "0.25\n", "")


def test_a_failure_in_a_container_leads_from_the_call_to_the_line(environment: dict[str, str]) -> None:
    code, stdout, stderr = run(environment, "run", "script.py::divide_locally", "--y", "0")
    assert (code, stdout) == (1, "")
    assert re.fullmatch(
        r"Traceback \(most recent call last\):\n"
        r'  File "[^"]*script\.py", line \d+, in divide_locally\n'
        r"    divide\.remote\(1, y\)\n(?: *[\^~]+\n)?"
        r'  File "remote:[^"]*script\.py", line \d+, in divide\n'
        r"    return x / y\n(?: *[\^~ ]+\n)?"
        r"ZeroDivisionError: division by zero\n\n?"
        r"kedge: Failed: 1 input in 1 container, 1 failed, \S+ s\n",
        stderr,
    ), stderr


def servers_of(home: Path) -> list[int]:
    """The servers that live in a state directory."""
    words = {"kedge.server.main", str(home)}
    return [each.pid for each in psutil.process_iter(["cmdline"]) if words <= set(each.info["cmdline"] or ())]


def test_a_file_that_fails_to_import_leaves_no_server(environment: dict[str, str]) -> None:
    home = Path(environment["KEDGE_HOME"])
    home.parent.joinpath("broken.py").write_text("import no_such_module\n")
    code, _, stderr = run(environment, "run", "broken.py")
    assert code == 2
    assert "ModuleNotFoundError: No module named 'no_such_module'" in stderr
    assert eventually(lambda: not servers_of(home)), "one had been started meanwhile"
    assert not [path for part in ("logs", "private") for path in home.glob(f"{part}/*")]


def test_one_ctrl_c_cancels_the_work(environment: dict[str, str], tmp_path: Path) -> None:
    started, ended = tmp_path / "started", tmp_path / "ended"
    process = start(environment, "run", "script.py::wait", "--started", str(started), "--ended", str(ended))
    assert eventually(lambda: started.exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 130
    assert "Stopping (Ctrl-C again to stop at once)" in stderr
    assert "kedge: Stopped: " in stderr
    assert "Traceback" not in stderr
    assert ended.read_text() == "InputCancellation"


def test_two_ctrl_c_end_the_program_whatever_it_does(environment: dict[str, str], tmp_path: Path) -> None:
    started, ended = tmp_path / "started", tmp_path / "ended"
    words = ["run", "script.py::wait_stubbornly", "--started", str(started), "--ended", str(ended)]
    process = start(environment, *words)
    assert eventually(lambda: started.exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ignored\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LONG)
    assert process.returncode == 130
    # The fixture looks that the private server and its containers go by themselves.


def test_a_detached_app_stays_until_it_is_stopped(environment: dict[str, str]) -> None:
    code, stdout, stderr = run(environment, "run", "--detach", "script.py::main")
    assert code == 0, stderr
    try:
        assert "sum 14" in stdout.splitlines()
        (app,) = re.findall(r"the app (ap-\w+) stays", stderr)
        status = run(environment, "server", "status")[1]
        assert "1 app, 1 container.\n" in status
        assert f"\n  {app} square: 1 container, " in status
        assert run(environment, "app", "stop", app) == (0, f"{app} has stopped.\n", "")
        assert "0 apps, 0 containers." in run(environment, "server", "status")[1]
        unknown = f"Error: there is no app {app!r}. `kedge app list --all` shows them with their ids.\n"
        assert run(environment, "app", "stop", app) == (1, "", unknown)
        assert run(environment, "run", "-q", "script.py::main") == (0, "sum 14\n", "")
    finally:
        assert run(environment, "server", "stop")[:2] == (0, "The server has ended.\n")


def test_on_a_terminal_there_is_progress_and_it_is_gone_in_the_end(environment: dict[str, str]) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kedge.cli.main", "run", "script.py::main"],
        env={**environment, "TERM": "xterm", "COLUMNS": "120"},
        cwd=Path(environment["KEDGE_HOME"]).parent,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    written = read_all(ours)
    assert process.wait(LONG) == 0
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", written)
    assert re.search(r"square \w{4} │ squaring 3\r\n", text)
    assert re.search(r"square \w{4} ! careful 3\r\n", text)
    assert "demo" in text
    assert re.search(r"Done: 4 inputs in 1 container, \S+ s\r\n$", text), text[-300:]


def read_all(descriptor: int) -> str:
    data = b""
    while select.select([descriptor], [], [], LONG)[0]:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # the other side is closed
            break
        data += piece
    os.close(descriptor)
    return data.decode()
