"""How much containers have written to their own directories, measured again and again by a process beside: no disk, and
no number of files, makes the one that asks wait."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from kedge.engines import system, usage
from kedge.engines.loop import Loop

_DISK_S = 2.0
_IDLE_PART = 20
"""Measuring takes at most one part in so many of the time."""


class DiskMeter:
    """Measures directories again and again, in a process of its own each time: one at a time for all of them."""

    def __init__(self, loop: Loop, report: Callable[[dict[str, int]], None]) -> None:
        self._loop = loop
        self._report = report
        self._directories: dict[str, str] = {}
        self._process = 0
        self._reader = -1
        self._heard = b""
        self._planned = False
        self._began = 0.0

    def processes(self) -> list[int]:
        return [self._process] if self._process else []

    def add(self, name: str, directory: str) -> None:
        self._directories[name] = directory
        self._plan(_DISK_S)

    def remove(self, name: str) -> None:
        self._directories.pop(name, None)

    def _plan(self, seconds: float) -> None:
        if not (self._planned or self._process):
            self._planned = True
            self._loop.later(seconds, self._start)

    def _start(self) -> None:
        self._planned = False
        if not self._directories:
            return
        self._began, parent = time.monotonic(), os.getpid()
        reader, writer = os.pipe()
        try:
            process = os.fork()
        except OSError:
            os.close(reader)
            os.close(writer)
            self._plan(_DISK_S)
            return
        if process == 0:
            self._measure(parent, writer)
        os.close(writer)
        os.set_blocking(reader, False)
        self._process, self._reader, self._heard = process, reader, b""
        self._loop.watch(reader, self._hear)

    def _measure(self, parent: int, writer: int) -> None:
        """In the helper. Does not return."""
        try:
            system.die_with(parent)
            os.setpriority(os.PRIO_PROCESS, 0, 10)
            lines = [f"{usage.on_disk(directory)} {name}\n" for name, directory in self._directories.items()]
            view = memoryview("".join(lines).encode())
            while view:
                view = view[os.write(writer, view) :]
        finally:
            os._exit(0)

    def _hear(self) -> None:
        data = os.read(self._reader, 65536)
        self._heard += data
        if data:
            return
        self._loop.forget(self._reader)
        os.close(self._reader)
        self._process = 0
        words = [line.split(" ", 1) for line in self._heard.decode().splitlines()]
        self._plan(max(_DISK_S, _IDLE_PART * (time.monotonic() - self._began)))
        self._report({name: int(size) for size, name in words})
