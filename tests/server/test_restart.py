"""A real server is killed under a real program: what was spawned is done, and what was recorded is still there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.test_main import WAIT_S, Process

pytestmark = pytest.mark.slow


def await_file(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_spawned_calls_survive_a_server_that_is_killed(tmp_path: Path) -> None:
    home, oven = tmp_path / "home", tmp_path / "oven"
    oven.mkdir()
    began = oven / "slow.began"
    server = Process(home)
    program = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("shop.py")), str(oven)],
        env={**os.environ, "KEDGE_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline().startswith("fast is ready fc-")
        await_file(lambda: began.exists() and began.read_text() == "x")
        server.process.kill()
        server.wait()
        again = Process(home)
        try:
            # The input that was open runs again, by itself.
            await_file(lambda: began.read_text() == "xx")
            (oven / "go").touch()
            assert program.stdout.read() == "slow is ready\nfast is ready\n"
            assert program.wait(WAIT_S) == 0
            assert (oven / "fast.began").read_text() == "x"
        finally:
            again.let_go()
            assert again.wait() == 0
    finally:
        program.kill()
        program.communicate()
