"""Running an app: what the server is told, when, and how it all ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge import exception
from kedge.model import protocol as p
from kedge.model.payload import ErrorInfo
from kedge.model.spec import FunctionSpec
from kedge.sdk import client as client_module
from kedge.sdk import invocation, output, runner, server_process
from kedge.sdk.client import Client
from tests.sdk.conftest import target
from tests.sdk.fake_plane import FakePlane


class FakeApp:
    """What the runner needs of an app."""

    name: str | None = "shop"
    include_source = True
    isolation = ""

    def __init__(self, *specs: FunctionSpec) -> None:
        self.specs = specs
        self.app_id: str | None = None

    def function_specs(self) -> tuple[FunctionSpec, ...]:
        return self.specs

    def started(self, app_id: str) -> None:
        self.app_id = app_id

    def stopped(self, reason: str = "has stopped") -> None:
        self.app_id = None


class Shown(output.PlainOutput):
    def __init__(self, progress_interval: float = 0.0) -> None:
        self.progress_interval = progress_interval
        self.bytes: list[bytes] = []
        self.notices: list[str] = []
        self.pools: list[Any] = []

    def captured(self, message: p.OutputCaptured) -> None:
        self.bytes.append(message.data)

    def notice(self, text: str, level: str = "info") -> None:
        self.notices.append(text)

    def progress(self, pools: list[dict[str, Any]]) -> None:
        self.pools.append(pools)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, plane: FakePlane, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))
    monkeypatch.setenv("KEDGE_SERVER", plane.address)
    yield tmp_path
    assert client_module.running() is None, "nothing is left of the run"


def run_app(app: FakeApp, **options: Any) -> runner.RunningApp:
    return runner.run_app(app, **options)  # type: ignore[arg-type]


def kinds(plane: FakePlane) -> list[str]:
    return [type(message).__name__ for message in plane.said]


def test_an_app_is_created_used_and_stopped(plane: FakePlane) -> None:
    plane.functions["double"] = lambda x: 2 * x
    app = FakeApp(FunctionSpec(name="f", module="json", qualname="f"))
    running = run_app(app)
    (created,) = plane.heard(p.AppCreated)
    assert created.app.app == running.app_id == app.app_id
    assert created.app.app.startswith("ap-")
    assert (created.app.name, created.app.ephemeral, created.app.functions) == ("shop", True, app.specs)
    assert created.app.environment.directory == os.getcwd()
    assert invocation.call(target("double"), (4,), {}) == 8
    running.close()
    running.close()
    plane.wait_heard(p.SessionClosed)
    assert kinds(plane) == ["AppCreated", "InputsSubmitted", "AppStopped", "SessionClosed"]
    assert plane.heard(p.AppStopped)[0].app == created.app.app
    assert app.app_id is None


def test_a_run_may_have_a_name_of_its_own_and_the_program_names_the_rest(plane: FakePlane) -> None:
    app = FakeApp()
    run_app(app, name="tonight").close()
    app.name = None
    run_app(app).close()
    names = [message.app.name for message in plane.heard(p.AppCreated)]
    assert names[0] == "tonight"
    assert names[1]


def test_a_forked_child_that_leaves_the_block_ends_nothing(plane: FakePlane) -> None:
    plane.functions["double"] = lambda x: 2 * x
    running = run_app(FakeApp())
    with warnings.catch_warnings():
        # Newer Pythons warn where threads run; the child here only leaves.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            running.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert invocation.call(target("double"), (4,), {}) == 8
    assert plane.heard(p.AppStopped) == []
    running.close()


def test_a_detached_app_is_not_stopped(plane: FakePlane) -> None:
    run_app(FakeApp(), detach=True).close()
    plane.wait_heard(p.SessionClosed)
    assert not plane.heard(p.AppCreated)[0].app.ephemeral
    assert plane.heard(p.AppStopped) == []


def test_apps_that_run_at_once_share_the_connection_until_the_last_has_ended(plane: FakePlane) -> None:
    first, second = run_app(FakeApp()), run_app(FakeApp())
    assert plane.welcomed == 1
    assert first.client is second.client
    first.close()
    plane.functions["double"] = lambda x: 2 * x
    assert invocation.call(target("double"), (4,), {}) == 8
    second.close()
    assert client_module.running() is None


def test_after_a_reconnect_the_app_is_created_again_unless_it_has_stopped(plane: FakePlane) -> None:
    first, second = run_app(FakeApp()), run_app(FakeApp())
    first.close()
    plane.disconnect()
    plane.functions["double"] = lambda x: 2 * x
    assert invocation.call(target("double"), (4,), {}) == 8
    assert [m.app.app for m in plane.heard(p.AppCreated)] == [first.app_id, second.app_id, second.app_id]
    second.close()


def test_an_app_that_is_refused_leaves_nothing_behind(plane: FakePlane, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FakePlane, message: p.AppCreated, link: Any) -> None:
        link.send([p.Reply(message.request, None, ErrorInfo("InvalidError", "no room for it"))])

    monkeypatch.setattr(FakePlane, "_on_AppCreated", refuse)
    app = FakeApp()
    with output.show_on(Shown()), pytest.raises(exception.InvalidError, match="no room for it"):
        run_app(app)
    assert app.app_id is None


def test_a_server_that_dies_before_the_end_is_no_error_at_the_end(
    plane: FakePlane, caplog: pytest.LogCaptureFixture
) -> None:
    running = run_app(FakeApp())
    running.client.lost = lambda: "it has ended"
    plane.stop_listening()
    running.close()
    assert "could not be stopped in order" in caplog.text


def test_a_named_server_that_does_not_answer_is_an_error_and_starts_no_other(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDGE_SERVER", str(home / "nobody.sock"))
    with pytest.raises(exception.ConnectionError, match=r"no kedge server answers at .*nobody\.sock"):
        run_app(FakeApp())


def test_running_on_an_event_loop(plane: FakePlane) -> None:
    plane.functions["double"] = lambda x: 2 * x

    async def main() -> int:
        running = await runner.run_app_async(FakeApp())  # type: ignore[arg-type]
        try:
            value: int = await invocation.call_async(target("double"), (4,), {})
            return value
        finally:
            await running.close_async()

    assert asyncio.run(main()) == 8
    plane.wait_heard(p.AppStopped)


# ---------------------------------------------------------------- output


def test_output_and_notices_are_shown_to_their_end(plane: FakePlane) -> None:
    shown = Shown()
    with output.show_on(shown):
        running = run_app(FakeApp())
        assert kinds(plane)[:3] == ["OutputSubscribed", "StatisticsRequested", "AppCreated"], "first listen, then run"
        plane.tell_all(p.OutputCaptured("ct-1", 1, b"hello\n"))
        plane.tell_all(p.Notice("ap-1", "waits for room"))
        running.close()
    assert shown.bytes.count(b"hello\n") == 1
    assert "waits for room" in shown.notices


def test_progress_is_asked_for_where_a_display_wants_it(plane: FakePlane) -> None:
    shown = Shown(progress_interval=0.01)
    with output.show_on(shown):
        running = run_app(FakeApp())
        plane.wait_for(lambda: len(shown.pools) >= 2)
        running.close()
    assert shown.pools[0][0]["backlog"] == 3


def test_numbers_that_come_after_the_end_are_not_shown(plane: FakePlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped app has none any more; what is shown at the end are those from before."""
    stopped: list[int] = []
    answer = FakePlane._on_StatisticsRequested

    def stop(self: FakePlane, message: p.AppStopped, link: Any) -> None:
        stopped.append(len(self.heard(p.StatisticsRequested)))
        self.wait_for(lambda: len(self.heard(p.StatisticsRequested)) > stopped[0] + 1)
        link.send([p.Reply(message.request, {"app": message.app})])

    def count(self: FakePlane, message: p.StatisticsRequested, link: Any) -> None:
        if stopped:
            link.send([p.Reply(message.request, [])])
        else:
            answer(self, message, link)

    monkeypatch.setattr(FakePlane, "_on_AppStopped", stop)
    monkeypatch.setattr(FakePlane, "_on_StatisticsRequested", count)
    shown = Shown(progress_interval=0.01)
    with output.show_on(shown):
        run_app(FakeApp()).close()
    assert shown.pools[-1][0]["backlog"] == 3


