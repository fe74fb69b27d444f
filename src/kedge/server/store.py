"""What must survive the server: detached apps, durable calls with their inputs and results, learned imports.

SQLite in WAL mode with one writer thread: everything that waits is written in one transaction (group commit), then
those who wait for it are told, on the event loop. Payloads above 256 KiB are files of their own beside the database;
the store removes them when nobody can ask for them any more.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec

from kedge.model.payload import Payload, Result
from kedge.model.protocol import (
    CallExpired,
    CallRestored,
    InputsSubmitted,
    Output,
    OutputsRecorded,
    PayloadReleased,
)
from kedge.model.spec import AppSpec

log = logging.getLogger("kedge.server.store")

SCHEMA = """
CREATE TABLE IF NOT EXISTS apps (app TEXT PRIMARY KEY, spec BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calls (
    call TEXT PRIMARY KEY, pool TEXT NOT NULL, method TEXT NOT NULL, parent TEXT NOT NULL, total INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inputs (
    call TEXT NOT NULL, position INTEGER NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (call, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS results (
    call TEXT NOT NULL, position INTEGER NOT NULL, status TEXT NOT NULL, result BLOB NOT NULL, PRIMARY KEY (call,
    position) ) WITHOUT ROWID; CREATE TABLE IF NOT EXISTS imports (key TEXT PRIMARY KEY, modules TEXT NOT NULL)
    WITHOUT ROWID;
"""
VERSION = 1

Write = Callable[[sqlite3.Connection], Any]
_encode = msgspec.msgpack.encode


class Store:
    """One state directory. Reads and writes are queued; callbacks run on the loop that opened it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / "state.db"
        self._blobs = directory / "blobs"
        self._queue: SimpleQueue[tuple[Write, Callable[[Any, str], None] | None] | None] = SimpleQueue()
        self._imports: dict[str, list[str]] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Makes or opens the database; sqlite3.Error and ValueError say why it cannot be used."""
        with _connect(self._path) as database:
            found = database.execute("PRAGMA user_version").fetchone()[0]
            if found > VERSION:
                raise ValueError(
                    f"{self._path} was written by a newer kedge (format {found}, this one knows {VERSION})"
                )
            database.executescript(SCHEMA)
            database.execute(f"PRAGMA user_version = {VERSION}")
            for key, modules in database.execute("SELECT key, modules FROM imports"):
                self._imports[key] = modules.split("\n")
        database.close()
        self._path.chmod(0o600)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._write_forever, name="kedge-store", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Writes what is queued, then ends."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    # ------------------------------------------------------------ durable calls

    def accept(self, message: InputsSubmitted, then: Callable[[str], None]) -> None:
        """Puts inputs on disk, then calls `then("")`, or `then(reason)` where that failed."""

        def write(database: sqlite3.Connection) -> None:
            database.execute(
                "INSERT INTO calls VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (call) DO UPDATE SET total = max(total, excluded.total)",
                (message.call, message.pool, message.method, message.parent, message.total),
            )
            database.executemany(
                "INSERT OR IGNORE INTO inputs VALUES (?, ?, ?)",
                [(message.call, i, _encode(payload)) for i, payload in enumerate(message.payloads, message.first)],
            )

        self._queue.put((write, lambda _, error: then(error)))

    def total(self, call: str, total: int) -> None:
        self._put(lambda db: db.execute("UPDATE calls SET total = ? WHERE call = ?", (total, call)))

    def record(self, message: OutputsRecorded) -> None:
        rows = [(message.call, o.index, o.result.status, _encode(o.result)) for o in message.outputs]

        def write(database: sqlite3.Connection) -> None:
            database.executemany("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?)", rows)
            database.executemany(
                "DELETE FROM inputs WHERE call = ? AND position = ?", [(call, index) for call, index, _, _ in rows]
            )

        self._put(write)

    def read_outputs(self, call: str, indices: list[int], then: Callable[[list[Output]], None]) -> None:
        """Gives recorded results to `then`, in the order of `indices`; those that are gone are left out."""

        def read(database: sqlite3.Connection) -> list[Output]:
            outputs = []
            for index in indices:
                query = "SELECT result FROM results WHERE call = ? AND position = ?"
                row = database.execute(query, (call, index)).fetchone()
                if row is not None:
                    outputs.append(Output(index, msgspec.msgpack.decode(row[0], type=Result)))
            return outputs

        self._queue.put((read, lambda outputs, error: then(outputs if not error else [])))

    def expire(self, message: CallExpired) -> None:
        call = message.call

        def write(database: sqlite3.Connection) -> None:
            for (blob,) in database.execute("SELECT result FROM results WHERE call = ?", (call,)).fetchall():
                payload = msgspec.msgpack.decode(blob, type=Result).payload
                if payload is not None and payload.blob:
                    self._unlink(payload.blob)
            for table in ("results", "inputs", "calls"):
                database.execute(f"DELETE FROM {table} WHERE call = ?", (call,))

        self._put(write)

    def release(self, message: PayloadReleased) -> None:
        """Arguments that nobody reads again."""

        def remove(database: sqlite3.Connection) -> None:
            for name in message.blobs:
                self._unlink(name)

        self._put(remove)

    # ------------------------------------------------------------ apps and imports

    def save_app(self, spec: AppSpec) -> None:
        self._put(lambda db: db.execute("INSERT OR REPLACE INTO apps VALUES (?, ?)", (spec.app, _encode(spec))))

    def forget_app(self, app: str) -> None:
        self._put(lambda db: db.execute("DELETE FROM apps WHERE app = ?", (app,)))

    def imports(self, key: str) -> list[str]:
        return self._imports.get(key, [])

    def learn_imports(self, key: str, modules: list[str]) -> None:
        known = self._imports.get(key, [])
        merged = list(dict.fromkeys([*known, *modules]))
        if merged != known:
            self._imports[key] = merged
            self._put(lambda db: db.execute("INSERT OR REPLACE INTO imports VALUES (?, ?)", (key, "\n".join(merged))))

    def load(self) -> tuple[list[AppSpec], list[tuple[CallRestored, list[InputsSubmitted]]]]:
        """Everything that survived: apps, then calls with the inputs that are still open. Read once, at the start."""
        database = _connect(self._path)
        apps = [msgspec.msgpack.decode(row[0], type=AppSpec) for row in database.execute("SELECT spec FROM apps")]
        calls = []
        for call, pool, method, parent, total in database.execute("SELECT * FROM calls").fetchall():
            query = "SELECT position, status FROM results WHERE call = ? ORDER BY position"
            done = list(database.execute(query, (call,)))
            submissions = []
            query = "SELECT position, payload FROM inputs WHERE call = ? ORDER BY position"
            for position, blob in database.execute(query, (call,)):
                payload = msgspec.msgpack.decode(blob, type=Payload)
                submissions.append(
                    InputsSubmitted(call, pool, position, [payload], method=method, durable=True, parent=parent)
                )
            calls.append((CallRestored(call, pool, method, total, done), submissions))
        database.close()
        return apps, calls

    # ------------------------------------------------------------ the writer

    def _put(self, write: Write) -> None:
        self._queue.put((write, None))

    def _unlink(self, name: str) -> None:
        if name.isalnum():
            (self._blobs / name).unlink(missing_ok=True)

    def _write_forever(self) -> None:
        database = _connect(self._path)
        while True:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            told: list[tuple[Callable[[Any, str], None], Any, str]] = []
            self._write(database, [item for item in batch if item is not None], told)
            if told and self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(_tell, told)
            if None in batch:
                database.close()
                return

    def _write(
        self,
        database: sqlite3.Connection,
        items: list[tuple[Write, Callable[[Any, str], None] | None]],
        told: list[tuple[Callable[[Any, str], None], Any, str]],
    ) -> None:
        """One transaction for all; where it fails, one for each, so that a bad item does not take the others along."""
        try:
            with database:
                database.execute("BEGIN")
                answers = [write(database) for write, _ in items]
        except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
            if len(items) > 1:
                for item in items:
                    self._write(database, [item], told)
                return
            log.error("%s: %s", self._path, error)
            told += [(then, None, f"the server cannot write {self._path}: {error}") for _, then in items if then]
            return
        told += [(then, answer, "") for (_, then), answer in zip(items, answers, strict=True) if then]


def _tell(told: list[tuple[Callable[[Any, str], None], Any, str]]) -> None:
    for then, answer, error in told:
        then(answer, error)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA busy_timeout = 5000")
    return database
