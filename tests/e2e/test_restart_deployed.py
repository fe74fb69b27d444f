"""Servers of deployed apps are killed and run out of disk: nothing that was acknowledged is lost, nothing is done twice
for who looks at results."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.commands import LONG, Place, eventually, place

pytestmark = pytest.mark.slow

APP = """
import os, time
from pathlib import Path
import kedge

app = kedge.App("bakery")
NOTES = Path(__file__ if kedge.is_local() else os.environ["NOTES"])

@app.function(max_containers=2, scaledown_window=2)
@kedge.concurrent(max_inputs=8)
def bake(name: str, seconds: float = 0.02) -> str:
    with (NOTES / "pids").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(seconds)
    (NOTES / f"{name} has ended").touch()
    return f"{name} is ready"

@app.function(schedule=kedge.Period(seconds=1), scaledown_window=60)
def tick() -> None:
    with (NOTES / "ticks").open("a") as file:
        file.write(f"{kedge.current_function_call_id()}\\n")

@app.function(min_containers=1)
@kedge.asgi_app()
def shop():
    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"open"})
    return answer
"""

SPAWN = """
import sys, time, kedge
bake = kedge.Function.from_name("bakery", "bake")
for number in range(int(sys.argv[1])):
    print(bake.spawn(f"loaf {number}").object_id, flush=True)
    time.sleep(0.01)
"""

COLLECT = """
import json, sys, kedge
print(json.dumps([kedge.FunctionCall.from_id(id).get(timeout=60) for id in sys.argv[1:]]))
"""


class Bakery:
    """A place with a deployed app, and its server."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.home = Path(place.variables["KEDGE_HOME"])
        place.write("app.py", APP)
        place.kedge("deploy", "app.py")

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.home / "server" / "server.json").read_text())
        return facts

    @property
    def below(self) -> list[psutil.Process]:
        """Everything that the server has started."""
        return psutil.Process(self.facts["process"]).children(recursive=True)

    def kill(self) -> list[psutil.Process]:
        """What was below the server that is gone now."""
        process, below = self.facts["process"], self.below
        os.kill(process, signal.SIGKILL)
        eventually(lambda: not psutil.pid_exists(process))
        return below

    def start(self) -> None:
        self.place.kedge("server", "start")

    def page(self) -> bytes:
        with urllib.request.urlopen(f"{self.facts['web']}/bakery-shop/", timeout=LONG) as answer:
            body: bytes = answer.read()
            return body

    def rows(self, query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.home / "server" / "state.db")) as database:
            return database.execute(query).fetchall()

    @property
    def ticks(self) -> list[str]:
        """Calls that the schedule has made, as they ran."""
        path = self.place.directory / "ticks"
        return path.read_text().split() if path.exists() else []

    def collect(self, ids: list[str]) -> list[str]:
        found: list[str] = json.loads(self.place.python("-c", COLLECT, *ids).stdout)
        return found

    def limit_files(self, size: int) -> None:
        """No file of the server may be larger: its disk is full, or is not any more."""
        hard = resource.prlimit(self.facts["process"], resource.RLIMIT_FSIZE)[1]
        resource.prlimit(self.facts["process"], resource.RLIMIT_FSIZE, (size, hard))


@pytest.fixture
def bakery(tmp_path: Path) -> Iterator[Bakery]:
    with place(tmp_path, NOTES=str(tmp_path)) as made:
        yield Bakery(made)


def seed() -> int:
    number = int(os.environ.get("SEED") or random.randrange(2**32))
    print(f"SEED={number}")
    return number


