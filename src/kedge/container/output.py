"""`sys.stdout` and `sys.stderr` of a container: every line goes out with the input that wrote it.

* A line is one record and one `write` to a pipe that the engine has made (`wire.records`). What has no newline yet is
  kept apart by input, thread and stream, so inputs that print at the same time never share a line. It goes out when it
  is flushed, when many parts have made it long, and with a newline of its own when its input or thread has ended.
* There is no lock anywhere: a print may run in a `__del__` or a signal handler that came in the middle of another one,
  an interruption may be raised in it, and a process that user code forks goes on printing.
* User code does not wait for a reader that has stopped. Where the pipe stays full, lines are dropped and counted, and
  what finds room again is told first. Nor can user code close these streams: they belong to all inputs.
* What is written to descriptors 1 and 2 themselves passes by: C code, child processes, `os.write`.

Without a pipe (in a fork server; after somebody has closed it) lines go to descriptors 1 and 2.
"""

from __future__ import annotations

import fcntl
import io
import os
import select
import sys
import time
from _thread import get_ident
from collections.abc import Iterator
from typing import Any

from kedge.sdk.context import InputContext, get_input
from kedge.wire.records import DATA_LIMIT, DROPPED, NOBODY, STDERR, STDOUT, Origin, Reader, announcement, pack_header

PATIENCE_S = 0.1
"""How long a print waits for a reader that takes nothing."""
LONGEST_S = 1.0
"""How long one print may wait altogether for a reader that is slow."""
_HIGH = 200
"""The pipe's descriptor lies beyond those that programs close by number when they become daemons, then use again."""
_MOST_WRITERS = 4096
_FOREVER, _NEVER = 1 << 61, 1 << 62

_write, _now = os.write, time.time


class Voice:
    """What one input has printed, as far as it is not out yet."""

    __slots__ = ("_outlet", "known", "lease", "lost_bytes", "lost_lines", "origin", "tails")

    def __init__(self, outlet: Outlet, lease: int, origin: Origin) -> None:
        self.lease = lease
        self.origin = origin
        self.known = -1
        """Until how many announcements have been made the reader remembers that of this input."""
        self.tails: tuple[dict[int, bytes], ...] = ({}, {}, {})
        """By stream and thread: what has no newline yet. An empty one says that a part of the line is out."""
        self.lost_lines = self.lost_bytes = 0
        self._outlet = outlet

    def end(self) -> None:
        """The input has ended, and with it its lines."""
        try:
            for stream in (STDOUT, STDERR):
                for thread in list(self.tails[stream]):
                    self.end_line(stream, thread)
            if self.lost_bytes:
                self._outlet.own_up()
        except OSError:
            pass  # neither the pipe nor the descriptors are there any more

    def end_line(self, stream: int, thread: int) -> None:
        tail = self.tails[stream].pop(thread, None)
        if tail is not None:
            self._outlet.put(self, stream, self._outlet.writer(thread), tail + b"\n")


