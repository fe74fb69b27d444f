"""What a connection waits for, without the connection: pure records that arriving messages fill.

`Pending` is one thing somebody waits for. `Registry` knows all of one connection, hands arriving messages to them, and
says what to send again after the connection broke: ids are ours, so whatever arrives twice is a duplicate.

Records are filled by whichever thread reads the connection and emptied by the one that waits. Each attribute has one
writer, and lists grow by whole deliveries, so no lock is needed.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from kedge.exception import ServiceError
from kedge.model.payload import ErrorInfo, Payload, Result
from kedge.model.protocol import (
    CallClosed,
    CallRefused,
    ImageProgressed,
    InputsAccepted,
    InputsSubmitted,
    Output,
    OutputsDelivered,
    OutputsRequested,
    Refused,
    Reply,
    StreamValues,
    VariantBound,
)
from kedge.model.spec import Variant
from kedge.sdk.blobs import BlobStore
from kedge.sdk.serializer import to_exception

ABANDONED_CALLS = 1000
"""Cancelled calls that are remembered: results that crossed the cancellation come within a round trip."""


class Pending:
    """One thing that somebody waits for. `ready` turns true when there is something to look at."""

    __slots__ = ("bell", "failure", "ready")

    def __init__(self) -> None:
        self.ready = False
        self.failure: Exception | None = None
        """Why nothing more will come."""
        self.bell: Callable[[], None] | None = None
        """Wakes who waits, where somebody does."""

    def notify(self) -> None:
        # First the flag, then the bell: who waits hangs up the bell first and looks at the flag afterwards.
        self.ready = True
        bell = self.bell
        if bell is not None:
            bell()

    def fail(self, failure: Exception) -> None:
        if self.failure is None:
            self.failure = failure
        self.notify()

    def refuse(self, error: ErrorInfo) -> None:
        self.fail(to_exception(error))

    def deliver(self, outputs: list[Output]) -> None:
        """Results of the call have come."""

    def stream(self, message: StreamValues) -> None:
        """Values of the generator have come."""

    def accept(self, message: InputsAccepted) -> None:
        """Inputs of a durable call are on disk."""

    def resend(self) -> list[Any]:
        """What a server that has forgotten everything needs to know about it."""
        return []


class SingleCall(Pending):
    """One input, one result."""

    __slots__ = ("message", "result")

    def __init__(self, message: InputsSubmitted) -> None:
        super().__init__()
        self.message = message
        self.result: Result | None = None

    def deliver(self, outputs: list[Output]) -> None:
        self.result = outputs[0].result
        self.notify()

    def resend(self) -> list[Any]:
        return [self.message]


class StreamCall(SingleCall):
    """One input whose values come one by one; the result only closes the stream.

    A container that is lost starts the generator anew: values that were here before are dropped and credited again.
    """

    __slots__ = ("arrived", "credit", "values")

    def __init__(self, message: InputsSubmitted) -> None:
        super().__init__(message)
        self.values: deque[Payload] = deque()
        self.arrived = 0
        self.credit = 0
        """Values that were taken or dropped and not yet credited."""

    def stream(self, message: StreamValues) -> None:
        known = self.arrived - message.first
        fresh = message.values[known:] if known > 0 else message.values
        self.credit += len(message.values) - len(fresh)
        self.arrived += len(fresh)
        self.values.extend(fresh)
        self.notify()


class SpawnCall(Pending):
    """Inputs of a durable call on their way to the server's disk."""

    __slots__ = ("chunks", "closing")

    def __init__(self) -> None:
        super().__init__()
        self.chunks: dict[int, InputsSubmitted] = {}
        """What the server has not accepted, by its first index."""
        self.closing: CallClosed | None = None

    def accept(self, message: InputsAccepted) -> None:
        self.chunks.pop(message.first, None)
        self.notify()

    def resend(self) -> list[Any]:
        return [*self.chunks.values(), *([self.closing] if self.closing else [])]


class Collector(Pending):
    """Somebody asks for results of a durable call: those of `request.start` up to `request.end`."""

    __slots__ = ("group", "request", "results")

    def __init__(self, request: OutputsRequested, group: Pending | None = None) -> None:
        super().__init__()
        self.request = request
        self.results: dict[int, Result] = {}
        self.group = group
        """Is told as well: for who waits for several."""

    def deliver(self, outputs: list[Output]) -> None:
        start, end = self.request.start, self.request.end
        for output in outputs:
            if start <= output.index and (end is None or output.index < end):
                self.results[output.index] = output.result
        self.notify()

    def notify(self) -> None:
        super().notify()
        if self.group is not None:
            self.group.notify()

    def resend(self) -> list[Any]:
        return [self.request]


