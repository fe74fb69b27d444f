"""Who waits at one partition of a queue, and how one look at the table serves them. The table is SQLite's, time is
given.

Everybody is served in the order in which they came. Items that were taken stay in the table, marked with the token of
who took them, until that one says that they have arrived; otherwise they come back to where they were."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from kedge.server.writer import Transaction

MAX_ITEMS = 1_000_000
MAX_BYTES = 1024 * 1024 * 1024
"""Of one partition: they are on disk, and a producer that is faster than its consumers is held up before that is
full."""
MAX_PARTITIONS = 100_000
"""Of one queue; each is a row as long as it lives."""
ANSWER_BYTES = 4 * 1024 * 1024
"""Of the items in one answer: it must fit into a frame."""
AT_ONCE = 256
"""Who is looked at in one transaction: others want to use the database as well."""
SWEPT_AT_ONCE = 100

SCHEMA = """
CREATE TABLE IF NOT EXISTS partitions (
    part INTEGER PRIMARY KEY, object TEXT NOT NULL, name TEXT NOT NULL, next INTEGER NOT NULL, free INTEGER NOT NULL,
    bytes INTEGER NOT NULL, expires REAL NOT NULL, UNIQUE (object, name)
);
CREATE TABLE IF NOT EXISTS items (
    part INTEGER NOT NULL, number INTEGER NOT NULL, token TEXT NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (part, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_taken ON items (token) WHERE token <> '';
CREATE TABLE IF NOT EXISTS puts (token TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
"""


class Bounds(Struct, frozen=True):
    items: int = MAX_ITEMS
    bytes: int = MAX_BYTES
    partitions: int = MAX_PARTITIONS


class Waiting:
    """A request that is answered when it can be, or when its time is over."""

    __slots__ = ("expired", "request", "session", "timer", "token", "unwanted")

    def __init__(self, session: str, request: int, token: str) -> None:
        self.session = session
        self.request = request
        self.token = token
        self.expired = False
        """The next look at the table is its last."""
        self.unwanted = False
        """Whoever sent it is gone, or does not want it any more."""
        self.timer: Any = None


class Put(Waiting):
    __slots__ = ("size", "ttl", "values")

    def __init__(self, session: str, request: int, token: str, values: list[bytes], ttl: float) -> None:
        super().__init__(session, request, token)
        self.values = values
        self.size = sum(map(len, values))
        self.ttl = ttl


class Take(Waiting):
    __slots__ = ("again", "count")

    def __init__(self, session: str, request: int, token: str, count: int, again: bool = False) -> None:
        super().__init__(session, request, token)
        self.count = count
        self.again = again
        """It was answered before, and the answer was lost with a server."""


class Look(Waiting):
    """Items are shown and stay where they are."""

    __slots__ = ("after", "count")

    def __init__(self, session: str, request: int, after: int, count: int) -> None:
        super().__init__(session, request, "")
        self.after = after
        self.count = count


class Line:
    """Who waits at one partition."""

    def __init__(self) -> None:
        self.puts: deque[Put] = deque()
        self.takes: deque[Take] = deque()
        self.looks: deque[Look] = deque()
        self.late: dict[Waiting, None] = {}
        """Those whose time is over, wherever they stand."""
        self.looking = False
        """Somebody looks at the table for them right now."""
        self.news = False
        """Since that began somebody has come, or something has come back."""

    @property
    def empty(self) -> bool:
        return not (self.puts or self.takes or self.looks)

    def all(self) -> list[Waiting]:
        return [*self.puts, *self.takes, *self.looks]

    def add(self, one: Waiting) -> None:
        self._of(one).append(one)

    def remove(self, one: Waiting) -> None:
        self._of(one).remove(one)
        self.late.pop(one, None)

    def leave_out(self, gone: Container[Waiting]) -> None:
        """Removes many at once."""
        self.puts = deque(one for one in self.puts if one not in gone)
        self.takes = deque(one for one in self.takes if one not in gone)
        self.looks = deque(one for one in self.looks if one not in gone)
        self.late = {one: None for one in self.late if one not in gone}

    def is_late(self, one: Waiting) -> None:
        one.expired = True
        self.late[one] = None

    def first(self) -> list[Waiting]:
        """Those that one look at the table is for, in their order by kind."""
        found: list[Waiting] = [one for kind in (self.puts, self.takes, self.looks) for one in islice(kind, AT_ONCE)]
        return list(dict.fromkeys([*found, *self.late]))

    def _of(self, one: Waiting) -> Any:
        return self.puts if isinstance(one, Put) else self.takes if isinstance(one, Take) else self.looks


class Partition(Struct):
    """A row of `partitions`."""

    part: int
    next: int
    free: int
    """Items that nobody has taken."""
    bytes: int
    expires: float


Answers = list[tuple[Waiting, Any]]


def serve(tx: Transaction, object: str, name: str, waiting: Sequence[Waiting], now: float, bounds: Bounds) -> Answers:
    """Does what can be done for those who wait, in their order, and gives the answers. A Put is answered with True, or
    with a text that says why it can never be done."""
    wanted = [one for one in waiting if not one.unwanted]
    puts = deque(one for one in wanted if isinstance(one, Put))
    takes = deque(one for one in wanted if isinstance(one, Take))
    row = find(tx, object, name, now)
    answers: Answers = []
    while True:
        before = len(answers)
        while puts:
            answer, row = _put(tx, row, puts[0], (object, name), now, bounds)
            if answer is None:
                break
            answers.append((puts.popleft(), answer))
        while takes and (taken := _take(tx, row, takes[0])):
            answers.append((takes.popleft(), taken))
        if len(answers) == before:
            break
    if row is not None:
        tx.execute(
            "UPDATE partitions SET next = ?, free = ?, bytes = ?, expires = ? WHERE part = ?",
            (row.next, row.free, row.bytes, row.expires, row.part),
        )
        for look in wanted:
            if isinstance(look, Look) and (found := _shown(tx, row, look)):
                answers.append((look, found))
    return answers


def _put(
    tx: Transaction, row: Partition | None, put: Put, place: tuple[str, str], now: float, bounds: Bounds
) -> tuple[Any, Partition | None]:
    """The answer (None: there is no room yet), and the partition, which may have been made."""
    if tx.execute("SELECT 1 FROM puts WHERE token = ?", (put.token,)).fetchone() is not None:
        return True, row  # it is sent again
    if row is not None and row.free and not _fits(row, put, bounds):
        return None, row
    if row is None:
        if _partitions(tx, place[0]) >= bounds.partitions:
            return f"this queue has {bounds.partitions} partitions already; clear some", None
        row = _make(tx, *place, now, put.ttl)
    _insert(tx, row, put, now)
    return True, row


def _fits(row: Partition, put: Put, bounds: Bounds) -> bool:
    return row.free + len(put.values) <= bounds.items and row.bytes + put.size <= bounds.bytes


def _insert(tx: Transaction, row: Partition, put: Put, now: float) -> None:
    tx.executemany(
        "INSERT INTO items VALUES (?, ?, '', ?)",
        [(row.part, number, value) for number, value in enumerate(put.values, row.next)],
    )
    tx.execute("INSERT INTO puts VALUES (?, ?)", (put.token, now))
    row.next += len(put.values)
    row.free += len(put.values)
    row.bytes += put.size
    row.expires = now + put.ttl


def _take(tx: Transaction, row: Partition | None, take: Take) -> list[bytes]:
    """What a taker gets; nothing where there is nothing."""
    if take.again and (again := _taken(tx, take.token)):
        return again
    if row is None or not row.free:
        return []
    query = "SELECT number, value FROM items WHERE part = ? AND token = '' ORDER BY number LIMIT ?"
    found = _some(tx.execute(query, (row.part, take.count)).fetchall())
    tx.executemany(
        "UPDATE items SET token = ? WHERE part = ? AND number = ?", [(take.token, row.part, n) for n, _ in found]
    )
    row.free -= len(found)
    row.bytes -= sum(len(value) for _, value in found)
    return [value for _, value in found]


def _shown(tx: Transaction, row: Partition, look: Look) -> list[tuple[int, bytes]]:
    query = "SELECT number, value FROM items WHERE part = ? AND number > ? AND token = '' ORDER BY number LIMIT ?"
    return _some(tx.execute(query, (row.part, look.after, look.count)).fetchall())


def _taken(tx: Transaction, token: str) -> list[bytes]:
    """What was taken under a token before: its answer was lost with a server."""
    query = "SELECT value FROM items WHERE token <> '' AND token = ? ORDER BY part, number"
    return [value for (value,) in tx.execute(query, (token,))]


def _some(found: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """As many from the front as one answer carries, and at least one."""
    size = 0
    for count, (_, value) in enumerate(found):
        size += len(value)
        if count and size > ANSWER_BYTES:
            return found[:count]
    return found


def find(tx: Transaction, object: str, name: str, now: float) -> Partition | None:
    """A partition, unless its time is over: then it is emptied."""
    query = "SELECT part, next, free, bytes, expires FROM partitions WHERE object = ? AND name = ?"
    found = tx.execute(query, (object, name)).fetchone()
    if found is None:
        return None
    row = Partition(*found)
    if row.expires <= now:
        drop(tx, row.part)
        return None
    return row


def _make(tx: Transaction, object: str, name: str, now: float, ttl: float) -> Partition:
    # Numbers go on from those of an earlier partition of this name, so that who iterates misses nothing.
    first = int(now * 1e6)
    query = "INSERT INTO partitions (object, name, next, free, bytes, expires) VALUES (?, ?, ?, 0, 0, ?)"
    part = tx.execute(query, (object, name, first, now + ttl)).lastrowid
    assert part is not None
    return Partition(part, first, 0, 0, now + ttl)


def _partitions(tx: Transaction, object: str) -> int:
    return int(tx.execute("SELECT count(*) FROM partitions WHERE object = ?", (object,)).fetchone()[0])


def drop(tx: Transaction, part: int) -> None:
    tx.execute("DELETE FROM items WHERE part = ?", (part,))
    tx.execute("DELETE FROM partitions WHERE part = ?", (part,))


# ---------------------------------------------------------------- what was taken


def arrived(tx: Transaction, token: str) -> None:
    tx.execute("DELETE FROM items WHERE token <> '' AND token = ?", (token,))


def come_back(tx: Transaction, tokens: list[str]) -> list[tuple[str, str]]:
    """What was taken under these tokens is free again; gives the partitions that it is in."""
    places: dict[tuple[str, str], None] = {}
    for token in tokens:
        query = "SELECT part, count(*), sum(length(value)) FROM items WHERE token <> '' AND token = ? GROUP BY part"
        for part, count, size in tx.execute(query, (token,)).fetchall():
            tx.execute("UPDATE items SET token = '' WHERE token <> '' AND token = ?", (token,))
            tx.execute("UPDATE partitions SET free = free + ?, bytes = bytes + ? WHERE part = ?", (count, size, part))
            for place in tx.execute("SELECT object, name FROM partitions WHERE part = ?", (part,)).fetchall():
                places[place] = None
    return list(places)


def sweep(tx: Transaction, now: float, answered_s: float) -> bool:
    """Removes partitions whose time is over, some at a time: True where there may be more."""
    parts = tx.execute("SELECT part FROM partitions WHERE expires <= ? LIMIT ?", (now, SWEPT_AT_ONCE)).fetchall()
    for (part,) in parts:
        drop(tx, part)
    tx.execute("DELETE FROM puts WHERE at < ?", (now - answered_s,))
    return len(parts) == SWEPT_AT_ONCE