class Outlet:
    """The pipe of one container, and the two streams that end in it."""

    def __init__(self) -> None:
        self.descriptor = -1
        self.nobody = Voice(self, 0, NOBODY)
        """Of code beside all inputs."""
        self.nobody.known = _FOREVER
        self.horizon = _NEVER
        """A voice that is known beyond this may write at once; for others there is something to be done before."""
        self.writers: dict[int, int] = {}
        """By thread, so that it is worked out once."""
        self.stdout = Stream(Tap(self, STDOUT))
        self.stderr = Stream(Tap(self, STDERR))
        self._salt = _salt()
        self._announced = 0
        self._full = False
        self._losers: dict[int, Voice] = {}
        """By lease: of whom lines were dropped, until that has been said."""

    # ------------------------------------------------------------ its life

    def open(self, descriptor: int) -> None:
        """From now on lines go to this pipe. Its write end, which does not block, belongs to this object."""
        try:
            self.descriptor = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH)
            os.close(descriptor)
        except OSError:  # so high a number is not allowed
            os.set_inheritable(descriptor, False)
            self.descriptor = descriptor
        self._look_ahead()

    def forked(self) -> None:
        """In a child: it has other threads, and what its parent has not written yet remains its parent's."""
        self._salt = _salt()
        self.writers = {}
        self._full = False
        self._losers = {}
        for voice in (self.nobody, self.voice()):
            voice.tails = ({}, {}, {})
            voice.lost_lines = voice.lost_bytes = 0
        self._look_ahead()

    def end_thread(self) -> None:
        voice = self.voice()
        for stream in (STDOUT, STDERR):
            voice.end_line(stream, get_ident())

    # ------------------------------------------------------------ who writes

    def voice(self) -> Voice:
        """That of the input which the calling code works on."""
        current = get_input()
        return self.nobody if current is None else current.voice or self.voice_of(current)

    def voice_of(self, current: InputContext) -> Voice:
        """That of an input, which gets one if it has none."""
        if not current.lease:
            return self.nobody
        if current.voice is None:
            members = current.members if len(current.members) > 1 else ()
            origin = Origin(current.call, current.index, current.attempt, current.method, members)
            current.voice = Voice(self, current.lease, origin)
        voice: Voice = current.voice
        return voice

    def writer(self, thread: int) -> int:
        """What tells it from other threads, and from those of other processes."""
        if len(self.writers) >= _MOST_WRITERS:
            self.writers = {}
        writer = self.writers[thread] = (thread >> 12 ^ self._salt) & 0xFFFFFFFF  # threads are pages apart
        return writer

    # ------------------------------------------------------------ what goes out

    def put(self, voice: Voice, stream: int, writer: int, data: bytes) -> bytes | None:
        """Writes lines; where the last one has no newline, the part of it that there is.

        Returns what must go before that writer's next data on this stream; None where a new line begins with them."""
        done = 0
        try:
            if self.descriptor >= 0:
                end = 0.0 if self._full else time.monotonic() + LONGEST_S
                if self.own_up(end) and self._announce(voice, end):
                    for piece in pieces(data):
                        header = pack_header(len(piece), stream, writer, voice.lease, _now())
                        if not self._send(header + piece, end):
                            break
                        done += len(piece)
            if self.descriptor < 0:
                while done < len(data):
                    done += _write(stream, data[done:])
        finally:
            if done < len(data):
                self._lose(voice, data[done:])
        if data.endswith(b"\n", 0, done) or not done:
            return None
        return b"" if done == len(data) else b"\n"

    def own_up(self, end: float | None = None) -> bool:
        """Says what was dropped, by whomever; whether there was room."""
        end = time.monotonic() + PATIENCE_S if end is None else end
        return all(self._confess(voice, end) for voice in list(self._losers.values()))

    def _announce(self, voice: Voice, end: float) -> bool:
        if voice.known < self._announced:
            if not self._send(announcement(voice.lease, voice.origin, _now()), end):
                return False
            self._announced += 1
            voice.known = self._announced + Reader.MEMORY // 2
            self._look_ahead()
        return True

    def _confess(self, voice: Voice, end: float) -> bool:
        lines, size = voice.lost_lines, voice.lost_bytes
        what = "1 line was" if lines <= 1 else f"{lines} lines were"
        words = f"{what} dropped ({size} bytes): the output of this container was not read fast enough".encode()
        if not self._announce(voice, end):
            return False
        if not self._send(pack_header(len(words), DROPPED, 0, voice.lease, _now()) + words, end):
            return False
        voice.lost_lines -= lines
        voice.lost_bytes -= size
        if not voice.lost_bytes:
            self._losers.pop(voice.lease, None)
        self._look_ahead()
        return True

    def _lose(self, voice: Voice, data: bytes) -> None:
        voice.lost_lines += data.count(b"\n")
        voice.lost_bytes += len(data)
        self._losers[voice.lease] = voice
        self._look_ahead()

    def _look_ahead(self) -> None:
        self.horizon = _NEVER if self.descriptor < 0 or self._losers else self._announced

    def _send(self, record: bytes, end: float) -> bool:
        """Writes one record, waiting until `end` at most; whether there was room."""
        until = 0.0
        while True:
            try:
                _write(self.descriptor, record)
                self._full = False
                return True
            except BlockingIOError:
                now = time.monotonic()
                until = until or min(now + PATIENCE_S, end)
                if now >= until:
                    self._full = True
                    return False
                waiting = select.poll()
                waiting.register(self.descriptor, select.POLLOUT)
                waiting.poll((until - now) * 1000)
            except OSError:  # somebody has closed it, or its reader is gone
                self.descriptor = -1
                self._look_ahead()
                return False


def _salt() -> int:
    return os.getpid() * 0x9E3779B1


_outlet: Outlet | None = None


