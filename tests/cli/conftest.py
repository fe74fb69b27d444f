"""The command in this process, with a plane that only notes what it would have been asked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest

from kedge.cli.main import main
from kedge.sdk import alias, invocation
from kedge.sdk.app_run import AppRun
from kedge.sdk.target import Target
from kedge.server.volume_desk import VolumeDesk
from kedge.server.volumes import Volumes
from tests.cli.live import Live
from tests.server.fake_engine import hold

Calls = list[tuple[str, tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def kedge_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote_calls: Calls
) -> Iterator[Callable[..., click.testing.Result]]:
    """Writes `source` to script.py and runs `kedge run` with these words in its directory."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KEDGE_SERVER", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(source: str | None, *words: str) -> click.testing.Result:
        if source is not None:
            (tmp_path / "script.py").write_text(source)
        return click.testing.CliRunner().invoke(main, ["run", *words])

    yield run
    alias.uninstall()
    for name in set(sys.modules) - before:
        path = getattr(sys.modules[name], "__file__", None) or ""
        if path.startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def remote_calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What was called in containers: (name, arguments, keyword arguments). Each call gives `answer`."""
    calls: Calls = []

    def call(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls.append(
            (target.pool.removeprefix("fu-test-") + (f".{target.method}" if target.method else ""), args, kwargs)
        )
        return {"answer": 42}

    def enter(run: AppRun) -> Any:
        run._app.started("ap-test")
        return run._app

    monkeypatch.setattr(invocation, "call", call)
    monkeypatch.setattr(AppRun, "__enter__", enter)
    monkeypatch.setattr(AppRun, "__exit__", lambda run, *_: run._app.stopped())
    return calls


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of the test's own, and nothing configured."""
    for name in ("KEDGE_SERVER", "KEDGE_TOKEN", "KEDGE_ENVIRONMENT", "KEDGE_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))
    monkeypatch.setenv("KEDGE_CONFIG", str(tmp_path / "none.toml"))
    return tmp_path


@pytest.fixture
def live(own_home: Path) -> Iterator[Live]:
    """A server whose containers keep what they are given."""
    with Live(own_home, hold) as live:
        yield live


@pytest.fixture
def live_with_volumes(live: Live) -> Iterator[Live]:
    made: list[tuple[Volumes, VolumeDesk]] = []

    async def furnish() -> None:
        volumes = Volumes(live.home / "volumes", durable=False)
        desk = VolumeDesk(volumes, live.shell.rpc.container_of)
        live.shell.office.attend(desk.answers)
        live.shell.office.departures.append(desk.departed)
        made.append((volumes, desk))

    async def close() -> None:
        for volumes, desk in made:
            await desk.close()
            await volumes.close()

    live.do(furnish)
    yield live
    live.do(close)
