"""`kedge server logs`: the last lines of the server's own log, over several files, and what comes after them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kedge.cli import serverlogs
from kedge.cli.main import main


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs" / "server.log"


def shown(*words: str) -> Result:
    return CliRunner().invoke(main, ["server", "logs", *words])


def lines(*numbers: int) -> str:
    return "".join(f"line {number}\n" for number in numbers)


def test_where_no_server_has_run_it_says_so(log: Path) -> None:
    result = shown()
    assert result.exit_code == 1
    assert result.output == f"Error: there is no log at {log}: no server of this machine has run yet.\n"


def test_the_last_lines_come_from_as_many_files_as_it_takes(log: Path) -> None:
    log.with_name("server.log.2").write_text(lines(1, 2))
    log.with_name("server.log.1").write_text(lines(3, 4))
    log.write_text(lines(5, 6) + "half")
    assert shown("-n", "2").output == lines(6) + "half"
    assert shown("-n", "4").output == lines(4, 5, 6) + "half"
    assert shown().output == lines(1, 2, 3, 4, 5, 6) + "half"
    assert shown("-n", "0").output == ""


def test_long_lines_are_whole(log: Path) -> None:
    log.write_text(lines(1) + "x" * 200_000 + "\n" + lines(2))
    assert shown("-n", "2").output == "x" * 200_000 + "\n" + lines(2)


def test_it_goes_on_in_the_new_file_where_the_log_begins_anew(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write_text(lines(1))
    written: list[str] = []
    steps: list[Callable[[], object]] = [
        lambda: log.write_text(lines(1, 2)),
        lambda: log.rename(log.with_name("server.log.1")),
        lambda: log.write_text(lines(3)),
    ]

    def pause(seconds: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    monkeypatch.setattr(serverlogs.time, "sleep", pause)
    monkeypatch.setattr(serverlogs, "_put", lambda data: written.append(data.decode()))
    thread = threading.Thread(target=serverlogs.show, args=(10, True))
    thread.start()
    thread.join(30)
    assert "".join(written) == lines(1, 2, 3)