class Request(Pending):
    """A question with one answer. `explain` makes the exception of an answer that is an error."""

    __slots__ = ("explain", "message", "value")

    def __init__(self, message: Any, explain: Callable[[ErrorInfo], Exception] = to_exception) -> None:
        super().__init__()
        self.message = message
        self.explain = explain
        self.value: Any = None

    def refuse(self, error: ErrorInfo) -> None:
        self.fail(self.explain(error))

    def resend(self) -> list[Any]:
        return [self.message]

    def hear(self, message: ImageProgressed) -> None:
        """How it goes, where it takes long."""


class Registry:
    """All that one connection waits for, and what it has announced."""

    def __init__(self, on_other: Callable[[Any], None]) -> None:
        self.blobs: BlobStore | None = None
        """Where the files of values are that nobody reads any more."""
        self.calls: dict[str, Pending] = {}
        self.requests: dict[int, Pending] = {}
        self.variants: dict[str, Variant] = {}
        """Pools that were announced on this connection."""
        self.next_request = itertools.count(1).__next__
        self._collectors: dict[str, list[Collector]] = {}
        self._on_other = on_other
        self._abandoned: dict[str, None] = {}

    def dispatch(self, messages: list[Any]) -> None:
        """Hands messages to who waits for them. What nobody waits for any more is dropped."""
        for message in messages:
            kind = type(message)
            if kind is OutputsDelivered:
                call = self.calls.get(message.call)
                if call is not None:
                    call.deliver(message.outputs)
                else:
                    # Not by the number of the request: what is delivered later goes to all who asked for the call.
                    for collector in self._collectors.get(message.call, ()):
                        collector.deliver(message.outputs)
                    if message.call in self._abandoned:
                        self.discard(output.result.payload for output in message.outputs)
            elif kind is StreamValues:
                call = self.calls.get(message.call)
                if call is not None:
                    call.stream(message)
                elif message.call in self._abandoned:
                    self.discard(message.values)
            elif kind is Reply:
                self._reply(message)
            elif kind is InputsAccepted:
                call = self.calls.get(message.call)
                if call is not None:
                    call.accept(message)
            elif kind is CallRefused:
                refused = self.requests.get(message.request) if message.request else self.calls.get(message.call)
                if refused is not None:
                    refused.refuse(message.error)
            elif kind is Refused:
                # What was sent makes no sense to the server: sending it again would not help.
                text = f"the kedge server refused what this program sent, and closed the connection: {message.reason}"
                self.fail(lambda text=text: ServiceError(text))  # type: ignore[misc]
            elif kind is ImageProgressed:
                request = self.requests.get(message.request)
                if isinstance(request, Request):
                    request.hear(message)
            else:
                self._on_other(message)

    def announce(self, pool: str, variant: Variant | None) -> list[Any]:
        """The message to send before the first input of a pool, on this connection; nothing later on."""
        if variant is None or pool in self.variants:
            return []
        self.variants[pool] = variant
        return [VariantBound(variant)]

    def abandon(self, call: str) -> None:
        """The caller gave up: results that are on their way are removed when they come."""
        self._abandoned[call] = None
        if len(self._abandoned) > ABANDONED_CALLS:
            del self._abandoned[next(iter(self._abandoned))]

    def discard(self, payloads: Iterable[Payload | None]) -> None:
        """Removes the files of values that were sent to us and that nobody reads."""
        for payload in payloads:
            if payload is not None and payload.blob and self.blobs is not None:
                self.blobs.remove(payload.blob)

    def collect(self, collector: Collector) -> None:
        self.requests[collector.request.request] = collector
        self._collectors.setdefault(collector.request.call, []).append(collector)

    def forget(self, collector: Collector) -> None:
        self.requests.pop(collector.request.request, None)
        left = [other for other in self._collectors.get(collector.request.call, ()) if other is not collector]
        if left:
            self._collectors[collector.request.call] = left
        else:
            self._collectors.pop(collector.request.call, None)

    @property
    def busy(self) -> bool:
        return bool(self.calls or self.requests)

    def resend(self) -> list[Any]:
        """Everything unfinished, for a server that knows nothing of it."""
        messages: list[Any] = []
        for pending in [*list(self.calls.values()), *list(self.requests.values())]:
            messages += pending.resend()
        return messages

    def variants_again(self) -> list[Any]:
        return [VariantBound(variant) for variant in list(self.variants.values())]

    def fail(self, failure: Callable[[], Exception]) -> None:
        """Nothing more will come. Each one gets an exception of its own, since each raises it somewhere else."""
        for pending in [*list(self.calls.values()), *list(self.requests.values())]:
            pending.fail(failure())

    def _reply(self, message: Reply) -> None:
        request = self.requests.get(message.request)
        if not isinstance(request, Request):
            return
        if message.error is not None:
            request.refuse(message.error)
            return
        request.value = message.value
        request.notify()
