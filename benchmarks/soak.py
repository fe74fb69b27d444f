"""Everything at once, while containers and the server are killed: `python -m benchmarks.soak --minutes 10`.

HTTP requests, streams and WebSockets, calls by name and spawned calls go on all the time, against a server of the
soak's own. What must hold: whatever was asked is answered right or fails visibly, before its deadline; and each spawned
call has exactly one result in the store at the end, however often it was begun.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import signal
import socket as socketlib
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

import kedge
from benchmarks.soak_app import EVENTS
from kedge.model.protocol import ServerRequested
from kedge.sdk.client import Client

DEADLINE_S = 60.0
"""Seconds in which every request must have ended somehow: its function has 60, and nothing here takes one."""
SETTLE_S = 90.0
"""Seconds after the last kill in which everything that was spawned must have its result."""
ROOT = Path(__file__).parent.parent
APP = "benchmarks/soak_app.py"


@dataclass
class Kind:
    """What became of everything of one kind."""

    asked: int = 0
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    hung: int = 0
    longest_s: float = 0.0

    def row(self, name: str) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.failed.most_common(5))
        failed = sum(self.failed.values())
        cells = [
            name,
            self.asked,
            self.answered,
            failed,
            len(self.wrong),
            self.hung,
            f"{self.longest_s:.1f} s",
            reasons,
        ]
        return "| " + " | ".join(str(cell) for cell in cells) + " |"


@dataclass
class Outcome:
    kinds: dict[str, Kind]
    happened: Counter[str] = field(default_factory=Counter)
    spawned: int = 0
    kept: int = 0
    given_up: int = 0
    missing: list[str] = field(default_factory=list)
    """Spawned calls without exactly one right result, and whatever else should not be."""
    attempts: int = 0

    @property
    def holds(self) -> bool:
        return not self.missing and not any(kind.wrong or kind.hung for kind in self.kinds.values())

    def table(self) -> str:
        head = ["What", "Asked", "Answered", "Failed visibly", "Wrong", "Hung", "Longest", "How it failed"]
        lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        lines += [kind.row(name) for name, kind in self.kinds.items()]
        lines += [f"wrong, {name}: {text}" for name, kind in self.kinds.items() for text in kind.wrong[:5]]
        lines.append(
            f"{', '.join(f'{what}: {count}' for what, count in self.happened.items())}. Spawned: {self.spawned}, with "
            f"one result each: {self.kept} as expected, {self.given_up} given up after their container had died too "
            f"often, {len(self.missing)} missing or wrong; attempts: {self.attempts}"
        )
        lines += [f"**{text}**" for text in self.missing[:10]]
        lines.append("All of it holds." if self.holds else "**It does not hold.**")
        return "\n".join(lines)


# ---------------------------------------------------------------- one request of each kind


class Failed(Exception):
    """Visibly, and why."""


Ask = Callable[[aiohttp.ClientSession, str, int], Awaitable[None]]


async def get(session: aiohttp.ClientSession, url: str, n: int) -> None:
    async with session.get(f"{url}get/{n}") as answer:
        expect(answer, await answer.text(), f"/get/{n}")


async def post(session: aiohttp.ClientSession, url: str, n: int) -> None:
    body = random.randbytes(random.choice((10, 10_000, 300_000)))
    async with session.post(f"{url}post", data=body) as answer:
        expect(answer, await answer.text(), hashlib.sha256(body).hexdigest())


async def stream(session: aiohttp.ClientSession, url: str, n: int) -> None:
    async with session.get(f"{url}events/{n}") as answer:
        lines = [f"/events/{n} {i}\n" for i in range(EVENTS)]
        expect(answer, await answer.text(), "".join(lines) + "whole\n")


async def socket(session: aiohttp.ClientSession, url: str, n: int) -> None:
    async with session.ws_connect(f"{url}socket") as link:
        for i in range(20):
            await link.send_str(f"{n} {i}")
            message = await link.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise Failed(f"closed with {link.close_code}")
            if message.data != f"{n} {i}":
                raise AssertionError(f"{n} {i} was sent, {message.data!r} came back")
            await asyncio.sleep(random.uniform(0, 0.05))


async def leave(session: aiohttp.ClientSession, url: str, n: int) -> None:
    """Goes away in the middle: of its body, of its waiting, or of the answer."""

    async def trickle() -> AsyncIterator[bytes]:
        yield random.randbytes(200_000)
        await asyncio.sleep(DEADLINE_S)

    ask = session.post(f"{url}post", data=trickle()) if n % 2 else session.get(f"{url}events/{n}")
    try:
        async with asyncio.timeout(random.uniform(0, 0.2)), ask as answer:
            await answer.content.readline()
    except TimeoutError:
        pass


def expect(answer: aiohttp.ClientResponse, text: str, wanted: str) -> None:
    if answer.status in (500, 502, 503, 504):
        raise Failed(f"{answer.status} {text.strip()[:60]}")
    if answer.status != 200 or text != wanted:
        raise AssertionError(f"{answer.status} {text[:80]!r} is not {wanted[:80]!r}")


REQUESTS: dict[str, tuple[Ask, int]] = {
    "GET": (get, 4),
    "POST": (post, 3),
    "streams": (stream, 3),
    "WebSockets": (socket, 3),
    "clients that leave": (leave, 2),
}
"""What is asked over HTTP, and by how many at once."""
CALLS = ("remote", "map", "generator", "spawn")


async def keep_asking(kind: Kind, ask: Ask, url: str, stop: asyncio.Event) -> None:
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while not stop.is_set():
            kind.asked += 1
            began = time.monotonic()
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await ask(session, url, kind.asked)
                kind.answered += 1
            except Failed as error:
                kind.failed[str(error)] += 1
            except TimeoutError:
                kind.hung += 1
            except (aiohttp.ClientError, ConnectionError) as error:
                kind.failed[type(error).__name__] += 1
                await asyncio.sleep(0.05)
            except AssertionError as error:
                kind.wrong.append(str(error))
            kind.longest_s = max(kind.longest_s, time.monotonic() - began)
            await asyncio.sleep(random.uniform(0, 0.02))


# ---------------------------------------------------------------- the server, and those who kill it


def free_port() -> int:
    """One of the server's own, which nobody takes while it is dead."""
    with socketlib.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Harbour:
    """A server in a directory of its own, with the app deployed on it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "KEDGE_HOME": str(home), "KEDGE_PORT": str(free_port())}
        for name in ("KEDGE_SERVER", "KEDGE_TOKEN", "KEDGE_PROFILE"):
            self.environment.pop(name, None)

    def kedge(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "kedge.cli.main", *arguments]
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "server" / "server.json").read_text())
        return found

    def containers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.kedge("container", "list", "--json"))
        return found


class Chaos:
    """What befalls the harbour, one thing after the other."""

    def __init__(self, harbour: Harbour, seed: int) -> None:
        self.happened: Counter[str] = Counter()
        self._harbour = harbour
        self._chance = random.Random(seed)
        self._server_at = time.monotonic() + self._chance.uniform(5, 10)
        """When it is killed next."""

    async def rage(self, stop: asyncio.Event) -> None:
        others = {self._kill_container: 10, self._kill_supervisor: 1, self._deploy: 2}
        while not stop.is_set():
            try:
                await asyncio.wait_for(stop.wait(), self._chance.uniform(0.5, 4))
                return
            except TimeoutError:
                pass
            if not self.happened:
                await asyncio.to_thread(self._kill_container)
            elif time.monotonic() > self._server_at:
                await asyncio.to_thread(self._kill_server)
                self._server_at = time.monotonic() + self._chance.uniform(10, 30)
            else:
                (action,) = self._chance.choices(list(others), list(others.values()))
                await asyncio.to_thread(action)

    def _kill_server(self) -> None:
        self._kill("server", self._harbour.facts()["process"])
        time.sleep(self._chance.uniform(0, 1))
        self._harbour.kedge("server", "start")

    def _kill_container(self) -> None:
        running = [one["process"] for one in self._harbour.containers() if one.get("process")]
        if running:
            self._kill("container", self._chance.choice(running))

    def _kill_supervisor(self) -> None:
        children = psutil.Process(self._harbour.facts()["process"]).children()
        self._kill("supervisor", self._chance.choice(children).pid)

    def _deploy(self) -> None:
        """A new version of the same, for which everything moves to other containers."""
        self._harbour.kedge("deploy", APP)
        self.happened["deploys"] += 1

    def _kill(self, what: str, process: int) -> None:
        try:
            os.kill(process, signal.SIGKILL)
            self.happened[f"{what}s killed"] += 1
        except ProcessLookupError:
            pass


# ---------------------------------------------------------------- callers by name


@contextmanager
def callers(harbour: Harbour, directory: Path, stop: Path) -> Iterator[dict[str, list[subprocess.Popen[bytes]]]]:
    (directory / "kept").mkdir()
    running: dict[str, list[subprocess.Popen[bytes]]] = {}
    for kind in CALLS:
        for n in range(2):
            name = f"{kind}-{n}"
            command = [sys.executable, "-m", "benchmarks.soak_callers", kind, name, str(directory / f"{name}.jsonl")]
            command += [str(stop), str(directory / "kept")]
            running.setdefault(kind, []).append(subprocess.Popen(command, env=harbour.environment, cwd=ROOT))
    try:
        yield running
    finally:
        for process in [process for each in running.values() for process in each]:
            process.kill()
            process.wait()


def read_calls(kind: Kind, name: str, directory: Path) -> dict[str, str]:
    """Fills in what became of calls by name. Token by id of those that were spawned."""
    spawned = {}
    for file in sorted(directory.glob(f"{name}-*.jsonl")):
        waiting: dict[str, None] = {}
        for line in file.read_text().splitlines():
            facts = json.loads(line)
            state = facts["state"]
            if state == "asked":
                kind.asked += 1
                waiting[facts["token"]] = None
                continue
            waiting.pop(facts["token"])
            kind.longest_s = max(kind.longest_s, facts["seconds"])
            if state == "answered":
                kind.answered += 1
            elif state == "failed":
                kind.failed[facts["error"].splitlines()[0][:70]] += 1
            else:
                kind.wrong.append(facts["error"])
            if "call" in facts:
                spawned[facts["call"]] = facts["token"]
        kind.hung += len(waiting)
    return spawned


def read_results(outcome: Outcome, spawned: dict[str, str], home: Path, kept: Path) -> None:
    """Asks for every spawned call, as any program would, and looks into the store besides."""
    end = time.monotonic() + SETTLE_S
    for call, token in spawned.items():
        try:
            result = kedge.FunctionCall.from_id(call).get(timeout=max(1.0, end - time.monotonic()))
        except kedge.exception.Error as error:
            if "died" in str(error) or "SIGKILL" in str(error):
                outcome.given_up += 1
            else:
                outcome.missing.append(f"{call} ({token}): {type(error).__name__}: {error}")
            continue
        if result == f"kept {token}":
            outcome.kept += 1
        else:
            outcome.missing.append(f"{call} ({token}): {result!r}")
    outcome.spawned = len(spawned)
    outcome.attempts = sum(len((kept / token).read_text().splitlines()) for token in spawned.values())
    database = next(home.glob("**/state.db"))
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
        rows = Counter(call for (call,) in store.execute("SELECT call FROM results"))
    outcome.missing += [f"{call}: {rows[call]} rows in the store" for call in spawned if rows[call] != 1]


def read_server(outcome: Outcome, home: Path) -> None:
    """Nobody asks any more: nothing may run or wait, and nothing may have failed inside."""
    end = time.monotonic() + SETTLE_S
    while True:
        facts = Client.current().request(ServerRequested)
        inputs = facts["inputs"]
        if not inputs["running"] and not inputs["queued"]:
            break
        if time.monotonic() > end:
            outcome.missing.append(f"the server still has {inputs}")
            break
        time.sleep(0.1)
    log = (home / "logs" / "server.log").read_text()
    outcome.missing += [f"the server has logged: {line}" for line in log.splitlines() if " ERROR " in line]


# ---------------------------------------------------------------- all of it


async def traffic(harbour: Harbour, outcome: Outcome, url: str, minutes: float, seed: int) -> None:
    stop = asyncio.Event()
    asking = [
        asyncio.create_task(keep_asking(outcome.kinds[name], ask, url, stop))
        for name, (ask, count) in REQUESTS.items()
        for _ in range(count)
    ]
    chaos = Chaos(harbour, seed)
    raging = asyncio.create_task(chaos.rage(stop))
    try:
        await asyncio.wait([raging], timeout=minutes * 60)
    finally:
        stop.set()
        await raging
        await asyncio.gather(*asking)
        outcome.happened = chaos.happened


def run(minutes: float, seed: int, directory: Path) -> Outcome:
    outcome = Outcome({name: Kind() for name in (*REQUESTS, *CALLS)})
    harbour = Harbour(directory / "home")
    stop = directory / "stop"
    os.environ["KEDGE_HOME"] = str(harbour.home)
    harbour.kedge("server", "start")
    try:
        harbour.kedge("deploy", APP)
        url = kedge.Function.from_name("soak", "site").get_web_url()
        assert url is not None
        with callers(harbour, directory, stop) as running:
            asyncio.run(traffic(harbour, outcome, url, minutes, seed))
            stop.touch()
            end = time.monotonic() + DEADLINE_S
            for process in [process for each in running.values() for process in each]:
                try:
                    code = process.wait(max(0.0, end - time.monotonic()))
                    if code:
                        outcome.missing.append(f"the caller {process.args} ended with {code}")
                except subprocess.TimeoutExpired:
                    outcome.missing.append(f"the caller {process.args} hangs")
        spawned = {name: read_calls(outcome.kinds[name], name, directory) for name in CALLS}["spawn"]
        read_results(outcome, spawned, harbour.home, directory / "kept")
        read_server(outcome, harbour.home)
    finally:
        harbour.kedge("server", "stop")
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        outcome = run(options.minutes, options.seed, Path(directory))
    print(outcome.table())
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(main())
