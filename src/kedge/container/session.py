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
* The container's own code may take fewer inputs than `max_inputs`, and may want to leave: `receive` takes its
  `SlotsChanged` and `ContainerLeaving` like messages of the plane, which hears of them next. Fewer slots interrupt
  nothing and give back the credited inputs, and what comes for a slot that is no more; so does the wish to leave,
  after which credited inputs do not start.
* A batch is one slot and one start. It starts when all its members have come, without those that were cancelled
  meanwhile. A member of a running batch that is cancelled loses its result, and no other sees anything of it: the code
  is interrupted when no member wants it any more.

`receive` and `finished` return what to do now; `outgoing` drains what to send. Neither blocks, reads a clock or locks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, final

from msgspec import Struct

from kedge.model.payload import TERMINATED, TIMEOUT, Result
from kedge.model.protocol import (
    ConcurrencyChanged,
    ContainerDrained,
    ContainerLeaving,
    Dispatch,
    Finished,
    InputsCancelled,
    InputsDispatched,
    InputsFinished,
    InputsRecalled,
    InputsReturned,
    InputsStarted,
    SlotsChanged,
)
from kedge.model.web import WEB

EARLY_CANCELS = 1024
"""Cancels remembered for inputs that have not come. The plane sends them in order, so this many never wait."""
REMEMBERED_LEASES = 2048
"""Ended leases that are surely recognised as duplicates."""

DRAINED = "drained"
"""Reason of a cancel because the container leaves. `cancelled` comes from the plane."""
TIMED_OUT = "timeout"
"""Reason of a cancel because the input ran too long."""


class Start(Struct, frozen=True, gc=False):
    """Run this input, or this batch. It has a slot."""

    dispatch: Dispatch
    """For a batch: its first member, by whose lease it goes from here on."""
    members: tuple[Dispatch, ...] = ()
    """All members of a batch; empty for an input of its own."""


class Cancel(Struct, frozen=True, gc=False):
    """Interrupt the code of this input or batch. Its slot stays taken until `finished`."""

    lease: int
    reason: str


class Exit(Struct, frozen=True, gc=False):
    """Nothing runs and nothing will: run the exit hooks and leave."""

    reason: str = ""


Action = Start | Cancel | Exit


