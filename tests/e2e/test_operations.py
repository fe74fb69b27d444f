"""A day with a server: deploy, look, roll back, step into a container, let another machine in, end it all."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

LONG = 60.0
"""Seconds after which something has gone wrong; nothing here takes as long."""

APP = """
import os
import time
import kedge

app = kedge.App("chat")
VERSION = {version!r}

@app.function(min_containers=1)
@kedge.concurrent(max_inputs=8)
@kedge.asgi_app()
def page():
    async def answer(scope, receive, send):
        if scope["type"] == "lifespan":
            return
        print("asked", VERSION)
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        await send({{"type": "http.response.body", "body": VERSION.encode()}})
    return answer

@app.function(schedule=kedge.Cron("0 6 1 1 *"))
def nightly():
    pass

@app.function(min_containers=1, max_containers=1)
def wait(path):
    open(path, "w").close()
    while not os.path.exists(path + ".go"):
        time.sleep(0.01)
    return VERSION
"""


class Home:
    """A state directory with a machine's server, and a file to deploy."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        own = {key: value for key, value in os.environ.items() if not key.startswith("KEDGE_")}
        self.environment = {**own, "KEDGE_HOME": str(directory / "home"), "KEDGE_CONFIG": str(directory / "none.toml")}

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "kedge.cli.main", *words],
            env={**self.environment, **variables},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, **variables: str) -> tuple[int, str, str]:
        process = self.start(*words, **variables)
        stdout, stderr = process.communicate(timeout=LONG)
        return process.returncode, stdout, stderr

    def json(self, *words: str, **variables: str) -> Any:
        code, stdout, stderr = self.run(*words, "--json", **variables)
        assert code == 0, stderr
        return json.loads(stdout)

    def deploy(self, version: str, *words: str, **variables: str) -> None:
        (self.directory / "script.py").write_text(APP.format(version=version))
        code, _, stderr = self.run("deploy", *words, "script.py", **variables)
        assert code == 0, stderr

    def container(self, function: str, version: int) -> str:
        """A container of the version of a function that is ready."""

        def there() -> Any:
            found = self.json("container", "list")
            return [
                one["container"]
                for one in found
                if (one["function"], one["version"], one["state"]) == (function, version, "ready")
            ]

        eventually(there)
        return str(there()[0])

    def get(self, url: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=LONG) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def waiting(self, path: Path) -> subprocess.Popen[str]:
        """A program that calls `wait` of whatever version is current."""
        code = f"import kedge; print(kedge.Function.from_name('chat', 'wait').remote({str(path)!r}))"
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=self.environment, stdout=subprocess.PIPE, text=True, cwd=self.directory
        )
        eventually(path.exists)
        return process


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    code, stdout, stderr = home.run("server", "stop")
    assert code == 0, stdout + stderr


def test_versions_of_an_app_from_the_first_to_its_end(home: Home, tmp_path: Path) -> None:
    home.deploy("one", "--tag", "first")
    home.deploy("two")
    (app,) = home.json("app", "list")
    assert (app["name"], app["state"], app["version"], app["tag"]) == ("chat", "deployed", 2, "")
    url = app["urls"]["page"]
    assert home.get(url) == (200, "two")

    # What runs when another version takes over goes on in the one that it began in.
    program = home.waiting(tmp_path / "began")
    try:
        code, stdout, stderr = home.run("app", "rollback", "chat")
        assert (code, stdout) == (0, "chat is at version 3, a copy of version 1.\n"), stderr
        assert home.get(url) == (200, "one")
        (tmp_path / "began.go").touch()
        assert program.communicate(timeout=LONG)[0] == "two\n"
    finally:
        program.kill()
        program.communicate()

    history = home.json("app", "history", "chat")
    rows = [(one["version"], one["origin_version"], one["tag"], one["current"]) for one in history]
    assert rows == [(3, 1, "first", True), (2, 0, "", False), (1, 0, "first", False)]
    code, stdout, _ = home.run("app", "logs", "chat", "--grep", "asked")
    assert [line.partition("│ ")[2] for line in stdout.splitlines()] == ["asked two", "asked one"]
    nightly = next(one for one in home.json("function", "list") if one["name"] == "nightly")
    assert nightly["next_run"] > time.time()

    code, _, stderr = home.run("app", "stop", "chat")
    assert code == 2
    assert "There is no terminal to answer on; --yes (-y) says that you mean it." in stderr
    assert home.run("app", "stop", "chat", "--yes")[1] == f"chat ({app['app']}) has stopped.\n"
    assert home.get(url)[0] == 404
    assert home.json("container", "list") == []
    assert [one["state"] for one in home.json("app", "list", "--all")] == ["stopped"]


