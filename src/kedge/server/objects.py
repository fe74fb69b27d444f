"""Dicts and queues: that they exist, under which name, and for how long. What they hold is in `dicts` and `queues`.

They have a database of their own, with a thread of its own, so that a queue under load holds up no call. It survives
the server's end, however that comes about; a power failure may take the last moment. An object without a name is
ephemeral: it ends with the session that made it."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from kedge.exception import Error, InvalidError, NotFoundError, ResourceExhaustedError
from kedge.model import protocol as p
from kedge.model.payload import ErrorInfo
from kedge.server import names
from kedge.server.dicts import Dicts
from kedge.server.office import NOTHING_YET
from kedge.server.queues import Queues
from kedge.server.writer import Transaction, Writer

log = logging.getLogger("kedge.server")

KINDS = {"dict": "di", "queue": "qu"}
"""The first letters of their ids."""
MAX_OBJECTS = 10_000
"""Of all kinds. More is a program that makes one for each of its inputs and ends none."""
MAX_UNWRITTEN = 256 * 1024 * 1024
"""Bytes of values that may be on their way to the disk; who sends more is told to try again."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, environment TEXT NOT NULL, created_at REAL NOT NULL
) WITHOUT ROWID;
"""


class Object(Struct, frozen=True):
    id: str
    kind: str
    name: str
    """Empty for an ephemeral one."""
    environment: str
    created_at: float


class Desk:
    """What both kinds need: their database, and answers to sessions."""

    def __init__(
        self, directory: Path, durable: bool, send: Callable[[str, Any], None], flush: Callable[[], None]
    ) -> None:
        self.writer = Writer(directory / "objects.db", durable)
        self.directory = directory
        self.objects: dict[str, Object] = {}
        self.unwritten = 0
        """Bytes of values on their way to the disk."""
        self._send = send
        self.flush = flush

    def find(self, id: str, kind: str) -> Object:
        found = self.objects.get(id)
        if found is None or found.kind != kind:
            raise self.gone(kind)
        return found

    @staticmethod
    def gone(kind: str) -> NotFoundError:
        return NotFoundError(
            f"this {kind} is not there any more: it was deleted, or it was ephemeral and the program that made it has "
            "ended"
        )

    def ask(
        self,
        session: str,
        request: int,
        do: Callable[[Transaction], Any],
        size: int = 0,
        then: Callable[[], None] | None = None,
    ) -> Any:
        """Does it in the database, and answers with what it returns, or with the Error that it raises. `size` counts
        the bytes that it writes, `then` is called in between."""
        self.hold(size)

        def over(value: Any, error: str) -> None:
            self.unwritten -= size
            if then is not None:
                then()
            self.reply(session, request, value, error)
            self.flush()

        def tried(tx: Transaction) -> Any:
            try:
                return do(tx)
            except Error as error:
                return error

        self.writer.put(tried, over)
        return NOTHING_YET

    def hold(self, size: int) -> None:
        """Counts values in that are not on disk yet; ResourceExhaustedError where they are too many."""
        if size and self.unwritten + size > MAX_UNWRITTEN:
            raise ResourceExhaustedError(
                f"the server holds {self.unwritten} bytes of values that are not on its disk yet, since that is slow "
                "or queues are full; try again later"
            )
        self.unwritten += size

    def reply(self, session: str, request: int, value: Any, error: str = "") -> None:
        info = None
        if error:
            value, info = None, ErrorInfo("ServiceError", error)
        elif isinstance(value, Error):
            value, info = None, ErrorInfo(type(value).__name__, str(value))
        self._send(session, p.Reply(request, value, info))


class Objects:
    """All dicts and queues of one server.

    Args:
        directory: Where the database is.
        durable: They survive the server.
        send, flush: Give messages to sessions.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        directory: Path,
        durable: bool,
        send: Callable[[str, Any], None],
        flush: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._desk = Desk(directory, durable, send, flush)
        self.tell: Callable[[str], None] | None = None
        """Of a server that does not stay: says to people what that means for something that has a name."""
        self._clock = clock
        self._by_name: dict[tuple[str, str, str], Object] = {}
        """By kind, environment and name."""
        self._ephemeral: dict[str, dict[str, None]] = {}
        """Ids that end with a session."""
        self.dicts = Dicts(self._desk, clock)
        self.queues = Queues(self._desk, clock)
        self.answers: dict[type, Callable[[Any, str], Any]] = {
            p.ObjectsRequested: self._answer,
            **self.dicts.answers,
            **self.queues.answers,
        }

    async def open(self) -> None:
        """Brings back what has a name. StoreError where the database cannot be used."""
        self._desk.writer.open(self._prepare)

        def read(tx: Transaction) -> list[Object]:
            found = [Object(*row) for row in tx.execute("SELECT * FROM objects ORDER BY environment, name")]
            for one in found:
                if not one.name:  # its session is gone with the server that it was on
                    self._forget(tx, one)
            self.dicts.load(tx)
            self.queues.load(tx)
            return [one for one in found if one.name]

        for one in await self._desk.writer.ask(read):
            self._desk.objects[one.id] = one
            self._by_name[one.kind, one.environment, one.name] = one
        self.queues.open()

    def _prepare(self, database: sqlite3.Connection) -> None:
        # A process that is killed loses nothing; each change on its own disk sync would make queues ten times slower.
        if database.execute("PRAGMA synchronous").fetchone()[0] > 1:
            database.execute("PRAGMA synchronous = NORMAL")
        database.executescript(SCHEMA)
        self.dicts.prepare(database)
        self.queues.prepare(database)

    def close(self) -> None:
        self.queues.close()
        self._desk.writer.close()

    def session_closed(self, session: str) -> None:
        """What it has made for itself ends, and what it had taken and not got comes back."""
        self.queues.session_closed(session)
        for id in self._ephemeral.pop(session, ()):
            if id in self._desk.objects:
                self._delete(self._desk.objects[id], None)

    # ------------------------------------------------------------ what sessions ask

    def _answer(self, message: p.ObjectsRequested, session: str) -> Any:
        kind, name, environment = message.kind, message.name, message.environment
        if kind not in KINDS:
            raise InvalidError(f"kind={kind[:60]!r} is not known; it is one of {', '.join(KINDS)}")
        if message.action == "find":
            return self._find(message, session)
        if message.action == "create":
            if name and (kind, environment, name) in self._by_name:
                raise names.taken(kind, name, environment)
            return self._create(message, session)
        if message.action == "delete":
            found = self._desk.find(message.id, kind) if message.id else self._named(kind, environment, name)
            return self._delete(found, (session, message.request))
        if message.action == "list":
            there = sorted((key, one) for key, one in self._by_name.items() if key[:2] == (kind, environment))
            sizes = self.dicts.size if kind == "dict" else self.queues.size

            def read(tx: Transaction) -> list[dict[str, Any]]:
                return [facts(one) | {"size": sizes(tx, one.id)} for _, one in there]

            return self._desk.ask(session, message.request, read)
        raise InvalidError(f"action={message.action[:60]!r} is not known")

    def _find(self, message: p.ObjectsRequested, session: str) -> Any:
        if message.id:
            return facts(self._desk.find(message.id, message.kind))
        key = message.kind, message.environment, message.name
        if message.create and key not in self._by_name:
            return self._create(message, session)
        return facts(self._named(*key))

    def _named(self, kind: str, environment: str, name: str) -> Object:
        found = self._by_name.get((kind, environment, name))
        if found is None:
            there = [key[2] for key in self._by_name if key[:2] == (kind, environment)]
            advice = f"Write create_if_missing=True, or make it with `kedge {kind} create {name}`"
            raise names.missing(kind, name, environment, there, advice)
        return found

    def _create(self, message: p.ObjectsRequested, session: str) -> Any:
        if len(self._desk.objects) >= MAX_OBJECTS:
            raise ResourceExhaustedError(f"there are {MAX_OBJECTS} dicts and queues already; delete some first")
        if message.name:
            names.check(message.kind, message.name)
        id = f"{KINDS[message.kind]}-{os.urandom(8).hex()}"
        made = Object(id, message.kind, message.name, message.environment, self._clock())
        # At once: who asks for the name in the same moment gets the same one.
        self._desk.objects[id] = made
        if made.name:
            self._by_name[made.kind, made.environment, made.name] = made
        else:
            self._ephemeral.setdefault(session, {})[id] = None
        if made.name and self.tell is not None:
            text = f"the {made.kind} {made.name} is kept by this program's own server, and ends with it"
            self.tell(f"{text}; `kedge server start` starts one that stays")
        row = (made.id, made.kind, made.name, made.environment, made.created_at)

        def write(tx: Transaction) -> dict[str, Any]:
            tx.execute("INSERT INTO objects VALUES (?, ?, ?, ?, ?)", row)
            return facts(made)

        return self._desk.ask(session, message.request, write)

    def _delete(self, found: Object, asked: tuple[str, int] | None) -> Any:
        del self._desk.objects[found.id]
        self._by_name.pop((found.kind, found.environment, found.name), None)
        self.queues.deleted(found.id)

        def write(tx: Transaction) -> None:
            self._forget(tx, found)

        if asked is not None:
            return self._desk.ask(*asked, write)
        self._desk.writer.put(write, keep=True)
        return None

    def _forget(self, tx: Transaction, found: Object) -> None:
        tx.execute("DELETE FROM objects WHERE id = ?", (found.id,))
        (self.dicts if found.kind == "dict" else self.queues).forget(tx, found.id)


def facts(one: Object) -> dict[str, Any]:
    return {
        "id": one.id,
        "kind": one.kind,
        "name": one.name,
        "environment": one.environment,
        "created_at": one.created_at,
    }
