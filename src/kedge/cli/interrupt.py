"""Ctrl-C: the first one ends the work in good order, the second one the process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 130
"""What shells give for a program that SIGINT ended: 128 + 2."""


class Interrupts:
    """Counts Ctrl-C. `on_first` is called in the signal handler, before KeyboardInterrupt is raised in the main thread;
    `on_second` right before the process ends."""

    def __init__(self) -> None:
        self.count = 0
        self.on_first: Callable[[], None] = lambda: None
        self.on_second: Callable[[], None] = lambda: None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            try:
                self.on_second()
            finally:
                os._exit(EXIT_CODE)
        self.on_first()
        raise KeyboardInterrupt


@contextmanager
def handled() -> Iterator[Interrupts]:
    """Handles Ctrl-C for the time of the `with` block. Outside the main thread nothing can be handled."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.signal(signal.SIGINT, interrupts)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
