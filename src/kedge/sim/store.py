"""What must survive the server: inputs and results of durable calls, where a crash of the plane does not touch them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kedge.model import protocol as p
from kedge.model.payload import TERMINATED, ErrorInfo, Payload, Result
from kedge.model.spec import AppSpec

if TYPE_CHECKING:
    from kedge.sim.world import World


class Entry:
    """One durable call."""

    __slots__ = ("done", "inputs", "limits", "method", "pool", "total")

    def __init__(self, message: p.InputsSubmitted) -> None:
        self.pool = message.pool
        self.method = message.method
        self.limits = message.timeout, message.queue_timeout
        self.total = -1
        self.inputs: dict[int, Payload] = {}
        self.done: dict[int, Result] = {}

    def restored(self, id: str) -> p.CallRestored:
        done = [(index, result.status) for index, result in self.done.items()]
        return p.CallRestored(id, self.pool, self.method, self.total, done)


class SimStore:
    def __init__(self, world: World) -> None:
        self.calls: dict[str, Entry] = {}
        self.current: dict[str, p.DeploymentChanged] = {}
        """What is deployed, by the id of the deployment."""
        self.apps: dict[str, AppSpec] = {}
        """Versions of deployed apps that have been current."""
        self._world = world

    def journal(self, message: p.InputsSubmitted) -> Iterator[p.CallRestored]:
        """Before the plane sees them, the inputs are on disk. Gives what the plane must hear first."""
        entry = self.calls.get(message.call)
        if entry is None:
            entry = self.calls[message.call] = Entry(message)
        entry.total = max(entry.total, message.total)
        for index, payload in enumerate(message.payloads, message.first):
            entry.inputs.setdefault(index, payload)
        if entry.done and self._world.up and message.call not in self._world.plane.calls.by_id:
            yield entry.restored(message.call)

    def is_over(self, call: str) -> bool:
        entry = self.calls.get(call)
        return entry is not None and 0 <= entry.total <= len(entry.done)

    def take(self, message: Any) -> None:
        """A command of the plane."""
        if isinstance(message, p.OutputsRecorded):
            self._record(message)
        elif isinstance(message, p.OutputsWanted):
            self._world.after(self._world.latency(), self._answer, message)
        elif isinstance(message, p.DeploymentChanged):
            self.current[message.deployment] = message
            if message.app:
                self.apps[message.app] = self._world.plane.apps[message.app].spec

    def _record(self, message: p.OutputsRecorded) -> None:
        checks = self._world.checks
        entry = self.calls.get(message.call)
        if entry is None:
            checks.fail("store", f"results of a call that was never journaled: {message}")
        for output in message.outputs:
            if output.index in entry.done and output.result.status == TERMINATED:
                continue  # sent again to an app that has stopped meanwhile: the first result counts
            if output.index in entry.done:
                checks.fail("one result", f"{message.call}:{output.index} was recorded twice")
            if output.index not in entry.inputs:
                checks.fail("submitted", f"a result for {message.call}:{output.index}, never submitted")
            entry.done[output.index] = output.result

    def _answer(self, wanted: p.OutputsWanted) -> None:
        """What is recorded; where the plane does not know the call, also that nothing more will come."""
        peer = self._world.peers.get(wanted.session)
        if peer is None:
            return
        entry = self.calls.get(wanted.call)
        known = {} if entry is None else entry.done
        indices = wanted.indices
        if indices is None:
            indices = [i for i in sorted(known) if wanted.start <= i and (wanted.end is None or i < wanted.end)]
        missing = [index for index in indices if index not in known]
        if missing:
            self._world.checks.fail("store", f"{wanted.call}: results are wanted that were not recorded: {missing}")
        if indices:
            outputs = [p.Output(index, known[index]) for index in indices]
            peer(p.OutputsDelivered(wanted.call, outputs, wanted.request))
        if wanted.indices is None and not self.is_over(wanted.call):
            text = f"nothing more is known of the call {wanted.call}"
            peer(p.CallRefused(wanted.call, ErrorInfo("NotFoundError", text), wanted.request))

    def restore(self) -> Iterator[p.CallRestored | p.InputsSubmitted]:
        for id, entry in self.calls.items():
            if self.is_over(id):
                continue
            yield entry.restored(id)
            waiting = {index: payload for index, payload in entry.inputs.items() if index not in entry.done}
            for first, payloads in runs(waiting):
                yield p.InputsSubmitted(
                    id, entry.pool, first, payloads, entry.method, True, "", False, entry.total, *entry.limits
                )


def runs(payloads: dict[int, Payload]) -> Iterator[tuple[int, list[Payload]]]:
    """Consecutive indices together, as one message carries them."""
    first, run = 0, list[Payload]()
    for index in sorted(payloads):
        if run and index != first + len(run):
            yield first, run
            run = []
        if not run:
            first = index
        run.append(payloads[index])
    if run:
        yield first, run
