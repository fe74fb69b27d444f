"""How `kedge logs` prints a line: for people with a word on who wrote it, for programs as JSON."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from kedge.cli.lines import plain, shown
from kedge.cli.logchoice import STREAMS, short_call, short_container
from kedge.cli.loglines import Line
from kedge.model.ids import input_id
from kedge.server.logreader import Entry

WIDEST = 32
"""Columns in which the texts of lines begin below each other; longer words push theirs out."""
_STREAM_NAMES = {number: name for name, number in STREAMS.items()}
_DIM, _RED, _OFF = "\x1b[2m", "\x1b[31m", "\x1b[0m"

Members = Callable[[Entry], Sequence[tuple[str, int]]]


def origin(entry: Entry, members: Members) -> str:
    """Who wrote it: `fetch 89ab-7` for an input, `fetch [3f2a]` for code of a container beside all inputs.

    A batch is named by its first input. What came through a file descriptor, so that its input is not known, says
    `raw`.
    """
    name = f"{entry.function}.{entry.method}" if entry.method else entry.function
    if entry.call:
        others = f" +{len(members(entry)) - 1}" if entry.batch else ""
        attempt = f" attempt {entry.attempt}" if entry.attempt else ""
        return f"{name} {short_call(entry.call)}-{entry.position}{others}{attempt}"
    if "/" in entry.container:
        return name  # kedge's own words about the function, from no container
    return f"{name} [{short_container(entry.container)}{' raw' if entry.raw else ''}]".strip()


def as_json(line: Line, members: Members) -> str:
    """One object. Its text is what was written, with whatever it does to a terminal."""
    entry = line.entry
    facts: dict[str, Any] = {
        "time": datetime.datetime.fromtimestamp(line.at, datetime.UTC).isoformat(timespec="milliseconds"),
        "app": entry.app,
        "app_name": entry.app_name,
        "function": entry.function,
        "method": entry.method or None,
        "container": entry.container,
        "call": entry.call or None,
        "input": input_id(entry.call, entry.position) if entry.call else None,
        "attempt": entry.attempt if entry.call else None,
        "stream": _STREAM_NAMES[entry.stream],
        "raw": bool(entry.raw),
        "text": line.data.removesuffix(b"\r").decode("utf-8", "replace"),
    }
    if entry.batch:
        facts["inputs"] = [input_id(call, index) for call, index in members(entry)]
    return json.dumps(facts)


class Printer:
    """Prints lines one after the other.

    Args:
        stream: Where they go; a terminal gets colours and nothing else that would steer it.
        json: One object per line.
        timestamps: Each line begins with its local time.
        heads: Says on stderr which app the lines that follow are of, where that changes.
        members: Finds the inputs of a batch.
    """

    def __init__(self, stream: TextIO, *, json: bool, timestamps: bool, heads: bool, members: Members) -> None:
        self._stream = stream
        self._json = json
        self._timestamps = timestamps
        self._heads = heads and not json
        self._members = members
        self._styled = stream.isatty() and not os.environ.get("NO_COLOR")
        self._terminal = stream.isatty()
        self._app = ""
        self._width = 0

    def put(self, line: Line) -> None:
        if self._heads and line.entry.app != self._app:
            self._app = line.entry.app
            self._stream.flush()
            say(f"{line.entry.app_name} ({line.entry.app})")
        self._stream.write((as_json(line, self._members) if self._json else self._human(line)) + "\n")

    def flush(self) -> None:
        self._stream.flush()

    def _human(self, line: Line) -> str:
        entry = line.entry
        who = origin(entry, self._members)
        if self._terminal:
            self._width = max(self._width, min(len(who), WIDEST))
            who = who.ljust(self._width)
        if self._timestamps:
            who = f"{datetime.datetime.fromtimestamp(line.at).isoformat(' ', 'milliseconds')} {who}"
        mark = "│" if entry.stream == STREAMS["stdout"] else "!"
        if not self._styled:
            return f"{who} {mark} {plain(line.data)}"
        text = shown(line.data)
        end = _OFF if "\x1b" in text else ""
        return f"{_DIM}{who} {_RED if mark == '!' else ''}{mark}{_OFF} {text}{end}"


def say(text: str) -> None:
    """Beside the lines, so that these can be piped on."""
    print(f"kedge: {text}", file=sys.stderr, flush=True)
