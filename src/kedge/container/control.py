"""What user code may ask of the container it runs in (`kedge.experimental`), and what the SDK tells it.

Callers are threads and tasks that may be interrupted at any instruction, so nothing here takes a lock: a wish is left
with the executor, which decides nothing more without it, and tells the plane before the next result.
"""

from __future__ import annotations

import asyncio

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

    def block_loop(self, blocked: bool) -> None:
        """A call that blocks the event loop begins, or has ended. Meanwhile nothing new comes here: it could not begin,
        and it may be the very input that the call waits for."""
        executor = self._executor
        if executor.session.max_inputs > 1 and executor.loop is asyncio.get_running_loop():
            executor.wish(SlotsChanged(max(1, len(executor.inflight)) if blocked else self._wanted))
