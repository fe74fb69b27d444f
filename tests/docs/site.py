"""A server of a test's own, and what people do with it: commands, addresses, programs out of documents."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from kedge.sdk import client as client_module
from kedge.sdk import server_process
from kedge.sdk.client import Client

LONG = 60.0
"""Seconds after which something has gone wrong; nothing here takes as long."""


class Site:
    """A state directory, the machine's server in it on ports of its own, and a directory to work in."""

    def __init__(self, directory: Path, **variables: str) -> None:
        self.directory = directory
        self.home = directory / "home"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("KEDGE_")}
        self.environment = {
            **inherited,
            "KEDGE_HOME": str(self.home),
            "KEDGE_PORT": "0",
            "KEDGE_CONFIG": str(directory / "kedge.toml"),
            **variables,
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "kedge.cli.main", *words]

    def kedge(self, *words: str, code: int = 0, seconds: float = 2 * LONG) -> str:
        """What a command prints on both streams. Its exit code is checked."""
        done = subprocess.run(
            self.command(*words),
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == code, f"kedge {' '.join(words)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def deploy(self, name: str, program: str, *options: str) -> str:
        (self.directory / name).write_text(program)
        return self.kedge("deploy", *options, name)

    def url(self, deployed: str, label: str) -> str:
        """The address of a web function as `kedge deploy` printed it, without the slash at its end."""
        found = re.search(rf"(http://127\.0\.0\.1:\d+/{re.escape(label)})/", deployed)
        assert found, f"no address of {label!r} in\n{deployed}"
        return found[1]

    def processes(self) -> list[psutil.Process]:
        """All that use this state directory."""
        found = []
        for process in psutil.process_iter():
            try:
                if any(str(self.home) in word for word in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def close(self) -> None:
        self.kedge("server", "stop")
        for process in self.processes():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue


@contextmanager
def site_in(directory: Path, images: Path | None = None, **variables: str) -> Iterator[Site]:
    """A server for the time of the block. This process uses it as well: `Function.from_name` finds what is there.
    `images` is a directory with images, for several sites."""
    directory.mkdir(parents=True, exist_ok=True)
    site = Site(directory, **variables)
    if images is not None:
        site.home.mkdir(mode=0o700)
        (site.home / "images").symlink_to(images)
    site.kedge("server", "start")
    found = server_process.find(str(site.home))
    assert found is not None
    client = Client.connect(found.address, found.token)
    client_module.use(client)
    try:
        yield site
    finally:
        client.close()
        site.close()


def sections(document: Path) -> dict[str, list[tuple[str, str]]]:
    """Programs of a document by file name: under the heading "## `name.py`…", all blocks as (language, text)."""
    found = {}
    for section in re.split(r"^## ", document.read_text(), flags=re.MULTILINE)[1:]:
        name = re.match(r"`(\w+\.py)`", section)
        if name is not None:
            found[name[1]] = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return found


def programs(document: Path) -> dict[str, str]:
    """The same, put together: all Python of a section is one file."""
    return {
        name: "\n\n".join(text for language, text in blocks if language == "python")
        for name, blocks in sections(document).items()
    }


def eventually(condition: Callable[[], object], seconds: float = LONG) -> bool:
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True


def is_answering(url: str) -> bool:
    try:
        return httpx.get(url, timeout=LONG).status_code < 500
    except httpx.TransportError:
        return False
