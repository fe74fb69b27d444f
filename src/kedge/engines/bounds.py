"""What a new process binds itself to before it does anything else: control groups, cores, sizes of files."""

from __future__ import annotations

import os
import resource

from msgspec import Struct


class Bounds(Struct, frozen=True):
    groups: tuple[str, ...] = ()
    """The `cgroup.procs` of groups to be in."""
    cores: tuple[int, ...] = ()
    """Numbers of the cores to stay on; empty: all."""
    file_size: int = 0
    """Bytes that no file may exceed; 0: no bound."""
    nice: int = 0
    """How nice it is to others; whoever starts it may be less so."""


def bind(bounds: Bounds) -> None:
    """Binds this process, and with it all that it starts. OSError where a group cannot be joined: it must not live
    without its limits. Whoever runs it is single-threaded."""
    for door in bounds.groups:
        descriptor = os.open(door, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"0")
        except OSError as error:
            raise OSError(error.errno, f"cannot join its control group: {error.strerror}", door) from None
        finally:
            os.close(descriptor)
    if bounds.cores and hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(0, bounds.cores)
        except OSError:  # cores were taken offline, or a sandbox forbids it
            pass
    if os.getpriority(os.PRIO_PROCESS, 0) < bounds.nice:
        os.setpriority(os.PRIO_PROCESS, 0, bounds.nice)
    if bounds.file_size:
        lower(resource.RLIMIT_FSIZE, bounds.file_size)
    # A core dump of a model fills a disk. Code that wants one may raise this again.
    lower(resource.RLIMIT_CORE, 0)


def lower(kind: int, value: int) -> None:
    """The soft bound only: the hard one stays as the user's own."""
    try:
        soft, hard = resource.getrlimit(kind)
        if soft == resource.RLIM_INFINITY or soft > value:
            resource.setrlimit(kind, (value, hard))
    except (ValueError, OSError):
        pass
