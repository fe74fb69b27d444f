"""`Queue`: first in, first out, for all containers and programs of a server, in as many partitions as are used.

An item is taken once: it is gone when it has arrived at its consumer. A consumer that dies, is cancelled or gives up
while it waits takes nothing; one whose connection breaks just when an item arrives may have got it, and so may the next
one."""

from __future__ import annotations

import queue
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, ClassVar

from kedge.exception import DeserializationError, InvalidError
from kedge.model.payload import Payload
from kedge.model.protocol import ItemsPut, ItemsRequested, ItemsSettled, ItemsWanted
from kedge.sdk import serializer, validation
from kedge.sdk.batches import batches
from kedge.sdk.dual import Dual
from kedge.sdk.named import (
    AT_ONCE,
    BYTES_AT_ONCE,
    MAX_WAIT_S,
    Manager,
    Named,
    Place,
    Question,
    current_client,
    deletion,
    new_token,
    question,
    wait_of,
)
from kedge.sdk.usage import warn

PARTITION_TTL = 24 * 3600
MAX_PARTITION = 64
"""Bytes of the name of a partition."""


class Queue(Named):
    """A queue that lives at the server.

    Every operation has an `.aio` form for async code. `get` waits at the server, and `put` waits where a partition is
    full (a million items, or 1 GiB); many consumers are served in the order in which they came.

    Example:
        jobs = kedge.Queue.from_name("jobs", create_if_missing=True)

        @app.function()
        def work() -> None:
            while (job := jobs.get(timeout=10)) is not None:
                print(job)

        @app.local_entrypoint()
        def main():
            jobs.put_many(["first", "second", None])
            work.remote()
    """

    kind: ClassVar[str] = "queue"
    objects: ClassVar[Manager[Queue]]
    """Makes, lists and deletes those that have a name."""

    # ------------------------------------------------------------ taking

    def _get(self, block: bool = True, timeout: float | None = None, *, partition: str | None = None) -> Any:
        """Removes the first item and gives it.

        Args:
            block: Wait for one. False: None where there is none.
            timeout: Seconds to wait; then `queue.Empty` is raised. None: for ever.
            partition: Which one. Default: one without a name.
        """
        found = self._get_many(1, block, timeout, partition=partition)
        return found[0] if found else None

    async def _get_async(
        self, block: bool = True, timeout: float | None = None, *, partition: str | None = None
    ) -> Any:
        found = await self._get_many_async(1, block, timeout, partition=partition)
        return found[0] if found else None

    def _get_many(
        self, n_values: int, block: bool = True, timeout: float | None = None, *, partition: str | None = None
    ) -> list[Any]:
        """Removes up to `n_values` items and gives them: as many as there are, at least one. See `get`."""
        client = current_client()
        link = client.link()
        taking = _Taking(self, self.id_at(client), n_values, block, timeout, partition)
        try:
            while taking.goes_on:
                taking.took(link.request(taking.message))
            return taking.values()
        finally:
            link.send(taking.settled())

    async def _get_many_async(
        self, n_values: int, block: bool = True, timeout: float | None = None, *, partition: str | None = None
    ) -> list[Any]:
        client = current_client()
        link = await client.async_link()
        taking = _Taking(self, await self.id_at_async(client), n_values, block, timeout, partition)
        try:
            while taking.goes_on:
                taking.took(await link.request(taking.message))
            return taking.values()
        finally:
            link.send(taking.settled())

    get = Dual(_get, _get_async)
    get_many = Dual(_get_many, _get_many_async)

    # ------------------------------------------------------------ putting

    def _put(
        self,
        v: Any,
        block: bool = True,
        timeout: float | None = None,
        *,
        partition: str | None = None,
        partition_ttl: float = PARTITION_TTL,
    ) -> None:
        """Adds an item to the end.

        Args:
            v: Anything that can be pickled, up to 1 MiB.
            block: Wait where the partition is full. False: `queue.Full` is raised.
            timeout: Seconds to wait; then `queue.Full` is raised. None: for ever.
            partition: Which one. Default: one without a name.
            partition_ttl: Seconds after which the partition is forgotten with all that it holds, unless more is put.
        """
        self._put_many([v], block, timeout, partition=partition, partition_ttl=partition_ttl)

    async def _put_async(
        self,
        v: Any,
        block: bool = True,
        timeout: float | None = None,
        *,
        partition: str | None = None,
        partition_ttl: float = PARTITION_TTL,
    ) -> None:
        await self._put_many_async([v], block, timeout, partition=partition, partition_ttl=partition_ttl)

    def _put_many(
        self,
        vs: Sequence[Any],
        block: bool = True,
        timeout: float | None = None,
        *,
        partition: str | None = None,
        partition_ttl: float = PARTITION_TTL,
    ) -> None:
        """Adds many items, in their order. See `put`; where `queue.Full` is raised, it says how many were added."""
        client = current_client()
        link = client.link()
        putting = _Putting(self, self.id_at(client), block, timeout, partition, partition_ttl)
        try:
            for part in _parts(vs, self):
                putting.next(part)
                putting.did(link.request(putting.message))
        finally:
            link.send(putting.given_up())

    async def _put_many_async(
        self,
        vs: Sequence[Any],
        block: bool = True,
        timeout: float | None = None,
        *,
        partition: str | None = None,
        partition_ttl: float = PARTITION_TTL,
    ) -> None:
        client = current_client()
        link = await client.async_link()
        putting = _Putting(self, await self.id_at_async(client), block, timeout, partition, partition_ttl)
        try:
            for part in _parts(vs, self):
                putting.next(part)
                putting.did(await link.request(putting.message))
        finally:
            link.send(putting.given_up())

    put = Dual(_put, _put_async)
    put_many = Dual(_put_many, _put_many_async)

    # ------------------------------------------------------------ looking

    def _describe_len(self, at: Place, *, partition: str | None = None, total: bool = False) -> Question[int]:
        """The number of items in a partition, or with `total` in all of them."""
        if partition is not None and total:
            raise InvalidError("Queue.len: total=True counts all partitions; leave partition= out")
        name = _partition(partition)
        return Question(lambda number: ItemsRequested(number, at.id, "count", name, total), int)

    def _describe_clear(self, at: Place, *, partition: str | None = None, all: bool = False) -> Question[None]:
        """Removes the items of a partition, or with `all` of every one."""
        if partition is not None and all:
            raise InvalidError("Queue.clear: all=True clears all partitions; leave partition= out")
        name = _partition(partition)
        return Question(lambda number: ItemsRequested(number, at.id, "clear", name, all), lambda _: None)

    def _describe_peek(self, at: Place, partition: str, after: int, wait: float) -> Question[list[tuple[int, Any]]]:
        def read(found: Any) -> list[tuple[int, Any]]:
            return [(number, _value(item, self)) for number, item in found]

        return Question(lambda n: ItemsRequested(n, at.id, "peek", partition, after=after, count=100, wait=wait), read)

    len = question(_describe_len)
    clear = question(_describe_clear)
    _peek = question(_describe_peek)

    def _iterate(self, *, partition: str | None = None, item_poll_timeout: float = 0.0) -> Iterator[Any]:
        """Gives the items and leaves them where they are. It ends when there is no further one for
        `item_poll_timeout` seconds."""
        name, wait = _partition(partition), wait_of("Queue.iterate", True, item_poll_timeout) or 0.0
        after = -1
        while found := self._peek(name, after, wait):
            for after, value in found:  # noqa: B007 - the last one counts
                yield value

    async def _iterate_async(
        self, *, partition: str | None = None, item_poll_timeout: float = 0.0
    ) -> AsyncIterator[Any]:
        name, wait = _partition(partition), wait_of("Queue.iterate", True, item_poll_timeout) or 0.0
        after = -1
        while found := await self._peek.aio(name, after, wait):
            for after, value in found:  # noqa: B007
                yield value

    iterate = Dual(_iterate, _iterate_async)