def install() -> Outlet:
    """Puts the two streams in the place of `sys.stdout` and `sys.stderr`. Without effect if that has been done."""
    global _outlet
    if _outlet is None:
        _outlet = Outlet()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass  # there is none
        sys.stdout = sys.__stdout__ = _outlet.stdout  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _outlet.stderr  # type: ignore[misc]
        os.register_at_fork(after_in_child=_outlet.forked)
    return _outlet


def end_thread() -> None:
    """The calling thread is about to end, and with it its lines."""
    if _outlet is not None:
        _outlet.end_thread()


def finish() -> None:
    """The process ends: lines that were begun beside all inputs are over."""
    if _outlet is not None:
        _outlet.nobody.end()
        _outlet.own_up()


def say(text: str) -> None:
    """Something that the runtime has to tell people, on the stderr of the container."""
    try:
        print(f"kedge: {text}", file=sys.stderr, flush=True)
    except Exception:
        pass  # stderr is the user's to close or to replace


class Tap(io.BufferedIOBase):
    """The binary side of one stream, by the number of its descriptor. Nothing closes it."""

    closed = False
    mode = "wb"

    def __init__(self, outlet: Outlet, stream: int) -> None:
        self._outlet = outlet
        self._stream = stream
        self.name = "<stderr>" if stream == STDERR else "<stdout>"

    def write(self, data: Any, /) -> int:
        if type(data) is not bytes:
            data = memoryview(data).tobytes()
        size = len(data)
        if not size:
            return 0
        outlet, stream, thread = self._outlet, self._stream, get_ident()
        current = get_input()
        voice = outlet.nobody if current is None else current.voice or outlet.voice_of(current)
        tails = voice.tails[stream]
        begun = thread in tails
        if begun:
            data = tails.pop(thread, b"") + data
        rest = None
        if not data.endswith(b"\n"):
            cut = data.rfind(b"\n") + 1
            if not begun or len(data) - cut < DATA_LIMIT:  # else it goes out in parts: who knows where it ends
                data, rest = data[:cut], data[cut:]
        if data:
            length = len(data)
            writer = outlet.writers.get(thread) or outlet.writer(thread)
            if voice.known >= outlet.horizon and length <= DATA_LIMIT:
                try:
                    _write(outlet.descriptor, pack_header(length, stream, writer, voice.lease, _now()) + data)
                    data = b""
                except OSError:
                    pass  # no room, or no pipe any more
            if data:
                before = outlet.put(voice, stream, writer, data)
                rest = rest if before is None else before + (rest or b"")
        if rest is not None:
            tails[thread] = tails.pop(thread, b"") + rest
        return size

    def flush(self) -> None:
        """Lets the line that the calling code has begun out as it is."""
        thread, outlet = get_ident(), self._outlet
        voice = outlet.voice()
        tails = voice.tails[self._stream]
        if tails.get(thread):
            before = outlet.put(voice, self._stream, outlet.writer(thread), tails.pop(thread, b""))
            if before is not None:
                tails[thread] = before + tails.pop(thread, b"")

    def close(self) -> None:
        self.flush()

    @property
    def raw(self) -> Tap:
        return self

    def fileno(self) -> int:
        return self._stream

    def writable(self) -> bool:
        return True


class Stream(io.TextIOWrapper):
    """The text side. Never keeps anything itself: that would be shared by all inputs."""

    closed = False
    mode = "w"

    def __init__(self, tap: Tap) -> None:
        super().__init__(tap, encoding="utf-8", errors="backslashreplace", newline="\n", write_through=True)

    def close(self) -> None:
        self.flush()

    def detach(self) -> Any:
        """Programs wrap what they detach in a stream of their own. The others keep this one."""
        self.flush()
        return self.buffer

    def reconfigure(self, **options: Any) -> None:
        options.pop("line_buffering", None)
        super().reconfigure(**{**options, "write_through": True})


def pieces(data: bytes) -> Iterator[bytes]:
    """Cuts what does not fit into one record, between lines where that is possible.

    >>> [len(piece) for piece in pieces(b"x" * 3000 + b"\\n" + b"y" * 9000)]
    [3001, 4068, 4068, 864]
    """
    position = 0
    while len(data) - position > DATA_LIMIT:
        end = data.rfind(b"\n", position, position + DATA_LIMIT) + 1 or position + DATA_LIMIT
        yield data[position:end]
        position = end
    if position < len(data):
        yield data[position:] if position else data
