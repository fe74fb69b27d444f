"""One terminal, shared: text that stays scrolls by above a few lines that are drawn again and again.

Everything that writes there goes through one `Screen`: containers' lines, the program's own prints, the live lines.
The live lines vanish while a print is in the middle of a line, and while `input()` waits for an answer, so that neither
gets mixed up. What a subprocess writes by itself is the one thing that nobody here can know about.
"""

from __future__ import annotations

import builtins
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

BEGUN_S = 0.02
"""`print` writes a line and its end one after the other: so long may the end take, and lines of others wait for it."""
REDRAW_S = 0.05
"""Seconds between two drawings of the live lines because of text above them: a flood of text must not become two."""


class Screen:
    """A terminal with live lines at its end. `stream` is the terminal, `compose` gives the live lines of the moment."""

    def __init__(self, stream: TextIO, compose: Callable[[], list[str]]) -> None:
        self._stream = stream
        self._compose = compose
        self._lock = threading.RLock()
        self._drawn = 0
        """Live lines on the screen; 0 where they are hidden."""
        self._open_line = False
        """The program has written a line without its end."""
        self._begun_at = 0.0
        """When it did so last."""
        self._drawn_at = 0.0
        self._resumed = threading.Event()
        self._resumed.set()
        self._closed = False

    def write(self, text: str, *, whole_lines: bool = True) -> None:
        """Text that stays. `whole_lines`: it begins on a line of its own; otherwise it goes on where the last one
        stopped."""
        if not text:
            return
        if whole_lines:
            # Lines can wait for the answer to a question; what asks it cannot.
            self._resumed.wait()
            while self._open_line and time.monotonic() - self._begun_at < BEGUN_S:
                time.sleep(BEGUN_S / 10)
        with self._lock:
            parts = [self._erasing()]
            if self._open_line and whole_lines:
                parts.append("\n")
            parts.append(text)
            self._open_line = not text.endswith("\n")
            self._begun_at = time.monotonic()
            if not self._open_line and time.monotonic() - self._drawn_at >= REDRAW_S:
                parts.append(self._drawing())
            self._emit("".join(parts))

    def redraw(self) -> None:
        """Shows the live lines as they are now."""
        with self._lock:
            if not self._open_line and self._resumed.is_set():
                self._emit(self._erasing() + self._drawing())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Without live lines and without lines of containers for a while: a person is asked something."""
        with self._lock:
            self._resumed.clear()
            self._emit(self._erasing())
        try:
            yield
        finally:
            with self._lock:
                # The answer ended the line.
                self._open_line = False
                self._resumed.set()

    def close(self) -> None:
        """The live lines go, for good."""
        self._resumed.set()
        with self._lock:
            self._closed = True
            self._emit(self._erasing() + ("\n" if self._open_line else ""))
            self._open_line = False

    def abandon(self) -> None:
        """As `close`, for a process that ends this moment: takes no lock."""
        with suppress(OSError):
            os.write(self._stream.fileno(), self._erasing().encode())

    def _drawing(self) -> str:
        if self._closed or not self._resumed.is_set():
            return ""
        lines = self._compose()
        self._drawn = len(lines)
        self._drawn_at = time.monotonic()
        return "\n".join(lines)

    def _erasing(self) -> str:
        drawn, self._drawn = self._drawn, 0
        return "" if not drawn else "\r\x1b[2K" + "\x1b[1A\x1b[2K" * (drawn - 1)

    def _emit(self, text: str) -> None:
        if not text:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # The terminal is gone, or a program closed the stream: it still runs to its end.
            self._closed = True


class Shared:
    """Stands in for sys.stdout or sys.stderr on the same terminal: the program's prints go above the live lines."""

    def __init__(self, stream: TextIO, screen: Screen) -> None:
        self._stream = stream
        self._screen = screen

    def write(self, text: str) -> int:
        self._screen.write(text, whole_lines=False)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Piped:
    """Stands in for sys.stdout or sys.stderr that is no terminal: what others have to write there goes between the
    lines that the program prints, unless one of them stays without an end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._open_line = False
        self._begun_at = 0.0

    def write(self, text: str) -> int:
        if os.getpid() != self._process:  # a fork of the program: nobody else is here, and the lock may be taken
            return self._stream.write(text)
        with self._lock:
            count = self._stream.write(text)
            if text.endswith("\n"):
                self._open_line = False
            elif text and not self._open_line:
                self._open_line, self._begun_at = True, time.monotonic()
        return count

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def insert(self, data: bytes) -> None:
        """Whole lines of somebody else, as they are."""
        while True:
            with self._lock:
                if not self._open_line or time.monotonic() - self._begun_at >= BEGUN_S:
                    self._put(data)
                    return
            time.sleep(BEGUN_S / 10)

    def _put(self, data: bytes) -> None:
        with suppress(OSError, ValueError):
            binary = getattr(self._stream, "buffer", None)
            if binary is None:
                self._stream.write(data.decode("utf-8", "replace"))
            else:
                self._stream.flush()
                binary.write(data)
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def piped(name: str) -> Iterator[Piped]:
    """`sys.stdout` or `sys.stderr`, for the time of the `with` block."""
    stream = getattr(sys, name)
    stand_in = Piped(stream)
    setattr(sys, name, stand_in)
    try:
        yield stand_in
    finally:
        if getattr(sys, name) is stand_in:
            setattr(sys, name, stream)


@contextmanager
def sharing(screen: Screen) -> Iterator[None]:
    """For the time of the `with` block the program's prints and questions go through the screen."""
    stdout, stderr, ask = sys.stdout, sys.stderr, builtins.input

    def ask_undisturbed(prompt: object = "", /) -> str:
        with screen.paused():
            ours = sys.stdout
            # The real stream: only with that one has input() a line editor.
            sys.stdout = stdout
            try:
                return ask(prompt)
            finally:
                sys.stdout = ours

    if stdout.isatty():
        sys.stdout = Shared(stdout, screen)
    sys.stderr = Shared(stderr, screen)
    builtins.input = ask_undisturbed
    try:
        yield
    finally:
        sys.stdout, sys.stderr, builtins.input = stdout, stderr, ask
