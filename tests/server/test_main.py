"""The real process: it says when it listens, keeps its state private, and ends as it should, also when it is killed."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kedge.model import protocol as p
from kedge.model.spec import MethodSpec, WebSpec
from kedge.server.main import main
from kedge.wire.transport import BlockingConnection, ConnectionLost
from tests.server.shell import app

WAIT_S = 30.0


class Process:
    """One server process, and the pipe that its owner holds."""

    def __init__(self, home: Path, *options: str, **variables: str) -> None:
        ready, ready_there = os.pipe()
        owned, self.owner = os.pipe()
        command = [sys.executable, "-m", "kedge.server.main", "--home", str(home), "--ready-fd", str(ready_there)]
        self.process = subprocess.Popen(
            [*command, "--owner-fd", str(owned), *options],
            pass_fds=[ready_there, owned],
            env={**os.environ, **variables},
            stderr=subprocess.PIPE,
        )
        os.close(ready_there)
        os.close(owned)
        with os.fdopen(ready, "rb") as file:
            assert select.select([file], [], [], WAIT_S)[0], "no ready line"
            self.facts: dict[str, Any] = json.loads(file.readline())

    def connect(self, address: str = "", token: str = "") -> BlockingConnection:
        connection = BlockingConnection.connect(address or self.facts["address"], p.ToClient)
        connection.send([p.Hello(p.CLIENT, token=token)])
        (welcome,) = connection.receive(WAIT_S)
        assert isinstance(welcome, p.Welcome)
        return connection

    def let_go(self) -> None:
        """The owner is gone."""
        if self.owner >= 0:
            os.close(self.owner)
            self.owner = -1

    def wait(self) -> int:
        try:
            _, self.words = self.process.communicate(timeout=WAIT_S)
        finally:
            self.process.kill()
            self.let_go()
        return self.process.returncode


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path / "home")
    try:
        yield process
    finally:
        process.let_go()
        process.wait()


def ask(connection: BlockingConnection, message: Any) -> Any:
    connection.send([message])
    return connection.receive(WAIT_S)[0]


def test_a_machines_server_from_its_start_to_sigterm(server: Process, tmp_path: Path) -> None:
    home = tmp_path / "home"
    address = server.facts["address"]
    assert address == str(home / "server" / "plane.sock")
    published = json.loads((home / "server" / "server.json").read_text())
    assert published.items() >= {**server.facts, "process": server.process.pid, "options": []}.items()
    for path in [home, *home.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    connection = server.connect()
    assert ask(connection, p.StatisticsRequested(1)).value["apps"] == 0

    second = Process(home)
    assert second.facts == {"error": f"a server is running already in {home / 'server'}; stop it first, or use another "
                            "directory (KEDGE_HOME)"}  # fmt: skip
    assert second.wait() == 1
    assert b"a server is running already" in second.words
    assert b"Traceback" not in second.words

    server.process.send_signal(signal.SIGTERM)
    with pytest.raises(ConnectionLost):
        connection.receive(WAIT_S)
    connection.close()
    assert server.wait() == 0
    assert server.words == b""
    assert not Path(address).exists()
    assert not (home / "server" / "server.json").exists()


def test_it_ends_with_its_owner(tmp_path: Path) -> None:
    server = Process(tmp_path, "--private", "--listen", "tcp://127.0.0.1:0")
    directory = Path(server.facts["address"]).parent
    assert directory.parent == tmp_path / "private"
    server.connect().close()
    server.connect(server.facts["tcp"], server.facts["token"]).close()
    server.let_go()
    assert server.wait() == 0
    assert not directory.exists()


def test_a_private_server_answers_http_as_soon_as_it_has_a_web_function(tmp_path: Path) -> None:
    server = Process(tmp_path, "--private")
    host, _, port = server.facts["web"].removeprefix("http://").partition(":")
    loaded = Path(f"/proc/{server.process.pid}/maps")
    with closing(server.connect()) as connection, socket.create_connection((host, int(port)), WAIT_S) as early:
        early.sendall(b"GET /nothing/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"httptools" not in loaded.read_bytes()
        web = (MethodSpec(web=WebSpec(kind="asgi_app")),)
        reply = ask(connection, p.AppCreated(1, app(methods=web)))
        assert list(reply.value["labels"]) == ["square"]
        assert early.recv(100).startswith(b"HTTP/1.1 404 ")
        assert b"httptools" in loaded.read_bytes()
    server.let_go()
    assert server.wait() == 0


def test_a_server_that_was_killed_is_followed_by_another(tmp_path: Path) -> None:
    machine, private = Process(tmp_path), Process(tmp_path, "--private")
    for killed in (machine, private):
        killed.process.kill()
        assert killed.wait() == -signal.SIGKILL
    left = Path(private.facts["address"]).parent
    assert left.exists()
    assert Path(machine.facts["address"]).exists()
    again = Process(tmp_path)
    assert again.facts["address"] == machine.facts["address"]
    assert again.facts["token"] == machine.facts["token"]
    assert not left.exists()
    with closing(again.connect()) as connection:
        assert ask(connection, p.StatisticsRequested(1)).error is None
    again.process.send_signal(signal.SIGINT)
    assert again.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "variables", "text"),
    [
        ([], {"KEDGE_GPUS": "two H100s"}, "KEDGE_GPUS (or --gpus): 'two H100s' is not NAME=COUNT; write for example"),
        (["--gpus", "H100=-1"], {}, "--gpus: 'H100=-1' is not NAME=COUNT"),
        (["--gpus", "H100=99999"], {}, "--gpus: 'H100=99999' is not NAME=COUNT"),
        ([], {"KEDGE_CPUS": "many"}, "KEDGE_CPUS (or --cpus) is 'many'; it must be a number above 0"),
        (["--cpus", "nan"], {}, "--cpus is 'nan'"),
        (["--memory", "-5"], {}, "--memory, in MiB, is '-5'; it must be a number above 0"),
        ([], {"KEDGE_LOGLEVEL": "loud"}, "KEDGE_LOGLEVEL (or --log-level) is 'loud'; it must be one of debug, info"),
        (["--listen", "0.0.0.0:80"], {}, "--listen is '0.0.0.0:80'; write tcp://HOST:PORT"),
        (["--listen", "tcp://localhost"], {}, "'tcp://localhost' is no address to listen or connect to"),
    ],
)
def test_settings_that_make_no_sense_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    variables: dict[str, str],
    text: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ready, there = os.pipe()
    assert main(["--home", str(tmp_path / "home"), "--ready-fd", str(there), *arguments]) == 1
    assert text in capsys.readouterr().err
    with os.fdopen(ready) as file:
        assert text in json.load(file)["error"]
    assert not (tmp_path / "home").exists()


def test_a_home_that_cannot_be_used_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["--home", str(tmp_path / "file" / "home")]) == 1
    assert "Not a directory" in capsys.readouterr().err
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "state.db").write_bytes(b"not a database" * 100)
    assert main(["--home", str(tmp_path)]) == 1
    assert "state.db cannot be used: file is not a database" in capsys.readouterr().err
