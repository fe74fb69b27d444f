"""Fullest first below target, then least loaded, the oldest among equals; and no garbage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.core.router import SLACK, LoadIndex


class Box:
    """The least that the index accepts."""

    def __init__(self, order: int) -> None:
        self.order = order
        self.load = 0
        self.heaped = 0
        self.indexed = False

    def __repr__(self) -> str:
        return f"box {self.order}"


def index_of(*loads: int) -> tuple[LoadIndex[Box], list[Box]]:
    """Boxes of these loads; the first is the oldest."""
    index: LoadIndex[Box] = LoadIndex()
    boxes = [Box(order) for order in range(len(loads))]
    for box, load in zip(boxes, loads, strict=True):
        index.add(box, load)
    return index, boxes


@pytest.mark.parametrize(
    ("loads", "picked"),
    [
        ((), None),
        ((0,), 0),
        ((0, 0, 0), 0),
        ((0, 3, 1), 1),  # the fullest below target
        ((0, 3, 3), 1),  # the oldest of those
        ((4, 3, 5), 1),  # below target comes before any burst
        ((4, 0, 5), 1),
        ((5, 4, 4), 1),  # burst: the least loaded, the oldest of those
        ((6, 6, 5), 2),
        ((6, 6, 6), None),
        ((4, 6, 6), 0),
    ],
)
def test_pick(loads: tuple[int, ...], picked: int | None) -> None:
    index, boxes = index_of(*loads)
    assert index.pick(4, 6) is (None if picked is None else boxes[picked])


def test_a_burst_spreads_and_a_trickle_gathers() -> None:
    index, _ = index_of(0, 0, 0)
    order = []
    for _ in range(3 * 6):
        box = index.pick(4, 6)
        assert box is not None
        index.move(box, box.load + 1)
        order.append(box.order)
    assert order == [0] * 4 + [1] * 4 + [2] * 4 + [0, 1, 2] * 2
    assert index.pick(4, 6) is None


def test_pick_where_passes_over_those_that_are_refused() -> None:
    index, boxes = index_of(3, 2, 5, 4)
    assert index.pick_where(4, 6, lambda box: box is not boxes[0]) is boxes[1]
    assert index.pick_where(4, 6, lambda box: box.load >= 4) is boxes[3]
    assert index.pick_where(4, 6, lambda box: False) is None


def test_removed_ones_are_never_picked() -> None:
    index, boxes = index_of(0, 0)
    index.remove(boxes[0])
    index.remove(boxes[0])
    assert index.pick(4, 6) is boxes[1]
    index.remove(boxes[1])
    assert index.pick(4, 6) is None
    assert index.size == 0
    assert list(index) == []


def test_free_slots() -> None:
    index, boxes = index_of(0, 3, 6)
    assert index.free_slots(6) == 9
    index.remove(boxes[0])
    assert index.free_slots(6) == 3


def entries(index: LoadIndex[Box]) -> int:
    return sum(len(heap) for heap in index._heaps)


def test_moving_back_and_forth_leaves_one_entry_per_load() -> None:
    index, (box,) = index_of(0)
    for step in range(10_000):
        index.move(box, step % 7)
    assert entries(index) <= 7
    assert index.pick(4, 7) is box


def test_those_that_have_gone_do_not_pile_up_behind_an_old_one() -> None:
    """The oldest idles at the head of the heap while thousands come and go behind it."""
    index, (oldest,) = index_of(0)
    for order in range(1, 5000):
        box = Box(order)
        index.add(box, 0)
        index.remove(box)
    assert entries(index) <= 2 * (index.size + 1) + SLACK
    assert list(index) == list(index.empty()) == [oldest]


def test_empty_gives_those_without_load() -> None:
    index, boxes = index_of(0, 2, 0, 0)
    index.move(boxes[2], 1)
    index.remove(boxes[3])
    assert list(index.empty()) == [boxes[0]]


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 6), st.booleans()), max_size=300))
def test_it_agrees_with_a_plain_search(steps: list[tuple[int, int, bool]]) -> None:
    index: LoadIndex[Box] = LoadIndex()
    boxes = [Box(order) for order in range(9)]
    gone: set[int] = set()
    for which, load, leave in steps:
        box = boxes[which]
        if which in gone:
            continue
        if leave and box.indexed:
            index.remove(box)
            gone.add(which)
        elif box.indexed:
            index.move(box, load)
        else:
            index.add(box, load)
        there = [b for b in boxes if b.indexed]
        below = [b for b in there if b.load < 4]
        above = [b for b in there if 4 <= b.load < 6]
        best = min(
            below, key=lambda b: (-b.load, b.order), default=min(above, key=lambda b: (b.load, b.order), default=None)
        )
        assert index.pick(4, 6) is best
        assert index.pick_where(4, 6, lambda b: True) is best
        assert sorted(b.order for b in index) == [b.order for b in there]
        assert index.free_slots(6) == sum(6 - b.load for b in there)
