"""Reads what `server.logbook` has written, with or without a server that still writes.

A question is a `Selection`. Its answer is the numbers of chunks in the order of their ends, found by an index and held
as eight bytes each; the chunks themselves are read one by one. So a reader that takes its time, such as a person in a
pager, keeps no transaction open, and writers can tidy up meanwhile.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct

from kedge.server.chunks import SPAN_S
from kedge.server.logbook import BUSY_MS, VERSION

NAMES_SHOWN = 10
"""Apps, functions or inputs that are named where the one that was asked for is not there."""


class Unreadable(Exception):
    """There is no log, or none that this version of kedge can read; says why."""


class Missing(Unreadable):
    """Nothing was kept yet."""


class Selection(Struct, frozen=True, kw_only=True):
    """Which chunks; everything that is set must be true of them. Methods and streams are for the reader to look at."""

    app: str = ""
    """Its id."""
    name: str = ""
    """An app's name: all its runs."""
    call: str = ""
    index: int = -1
    """The input of `call`, or -1 for all of them. A batch has what any of its inputs is asked for."""
    function: str = ""
    container: str = ""
    since: float | None = None
    until: float | None = None


class Entry(NamedTuple):
    """A chunk as it was kept."""

    app: str
    app_name: str
    function: str
    container: str
    call: str
    position: int
    """The input of `call`; -1 and no call for what belongs to none."""
    attempt: int
    method: str
    batch: bool
    stream: int
    writer: int
    raw: bool
    continues: bool
    first: float
    last: float
    marks: bytes
    data: bytes


class App(NamedTuple):
    id: str
    name: str
    last: float
    """When it wrote last."""


_ENTRY = """
SELECT apps.id, apps.name, function, container, coalesce(call, ''), coalesce(position, -1), attempt, method, batch,
       stream, writer, raw, continues, first, chunks.last, marks, data
FROM chunks CROSS JOIN sources USING (source) CROSS JOIN apps ON apps.app = chunks.app
WHERE chunk = ?
"""


