"""The life of a container process: connect, import, enter, serve, exit, leave.

`run` is called on the main thread of a process of its own, forked or fresh: the engine has given it its output pipes, a
session of its own, clean signal handlers and the variables of its environment. `python -m kedge.container.main` does
the same with a Launch as msgpack on standard input, or on `--launch-fd N`.

* The I/O thread listens from the first moment: a server that dies ends an import as well.
* A failing import or enter hook is reported with its traceback, and the container leaves.
* SIGTERM, and SIGINT outside of user code, mean: cancel what runs, exit hooks, leave. What was cancelled is not
  reported; the plane gives it to another container. Code that ignores it is left behind (see `deadlines`).
* The process ends by `os._exit`: threads which user code left behind do not keep it.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

import msgspec

from kedge.container import brittle, children, inheritance, output, rehearsal, waits
from kedge.container.control import Control
from kedge.container.executor import CRASHED, Executor
from kedge.container.guard import MAIN_SIGNAL, repeat_what_finalizers_drop
from kedge.container.heartbeat import IoThread
from kedge.container.jobs import Runner
from kedge.container.loader import Loaded, UserLoop, settle
from kedge.container.session import Session
from kedge.container.web import WebApps
from kedge.model.protocol import CONTAINER, ContainerFailed, ContainerReady, Hello, ToContainer
from kedge.model.spec import Launch
from kedge.sdk import context
from kedge.sdk.blobs import BlobStore
from kedge.sdk.serializer import PYTHON, error_info
from kedge.wire.transport import BlockingConnection

SWITCH_INTERVAL_S = 0.0005
"""Python's own 5 ms would let one CPU-bound input delay every answer of its siblings by as much."""
COULD_NOT_CONNECT = 69
"""EX_UNAVAILABLE"""


def prepare() -> None:
    """In a fork server, before it loads packages: some keep what they find as `sys.stderr` or `time.sleep` for ever."""
    _change_output()
    _change_python()
    rehearsal.rehearse()


@functools.cache
def _change_output() -> output.Outlet:
    outlet = output.install()
    children.install(outlet)
    return outlet


@functools.cache
def _change_python() -> None:
    """What user code finds different here. In a fork server, or in a container that starts fresh."""
    inheritance.install(output.end_thread)
    waits.install()
    brittle.make_sturdy()
    repeat_what_finalizers_drop()


def run(launch: Launch, records: int | None = None) -> NoReturn:
    """Lives as the container that `launch` describes. Never returns; the process ends.

    `records` is the descriptor of a pipe that takes what Python code prints; without it, that goes to stdout and stderr
    as ever, and nobody knows which input it was."""
    code = CRASHED
    try:
        if records is not None:
            _change_output().open(records)
        _change_python()
        code = _live(launch)
    except BaseException:
        traceback.print_exc()
    _end(code)


def _live(launch: Launch) -> int:
    began = time.perf_counter()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.enable()
    try:
        connection = BlockingConnection.connect(launch.address, ToContainer)
    except OSError as error:
        print(f"kedge: the container cannot reach its server at {launch.address}: {error}", file=sys.stderr)
        return COULD_NOT_CONNECT
    connection.send(
        [Hello(CONTAINER, launch.container, launch.token, python=PYTHON, process=os.getpid())],
    )
    executor = Executor(connection, Session(launch.function.concurrency.max_inputs), _end_at_once)
    IoThread(executor).start()
    _handle_signals(executor)
    if launch.function.interrupt_sockets:
        from kedge.container import sockets

        sockets.install()

    blobs = BlobStore(launch.home)
    user_loop = UserLoop(launch.function.concurrency.max_inputs)
    context.set_container(
        app_id=launch.app,
        app_name=launch.app_name,
        address=launch.address,
        home=launch.home,
        container=launch.container,
        token=launch.token,
        function=launch.function,
    )
    try:
        settle(launch)
        loaded = Loaded(launch, blobs, user_loop)
        web = WebApps(loaded.service, user_loop, executor)
        web.claim()
        loaded.enter()
        with loaded.costs:
            apps = web.open()
        runner = Runner(loaded.service, blobs, user_loop.finish, apps)
    except BaseException as error:
        failure = error_info(error)
        print(failure.traceback, end="", file=sys.stderr, flush=True)
        executor.outbox.send([ContainerFailed(failure)])
        return 1
    executor.open(runner, user_loop.get() if runner.has_async else None)
    context.set_control(Control(executor))
    executor.outbox.send([ContainerReady(loaded.imports, time.perf_counter() - began)])
    executor.serve()
    web.close()
    loaded.exit()
    executor.outbox.finish()
    return 0


def _handle_signals(executor: Executor) -> None:
    def leave(number: int, frame: object) -> None:
        executor.interrupt()

    def interrupt(number: int, frame: object) -> None:
        if executor.guard.armed or not executor.reader:
            raise KeyboardInterrupt
        executor.interrupt()

    def forked() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(MAIN_SIGNAL, signal.SIG_DFL)
        executor.forked()

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, interrupt)
    os.register_at_fork(after_in_child=forked)


def _end(code: int) -> NoReturn:
    """Ends the process after what it printed has left."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # closed or replaced by the user
    children.finish()
    output.finish()
    os._exit(code)


def _end_at_once(code: int) -> NoReturn:
    """Ends the process from any thread. Where the plane is gone, with all that user code has started."""
    if code and os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    _end(code)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m kedge.container.main", description="Runs one container.")
    parser.add_argument("--launch-fd", type=int, default=0, help="descriptor that holds the Launch as msgpack")
    options = parser.parse_args(arguments)
    with open(options.launch_fd, "rb", closefd=options.launch_fd != 0) as file:
        launch = msgspec.msgpack.decode(file.read(), type=Launch)
    os.environ.update(launch.environment.variables)
    run(launch)


if __name__ == "__main__":
    main()
