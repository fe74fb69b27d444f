"""The last resort for inputs that a container does not end: it is frozen, or their code cannot be interrupted.

A container enforces timeouts and cancels by itself. Where it has said nothing about an input for `timeout` and a grace
period, the caller is told that its time is over, and the container gets no more inputs. The others that it runs may
finish; when only such inputs are left in it, the process is killed and replaced. One look per pool is planned at a
time, at the earliest moment at which something can be overdue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.core.containers import READY, Container
from kedge.model.payload import TIMEOUT, ErrorInfo, Result
from kedge.model.spec import FunctionSpec

if TYPE_CHECKING:
    from kedge.core.calls import Input
    from kedge.core.plane import Plane
    from kedge.core.pool import Pool

OVERDUE_GRACE_S = 10.0
"""Seconds beyond the timeout: what a container needs to interrupt code, even on a machine short of everything."""


class Overdue:
    """Watches the containers of one pool."""

    def __init__(self, pool: Pool, plane: Plane) -> None:
        self._pool = pool
        self._plane = plane
        self.watching = False
        self._patience_s = longest_timeout(pool.spec) + OVERDUE_GRACE_S

    def watch(self) -> None:
        """The pool has granted an input while nothing was watched."""
        self._plan(self._plane.agenda.now + self._patience_s)

    def _plan(self, when: float) -> None:
        self.watching = True
        self._plane.agenda.at(when, self._look)

    def _look(self, now: float) -> None:
        self.watching = False
        later: list[float] = []
        for container in list(self._pool.fleet.containers.values()):
            # The same sum as in what is planned: that moment must be seen as due when it comes, despite rounding.
            leases = [input for input in container.leases.values() if not input.credited]
            late = [input for input in leases if input.granted_at + self._patience_s <= now]
            later += [due for input in leases if (due := input.granted_at + self._patience_s) > now]
            if late:
                self._end(container, late)
        if later:
            self._plan(min(later))

    def _end(self, container: Container, late: list[Input]) -> None:
        self._pool.cancel([input for input in late if not input.closed], overdue_result(self._pool.spec), "timeout")
        if container.state == READY:
            self._pool.fleet.quarantine(container)
        self._pool.bury(container)
        self._plane.touch(self._pool)


def longest_timeout(spec: FunctionSpec) -> float:
    return max([spec.timeout, *(method.timeout for method in spec.methods if method.timeout is not None)])


def overdue_result(spec: FunctionSpec) -> Result:
    text = (
        f"the input ran longer than timeout={longest_timeout(spec):g} s and could not be interrupted: its container is "
        "frozen, or the code waits outside of Python; the container is replaced"
    )
    return Result(TIMEOUT, error=ErrorInfo("FunctionTimeoutError", text))
