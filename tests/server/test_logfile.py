"""The server's log: one file, begun anew at a size, with what goes to stdout and stderr in it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.server.logfile import OLD_FILES, LogFile, old


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.Logger("kedge.test", logging.INFO)
    yield logger
    for handler in logger.handlers:
        handler.close()


def test_lines_are_added_to_what_is_there(tmp_path: Path, logger: logging.Logger) -> None:
    path = tmp_path / "logs" / "server.log"
    path.parent.mkdir()
    path.write_text("before\n")
    logger.addHandler(LogFile(path, streams=False))
    logger.info("one %s", "line")
    logger.debug("nothing")
    logger.warning("odd \udcff characters")
    lines = path.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[1].endswith(" INFO kedge.test: one line")
    assert lines[2].endswith(r" WARNING kedge.test: odd \udcff characters")
    assert len(lines) == 3


def test_at_a_size_it_begins_anew_and_a_few_old_ones_stay(tmp_path: Path, logger: logging.Logger) -> None:
    path = tmp_path / "server.log"
    logger.addHandler(LogFile(path, streams=False, limit=1000))
    for number in range(200):
        logger.info("line %03d", number)
    files = [path, *(old(path, number) for number in range(1, OLD_FILES + 1))]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(file.stat().st_size < 1200 for file in files)
    kept = "".join(file.read_text() for file in reversed(files)).splitlines()
    numbers = [int(line[-3:]) for line in kept]
    assert numbers == list(range(numbers[0], 200)), "what is kept has no gap"
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_the_process_prints_goes_there_as_well(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    code = (
        "import logging, os, sys; from pathlib import Path; from kedge.server.logfile import LogFile\n"
        "handler = LogFile(Path(sys.argv[1]), limit=100); logger = logging.Logger('x'); logger.addHandler(handler)\n"
        "print('printed', flush=True); logger.info('y' * 200); os.write(2, b'raw after the file was begun anew')\n"
        "handler.close()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert old(path, 1).read_text().startswith("printed\n")
    assert path.read_text() == "raw after the file was begun anew"


def test_a_full_disk_costs_lines_and_nothing_else(
    tmp_path: Path, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "server.log"
    logger.addHandler(LogFile(path, streams=False))

    def refuse(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        logger.info("lost")
    logger.info("kept")
    assert path.read_text().endswith("kept\n")
    assert "lost" not in path.read_text()
