"""The server process: `python -m kedge.server.main`.

Reads what it is told, takes the state directory, opens the house, says where it listens, and ends cleanly: on SIGTERM
or SIGINT, and a private server also when the process that owns it is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import contextlib
import gc
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from kedge._version import __version__
from kedge.engines.process import ProcessEngine
from kedge.engines.spawn import FILE_LIMIT_VARIABLE
from kedge.server.check import check
from kedge.server.directory import StateDirectory, is_taken
from kedge.server.logfile import FORMAT, LogFile
from kedge.server.settings import FLAGS, KEYS, Settings, load
from kedge.server.writer import StoreError

log = logging.getLogger("kedge.server")

LOOK_MS = 2
"""How often a server that waits for the place of another one looks: nobody is served meanwhile."""


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    atexit.register(gc.freeze)  # at the end, nobody needs to look for garbage in all that was loaded
    try:
        settings = load(vars(options), os.environ)
        if options.check is not None:
            check(settings, options.check)
            return 0
        _log_to(options, settings)
        _raise_file_limit()
        if options.successor and options.ready_fd is not None:
            await_turn(settings.home, options.ready_fd)
        return _run(_serve(options, settings))
    except (OSError, ValueError, StoreError) as error:
        _say(options.ready_fd, {"error": str(error)})
        print(f"kedge-server: {error}", file=sys.stderr)
        return 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kedge-server", description="The control plane of kedge on this machine.")
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("KEDGE_HOME") or Path.home() / ".kedge"))
    parser.add_argument("--private", action="store_true", help="serve one program, and end with it")
    parser.add_argument("--ready-fd", type=int, help="write one JSON line there as soon as connections are accepted")
    parser.add_argument("--successor", action="store_true", help="take the place of the server that runs when it ends")
    parser.add_argument("--owner-fd", type=int, help="end when this file descriptor is closed by its other side")
    parser.add_argument("--log-file", type=Path, help="write the log there, and what goes to stdout and stderr")
    parser.add_argument("--foreground", action="store_true", help="write the log to stderr as well")
    parser.add_argument("--check", type=int, metavar="PID", help="only say what keeps it from taking PID's place")
    for key in KEYS:
        option = f"--{key.name.replace('_', '-')}"
        if key.name in FLAGS:
            parser.add_argument(option, action="store_true", help=key.help)
        else:
            parser.add_argument(option, metavar=key.metavar, help=key.help.replace("%", "%%"))
    return parser.parse_args(arguments)


def _log_to(options: argparse.Namespace, settings: Settings) -> None:
    handlers: list[logging.Handler] = []
    if options.log_file is not None:
        handlers.append(LogFile(options.log_file.expanduser().absolute(), streams=not options.foreground))
    if options.foreground or options.log_file is None:
        handlers.append(logging.StreamHandler())
    logging.basicConfig(level=settings.log_level, format=FORMAT, handlers=handlers)


def _raise_file_limit() -> None:
    """Every connection takes a descriptor. Containers get the limit that they would have had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            return
        os.environ[FILE_LIMIT_VARIABLE] = str(soft)


def await_turn(home: Path, ready: int) -> None:
    """Everything is loaded, which is most of what a start takes, so the server that runs may end: a space on `ready`,
    before the line about this one, says so. OSError where whoever reads that has gone: it will not end that one."""
    import kedge.server.house  # noqa: F401

    with contextlib.suppress(ImportError):
        import uvloop  # noqa: F401
    with contextlib.suppress(BrokenPipeError):
        os.write(ready, b" ")
    gone = select.poll()
    gone.register(ready, 0)
    while is_taken(home / "server"):
        if gone.poll(LOOK_MS):
            raise OSError("whoever has started this server to take the place of another one is gone")


def _run(serve: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(serve)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve)


async def _serve(options: argparse.Namespace, settings: Settings) -> int:
    with StateDirectory(settings.home, settings.private) as directory:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if options.owner_fd is not None:
            loop.add_reader(options.owner_fd, _watch_owner, options.owner_fd, stop)
        engine = ProcessEngine()
        engine.begin()  # it loads while this process does
        from kedge.server.house import House

        house = House(settings, directory, engine)
        try:
            facts = await house.open()
            directory.publish({**facts, **_process_facts(options)})
            if not settings.private:
                directory.remember(_given(options))
            _say(options.ready_fd, facts)
            _notify("READY=1")
            await stop.wait()
            _notify("STOPPING=1")
            await house.close()
        finally:
            await house.clear()
    return 0


def _given(options: argparse.Namespace) -> list[str]:
    given: list[str] = []
    for key in KEYS:
        value, option = getattr(options, key.name), f"--{key.name.replace('_', '-')}"
        if value:
            given += [option] if value is True else [option, value]
    return given


def _process_facts(options: argparse.Namespace) -> dict[str, Any]:
    """What `kedge server` wants to know beside addresses: how it could be started again, for one."""
    log_file = str(options.log_file.expanduser().absolute()) if options.log_file is not None else ""
    return {
        "process": os.getpid(),
        "started_at": time.time(),
        "version": __version__,
        "log_file": log_file,
        "foreground": options.foreground,
        "options": _given(options),
    }


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


def _notify(state: str) -> None:
    """Tells systemd, where that has started this process."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.connect("\0" + address[1:] if address.startswith("@") else address)
                sock.send(state.encode())
        except OSError as error:
            log.warning("systemd does not hear %s: %s", state, error)


if __name__ == "__main__":
    sys.exit(main())
