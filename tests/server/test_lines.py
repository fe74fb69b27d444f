"""One look at a partition of a queue: who gets what, in which order, by a clock that is given."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from kedge.server import lines
from kedge.server.lines import Bounds, Line, Look, Put, Take, Waiting, serve
from kedge.server.writer import Transaction

NOW = 1_000_000.0
TTL = 60.0


@pytest.fixture
def tx() -> Iterator[Transaction]:
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.executescript(lines.SCHEMA)
    yield Transaction(database)
    database.close()


class Desk:
    """Makes requests, and serves them."""

    def __init__(self, tx: Transaction, bounds: Bounds | None = None) -> None:
        self.tx = tx
        self.bounds = bounds or Bounds()
        self.now = NOW
        self.count = 0

    def put(self, *values: bytes, ttl: float = TTL) -> Put:
        self.count += 1
        return Put("se-1", self.count, f"put-{self.count}", list(values), ttl)

    def take(self, count: int = 1, again: bool = False) -> Take:
        self.count += 1
        return Take("se-1", self.count, f"take-{self.count}", count, again)

    def serve(self, *waiting: Waiting, partition: str = "") -> dict[int, object]:
        answers = serve(self.tx, "qu-1", partition, waiting, self.now, self.bounds)
        return {one.request: value for one, value in answers}

    def free(self, partition: str = "") -> int:
        row = lines.find(self.tx, "qu-1", partition, self.now)
        return 0 if row is None else row.free


@pytest.fixture
def desk(tx: Transaction) -> Desk:
    return Desk(tx)


def test_first_in_first_out_for_takers_in_their_order(desk: Desk) -> None:
    one, two, three = desk.take(), desk.take(2), desk.take()
    assert desk.serve(one, two, three) == {}
    put = desk.put(b"a", b"b", b"c")
    assert desk.serve(put, one, two, three) == {put.request: True, one.request: [b"a"], two.request: [b"b", b"c"]}
    assert desk.free() == 0


def test_a_taker_of_many_gets_what_there_is(desk: Desk) -> None:
    put, many = desk.put(b"a", b"b"), desk.take(10)
    assert desk.serve(put, many)[many.request] == [b"a", b"b"]


def test_partitions_are_apart(desk: Desk) -> None:
    desk.serve(desk.put(b"a"), partition="left")
    taker = desk.take()
    assert desk.serve(taker, partition="right") == {}
    assert desk.serve(taker, partition="left") == {taker.request: [b"a"]}


def test_what_was_taken_and_is_not_wanted_comes_back_to_the_front(desk: Desk) -> None:
    first = desk.take(2)
    desk.serve(desk.put(b"a", b"b", b"c"), first)
    assert desk.free() == 1
    assert lines.come_back(desk.tx, [first.token]) == [("qu-1", "")]
    assert desk.free() == 3
    second = desk.take(3)
    assert desk.serve(second) == {second.request: [b"a", b"b", b"c"]}


def test_what_has_arrived_is_gone_for_ever(desk: Desk) -> None:
    taker = desk.take()
    desk.serve(desk.put(b"a"), taker)
    lines.arrived(desk.tx, taker.token)
    assert lines.come_back(desk.tx, [taker.token]) == []
    assert desk.tx.execute("SELECT count(*) FROM items").fetchone() == (0,)


def test_a_put_that_is_sent_again_is_done_once(desk: Desk) -> None:
    put = desk.put(b"a")
    assert desk.serve(put) == desk.serve(put) == {put.request: True}
    assert desk.free() == 1


def test_a_taker_that_asks_again_gets_the_same(desk: Desk) -> None:
    taker = desk.take()
    desk.serve(desk.put(b"a", b"b"), taker)
    again = Take("se-2", 99, taker.token, 1, again=True)
    assert desk.serve(again) == {99: [b"a"]}
    assert desk.free() == 1


def test_a_full_partition_holds_putters_up_in_their_order(tx: Transaction) -> None:
    desk = Desk(tx, Bounds(items=3))
    big, small = desk.put(b"c", b"d"), desk.put(b"e")
    first = desk.put(b"a", b"b")
    assert desk.serve(first, big, small) == {first.request: True}  # the small one would fit, and came later
    taker = desk.take()
    assert desk.serve(big, small, taker) == {taker.request: [b"a"], big.request: True}
    taker = desk.take(3)
    assert desk.serve(small, taker) == {taker.request: [b"b", b"c", b"d"], small.request: True}


def test_bytes_are_bounded_too_but_one_put_always_fits_alone(tx: Transaction) -> None:
    desk = Desk(tx, Bounds(bytes=10))
    huge, small = desk.put(b"x" * 20), desk.put(b"y")
    assert desk.serve(huge, small) == {huge.request: True}
    taker = desk.take()
    assert desk.serve(small, taker)[small.request] is True


def test_partitions_of_a_queue_are_bounded(tx: Transaction) -> None:
    desk = Desk(tx, Bounds(partitions=1))
    desk.serve(desk.put(b"a"), partition="one")
    put = desk.put(b"b")
    assert desk.serve(put, partition="two") == {put.request: "this queue has 1 partitions already; clear some"}
    put = desk.put(b"b")
    assert desk.serve(put, partition="one") == {put.request: True}


def test_a_partition_lives_until_its_time_after_the_last_put_is_over(desk: Desk) -> None:
    desk.serve(desk.put(b"a"))
    desk.now += TTL - 1
    desk.serve(desk.put(b"b"))
    desk.now += TTL - 1
    assert desk.free() == 2
    desk.now += 1
    taker = desk.take()
    assert desk.serve(taker) == {}
    assert desk.tx.execute("SELECT count(*) FROM items").fetchone() == (0,)


def test_a_sweep_removes_partitions_that_nobody_asks_for(desk: Desk) -> None:
    for number in range(lines.SWEPT_AT_ONCE + 1):
        desk.serve(desk.put(b"a"), partition=str(number))
    assert lines.sweep(desk.tx, desk.now, 1.0) is False
    desk.now += TTL
    assert lines.sweep(desk.tx, desk.now, 1.0) is True
    assert lines.sweep(desk.tx, desk.now, 1.0) is False
    for table in ("partitions", "items", "puts"):
        assert desk.tx.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_a_look_takes_nothing_and_goes_on_behind_a_number(desk: Desk) -> None:
    desk.serve(desk.put(b"a", b"b"))
    (found,) = desk.serve(Look("se-1", 1, -1, 10)).values()
    assert [value for _, value in found] == [b"a", b"b"]  # type: ignore[attr-defined]
    last = found[-1][0]  # type: ignore[index]
    assert desk.serve(Look("se-1", 2, last, 10)) == {}
    desk.serve(desk.put(b"c"))
    (found,) = desk.serve(Look("se-1", 3, last, 10)).values()
    assert [value for _, value in found] == [b"c"]  # type: ignore[attr-defined]
    assert desk.free() == 3


def test_numbers_go_on_after_a_partition_was_forgotten(desk: Desk) -> None:
    desk.serve(desk.put(b"a"))
    (found,) = desk.serve(Look("se-1", 1, -1, 10)).values()
    desk.now += TTL
    desk.serve(desk.put(b"b"))
    (later,) = desk.serve(Look("se-1", 2, found[0][0], 10)).values()  # type: ignore[index]
    assert [value for _, value in later] == [b"b"]  # type: ignore[attr-defined]


def test_an_answer_fits_into_a_frame(desk: Desk) -> None:
    half = b"x" * (lines.ANSWER_BYTES // 2)
    desk.serve(desk.put(half, half, half))
    taker = desk.take(3)
    assert desk.serve(taker) == {taker.request: [half, half]}


def test_whoever_is_not_wanted_any_more_is_passed_over(desk: Desk) -> None:
    gone, there, put = desk.take(), desk.take(), desk.put(b"a")
    gone.unwanted = True
    assert desk.serve(gone, there, put) == {put.request: True, there.request: [b"a"]}


def test_a_look_is_for_the_first_and_for_those_whose_time_is_over() -> None:
    line = Line()
    takers = [Take("se-1", number, str(number), 1) for number in range(lines.AT_ONCE + 10)]
    for taker in takers:
        line.add(taker)
    assert line.first() == takers[: lines.AT_ONCE]
    line.is_late(takers[-1])
    line.is_late(takers[0])
    assert line.first() == [*takers[: lines.AT_ONCE], takers[-1]]
    line.remove(takers[-1])
    assert line.first() == takers[: lines.AT_ONCE]