@final
class Batch:
    """Inputs that share a slot."""

    __slots__ = ("credited", "members", "missing", "unwanted")

    def __init__(self, first: Dispatch) -> None:
        self.credited = first.credited
        """The same for all its members."""
        self.members: list[Dispatch] = []
        """Those that the code gets: nothing is left out once it has started."""
        self.missing = first.members
        """How many have not come."""
        self.unwanted = 0
        """Members whose result nobody wants any more, since it started."""


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
        self.slots = max_inputs
        """How many may run at once now: `max_inputs`, or fewer where the container's own code wants that."""
        self.draining = False
        self._wanted = 0
        """What its own code wants; 0: as many as there may be."""
        self._slots_untold = False
        self._leaving: ContainerLeaving | None = None
        """Its own code wants to leave, which the plane has not heard."""
        self._closing = False
        """It drains, or its own code wants to leave: nothing starts any more but what was granted for certain."""
        self._reason = ""
        self._exited = False
        self._stopping = False
        """Nothing is started any more, not even what was granted."""
        self._running: dict[int, Dispatch | Batch] = {}
        """By its lease, or that of its first member: one for each slot that is taken."""
        self._waiting: deque[Dispatch | Batch] = deque()
        self._collecting: dict[int, Batch] = {}
        """By number: batches of which some members have not come."""
        self._members: dict[int, Batch] = {}
        """Running batches by the lease of each of their members."""
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
        """Inputs and batches that were granted and have no slot yet."""
        return len(self._waiting)

    @property
    def dirty(self) -> bool:
        """Whether `outgoing` has something to say."""
        return bool(self._finished or self._unreported or self._returned or self._slots_untold or self._leaving)

    @property
    def stopping(self) -> bool:
        """Whether nothing is started any more, and what runs is unwanted."""
        return self._stopping

    def reason(self, lease: int) -> str:
        """Why a running input, or this member of a running batch, was cancelled; empty where it was not."""
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
                self._slots_untold = self._wanted > 0
                self._change_slots(actions)
            case SlotsChanged():
                self._wanted = message.inputs
                self._slots_untold = True
                if 0 < message.inputs < self.slots:
                    self._give_back()
                self._change_slots(actions)
            case ContainerLeaving():
                self._want_to_leave(message)
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

    def batch_finished(self, lease: int, results: Sequence[Result], run_s: float = 0.0) -> list[Action]:
        """The same for a batch: `lease` of its first member, a result for each in the order in which they started."""
        actions: list[Action] = []
        batch = self._members.get(lease)
        if batch is None:
            return actions
        del self._running[lease]
        for member, result in zip(batch.members, results, strict=True):
            own = member.lease
            del self._members[own]
            self._unreported.pop(own, None)
            reason = self._cancelled.pop(own, "")
            if reason != DRAINED:
                self._finished.append(Finished(own, _cancelled(reason, result) if reason else result, run_s))
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
            self._members.clear()
            self._leave(actions)
        return actions

    # ------------------------------------------------------------ what goes out

    def outgoing(self) -> list[Any]:
        """Everything the plane has not heard yet. The order matters: what the container takes, and returned credits
        first, so that the plane does not give the slot of a finished input to one of them or to another one."""
        messages: list[Any] = []
        if self._leaving is not None:
            messages.append(self._leaving)
            self._leaving = None
        if self._slots_untold:
            self._slots_untold = False
            messages.append(SlotsChanged(self.slots))
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
            if dispatch.batch:
                self._collect(dispatch, actions)
            elif self._early and lease in self._early:
                self._end_unstarted(lease, self._early.pop(lease))
            elif self._closing and (dispatch.credited or self._stopping):
                if dispatch.credited:
                    self._returned.append(lease)
            elif not waiting and (
                len(running) < self.slots or (dispatch.payload.format == WEB and len(running) < self.max_inputs)
            ):
                running[lease] = dispatch
                if dispatch.credited:
                    self._unreported[lease] = None
                actions.append(Start(dispatch))
            elif self.slots < self.max_inputs:
                self._returned.append(lease)  # granted before the plane heard that there are fewer slots
            else:
                waiting.append(dispatch)
        if len(seen) >= REMEMBERED_LEASES:
            self._seen, self._seen_before = set(), seen

    def _collect(self, dispatch: Dispatch, actions: list[Action]) -> None:
        lease, number = dispatch.lease, dispatch.batch
        if lease in self._members:
            return
        early = self._early.pop(lease, "")
        if early:
            self._end_unstarted(lease, early)
        if self._closing and (dispatch.credited or self._stopping):
            if dispatch.credited and not early:
                self._returned.append(lease)
            return  # and so will the others
        batch = self._collecting.pop(number, None) or Batch(dispatch)
        if not early:
            batch.members.append(dispatch)
        batch.missing -= 1
        if batch.missing > 0:
            self._collecting[number] = batch
        elif batch.members and len(self._running) >= self.slots < self.max_inputs:
            self._returned += [member.lease for member in batch.members]
        elif batch.members:
            self._waiting.append(batch)
            self._fill(actions)
        elif self.draining:
            self._leave(actions)

    def _fill(self, actions: list[Action]) -> None:
        running, waiting = self._running, self._waiting
        while waiting and len(running) < self.slots:
            next_one = waiting.popleft()
            if type(next_one) is Batch:
                self._start_batch(next_one, actions)
                continue
            running[next_one.lease] = next_one
            if next_one.credited:
                self._unreported[next_one.lease] = None
            actions.append(Start(next_one))

    def _start_batch(self, batch: Batch, actions: list[Action]) -> None:
        first = batch.members[0]
        self._running[first.lease] = batch
        for member in batch.members:
            self._members[member.lease] = batch
            if member.credited:
                self._unreported[member.lease] = None
        actions.append(Start(first, tuple(batch.members)))

    def _cancel(self, leases: list[int], reason: str, actions: list[Action]) -> None:
        asked = set(leases)
        for lease in self._withdraw(lambda dispatch: dispatch.lease in asked):
            self._end_unstarted(lease, reason)
        for lease in leases:
            if lease in self._running or lease in self._members:
                self._interrupt(lease, reason, actions)
            elif lease not in self._seen and lease not in self._seen_before:
                self._early[lease] = reason
                if len(self._early) > EARLY_CANCELS:
                    del self._early[next(iter(self._early))]
        if self.draining:
            self._leave(actions)

    def _interrupt(self, lease: int, reason: str, actions: list[Action]) -> None:
        if lease in self._cancelled:
            return
        self._cancelled[lease] = reason
        batch = self._members.get(lease)
        if batch is None:
            actions.append(Cancel(lease, reason))
        else:
            batch.unwanted += 1
            if batch.unwanted == len(batch.members):
                actions.append(Cancel(batch.members[0].lease, reason))

    def _end_unstarted(self, lease: int, reason: str) -> None:
        self._finished.append(Finished(lease, _cancelled(reason, Result())))

    def _recall(self, asked: set[int]) -> None:
        self._returned += self._withdraw(lambda dispatch: dispatch.credited and dispatch.lease in asked)

    def _withdraw(self, unwanted: Callable[[Dispatch], bool]) -> list[int]:
        """Takes out of all that has not started the inputs that are unwanted: their leases."""
        leases: list[int] = []
        kept: deque[Dispatch | Batch] = deque()
        for one in [*self._waiting, *self._collecting.values()]:
            if isinstance(one, Batch):
                leases += [member.lease for member in one.members if unwanted(member)]
                one.members = [member for member in one.members if not unwanted(member)]
                if one.members and not one.missing:
                    kept.append(one)
            elif unwanted(one):
                leases.append(one.lease)
            else:
                kept.append(one)
        self._waiting = kept
        return leases

    def _give_back(self) -> None:
        """Credited inputs that have not started are for other containers."""
        self._returned += self._withdraw(lambda dispatch: dispatch.credited)
        if self._closing:  # and so goes what is still to come of their batches
            self._collecting = {number: batch for number, batch in self._collecting.items() if not batch.credited}

    def _change_slots(self, actions: list[Action]) -> None:
        self.slots = min(self.max_inputs, self._wanted or self.max_inputs)
        self._fill(actions)

    def _want_to_leave(self, message: ContainerLeaving) -> None:
        if not self._closing:
            self._closing = True
            self._leaving = message
            self._give_back()

    def _drain(self, message: ContainerDrained, actions: list[Action]) -> None:
        self.draining = self._closing = True
        self._reason = self._reason or message.reason
        self._give_back()
        if message.cancel:
            self._stopping = True
            self._waiting.clear()
            self._collecting.clear()
            for lease in [*self._running, *self._members]:
                self._interrupt(lease, DRAINED, actions)
        self._leave(actions)

    def _leave(self, actions: list[Action]) -> None:
        if not (self._running or self._waiting or self._collecting or self._exited):
            self._exited = self._stopping = True
            actions.append(Exit(self._reason))


def _cancelled(reason: str, result: Result) -> Result:
    """What became of a cancelled input. `count` stays: its values have been delivered."""
    if reason != TIMED_OUT:
        return Result(TERMINATED, count=result.count)
    return Result(TIMEOUT, error=result.error if result.status == TIMEOUT else None, count=result.count)
