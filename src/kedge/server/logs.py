"""What containers print: taken apart, handed to the sessions that watch the app, and kept in the log book.

A container writes in two ways. What Python code prints comes as records, which name the input; what C code and child
processes write comes raw, through the file descriptors, and belongs to the container alone. Both become chunks, which
go to the log book every FLUSH_S while there are any.

Nothing here trusts a container: times are put in order, names have a length, and bytes that are no records are raw.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from kedge.model.protocol import RECORDS, OutputCaptured
from kedge.server.chunks import OWN_WRITER, Chunk, Place, notice
from kedge.server.logbook import TOO_FAST, LogBook
from kedge.wire.records import DROPPED, NOBODY, STDERR, STDOUT, Origin, Reader, Record

log = logging.getLogger("kedge.server.logs")

FLUSH_S = 0.1
"""Seconds that bytes wait here, so that what is printed meanwhile shares a row with them."""
BURST = 4 * 1024 * 1024
"""Bytes of one container that are kept in this time: 40 MB/s, more than anybody reads."""
OPEN_LINES = 10_000
"""Lines without an end that are remembered of a container: enough for every input that it has at a time."""
MOST_LATE_S = 3600.0
"""How long before now a container may claim to have written something."""
_LARGEST = 2**31
_LONGEST = 256


class Run:
    """What one writer of one input wrote to one stream with nothing else between."""

    __slots__ = ("origin", "parts", "raw", "stream", "writer")

    def __init__(self, origin: Origin, stream: int, writer: int, raw: bool = False) -> None:
        self.origin = origin
        self.stream = stream
        self.writer = writer
        self.raw = raw
        self.parts: list[tuple[float, bytes]] = []
        """What was written at which time."""

    def message(self, place: Place) -> OutputCaptured:
        origin, (at, data) = self.origin, self.parts[-1]
        return OutputCaptured(
            place.container,
            self.stream,
            data if len(self.parts) == 1 else b"".join([data for _, data in self.parts]),
            at,
            place.app,
            place.pool,
            origin.call,
            origin.index,
            origin.attempt,
            origin.method,
            self.writer,
            self.raw,
        )


class OutputLog:
    """Belongs to one event loop. `place` says whose a container is, and None where nobody knows.

    Example:
        output = OutputLog(home / "logs" / "logs.db", launches.place)
        for message in output.write(captured):
            for session in output.watchers(message.app):
                send(session, message)
    """

    def __init__(
        self, path: Path, place: Callable[[str], Place | None], clock: Callable[[], float] = time.time
    ) -> None:
        self.book = LogBook(path)
        self._place = place
        self._clock = clock
        self._outlets: dict[str, _Outlet] = {}
        self._written: dict[str, _Outlet] = {}
        """Those that have something to pass on."""
        self._watchers: dict[str, dict[str, None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def write(self, captured: OutputCaptured) -> list[OutputCaptured]:
        """Keeps it, and gives it as messages for the watchers of its app if there are any."""
        container = captured.container
        outlet = self._outlets.get(container)
        if outlet is None:
            place = self._place(container) or Place(container, captured.app, pool=captured.pool)
            outlet = self._outlets[container] = _Outlet(place, self._clock() - MOST_LATE_S)
        runs = outlet.take_apart(captured)
        outlet.keep(runs, self._clock())
        self._written[container] = outlet
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)
        place = outlet.place
        return [run.message(place) for run in runs] if place.app in self._watchers else []

    def close(self, container: str) -> list[OutputCaptured]:
        """The container is gone. Gives what ends its lines for those who watch: a message without bytes."""
        outlet = self._outlets.pop(container, None)
        if outlet is None:
            return []
        self._written.pop(container, None)
        outlet.pass_on(self.book)
        if outlet.place.app not in self._watchers:
            return []
        return [OutputCaptured(container, STDOUT, b"", self._clock(), outlet.place.app, outlet.place.pool)]

    def say(self, app: str, app_name: str, function: str, text: str) -> None:
        """A line of kedge's own in the log of an app, from no container."""
        self.remark(Place(f"{app}/{function}", app, app_name, function), text)

    def remark(self, place: Place, text: str, origin: Origin = NOBODY, detail: str = "") -> None:
        """The same about a container or an input, behind all that was written there; see `chunks.notice`."""
        self.flush()
        self.book.put([notice(place, text, self._clock(), origin, detail)])

    def close_all(self) -> None:
        """Everything is written when this returns, unless the disk refuses it."""
        self.flush()
        self.book.close()

    def flush(self) -> None:
        """Gives the book what was written since the last time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        written, self._written = self._written, {}
        for outlet in written.values():
            outlet.pass_on(self.book)

    # ------------------------------------------------------------ who watches

    def all_watchers(self) -> list[str]:
        return list(dict.fromkeys(session for sessions in self._watchers.values() for session in sessions))

    def watchers(self, app: str) -> list[str]:
        return list(self._watchers.get(app, ()))

    def subscribe(self, app: str, session: str) -> None:
        self._watchers.setdefault(app, {})[session] = None

    def unsubscribe(self, session: str) -> None:
        for app, sessions in list(self._watchers.items()):
            sessions.pop(session, None)
            if not sessions:
                del self._watchers[app]


class _Outlet:
    """One container that writes."""

    def __init__(self, place: Place, earliest: float) -> None:
        self.place = place
        self._reader: Reader | None = Reader()
        """None: what should have been records was none."""
        self._chunks: dict[tuple[int, int, int, bool], Chunk] = {}
        """Those that are written to, by their origin's identity, stream and writer."""
        self._full: list[Chunk] = []
        self._open: dict[tuple[str, int, int, int, int, bool], None] = {}
        """Whose last byte was no newline."""
        self._earliest = earliest
        """The time of the last byte that was passed on: none of those that follow is earlier."""
        self._burst = 0
        self._lost = 0

    def take_apart(self, captured: OutputCaptured) -> list[Run]:
        if captured.stream == RECORDS and self._reader is not None:
            try:
                return _runs(self._reader.feed(captured.data))
            except ValueError as error:
                self._reader = None
                log.warning(
                    "%s does not write records where they are expected; its output is kept without the inputs that it "
                    "belongs to: %s",
                    self.place.container,
                    error,
                )
        run = Run(NOBODY, STDERR if captured.stream == STDERR else STDOUT, 0, raw=True)
        run.parts.append((captured.at, captured.data))
        return [run]

    def keep(self, runs: list[Run], now: float) -> None:
        earliest = self._earliest
        for run in runs:
            key = id(run.origin), run.stream, run.writer, run.raw
            chunk = self._chunks.get(key)
            first = True
            for at, data in run.parts:
                self._burst += len(data)
                if self._burst > BURST:
                    self._lost += len(data)
                    continue
                if not earliest <= at <= now:
                    at = earliest if at < earliest else now  # also where it is no number
                if chunk is None or not chunk.fits(at):
                    chunk = self._chunks[key] = self._next(run, at, chunk)
                chunk.add(data, at, first)
                first = False

    def pass_on(self, book: LogBook) -> None:
        """Gives the book what was kept since the last time."""
        chunks = [*self._full, *self._chunks.values()]
        self._full, self._chunks = [], {}
        for chunk in chunks:
            self._earliest = max(self._earliest, chunk.last)
            if chunk.data.endswith(b"\n"):
                self._open.pop(_sequence(chunk), None)
            else:
                self._open[_sequence(chunk)] = None
        while len(self._open) > OPEN_LINES:
            del self._open[next(iter(self._open))]
        if self._lost:
            book.lose(self.place, self._lost, TOO_FAST)
        self._burst = self._lost = 0
        if chunks:
            book.put(chunks)

    def _next(self, run: Run, at: float, before: Chunk | None) -> Chunk:
        chunk = Chunk(self.place, _checked(run.origin), run.stream, run.writer, at, run.raw)
        if before is None:
            chunk.continues = _sequence(chunk) in self._open
        else:
            self._full.append(before)
            chunk.first = chunk.last = max(at, before.last)
            chunk.continues = not before.data.endswith(b"\n")
        return chunk


def _runs(records: list[Record]) -> list[Run]:
    runs: list[Run] = []
    run: Run | None = None
    for record in records:
        kind, origin, data = record.kind, record.origin, record.data
        if run is None or run.origin is not origin or run.writer != record.writer or run.stream != kind:
            if kind == DROPPED:
                run = Run(origin, STDERR, OWN_WRITER)
                data = b"[kedge: %b]\n" % data
            else:
                run = Run(origin, STDERR if kind == STDERR else STDOUT, record.writer)
            runs.append(run)
        run.parts.append((record.at, data))
    return runs


def _checked(origin: Origin) -> Origin:
    """The origin, unless its names are too long or its numbers too large to be true."""
    if len(origin.call) > _LONGEST or len(origin.method) > _LONGEST or not -1 <= origin.index < _LARGEST:
        return NOBODY
    if not 0 <= origin.attempt < _LARGEST:
        return NOBODY
    if any(len(call) > _LONGEST or not 0 <= index < _LARGEST for call, index in origin.members):
        return NOBODY
    return origin


def _sequence(chunk: Chunk) -> tuple[str, int, int, int, int, bool]:
    origin = chunk.origin
    return origin.call, origin.index, origin.attempt, chunk.stream, chunk.writer, chunk.raw