class LogReader:
    """One database, as it was when this was made. Raises Unreadable.

    Example:
        with LogReader(home / "logs" / "logs.db") as reader:
            for number in reader.find(Selection(call="fc-…", index=3)):
                entry = reader.entry(number)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._batch: tuple[tuple[str, int, int], list[Any]] = ("", -1, 0), []
        """The one that was asked for last."""
        try:
            self._file = path.stat().st_ino
        except FileNotFoundError:
            raise Missing(f"there is no log at {path} yet: no container has written anything") from None
        except OSError as error:
            raise Unreadable(f"the log at {path} cannot be read: {error.strerror}") from error
        self._database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            self._database.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            (found,) = self._one("PRAGMA user_version")
            self._version = self._data_version()
        except Unreadable:
            self._database.close()
            raise
        except sqlite3.Error as error:
            self._database.close()
            raise self._unreadable(error) from error
        if found != VERSION:
            self._database.close()
            if not found:
                raise Missing(f"the log at {path} is empty: no container has written anything")
            raise Unreadable(
                f"the log at {path} has format {found}, and this kedge reads {VERSION}: use the version that wrote it"
            )

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    # ------------------------------------------------------------ chunks

    def find(self, selection: Selection) -> array[int]:
        """The numbers of chunks, in the order of their ends."""
        conditions, values = _conditions(selection)
        query = f"SELECT chunk FROM chunks WHERE {' AND '.join(conditions)} ORDER BY last, chunk"
        return self._numbers(query, values)

    def find_after(self, number: int, selection: Selection) -> array[int]:
        """Those that have come since the chunk of this number."""
        conditions, values = _conditions(selection)
        # What is new is little: no other index is worth it.
        where = " AND ".join(["chunk > ?", *("+" + condition.lstrip("+") for condition in conditions)])
        query = f"SELECT chunk FROM chunks WHERE {where} ORDER BY last, chunk"
        return self._numbers(query, [number, *values])

    def entry(self, number: int) -> Entry | None:
        """None where it has been removed meanwhile."""
        rows = self._all(_ENTRY, [number])
        return Entry._make(rows[0]) if rows else None

    def newest(self) -> int:
        """The number of the chunk that was written last; 0 where there is none."""
        return int(self._one("SELECT coalesce(max(chunk), 0) FROM chunks")[0])

    def members(self, entry: Entry) -> list[tuple[str, int]]:
        """All inputs of the batch that wrote it."""
        batch = entry.call, entry.position, entry.attempt
        if self._batch[0] != batch:
            query = "SELECT call, position FROM members WHERE first_call = ? AND first_position = ? AND attempt = ?"
            self._batch = batch, [batch[:2], *self._all(query, batch)]
        return self._batch[1]

    def changed(self) -> bool:
        """Whether anything was written since the last time this was asked."""
        before, self._version = self._version, self._data_version()
        return before != self._version

    @property
    def replaced(self) -> bool:
        """Somebody has removed the file: there is another one, or there will be."""
        try:
            return self.path.stat().st_ino != self._file
        except OSError:
            return True

    # ------------------------------------------------------------ names

    def apps(self, text: str = "") -> list[App]:
        """Those with this id or name, or all; who wrote last comes first."""
        where = "WHERE id = ? OR name = ?" if text else ""
        rows = self._all(f"SELECT id, name, last FROM apps {where} ORDER BY last DESC", [text, text] if text else [])
        return [App._make(row) for row in rows]

    def functions(self, selection: Selection) -> list[str]:
        """Names of what wrote in the apps of a selection."""
        where, values = _app_condition(selection)
        query = f"SELECT DISTINCT function FROM sources WHERE {where[0] if where else 'true'} ORDER BY 1"
        return [name for (name,) in self._all(query, values)]

    def containers(self, part: str) -> list[str]:
        """Containers whose ids end or begin like this, some of them; the latest come first."""
        query = (
            "SELECT container FROM sources WHERE container LIKE ? ESCAPE '!' OR substr(container, 1, ?) = ? "
            "ORDER BY source DESC LIMIT ?"
        )
        return [name for (name,) in self._all(query, [_ends(part), len(part), part, NAMES_SHOWN])]

    def calls(self, ending: str) -> list[str]:
        """Calls whose ids end like this, some of them; who wrote last comes first. Looks at every call."""
        query = (
            "SELECT call FROM (SELECT call, chunk FROM chunks WHERE call IS NOT NULL AND call LIKE ? ESCAPE '!' "
            "UNION ALL SELECT call, 0 FROM members WHERE call LIKE ? ESCAPE '!') "
            "GROUP BY call ORDER BY max(chunk) DESC LIMIT ?"
        )
        return [name for (name,) in self._all(query, [_ends(ending), _ends(ending), NAMES_SHOWN])]

    def inputs(self, call: str) -> list[int]:
        """The first and the last input of a call that wrote something; none where none did."""
        query = "SELECT min(position), max(position) FROM chunks WHERE call = ?"
        return [index for index in self._one(query, [call]) if index is not None]

    # ------------------------------------------------------------ SQLite

    def plan(self, selection: Selection) -> str:
        """How `find` gets its answer, in the words of SQLite."""
        conditions, values = _conditions(selection)
        query = f"EXPLAIN QUERY PLAN SELECT chunk FROM chunks WHERE {' AND '.join(conditions)} ORDER BY last, chunk"
        return "\n".join(row[3] for row in self._all(query, values))

    def _data_version(self) -> int:
        return int(self._one("PRAGMA data_version")[0])

    def _one(self, query: str, values: Sequence[Any] = ()) -> tuple[Any, ...]:
        return self._all(query, values)[0]

    def _numbers(self, query: str, values: Sequence[Any]) -> array[int]:
        try:
            return array("q", (number for (number,) in self._database.execute(query, values)))
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _all(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: sqlite3.Error) -> Unreadable:
        damaged = getattr(error, "sqlite_errorname", "") in ("SQLITE_NOTADB", "SQLITE_CORRUPT")
        advice = "; remove the file, and the next run begins a new one" if damaged else ""
        return Unreadable(f"the log at {self.path} cannot be read: {error}{advice}")


def _conditions(selection: Selection) -> tuple[list[str], list[Any]]:
    """Conditions on a chunk, so that an index answers the first one."""
    conditions: list[str] = []
    values: list[Any] = []
    if selection.call:
        one = "{0}call = ?" + (" AND {0}position = ?" if selection.index >= 0 else "")
        given = [selection.call, selection.index][: one.count("?")]
        conditions.append(
            f"chunk IN (SELECT chunk FROM chunks WHERE {one.format('')} UNION "
            "SELECT chunk FROM members m CROSS JOIN chunks c ON c.call = m.first_call "
            f"AND c.position = m.first_position AND c.attempt = m.attempt WHERE {one.format('m.')})"
        )
        values += given * 2
    of_apps, apps = _app_condition(selection)
    if selection.function or selection.container:
        names = [name for name in ("function", "container") if getattr(selection, name)]
        sources = " AND ".join([*(f"{name} = ?" for name in names), *of_apps])
        conditions.append(f"source IN (SELECT source FROM sources WHERE {sources})")
        values += [*(getattr(selection, name) for name in names), *apps]
    elif of_apps:
        conditions += of_apps
        values += apps
    if not conditions:
        conditions.append("app IN (SELECT app FROM apps)")
    # A plus keeps SQLite from the index of that column.
    conditions[1:] = [f"+{condition}" for condition in conditions[1:]]
    if selection.since is not None:
        conditions.append("last >= ?")
        values.append(selection.since)
    if selection.until is not None:
        conditions.append("last <= ?")
        values.append(selection.until + SPAN_S)
    return conditions, values


def _app_condition(selection: Selection) -> tuple[list[str], list[str]]:
    if selection.app:
        return ["app = (SELECT app FROM apps WHERE id = ?)"], [selection.app]
    if selection.name:
        return ["app IN (SELECT app FROM apps WHERE name = ?)"], [selection.name]
    return [], []


def _ends(text: str) -> str:
    for letter in "!%_":
        text = text.replace(letter, "!" + letter)
    return "%" + text
