"""What containers print is kept, up to a bound, for its user alone."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kedge.model.protocol import OutputCaptured
from kedge.server import logs
from kedge.server.logs import OutputLog


def captured(data: bytes, container: str = "ct-1", app: str = "ap-1") -> OutputCaptured:
    return OutputCaptured(container, 1, data, app=app)


def test_each_container_has_a_file_that_only_its_user_reads(tmp_path: Path) -> None:
    log = OutputLog(tmp_path / "logs")
    log.write(captured(b"one\n"))
    log.write(captured(b"two\n", "ct-2"))
    log.write(captured(b"more\n"))
    log.write(captured(b"whose?\n", "ct-3", ""))
    log.close_all()
    assert (tmp_path / "logs" / "ap-1" / "ct-1.log").read_bytes() == b"one\nmore\n"
    assert (tmp_path / "logs" / "ap-1" / "ct-2.log").read_bytes() == b"two\n"
    assert (tmp_path / "logs" / "unknown" / "ct-3.log").read_bytes() == b"whose?\n"
    for path in (tmp_path / "logs").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((tmp_path / "logs").stat().st_mode) == 0o700


def test_a_file_has_a_limit_and_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LIMIT", 10)
    log = OutputLog(tmp_path)
    for _ in range(3):
        log.write(captured(b"123456"))
    log.close("ct-1")
    log.close("ct-1")
    text = (tmp_path / "ap-1" / "ct-1.log").read_text()
    assert text == "1234561234\n[kedge: 8 further bytes were not kept]\n"


def test_sessions_see_the_apps_that_they_watch(tmp_path: Path) -> None:
    log = OutputLog(tmp_path)
    log.subscribe("ap-1", "se-1")
    log.subscribe("ap-1", "se-2")
    log.subscribe("ap-2", "se-2")
    assert log.write(captured(b"x")) == ["se-1", "se-2"]
    assert log.write(captured(b"x", app="ap-2")) == ["se-2"]
    log.unsubscribe("se-2")
    assert log.write(captured(b"x")) == ["se-1"]
    assert log.write(captured(b"x", app="ap-2")) == []
    log.close_all()


def test_a_disk_that_refuses_loses_the_log_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "ap-1").write_text("a file where the directory should be")
    log = OutputLog(tmp_path)
    log.subscribe("ap-1", "se-1")
    for _ in range(2):
        assert log.write(captured(b"x")) == ["se-1"]
    log.close("ct-1")
