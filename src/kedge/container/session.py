"""What one container has been given, what runs, and what it owes the plane. Pure: messages in, actions out.

The rules:

* Never more than `max_inputs` run. What is granted beyond them waits in the order in which it came, and starts as slots
  become free. A slot becomes free once: when the code of its input has ended.
* A credited input that has not started can be recalled. Once it has started it is an attempt, which `outgoing` says
  with the next results, or by itself where there are none.
* The result of a cancelled input is "cancelled" whatever its code returns, and "timeout" where that was the reason; the
  first reason counts. A cancel that comes before its input is remembered, one that comes after its end is ignored.
* A drain gives the credited inputs back, lets the rest finish, and ends with `Exit`. A drain that cancels reports
  nothing of what it cancelled, nor of what comes later: the plane runs those inputs again when the container is gone.
  It need not wait for them: `give_up` leaves behind what runs.
* The same lease is never taken twice.

`receive` and `finished` return what to do now; `outgoing` drains what to send. Neither blocks, reads a clock or locks.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from msgspec import Struct

from kedge.model.payload import TERMINATED, TIMEOUT, Result
from kedge.model.protocol import (
    ConcurrencyChanged,
    ContainerDrained,
    Dispatch,
    Finished,
    InputsCancelled,
    InputsDispatched,
    InputsFinished,
    InputsRecalled,
    InputsReturned,
    InputsStarted,
)

EARLY_CANCELS = 1024
"""Cancels remembered for inputs that have not come. The plane sends them in order, so this many never wait."""
REMEMBERED_LEASES = 2048
"""Ended leases that are surely recognised as duplicates."""

DRAINED = "drained"
"""Reason of a cancel because the container leaves. `cancelled` comes from the plane."""
TIMED_OUT = "timeout"
"""Reason of a cancel because the input ran too long."""


class Start(Struct, frozen=True, gc=False):
    """Run this input. It has a slot."""

    dispatch: Dispatch


class Cancel(Struct, frozen=True, gc=False):
    """Interrupt the code of this input. Its slot stays taken until `finished`."""

    lease: int
    reason: str


class Exit(Struct, frozen=True, gc=False):
    """Nothing runs and nothing will: run the exit hooks and leave."""

    reason: str = ""


Action = Start | Cancel | Exit


class Session:
    """The inputs of one container.

    Example:
        session = Session(max_inputs=2)
        for action in session.receive(InputsDispatched([dispatch])):
            ...                                       # Start(dispatch)
        session.finished(dispatch.lease, Result(), run_s=0.01)
        connection.send(session.outgoing())
    """

    def __init__(self, max_inputs: int) -> None:
        self.max_inputs = max_inputs
        self.draining = False
        self._reason = ""
        self._exited = False
        self._stopping = False
        """Nothing is started any more, not even what was granted."""
        self._running: dict[int, Dispatch] = {}
        self._waiting: deque[Dispatch] = deque()
        self._cancelled: dict[int, str] = {}
        self._early: dict[int, str] = {}
        self._seen: set[int] = set()
        self._seen_before: set[int] = set()
        self._unreported: dict[int, None] = {}
        """Credited inputs that have started and of which the plane has not heard."""
        self._finished: list[Finished] = []
        self._returned: list[int] = []

    @property
    def running(self) -> int:
        """Slots taken."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Inputs that were granted and have no slot yet."""
        return len(self._waiting)

    @property
    def dirty(self) -> bool:
        """Whether `outgoing` has something to say."""
        return bool(self._finished or self._unreported or self._returned)

    @property
    def stopping(self) -> bool:
        """Whether nothing is started any more, and what runs is unwanted."""
        return self._stopping

    def reason(self, lease: int) -> str:
        """Why a running input was cancelled; empty where it was not."""
        return self._cancelled.get(lease, "")

    # ------------------------------------------------------------ what comes in

    def receive(self, message: Any) -> list[Action]:
        """Takes a message of the plane. Messages that are not about inputs are none of its business."""
        actions: list[Action] = []
        match message:
            case InputsDispatched():
                self._take(message.inputs, actions)
            case InputsCancelled():
                self._cancel(message.leases, message.reason, actions)
            case InputsRecalled():
                self._recall(set(message.leases))
            case ConcurrencyChanged():
                self.max_inputs = message.concurrency.max_inputs
                self._fill(actions)
            case ContainerDrained():
                self._drain(message, actions)
        return actions

    def finished(self, lease: int, result: Result, run_s: float = 0.0) -> list[Action]:
        """The code of this input has really ended: its slot goes to the next one that waits."""
        actions: list[Action] = []
        if self._running.pop(lease, None) is None:
            return actions
        self._unreported.pop(lease, None)
        reason = self._cancelled.pop(lease, "") if self._cancelled else ""
        if reason != DRAINED:
            self._finished.append(Finished(lease, _cancelled(reason, result) if reason else result, run_s))
        if self._waiting:
            self._fill(actions)
        elif self.draining:
            self._leave(actions)
        return actions

    def give_up(self) -> list[Action]:
        """What a drain has cancelled does not end: leaves without it. Its end will mean nothing any more."""
        actions: list[Action] = []
        if self._stopping:
            self._running.clear()
            self._leave(actions)
        return actions

    # ------------------------------------------------------------ what goes out

    def outgoing(self) -> list[Any]:
        """Everything the plane has not heard yet. The order matters: returned credits first, so that the plane does
        not give the slot of a finished input to one of them."""
        messages: list[Any] = []
        if self._returned:
            messages.append(InputsReturned(self._returned))
            self._returned = []
        if self._finished:
            messages.append(InputsFinished(self._finished, list(self._unreported)))
            self._finished = []
            self._unreported.clear()
        elif self._unreported:
            messages.append(InputsStarted(list(self._unreported)))
            self._unreported.clear()
        return messages

    # ------------------------------------------------------------ inside

    def _take(self, inputs: list[Dispatch], actions: list[Action]) -> None:
        seen, running, waiting = self._seen, self._running, self._waiting
        for dispatch in inputs:
            lease = dispatch.lease
            if lease in seen or lease in self._seen_before or lease in running:
                continue
            seen.add(lease)
            if self._early and lease in self._early:
                self._end_unstarted(lease, self._early.pop(lease))
            elif self.draining and (dispatch.credited or self._stopping):
                if dispatch.credited:
                    self._returned.append(lease)
            elif len(running) < self.max_inputs and not waiting:
                running[lease] = dispatch
                if dispatch.credited:
                    self._unreported[lease] = None
                actions.append(Start(dispatch))
            else:
                waiting.append(dispatch)
        if len(seen) >= REMEMBERED_LEASES:
            self._seen, self._seen_before = set(), seen

    def _fill(self, actions: list[Action]) -> None:
        running, waiting = self._running, self._waiting
        while waiting and len(running) < self.max_inputs:
            dispatch = waiting.popleft()
            running[dispatch.lease] = dispatch
            if dispatch.credited:
                self._unreported[dispatch.lease] = None
            actions.append(Start(dispatch))

    def _cancel(self, leases: list[int], reason: str, actions: list[Action]) -> None:
        asked = set(leases)
        for dispatch in self._waiting:
            if dispatch.lease in asked:
                self._end_unstarted(dispatch.lease, reason)
        self._waiting = deque(dispatch for dispatch in self._waiting if dispatch.lease not in asked)
        for lease in leases:
            if lease in self._running:
                if lease not in self._cancelled:
                    self._cancelled[lease] = reason
                    actions.append(Cancel(lease, reason))
            elif lease not in self._seen and lease not in self._seen_before:
                self._early[lease] = reason
                if len(self._early) > EARLY_CANCELS:
                    del self._early[next(iter(self._early))]
        if self.draining:
            self._leave(actions)

    def _end_unstarted(self, lease: int, reason: str) -> None:
        self._finished.append(Finished(lease, _cancelled(reason, Result())))

    def _recall(self, asked: set[int]) -> None:
        kept: deque[Dispatch] = deque()
        for dispatch in self._waiting:
            if dispatch.credited and dispatch.lease in asked:
                self._returned.append(dispatch.lease)
            else:
                kept.append(dispatch)
        self._waiting = kept

    def _drain(self, message: ContainerDrained, actions: list[Action]) -> None:
        self.draining = True
        self._reason = self._reason or message.reason
        self._returned += [dispatch.lease for dispatch in self._waiting if dispatch.credited]
        self._waiting = deque(dispatch for dispatch in self._waiting if not (dispatch.credited or message.cancel))
        if message.cancel:
            self._stopping = True
            for lease in self._running:
                if lease not in self._cancelled:
                    self._cancelled[lease] = DRAINED
                    actions.append(Cancel(lease, DRAINED))
        self._leave(actions)

    def _leave(self, actions: list[Action]) -> None:
        if not (self._running or self._waiting or self._exited):
            self._exited = self._stopping = True
            actions.append(Exit(self._reason))


def _cancelled(reason: str, result: Result) -> Result:
    """What became of a cancelled input. `count` stays: its values have been delivered."""
    if reason != TIMED_OUT:
        return Result(TERMINATED, count=result.count)
    return Result(TIMEOUT, error=result.error if result.status == TIMEOUT else None, count=result.count)
