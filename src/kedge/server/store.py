"""What must survive the server: durable calls with their inputs and results, and what has a name (`register`).

It is also the archive: the plane forgets a durable call that has all its results, and the store answers for it until
its results expire, seven days after the last of them unless the server's settings say otherwise. Payloads above 256 KiB
are files of their own beside the database; the store removes them when nobody can ask for them any more, and those that
nobody refers to after the same time.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from kedge.model.payload import Payload, Result
from kedge.model.protocol import CallRestored, InputsSubmitted, Output, OutputsRecorded, PayloadReleased
from kedge.server.register import Names, Register
from kedge.server.writer import StoreError, Transaction, Writer

log = logging.getLogger("kedge.server.store")

SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    call TEXT PRIMARY KEY, pool TEXT NOT NULL, method TEXT NOT NULL, parent TEXT NOT NULL, total INTEGER NOT NULL,
    function TEXT NOT NULL, changed REAL NOT NULL,
    timeout REAL NOT NULL DEFAULT 0, queue_timeout REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inputs (
    call TEXT NOT NULL, position INTEGER NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (call, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS results (
    call TEXT NOT NULL, position INTEGER NOT NULL, status TEXT NOT NULL, result BLOB NOT NULL,
    PRIMARY KEY (call, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blobs (name TEXT PRIMARY KEY, call TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS blobs_of_calls ON blobs (call);
"""
VERSION = 3
ADDED = ("timeout", "queue_timeout")
"""Columns of `calls` that format 1 did not have."""

LIFETIME_S = 7 * 24 * 3600.0
"""How long the results of a durable call are kept after the last of them, unless told otherwise."""
SWEEP_S = 3600.0
PAGE_BYTES = 4 * 1024 * 1024
PAGE_ROWS = 1000
"""Bounds of one page of results: it must fit into a frame, and not keep the writer from others for long."""

_encode = msgspec.msgpack.encode


class Page(NamedTuple):
    """Recorded results in their order, as many as fit, and where the next page begins (None: this is the last)."""

    outputs: list[Output]
    next: int | None


class Survivors(NamedTuple):
    """What a restarted server must know again."""

    names: Names
    calls: list[tuple[CallRestored, list[InputsSubmitted]]]