def test_without_a_display_nothing_is_subscribed_or_printed(
    plane: FakePlane, capfd: pytest.CaptureFixture[str]
) -> None:
    run_app(FakeApp()).close()
    assert plane.heard(p.OutputSubscribed) == []
    assert capfd.readouterr() == ("", "")


def test_plain_output_passes_on_what_containers_write(capsys: pytest.CaptureFixture[str]) -> None:
    with output.enable_output():
        sink = output.current()
        assert sink is not None
        sink.captured(p.OutputCaptured("ct-1", 1, "grüße\n".encode()))
        sink.captured(p.OutputCaptured("ct-1", 2, b"trouble\n"))
        sink.notice("look")
    assert output.current() is None
    assert capsys.readouterr() == ("grüße\n", "trouble\nkedge: look\n")


def test_plain_output_never_glues_lines_together_nor_cuts_letters(capsys: pytest.CaptureFixture[str]) -> None:
    def captured(data: bytes, index: int, container: str = "ct-1") -> p.OutputCaptured:
        return p.OutputCaptured(container, 1, data, call="fc-1", index=index)

    with output.enable_output():
        sink = output.current()
        assert sink is not None
        sink.captured(captured("gr\u00fc".encode()[:-1], 0))
        sink.captured(captured(b"of another input\nhalf", 1))
        sink.captured(captured("gr\u00fc\u00dfe\n".encode()[3:], 0))
        sink.captured(captured(b"no end", 2, "ct-2"))
        assert capsys.readouterr().out == "of another input\ngrüße\n"
        sink.captured(captured(b"", -1))
        assert capsys.readouterr().out == "half\n"
    assert capsys.readouterr().out == "no end\n"


