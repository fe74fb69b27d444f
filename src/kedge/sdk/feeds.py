"""One run of a map, and who reads its input iterator.

Where reading cannot block (a list, a range) the consumer of the results does it in passing, in large messages. Anything
else is read by a thread of its own, or by a task if it is an async iterator, so that results come out while the next
input is not there yet. Either way `MapWindow` says how far ahead.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import Any

from kedge.model.payload import Payload, Result
from kedge.model.protocol import InputsSubmitted, Output
from kedge.sdk import context
from kedge.sdk.async_link import AsyncLink
from kedge.sdk.blobs import BlobStore
from kedge.sdk.calls import Pending
from kedge.sdk.client import new_call_id
from kedge.sdk.link import Link
from kedge.sdk.map_window import MAX_CHUNK, MAX_CHUNK_BYTES, MapWindow, cost, submission
from kedge.sdk.serializer import arguments_payload, from_result
from kedge.sdk.target import Target

FIRST_CHUNK = 32
"""Inputs of the first message: containers start while the rest is still being serialised."""
_PROMPT: frozenset[type] = frozenset(
    (
        list,
        tuple,
        range,
        str,
        bytes,
        bytearray,
        set,
        frozenset,
        dict,
        deque,
        type({}.keys()),
        type({}.values()),
        type({}.items()),
    )
)
"""Types whose iteration runs no foreign code, and so never blocks."""


def is_prompt(iterator: object) -> bool:
    """Whether reading it cannot block."""
    return type(iterator) in _PROMPT


def template(target: Target, durable: bool = False) -> InputsSubmitted:
    """What all messages of a new call of many inputs have in common."""
    return InputsSubmitted(
        new_call_id(),
        target.pool,
        0,
        [],
        target.method,
        durable,
        context.current_input_id() or "",
        timeout=target.timeout,
        queue_timeout=target.queue_timeout,
    )


class MapCall(Pending):
    """The results that have arrived, until the consumer looks at them."""

    __slots__ = ("_arrived", "_message", "_window")

    def __init__(self, message: InputsSubmitted, window: MapWindow) -> None:
        super().__init__()
        self._message = message
        self._window = window
        self._arrived: deque[list[Output]] = deque()

    def deliver(self, outputs: list[Output]) -> None:
        self._arrived.append(outputs)
        self.notify()

    def resend(self) -> list[Any]:
        return list(self._window.resend(self._message))

    def settle(self) -> None:
        """Moves what has arrived into the window; raises why nothing more will come. Done by the consumer alone."""
        self.ready = False
        while self._arrived:
            self._window.receive(self._arrived.popleft())
        if self.failure is not None:
            raise self.failure

    def leftovers(self) -> list[Payload | None]:
        """The values that nobody takes any more."""
        while self._arrived:
            self._window.receive(self._arrived.popleft())
        return self._window.leftovers()


class Run:
    """What the blocking and the async form have in common."""

    def __init__(self, target: Target, kwargs: Mapping[str, Any], ordered: bool, return_exceptions: bool) -> None:
        self.target = target
        self.message = template(target)
        self.window = MapWindow(ordered)
        self.call = MapCall(self.message, self.window)
        self._kwargs = kwargs
        self._return_exceptions = return_exceptions
        self._retry_at: float | None = None

    def payload(self, args: Sequence[Any], blobs: BlobStore | None) -> Payload:
        return arguments_payload(args, self._kwargs, blobs, self.target.name)

    def value(self, result: Result, blobs: BlobStore | None) -> Any:
        """What the consumer gets for a result."""
        try:
            return from_result(result, blobs, self.target.name)
        except Exception as error:
            if self._return_exceptions:
                return error
            raise

    def retry(self, link: Link | AsyncLink) -> float | None:
        """Sends refused inputs again when it is time; how many seconds it is until then, None where there are none."""
        window = self.window
        if not window.refused:
            self._retry_at = None
            return None
        now = time.monotonic()
        due = self._retry_at is not None and now >= self._retry_at
        if due or self._retry_at is None:
            self._retry_at = now + window.retry_after
        link.send(window.retry(self.message, due))
        return self._retry_at - now

    def begin(self, link: Link | AsyncLink) -> None:
        link.registry.calls[self.message.call] = self.call
        link.send(link.registry.announce(self.target.pool, self.target.variant))

    def end(self, link: Link | AsyncLink) -> None:
        del link.registry.calls[self.message.call]
        if not self.window.idle:
            link.cancel(self.message.call)
            link.registry.discard(self.call.leftovers())


class Feed:
    """Submits inputs while the window has room. `over` after the last one; `error` is what the iterator raised."""

    can_advance = False
    """Whether `advance` would submit something now."""

    def __init__(self, run: Run, link: Link | AsyncLink) -> None:
        self.over = False
        self.error: BaseException | None = None
        self._run = run
        self._link = link

    def advance(self) -> None:
        """There may be room: goes on."""

    def stop(self) -> None:
        """Nobody wants further inputs."""

    def _send(self, payloads: list[Payload]) -> None:
        first = self._run.window.submit(payloads)
        self._link.send([submission(self._run.message, first, payloads)])


class PromptFeed(Feed):
    """Reads an iterator that cannot block, whenever the consumer passes by."""

    def __init__(self, run: Run, arguments: Iterator[Sequence[Any]], link: Link | AsyncLink) -> None:
        super().__init__(run, link)
        self._arguments = arguments
        self._chunk = FIRST_CHUNK

    @property
    def can_advance(self) -> bool:  # type: ignore[override]
        return not self.over and self._run.window.refillable

    def advance(self) -> None:
        window, blobs, make = self._run.window, self._link.blobs, self._run.payload
        while not self.over and window.refillable:
            payloads: list[Payload] = []
            limit = min(window.room, self._chunk)
            size = 0
            for args in self._arguments:
                payload = make(args, blobs)
                payloads.append(payload)
                size += cost(payload)
                if len(payloads) >= limit or size >= MAX_CHUNK_BYTES:
                    break
            else:
                self.over = True
            if payloads:
                self._send(payloads)
            self._chunk = MAX_CHUNK


class ThreadFeed(Feed):
    """Reads an iterator that may block, on a thread of its own.

    `post` runs a function where the link may be used: at once for a blocking link, on the loop for the other one.
    """

    def __init__(
        self,
        run: Run,
        arguments: Iterator[Sequence[Any]],
        link: Link | AsyncLink,
        post: Callable[[Callable[[], None]], object],
    ) -> None:
        super().__init__(run, link)
        self._arguments = arguments
        self._post = post
        self._room = threading.Event()
        self._stopped = False
        self._read: deque[Payload] = deque()
        self._sent = 0
        self._thread: threading.Thread | None = None

    def advance(self) -> None:
        if self._thread is None:
            run = contextvars.copy_context().run
            name = f"kedge-map-{self._run.message.call}"
            self._thread = threading.Thread(target=run, args=(self._feed,), name=name, daemon=True)
            self._thread.start()
        elif self._run.window.refillable:
            self._room.set()

    def stop(self) -> None:
        self._stopped = True
        self._room.set()

    def _feed(self) -> None:
        window, blobs, make = self._run.window, self._link.blobs, self._run.payload
        try:
            while self._wait_for_room():
                args = next(self._arguments, None)
                if args is None:
                    break
                payload = make(args, blobs)
                window.submit([payload])
                self._read.append(payload)
                if len(self._read) == 1:
                    # Where more are waiting, a flush is on its way and takes this one along.
                    self._post(self._flush)
        except BaseException as error:
            self.error = error
        try:
            self._post(self._finish)
        except RuntimeError:
            pass  # the event loop is closed: nobody waits any more

    def _wait_for_room(self) -> bool:
        """False where the map has ended."""
        while not self._stopped:
            if self._run.window.room > 0:
                return True
            self._room.clear()
            if self._run.window.room <= 0 and not self._stopped:
                self._room.wait()
        return False

    def _flush(self) -> None:
        """Sends everything read so far. On a loop one call often finds what several have announced."""
        while self._read and not self._stopped:
            payloads: list[Payload] = []
            size = 0
            while self._read and len(payloads) < MAX_CHUNK and size < MAX_CHUNK_BYTES:
                payload = self._read.popleft()
                payloads.append(payload)
                size += cost(payload)
            self._link.send([submission(self._run.message, self._sent, payloads)])
            self._sent += len(payloads)

    def _finish(self) -> None:
        self._flush()
        self.over = True
        self._link.wake(self._run.call)


class TaskFeed(Feed):
    """Reads an async iterator, in a task of the consumer's loop."""

    def __init__(self, run: Run, arguments: AsyncGenerator[Sequence[Any], None], link: AsyncLink) -> None:
        super().__init__(run, link)
        self._arguments = arguments
        self._room = asyncio.Event()
        self._read: list[Payload] = []
        self._task: asyncio.Task[None] | None = None

    def advance(self) -> None:
        if self._task is None:
            self._task = asyncio.ensure_future(self._feed())
        elif self._run.window.refillable:
            self._room.set()

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _feed(self) -> None:
        window, blobs, make = self._run.window, self._link.blobs, self._run.payload
        loop = asyncio.get_running_loop()
        try:
            async for args in self._arguments:
                if not self._read:
                    loop.call_soon(self._flush)
                self._read.append(make(args, blobs))
                while window.room - len(self._read) <= 0:
                    self._room.clear()
                    await self._room.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.error = error
        finally:
            self._flush()
            self.over = True
            self._run.call.notify()
            await self._arguments.aclose()

    def _flush(self) -> None:
        payloads, self._read = self._read, []
        if payloads:
            self._send(payloads)


def at_once(function: Callable[[], None]) -> None:
    function()
