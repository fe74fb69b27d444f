"""Calls and their inputs: who waits for what, and what has become of it.

An input is open from its submission until its one visible result. A call of a session lives while inputs are open: its
results go to the session and are forgotten. A durable call (`spawn`) outlives its session: its results go to the
store and to whoever waits. It is kept here until it has all its results; after that the store alone answers for it. A
cancellation that arrives before its inputs is remembered.

Input: QUEUED → LEASED → closed, with DELAYED before a retry. A cancelled input closes at once, and keeps its lease
(and so its slot) until the user's code has really ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.core.outbox import Outbox
from kedge.model.payload import TERMINATED, ErrorInfo, Payload, Result
from kedge.model.protocol import CallRefused

if TYPE_CHECKING:
    from kedge.core.containers import Container
    from kedge.core.pool import Pool

CANCEL_MEMORY = 4096
"""Cancelled calls whose inputs may still be on their way. Clients send both on one connection, so few are ever
needed."""

NEVER = -1.0

CANCELLED = Result(TERMINATED, error=ErrorInfo("InputCancellation", "the input was cancelled"))


class Call:
    __slots__ = (
        "done",
        "durable",
        "id",
        "method",
        "open",
        "parent",
        "pool",
        "queue_timeout",
        "session",
        "stream",
        "submitted",
        "timeout",
        "total",
        "waiters",
    )

    def __init__(
        self, id: str, pool: Pool, session: str, method: str, durable: bool, stream: bool, parent: str
    ) -> None:
        self.id = id
        self.pool = pool
        self.session = session
        """Who gets the results; empty for a durable call."""
        self.method = method
        self.durable = durable
        self.stream = stream
        self.parent = parent
        self.open: dict[int, Input] = {}
        self.submitted = 0
        self.done: dict[int, str] = {}
        """Index → status of what is recorded; durable calls only."""
        self.total: int | None = None
        self.waiters: list[Waiter] = []
        self.timeout = 0.0
        """Seconds that its inputs may run; 0: as their function says. The same for waiting below."""
        self.queue_timeout = 0.0

    def __repr__(self) -> str:
        return f"<Call {self.id} of {self.pool.id}: {len(self.open)} open, {len(self.done)} recorded>"


class Input:
    __slots__ = (
        "attempts",
        "batch",
        "call",
        "closed",
        "container",
        "credited",
        "granted_at",
        "index",
        "lease",
        "losses",
        "overran",
        "payload",
        "queued_at",
        "ran_s",
        "shared_losses",
        "told_at",
    )

    def __init__(self, call: Call, index: int, payload: Payload, now: float) -> None:
        self.call = call
        self.index = index
        self.payload = payload
        self.queued_at = now
        self.attempts = 0
        """Attempts that user code has failed: the user's budget."""
        self.losses = 0
        """Containers that were lost while it alone ran in them: the infrastructure budget."""
        self.shared_losses = 0
        """Containers that were lost under it and others, who may have been the reason."""
        self.ran_s = 0.0
        """How long it had run when the last of them was lost."""
        self.lease = 0
        """0 while it waits."""
        self.container: Container | None = None
        self.credited = False
        self.batch: Batch | None = None
        """Those with whom it shares its slot."""
        self.granted_at = NEVER
        """When it got its slot."""
        self.told_at = NEVER
        """When its code was told to end."""
        self.overran = False
        """Its time is over, its code is not, and it will be tried again: so it stays open."""
        self.closed = False

    def __repr__(self) -> str:
        where = f"lease {self.lease} in {self.container.id}" if self.container else "waiting"
        return f"<Input {self.call.id}:{self.index} {where}{' closed' if self.closed else ''}>"


class Batch:
    """Inputs that share a slot."""

    __slots__ = ("left",)

    def __init__(self, inputs: int) -> None:
        self.left = inputs
        """Those whose code has not ended."""


