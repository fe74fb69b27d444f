"""Who shows what containers write and what the server has to say. Nobody does unless somebody asked for it.

The CLI registers a sink that draws; `enable_output()` registers a plain one. The runner feeds whichever is current.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from kedge.model.protocol import ImageProgressed, OutputCaptured
from kedge.sdk.lines import Lines, Origin


class OutputSink(Protocol):
    """What a display offers. Its methods are called from a thread of their own or from the caller's."""

    progress_interval: float
    """Seconds between two calls of `progress`; 0 for none."""

    def captured(self, message: OutputCaptured) -> None:
        """A container wrote bytes; no bytes say that it has ended."""

    def notice(self, text: str, level: str = "info") -> None:
        """Something to read once. `level` is info, room or warning."""

    def progress(self, pools: list[dict[str, Any]]) -> None:
        """The statistics of every pool of the app."""

    def building(self, image: str, message: ImageProgressed) -> None:
        """How the build of an image goes. `image` names its functions, where the app has several images."""


class PlainOutput:
    """Passes on the lines that containers write, stdout to stdout and stderr to stderr, and notices to stderr."""

    progress_interval = 0.0

    def __init__(self) -> None:
        self._lines = Lines()
        self._mutex = threading.Lock()

    def captured(self, message: OutputCaptured) -> None:
        with self._mutex:
            self._write(self._lines.feed(message))

    def flush(self) -> None:
        """Writes lines whose end never came."""
        with self._mutex:
            self._write(self._lines.rest())

    def _write(self, found: list[tuple[Origin, list[bytes]]]) -> None:
        for origin, lines in found:
            stream = sys.stderr if origin.stream == 2 else sys.stdout
            stream.write(b"".join(lines).decode("utf-8", "replace"))
            stream.flush()

    def notice(self, text: str, level: str = "info") -> None:
        print(f"kedge: {text}", file=sys.stderr, flush=True)

    def progress(self, pools: list[dict[str, Any]]) -> None:
        """Nothing: a plain display shows no progress."""

    def building(self, image: str, message: ImageProgressed) -> None:
        """Which steps are built, line by line."""
        if message.state == "started":
            of = f" of {image}" if image else ""
            self.notice(f"building the image{of}: {message.title} (step {message.step} of {message.steps})")


_sinks: list[OutputSink] = []


def current() -> OutputSink | None:
    """The display in use, if any."""
    return _sinks[-1] if _sinks else None


@contextmanager
def show_on(sink: OutputSink) -> Iterator[None]:
    """Makes `sink` the display for the time of the `with` block."""
    _sinks.append(sink)
    try:
        yield
    finally:
        _sinks.remove(sink)


@contextmanager
def enable_output() -> Iterator[None]:
    """Shows what containers print, and notices of the server, while apps run inside the `with` block.

    Example:
        with kedge.enable_output(), app.run():
            square.remote(3)
    """
    output = PlainOutput()
    try:
        with show_on(output):
            yield
    finally:
        output.flush()
