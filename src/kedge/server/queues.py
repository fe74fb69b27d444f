"""Queues: sessions that put and take, and wait for room or for items. Nobody asks twice: whoever waits is answered.

Per partition one look at the table is under way at a time (`lines.serve`), for all who wait there. An item that was
taken belongs to nobody until its taker says that it has arrived: it comes back when the taker does not want it any
more, when its session closes, and, after a restart, when the taker has not come back within a minute."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Container
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from kedge.exception import InvalidError, ResourceExhaustedError
from kedge.model import protocol as p
from kedge.server import lines
from kedge.server.lines import Bounds, Line, Look, Put, Take, Waiting
from kedge.server.office import NOTHING_YET

if TYPE_CHECKING:
    from kedge.server.objects import Desk
    from kedge.server.writer import Transaction

MAX_ITEM = 1024 * 1024
"""Bytes of one item. What is larger belongs into a dict or a volume, and its key or path into the queue."""
MAX_WAITING = 20_000
"""Requests that may wait at all queues together."""
CLAIM_S = 60.0
"""Seconds after a restart in which a taker may ask again for what it had taken."""
SWEEP_S = 60.0
ANSWERED_S = 300.0
"""Seconds for which puts are remembered, so that one that is sent again is not done again."""

Place = tuple[str, str]
"""Id of a queue, and name of a partition."""
_encode = msgspec.msgpack.encode


class Queues:
    """The queues of one server; see `Objects`."""

    def __init__(self, desk: Desk, clock: Callable[[], float], bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self._desk = desk
        self._clock = clock
        self._lines: dict[Place, Line] = {}
        self._waiting = 0
        self._taken: dict[str, str] = {}
        """The session that has taken something under a token, and has not said that it has arrived."""
        self._of_session: dict[str, dict[str, Place]] = {}
        """Tokens that wait or have taken, by session."""
        self._unclaimed: list[str] = []
        """Tokens under which something was taken before the server was started."""
        self._timers: list[asyncio.TimerHandle] = []
        self.answers: dict[type, Callable[[Any, str], Any]] = {
            p.ItemsPut: self._put,
            p.ItemsWanted: self._want,
            p.ItemsSettled: self._settle,
            p.ItemsRequested: self._look,
        }

    def prepare(self, database: sqlite3.Connection) -> None:
        database.executescript(lines.SCHEMA)

    def load(self, tx: Transaction) -> None:
        query = "SELECT DISTINCT token FROM items INDEXED BY items_taken WHERE token <> ''"
        self._unclaimed = [token for (token,) in tx.execute(query)]

    def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._timers = [loop.call_later(SWEEP_S, self._sweep), loop.call_later(CLAIM_S, self.end_unclaimed)]

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        for line in self._lines.values():
            for one in line.all():
                _disarm(one)

    def size(self, tx: Transaction, id: str) -> int:
        query = "SELECT coalesce(sum(free), 0) FROM partitions WHERE object = ? AND expires > ?"
        return int(tx.execute(query, (id, self._clock())).fetchone()[0])

    def forget(self, tx: Transaction, id: str) -> None:
        for (part,) in tx.execute("SELECT part FROM partitions WHERE object = ?", (id,)).fetchall():
            lines.drop(tx, part)

    # ------------------------------------------------------------ what sessions want

    def _put(self, message: p.ItemsPut, session: str) -> Any:
        id = self._desk.find(message.object, "queue").id
        for value in message.values:
            if len(value.data) > MAX_ITEM or value.blob:
                raise InvalidError(
                    f"an item of {max(value.size, len(value.data))} bytes is too large for a queue; at most {MAX_ITEM} "
                    "are allowed: put the value into a kedge.Dict or a volume, and its key or path into the queue"
                )
        if len(message.values) > self.bounds.items:
            raise InvalidError(f"{len(message.values)} items are more than a partition holds ({self.bounds.items})")
        values = [_encode(value) for value in message.values]
        put = Put(session, message.request, message.token, values, message.ttl)
        return self._join((id, message.partition), put, message.wait)

    def _want(self, message: p.ItemsWanted, session: str) -> Any:
        id = self._desk.find(message.object, "queue").id
        again = message.token in self._unclaimed
        if again:
            self._unclaimed.remove(message.token)
        take = Take(session, message.request, message.token, message.count, again)
        return self._join((id, message.partition), take, message.wait)

    def _look(self, message: p.ItemsRequested, session: str) -> Any:
        id, what = self._desk.find(message.object, "queue").id, message.what
        if what == "peek":
            look = Look(session, message.request, message.after, message.count)
            return self._join((id, message.partition), look, message.wait)
        if what == "count" and message.every:
            return self._desk.ask(session, message.request, lambda tx: self.size(tx, id))
        if what == "count":
            return self._desk.ask(session, message.request, lambda tx: self._count(tx, id, message.partition))
        if what == "partitions":
            query = "SELECT name, free FROM partitions WHERE object = ? AND expires > ? ORDER BY name LIMIT ?"
            row = (id, self._clock(), message.count)
            return self._desk.ask(session, message.request, lambda tx: tx.execute(query, row).fetchall())
        if what == "clear":
            return self._desk.ask(
                session, message.request, lambda tx: self._clear(tx, id, message), then=lambda: self._there_is_room(id)
            )
        raise InvalidError(f"what={what[:60]!r} is not known; it is one of count, clear, partitions, peek")

    def _count(self, tx: Transaction, id: str, partition: str) -> int:
        row = lines.find(tx, id, partition, self._clock())
        return 0 if row is None else row.free

    def _clear(self, tx: Transaction, id: str, message: p.ItemsRequested) -> int:
        query = "SELECT part, name, free FROM partitions WHERE object = ?"
        count = 0
        for part, name, free in tx.execute(query, (id,)).fetchall():
            if message.every or name == message.partition:
                tx.execute("DELETE FROM items WHERE part = ? AND token = ''", (part,))
                tx.execute("UPDATE partitions SET free = 0, bytes = 0 WHERE part = ?", (part,))
                count += free
        return count

    def _there_is_room(self, id: str) -> None:
        for place in [place for place in self._lines if place[0] == id]:
            self._news(place)

    # ------------------------------------------------------------ waiting

    def _join(self, place: Place, one: Waiting, wait: float | None) -> Any:
        if self._waiting >= MAX_WAITING:
            raise ResourceExhaustedError(f"{MAX_WAITING} requests wait at queues already; try again later")
        if isinstance(one, Put):
            self._desk.hold(one.size)
        line = self._lines.setdefault(place, Line())
        if wait is None or wait > 0:
            one.timer = wait and asyncio.get_running_loop().call_later(wait, self._over, place, one)
        else:
            line.is_late(one)
        line.add(one)
        self._waiting += 1
        if one.token:
            self._of_session.setdefault(one.session, {})[one.token] = place
        self._news(place)
        return NOTHING_YET

    def _over(self, place: Place, one: Waiting) -> None:
        one.timer = None
        if place in self._lines:
            self._lines[place].is_late(one)
            self._news(place)

    def _news(self, place: Place) -> None:
        line = self._lines.get(place)
        if line is not None:
            line.news = True
            self._serve(place, line)

    def _serve(self, place: Place, line: Line) -> None:
        if line.looking or not line.news:
            return
        line.looking, line.news = True, False
        waiting = line.first()
        object, name = place

        def look(tx: Transaction) -> lines.Answers:
            return lines.serve(tx, object, name, waiting, self._clock(), self.bounds)

        self._desk.writer.put(look, partial(self._served, place, line, waiting))

    def _served(self, place: Place, line: Line, waiting: list[Waiting], answers: lines.Answers, error: str) -> None:
        line.looking = False
        answered = {id(one): value for one, value in answers or ()}
        for one in waiting:
            value = answered.get(id(one))
            if value is None and not error and not one.expired and not one.unwanted:
                continue
            line.remove(one)
            self._leave(one)
            self._answer(one, value, error)
        if answers:
            line.news = True  # more may wait than one look is for
        if self._lines.get(place) is not line:  # the queue is gone, and they have heard so
            for one in line.all():
                line.remove(one)
                self._leave(one)
        elif line.empty:
            del self._lines[place]
        else:
            self._serve(place, line)
        self._desk.flush()

    def _leave(self, one: Waiting) -> None:
        self._waiting -= 1
        if isinstance(one, Put):
            self._desk.unwritten -= one.size
        _disarm(one)

    def _answer(self, one: Waiting, value: Any, error: str) -> None:
        if isinstance(one, Take):
            if value and one.unwanted:
                self._come_back([one.token])
            elif value:
                self._taken[one.token] = one.session
            if not value or one.unwanted:
                self._of_session.get(one.session, {}).pop(one.token, None)
            value = [msgspec.Raw(item) for item in value or ()]
        elif isinstance(one, Put):
            self._of_session.get(one.session, {}).pop(one.token, None)
            value = ResourceExhaustedError(value) if isinstance(value, str) else bool(value)
        else:
            value = [[number, msgspec.Raw(item)] for number, item in value or ()]
        if not one.unwanted:
            self._desk.reply(one.session, one.request, value, error)

    # ------------------------------------------------------------ what was taken

    def _settle(self, message: p.ItemsSettled, session: str) -> Any:
        place = self._of_session.get(session, {}).pop(message.token, None)
        if message.token in self._unclaimed:  # it was told before the server was started anew
            self._unclaimed.remove(message.token)
        elif self._taken.pop(message.token, None) is None:
            if place is not None:
                self._give_up(place, (message.token,))
            return NOTHING_YET
        if message.kept:
            self._desk.writer.put(lambda tx: lines.arrived(tx, message.token), keep=True)
        else:
            self._come_back([message.token])
        return NOTHING_YET

    def _give_up(self, place: Place, tokens: Container[str]) -> None:
        """Nobody wants the answers to these requests, which wait."""
        line = self._lines.get(place)
        gone = {one: None for one in line.all() if one.token in tokens} if line is not None else {}
        if line is None or not gone:
            return
        for one in gone:
            one.unwanted = True
        if line.looking:
            for one in gone:
                line.is_late(one)
            line.news = True
            return
        line.leave_out(gone)
        for one in gone:
            self._leave(one)
        if line.empty:
            del self._lines[place]

    def _come_back(self, tokens: list[str]) -> None:
        def back(places: list[Place] | None, error: str) -> None:
            for place in places or ():
                self._news(place)

        self._desk.writer.put(lambda tx: lines.come_back(tx, tokens), back, keep=True)

    def session_closed(self, session: str) -> None:
        tokens = self._of_session.pop(session, {})
        taken = [token for token in tokens if self._taken.pop(token, None) is not None]
        if taken:
            self._come_back(taken)
        for place in set(tokens.values()):
            self._give_up(place, tokens)

    def deleted(self, id: str) -> None:
        """The queue is gone: whoever waits at it hears so."""
        for place in [place for place in self._lines if place[0] == id]:
            line = self._lines.pop(place)
            for one in line.all():
                if not one.unwanted:
                    self._desk.reply(one.session, one.request, self._desk.gone("queue"))
                one.unwanted = True
                if not line.looking:
                    line.remove(one)
                    self._leave(one)
        self._desk.flush()

    def end_unclaimed(self) -> None:
        """Who has not come back after a restart has lost what it had taken."""
        tokens, self._unclaimed = self._unclaimed, []
        if tokens:
            self._come_back(tokens)

    def _sweep(self) -> None:
        def swept(more: bool, error: str) -> None:
            self._timers[0] = asyncio.get_running_loop().call_later(0.1 if more else SWEEP_S, self._sweep)

        self._desk.writer.put(lambda tx: lines.sweep(tx, self._clock(), ANSWERED_S), swept)


def _disarm(one: Waiting) -> None:
    if one.timer is not None:
        one.timer.cancel()
        one.timer = None
