"""Making processes: what happens between fork and exec, and what every container is made of, forked or fresh.

A container is the leader of its own session, so that its group can be killed whole; it dies with its parent; it adopts
its orphaned descendants, so that whatever it started hangs below it until it ends, and below the supervisor after.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from collections.abc import Mapping, Sequence
from typing import Protocol

from kedge.engines import system
from kedge.engines.bounds import Bounds, bind

LAUNCH_FD = 3
"""Where a freshly started process finds what it was started with."""
RECORDS_FD = 4
"""Where a freshly started container finds the pipe of its records."""
COULD_NOT_START = 127
CANNOT_ENTER = 71
"""Exit code of a process whose surroundings could not be made (EX_OSERR)."""

FILE_LIMIT_VARIABLE = "KEDGE_OPEN_FILES"
"""Where a server that has raised its own bound of open files tells the supervisor what it was."""
file_limit: tuple[int, int] | None = None
"""Open files that a new process may have, where this one has raised its own bound."""


class Entry(Protocol):
    """How a new process comes to where it is to live."""

    parent: int
    """What its parent is called there."""

    def fork(self) -> int: ...

    def enter(self) -> None:
        """In the new process, last before it becomes another program."""


class Plain:
    """Beside this process, in the machine's own files."""

    def __init__(self) -> None:
        self.parent = os.getpid()

    def fork(self) -> int:
        return os.fork()

    def enter(self) -> None:
        pass


_RESET = [signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT]
_OOM_PREFERENCE = b"500"
"""Of 1000: when memory runs out, a container goes before the server, the desktop and the shell."""


def forget_signals() -> None:
    """Handlers and mask as a new interpreter has them."""
    signal.set_wakeup_fd(-1)
    for number in _RESET:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def detach(parent: int, stdout: int, stderr: int) -> None:
    """In the new process: its own session, its own output, bound to its parent."""
    os.setsid()
    system.die_with(parent)
    system.adopt_orphans()
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(source, target)
        if source > 2:
            os.close(source)
    try:
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(score, _OOM_PREFERENCE)
        os.close(score)
    except OSError:  # no such thing here, or a parent that is to be preferred already
        pass


def spawn(
    arguments: Sequence[str],
    variables: Mapping[str, str],
    handed: int,
    stdio: tuple[int, int],
    records: int | None = None,
    bounds: Bounds | None = None,
    entry: Entry | None = None,
) -> int:
    """Starts a fresh interpreter with `handed` as descriptor 3 and the two of `stdio` as its output. One that becomes a
    container has `records` as descriptor 4.

    OSError where no process can be made; an interpreter that cannot run shows as exit code 127, its reason on stderr.
    """
    entry = entry or Plain()
    process = entry.fork()
    if process:
        return process
    try:
        if records is not None:
            detach(entry.parent, *stdio)
        else:
            os.setsid()  # it takes no part in the hurry of its parent's session
            system.die_with(entry.parent)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(stdio[0], 1)
            os.dup2(stdio[1], 2)
        if bounds is not None:
            bind(bounds)
        forget_signals()
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):  # ignored here is ignored after exec
            signal.signal(number, signal.SIG_DFL)
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, file_limit)
        above = [  # of both targets: neither is to be overwritten before it was copied
            (fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, RECORDS_FD + 1), target)
            for source, target in ((handed, LAUNCH_FD), (records, RECORDS_FD))
            if source is not None
        ]
        for source, target in above:
            os.dup2(source, target)
        try:
            entry.enter()
        except OSError as error:
            os.write(2, f"kedge: what it is to find around it cannot be made: {error.strerror or error}\n".encode())
            os._exit(CANNOT_ENTER)
        os.execvpe(arguments[0], list(arguments), dict(variables))
    except BaseException as error:
        os.write(2, f"kedge: cannot start {arguments[0]}: {error}\n".encode())
    finally:
        os._exit(COULD_NOT_START)