class Waiter:
    """A session that asked for results of a durable call."""

    __slots__ = ("end", "request", "session", "start")

    def __init__(self, session: str, start: int, end: int | None, request: int) -> None:
        self.session = session
        self.start = start
        self.end = end
        self.request = request

    def wants(self, index: int) -> bool:
        return self.start <= index and (self.end is None or index < self.end)

    def is_beyond(self, total: int) -> bool:
        """Whether a call of `total` inputs can never satisfy it."""
        return self.start >= total if self.end is None else self.end > total


class Calls:
    """Every call that is known."""

    def __init__(self, outbox: Outbox) -> None:
        self.by_id: dict[str, Call] = {}
        self._outbox = outbox
        self._cancelled: dict[str, None] = {}

    def open(self, id: str, pool: Pool, session: str, method: str, durable: bool, stream: bool, parent: str) -> Call:
        call = self.by_id.get(id)
        if call is None:
            call = self.by_id[id] = Call(id, pool, "" if durable else session, method, durable, stream, parent)
        elif not durable:
            call.session = session
        return call

    def submit(self, call: Call, first: int, payloads: list[Payload], now: float) -> list[Input]:
        """The inputs that are new; the others are resends."""
        opened, inputs = call.open, []
        for index, payload in enumerate(payloads, first):
            if index in opened or index in call.done:
                continue
            opened[index] = input = Input(call, index, payload, now)
            inputs.append(input)
        call.submitted += len(inputs)
        if not opened:
            if call.durable:
                self._leave_to_store(call)
            else:
                self.by_id.pop(call.id, None)
        return inputs

    def close(self, input: Input, result: Result, release: bool = True) -> None:
        """The one visible result. What comes later about this input is dropped. `release`: nobody reads its arguments
        any more."""
        assert not input.closed
        input.closed = True
        call = input.call
        del call.open[input.index]
        if release and input.payload.blob:
            self._outbox.release(input.payload.blob)
        if call.durable:
            call.done[input.index] = result.status
            self._outbox.record(call.id, input.index, result, call.pool.id, call.method)
            for session in dict.fromkeys(waiter.session for waiter in call.waiters if waiter.wants(input.index)):
                self._outbox.deliver(session, call.id, input.index, result)
            self._leave_to_store(call)
            return
        if call.session:
            self._outbox.deliver(call.session, call.id, input.index, result)
        if not call.open:
            self.by_id.pop(call.id, None)

    def refuse(self, session: str, call: str, error: ErrorInfo, request: int = 0) -> None:
        if session:
            self._outbox.send(session, CallRefused(call, error, request))

    def remember_cancelled(self, call: str) -> None:
        self._cancelled[call] = None
        if len(self._cancelled) > CANCEL_MEMORY:
            del self._cancelled[next(iter(self._cancelled))]

    def was_cancelled(self, call: str) -> bool:
        return call in self._cancelled

    def total(self, call: Call, total: int) -> None:
        call.total = total
        self._leave_to_store(call)

    def restore(self, call: Call, done: dict[int, str], total: int | None) -> None:
        """A durable call as the store remembers it: its other inputs follow."""
        call.done = done
        call.submitted = len(done)
        call.total = total

    def _leave_to_store(self, call: Call) -> None:
        """A durable call that has all its results needs nobody here: the store answers from now on."""
        if call.open or not call.durable or call.total is None or len(call.done) < call.total:
            return
        if self.by_id.pop(call.id, None) is None:
            return
        for waiter in call.waiters:
            if waiter.is_beyond(call.total):
                text = f"the call {call.id} has {call.total} inputs, numbered from 0: there are no others to wait for"
                self.refuse(waiter.session, call.id, ErrorInfo("NotFoundError", text), waiter.request)

    def check(self) -> None:
        for id, call in self.by_id.items():
            assert id == call.id
            assert call.durable or call.open, f"{call} of a session is kept without open inputs"
            for index, input in call.open.items():
                assert input.index == index
                assert not input.closed
                assert input.call is call
                assert index not in call.done
