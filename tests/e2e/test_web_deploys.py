"""Deploys, reloads and restarts while clients ask all the time: nobody loses a request, and addresses stay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from benchmarks.soak import Harbour
from websockets.sync.client import connect

from tests.e2e.web_clients import PATIENCE_S, Raw, http, wait_until

pytestmark = pytest.mark.slow

PROGRAM = """
import asyncio
import kedge

app = kedge.App("ferry")
VERSION = {version}
{more}

async def web(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({{"type": event["type"] + ".complete"}})
            if event["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({{"type": "websocket.accept"}})
        while (event := await receive())["type"] == "websocket.receive":
            await send({{"type": "websocket.send", "text": f"{{VERSION}} {{event['text']}}"}})
        return
    await asyncio.sleep(0.02)
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    if scope["path"].endswith("/slowly"):
        for n in range(20):
            await send({{"type": "http.response.body", "body": b"%d " % VERSION, "more_body": True}})
            await asyncio.sleep(0.1)
    await send({{"type": "http.response.body", "body": str(VERSION).encode()}})


@app.function()
@kedge.concurrent(max_inputs=20)
@kedge.asgi_app(label="ferry")
def site():
    return web


@app.function()
@kedge.asgi_app(label="locked", requires_proxy_auth=True)
def locked():
    return web
"""


class Ferry:
    """A server, and the program of which it gets ever newer versions."""

    def __init__(self, directory: Path) -> None:
        self.harbour = Harbour(directory / "home")
        self.file = directory / "ferry.py"

    def write(self, version: int, more: str = "") -> None:
        """At once, as editors do."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(PROGRAM.format(version=version, more=more))
        fresh.rename(self.file)

    def deploy(self, version: int, *options: str) -> str:
        self.write(version)
        self.harbour.kedge("deploy", str(self.file), *options)
        return self.url

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.harbour.environment['KEDGE_PORT']}/ferry/"


@pytest.fixture
def ferry(tmp_path: Path) -> Iterator[Ferry]:
    ferry = Ferry(tmp_path)
    ferry.harbour.kedge("server", "start")
    yield ferry
    ferry.harbour.kedge("server", "stop")


class Passenger(threading.Thread):
    """Asks again and again, on a connection that is kept."""

    def __init__(self, url: str, stop: threading.Event) -> None:
        super().__init__()
        self._url = url
        self._stop_asking = stop
        self.seen: list[str] = []
        """What it was answered: a body, or what went wrong."""

    def run(self) -> None:
        with http() as client:
            while not self._stop_asking.is_set():
                try:
                    answer = client.get(self._url)
                    self.seen.append(
                        answer.text if answer.status_code == 200 else f"{answer.status_code} {answer.text}"
                    )
                except httpx.HTTPError as error:
                    self.seen.append(repr(error))


@contextmanager
def traffic(url: str, count: int = 6) -> Iterator[list[Passenger]]:
    stop = threading.Event()
    passengers = [Passenger(url, stop) for _ in range(count)]
    for passenger in passengers:
        passenger.start()
    try:
        yield passengers
    finally:
        stop.set()
        for passenger in passengers:
            passenger.join()


def wait_for_all(passengers: list[Passenger], version: int) -> None:
    wait_until(lambda: all(one.seen and one.seen[-1] == str(version) for one in passengers), f"version {version}")


def check(passengers: list[Passenger], versions: list[int]) -> None:
    """Each answer is of one of these, and none is older than the one before."""
    for passenger in passengers:
        assert set(passenger.seen) <= {str(version) for version in versions}, set(passenger.seen)
        assert passenger.seen == sorted(passenger.seen, key=int)


@pytest.mark.parametrize("strategy", ["rolling", "recreate"])
def test_a_deploy_loses_no_request(ferry: Ferry, strategy: str) -> None:
    url = ferry.deploy(1)
    with traffic(url) as passengers:
        wait_for_all(passengers, 1)
        for version in (2, 3):
            ferry.deploy(version, "--strategy", strategy)
            wait_for_all(passengers, version)
        ferry.harbour.kedge("app", "rollback", "ferry")
        wait_for_all(passengers, 2)
    for passenger in passengers:
        assert set(passenger.seen) == {"1", "2", "3"}, set(passenger.seen)


def test_what_was_begun_is_finished_by_the_version_that_began_it(ferry: Ferry) -> None:
    url = ferry.deploy(1)
    with Raw(url) as raw, connect(url.replace("http", "ws"), open_timeout=PATIENCE_S, proxy=None) as link:
        raw.send("GET {path}slowly HTTP/1.1\r\nHost: {host}\r\n\r\n")
        assert raw.head().startswith("HTTP/1.1 200")
        link.send("ahoy")
        assert link.recv(timeout=PATIENCE_S) == "1 ahoy"
        ferry.deploy(2)
        with http() as client:
            assert client.get(url).text == "2"
        link.send("still there")
        assert link.recv(timeout=PATIENCE_S) == "1 still there"
        assert b"".join(iter(raw.chunk, b"")) == b"1 " * 20 + b"1"


def test_a_version_that_cannot_start_changes_nothing(ferry: Ferry) -> None:
    url = ferry.deploy(1)
    with traffic(url) as passengers:
        wait_for_all(passengers, 1)
        ferry.write(2, "if not kedge.is_local():\n    raise RuntimeError('the hold is full of water')")
        with pytest.raises(RuntimeError, match="the hold is full of water"):
            ferry.harbour.kedge("deploy", str(ferry.file))
        ferry.write(3, "this is no Python")
        with pytest.raises(RuntimeError, match="SyntaxError"):
            ferry.harbour.kedge("deploy", str(ferry.file))
        counts = [len(passenger.seen) for passenger in passengers]
        wait_until(lambda: all(len(one.seen) > n + 5 for one, n in zip(passengers, counts, strict=True)))
    check(passengers, [1])


def test_a_deployed_app_is_there_again_after_its_server_was_killed(ferry: Ferry) -> None:
    url = ferry.deploy(1)
    with http() as client:
        assert client.get(url).text == "1"
        os.kill(ferry.harbour.facts()["process"], signal.SIGKILL)
        ferry.harbour.kedge("server", "start")
        assert client.get(url).text == "1"


def test_edits_of_a_served_file_lose_no_request(ferry: Ferry) -> None:
    ferry.write(1)
    command = [sys.executable, "-m", "kedge.cli.main", "serve", str(ferry.file)]
    log = ferry.file.with_name("served")
    with log.open("w") as file:
        serving = subprocess.Popen(command, env=ferry.harbour.environment, stdout=file, stderr=subprocess.STDOUT)
    url = ferry.url.replace("/ferry/", "/ferry-dev/")
    try:
        with http() as client:
            wait_until(lambda: serving.poll() is None and client.get(url).status_code == 200, "it is served")
        with traffic(url) as passengers:
            wait_for_all(passengers, 1)
            ferry.write(2)
            wait_for_all(passengers, 2)
            ferry.write(3, "this is no Python")
            wait_until(lambda: "SyntaxError" in log.read_text(), "the error is shown")
            ferry.write(4)
            wait_for_all(passengers, 4)
        check(passengers, [1, 2, 4])
    finally:
        serving.send_signal(signal.SIGINT)
        serving.wait(PATIENCE_S)
    with http() as client:
        wait_until(lambda: client.get(url).status_code == 404, "the address is gone with it")


def test_an_address_that_needs_a_key(ferry: Ferry) -> None:
    url = ferry.deploy(1).replace("/ferry/", "/locked/")
    token = json.loads(ferry.harbour.kedge("token", "create", "--proxy", "--json", "partner"))
    key, secret = token["id"], token["secret"]
    with http() as client:
        assert client.get(url).status_code == 401
        assert client.get(url, headers={"kedge-key": key, "kedge-secret": "ws-wrong"}).status_code == 401
        assert client.get(url, headers={"kedge-key": key, "kedge-secret": secret}).text == "1"
        assert client.get(url, headers={"modal-key": key, "modal-secret": secret}).text == "1"
        ferry.harbour.kedge("token", "delete", "--yes", key)
        assert client.get(url, headers={"kedge-key": key, "kedge-secret": secret}).status_code == 401
