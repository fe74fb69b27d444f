"""Dicts and queues: one round trip at a time, and many items in few messages. `python -m benchmarks.objects`.

Uses the server of KEDGE_HOME, or starts one of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import kedge

ROUNDS = 1000
MANY = 100_000


def measured(what: str, count: int, work: Callable[[], object]) -> None:
    began = time.perf_counter()
    work()
    took = time.perf_counter() - began
    print(f"{what:<40} {took / count * 1e6:>9.1f} µs each {took:>8.2f} s")


def measure() -> None:
    with kedge.Queue.ephemeral() as queue, kedge.Dict.ephemeral() as entries:

        def handed_on() -> None:
            for number in range(ROUNDS):
                queue.put(number)
                queue.get()

        def kept() -> None:
            for number in range(ROUNDS):
                entries["key"] = number
                _ = entries["key"]

        measured("queue: put and get", ROUNDS, handed_on)
        measured("dict: put and get", ROUNDS, kept)
        measured("queue: put_many", MANY, lambda: queue.put_many(range(MANY)))
        measured("queue: get_many", MANY, lambda: queue.get_many(MANY))
        measured("dict: update", MANY, lambda: entries.update({number: number for number in range(MANY)}))
        measured("dict: items", MANY, lambda: list(entries.items()))


if __name__ == "__main__":
    with kedge.App("objects").run():
        measure()
