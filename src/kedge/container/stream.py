"""The values of one generator on their way to its caller.

A value leaves only against a credit of its reader: without one, the generator stands still at its `yield`. Values wait
here for the next frame. All fields are read and changed under the outbox's lock.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kedge.model.payload import Payload
from kedge.model.protocol import StreamValues

if TYPE_CHECKING:
    from kedge.container.outbox import Outbox


class Stream:
    def __init__(self, outbox: Outbox, call: str, index: int, credits: int = 0) -> None:
        self.call = call
        self.index = index
        self.count = 0
        """Values that were given a credit."""
        self._outbox = outbox
        self._credits = credits
        self._values: list[Payload] = []
        self._wake: Callable[[], object] | None = None
        self._closed = False

    # ------------------------------------------------------------ by whoever holds the lock

    def credit(self, values: int) -> None:
        """The reader takes more."""
        self._credits += values
        self._awaken()

    def close(self) -> None:
        """The input is cancelled: whoever waits for a credit stops waiting."""
        self._closed = True
        self._awaken()

    def collect(self) -> Sequence[StreamValues]:
        """What waits for the next frame."""
        if not self._values:
            return ()
        values, self._values = self._values, []
        return (StreamValues(self.call, self.index, self.count - len(values), values),)

    def _awaken(self) -> None:
        if self._wake is not None:
            self._wake()
            self._wake = None

    # ------------------------------------------------------------ by whoever runs the generator

    def put(self, value: Payload) -> bool:
        """Sends a value from a thread, and blocks it while there is no credit. False: cancelled meanwhile."""
        while not self._closed:
            event = threading.Event()
            if self._offer(value, event.set):
                return True
            self._outbox.flush()
            event.wait()
        return False

    async def put_async(self, value: Payload, loop: asyncio.AbstractEventLoop) -> bool:
        """The same from a task."""
        while not self._closed:
            future: asyncio.Future[None] = loop.create_future()
            if self._offer(value, functools.partial(loop.call_soon_threadsafe, _resolve, future)):
                return True
            self._outbox.flush()
            await future
        return False

    def _offer(self, value: Payload, wake: Callable[[], object]) -> bool:
        with self._outbox.lock:
            if not self._credits or self._closed:
                self._wake = wake
                if self._closed:
                    self._awaken()
                return False
            self._credits -= 1
            self.count += 1
            self._values.append(value)
            self._outbox.mark(self, len(value.data))
        self._outbox.soon()
        return True


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
