"""`kedge logs`: what containers have printed, read from the state directory; no server is needed.

Without a filter it shows the last lines, with one all that fit it. `--follow` goes on until Ctrl-C. Where no app was
named, that begins with the latest one and goes on with whichever writes next.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from msgspec.structs import replace

from kedge.cli import asking, interrupt
from kedge.cli.logchoice import Options, Silent, filter_of, selection_of
from kedge.cli.loglines import LINE_LIMIT, Assembler, Filter, Line, in_order, newest, sequence
from kedge.cli.logprint import Members, Printer, say
from kedge.exception import Error, LogsFetchError
from kedge.model.protocol import AppsRequested
from kedge.sdk import server_process
from kedge.server.logreader import Entry, LogReader, Missing, Selection, Unreadable
from kedge.wire.transport import is_tcp

LAST_LINES = 100
"""Lines that are shown where nothing says how many: a few screens."""
POLL_S = 0.2
"""How often `--follow` looks. Where nothing was written, that costs microseconds."""


def show(options: Options) -> int:
    """Prints what the options select; gives the exit code."""
    filter = filter_of(options, datetime.datetime.now())
    other = server_process.elsewhere()
    if other is not None:
        raise LogsFetchError(
            f"logs are read where the server runs, and {other.named} names one at {other.address}: run `kedge logs` "
            "there"
        )
    path = Path(server_process.home()) / "logs" / "logs.db"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        if options.follow:
            Follower(path, options, filter).run(lambda: time.sleep(POLL_S))
        else:
            once(path, options, filter)
        sys.stdout.flush()
    except (Silent, Unreadable) as error:
        name = _name_of(options.app) if options.app and isinstance(error, (Silent, Missing)) else ""
        if name:
            say(f"{name} is there, and has printed nothing yet that is kept")
            return 0
        if isinstance(error, Unreadable):
            raise LogsFetchError(str(error)) from None
        raise
    except BrokenPipeError:
        # Whoever read has seen enough. The interpreter flushes once more at its end: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 0 if options.follow else interrupt.EXIT_CODE
    return 0


def _name_of(app: str) -> str:
    """The name of an app that the server of this machine has, by its name or id; empty where it has none."""
    try:
        client = asking.find()
        if client is None or is_tcp(client.address):
            return ""
        with contextlib.closing(client):
            found = asking.ask(client, lambda request: AppsRequested(request))
    except Error:
        return ""
    there = (one for one in found if one["state"] != "stopped")
    return next((str(one["name"]) for one in there if app in (one["name"], one["app"])), "")


def once(path: Path, options: Options, filter: Filter) -> None:
    """What is there."""
    with LogReader(path) as reader:
        selection, filter = selection_of(reader, options, filter)
        assembler = Assembler()
        found, more = history(reader, reader.find(selection), filter, options, assembler)
        printer = printer_for(options, reader.members)
        count = 0
        for line in filter.of(_with_rest(found, assembler)):
            printer.put(line)
            count += 1
        printer.flush()
    if not count:
        say("no line fits")
    elif more and options.tail is None and sys.stderr.isatty():
        say(f"earlier lines are left out: -n {10 * LAST_LINES} shows more, --since 1h those of the last hour")


def history(
    reader: LogReader, numbers: Sequence[int], filter: Filter, options: Options, assembler: Assembler
) -> tuple[Iterable[Line], bool]:
    """The lines that were asked for, and whether there are earlier ones. Lines without an end are left with the
    assembler, so that they can go on."""
    count = options.tail
    if count is None and not options.filters:
        count = LAST_LINES
    if count is None:
        return in_order(assembler, entries(reader, numbers, filter)), False
    lines, more = newest(entries(reader, reversed(numbers), filter), count, filter)
    last = {sequence(line.entry): line for line in lines}
    begun = {id(line): line for line in last.values() if not line.whole and len(line.data) < LINE_LIMIT}
    for line in begun.values():
        assembler.resume(line)
    return [line for line in lines if id(line) not in begun], more


def _with_rest(found: Iterable[Line], assembler: Assembler) -> Iterator[Line]:
    yield from found
    yield from assembler.rest()


def entries(reader: LogReader, numbers: Iterable[int], filter: Filter) -> Iterator[Entry]:
    """Chunks that are still there, and may hold lines that pass the filter."""
    for number in numbers:
        entry = reader.entry(number)
        if entry is not None and filter.takes(entry):
            yield entry


def printer_for(options: Options, members: Members) -> Printer:
    known = options.anywhere or options.app.startswith("ap-")
    return Printer(sys.stdout, json=options.json, timestamps=options.timestamps, heads=not known, members=members)


class Follower:
    """What is there, and what comes after it. `look` prints what is new since the last time."""

    def __init__(self, path: Path, options: Options, filter: Filter) -> None:
        self._path = path
        self._options = options
        self._filter = filter
        self._selection = Selection()
        self._assembler = Assembler()
        self._reader: LogReader | None = None
        self._printer = printer_for(options, lambda entry: self._reader.members(entry) if self._reader else [])
        self._seen = 0
        self._waiting = False
        """There was no log when this began: all that will be in it is new."""

    def run(self, wait: Callable[[], None]) -> None:
        """Until `wait` raises. Then lines without an end are shown too."""
        try:
            while True:
                self.look()
                wait()
        finally:
            self._print(self._assembler.rest())
            self.close()

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def look(self) -> None:
        if self._reader is not None and self._reader.replaced:
            self.close()
            self._waiting = True
        if self._reader is None:
            self._begin()
        elif self._reader.changed():
            newest = self._reader.newest()
            numbers = self._reader.find_after(self._seen, self._selection)
            self._seen = max(newest, max(numbers, default=0))
            self._print(in_order(self._assembler, entries(self._reader, numbers, self._filter)))

    def _begin(self) -> None:
        try:
            self._reader = reader = LogReader(self._path)
        except Missing:
            if not self._waiting:
                say("nothing has been written yet; waiting")
            self._waiting = True
            return
        newest = reader.newest()
        selection, self._filter = selection_of(reader, self._options, self._filter)
        self._selection = selection
        if not self._options.app and not self._options.anywhere:
            self._selection = replace(selection, app="")
        numbers = reader.find(self._selection if self._waiting else selection)
        if self._waiting:
            self._print(in_order(self._assembler, entries(reader, numbers, self._filter)))
        else:
            self._print(history(reader, numbers, self._filter, self._options, self._assembler)[0])
        self._seen = max(newest, max(numbers, default=0))

    def _print(self, lines: Iterable[Line]) -> None:
        for line in self._filter.of(lines):
            self._printer.put(line)
        self._printer.flush()
