"""What the pure core costs: per input at 10, 1,000 and 10,000 containers, and per queued input in memory."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from collections import deque

from benchmarks.report import Report, Row
from kedge.core.plane import Plane
from kedge.model import protocol as p
from kedge.model.payload import Payload, Result
from kedge.model.spec import AppSpec, AutoscalerSettings, CodeSpec, Concurrency, EnvironmentSpec, FunctionSpec

BATCH = 100
ROUNDS = 1000
POOL = "fu-1-f"


def plane_with(containers: int, concurrency: Concurrency) -> Plane:
    """A plane whose one pool has so many ready containers."""
    count = itertools.count()
    plane = Plane(lambda prefix: f"{prefix}-{next(count)}")
    plane.handle(p.NodeJoined("node", 1e9, 10**9), 0.0)
    settings = AutoscalerSettings(min_containers=containers, max_containers=containers)
    function = FunctionSpec(name="f", module="m", qualname="f", concurrency=concurrency, autoscaler=settings)
    environment = EnvironmentSpec(python="", python_version="")
    app = AppSpec(app="ap-1", name="app", functions=(function,), code=CodeSpec(), environment=environment)
    plane.handle(p.AppCreated(1, app), 0.0, "se-1")
    for container in list(plane.containers):
        plane.handle(p.ContainerReady(), 0.1, container)
    return plane


def cost_per_input(containers: int, concurrency: Concurrency) -> float:
    """Microseconds of `Plane.handle` per input: submitted, dispatched, finished, delivered, in batches of 100."""
    plane = plane_with(containers, concurrency)
    payloads = [Payload(data=b"x" * 30)] * BATCH
    result = Result(payload=Payload(data=b"y" * 30))
    granted: deque[tuple[str, list[p.Finished]]] = deque()
    now, done, spent = 1.0, 0, 0.0
    for call in range(ROUNDS):
        now += 0.001
        messages: list[tuple[str, object]] = [("se-1", p.InputsSubmitted(f"fc-{call}", POOL, 0, payloads))]
        while len(granted) > 5:
            container, finished = granted.popleft()
            done += len(finished)
            messages.append((container, p.InputsFinished(finished)))
        for sender, message in messages:
            start = time.perf_counter()
            commands = plane.handle(message, now, sender)
            spent += time.perf_counter() - start
            granted += [
                (address, [p.Finished(d.lease, result, 0.01) for d in order.inputs])
                for address, order in commands
                if type(order) is p.InputsDispatched
            ]
    return spent / done * 1e6


def bytes_per_queued_input(inputs: int = 100_000) -> float:
    plane = plane_with(0, Concurrency(1, 1))
    payload = Payload(data=b"x" * 30)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for first in range(0, inputs, 1000):
        plane.handle(p.InputsSubmitted("fc-1", POOL, first, [payload] * 1000), 1.0, "se-1")
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / inputs


def run(report: Report) -> None:
    costs = {n: cost_per_input(n, Concurrency(100, 80, True)) for n in (10, 1_000, 10_000)}
    for containers, cost in costs.items():
        flat = f"{cost / costs[10]:.2f} × the cost at 10"
        report.add(
            Row(f"core, per input, {containers:,} containers", f"{cost:.1f} µs", "", flat, "≤ 8 µs, flat", cost <= 8)
        )
    size = bytes_per_queued_input()
    report.add(Row("queued input, memory beside its payload", f"{size:.0f} B", "", "", "≤ 1 KB", size <= 1024))
