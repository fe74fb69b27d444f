"""What leaves the container: results and values, many in one frame where they end close together.

Whoever ends an input sends its result, so that no thread must be woken for it. Only where the next inputs are here
already does it wait for their company, half a millisecond at most; the I/O thread sends it should that fail to come.
`sending` keeps frames in the order in which their content was collected; it is taken before `lock`, which guards the
session.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kedge.container.session import Session
from kedge.model.payload import Result
from kedge.model.protocol import InputsFinished
from kedge.wire.transport import BlockingConnection, ConnectionLost

clock = time.perf_counter

FLUSH_S = 0.0005
"""Results of inputs that end closer together than this share a frame."""
FLUSH_BYTES = 1024 * 1024
"""Bytes of results that go at once, so that frames stay far below their limit."""
FRAME_RESULTS = 64
"""Results in one frame when many wait behind a slow socket: with 256 KiB each, a quarter of the limit."""


class Channel(Protocol):
    """What one input has to say before its end."""

    def collect(self) -> Sequence[Any]:
        """What waits for the next frame. Under the lock."""


class Outbox:
    def __init__(
        self, connection: BlockingConnection, session: Session, lock: threading.Lock, on_lost: Callable[[], None]
    ) -> None:
        self.lock = lock
        self.flushed_at = clock()
        self.nudge: Callable[[], None] = _nobody
        """Makes the I/O thread look again soon."""
        self.hungry: set[object] = set()
        """Whoever waits in user code, on a thread, for something that the plane will send."""
        self.loop: asyncio.AbstractEventLoop | None = None
        """Where the main thread waits, if it does that on a loop."""
        self._main_thread = threading.get_ident()
        self._connection = connection
        self._session = session
        self._on_lost = on_lost
        self._sending = threading.Lock()
        self._channels: dict[Channel, None] = {}
        """Those in which something waits."""
        self._bytes = 0
        self._planned = False

    @property
    def dirty(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._channels) or self._session.dirty

    @property
    def due(self) -> bool:
        """Whether it has waited for company long enough."""
        return clock() - self.flushed_at >= FLUSH_S or self._bytes > FLUSH_BYTES

    def weigh(self, result: Result) -> None:
        """A result waits in the session now. Under the lock."""
        if result.payload is not None:
            self._bytes += len(result.payload.data)

    def mark(self, channel: Channel, size: int) -> None:
        """Something of `size` bytes waits in a channel. Under the lock."""
        self._channels[channel] = None
        self._bytes += size

    def soon(self) -> None:
        """Sends what is due, or lets it wait: a few milliseconds at most, even if nothing else ends."""
        if self.due:
            self.flush()
        else:
            self.nudge()

    def ended(self) -> None:
        """An input has ended on this thread. Its result waits only where the next ones are here already, or, on the
        loop, for those that end in the same round."""
        if self._session.waiting:
            self.soon()
        elif self.loop is None or not self._session.running or threading.get_ident() != self._main_thread:
            self.flush()
        else:
            self.later()

    def later(self) -> None:
        """On the loop: sends what waits at the end of this round, and what else there is then."""
        if not self._planned and self.loop is not None:
            self._planned = True
            self.loop.call_soon(self._flush_as_planned)
            self.nudge()

    def promptly(self) -> None:
        """On the loop: sends what is due, since the code may go on for long without coming back to the loop."""
        if self.due:
            self.flush()
        else:
            self.later()

    def flush(self) -> None:
        """Sends all that waits."""
        if not self.dirty:
            return
        with self._sending:
            with self.lock:
                self.flushed_at = clock()
                large = self._bytes > 4 * FLUSH_BYTES
                self._bytes = 0
                # Values before results: a stream must not end before its last value.
                messages: list[Any] = [message for channel in self._channels for message in channel.collect()]
                self._channels.clear()
                messages += self._session.outgoing()
            for frame in _split(messages) if large else [messages]:
                self.send(frame)

    def finish(self) -> None:
        """Sends all that waits, and comes back when what another thread is sending has left, too."""
        with self._sending:
            pass
        self.flush()

    def send(self, messages: list[Any]) -> None:
        """Sends one frame now. Nothing where the plane is gone: the I/O thread ends the process then."""
        if messages:
            try:
                self._connection.send(messages)
            except ConnectionLost:
                self._on_lost()

    def _flush_as_planned(self) -> None:
        self._planned = False
        self.flush()


def _nobody() -> None:
    """There is no I/O thread yet."""


def _split(messages: list[Any]) -> list[list[Any]]:
    """Frames of a bounded number of results."""
    frames: list[list[Any]] = []
    for message in messages:
        if type(message) is InputsFinished:
            parts = range(0, len(message.inputs), FRAME_RESULTS)
            frames += [[InputsFinished(message.inputs[at : at + FRAME_RESULTS], message.started)] for at in parts]
        else:
            frames.append([message])
    return frames
