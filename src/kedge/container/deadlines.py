"""What must not last for ever: an input beyond its `timeout`, and a container that is to stop.

Nothing is kept per input. A look over what runs gives the earliest deadline; an input that starts later cannot be due
before the shortest timeout of all has passed since that look. So the I/O thread looks again at whichever comes first:
inputs that end in time are never noticed here. An input whose call has brought a still shorter timeout along is
announced (`hurried`), and looked at until its code begins.

A timeout counts from the start of user code to its end, waiting for the reader of a stream included. Waiting for a
thread, for the loop, and loading the arguments does not count.

An input that goes on after it was told is reported, once: its caller hears at once that its time is over, whatever the
code does, and who keeps the grace period outside knows when that began.

A container that was told to cancel all and leave does so after CANCEL_GRACE_S, whatever its code does. The exit hooks
need the main thread: where code holds that, they are left out.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from kedge.container.output import say
from kedge.container.session import TIMED_OUT
from kedge.model.protocol import InputsCancelled, InputsOverran

if TYPE_CHECKING:
    from kedge.container.executor import Executor

PAUSE_PER_INPUT_S = 2.5e-6
"""Looks are apart by this for every input that runs, which is twenty times what one costs: where thousands end close to
their timeout, a look would be due all the time. With ten thousand inputs it makes the last to be told 25 ms late."""
REPORT_S = 1.0
"""How long code may clean up after its time is over until its caller hears that. Nearly all of it needs less, and then
the report of its end is the only one."""
CANCEL_GRACE_S = 3.0
"""How long code may clean up after it was told that the container stops."""
MAIN_PATIENCE_S = 0.5
"""How long the main thread has to leave its loop before it counts as held by user code."""


class Deadlines:
    """Belongs to the I/O thread."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._look_at = 0.0
        self._told: deque[tuple[float, list[int]]] = deque()
        """Inputs whose time is over, and when they are reported."""
        self._give_up_at: float | None = None
        self._leave_at: float | None = None

    def enforce(self, running: bool, now: float) -> float | None:
        """Does what is due; when it must be called again, None where nothing will be due."""
        due: float | None = None
        if running:
            if now >= self._look_at or self._executor.hurried:
                self._executor.hurried = False  # before the look, since it may be set again meanwhile
                self._look_at = self._end_overdue(now)
            due = self._look_at
        if self._told:
            self._report(now)
        if self._told:
            report = self._told[0][0]
            due = report if due is None else min(due, report)
        if self._executor.session.stopping and not self._executor.served:
            stop = self._stop(now)
            due = stop if due is None else min(due, stop)
        return due

    def _end_overdue(self, now: float) -> float:
        overdue: list[int] = []
        next_look = now + self._executor.runner.shortest_timeout
        jobs = self._executor.inflight.jobs()
        for job in jobs:
            if not job.reason:
                started = job.started
                deadline = (started or now) + job.timeout
                if started and deadline <= now:
                    overdue += job.overdue(started, now)
                elif deadline < next_look:
                    next_look = deadline
        if overdue:
            self._executor.receive([InputsCancelled(overdue, TIMED_OUT)])
            self._told.append((now + REPORT_S, overdue))
        return max(next_look, now + PAUSE_PER_INPUT_S * len(jobs))

    def _report(self, now: float) -> None:
        executor, late = self._executor, []
        while self._told and self._told[0][0] <= now:
            late += self._told.popleft()[1]
        late = [lease for lease in late if executor.session.reason(lease) == TIMED_OUT]
        if late:
            executor.outbox.send([InputsOverran(late)])

    def _stop(self, now: float) -> float:
        executor = self._executor
        if self._give_up_at is None:
            self._give_up_at = now + CANCEL_GRACE_S
        if now < self._give_up_at:
            return self._give_up_at
        if self._leave_at is None:
            self._leave_at = now if executor.busy else now + MAIN_PATIENCE_S
            say(f"{executor.inflight.describe()} not ended {CANCEL_GRACE_S:g} s after the container was told to stop")
            executor.give_up()
        if now >= self._leave_at:
            say("user code holds the main thread: the container leaves without its exit hooks")
            executor.die(0)
        return self._leave_at
