"""`kedge` commands as people use them, in a directory and with a state of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

LONG = 90.0
"""Seconds after which something has gone wrong; nothing takes as long."""


class Place:
    """A directory to work in, and the variables of programs there."""

    def __init__(self, directory: Path, variables: Mapping[str, str]) -> None:
        self.directory = directory
        self.variables = dict(variables)

    def write(self, name: str, text: str) -> None:
        (self.directory / name).parent.mkdir(parents=True, exist_ok=True)
        (self.directory / name).write_text(text)

    def kedge(self, *words: str, code: int | None = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs one command to its end; AssertionError where its exit code is another one (None: any)."""
        return self.python("-P", "-m", "kedge.cli.main", *words, code=code, **variables)

    def python(self, *words: str, code: int | None = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.directory,
            env={**self.variables, **variables},
            capture_output=True,
            text=True,
            timeout=LONG,
            check=False,
        )
        assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def program(self, text: str, **variables: str) -> str:
        """What a program prints."""
        return self.python("-c", text, **variables).stdout

    @contextmanager
    def running(self, *words: str) -> Iterator[Command]:
        """A command that goes on; it gets Ctrl-C at the end of the `with` block, where it has not ended."""
        command = Command(self, words)
        try:
            yield command
        finally:
            command.interrupt()
            command.wait()


class Command:
    """A command under way, with what it has printed so far."""

    def __init__(self, place: Place, words: tuple[str, ...]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kedge.cli.main", *words],
            cwd=place.directory,
            env=place.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.output += line

    def says(self, text: str, times: int = 1) -> None:
        """Waits until it has printed that so often."""
        eventually(lambda: self.output.count(text) >= times or self.process.poll() is not None)
        assert self.output.count(text) >= times, f"{text!r} was not said:\n{self.output}"

    def interrupt(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        try:
            code = self.process.wait(LONG)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(LONG)
        return code


def eventually(condition: Callable[[], Any]) -> Any:
    """What `condition` gives once that is true."""
    give_up = time.monotonic() + LONG
    while not (found := condition()):
        if time.monotonic() > give_up:
            raise AssertionError("it did not happen")
        time.sleep(0.02)
    return found


@contextmanager
def place(directory: Path, **variables: str) -> Iterator[Place]:
    """A directory with a state of its own. Afterwards no server of it is left, and no process at all."""
    # The path of a Unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="kedge") as home:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("KEDGE_")}
        own = {"KEDGE_HOME": home, "KEDGE_CONFIG": f"{home}/none.toml", "PYTHONUNBUFFERED": "1"}
        made = Place(directory, {**inherited, **own, **variables})
        try:
            yield made
        finally:
            made.kedge("server", "stop", code=None)
        eventually(lambda: not processes_of(home))


def processes_of(home: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("KEDGE_HOME") == home:
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            pass
    return found
