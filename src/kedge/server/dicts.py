"""What dicts hold: entries in a table, in the order in which their keys came first.

Keys and values are opaque bytes. A value above 256 KiB comes as a file under `blobs/`, which is moved to `objects/`;
who reads it gets a link to that file, of its own, so that nobody's view changes when the entry does. It is where that
session has its payload files (`place`)."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from kedge.exception import InvalidError, NotFoundError
from kedge.model import protocol as p
from kedge.model.payload import Payload

if TYPE_CHECKING:
    from pathlib import Path

    from kedge.server.objects import Desk
    from kedge.server.writer import Transaction

MAX_KEY = 4096
"""Bytes of a pickled key: an index holds it as a whole."""
MAX_VALUE = 100 * 1024 * 1024
"""Bytes of one value. What is larger is a file, and belongs into a volume."""
PAGE_ROWS = 1000
PAGE_BYTES = 4 * 1024 * 1024
"""Bounds of one page: it must fit into a frame, and not keep others from the database for long."""
ANSWERED_S = 300.0
"""Seconds that answers to changes are kept: a client that lost its server sends again within 20."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY, object TEXT NOT NULL, key BLOB NOT NULL, file TEXT NOT NULL, value BLOB NOT NULL,
    UNIQUE (object, key)
);
CREATE INDEX IF NOT EXISTS entries_in_order ON entries (object);
CREATE INDEX IF NOT EXISTS entries_with_files ON entries (file) WHERE file <> '';
CREATE TABLE IF NOT EXISTS changes (token TEXT PRIMARY KEY, at REAL NOT NULL, answer BLOB NOT NULL) WITHOUT ROWID;
"""
_encode = msgspec.msgpack.encode


class Dicts:
    """The dicts of one server; see `Objects`."""

    def __init__(self, desk: Desk, clock: Callable[[], float]) -> None:
        self._desk = desk
        self._clock = clock
        self._blobs = desk.directory / "blobs"
        self.place: Callable[[str], Path] = lambda session: self._blobs
        self._files = desk.directory / "objects"
        self._swept_at = 0.0
        self.answers: dict[type, Callable[[Any, str], Any]] = {
            p.EntriesRequested: self._requested,
            p.EntriesChanged: self._changed,
        }

    def prepare(self, database: sqlite3.Connection) -> None:
        database.executescript(SCHEMA)
        self._files.mkdir(mode=0o700, exist_ok=True)

    def load(self, tx: Transaction) -> None:
        """Removes files that no entry refers to: a crash came between."""
        known = {file for (file,) in tx.execute("SELECT file FROM entries WHERE file <> ''")}
        for path in self._files.iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)

    def size(self, tx: Transaction, id: str) -> int:
        return int(tx.execute("SELECT count(*) FROM entries WHERE object = ?", (id,)).fetchone()[0])

    def forget(self, tx: Transaction, id: str) -> None:
        self._clear(tx, id)

    # ------------------------------------------------------------ reading

    def _requested(self, message: p.EntriesRequested, session: str) -> Any:
        id = self._desk.find(message.object, "dict").id
        keys, place = message.keys, self.place(session)

        def count(tx: Transaction) -> int:
            return self.size(tx, id)

        def has(tx: Transaction) -> list[bool]:
            query = "SELECT 1 FROM entries WHERE object = ? AND key = ?"
            return [tx.execute(query, (id, key)).fetchone() is not None for key in keys]

        def values(tx: Transaction) -> Any:
            found = []
            for key in keys:
                row = tx.execute("SELECT value FROM entries WHERE object = ? AND key = ?", (id, key)).fetchone()
                found.append(None if row is None else self._shown(row[0], place))
            return found

        def page(tx: Transaction) -> Any:
            return self._page(tx, id, message.after, place if message.what == "page" else None)

        reads: dict[str, Callable[[Transaction], Any]] = {
            "count": count, "has": has, "values": values, "page": page, "keys": page
        }  # fmt: skip
        if message.what not in reads:
            raise InvalidError(f"what={message.what[:60]!r} is not known; it is one of {', '.join(reads)}")
        return self._desk.ask(session, message.request, reads[message.what])

    def _page(self, tx: Transaction, id: str, after: int, place: Path | None) -> Any:
        query = f"SELECT number, key, {'value' if place else 'NULL'} FROM entries INDEXED BY entries_in_order "
        entries: list[Any] = []
        size = 0
        for number, key, value in tx.execute(
            query + "WHERE object = ? AND number > ? ORDER BY number LIMIT ?", (id, after, PAGE_ROWS + 1)
        ):
            size += len(key) + len(value or b"")
            if len(entries) == PAGE_ROWS or (entries and size > PAGE_BYTES):
                return {"entries": entries, "after": after}
            entries.append([key, None if not place else self._shown(value, place)])
            after = number
        return {"entries": entries, "after": None}

    def _shown(self, value: bytes, place: Path) -> Any:
        """A payload for whoever asked, who removes its file once it is read."""
        payload = msgspec.msgpack.decode(value, type=Payload)
        if not payload.blob:
            return msgspec.Raw(value)
        name = secrets.token_hex(16)
        os.link(self._files / payload.blob, place / name)
        if place == self._blobs:
            os.utime(place / name)  # the sweep of the store goes by age
        return replace(payload, blob=name)

    # ------------------------------------------------------------ changing

    def _changed(self, message: p.EntriesChanged, session: str) -> Any:
        id = self._desk.find(message.object, "dict").id
        size, place = 0, self.place(session)
        for key in [*message.keys, *(key for key, _ in message.entries)]:
            if len(key) > MAX_KEY:
                raise InvalidError(f"a key of {len(key)} bytes is too large for a dict; at most {MAX_KEY} are allowed")
        for _, payload in message.entries:
            one = max(payload.size, len(payload.data))
            if one > MAX_VALUE:
                raise InvalidError(
                    f"a value of {one} bytes is too large for a dict; at most {MAX_VALUE} are allowed, keep it as a "
                    "file in a volume"
                )
            size += len(payload.data)

        def write(tx: Transaction) -> Any:
            done = tx.execute("SELECT answer FROM changes WHERE token = ?", (message.token,)).fetchone()
            if done is not None:
                return msgspec.msgpack.decode(done[0])
            for _, payload in message.entries:
                if payload.blob and not any(_is_file(at / payload.blob) for at in (self._blobs, self._files)):
                    raise NotFoundError(f"the file of a value ({payload.size} bytes) is gone; put it again")
            if message.clear:
                self._clear(tx, id)
            if message.keys:
                answer: Any = [self._take(tx, id, key, place) for key in message.keys]
            else:
                answer = sum(self._put(tx, id, key, one, message.only_missing) for key, one in message.entries)
            if message.keys or message.only_missing:  # the others give the same however often they are done
                now = self._clock()
                tx.execute("INSERT INTO changes VALUES (?, ?, ?)", (message.token, now, _encode(answer)))
                if now - self._swept_at > ANSWERED_S:
                    self._swept_at = now
                    tx.execute("DELETE FROM changes WHERE at < ?", (now - ANSWERED_S,))
            return answer

        return self._desk.ask(session, message.request, write, size)

    def _put(self, tx: Transaction, id: str, key: bytes, payload: Payload, only_missing: bool) -> int:
        found = tx.execute("SELECT file FROM entries WHERE object = ? AND key = ?", (id, key)).fetchone()
        if found is not None and only_missing:
            self._discard([payload.blob])
            return 0
        if payload.blob:
            with contextlib.suppress(FileNotFoundError):  # it is there already: this is done again
                os.rename(self._blobs / payload.blob, self._files / payload.blob)
        query = (
            "INSERT INTO entries (object, key, file, value) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (object, key) DO UPDATE SET file = excluded.file, value = excluded.value"
        )
        tx.execute(query, (id, key, payload.blob, _encode(payload)))
        if found is not None and found[0] and found[0] != payload.blob:
            tx.committed.append(lambda: self._unlink([found[0]]))
        return 1

    def _take(self, tx: Transaction, id: str, key: bytes, place: Path) -> Any:
        found = tx.execute("SELECT value, file FROM entries WHERE object = ? AND key = ?", (id, key)).fetchone()
        if found is None:
            return None
        shown = self._shown(found[0], place)
        tx.execute("DELETE FROM entries WHERE object = ? AND key = ?", (id, key))
        if found[1]:
            tx.committed.append(lambda: self._unlink([found[1]]))
        return shown

    def _clear(self, tx: Transaction, id: str) -> None:
        files = [file for (file,) in tx.execute("SELECT file FROM entries WHERE object = ? AND file <> ''", (id,))]
        tx.execute("DELETE FROM entries WHERE object = ?", (id,))
        if files:
            tx.committed.append(lambda: self._unlink(files))

    def _unlink(self, files: Iterable[str]) -> None:
        for file in files:
            (self._files / file).unlink(missing_ok=True)

    def _discard(self, blobs: Iterable[str]) -> None:
        for blob in blobs:
            if blob:
                (self._blobs / blob).unlink(missing_ok=True)


def _is_file(path: Path) -> bool:
    """Code in containers can put anything where the files of values come from: links, and directories."""
    return path.is_file() and not path.is_symlink()
