"""The server process: `python -m kedge.server.main`.

Wires plane, store, engine and connections together, says where it listens, and ends cleanly: on SIGTERM or SIGINT,
and a private server also when the process that owns it is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import psutil

from kedge.core.plane import Plane
from kedge.engines.process import ProcessEngine
from kedge.model import protocol as p
from kedge.server.driver import Driver
from kedge.server.launches import Launches
from kedge.server.logs import OutputLog
from kedge.server.rpc import Rpc
from kedge.server.store import Store

log = logging.getLogger("kedge.server")

SOCKET_PATH_LIMIT = 100
"""Bytes that a path of a Unix socket may have on every system we know (Linux 108, macOS 104)."""
STOP_GRACE_S = 10.0
"""Seconds that containers have for their exit hooks when the server ends."""


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        options.home = options.home.expanduser().absolute()
        options.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _run(_serve(options))
    except (OSError, ValueError) as error:
        _say(options.ready_fd, {"error": str(error)})
        log.error("%s", error)
        return 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kedge-server", description="The control plane of kedge on this machine.")
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("KEDGE_HOME") or Path.home() / ".kedge"))
    parser.add_argument("--private", action="store_true", help="serve one program, and end with it")
    parser.add_argument("--listen", default="", metavar="tcp://HOST:PORT", help="also listen on TCP, with a token")
    parser.add_argument("--ready-fd", type=int, help="write one JSON line there as soon as connections are accepted")
    parser.add_argument("--owner-fd", type=int, help="end when this file descriptor is closed by its other side")
    parser.add_argument("--cpus", type=float, default=float(os.environ.get("KEDGE_CPUS") or psutil.cpu_count() or 1))
    parser.add_argument("--memory", type=int, default=psutil.virtual_memory().total // 2**20, help="MiB")
    parser.add_argument("--gpus", default=os.environ.get("KEDGE_GPUS", ""), help='declared devices: "H100=8,L4=1"')
    parser.add_argument("--log-level", default=os.environ.get("KEDGE_LOGLEVEL", "warning"))
    return parser.parse_args(arguments)


def _run(serve: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(serve)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve)


async def _serve(options: argparse.Namespace) -> int:
    home: Path = options.home
    gpus = parse_gpus(options.gpus)
    with _Directory(home, options.private) as directory:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if options.owner_fd is not None:
            loop.add_reader(options.owner_fd, _watch_owner, options.owner_fd, stop)

        store = Store(directory.path)
        store.open()
        output = OutputLog(home / "logs")
        launches = Launches(directory.socket, str(directory.path), store)
        plane = Plane(_new_id)
        reporter: list[Driver] = []
        engine = ProcessEngine(lambda fact: reporter[0].report(fact))
        await engine.open()
        driver = Driver(plane, engine, store, launches, output)
        reporter.append(driver)
        token = secrets.token_hex(32)
        rpc = Rpc(driver, launches, str(directory.path), token)
        driver.submit(p.NodeJoined("local", options.cpus, options.memory, gpus))
        _restore(store, driver)
        try:
            await rpc.listen(directory.socket)
            tcp = await rpc.listen(options.listen) if options.listen else ""
            directory.publish({"address": directory.socket, "tcp": tcp, "token": token, "process": os.getpid()})
            _say(options.ready_fd, {"address": directory.socket, "tcp": tcp, "token": token})
            await stop.wait()
            await _stop(driver)
        finally:
            rpc.close()
            await engine.close()
            output.close_all()
            store.close()
    return 0


async def _stop(driver: Driver) -> None:
    """Ends every app: running inputs are cancelled, exit hooks run, for a bounded time."""
    for app in list(driver.plane.apps):
        driver.submit(p.AppStopped(app, reason="its server has ended"))
    driver.flush_all()
    if driver.plane.containers:
        try:
            await asyncio.wait_for(driver.idle.wait(), STOP_GRACE_S)
        except TimeoutError:
            log.warning("%d containers did not end within %g s", len(driver.plane.containers), STOP_GRACE_S)


def _restore(store: Store, driver: Driver) -> None:
    """What survived the last server: apps first, then their calls, then the inputs that are still open."""
    apps, calls = store.load()
    for spec in apps:
        driver.restore(p.AppCreated(0, spec))
    for call, submissions in calls:
        driver.restore(call)
        for submission in submissions:
            driver.restore(submission)


def _watch_owner(descriptor: int, stop: asyncio.Event) -> None:
    if not os.read(descriptor, 1):
        asyncio.get_running_loop().remove_reader(descriptor)
        stop.set()


def _say(descriptor: int | None, value: dict[str, Any]) -> None:
    if descriptor is not None:
        os.write(descriptor, json.dumps(value).encode() + b"\n")
        os.close(descriptor)


def _new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(8)}"


def parse_gpus(text: str) -> dict[str, int]:
    """Devices by name out of `H100=8,A100-40GB=2`.

    >>> parse_gpus("H100=8, l4=1")
    {'H100': 8, 'L4': 1}
    """
    gpus: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, count = part.partition("=")
        if not name.strip() or not count.strip().isdecimal():
            raise ValueError(f'KEDGE_GPUS: {part!r} is not NAME=COUNT; write for example KEDGE_GPUS="H100=8,L4=1"')
        gpus[name.strip().upper()] = gpus.get(name.strip().upper(), 0) + int(count)
    return gpus


class _Directory:
    """The state directory of one server: `<home>/server` for the machine's, one of its own for a private one.

    Only one machine's server can hold it at a time. A private one is removed at the end."""

    def __init__(self, home: Path, private: bool) -> None:
        self._private = private
        if private:
            (home / "private").mkdir(mode=0o700, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix="", dir=home / "private"))
        else:
            self.path = home / "server"
            self.path.mkdir(mode=0o700, exist_ok=True)
        self.socket = str(self.path / "plane.sock")
        self._socket_directory = ""
        if len(self.socket.encode()) > SOCKET_PATH_LIMIT:
            self._socket_directory = tempfile.mkdtemp(prefix="kedge-")
            self.socket = os.path.join(self._socket_directory, "plane.sock")

    def __enter__(self) -> _Directory:
        self._lock = (self.path / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"a server is running already in {self.path}") from None
        return self

    def publish(self, facts: dict[str, Any]) -> None:
        """Where clients find this server: `server.json`, readable by this user only."""
        path = self.path / "server.json"
        descriptor = os.open(path.with_suffix(".new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(facts, file)
        path.with_suffix(".new").rename(path)

    def __exit__(self, *_: object) -> None:
        for name in ("server.json", "plane.sock"):
            (self.path / name).unlink(missing_ok=True)
        if self._socket_directory:
            shutil.rmtree(self._socket_directory, ignore_errors=True)
        self._lock.close()
        if self._private:
            shutil.rmtree(self.path, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
