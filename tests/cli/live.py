"""A server with fake containers on a thread of its own, where commands find it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click.testing

from kedge.cli.main import main
from kedge.model import protocol as p
from kedge.model.spec import AppSpec
from tests.server.fake_engine import FakeEngine, Work, succeed
from tests.server.shell import Peer, Shell
from tests.wire.loops import LIMIT_S, factories, until


class Live:
    """Example:
    with Live(tmp_path) as live:
        live.deploy(app("ap-1", ephemeral=False))
        assert live.run("app", "list").exit_code == 0
    """

    def __init__(self, home: Path, work: Work = succeed) -> None:
        self.home = home
        self.engine = FakeEngine(work)
        self.shell: Shell
        self.peer: Peer
        """A client that stays."""
        self._loop = factories()[-1]()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Live:
        directory = self.home / "server"
        directory.mkdir(parents=True)
        (self.home / "logs").symlink_to(directory / "logs")
        self._thread.start()
        self.do(lambda: self._start(directory))
        facts = {"address": self.shell.path, "process": os.getpid()}
        (directory / "server.json").write_text(json.dumps(facts))
        return self

    def __exit__(self, *_: object) -> None:
        self.do(lambda: self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def do(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Runs a coroutine where the server runs, and gives its result."""
        return asyncio.run_coroutine_threadsafe(make(), self._loop).result(LIMIT_S)

    def run(self, *words: str, **options: Any) -> click.testing.Result:
        return click.testing.CliRunner().invoke(main, list(words), **options)

    def json(self, *words: str) -> Any:
        """What a command says as JSON."""
        result = self.run(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def say(self, *messages: Any) -> None:
        """A client says something, and is heard."""

        async def say() -> None:
            self.peer.say(*messages)
            await self.peer.ask(lambda n: p.StatisticsRequested(n))

        self.do(say)

    def ask(self, make: Callable[[int], Any]) -> Any:
        reply = self.do(lambda: self.peer.ask(make))
        assert reply.error is None, reply.error
        return reply.value

    def deploy(self, spec: AppSpec) -> None:
        self.ask(lambda n: p.AppDeployed(n, spec))

    def until(self, condition: Callable[[], Any]) -> None:
        self.do(lambda: until(condition))

    async def _start(self, directory: Path) -> None:
        self.shell = Shell(directory, self.engine)
        await self.shell.start()
        self.shell.office.about["web"] = "http://127.0.0.1:5334"
        self.peer = await self.shell.client()

    async def _stop(self) -> None:
        self.peer.connection.close()
        await self.shell.stop()
