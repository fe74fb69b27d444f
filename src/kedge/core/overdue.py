"""Inputs whose code does not end: it ignores that it was told to, it cannot be interrupted, or its container is frozen.

A container enforces timeouts and cancels by itself. Code that goes on for `cancellation_grace` after it was told holds
its slot for good, as far as anybody can tell. And where a container has said nothing about an input for `timeout` and
some seconds more, it is frozen, and the caller is told that its time is over.

Either way the container drains: it gets no more inputs, the others that it runs may finish, and when only such code is
left in it, it is dismissed and replaced. One look per pool is planned at a time, at the earliest moment at which
something can be due, and never later than an input that is granted meanwhile may be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.core.calls import NEVER, Batch, Call, Input
from kedge.core.containers import READY, Container
from kedge.model.payload import TIMEOUT, ErrorInfo, Result
from kedge.model.protocol import Notice

if TYPE_CHECKING:
    from kedge.core.plane import Plane
    from kedge.core.pool import Pool

OVERDUE_GRACE_S = 10.0
"""Seconds beyond the timeout: what a container needs to interrupt code, even on a machine short of everything."""
LOOK_S = 0.01
"""Looks are apart by this at least: how late code may be found that does not end."""
LOOK_PER_INPUT_S = 2e-5
"""And by this for every slot that is taken, which is some ten times what looking at one costs."""


class Overdue:
    """Watches the containers of one pool."""

    def __init__(self, pool: Pool, plane: Plane) -> None:
        self._pool = pool
        self._plane = plane
        self.look_at: float | None = None
        """When containers are looked at next; None while nothing runs."""
        self._timeouts = {m.name: m.timeout for m in pool.spec.methods if m.timeout is not None}
        self._shortest_s = min([pool.spec.timeout, *self._timeouts.values()])
        self._grace_s = pool.spec.cancellation_grace

    def granted(self, input: Input) -> None:
        """An input has got its slot."""
        if self.look_at is None or input.call.timeout:
            self._plan(min(self._due(input), input.granted_at + self._shortest_s + OVERDUE_GRACE_S))

    def told(self, now: float) -> None:
        """Code was told to end."""
        self._plan(now + self._grace_s)

    def overran(self, container: Container, leases: list[int], now: float) -> None:
        """The container says that the time of these inputs is over, and that their code goes on although it was told to
        end. Who waits for them hears of it; another attempt waits until the code has really ended."""
        pool = self._pool
        for lease in leases:
            input = container.leases.get(lease)
            if input is None:
                self._plane.drop("overran a lease that is over")
            elif not input.closed and not input.overran:
                input.told_at = now
                if input.attempts < pool.spec.retries.max_retries and not input.call.stream:
                    input.overran = True
                else:
                    pool.conclude(input, self.overran_result(input.call), now)
                self.told(now)

    def _due(self, input: Input) -> float:
        if input.told_at != NEVER:
            return input.told_at + self._grace_s
        return input.granted_at + self._timeout_of(input.call) + OVERDUE_GRACE_S

    def _timeout_of(self, call: Call) -> float:
        """What its container enforces."""
        return call.timeout or self._timeouts.get(call.method) or self._pool.spec.timeout

    def _plan(self, when: float) -> None:
        if self.look_at is None or when < self.look_at:
            self.look_at = when
            self._plane.agenda.at(when, self._look)

    def _look(self, now: float) -> None:
        if self.look_at is None or now < self.look_at:
            return  # a later look, planned before an earlier one was
        self.look_at = None
        coming: float | None = None
        for container in list(self._pool.fleet.containers.values()):
            late: list[Input] = []
            for input, due in self._dues(container):
                if due <= now:
                    late.append(input)
                elif coming is None or due < coming:
                    coming = due
            if late:
                self._end(container, late)
        if coming is not None:
            # What is granted from here on plans nothing, unless its call has a timeout of its own.
            coming = min(coming, now + self._shortest_s + OVERDUE_GRACE_S)
            self._plan(max(coming, now + LOOK_S, now + LOOK_PER_INPUT_S * self._pool.running))

    def _dues(self, container: Container) -> list[tuple[Input, float]]:
        """When each input that it runs is overdue: by the same sum as what is planned, so that the moment is seen as
        due when it comes. Members of a batch share their code, which may go on for as long as one of them may."""
        dues = [(input, self._due(input)) for input in container.leases.values() if not input.credited]
        if not container.shared:
            return dues
        last: dict[Batch | None, float] = {}
        for input, due in dues:
            last[input.batch] = max(due, last.get(input.batch, 0.0))
        return [(input, last[input.batch]) for input, _ in dues]

    def _end(self, container: Container, late: list[Input]) -> None:
        pool = self._pool
        silent: dict[float, list[Input]] = {}
        for input in late:
            if not (input.closed or input.overran):
                silent.setdefault(self._timeout_of(input.call), []).append(input)
        for timeout, inputs in silent.items():
            pool.cancel(inputs, frozen_result(timeout), "timeout")
        if container.state == READY and not container.quarantined:
            self._say(container, len(late), len(late) - sum(map(len, silent.values())))
        if not container.quarantined:
            pool.fleet.quarantine(container)
        pool.bury(container)
        self._plane.touch(pool)

    def _say(self, container: Container, stuck: int, told: int) -> None:
        app = self._plane.apps[self._pool.app]
        if not app.session:
            return
        others = container.running - stuck
        its = "its" if stuck == 1 else "their"
        since = f"{self._grace_s:g} s after {its} code was told to" if told else f"long after {its} time was over"
        text = f"{stuck} input{'s' * (stuck != 1)} of {self._pool.spec.name} did not end {since}: {container.id} "
        text += "gets nothing new and is replaced"
        text += f" when its other inputs have ended ({others})" if others else ""
        self._plane.outbox.send(app.session, Notice(self._pool.app, text, "warning"))

    def overran_result(self, call: Call) -> Result:
        """What the caller of an input hears whose container was in time, and whose code goes on."""
        timeout = self._timeout_of(call)
        text = f"the input ran longer than timeout={timeout:.10g} s, and its code has not ended since it was told to"
        return Result(TIMEOUT, error=ErrorInfo("FunctionTimeoutError", text))


def frozen_result(timeout: float) -> Result:
    """What the caller of an input hears whose container has not said anything in time."""
    text = (
        f"the input ran longer than timeout={timeout:g} s and could not be interrupted: its container is frozen, or "
        "the code waits outside of Python; the container is replaced"
    )
    return Result(TIMEOUT, error=ErrorInfo("FunctionTimeoutError", text))