class Store:
    """One state directory. Everything is queued for one thread; callbacks run on the loop that opened it."""

    def __init__(
        self,
        directory: Path,
        durable: bool = True,
        clock: Callable[[], float] = time.time,
        lifetime_s: float = LIFETIME_S,
    ) -> None:
        self.directory = directory
        self.writer = Writer(directory / "state.db", durable)
        self.register = Register(self.writer, clock)
        self.lifetime_s = lifetime_s
        self.clock = clock
        self._blobs = directory / "blobs"
        self._sweeper: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Makes or opens the database, and removes what has expired; StoreError says why it cannot be used."""
        self.writer.open(self._prepare)
        self._keep_sweeping()

    def _prepare(self, database: sqlite3.Connection) -> None:
        found = database.execute("PRAGMA user_version").fetchone()[0]
        if found > VERSION:
            raise StoreError(
                f"{self.writer.path} was written by a newer kedge (format {found}, this one knows {VERSION}): "
                "use that version, or another KEDGE_HOME"
            )
        database.executescript(SCHEMA)
        there = [row[1] for row in database.execute("PRAGMA table_info(calls)")]
        for column in ADDED:
            if column not in there:
                database.execute(f"ALTER TABLE calls ADD COLUMN {column} REAL NOT NULL DEFAULT 0")
        self.register.prepare(database)
        if found != VERSION:  # a disk that is full must not keep the server from coming back
            database.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        """Writes what is queued, then ends."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.writer.close()

    # ------------------------------------------------------------ durable calls are written

    def accept(
        self, message: InputsSubmitted, function: str, known: bool, then: Callable[[CallRestored | None, str], None]
    ) -> None:
        """Puts inputs on disk, then calls `then(restored, "")`, or `then(None, reason)` where that failed.

        `function` is the name that people know it by; `known` says that the plane has the call. `restored` is what the
        plane must hear first if it does not have the call, because these or other inputs of it are done.
        """
        call, first, end = message.call, message.first, message.first + len(message.payloads)
        limits = message.timeout, message.queue_timeout

        def write(tx: Transaction) -> CallRestored | None:
            there = tx.execute("SELECT 1 FROM calls WHERE call = ?", (call,)).fetchone()
            tx.execute(
                "INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (call) DO UPDATE SET total = max(total, excluded.total), changed = excluded.changed",
                (call, message.pool, message.method, message.parent, message.total, function, self.clock(), *limits),
            )
            query = "SELECT position FROM results WHERE call = ? AND position >= ? AND position < ?"
            done = {position for (position,) in tx.execute(query, (call, first, end))} if there else set()
            fresh = [(i, payload) for i, payload in enumerate(message.payloads, first) if i not in done]
            tx.executemany(
                "INSERT OR IGNORE INTO inputs VALUES (?, ?, ?)", [(call, i, _encode(payload)) for i, payload in fresh]
            )
            blobs = [(payload.blob, call) for _, payload in fresh if payload.blob]
            if blobs:
                tx.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?)", blobs)
            return next(_restored(tx, call)) if done or (there and not known) else None

        self.writer.put(write, then)

    def total(self, call: str, total: int) -> None:
        """No further inputs: the call has `total` of them."""
        self.writer.put(lambda tx: tx.execute("UPDATE calls SET total = ? WHERE call = ?", (total, call)), keep=True)

    def record(self, message: OutputsRecorded, then: Callable[[], None] | None = None) -> None:
        """Keeps results, and calls `then` when they are on disk; of two for the same input the first counts."""
        call = message.call
        rows = [(call, o.index, o.result.status, _encode(o.result)) for o in message.outputs]
        blobs = [(o.result.payload.blob, call) for o in message.outputs if o.result.payload and o.result.payload.blob]

        def write(tx: Transaction) -> None:
            tx.executemany("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?)", rows)
            tx.executemany(
                "DELETE FROM inputs WHERE call = ? AND position = ?", [(call, index) for _, index, _, _ in rows]
            )
            if blobs:
                tx.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?)", blobs)
            tx.execute("UPDATE calls SET changed = ? WHERE call = ?", (self.clock(), call))

        self.writer.put(write, None if then is None else lambda _, error: None if error else then(), keep=True)

    def release(self, message: PayloadReleased) -> None:
        """Arguments that nobody reads again."""

        def remove(tx: Transaction) -> None:
            tx.executemany("DELETE FROM blobs WHERE name = ?", [(name,) for name in message.blobs])
            tx.committed.append(lambda: self._unlink(message.blobs))

        self.writer.put(remove)

    # ------------------------------------------------------------ durable calls are read

    async def page(self, call: str, start: int, end: int | None) -> Page:
        """Recorded results of inputs `start` up to `end` (exclusive; None: all)."""

        def read(tx: Transaction) -> Page:
            query = "SELECT position, result FROM results WHERE call = ? AND position >= ? AND position < ? LIMIT ?"
            rows = tx.execute(query, (call, start, 2**62 if end is None else end, PAGE_ROWS + 1))
            outputs: list[Output] = []
            size = 0
            for position, blob in rows:
                if len(outputs) == PAGE_ROWS or (outputs and size + len(blob) > PAGE_BYTES):
                    return Page(outputs, position)
                size += len(blob)
                outputs.append(Output(position, msgspec.msgpack.decode(blob, type=Result)))
            return Page(outputs, None)

        return await self.writer.ask(read)

    async def size(self, call: str) -> int | None:
        """The number of inputs of a call, as far as it is known; None where there is no such call."""

        def read(tx: Transaction) -> int | None:
            found = tx.execute("SELECT total FROM calls WHERE call = ?", (call,)).fetchone()
            if found is None or found[0] >= 0:
                return None if found is None else int(found[0])
            counts = (tx.execute(f"SELECT count(*) FROM {t} WHERE call = ?", (call,)) for t in ("inputs", "results"))
            return sum(int(count.fetchone()[0]) for count in counts)

        return await self.writer.ask(read)

    async def describe(self, call: str) -> dict[str, Any] | None:
        """What is known of a call, as a Reply to CallRequested has it; None where there is no such call."""

        def read(tx: Transaction) -> dict[str, Any] | None:
            query = "SELECT function, method, parent, total FROM calls WHERE call = ?"
            found = tx.execute(query, (call,)).fetchone()
            if found is None:
                return None
            function, method, parent, total = found
            query = "SELECT position, status FROM results WHERE call = :call UNION ALL " + (
                "SELECT position, 'queued' FROM inputs WHERE call = :call ORDER BY 1"
            )
            status = [[position, text] for position, text in tx.execute(query, {"call": call})]
            return {
                "inputs": total if total >= 0 else len(status),
                "done": sum(text != "queued" for _, text in status),
                "function": function,
                "method": method,
                "parent": parent,
                "status": status,
            }

        return await self.writer.ask(read)

    # ------------------------------------------------------------ restart, and the end of things

    async def load(self) -> Survivors:
        """Everything that survived: calls that are over are not among it, the store answers for them."""

        def read(tx: Transaction) -> Survivors:
            calls = [(restored, list(_open_inputs(tx, restored))) for restored in _restored(tx)]
            return Survivors(self.register.load(tx), calls)

        return await self.writer.ask(read)

    def sweep(self) -> None:
        """Removes calls whose results have expired, and payload files that nobody refers to after as long."""
        before = self.clock() - self.lifetime_s

        def sweep(tx: Transaction) -> None:
            query = (
                "SELECT call FROM calls c WHERE changed < ? AND NOT EXISTS (SELECT 1 FROM inputs WHERE call = c.call)"
            )
            expired = tx.execute(query, (before,)).fetchall()
            names = []
            for row in expired:
                names += [name for (name,) in tx.execute("SELECT name FROM blobs WHERE call = ?", row)]
                for table in ("results", "blobs", "calls"):
                    tx.execute(f"DELETE FROM {table} WHERE call = ?", row)
            for name in self._old_files(before):
                if not tx.execute("SELECT 1 FROM blobs WHERE name = ?", (name,)).fetchone():
                    names.append(name)
            tx.committed.append(lambda: self._unlink(names))

        self.writer.put(sweep)

    def _keep_sweeping(self) -> None:
        self.sweep()
        pause = min(SWEEP_S, max(1.0, self.lifetime_s / 10))
        self._sweeper = asyncio.get_running_loop().call_later(pause, self._keep_sweeping)

    def _old_files(self, before: float) -> list[str]:
        old = []
        if self._blobs.is_dir():
            for path in self._blobs.iterdir():
                try:
                    if path.lstat().st_mtime < before:  # code in containers can make links here
                        old.append(path.name)
                except FileNotFoundError:
                    pass  # its reader has removed it meanwhile
        return old

    def _unlink(self, names: list[str]) -> None:
        for name in names:
            if name.isalnum():
                try:
                    (self._blobs / name).unlink(missing_ok=True)
                except OSError as error:
                    log.warning("the payload file %s stays: %s", name, error)