Queue.objects = Manager(Queue)
Queue.delete = deletion(Queue)  # type: ignore[attr-defined]


class _Taking:
    """One `get_many`: as many requests as it takes. What they took is settled at the end, all together."""

    def __init__(
        self, owner: Queue, id: str, n_values: int, block: bool, timeout: float | None, partition: str | None
    ) -> None:
        self._owner = owner
        self._id = id
        self._wanted = validation.whole_number("Queue.get_many: n_values", n_values, least=1)
        self._block = block
        self._partition = _partition(partition)
        self._wait = _wait("Queue.get", block, timeout)
        self._tokens = [new_token()]
        self._found: list[Any] = []
        self._kept = False
        self.goes_on = True

    def message(self, number: int) -> ItemsWanted:
        wanted = min(self._wanted - len(self._found), AT_ONCE)
        return ItemsWanted(number, self._id, self._tokens[-1], self._partition, wanted, self._wait)

    def took(self, found: list[Any]) -> None:
        self._found += found
        self._wait = 0.0  # nobody waits for the rest
        self.goes_on = bool(found) and len(self._found) < self._wanted
        if not found:
            self._tokens.pop()
        elif self.goes_on:
            self._tokens.append(new_token())

    def values(self) -> list[Any]:
        if not self._found and self._block:
            raise queue.Empty
        self._kept = len(self._found) == 1  # also where it cannot be loaded: nobody else could either
        values = [_value(item, self._owner) for item in self._found]
        self._kept = True
        return values

    def settled(self) -> list[Any]:
        return [ItemsSettled(self._id, token, self._kept) for token in self._tokens]


