"""Recounts what the plane counts as it goes: every index, every sum. For the simulator, tests, and suspicion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.core.containers import DRAINING

if TYPE_CHECKING:
    from kedge.core.calls import Call
    from kedge.core.plane import Plane


def audit(plane: Plane) -> None:
    """AssertionError names what is wrong."""
    plane.calls.check()
    for pool in plane.pools.values():
        pool.check()
    assert sum(len(pool.fleet.containers) for pool in plane.pools.values()) == len(plane.containers)
    assert [c for c in plane.containers.values() if c.state == DRAINING and c not in plane.rooms.leaving] == []
    assert all(c.state == DRAINING for c in plane.rooms.leaving)
    _machines(plane)
    _inputs(plane)


def _machines(plane: Plane) -> None:
    """What nodes count as taken is what containers have."""
    for node in plane.scheduler.nodes.values():
        placed = [c.placement for c in plane.containers.values() if c.placement.node == node.name]
        assert node.containers == len(placed)
        assert abs(node.cpu_used - sum(place.cpu for place in placed)) < 1e-6
        assert node.memory_used == sum(place.memory for place in placed)
        for gpu, count in node.capacity.items():
            taken = [device for place in placed if place.gpu == gpu for device in place.devices]
            assert len(taken) + len(node.devices[gpu]) == count
            assert len(dict.fromkeys(taken)) == len(taken)


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
