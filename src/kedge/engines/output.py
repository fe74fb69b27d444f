"""The three output pipes of one container, read as they fill and batched.

Two are its stdout and stderr: what C code and child processes write. The third takes what Python code writes, as
records that name their input (`wire.records`); a container never waits for long to write there, so it holds more.

After a read the pipe rests for a few milliseconds, so that a loop of prints costs two hundred messages a second and not
a message per line; a pipe that was full is read again at once. Reading pauses where nobody takes what was read: then
the container's own writes wait, and nothing is lost or piled up.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable

from kedge.engines.loop import Loop, Timer
from kedge.model.protocol import RECORDS

READ_SIZE = 64 * 1024
"""The size of a pipe on Linux."""
RECORDS_SIZE = 256 * 1024
"""Of the pipe of records: 10 ms of the fastest printing there is. More would soon use up what a user's pipes may take
together (64 MiB); beyond that, Linux gives every new pipe of that user two pages only."""
_REST_S = 0.005
_MOST_READS = 16


class OutputPipes:
    """Read ends of a container's stdout (1), stderr (2) and records."""

    def __init__(self, loop: Loop, emit: Callable[[int, bytes], None], on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._emit = emit
        self._on_end = on_end
        self._open: dict[int, int] = {}
        """Stream → descriptor."""
        self._resting: dict[int, Timer] = {}
        self._paused = True

    def attach(self) -> tuple[int, int, int]:
        """Makes the pipes; the write ends (of stdout, stderr and records) are the caller's to hand over and close.
        Nothing is read before `resume`."""
        writers: list[int] = []
        try:
            for stream in (1, 2, RECORDS):
                reader, writer = os.pipe()
                os.set_blocking(reader, False)
                self._open[stream] = reader
                writers.append(writer)
        except OSError:
            for writer in writers:
                os.close(writer)
            raise
        stdout, stderr, records = writers
        os.set_blocking(records, False)
        _enlarge(records)
        return stdout, stderr, records

    @property
    def ended(self) -> bool:
        """Nobody can write any more, and all that was written has been read."""
        return not self._open

    def pause(self) -> None:
        self._paused = True
        for descriptor in self._open.values():
            self._loop.forget(descriptor)

    def resume(self) -> None:
        self._paused = False
        for stream in self._open:
            if stream not in self._resting:
                self._watch(stream)

    def drain(self) -> None:
        """The container has ended: reads all there is, and goes on without rests or pauses until the end."""
        for timer in self._resting.values():
            timer.cancel()
        self._resting.clear()
        self._paused = False
        for stream in list(self._open):
            for _ in range(_MOST_READS):  # bounded: a stranger that holds the pipe may write for ever
                if self._read(stream) != READ_SIZE:
                    break
            if stream in self._open:
                self._loop.watch(self._open[stream], lambda stream=stream: self._read_at_end(stream))  # type: ignore[misc]

    def close(self) -> None:
        """Reads no more, even if somebody still holds a write end."""
        for timer in self._resting.values():
            timer.cancel()
        self._resting.clear()
        for descriptor in self._open.values():
            self._loop.forget(descriptor)
            os.close(descriptor)
        self._open.clear()

    def _watch(self, stream: int) -> None:
        self._loop.watch(self._open[stream], lambda: self._ready(stream))

    def _ready(self, stream: int) -> None:
        count = self._read(stream)
        if 0 < count < READ_SIZE:
            self._loop.forget(self._open[stream])
            self._resting[stream] = self._loop.later(_REST_S, lambda: self._rested(stream))
        elif stream not in self._open and self.ended:
            self._on_end()

    def _rested(self, stream: int) -> None:
        del self._resting[stream]
        if not self._paused:
            self._watch(stream)

    def _read_at_end(self, stream: int) -> None:
        self._read(stream)
        if self.ended:
            self._on_end()

    def _read(self, stream: int) -> int:
        """Emits one read. Returns the number of bytes, 0 at the end of the stream, -1 where there is nothing yet."""
        descriptor = self._open[stream]
        try:
            data = os.read(descriptor, READ_SIZE)
        except BlockingIOError:
            return -1
        if data:
            self._emit(stream, data)
            return len(data)
        self._loop.forget(descriptor)
        os.close(descriptor)
        del self._open[stream]
        return 0


def _enlarge(pipe: int) -> None:
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        try:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, RECORDS_SIZE)
        except OSError:
            pass  # this user's pipes hold enough already: it stays as it is
