"""Recounts what the plane counts as it goes: every index, every sum. For the simulator, tests, and suspicion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.core.containers import DRAINING, READY

if TYPE_CHECKING:
    from kedge.core.calls import Batch, Call
    from kedge.core.containers import Container
    from kedge.core.plane import Plane
    from kedge.core.pool import Pool


def audit(plane: Plane) -> None:
    """AssertionError names what is wrong."""
    plane.calls.check()
    plane.registry.check()
    plane.deployments.check()
    plane.routes.check()
    for pool in plane.pools.values():
        _pool(pool)
    assert sum(len(pool.fleet.containers) for pool in plane.pools.values()) == len(plane.containers)
    assert [c for c in plane.containers.values() if c.state == DRAINING and c not in plane.rooms.leaving] == []
    assert all(c.state == DRAINING for c in plane.rooms.leaving)
    _machines(plane)
    _inputs(plane)


def _pool(pool: Pool) -> None:
    """Slots, credits, and who the router sees."""
    containers = pool.fleet.containers.values()
    assert pool.running == sum(c.running for c in containers)
    assert pool.shared == sum(c.shared for c in containers)
    assert pool.credited == sum(len(c.credits) for c in containers)
    assert pool.index.size == sum(c.indexed for c in containers)
    if pool.limit is not None:
        assert pool.in_flight <= pool.limit, f"{pool.in_flight} in flight, concurrency_limit={pool.limit}"
    for c in containers:
        assert c.running <= max(pool.maximum, c.most), f"{c} is above max_inputs={pool.maximum}"
        full = bool(c.slots) and c.running >= c.slots
        assert c.indexed == (c.state == READY and not c.used and not c.held and not full)
        assert not c.indexed or c.load == c.running
        _leases(pool, c)
    waiting = 0
    for input in pool.queue:
        waiting += 1
        assert input.container is None
        assert not input.closed
        assert not input.lease
        assert input.batch is None
    assert waiting == len(pool.queue)
    for method in pool.method_limits:
        assert pool.methods.get(method, 0) == sum(c.methods.get(method, 0) for c in containers)
    pool.suspects.check()
    pool.fleet.check()


def _leases(pool: Pool, c: Container) -> None:
    """What one container holds."""
    assert set(c.credits) <= set(c.leases)
    batches: dict[Batch | None, int] = {}
    methods: dict[str, int] = {}
    for lease, input in c.leases.items():
        assert input.lease == lease
        assert input.container is c
        assert input.credited == (lease in c.credits)
        if lease not in c.credits and input.batch not in batches:
            method = input.call.method if pool.batches is None else pool.batches.method
            methods[method] = methods.get(method, 0) + 1
        if input.batch is not None:
            batches[input.batch] = batches.get(input.batch, 0) + 1
    assert c.shared == sum(batch.left - 1 for batch in batches if batch)
    assert all(batch and batch.left == count for batch, count in batches.items())
    if pool.method_limits:
        assert methods == {m: n for m, n in c.methods.items() if n}
        assert all(methods.get(m, 0) <= cap for m, cap in pool.method_limits.items())


def _machines(plane: Plane) -> None:
    """What nodes count as taken is what containers have."""
    for node in plane.scheduler.nodes.values():
        placed = [c.placement for c in plane.containers.values() if c.placement.node == node.name]
        assert node.containers == len(placed)
        assert abs(node.cpu_used - sum(place.cpu for place in placed)) < 1e-6
        assert node.memory_used == sum(place.memory for place in placed)
        for slab in node.devices:
            index = slab.device.index
            has = [place for place in placed if index in place.devices]
            parts = [place.vram[place.devices.index(index)] for place in has if place.vram]
            assert (slab.whole, slab.sharers, slab.vram) == (len(has) - len(parts), len(parts), sum(parts))
            assert slab.whole <= 1
            assert not (slab.whole and slab.sharers), (
                f"{slab.device.name} [{index}] is shared, and somebody has it whole"
            )
            assert all(place.gpu == slab.device.name for place in has)


def _inputs(plane: Plane) -> None:
    """Every open input waits in one queue or is granted to one container, and nothing else is."""
    found: dict[Call, int] = {}
    for pool in plane.pools.values():
        for input in pool.queue:
            found[input.call] = found.get(input.call, 0) + 1
    for container in plane.containers.values():
        for input in container.leases.values():
            if not input.closed:
                found[input.call] = found.get(input.call, 0) + 1
    for call in plane.calls.by_id.values():
        there = found.pop(call, 0)
        assert there == len(call.open), f"{call}: {there} inputs wait or are granted"
    assert not found, f"inputs of calls that are not known wait or are granted: {found}"
