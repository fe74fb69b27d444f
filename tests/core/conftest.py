"""A plane driven by hand: messages in, commands out, and a recount of everything after each step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from kedge.core.outbox import Command
from kedge.core.plane import Plane
from kedge.model import protocol as p
from kedge.model.payload import FAILURE, SUCCESS, ErrorInfo, Payload, Result
from kedge.model.spec import AppSpec, CodeSpec, Concurrency, EnvironmentSpec, FunctionSpec

F = "fu-1-f"
"""The pool of the function `f` of the bench's app."""


def function(name: str = "f", slots: int = 1, target: int = 0, **options: Any) -> FunctionSpec:
    concurrency = Concurrency(slots, target or slots, slots > 1)
    return FunctionSpec(name=name, module="m", qualname=name, **{"concurrency": concurrency, **options})


def app(*functions: FunctionSpec, id: str = "ap-1", ephemeral: bool = True) -> AppSpec:
    environment = EnvironmentSpec(python="python", python_version="3.11")
    return AppSpec(app=id, name="a", functions=functions, code=CodeSpec(), environment=environment, ephemeral=ephemeral)


class Bench:
    """One plane, one machine, one app of the session se-1. Collects what the plane orders."""

    def __init__(self, *functions: FunctionSpec, cpu: float = 64.0, gpus: dict[str, int] | None = None) -> None:
        numbers = count(1)
        self.plane = Plane(lambda prefix: f"{prefix}-{next(numbers)}")
        self.now = 0.0
        self.commands: list[Command] = []
        """All so far."""
        self.last: list[Command] = []
        """Those of the last message."""
        self.started: list[str] = []
        """Containers in the order in which they were asked for."""
        self.leases: dict[str, dict[int, p.Dispatch]] = {}
        """What containers hold, as they see it."""
        self.results: dict[tuple[str, str, int], Result] = {}
        """By session, call and index."""
        self.send(p.NodeJoined("n1", cpu, 65536, gpus or {}))
        if functions:
            self.send(p.AppCreated(1, app(*functions)), "se-1")

    # what happens

    def send(self, message: Any, sender: str = "", after: float = 0.0) -> list[Command]:
        self.now += after
        self.last = self.plane.handle(message, self.now, sender)
        self.commands += self.last
        for address, order in self.last:
            self._note(address, order)
        self.plane.check()
        return self.last

    def _note(self, address: str, order: Any) -> None:
        if isinstance(order, p.StartContainer):
            self.started.append(order.container)
            self.leases[order.container] = {}
        elif isinstance(order, p.InputsDispatched):
            for dispatch in order.inputs:
                self.leases[address][dispatch.lease] = dispatch
        elif isinstance(order, p.OutputsDelivered):
            for output in order.outputs:
                key = address, order.call, output.index
                assert key not in self.results, f"{key} a second time"
                self.results[key] = output.result

    def wait(self, seconds: float) -> list[Command]:
        """Lets time pass, with a wake-up at every deadline on the way."""
        end = self.now + seconds
        orders: list[Command] = []
        while (due := self.plane.next_deadline()) is not None and due <= end:
            orders += self.send(p.TimePassed(), after=max(0.0, due - self.now))
        self.now = end
        return orders

    def submit(
        self, inputs: int = 1, call: str = "fc-1", pool: str = F, first: int = 0, **options: Any
    ) -> list[Command]:
        session = options.pop("session", "se-1")
        payloads = [Payload(data=b"%d" % index) for index in range(first, first + inputs)]
        return self.send(p.InputsSubmitted(call, pool, first, payloads, **options), session)

    def ready(self, *containers: str, after: float = 0.0) -> None:
        """These containers, or all that start, are ready."""
        for container in containers or [c.id for c in self.plane.containers.values() if c.state == "starting"]:
            self.send(p.ContainerReady(), container, after)
            after = 0.0

    def finish(
        self, container: str, *leases: int, status: str = SUCCESS, run_s: float = 0.1, after: float = 0.0
    ) -> list[Command]:
        """User code of these leases (all that the container holds, without any) has ended."""
        held = self.leases[container]
        error = ErrorInfo("ValueError", "boom") if status == FAILURE else None
        finished = [p.Finished(lease, Result(status, error=error), run_s) for lease in leases or list(held)]
        for item in finished:
            held.pop(item.lease, None)
        return self.send(p.InputsFinished(finished), container, after)

    def lose(self, container: str, **how: Any) -> list[Command]:
        self.leases[container].clear()
        return self.send(p.ContainerLost(container, **how))

    # what came of it

    def orders(self, kind: type, address: str | None = None) -> list[Any]:
        """Commands of one kind in answer to the last message."""
        return [order for to, order in self.last if isinstance(order, kind) and address in (None, to)]

    def drained(self) -> list[str]:
        return [address for address, order in self.last if isinstance(order, p.ContainerDrained)]

    def replies(self, request: int) -> list[p.Reply]:
        return [order for _, order in self.commands if isinstance(order, p.Reply) and order.request == request]

    def statuses(self, call: str = "fc-1", session: str = "se-1") -> dict[int, str]:
        return {index: r.status for (s, c, index), r in self.results.items() if (s, c) == (session, call)}

    def error(self, index: int = 0, call: str = "fc-1", session: str = "se-1") -> str:
        error = self.results[session, call, index].error
        assert error is not None
        return error.message

    def running(self, container: str) -> list[str]:
        """Call and index of what a container holds and what is not credited."""
        return [f"{d.call}:{d.index}" for d in self.leases[container].values() if not d.credited]

    def credited(self, container: str) -> list[int]:
        return [d.index for d in self.leases[container].values() if d.credited]


Make = Callable[..., Bench]


@pytest.fixture
def bench() -> Make:
    """Makes a bench for functions; `bench(function(...), cpu=4.0)`."""
    return Bench