def test_commands_in_the_place_of_a_container(home: Home, tmp_path: Path) -> None:
    home.deploy("one")
    container = home.container("wait", 1)
    script = (
        "import os, sys; print(sys.executable, os.environ['KEDGE_CONTAINER_ID'], os.getcwd()); import script;"
        "print(script.VERSION); sys.exit(7)"
    )
    code, stdout, stderr = home.run("container", "exec", container[:9], "--", "python", "-c", script)
    assert (code, stdout) == (7, f"{sys.executable} {container} {tmp_path}\none\n"), stderr
    assert home.run("container", "exec", container, "--", "sh", "-c", "kill -9 $$")[0] == -9
    assert home.run("shell", "chat.wait", "-c", "echo $KEDGE_IS_REMOTE; exit 3")[:2] == (3, "1\n")

    # On a terminal it is the terminal of whoever asked.
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kedge.cli.main", "shell", container],
        env={**home.environment, "SHELL": "/bin/sh", "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.write(ours, b"test -t 0 && echo id=$KEDGE_CONTAINER_ID; exit 4\n")
    written = read_all(ours)
    assert process.wait(LONG) == 4
    assert f"id={container}" in written
    assert f"kedge: this shell runs as {container} does" in written


def read_all(descriptor: int) -> str:
    data = b""
    while select.select([descriptor], [], [], LONG)[0]:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # the other side is closed
            break
        data += piece
    os.close(descriptor)
    return data.decode()


def test_a_container_that_is_stopped_finishes_what_it_runs(home: Home, tmp_path: Path) -> None:
    home.deploy("one")
    program = home.waiting(tmp_path / "began")
    try:
        container = home.container("wait", 1)
        code, stdout, _ = home.run("container", "stop", container)
        assert (code, stdout.startswith(f"{container} takes nothing new")) == (0, True)
        (tmp_path / "began.go").touch()
        assert program.communicate(timeout=LONG)[0] == "one\n"
        eventually(lambda: container not in [one["container"] for one in home.json("container", "list")])
        # The function keeps one: another has taken its place.
        assert home.container("wait", 1) != container
    finally:
        program.kill()
        program.communicate()


def test_calls_that_are_open_and_calls_that_are_over(home: Home, tmp_path: Path) -> None:
    home.deploy("one")
    paths = [str(tmp_path / name) for name in ("a", "b")]
    code = (
        f"import kedge; f = kedge.Function.from_name('chat', 'wait'); print(*[f.spawn(p).object_id for p in {paths!r}])"
    )
    ids = subprocess.run(
        [sys.executable, "-c", code], env=home.environment, capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout.split()
    eventually((tmp_path / "a").exists)
    calls = {one["call"]: one["state"] for one in home.json("function", "calls", "chat.wait")}
    assert calls == {ids[0]: "running", ids[1]: "queued"}
    (pool,) = home.json("function", "stats", "chat.wait")
    assert (pool["running"], pool["backlog"], pool["containers"]) == (1, 1, 1)
    (tmp_path / "a.go").touch()
    eventually((tmp_path / "b").exists)
    calls = {one["call"]: one["state"] for one in home.json("function", "calls", "chat.wait")}
    assert calls == {ids[0]: "done", ids[1]: "running"}
    (tmp_path / "b.go").touch()


def test_another_machine_comes_in_with_a_token_and_is_shut_out_without_it(home: Home, tmp_path: Path) -> None:
    code, stdout, stderr = home.run("server", "start", "--listen", "tcp://127.0.0.1:0")
    assert code == 0, stderr
    (address,) = re.findall(r"tcp://127\.0\.0\.1:\d+", stdout)
    token = home.json("token", "create", "laptop")
    secret = f"{token['id']}.{token['secret']}"
    guest = {"KEDGE_SERVER": address, "KEDGE_TOKEN": secret, "KEDGE_HOME": str(tmp_path / "elsewhere")}
    assert home.json("app", "list", **guest) == []

    # It shares no disk with the server: the code is uploaded, and runs from there.
    home.deploy("from afar", **guest)
    (tmp_path / "script.py").unlink()
    (app,) = home.json("app", "list", **guest)
    assert home.get(app["urls"]["page"]) == (200, "from afar")
    (code_root,) = (tmp_path / "home" / "server" / "code").iterdir()
    assert [path.name for path in code_root.glob("*.py")] == ["script.py"]

    container = home.container("page", 1)
    code, _, stderr = home.run("container", "exec", container, "--", "true", **guest)
    assert code == 1
    assert (
        f"`kedge container exec` runs on the machine of the containers only, and this server is at {address}" in stderr
    )

    assert home.run("token", "delete", "laptop", "-y")[0] == 0
    code, _, stderr = home.run("app", "list", **guest)
    assert code == 1
    assert "wrong token: set KEDGE_TOKEN to a token of the server" in stderr
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert token["secret"].encode() not in path.read_bytes(), path


GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "operations.md"


def test_the_guide_shows_what_is_shown(home: Home, tmp_path: Path) -> None:
    text = GUIDE.read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shown = re.findall(r"^\$ kedge (.*)\n(.*)\n", text, re.MULTILINE)
    assert len(shown) == 6, "the examples of the guide are no longer found"
    (tmp_path / "shop.py").write_text(program)
    code, _, stderr = home.run("deploy", "shop.py", "--tag", "spring")
    assert code == 0, stderr
    spawn = "import kedge; print(kedge.Cls.from_name('shop', 'Report')().write.spawn(0.0).get(timeout=60))"
    environment = {**home.environment, "PYTHONWARNINGS": "error"}
    found = subprocess.run([sys.executable, "-c", spawn], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (0, "report of 2026\n"), found.stderr
    for words, heading in shown:
        code, stdout, stderr = home.run(*words.split())
        assert code == 0, stderr
        assert stdout.partition("\n")[0].split() == heading.split()
    (app,) = home.json("app", "list")
    assert home.get(f"{app['urls']['price']}?article=3") == (200, '{"article":3,"price":21}')
