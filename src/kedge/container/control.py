"""What user code may ask of the container it runs in (`kedge.experimental`).

Callers are threads and tasks that may be interrupted at any instruction, so nothing here takes a lock: a wish is left
with the executor, which decides nothing more without it, and tells the plane before the next result.
"""

from __future__ import annotations

from kedge.container.executor import Executor
from kedge.model.protocol import ContainerLeaving, SlotsChanged


class Control:
    """Implements `sdk.context.ContainerControl`."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._wanted = 0

    def get_concurrency(self) -> int:
        """How many inputs may run at once now. More may still run where it was lowered."""
        most = self._executor.session.max_inputs
        return min(self._wanted or most, most)

    def set_concurrency(self, inputs: int) -> None:
        """At most so many at once from now on, and never more than `max_inputs`."""
        if inputs != self._wanted:
            self._executor.wish(SlotsChanged(inputs))
            self._wanted = inputs

    def stop_fetching_inputs(self) -> None:
        """What was granted runs to its end; then the container leaves."""
        self._executor.wish(ContainerLeaving("stop_fetching_inputs"))
