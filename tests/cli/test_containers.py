"""`kedge container`: what runs, its end, and commands beside it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kedge.cli import surroundings
from kedge.model import protocol as p
from kedge.model.spec import CodeSpec, Concurrency, EnvironmentSpec
from tests.cli.live import Live
from tests.server.shell import app, inputs

COLUMNS = ["container", "app", "function", "version", "state", "running"]


def started(live: Live, **options: Any) -> str:
    """A container that runs an input; its id."""
    live.say(p.AppCreated(1, app(**options)), inputs("a"))
    live.until(lambda: live.engine.containers and live.engine.only.held)
    return live.engine.only.launch.container


# ---------------------------------------------------------------- list


def test_no_container_is_running(live: Live) -> None:
    result = live.run("container", "list")
    assert (result.exit_code, result.stdout) == (
        0,
        "No container is running. Calls start them, and so do functions with min_containers.\n",
    )
    assert live.json("container", "list") == []


def test_containers_stand_in_a_table(live: Live) -> None:
    container = started(live, concurrency=Concurrency(4, 4, declared=True))
    heading, row = live.run("container", "list").stdout.splitlines()
    assert heading.split() == [*COLUMNS, "up", "for", "process", "gpu"]
    assert row.split()[:6] == [container, "demo", "square", "-", "ready", "1/4"]
    assert row.split()[-2:] == ["4711", "-"]
    (facts,) = live.json("container", "list")
    assert (facts["container"], facts["app"], facts["inputs"], facts["max_inputs"]) == (container, "ap-1", 1, 4)


def test_those_of_one_app(live: Live) -> None:
    container = started(live)
    for words in (("demo",), ("ap-1",)):
        assert [one["container"] for one in live.json("container", "list", "--app", *words)] == [container]
    assert live.json("container", "list", "--app", "dmo") == []
    result = live.run("container", "list", "--app", "dmo")
    assert result.stderr == "Error: no app 'dmo' has containers. Did you mean 'demo'? There are those of: demo\n"


# ---------------------------------------------------------------- stop


def test_a_container_finishes_what_it_runs_and_leaves(live: Live) -> None:
    id = started(live)
    container = live.engine.only
    result = live.run("container", "stop", id)
    assert (result.exit_code, result.stdout) == (
        0,
        f"{id} takes nothing new, and leaves when it has finished what it runs.\n",
    )
    live.until(lambda: any(isinstance(message, p.ContainerDrained) for message in container.messages))
    (drained,) = [message for message in container.messages if isinstance(message, p.ContainerDrained)]
    assert not drained.cancel
    assert live.engine.killed == []


def test_a_container_is_ended_at_once(live: Live) -> None:
    container = started(live)
    assert live.run("container", "stop", "--force", container).stdout == f"{container} has been ended.\n"
    assert (container, 0.0) in live.engine.killed
    # What it ran runs again, in another one.
    live.until(lambda: any(id != container and c.held for id, c in live.engine.containers.items()))


def test_an_unknown_container(live: Live) -> None:
    container = started(live)
    result = live.run("container", "stop", "ct-nobody")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: there is no container 'ct-nobody'. There are: {container}. `kedge container list` shows those that "
        "run.\n"
    )


# ---------------------------------------------------------------- exec


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], dict[str, str], str]]:
    """What this process would have become: program, words, variables, directory."""
    found: list[tuple[str, list[str], dict[str, str], str]] = []

    def execve(program: str, words: list[str], variables: dict[str, str]) -> None:
        found.append((program, words, variables, os.getcwd()))
        sys.exit(0)

    monkeypatch.setattr(surroundings.os, "execve", execve)
    monkeypatch.chdir(os.getcwd())
    return found


def test_a_command_finds_what_the_container_has(live: Live, tmp_path: Path, became: list[Any]) -> None:
    environment = EnvironmentSpec(
        python=sys.executable,
        python_version="3.11",
        sys_path=("/src/project", "/venv/lib/python3.11/site-packages", "/usr/lib/python3.11"),
        variables=(("PATH", "/usr/bin:/bin"), ("TERM", "dumb"), ("A", "declared")),
        directory=str(tmp_path),
    )
    spec = replace(app(env=(("A", "by the function"),)), environment=environment, code=CodeSpec(root="/code/abc"))
    live.say(p.AppCreated(1, spec), inputs("a"))
    live.until(lambda: live.engine.containers and live.engine.only.held)
    container = live.engine.only.launch.container
    result = live.run("container", "exec", container, "--", "sh", "-c", "exit 3", env={"TERM": "xterm", "A": "mine"})
    assert result.exit_code == 0, result.stderr
    ((program, words, variables, directory),) = became
    assert (Path(program).name, words, directory) == ("sh", ["sh", "-c", "exit 3"], str(tmp_path))
    assert variables["KEDGE_CONTAINER_ID"] == container
    assert (variables["A"], variables["TERM"]) == ("by the function", "xterm")
    assert variables["PATH"] == f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"
    assert variables["PYTHONPATH"] == "/code/abc:/src/project"
    assert "KEDGE_HOME" not in variables


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["no-such-command"], 127, "Error: there is no command 'no-such-command' on the path of the container"),
        (["--"], 2, "there is no command after `--`; write for example: kedge container exec ID -- bash"),
        ([], 2, "Missing argument '-- COMMAND...'"),
    ],
)
def test_a_command_that_is_not_there(live: Live, words: list[str], code: int, text: str) -> None:
    result = live.run("container", "exec", started(live), *words)
    assert result.exit_code == code
    assert text in result.stderr


def test_over_tcp_there_is_no_way_in(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    container = started(live)
    address = live.do(lambda: live.shell.rpc.listen("tcp://127.0.0.1:0"))
    token = live.do(lambda: live.shell.tokens.create("api"))
    monkeypatch.setenv("KEDGE_SERVER", address)
    monkeypatch.setenv("KEDGE_TOKEN", f"{token['id']}.{token['secret']}")
    assert [one["container"] for one in live.json("container", "list")] == [container]
    for words in (("container", "exec", container, "--", "true"), ("shell", container, "-c", "true")):
        result = live.run(*words)
        assert result.exit_code == 1
        assert "runs on the machine of the containers only, and this server is at tcp://127.0.0.1:" in result.stderr


# ---------------------------------------------------------------- what is around it, without a server


LAUNCH = {
    "environment": "staging",
    "python": "/opt/py/bin/python",
    "directory": "/",
    "sys_path": [],
    "code": "",
    "variables": {"OMP_NUM_THREADS": "7"},
    "env": {},
    "alias_modal": True,
    "cpu": 2.0,
}


def test_variables_as_containers_have_them() -> None:
    container = {"container": "ct-1", "devices": [2, 3]}
    found = surroundings.variables_of(LAUNCH, container, {"HOME": "/elsewhere", "COLORTERM": "truecolor"})
    assert {name: found[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")} == {
        "OMP_NUM_THREADS": "7",
        "MKL_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "2,3",
    }
    assert (found["KEDGE_ENVIRONMENT"], found["MODAL_TASK_ID"], found["KEDGE_IS_REMOTE"]) == ("staging", "ct-1", "1")
    assert found["COLORTERM"] == "truecolor"
    assert "HOME" not in found
    assert Path(found["PYTHONPATH"], "modal", "__init__.py").is_file()  # `import modal` means kedge there, too
    assert found["PATH"].startswith("/opt/py/bin:")
    assert "KEDGE_CONTAINER_ID" not in surroundings.variables_of(LAUNCH, None, {})
    assert "PYTHONPATH" not in surroundings.variables_of({**LAUNCH, "alias_modal": False}, None, {})


def test_a_directory_that_is_gone_is_said(
    became: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        surroundings.become(["sh"], {**LAUNCH, "directory": "/no/such/place"}, None)
    assert f"kedge: running in {tmp_path}: cannot enter /no/such/place" in capsys.readouterr().err
    assert became[0][3] == str(tmp_path)
