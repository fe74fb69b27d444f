"""Inputs whose code does not end: it ignores that it was told to, it cannot be interrupted, or its container is frozen.

A container enforces timeouts and cancels by itself. Code that goes on for `cancellation_grace` after it was told holds
its slot for good, as far as anybody can tell. And where a container has said nothing about an input for `timeout` and
some seconds more, it is frozen, and the caller is told that its time is over.

Either way the container drains: it gets no more inputs, the others that it runs may finish, and when only such code is
left in it, it is dismissed and replaced. One look per pool is planned at a time, at the earliest moment at which
something can be due.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.core.calls import NEVER, Batch, Call, Input
from kedge.core.containers import READY, Container
from kedge.model.payload import TIMEOUT, ErrorInfo, Result
from kedge.model.protocol import Notice
from kedge.model.spec import FunctionSpec

if TYPE_CHECKING:
    from kedge.core.plane import Plane
    from kedge.core.pool import Pool

OVERDUE_GRACE_S = 10.0
"""Seconds beyond the timeout: what a container needs to interrupt code, even on a machine short of everything."""


class Overdue:
    """Watches the containers of one pool."""

    def __init__(self, pool: Pool, plane: Plane) -> None:
        self._pool = pool
        self._plane = plane
        self._look_at: float | None = None
        self._timeout_s = longest_timeout(pool.spec)
        self._grace_s = pool.spec.cancellation_grace

    @property
    def watching(self) -> bool:
        return self._look_at is not None

    def granted(self, input: Input) -> None:
        """An input has got its slot."""
        if self._look_at is None or input.call.timeout:
            self._plan(self._due(input))

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
                    pool.conclude(input, overran_result(pool.spec, input.call), now)
                self.told(now)

    def _due(self, input: Input) -> float:
        if input.told_at != NEVER:
            return input.told_at + self._grace_s
        return input.granted_at + (input.call.timeout or self._timeout_s) + OVERDUE_GRACE_S

    def _plan(self, when: float) -> None:
        if self._look_at is None or when < self._look_at:
            self._look_at = when
            self._plane.agenda.at(when, self._look)

    def _look(self, now: float) -> None:
        if self._look_at is None or now < self._look_at:
            return  # a later look, planned before an earlier one was
        self._look_at = None
        coming: float | None = None
        for container in list(self._pool.fleet.containers.values()):
            running = [input for input in container.leases.values() if not input.credited]
            dues: dict[Input | Batch, float] = {}
            for input in running:
                # The same sum as in what is planned: that moment must be seen as due when it comes. Members of a batch
                # share their code, which may go on for as long as one of them may.
                slot = input.batch or input
                dues[slot] = max(self._due(input), dues.get(slot, 0.0))
            late = [input for input in running if dues[input.batch or input] <= now]
            if late:
                self._end(container, late)
            for due in dues.values():
                if due > now and (coming is None or due < coming):
                    coming = due
        if coming is not None:
            self._plan(coming)

    def _end(self, container: Container, late: list[Input]) -> None:
        pool = self._pool
        silent = [input for input in late if not (input.closed or input.overran)]
        if silent:
            pool.cancel(silent, self.result(silent[0].call), "timeout")
        if container.state == READY and not container.quarantined:
            self._say(container, len(late), len(late) - len(silent))
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

    def result(self, call: Call) -> Result:
        """What the caller of an input hears whose container has not said anything in time."""
        timeout = call.timeout or self._timeout_s
        text = (
            f"the input ran longer than timeout={timeout:g} s and could not be interrupted: its container is "
            "frozen, or the code waits outside of Python; the container is replaced"
        )
        return Result(TIMEOUT, error=ErrorInfo("FunctionTimeoutError", text))


def overran_result(spec: FunctionSpec, call: Call) -> Result:
    method = next((m for m in spec.methods if m.name == call.method), None)
    timeout = call.timeout or (method.timeout if method and method.timeout else spec.timeout)
    text = f"the input ran longer than timeout={timeout:.10g} s, and its code has not ended since it was told to"
    return Result(TIMEOUT, error=ErrorInfo("FunctionTimeoutError", text))


def longest_timeout(spec: FunctionSpec) -> float:
    return max([spec.timeout, *(method.timeout for method in spec.methods if method.timeout is not None)])
