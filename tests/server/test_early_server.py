"""A private server that starts while the program is still imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kedge.sdk import server_process
from kedge.sdk.client import Client
from kedge.sdk.server_process import Early, ServerProcess

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))
    monkeypatch.delenv("KEDGE_SERVER", raising=False)
    return tmp_path


def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The servers that are started from here on."""
    found: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]
            found.append(self)

    monkeypatch.setattr(server_process.subprocess, "Popen", Popen)
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """Waits for one that nobody waits for any more."""
    os.waitpid(process.pid, 0)


def test_it_is_taken_once_and_answers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = started(monkeypatch)
    with Early():
        server = Early.take()
        assert Early.take() is None, "it is somebody's"
    assert server is not None
    Client.connect(server.address.address, server.address.token).close()
    server.close()
    assert [process.returncode for process in processes] == [0]
    assert os.listdir(home / "logs") == []


def test_what_the_program_changes_for_its_server_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = started(monkeypatch)
    with Early():
        monkeypatch.setenv("KEDGE_GPUS", "H100=8")
        assert Early.take() is None
        server = ServerProcess(private=True)
        server.close()
    assert len(processes) == 2
    end(processes[0])
    assert os.listdir(home / "logs") == os.listdir(home / "private") == []


def test_one_that_nobody_takes_ends_and_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = started(monkeypatch)
    with pytest.raises(ZeroDivisionError), Early():
        raise ZeroDivisionError
    [process] = processes
    end(process)
    assert os.listdir(home / "logs") == []
    assert not (home / "private").exists() or os.listdir(home / "private") == []


def test_where_another_server_is_named_none_is_started(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = started(monkeypatch)
    monkeypatch.setenv("KEDGE_SERVER", str(home / "elsewhere.sock"))
    with Early():
        assert Early.take() is None
    assert processes == []


def test_kedge_run_starts_one_server(home: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import kedge\n"
        "app = kedge.App('one')\n"
        "@app.function()\n"
        "def f(x):\n"
        "    return x + 1\n"
        "@app.local_entrypoint()\n"
        "def main():\n"
        "    import os, psutil\n"
        "    print(f.remote(1))\n"
        "    words = {'kedge.server.main', os.environ['KEDGE_HOME']}\n"
        "    found = [1 for each in psutil.process_iter(['cmdline']) if words <= set(each.info['cmdline'] or ())]\n"
        "    print('servers', len(found))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "kedge.cli.main", "run", str(program)], capture_output=True, text=True, check=False
    )
    assert ran.stdout.split() == ["2", "servers", "1"], ran.stderr
