"""One SQLite database with one thread that does everything to it: group commit.

All jobs that wait are done in one transaction; then those who wait for them are told, on the event loop. Where the
transaction fails, each job gets one of its own, so that a bad one does not take the others along. A job that must not
be lost (`keep`) is done again every second for as long as the disk refuses it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

log = logging.getLogger("kedge.server.store")

MAX_BATCH = 1000
"""Jobs of one transaction: enough to share a sync of the disk, few enough that nobody waits long for theirs."""
RETRY_S = 1.0
BUSY_MS = 5000
"""How long another process (a person with the sqlite3 shell) may keep the database."""

T = TypeVar("T")


class StoreError(Exception):
    """The database cannot be read or written: the reason, in words for whoever asked."""


class Transaction:
    """What one job does, and what is to be done once it is on disk."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.execute = database.execute
        self.executemany = database.executemany
        self.committed: list[Callable[[], None]] = []
        """Called in the writer's thread after the commit. Must not fail."""


class _Job(NamedTuple):
    do: Callable[[Transaction], Any]
    then: Callable[[Any, str], None] | None
    keep: bool


Told = list[tuple[Callable[[Any, str], None], Any, str]]


class Writer:
    """The only user of one database file. `durable=False` leaves syncing to the system: for what dies with its
    server."""

    def __init__(self, path: Path, durable: bool = True) -> None:
        self.path = path
        self.transactions = 0
        """Transactions that were committed."""
        self._durable = durable
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._overdue: list[_Job] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self, prepare: Callable[[sqlite3.Connection], None]) -> None:
        """Makes or opens the database, readable by this user only, and has `prepare` look at it. StoreError says why it
        cannot be used."""
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self.path.chmod(0o600)
            database = self.connect()
            try:
                prepare(database)
            except BaseException:
                database.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path} cannot be used: {error}") from error
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, args=(database,), name="kedge-store", daemon=True)
        self._thread.start()

    def connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            database.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
        except BaseException:
            database.close()
            raise
        return database

    def put(
        self, do: Callable[[Transaction], Any], then: Callable[[Any, str], None] | None = None, keep: bool = False
    ) -> None:
        """Queues a job. `then(what it returned, "")` runs on the loop when that is on disk, `then(None, why not)` where
        it failed."""
        self._queue.put(_Job(do, then, keep))

    async def ask(self, do: Callable[[Transaction], T]) -> T:
        """Does a job and waits for what it returns; StoreError where it failed."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def answer(value: Any, error: str) -> None:
            if future.done():
                return
            if error:
                future.set_exception(StoreError(error))
            else:
                future.set_result(value)

        self.put(do, answer)
        return await future

    def close(self) -> None:
        """Does what is queued, then ends."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    # ------------------------------------------------------------ the thread

    def _run(self, database: sqlite3.Connection) -> None:
        going = True
        while going:
            batch = self._next_batch()
            going = None not in batch
            jobs = self._overdue + [job for job in batch if job is not None]
            overdue, self._overdue = len(self._overdue), []
            told: Told = []
            if jobs:
                self._write(database, jobs, told)
            if overdue and not self._overdue:
                log.warning("%s can be written again", self.path)
            if told and self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(_tell, told)
        if self._overdue:
            log.error("%s: %d writes were lost, since the disk refused them to the end", self.path, len(self._overdue))
        database.close()

    def _next_batch(self) -> list[_Job | None]:
        try:
            batch = [self._queue.get(timeout=RETRY_S if self._overdue else None)]
        except Empty:
            return []
        while len(batch) < MAX_BATCH and not self._queue.empty():
            batch.append(self._queue.get())
        return batch

    def _write(self, database: sqlite3.Connection, jobs: list[_Job], told: Told) -> None:
        transaction = Transaction(database)
        try:
            database.execute("BEGIN")
            answers = [job.do(transaction) for job in jobs]
            database.execute("COMMIT")
        except Exception as error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            if len(jobs) > 1:
                for job in jobs:
                    self._write(database, [job], told)
            else:
                self._failed(jobs[0], error, told)
            return
        self.transactions += 1
        for finish in transaction.committed:
            try:
                finish()
            except Exception:  # what is written is written, and others wait for this thread
                log.exception("%s: what was to follow a write failed", self.path)
        told += [(job.then, answer, "") for job, answer in zip(jobs, answers, strict=True) if job.then is not None]

    def _failed(self, job: _Job, error: Exception, told: Told) -> None:
        refused = isinstance(error, sqlite3.OperationalError | OSError)
        if refused and job.keep:
            if not self._overdue:
                log.error("%s: %s; what must not be lost is written again until it works", self.path, error)
            self._overdue.append(job)
            return
        if refused:
            log.error("%s: %s", self.path, error)
        else:
            log.error("%s: a job failed", self.path, exc_info=error)
        if job.then is not None:
            told.append((job.then, None, f"the server cannot write {self.path}: {error}"))


def _tell(told: Told) -> None:
    for then, answer, error in told:
        try:
            then(answer, error)
        except Exception:
            log.exception("what waited for the disk failed")
