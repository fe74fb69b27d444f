"""Where logs are kept: one SQLite database per KEDGE_HOME, which every server of it writes to and anybody may read.

Chunks come in batches; one thread writes each batch in one transaction. It starts with the first batch and sleeps while
there is none. Nothing here may hold up the server or fill the disk:

* what waits for the thread is bounded, and what is beyond the bound is dropped;
* the newest LIMIT bytes are kept, and of one app at most APP_LIMIT, so that one which prints without end pushes out its
  own lines rather than everybody's;
* a disk that refuses loses the log and not the work. That is logged once.

What was lost is said in the log itself, as a line of kedge's own. `server.logreader` reads.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from queue import SimpleQueue

from kedge.server.chunks import Chunk, Place, notice

log = logging.getLogger("kedge.server.logs")

LIMIT = 256 * 1024 * 1024
"""Bytes that are kept in all: a few million lines, and little on any disk."""
APP_LIMIT = LIMIT // 4
"""Bytes of one app."""
ROOM = 64
"""One part in so many is freed at a time: removing is dear when it is done row by row."""
ROW_BYTES = 200
"""What a chunk costs on disk beside its bytes: its columns, and its entries in the indexes."""
MEMBER_BYTES = 100
"""The same for each further input of a batch."""
QUEUE_LIMIT = 32 * 1024 * 1024
"""Bytes that may wait for the disk: a third of a second of the slowest one that still writes 100 MB/s."""
BUSY_MS = 5000
"""How long other servers may keep the database: a transaction takes them milliseconds."""
CLOSE_S = 10.0
"""How long the end of a server waits for its last lines to be written."""
CHECKPOINT_PAGES = 4000
"""16 MiB: each checkpoint syncs the disk."""
LOST_LIMIT = 1000
"""Containers whose losses are remembered until they can be said."""

TOO_FAST = "they came faster than they could be kept"
REFUSED = "the disk refused them"

VERSION = 1
SCHEMA = """
CREATE TABLE apps (
    app INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, bytes INTEGER NOT NULL, last REAL NOT NULL
);
CREATE INDEX apps_of_names ON apps (name);
CREATE TABLE sources (
    source INTEGER PRIMARY KEY, container TEXT NOT NULL UNIQUE, app INTEGER NOT NULL, function TEXT NOT NULL
);
CREATE INDEX sources_of_functions ON sources (function);
CREATE INDEX sources_of_apps ON sources (app);
CREATE TABLE chunks (
    chunk INTEGER PRIMARY KEY AUTOINCREMENT, app INTEGER NOT NULL, source INTEGER NOT NULL,
    call TEXT, position INTEGER, attempt INTEGER NOT NULL, method TEXT NOT NULL, batch INTEGER NOT NULL,
    stream INTEGER NOT NULL, writer INTEGER NOT NULL, raw INTEGER NOT NULL, continues INTEGER NOT NULL,
    first REAL NOT NULL, last REAL NOT NULL, size INTEGER NOT NULL, marks BLOB NOT NULL, data BLOB NOT NULL
);
CREATE INDEX chunks_of_apps ON chunks (app, last);
CREATE INDEX chunks_of_sources ON chunks (source, last);
CREATE INDEX chunks_of_inputs ON chunks (call, position) WHERE call IS NOT NULL;
CREATE TABLE members (
    call TEXT NOT NULL, position INTEGER NOT NULL,
    first_call TEXT NOT NULL, first_position INTEGER NOT NULL, attempt INTEGER NOT NULL,
    PRIMARY KEY (call, position, first_call, first_position, attempt)
) WITHOUT ROWID;
CREATE INDEX members_of_batches ON members (first_call, first_position);
CREATE TABLE total (bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0);
"""
_INSERT = f"INSERT INTO chunks VALUES ({', '.join('?' * 17)})"


class LogBook:
    """The writing end. Its methods return at once and may be called from any thread.

    Example:
        book = LogBook(home / "logs" / "logs.db")
        book.put([chunk])
        book.close()
    """

    def __init__(self, path: Path, *, limit: int = LIMIT, app_limit: int = APP_LIMIT) -> None:
        self.path = path
        self._limit = limit
        self._app_limit = app_limit
        self._queue: SimpleQueue[list[Chunk] | None] = SimpleQueue()
        self._mutex = threading.Lock()
        self.waiting = 0
        """Bytes that are not on disk yet."""
        self._lost: dict[tuple[Place, str], int] = {}
        """Bytes that are not in the log, and why; not said yet."""
        self._thread: threading.Thread | None = None
        self._database: sqlite3.Connection | None = None
        self._file = 0
        self._failing = False
        self._unchecked = False
        self.trouble = ""
        """Why nothing is kept at the moment; empty while it is."""
        self.on_trouble: Callable[[str], None] = lambda text: None
        """Called from the thread of the book when that begins."""

    def put(self, chunks: list[Chunk]) -> None:
        """Keeps these, unless too much waits already."""
        size = sum(map(_size, chunks))
        with self._mutex:
            full = self.waiting + size > QUEUE_LIMIT
            if not full:
                self.waiting += size
        if full:
            # The thread is at work, and says it when it is through.
            self._lose(chunks, TOO_FAST)
            return
        self._queue.put(chunks)
        self._start()

    def check(self) -> None:
        """Finds out whether the file that is there can be used, before anything has to be kept."""
        if self.path.exists():
            self._unchecked = True
            self._queue.put([])
            self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kedge-logs", daemon=True)
            self._thread.start()

    def lose(self, place: Place, size: int, reason: str) -> None:
        """So many bytes of a container will not be put; said with whatever is put next."""
        with self._mutex:
            key = place, reason
            if key in self._lost or len(self._lost) < LOST_LIMIT:
                self._lost[key] = self._lost.get(key, 0) + size

    def close(self) -> None:
        """Writes what waits, then ends."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                log.error("the last lines of containers may be missing: %s takes them too slowly", self.path)
            self._thread = None

    def _lose(self, chunks: Iterable[Chunk], reason: str) -> None:
        for chunk in chunks:
            self.lose(chunk.place, len(chunk.data), reason)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        going = True
        while going:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            chunks = [chunk for put in batch if put is not None for chunk in put]
            self._keep(chunks)
            with self._mutex:
                self.waiting -= sum(map(_size, chunks))
                more = bool(self._lost) and not self._failing
            if more:
                self._queue.put([])
            if None in batch:
                going = more
                if more:
                    self._queue.put(None)
        self._let_go()

    def _keep(self, chunks: list[Chunk]) -> None:
        """Writes chunks, and what was lost since the last time."""
        with self._mutex:
            lost, self._lost = self._lost, {}
        now = time.time()
        said = [notice(place, f"{size:,} bytes were not kept: {why}", now) for (place, why), size in lost.items()]
        try:
            if self._unchecked:
                self._unchecked = False
                self._opened()
            self._write(said + chunks)
        except Exception as error:
            self._refused(error)
            for (place, why), size in lost.items():
                self.lose(place, size, why)
            self._lose(chunks, REFUSED)

    def _refused(self, error: Exception) -> None:
        if not self._failing:
            broken = type(error) is sqlite3.DatabaseError
            advice = "; remove the file, and a new one is made" if broken else ""
            why = str(error) or type(error).__name__
            self.trouble = f"what containers print is not kept: {self.path}: {why}{advice}"
            log.error("%s", self.trouble)
            self.on_trouble(self.trouble)
        self._failing = True
        self._let_go()

    def _let_go(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _write(self, chunks: Sequence[Chunk]) -> None:
        if not chunks:
            return
        database = self._opened()
        database.execute("BEGIN IMMEDIATE")
        try:
            _insert(database, chunks)
            self._make_room(database)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        if self._failing:
            self._failing, self.trouble = False, ""
            log.warning("what containers print is kept again: %s", self.path)

    def _opened(self) -> sqlite3.Connection:
        """The database that is at its path now: somebody may have removed the file."""
        if self._database is None or not self._file or _identity(self.path) != self._file:
            self._let_go()
            self._database = _open(self.path)
            self._file = _identity(self.path)
        return self._database

    def _make_room(self, database: sqlite3.Connection) -> None:
        query = "SELECT app, bytes FROM apps WHERE bytes > ?"
        for app, size in database.execute(query, (self._app_limit,)).fetchall():
            _evict(database, "WHERE app = ? ORDER BY last, chunk", (app,), size - _with_room(self._app_limit))
        (total,) = database.execute("SELECT bytes FROM total").fetchone()
        if total > self._limit:
            _evict(database, "ORDER BY chunk", (), total - _with_room(self._limit))


def _size(chunk: Chunk) -> int:
    extra = len(chunk.marks) * chunk.marks.itemsize + len(chunk.origin.members) * MEMBER_BYTES
    return len(chunk.data) + extra + ROW_BYTES


def _identity(path: Path) -> int:
    """Tells a file from another one of the same name; 0 where there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _with_room(limit: int) -> int:
    return limit - limit // ROOM


def _open(path: Path) -> sqlite3.Connection:
    """The database, made where it is not there. Several servers may do so at the same time."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        database.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        _change_journal(database)
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        database.execute(f"PRAGMA journal_size_limit = {QUEUE_LIMIT}")
        database.execute("BEGIN IMMEDIATE")
        (found,) = database.execute("PRAGMA user_version").fetchone()
        if found == 0:
            for statement in filter(str.strip, SCHEMA.split(";")):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("COMMIT")
        if found > VERSION:
            raise OSError(f"it belongs to a newer kedge (format {found}, this one knows {VERSION})")
    except BaseException:
        database.close()
        raise
    return database


def _change_journal(database: sqlite3.Connection) -> None:
    """SQLite does not wait for others here by itself."""
    give_up = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _insert(database: sqlite3.Connection, chunks: Sequence[Chunk]) -> None:
    # Numbers of apps and containers are looked up each time: another server may have removed them meanwhile.
    places = {chunk.place: (0, 0) for chunk in chunks}
    for place in places:
        places[place] = _numbers(database, place)
    rows, members = [], []
    sizes: dict[int, int] = {}
    ends: dict[int, float] = {}
    for chunk in chunks:
        origin, size = chunk.origin, _size(chunk)
        app, source = places[chunk.place]
        sizes[app] = sizes.get(app, 0) + size
        ends[app] = max(ends.get(app, 0.0), chunk.last)
        call, index = (origin.call, origin.index) if origin.call else (None, None)
        others = [(*member, call, index, origin.attempt) for member in origin.members if member != (call, index)]
        members += others
        rows.append(
            (
                *(None, app, source, call, index, origin.attempt, origin.method, bool(others)),
                *(chunk.stream, chunk.writer, chunk.raw, chunk.continues),
                *(chunk.first, chunk.last, size, chunk.marks.tobytes(), bytes(chunk.data)),
            )
        )
    database.executemany(_INSERT, rows)
    database.executemany("INSERT OR IGNORE INTO members VALUES (?, ?, ?, ?, ?)", members)
    database.executemany(
        "UPDATE apps SET bytes = bytes + ?, last = max(last, ?) WHERE app = ?",
        [(size, ends[app], app) for app, size in sizes.items()],
    )
    database.execute("UPDATE total SET bytes = bytes + ?", (sum(sizes.values()),))


def _numbers(database: sqlite3.Connection, place: Place) -> tuple[int, int]:
    query = "INSERT OR IGNORE INTO apps VALUES (NULL, ?, ?, 0, 0)"
    database.execute(query, (place.app, place.app_name))
    (app,) = database.execute("SELECT app FROM apps WHERE id = ?", (place.app,)).fetchone()
    query = "INSERT OR IGNORE INTO sources VALUES (NULL, ?, ?, ?)"
    database.execute(query, (place.container, app, place.function))
    query = "SELECT source FROM sources WHERE container = ?"
    return app, database.execute(query, (place.container,)).fetchone()[0]


def _evict(database: sqlite3.Connection, which: str, values: tuple[int, ...], size: int) -> None:
    """Removes chunks, oldest first, until so many bytes are free; and what nothing refers to any more."""
    query = f"SELECT chunk, app, source, call, position, batch, size FROM chunks {which}"
    gone: list[tuple[int]] = []
    freed: dict[int, int] = {}
    sources: dict[int, None] = {}
    batches: dict[tuple[str, int], None] = {}
    rows = database.execute(query, values)
    while size > 0 and (row := rows.fetchone()) is not None:
        chunk, app, source, call, position, batch, bytes_of_it = row
        size -= bytes_of_it
        gone.append((chunk,))
        freed[app] = freed.get(app, 0) + bytes_of_it
        sources[source] = None
        if batch:
            batches[call, position] = None
    rows.close()
    database.executemany("DELETE FROM chunks WHERE chunk = ?", gone)
    database.executemany("UPDATE apps SET bytes = bytes - ? WHERE app = ?", [(n, app) for app, n in freed.items()])
    database.execute("UPDATE total SET bytes = bytes - ?", (sum(freed.values()),))
    unused = "NOT EXISTS (SELECT 1 FROM {} WHERE {})"
    database.executemany(
        "DELETE FROM members WHERE first_call = ? AND first_position = ? AND "
        + unused.format("chunks", "chunks.call = first_call AND chunks.position = first_position"),
        list(batches),
    )
    database.executemany(
        "DELETE FROM sources WHERE source = ? AND " + unused.format("chunks", "chunks.source = sources.source"),
        [(source,) for source in sources],
    )
    database.executemany(
        "DELETE FROM apps WHERE app = ? AND " + unused.format("sources", "sources.app = apps.app"),
        [(app,) for app in freed],
    )
