"""The plane's answers to sessions that ask: for results of durable calls, for numbers, for other settings.

What the plane does not know (any more) the store does: such a question is passed on to it, and it answers the session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from kedge.core.calls import Waiter
from kedge.core.outbox import STORE
from kedge.model import protocol as p
from kedge.model.payload import ErrorInfo
from kedge.model.spec import Concurrency

if TYPE_CHECKING:
    from kedge.core.plane import Plane


class Desk:
    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def outputs_requested(self, message: p.OutputsRequested, now: float, sender: str) -> None:
        call = self._plane.calls.by_id.get(message.call)
        if call is None:
            wanted = p.OutputsWanted(sender, message.call, None, message.request, message.start, message.end)
            self._plane.outbox.send(STORE, wanted)
            return
        waiter = Waiter(sender, message.start, message.end, message.request)
        call.waiters.append(waiter)
        there = [index for index in call.done if waiter.wants(index)]
        if there:
            self._plane.outbox.send(STORE, p.OutputsWanted(sender, call.id, there, message.request))

    def outputs_forgotten(self, message: p.OutputsForgotten, now: float, sender: str) -> None:
        call = self._plane.calls.by_id.get(message.call)
        if call is not None:
            call.waiters = [
                w for w in call.waiters if w.session != sender or (message.request and w.request != message.request)
            ]

    def call_requested(self, message: p.CallRequested, now: float, sender: str) -> None:
        call = self._plane.calls.by_id.get(message.call)
        if call is None:
            self._plane.outbox.send(STORE, p.CallWanted(sender, message.call, message.request))
            return
        inputs = dict(call.done)
        for index, input in call.open.items():
            inputs[index] = "running" if input.container is not None and not input.credited else "queued"
        value = {
            "inputs": call.total if call.total is not None else call.submitted,
            "done": len(call.done),
            "function": call.pool.spec.name,
            "method": call.method,
            "parent": call.parent,
            "status": [[index, inputs[index]] for index in sorted(inputs)],
        }
        self._plane.outbox.send(sender, p.Reply(message.request, value))

    def statistics_requested(self, message: p.StatisticsRequested, now: float, sender: str) -> None:
        if message.pool:
            pool = self._plane.registry.find(message.pool)
            if isinstance(pool, ErrorInfo):
                self._plane.outbox.send(sender, p.Reply(message.request, None, pool))
                return
            value: Any = pool.statistics()
        elif message.app:
            current = self._plane.deployments.current(message.app)
            value = [
                pool.statistics()
                for pool in self._plane.pools.values()
                if pool.app == message.app or (current is not None and pool.app == current.spec.app)
            ]
        else:
            value = self._plane.statistics()
        self._plane.outbox.send(sender, p.Reply(message.request, value))

    def autoscaler_updated(self, message: p.AutoscalerUpdated, now: float, sender: str) -> None:
        pool = self._plane.registry.find(message.pool)
        if isinstance(pool, ErrorInfo):
            self._plane.outbox.send(sender, p.Reply(message.request, None, pool))
            return
        names = ("min_containers", "max_containers", "buffer_containers", "scaledown_window")
        changes = {name: getattr(message, name) for name in names if getattr(message, name) is not None}
        settings = replace(pool.fleet.settings, **changes)
        if settings.max_containers is not None and settings.min_containers > settings.max_containers:
            text = f"min_containers={settings.min_containers} is above max_containers={settings.max_containers}"
            self._plane.outbox.send(sender, p.Reply(message.request, None, ErrorInfo("InvalidError", text)))
            return
        pool.fleet.change_settings(settings, now)
        self._plane.touch(pool)
        self._plane.outbox.send(sender, p.Reply(message.request, {name: getattr(settings, name) for name in names}))

    def concurrency_updated(self, message: p.ConcurrencyUpdated, now: float, sender: str) -> None:
        pool = self._plane.registry.find(message.pool)
        if isinstance(pool, ErrorInfo):
            self._plane.outbox.send(sender, p.Reply(message.request, None, pool))
            return
        most = pool.maximum if message.max_inputs is None else message.max_inputs
        target = message.target_inputs
        if target is None:  # as declared: without a target of its own, it is the maximum
            target = most if pool.target == pool.maximum else min(pool.target, most)
        if target > most:
            text = f"target_inputs={target} is above max_inputs={most}; lower the one or raise the other"
            self._plane.outbox.send(sender, p.Reply(message.request, None, ErrorInfo("InvalidError", text)))
            return
        pool.slots.change_all(Concurrency(most, target, declared=True))
        self._plane.touch(pool)
        self._plane.outbox.send(sender, p.Reply(message.request, {"max_inputs": most, "target_inputs": target}))
