"""The command itself: versions, help, and what it costs to ask for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kedge._version import __version__
from kedge.cli.main import main
from kedge.sdk import server_process


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"kedge {__version__}\n"


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["logs", "--help"], ["server", "--help"], ["app", "stop", "--help"]]
)
def test_help_answers(words: list[str]) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_help_imports_neither_rich_nor_the_display() -> None:
    heavy = {"rich", "psutil", "kedge.cli.run"}
    code = f"import sys, kedge.cli.main; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_server_commands_where_none_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))
    monkeypatch.delenv("KEDGE_SERVER", raising=False)
    status = CliRunner().invoke(main, ["server", "status"])
    assert (status.exit_code, status.output.startswith("No server is running.")) == (1, True)
    stop = CliRunner().invoke(main, ["server", "stop"])
    assert (stop.exit_code, stop.output) == (0, "No server is running.\n")
    app = CliRunner().invoke(main, ["app", "stop", "ap-1"])
    assert app.exit_code == 1
    assert "Error: no server is running, so no app is either." in app.output


def test_a_server_that_was_killed_but_has_a_process_entry_left_is_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))
    (tmp_path / "server").mkdir()
    address = str(tmp_path / "server" / "plane.sock")
    (tmp_path / "server" / "server.json").write_text(json.dumps({"address": address, "process": os.getpid()}))

    class Started:
        def __init__(self, private: bool, options: list[str]) -> None:
            self.facts = {"address": "the/new.sock", "tcp": "", "web": "http://here:1", "notes": []}

    monkeypatch.setattr(server_process, "ServerProcess", Started)
    start = CliRunner().invoke(main, ["server", "start"])
    assert "The server listens at the/new.sock, and for HTTP at http://here:1." in start.output


@pytest.mark.parametrize("words", [["run", "nothing.py"], ["logs"], ["server", "status"]])
def test_ctrl_c_while_a_command_begins_is_no_traceback(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kedge.cli.run.run", interrupted)
    monkeypatch.setattr("kedge.cli.logs.show", interrupted)
    monkeypatch.setattr("kedge.cli.server.status", interrupted)
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_program_without_streams_starts_all_the_same(closed: str) -> None:
    """Whoever opens a file then must not get the number of a stream."""
    code = (
        "import os, sys; from kedge.cli.main import open_closed_streams; open_closed_streams();"
        "opened = os.open('/dev/null', os.O_RDONLY); print('out'); print('err', file=sys.stderr); sys.stdin.read(1);"
        "os._exit(0 if opened > 2 and all(map(os.get_inheritable, range(3))) else 1)"
    )
    command = f'"{sys.executable}" -c "{code}" {closed}'
    found = subprocess.run(command, shell=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (found.returncode, found.stderr.removeprefix("err\n")) == (0, "")
