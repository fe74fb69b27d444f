"""The first steps of a container: from bytes that describe it to the runtime's `run(launch, records)`.

`records` is the descriptor of a pipe for what Python code prints (`wire.records`). A fork server calls the runtime's
`prepare()` before it loads packages; a fresh container does not."""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Any, NoReturn

import msgspec

from kedge.engines import namespaces, spawn, system, threads
from kedge.engines.boot import completed
from kedge.model.spec import CodeSpec, EnvironmentSpec, FunctionSpec, Launch

_decode: Callable[[bytes], Launch] = msgspec.msgpack.Decoder(Launch).decode

CRASHED = 70
"""Exit code of a container whose runtime itself raised (EX_SOFTWARE)."""


def read_whole(descriptor: int) -> bytes:
    """All bytes of a file from its start. Its offset is shared with other processes and stays as it is."""
    size = os.fstat(descriptor).st_size
    data = bytearray()
    while len(data) < size:
        part = os.pread(descriptor, size - len(data), len(data))
        if not part:
            break
        data += part
    return bytes(data)


def main(descriptor: int, runtime: Sequence[str], runner: str) -> NoReturn:
    """A fresh container, where a fork would not be safe."""
    if os.getpid() == 1:
        _leave_init_behind()
    data = read_whole(descriptor)
    records: int | None = spawn.RECORDS_FD
    if descriptor > 2:
        os.close(descriptor)
        os.set_inheritable(spawn.RECORDS_FD, False)
    else:  # a sandbox that passes on the first three only
        records = None
        os.dup2(os.open(os.devnull, os.O_RDONLY), descriptor)
    live(data, records, runtime, runner, forked=False)


def _leave_init_behind() -> None:
    """In a sandbox whose first process is this one: goes on in a child. The first process cannot be killed by its own
    signals, and has to reap what nobody else does; this one does nothing but that, and ends as its child does."""
    system.die_with(0)  # the runtime's process, which would leave it behind
    process = os.fork()
    if process == 0:
        system.die_with(1)
        return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: os.kill(process, number))
    while True:
        ended, status = os.wait()
        if ended == process:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def rehearse() -> None:
    """Does once, in a fork server, what every child would otherwise do for the first time."""
    environment = EnvironmentSpec(python="", python_version="")
    function = FunctionSpec(name="", module="", qualname="")
    launch = Launch(
        container="",
        token="",
        address="",
        pool="",
        app="",
        app_name="",
        function=function,
        code=CodeSpec(),
        environment=environment,
    )
    _decode(msgspec.msgpack.encode(launch))


def live(
    data: bytes,
    records: int | None,
    runtime: Sequence[str],
    runner: str,
    *,
    forked: bool,
    room: Sequence[int] = (),
) -> NoReturn:
    """Becomes the container that `data` describes, in its `room` where it has one. Ends the process, whatever
    happens."""
    code: Any = CRASHED
    try:
        launch = _decode(data)
        if room:
            _enter(room)
        system.set_name(launch.container)
        _move_in(launch, runtime, forked)
        importlib.import_module(runner).run(launch, records)
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed or replaced by the user
            pass
    os._exit((code or 0) & 0xFF)


def _enter(room: Sequence[int]) -> None:
    try:
        namespaces.enter(*room)
    except OSError as error:
        print(f"kedge: what it is to find around it cannot be made: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(spawn.CANNOT_ENTER) from None


def _move_in(launch: Launch, runtime: Sequence[str], forked: bool) -> None:
    """The user's directory, variables and path, as if this interpreter had been started for this container alone."""
    environment = launch.environment
    try:
        os.chdir(environment.directory)
    except OSError:
        pass  # it is gone, or not for this user: the runtime says so
    sys.path[:] = completed(environment.sys_path or sys.path, runtime)
    for stream in (sys.stdout, sys.stderr):
        if type(stream) is TextIOWrapper:  # not one that a runtime has put in its place
            stream.reconfigure(line_buffering=True)
    if forked:
        given = {name: value for name, value in environment.variables if name in threads.VARIABLES}
        variables = threads.sized(given, launch.function.resources.cpu)
        for name, value in variables.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        threads.resize_loaded(variables)
        _reseed()


def _reseed() -> None:
    """Siblings of one fork server must not draw the same random numbers."""
    random.seed()
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.seed()