@pytest.mark.timeout(240)
def test_whatever_was_spawned_is_done_once_though_servers_are_killed(bakery: Bakery) -> None:
    chance = random.Random(seed())
    before = bakery.facts["web"]
    assert bakery.page() == b"open"
    program = subprocess.Popen(
        [sys.executable, "-c", SPAWN, "200"],
        cwd=bakery.place.directory,
        env=bakery.place.variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        ids = []
        for moment in sorted(chance.sample(range(5, 195), 3)):
            while len(ids) < moment:
                ids.append(program.stdout.readline().strip())
            below = bakery.kill()
            assert below
            bakery.start()
            eventually(lambda below=below: not any(process.is_running() for process in below))
            assert bakery.facts["web"] == before
        ids += program.stdout.read().split()
        assert program.wait(LONG) == 0
    finally:
        program.kill()
        program.communicate()
    assert len(set(ids)) == 200
    assert bakery.collect(ids) == [f"loaf {number} is ready" for number in range(200)]
    baked = "SELECT call FROM calls WHERE function = 'bake'"
    counts = bakery.rows(f"SELECT count(*), count(DISTINCT call) FROM results WHERE call IN ({baked})")
    assert counts == [(200, 200)]
    assert bakery.page() == b"open"
    assert bakery.ticks
    assert set(bakery.ticks) <= {call for (call,) in bakery.rows("SELECT call FROM calls WHERE function = 'tick'")}


def test_containers_end_with_a_server_that_is_killed_and_its_app_keeps_containers_again(bakery: Bakery) -> None:
    assert bakery.page() == b"open"
    below = bakery.kill()
    eventually(lambda: not any(process.is_running() for process in below))
    bakery.start()
    eventually(lambda: len(bakery.below) >= 3)  # supervisor, fork server, and a container without a request
    assert bakery.page() == b"open"


def test_a_full_disk_is_said_and_loses_nothing_that_was_acknowledged(bakery: Bakery) -> None:
    program = bakery.place.program
    spawn = "import kedge; print(kedge.Function.from_name('bakery', 'bake').spawn({!r}, {}).object_id)"
    before = program(spawn.format("early", 0)).strip()
    running = program(spawn.format("running", 3)).strip()
    eventually(lambda: bakery.rows("SELECT count(*) FROM results")[0][0] >= 1)

    bakery.limit_files(1)
    refused = bakery.place.python("-c", spawn.format("late", 0), code=None)
    assert refused.returncode == 1
    assert "the server cannot write" in refused.stderr
    again = bakery.place.kedge("deploy", "app.py", code=1)
    assert "was not deployed: the server cannot write" in again.stderr
    assert bakery.page() == b"open"
    called = program("import kedge; print(kedge.Function.from_name('bakery', 'bake').remote('without a trace'))")
    assert called == "without a trace is ready\n"
    eventually(lambda: (bakery.place.directory / "running has ended").exists())
    # Its result is with the server, which cannot write it: the container has nothing to do.
    listed = ("container", "list", "--json")
    eventually(lambda: not any(one["inputs"] for one in json.loads(bakery.place.kedge(*listed).stdout)))

    bakery.limit_files(-1)
    assert bakery.collect([before, running]) == ["early is ready", "running is ready"]
    ticked = len(bakery.ticks)
    eventually(lambda: len(bakery.ticks) > ticked)
    assert bakery.place.kedge("deploy", "app.py").stdout.startswith("bakery, version 2")
    assert "state.db can be written again" in (bakery.home / "logs" / "server.log").read_text()
    # And all of it is really there.
    bakery.kill()
    bakery.start()
    assert bakery.collect([before, running]) == ["early is ready", "running is ready"]
    assert json.loads(bakery.place.kedge("app", "list", "--json").stdout)[0]["version"] == 2


def test_a_restart_in_order_keeps_everything_and_ends_what_runs(bakery: Bakery) -> None:
    first = bakery.facts
    bakery.place.kedge("server", "restart")
    assert bakery.facts["process"] != first["process"]
    assert (bakery.facts["web"], bakery.facts["token"]) == (first["web"], first["token"])
    assert bakery.page() == b"open"
    bakery.place.kedge("app", "stop", "bakery", "-y")
    bakery.place.kedge("server", "restart")
    with pytest.raises(urllib.error.HTTPError) as error:
        bakery.page()
    error.value.close()
    assert error.value.code == 404
    listed = json.loads(bakery.place.kedge("app", "list", "--json").stdout)
    assert [(app["name"], app["state"]) for app in listed] in ([("bakery", "stopped")], [])
