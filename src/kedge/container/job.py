"""One input, or one batch, that has a slot: what is known of it while its code runs, and how that is interrupted."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Protocol

from kedge.container.entries import Entry
from kedge.container.exchange import Exchange
from kedge.container.guard import Guard
from kedge.container.members import Members
from kedge.container.session import TIMED_OUT
from kedge.container.stream import Stream
from kedge.model.payload import Result
from kedge.model.protocol import Dispatch
from kedge.sdk.context import InputContext

clock = time.perf_counter


class Interruptible(Protocol):
    def interrupt(self) -> None: ...


class Job:
    """One input, or one batch, that has a slot."""

    __slots__ = (
        "context", "dispatch", "entry", "errands", "exchange", "guard", "members", "reason", "started", "stream",
        "task", "timeout", "told",
    )  # fmt: skip

    def __init__(
        self,
        dispatch: Dispatch,
        entry: Entry,
        stream: Stream | None = None,
        members: Members | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        self.dispatch = dispatch
        """Of a batch: its first member, by whose lease it goes."""
        self.entry = entry
        self.stream = stream
        self.members = members
        """All inputs of a batch; None for an input of its own."""
        self.exchange = exchange
        """Of a request."""
        self.context = InputContext(
            dispatch.call,
            dispatch.index,
            dispatch.attempt,
            dispatch.method,
            () if members is None else members.inputs,
            dispatch.lease,
        )
        self.reason = ""
        """Why it is no longer wanted; empty while it is."""
        self.guard: Guard | None = None
        """Of the thread that runs it, once one does."""
        self.errands: set[Interruptible] | None = None
        """What threads do for its task at this moment (see `errands`)."""
        self.task: asyncio.Task[None] | None = None
        self.told = False
        """Whether its task has been cancelled, or its asynchronous generator."""
        self.started = 0.0
        """When user code began; 0 before, and after its end."""
        self.timeout = dispatch.timeout or entry.timeout
        """Seconds that it may run; for a batch, those of the next member whose time is over."""
        if members is not None:
            self.timeout = min(one.timeout or entry.timeout for one in members.dispatches)

    @property
    def overrun(self) -> str:
        """What is said of it where it ran longer."""
        if self.members is not None and len({one.timeout for one in self.members.dispatches}) > 1:
            return f"the batch of {self.entry.name} ran longer than the timeouts of all its inputs"
        if self.dispatch.timeout:
            return f"the input ran longer than timeout={self.dispatch.timeout:.10g} s of this call"
        return self.entry.overrun

    def overdue(self, started: float, now: float) -> list[int]:
        """Its time is over: that of these leases. Other members of a batch may have more."""
        if self.members is None:
            return [self.dispatch.lease]
        limits = [(one.timeout or self.entry.timeout, one.lease) for one in self.members.dispatches]
        self.timeout = min((limit for limit, _ in limits if started + limit > now), default=math.inf)
        return [lease for limit, lease in limits if started + limit <= now]

    @property
    def leases(self) -> list[int]:
        """Of all inputs in it."""
        return [self.dispatch.lease] if self.members is None else self.members.leases

    @property
    def words(self) -> tuple[str, ...]:
        """What a task is told with its cancellation."""
        return (self.overrun,) if self.reason == TIMED_OUT else ()

    def start_clock(self) -> None:
        """User code begins."""
        self.started = clock()
        self.context.deadline = self.started + self.timeout

    def stop_clock(self) -> float:
        """User code has ended: the seconds it took."""
        if self.context.voice is not None:
            self.context.voice.end()
        started, self.started = self.started, 0.0
        return clock() - started if started else 0.0

    def results(self, result: Result) -> list[Result]:
        """What is reported of each member of a batch of which `result` is said as a whole."""
        assert self.members is not None
        return [result] * len(self.members.dispatches) if self.reason else self.members.results(result)

    def cancel(self, reason: str) -> None:
        """Marks it, then interrupts it where it runs. A task is cancelled on its own loop, by the executor."""
        if self.reason:
            return
        self.context.cancelled = TIMED_OUT if reason == TIMED_OUT else "cancelled"
        self.reason = reason
        if self.guard is not None:
            self.guard.interrupt(self)
        for errand in list(self.errands or ()):
            errand.interrupt()
        if self.stream is not None:
            self.stream.close()
        elif self.exchange is not None:
            self.exchange.close()

    def cancel_task(self) -> None:
        """On the loop: cancels its task, once, and not before a shielded block has ended."""
        if self.context.shields:
            self.context.held_back = self.cancel_task
        elif self.task is not None and not self.told:
            self.told = True
            self.task.cancel(*self.words)
