"""Waking a thread that waits for a socket: a pipe that it waits for as well."""

from __future__ import annotations

import os
import select


class Wake:
    """One thread waits, any thread or signal handler sets."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        self._alone = select.poll()
        self._alone.register(self._reading, select.POLLIN)
        self._both: select.poll | None = None
        self._with = -1

    def fileno(self) -> int:
        """Readable while it is set: for who polls by himself."""
        return self._reading

    def set(self) -> None:
        try:
            os.write(self._writing, b"\0")
        except BlockingIOError:
            pass  # 64 KiB of wake-ups nobody has looked at: one is enough

    def wait(self, timeout: float | None = None) -> None:
        """Until somebody sets it; forever, or `timeout` seconds."""
        if self._alone.poll(None if timeout is None else timeout * 1000):
            self.clear()

    def wait_with(self, descriptor: int, timeout: float | None = None) -> bool:
        """The same, or until there is something to read from `descriptor`: whether there is. Always the same one."""
        if self._both is None or self._with != descriptor:
            self._both, self._with = select.poll(), descriptor
            self._both.register(self._reading, select.POLLIN)
            self._both.register(descriptor, select.POLLIN)
        ready = self._both.poll(None if timeout is None else timeout * 1000)
        found = False
        for number, _ in ready:
            if number == descriptor:
                found = True
            else:
                self.clear()
        return found

    def clear(self) -> None:
        try:
            os.read(self._reading, 4096)
        except BlockingIOError:
            pass
