"""`kedge app`: what is deployed, its versions, and its end."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import click.testing
import pytest
from msgspec.structs import replace

from kedge.cli import confirm
from kedge.cli.main import main
from kedge.model import protocol as p
from kedge.model.ids import deployment_id, function_id
from kedge.model.payload import ErrorInfo, Payload
from kedge.model.spec import AppSpec, MethodSpec, WebSpec
from kedge.server.chunks import Chunk, Place
from kedge.server.logbook import LogBook
from kedge.wire.records import NOBODY
from tests.cli.live import Live
from tests.server.fake_engine import FakeContainer
from tests.server.shell import app

D = deployment_id("main", "demo")


def version(number: int, **changes: object) -> AppSpec:
    web = (MethodSpec(web=WebSpec(kind="asgi_app")),)
    return replace(app(f"ap-v{number}", ephemeral=False, methods=web), **changes)


# ---------------------------------------------------------------- list, info, history


def test_nothing_is_deployed(live: Live) -> None:
    result = live.run("app", "list")
    assert (result.exit_code, result.stdout) == (
        0,
        "Nothing is deployed. `kedge deploy app.py` deploys an app, `kedge run app.py` runs one.\n",
    )
    assert live.json("app", "list") == []


def test_apps_stand_in_a_table(live: Live) -> None:
    live.deploy(version(1))
    live.say(p.AppCreated(1, replace(app("ap-77"), name="another")))
    heading, demo, other = live.run("app", "list").stdout.splitlines()
    assert heading.split() == ["name", "id", "state", "version", "containers", "running", "created", "address"]
    cells = demo.split()
    assert cells[:6] == ["demo", D, "deployed", "v1", "1", "0"]
    assert cells[-1] == "http://127.0.0.1:5334/demo-square/"
    assert other.split()[:4] == ["another", "ap-77", "ephemeral", "-"]
    # Columns stand below each other.
    assert demo.index(D) == heading.index("id")
    assert demo.index("deployed") == other.index("ephemeral") == heading.index("state")


def test_the_keys_of_the_json_stay(live: Live) -> None:
    live.deploy(version(1, tag="blue"))
    (demo,) = live.json("app", "list")
    assert set(demo) >= {
        "app",
        "name",
        "environment",
        "state",
        "version",
        "tag",
        "created_at",
        "deployed_at",
        "ephemeral",
        "containers",
        "running",
        "queued",
        "functions",
        "labels",
        "urls",
    }
    assert (demo["tag"], demo["labels"]) == ("blue", {"square": "demo-square"})


def test_environments_are_a_column_where_there_are_several(live: Live) -> None:
    live.deploy(version(1))
    assert "environment" not in live.run("app", "list").stdout
    live.deploy(version(2, environment_name="staging"))
    found = live.run("app", "list").stdout.splitlines()
    assert found[0].split()[1] == "environment"
    assert [line.split()[1] for line in found[1:]] == ["main", "staging"]
    assert [one["environment"] for one in live.json("app", "list", "--env", "staging")] == ["staging"]


def test_names_are_looked_up_in_their_environment(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    live.deploy(version(1, environment_name="staging"))
    result = live.run("app", "info", "demo")
    assert result.exit_code == 1
    assert "Error: there is no app 'demo'." in result.stderr
    assert "It is in the environment staging: --env staging." in result.stderr
    assert live.json("app", "info", "demo", "-e", "staging")["environment"] == "staging"
    monkeypatch.setenv("KEDGE_ENVIRONMENT", "staging")
    assert live.json("app", "info", "demo")["environment"] == "staging"


def test_an_app_in_full(live: Live) -> None:
    live.deploy(version(1, tag="blue"))
    text = live.run("app", "info", "demo").stdout
    assert f"id           {D}\n" in text
    assert "version      v1 (blue)\n" in text
    assert "square answers at http://127.0.0.1:5334/demo-square/\n" in text
    assert "square    function, web" in text
    whole = live.json("app", "info", D[:8])
    assert whole["name"] == "demo"
    assert [one["name"] for one in whole["functions"]] == ["square"]


def test_an_unknown_app_gets_the_nearest_name(live: Live) -> None:
    live.deploy(version(1))
    result = live.run("app", "info", "dmo")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: there is no app 'dmo'. Did you mean 'demo'? There are: demo. `kedge app list --all` shows them with "
        "their ids.\n"
    )


def test_versions_newest_first(live: Live) -> None:
    live.deploy(version(1, tag="blue"))
    live.deploy(version(2))
    result = live.run("app", "rollback", "demo")
    assert (result.exit_code, result.stdout) == (0, "demo is at version 3, a copy of version 1.\n"), result.output
    heading, *rows = live.run("app", "history", "demo").stdout.splitlines()
    assert heading.split() == ["version", "deployed", "tag", "containers"]
    assert [row.split()[0] for row in rows] == ["v3", "v2", "v1"]
    assert rows[0].endswith("current, rollback of v1")
    assert [one["current"] for one in live.json("app", "history", "demo")] == [True, False, False]


def test_a_rollback_to_a_number_and_to_what_is_not_there(live: Live) -> None:
    live.deploy(version(1))
    live.deploy(version(2))
    live.deploy(version(3))
    assert live.run("app", "rollback", "demo", "v1", "--strategy", "recreate").exit_code == 0
    missing = live.run("app", "rollback", "demo", "17")
    assert missing.exit_code == 1
    assert "no version 17" in missing.stderr
    assert "write a number that `kedge app history` shows" in live.run("app", "rollback", "demo", "x").stderr


def test_a_rollback_to_what_does_not_start_is_told_like_a_deploy_of_it(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.deploy(version(1))
    live.deploy(version(2))
    live.until(lambda: not any(one.launch.app == "ap-v1" for one in live.engine.containers.values()))
    raised = Payload(data=pickle.dumps(FileNotFoundError("no such file: 'weights'")))
    error = ErrorInfo("FileNotFoundError", "no such file: 'weights'", payload=raised)
    connect = FakeContainer.connect

    async def fail(container: FakeContainer) -> None:
        live.engine.ready = False
        await connect(container)
        container.say(p.ContainerFailed(error))
        container.connection.flush()

    monkeypatch.setattr(FakeContainer, "connect", fail)
    result = live.run("app", "rollback", "demo")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)  # and no exception of the user's, with the frames of kedge
    assert result.stderr.endswith(
        "Error: square cannot start: no such file: 'weights'. Version 2 of demo goes on serving\n"
    )


def test_what_only_runs_has_no_versions(live: Live) -> None:
    live.say(p.AppCreated(1, app("ap-77")))
    result = live.run("app", "history", "demo")
    assert result.stderr == "Error: demo (ap-77) is not deployed, so it has no versions\n"


# ---------------------------------------------------------------- stop


def test_a_deployed_app_is_stopped_with_yes_and_stays_in_the_list_of_all(live: Live) -> None:
    live.deploy(version(1))
    result = live.run("app", "stop", "demo", "--yes")
    assert (result.exit_code, result.stdout) == (0, f"demo ({D}) has stopped.\n")
    listed = live.run("app", "list")
    assert listed.stdout.startswith("Nothing is deployed.")
    assert listed.stderr == "1 stopped; `kedge app list --all` shows them too.\n"
    assert live.run("app", "list", "-a").stdout.splitlines()[1].split()[:3] == ["demo", D, "stopped"]
    assert [row["kept"] for row in live.json("app", "history", "demo")] == [False]
    again = live.run("app", "stop", "-y", D)
    assert again.stderr == "Error: demo has stopped already\n"


def test_without_a_terminal_a_deployed_app_is_not_stopped_by_accident(live: Live) -> None:
    live.deploy(version(1))
    result = live.run("app", "stop", "demo")
    assert result.exit_code == 2
    assert f"Stop demo ({D}, version 1)? It has 1 container and 0 running inputs." in result.stderr
    assert "There is no terminal to answer on; --yes (-y) says that you mean it." in result.stderr
    assert live.json("app", "list")[0]["state"] == "deployed"


@pytest.mark.parametrize(
    ("answer", "code", "state"), [("n\n", 1, "deployed"), ("y\n", 0, "stopped"), ("", 1, "deployed")]
)
def test_on_a_terminal_a_person_is_asked(
    live: Live, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, state: str
) -> None:
    live.deploy(version(1))
    monkeypatch.setattr(confirm, "at_a_terminal", lambda: True)
    result = live.run("app", "stop", "demo", input=answer)
    assert result.exit_code == code
    assert "Stop demo (" in result.stderr
    assert live.json("app", "list", "--all")[0]["state"] == state


def test_what_only_runs_is_stopped_without_a_question(live: Live) -> None:
    for number in (1, 2):
        live.say(p.AppCreated(number, app(f"ap-00{number}", ephemeral=False)))
    both = live.run("app", "stop", "demo")
    assert both.exit_code == 1
    assert "'demo' stands for 2 apps: ap-001 (demo), ap-002 (demo); write the whole id" in both.stderr
    assert live.run("app", "stop", "ap-001").stdout == "ap-001 has stopped.\n"
    assert live.run("app", "stop", "demo").stdout == "demo (ap-002) has stopped.\n"


def test_a_name_means_what_is_deployed_before_what_only_runs(live: Live) -> None:
    live.say(p.AppCreated(1, app("ap-001")))
    live.deploy(version(1))
    assert live.json("app", "info", "demo")["app"] == D


# ---------------------------------------------------------------- logs


def test_logs_of_an_app_are_those_of_all_its_versions(live: Live, tmp_path: Path) -> None:
    live.deploy(version(1))
    live.say(p.InputsSubmitted("fc-1", function_id(D, "square"), 0, [Payload()], total=1))
    first = live.engine.only.launch.container
    live.until(lambda: live.engine.only.held)
    live.deploy(version(2))
    second = next(id for id in live.engine.containers if id != first)
    for number, container in enumerate((first, second), 1):
        captured = p.OutputCaptured(container, 1, f"line of version {number}\n".encode(), number)
        live.do(lambda captured=captured: _report(live, captured))  # type: ignore[misc]
    live.do(lambda: _written(live))
    words = ("app", "logs", "demo", "--json")
    result = live.run(*words)
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert {line["text"] for line in lines} == {"line of version 1", "line of version 2"}
    assert {line["app"] for line in lines} == {D}
    assert len(live.run(*words, "--grep", "version 2").stdout.splitlines()) == 1
    assert len(live.run("container", "logs", first[:8] if len(first) > 8 else first).stdout.splitlines()) == 1
    assert len(live.run("app", "logs", D[:9], "--json").stdout.splitlines()) == 2


def test_logs_of_an_app_that_has_printed_nothing(live: Live) -> None:
    live.deploy(version(1))
    for name in ("demo", D):
        result = live.run("app", "logs", name)
        assert (result.exit_code, result.stdout) == (0, ""), result.stderr
        assert result.stderr == "kedge: demo is there, and has printed nothing yet that is kept\n"
    unknown = live.run("app", "logs", "dmo")
    assert unknown.exit_code == 1
    assert unknown.stderr.startswith("Error: ")


async def _report(live: Live, captured: p.OutputCaptured) -> None:
    live.shell.driver.report(captured)


async def _written(live: Live) -> None:
    live.shell.output.flush()
    live.shell.output.book.close()


def test_logs_of_an_app_in_another_environment_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))
    monkeypatch.setenv("KEDGE_CONFIG", str(tmp_path / "none.toml"))
    book = LogBook(tmp_path / "logs" / "logs.db")
    for number, environment in enumerate(("main", "staging"), 1):
        id = deployment_id(environment, "demo")
        chunk = Chunk(Place(f"ct-{number}", id, "demo", "square"), NOBODY, 1, 1, float(number))
        chunk.add(f"in {environment}\n".encode(), float(number), True)
        book.put([chunk])
    book.close()

    def run(*words: str) -> click.testing.Result:
        return click.testing.CliRunner().invoke(main, ["app", "logs", "demo", *words])

    assert run("--env", "staging").stdout.splitlines()[-1].endswith("in staging")
    assert len(run("--env", "staging").stdout.splitlines()) == 1
    assert "in main" in run("--env", "main").stdout
    assert len(run().stdout.splitlines()) == 2


# ---------------------------------------------------------------- help, and no server


@pytest.mark.parametrize("command", ["list", "info", "history", "rollback", "stop", "logs"])
def test_help_has_an_example(command: str) -> None:
    for group in ("app",):
        text = click.testing.CliRunner().invoke(main, [group, command, "-h"]).output
        assert f"kedge {group} {command}" in text.partition("Usage:")[2].partition("\n")[2]


@pytest.mark.parametrize("words", [("list",), ("info", "x"), ("history", "x"), ("rollback", "x"), ("stop", "x")])
def test_without_a_server_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))
    monkeypatch.setenv("KEDGE_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.delenv("KEDGE_SERVER", raising=False)
    result = click.testing.CliRunner().invoke(main, ["app", *words])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: no server is running")
    assert result.stderr.count("\n") == 1