def _restored(tx: Transaction, call: str | None = None) -> Iterator[CallRestored]:
    """One call, or all that are not over."""
    query = "SELECT call, pool, method, total FROM calls c WHERE "
    if call is not None:
        rows = tx.execute(query + "call = ?", (call,))
    else:
        rows = tx.execute(
            query + "EXISTS (SELECT 1 FROM inputs WHERE call = c.call) "
            "OR total < 0 OR (SELECT count(*) FROM results WHERE call = c.call) < total"
        )
    for id, pool, method, total in rows.fetchall():
        done = list(tx.execute("SELECT position, status FROM results WHERE call = ?", (id,)))
        yield CallRestored(id, pool, method, total, done)


def _open_inputs(tx: Transaction, call: CallRestored) -> Iterator[InputsSubmitted]:
    """The inputs of a call that have no result, consecutive ones together."""
    query = "SELECT parent, timeout, queue_timeout FROM calls WHERE call = ?"
    parent, timeout, queue_timeout = tx.execute(query, (call.call,)).fetchone()
    first, run = 0, list[Payload]()

    def submission() -> InputsSubmitted:
        return InputsSubmitted(
            call.call,
            call.pool,
            first,
            run,
            call.method,
            durable=True,
            parent=parent,
            timeout=timeout,
            queue_timeout=queue_timeout,
        )

    query = "SELECT position, payload FROM inputs WHERE call = ? ORDER BY position"
    for position, blob in tx.execute(query, (call.call,)).fetchall():
        if run and position != first + len(run):
            yield submission()
            run = []
        if not run:
            first = position
        run.append(msgspec.msgpack.decode(blob, type=Payload))
    if run:
        yield submission()