class _Putting:
    """One `put_many`: a request after the other, each with the time that is left."""

    def __init__(
        self, owner: Queue, id: str, block: bool, timeout: float | None, partition: str | None, ttl: float
    ) -> None:
        self._owner = owner
        self._id = id
        self._partition = _partition(partition)
        self._ttl = validation.seconds("Queue.put: partition_ttl", ttl)
        if self._ttl > MAX_WAIT_S:
            raise InvalidError(f"Queue.put: partition_ttl is at most {MAX_WAIT_S:.0f} seconds (a year), got {ttl}")
        wait = _wait("Queue.put", block, timeout)
        self._deadline = None if wait is None else time.monotonic() + wait
        self._token = ""
        self._values: list[Payload] = []
        self._count = 0

    def next(self, values: list[Payload]) -> None:
        self._token, self._values = new_token(), values

    def message(self, number: int) -> ItemsPut:
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        return ItemsPut(number, self._id, self._token, self._partition, self._values, self._ttl, left)

    def did(self, done: bool) -> None:
        self._token = ""
        if not done:
            added = f" after {self._count} items" if self._count else ""
            raise queue.Full(f"{self._owner!r} is full{added}")
        self._count += len(self._values)

    def given_up(self) -> list[Any]:
        return [ItemsSettled(self._id, self._token, False)] if self._token else []


def _parts(values: Sequence[Any], owner: Queue) -> Iterator[list[Payload]]:
    payloads = (serializer.to_payload(value, None, f"an item for {owner!r}") for value in values)
    return batches(payloads, lambda payload: len(payload.data), AT_ONCE, BYTES_AT_ONCE)


def _wait(what: str, block: bool, timeout: float | None) -> float | None:
    if not block and timeout is not None:
        warn(f"{what}: timeout has no effect with block=False", UserWarning)
    return wait_of(what, block, timeout)


def _partition(name: Any) -> str:
    if name is None:
        return ""
    if not isinstance(name, str) or not 1 <= len(name.encode("utf-8", "surrogatepass")) <= MAX_PARTITION:
        raise InvalidError(f"a partition of a queue has a name of 1 to {MAX_PARTITION} bytes, not {name!r}")
    return name


def _value(item: Any, owner: Queue) -> Any:
    try:
        return serializer.from_payload(Payload(*item), None, what=f"an item of {owner!r}")
    except DeserializationError as error:
        raise DeserializationError(
            f"{error} With get() that item is removed; get_many leaves all where they are."
        ) from None
