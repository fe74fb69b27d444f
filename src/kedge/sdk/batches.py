"""Things that travel together: as many as one message should carry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batches(things: Iterable[T], size_of: Callable[[T], int], count: int, size: int) -> Iterator[list[T]]:
    """Lists of at most `count` things and `size` bytes. What is larger than that by itself travels alone.

    >>> list(batches([1, 5, 5, 1, 9], int, count=2, size=6))
    [[1, 5], [5, 1], [9]]
    """
    batch: list[T] = []
    total = 0
    for thing in things:
        own = size_of(thing)
        if batch and (total + own > size or len(batch) >= count):
            yield batch
            batch, total = [], 0
        batch.append(thing)
        total += own
    if batch:
        yield batch