# ---------------------------------------------------------------- servers


def write_server_file(home: Path, text: str) -> None:
    (home / "server").mkdir(exist_ok=True)
    (home / "server" / "server.json").write_text(text)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"address": "x", "process": 999999999}', '{"address": 1, "process": "y"}'], ids=repr
)
def test_a_server_file_that_is_stale_or_broken_is_no_server(
    home: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KEDGE_SERVER")
    assert server_process.find() is None
    write_server_file(home, text)
    assert server_process.find() is None


def test_the_machines_server_is_found_by_its_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEDGE_SERVER")
    write_server_file(home, f'{{"address": "/a/b", "token": "t", "process": {os.getpid()}}}')
    assert server_process.find() == server_process.ServerAddress("/a/b", "t")


def test_a_server_that_cannot_start_is_quoted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_GPUS", "nonsense")
    with pytest.raises(exception.ConnectionError, match=r"could not start: .*'nonsense' is not NAME=COUNT"):
        server_process.ServerProcess(private=True, directory=str(home))


def test_a_home_that_cannot_be_used_is_said_with_the_fix(home: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises(exception.Error, match="set KEDGE_HOME to a directory you can write to"):
        server_process.ServerProcess(private=True, directory=str(home / "file"))


@pytest.mark.slow
def test_a_private_server_ends_when_its_owner_lets_go(home: Path) -> None:
    server = server_process.ServerProcess(private=True, directory=str(home))
    assert server.gone() == ""
    client = Client.connect(server.address.address, server.address.token)
    assert client.request(p.StatisticsRequested)["containers"] == 0
    client.close()
    server.close()
    assert "ended with exit code 0" in server.gone()
    assert list((home / "logs").glob("*.log")) == [], "the log is kept only where it ended badly"


@pytest.mark.slow
def test_a_private_server_ends_with_its_owners_process(home: Path) -> None:
    program = (
        "import os\n"
        "from kedge.sdk.server_process import ServerProcess\n"
        f"server = ServerProcess(private=True, directory={str(home)!r})\n"
        "print(server._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    owner = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    server = int(owner.stdout)
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{server}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{server}")
