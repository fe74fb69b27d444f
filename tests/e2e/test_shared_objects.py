"""Dicts and queues with real containers: many of them, cancelled, killed, and with their server started anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.commands import LONG, Place, eventually, place

pytestmark = pytest.mark.slow

APP = """
import asyncio, os, time
import kedge

app = kedge.App("post")
jobs = kedge.Queue.from_name("jobs", create_if_missing=True)
done = kedge.Dict.from_name("done", create_if_missing=True)

@app.function(max_containers=3)
@kedge.concurrent(max_inputs=4)
def consume(letters: kedge.Queue) -> list[int]:
    found = []
    while (item := letters.get()) is not None:
        found.append(item)
    return found

@app.function(max_containers=2)
@kedge.concurrent(max_inputs=8)
async def consume_async(letters: kedge.Queue) -> list[int]:
    found = []
    while (item := await letters.get.aio()) is not None:
        found.append(item)
    return found

@app.function(retries=0)
@kedge.concurrent(max_inputs=4)
def wait_for_one(name: str) -> str:
    done[name] = os.getpid()
    try:
        return jobs.get(partition="waits")
    except BaseException as error:
        done[name] = type(error).__name__
        raise

@app.function()
@kedge.concurrent(max_inputs=4)
async def wait_for_one_async(name: str) -> str:
    await done.put.aio(name, os.getpid())
    try:
        return await jobs.get.aio(partition="waits")
    except BaseException as error:
        await asyncio.shield(done.put.aio(name, type(error).__name__))
        raise

@app.function()
def ephemeral_inside() -> int:
    with kedge.Queue.ephemeral() as queue, kedge.Dict.ephemeral() as seen:
        queue.put_many(range(10))
        for value in queue.get_many(10):
            seen[value] = value
        return sum(seen.values())

@app.local_entrypoint()
def main() -> None:
    with kedge.Queue.ephemeral() as letters:
        calls = [consume.spawn(letters) for _ in range(12)] + [consume_async.spawn(letters) for _ in range(16)]
        letters.put_many(range(3000))
        letters.put_many([None] * 28)
        found = [call.get() for call in calls]
        assert sorted(sum(found, [])) == list(range(3000))
        assert letters.len() == 0
    print("each letter has come once")
"""

WAIT = """
import kedge
print("waits", flush=True)
print(kedge.Queue.from_name("jobs", create_if_missing=True).get(), flush=True)
"""


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path) as made:
        made.write("app.py", APP)
        yield made


def kill_server(post: Place) -> None:
    facts = Path(post.variables["KEDGE_HOME"]) / "server" / "server.json"
    process = json.loads(facts.read_text())["process"]
    os.kill(process, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(process))


def test_consumers_in_many_containers_share_a_queue(post: Place) -> None:
    assert "each letter has come once" in post.kedge("run", "app.py").stdout
    assert "45" in post.kedge("run", "app.py::ephemeral_inside").stdout


def test_cancelled_and_killed_consumers_take_nothing(post: Place) -> None:
    post.kedge("deploy", "app.py")
    program = """
import os, signal, time, kedge

jobs = kedge.Queue.from_name("jobs", create_if_missing=True)
done = kedge.Dict.from_name("done", create_if_missing=True)

def until(condition):
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up, dict(done.items())
        time.sleep(0.01)

for name, ending in (("wait_for_one", "InputCancellation"), ("wait_for_one_async", "CancelledError")):
    wait = kedge.Function.from_name("post", name)
    call = wait.spawn(name)
    until(lambda: name in done)
    call.cancel()
    until(lambda: done[name] == ending)
    jobs.put(f"for {name}", partition="waits")
    assert jobs.len(partition="waits") == 1
    assert wait.remote("next") == f"for {name}"

call = kedge.Function.from_name("post", "wait_for_one").spawn("killed")
until(lambda: "killed" in done)
os.kill(done.pop("killed"), signal.SIGKILL)
until(lambda: "killed" in done)  # it runs again, in another container, and waits
jobs.put("for the second attempt", partition="waits")
assert call.get(timeout=60) == "for the second attempt"
assert jobs.len(partition="waits") == 0
print("nothing was lost")
"""
    assert post.program(program) == "nothing was lost\n"


def test_what_is_in_them_survives_a_server_that_is_killed_and_so_do_programs_that_wait(post: Place) -> None:
    post.kedge("server", "start")
    post.program(
        "import kedge\n"
        "kedge.Queue.from_name('kept', create_if_missing=True).put_many(range(1000))\n"
        "kedge.Dict.from_name('kept', create_if_missing=True).update({'a': b'x' * 400_000, 'b': 2})\n"
    )
    waiting = subprocess.Popen(
        [sys.executable, "-c", WAIT], env=post.variables, cwd=post.directory, stdout=subprocess.PIPE, text=True
    )
    try:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "waits\n"
        eventually(lambda: '"jobs"' in post.kedge("queue", "list", "--json").stdout)
        kill_server(post)
        post.kedge("server", "start")
        found = post.program(
            "import kedge\n"
            "queue, found = kedge.Queue.from_name('kept'), kedge.Dict.from_name('kept')\n"
            "print(queue.get_many(1000) == list(range(1000)), len(found['a']), found['b'], found.len())\n"
        )
        assert found == "True 400000 2 2\n"
        post.program("import kedge; kedge.Queue.from_name('jobs', create_if_missing=True).put('at last')")
        assert waiting.communicate(timeout=LONG)[0] == "at last\n"
    finally:
        waiting.kill()
        waiting.wait()


def test_a_producer_and_a_consumer_lose_and_double_nothing_while_the_server_is_killed(post: Place) -> None:
    post.kedge("server", "start")
    produce = "import kedge\nq = kedge.Queue.from_name('road', create_if_missing=True)\nfor i in range(600): q.put(i)\n"
    consume = (
        "import kedge\nq = kedge.Queue.from_name('road', create_if_missing=True)\n"
        "print([q.get() for _ in range(600)] == list(range(600)))\n"
    )
    programs = [
        subprocess.Popen([sys.executable, "-c", text], env=post.variables, stdout=subprocess.PIPE, text=True)
        for text in (produce, consume)
    ]
    try:
        eventually(lambda: '"road"' in post.kedge("queue", "list", "--json").stdout)
        for _ in range(2):
            kill_server(post)
            post.kedge("server", "start")
        assert [program.communicate(timeout=LONG)[0] for program in programs] == ["", "True\n"]
    finally:
        for program in programs:
            program.kill()
            program.wait()
