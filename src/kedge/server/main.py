"""The server process: `python -m kedge.server.main`.

Wires plane, store, engine and connections together, says where it listens, and ends cleanly: on SIGTERM or SIGINT,
and a private server also when the process that owns it is gone. What must survive is on disk all the time, so ending
cleanly only adds that containers run their exit hooks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import secrets
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import psutil

from kedge.core.plane import Plane
from kedge.engines.process import ProcessEngine
from kedge.model import protocol as p
from kedge.server.directory import StateDirectory
from kedge.server.driver import Driver
from kedge.server.launches import Launches
from kedge.server.logs import OutputLog
from kedge.server.recovery import Recovery
from kedge.server.rpc import Rpc
from kedge.server.store import Store
from kedge.server.writer import StoreError
from kedge.wire.transport import is_tcp, split_tcp

log = logging.getLogger("kedge.server")

STOP_GRACE_S = 10.0
"""Seconds that containers have for their exit hooks when the server ends."""
LEVELS = ("debug", "info", "warning", "error", "critical")


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        machine = Machine(options)
        logging.basicConfig(level=machine.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        return _run(_serve(options, machine))
    except (OSError, ValueError, StoreError) as error:
        _say(options.ready_fd, {"error": str(error)})
        print(f"kedge-server: {error}", file=sys.stderr)
        return 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kedge-server", description="The control plane of kedge on this machine.")
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("KEDGE_HOME") or Path.home() / ".kedge"))
    parser.add_argument("--private", action="store_true", help="serve one program, and end with it")
    parser.add_argument("--listen", default="", metavar="tcp://HOST:PORT", help="also listen on TCP, with a token")
    parser.add_argument("--ready-fd", type=int, help="write one JSON line there as soon as connections are accepted")
    parser.add_argument("--owner-fd", type=int, help="end when this file descriptor is closed by its other side")
    parser.add_argument("--cpus", default=os.environ.get("KEDGE_CPUS", ""), help="cores that containers may ask for")
    parser.add_argument("--memory", default=os.environ.get("KEDGE_MEMORY", ""), help="MiB that they may ask for")
    parser.add_argument("--gpus", default=os.environ.get("KEDGE_GPUS", ""), help='declared devices: "H100=8,L4=1"')
    parser.add_argument("--log-level", default=os.environ.get("KEDGE_LOGLEVEL") or "warning", help=", ".join(LEVELS))
    return parser.parse_args(arguments)


class Machine:
    """What the options and variables say about this machine; ValueError names the one that makes no sense."""

    def __init__(self, options: argparse.Namespace) -> None:
        options.home = options.home.expanduser().absolute()
        self.cpus = _amount("KEDGE_CPUS (or --cpus)", options.cpus, float(psutil.cpu_count() or 1))
        memory = psutil.virtual_memory().total / 2**20
        self.memory = math.ceil(_amount("KEDGE_MEMORY (or --memory), in MiB,", options.memory, memory))
        self.gpus = parse_gpus(options.gpus)
        self.log_level = options.log_level.upper()
        if options.log_level.lower() not in LEVELS:
            raise ValueError(f"KEDGE_LOGLEVEL is {options.log_level!r}; it must be one of {', '.join(LEVELS)}")
        if options.listen:
            if not is_tcp(options.listen):
                raise ValueError(f"--listen is {options.listen!r}; write tcp://HOST:PORT")
            split_tcp(options.listen)


def _run(serve: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(serve)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve)


async def _serve(options: argparse.Namespace, machine: Machine) -> int:
    home: Path = options.home
    with StateDirectory(home, options.private) as directory:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if options.owner_fd is not None:
            loop.add_reader(options.owner_fd, _watch_owner, options.owner_fd, stop)

        store = Store(directory.path, durable=not options.private)
        store.open()
        launches = Launches(directory.socket, str(directory.path), store)
        output = OutputLog(home / "logs" / "logs.db", launches.place)
        reporter: list[Driver] = []
        engine = ProcessEngine(lambda fact: reporter[0].report(fact))
        driver = Driver(Plane(_new_id), engine, store, launches, output)
        reporter.append(driver)
        token = directory.token()
        rpc = Rpc(driver, launches, str(directory.path), token)
        recovery = Recovery(driver, store)
        try:
            await engine.open()
            driver.submit(p.NodeJoined("local", machine.cpus, machine.memory, machine.gpus))
            await recovery.run()
            await rpc.listen(directory.socket)
            tcp = await rpc.listen(options.listen) if options.listen else ""
            facts = {"address": directory.socket, "tcp": tcp, "token": token}
            directory.publish({**facts, "process": os.getpid()})
            _say(options.ready_fd, facts)
            await stop.wait()
            recovery.close()
            driver.ending = True
            rpc.close()
            await driver.end("its server has ended", STOP_GRACE_S)
        finally:
            rpc.close_all()
            await engine.close()
            output.close_all()
            store.close()
    return 0


def _watch_owner(descriptor: int, stop: asyncio.Event) -> None:
    try:
        gone = not os.read(descriptor, 1)
    except BlockingIOError:
        return
    except OSError:
        gone = True
    if gone:
        asyncio.get_running_loop().remove_reader(descriptor)
        stop.set()


def _say(descriptor: int | None, value: dict[str, Any]) -> None:
    if descriptor is not None:
        try:
            os.write(descriptor, json.dumps(value).encode() + b"\n")
            os.close(descriptor)
        except OSError as error:
            log.warning("nobody hears that the server is ready: %s", error)


def _new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(8)}"


def _amount(name: str, text: str, default: float) -> float:
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {text!r}; it must be a number above 0")
    return value


def parse_gpus(text: str) -> dict[str, int]:
    """Devices by name out of `H100=8,A100-40GB=2`.

    >>> parse_gpus("H100=8, l4=1")
    {'H100': 8, 'L4': 1}
    """
    gpus: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, count = part.partition("=")
        if not name.strip() or not count.strip().isdecimal() or int(count) > MAX_DEVICES:
            raise ValueError(f'KEDGE_GPUS: {part!r} is not NAME=COUNT; write for example KEDGE_GPUS="H100=8,L4=1"')
        gpus[name.strip().upper()] = gpus.get(name.strip().upper(), 0) + int(count)
    return gpus


MAX_DEVICES = 1024
"""GPUs of one kind in one machine."""


if __name__ == "__main__":
    sys.exit(main())
