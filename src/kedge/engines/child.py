"""From a bare process to a container: the steps between fork (or exec) and the runtime's `run(launch)`.

A container is the leader of its own session, so that its group can be killed whole; it dies with its parent; it adopts
its orphaned descendants, so that whatever it started hangs below it until it ends, and below the supervisor after.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from typing import Any, NoReturn

import msgspec

from kedge.engines import system, threads
from kedge.engines.boot import completed
from kedge.model.spec import Launch

LAUNCH_FD = 3
"""Where a freshly started process finds what it was started with."""
COULD_NOT_START = 127
CRASHED = 70
"""Exit code of a container whose runtime itself raised (EX_SOFTWARE)."""

_RESET = [signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT]
_OOM_PREFERENCE = "500"
"""Of 1000: when memory runs out, a container goes before the server, the desktop and the shell."""


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


def detach(parent: int, stdout: int, stderr: int) -> None:
    """In the new process: its own session, its own output, no signal handlers of its parent, bound to its parent."""
    os.setsid()
    system.die_with(parent)
    system.adopt_orphans()
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(source, target)
        if source > 2:
            os.close(source)
    signal.set_wakeup_fd(-1)
    for number in _RESET:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(_OOM_PREFERENCE)
    except OSError:  # no such thing here, or a parent that is to be preferred already
        pass


def spawn(
    arguments: Sequence[str], variables: Mapping[str, str], handed: int, stdio: tuple[int, int], *, container: bool
) -> int:
    """Starts a fresh interpreter with `handed` as descriptor 3 and the two given ones as its output.

    OSError where no process can be made; an interpreter that cannot run shows as exit code 127, its reason on stderr.
    """
    parent = os.getpid()
    process = os.fork()
    if process:
        return process
    try:
        if container:
            detach(parent, *stdio)
        else:
            system.die_with(parent)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(stdio[0], 1)
            os.dup2(stdio[1], 2)
        # What is ignored here would stay ignored after exec.
        for number in (*_RESET, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if handed == LAUNCH_FD:
            os.set_inheritable(handed, True)
        else:
            os.dup2(handed, LAUNCH_FD)
        os.execve(arguments[0], list(arguments), dict(variables))
    except BaseException as error:
        os.write(2, f"kedge: cannot start {arguments[0]}: {error}\n".encode())
    finally:
        os._exit(COULD_NOT_START)


def main(descriptor: int, runtime: Sequence[str], runner: str) -> NoReturn:
    """A fresh container, where a fork would not be safe."""
    data = read_whole(descriptor)
    os.close(descriptor)
    live(data, runtime, runner, forked=False)


def live(data: bytes, runtime: Sequence[str], runner: str, *, forked: bool) -> NoReturn:
    """Becomes the container that `data` describes. Ends the process, whatever happens."""
    code: Any = CRASHED
    try:
        launch = msgspec.msgpack.decode(data, type=Launch)
        system.set_name(launch.container)
        _move_in(launch, runtime, forked)
        importlib.import_module(runner).run(launch)
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


def _move_in(launch: Launch, runtime: Sequence[str], forked: bool) -> None:
    """The user's directory, variables and path, as if this interpreter had been started for this container alone."""
    environment = launch.environment
    try:
        os.chdir(environment.directory)
    except OSError as error:
        print(f"kedge: running in {os.getcwd()}: cannot enter {environment.directory}: {error}", file=sys.stderr)
    sys.path[:] = completed(environment.sys_path or sys.path, runtime)
    importlib.invalidate_caches()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    if forked:
        variables = threads.sized(dict(environment.variables), launch.function.resources.cpu)
        os.environ.update({name: variables[name] for name in threads.VARIABLES})
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
