"""What a server says about its machine and itself, in sentences for `kedge server status`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kedge.cli.progress import number, plural
from kedge.cli.tables import clean, size

Facts = dict[str, Any]


def lines(facts: Facts) -> Iterator[str]:
    """Room first, then trouble, if there was any."""
    for machine in facts["machines"]:
        yield f"{_machine(machine)}."
        for device in machine.get("devices", []):
            if device["memory_used"]:
                yield _shared(device)
    if "isolation" in facts:
        yield _protection(facts["isolation"]["rung"], facts["limits"])
    free = facts["disk"].get("free_bytes")
    yield f"Its disk has {size(free)} free." if free is not None else f"Its disk: {clean(facts['disk']['error'])}."
    if facts["failures"]:
        failed = plural(facts["failures"], "message")
        yield f"It has failed on {failed} and gone on; `kedge server logs` says where. Please report it."
    if facts["dropped"]:
        late = ", ".join(f"{clean(name)} ({number(count)})" for name, count in sorted(facts["dropped"].items()))
        yield f"Came too late and was dropped: {late}."


def _shared(device: Facts) -> str:
    taken = f"{number(device['memory_used'])} of {number(device['memory'])} MiB"
    who = plural(device["containers"], "container")
    return f"{clean(device['name'])} [{device['index']}] is shared by {who}: {taken} are given away."


def _protection(rung: str, limits: dict[str, str]) -> str:
    """How containers are kept from each other and from the machine."""
    ways: dict[str, list[str]] = {}
    for name, way in limits.items():
        ways.setdefault(way, []).append(name)
    bounded = ", ".join(f"{way} ({', '.join(names)})" for way, names in ways.items())
    return f"Isolation of containers with images: {rung}. Limits are kept by {bounded}; `kedge doctor` says more."


def _machine(machine: Facts) -> str:
    parts = [
        f"{machine['cpu_used']:g} of {machine['cpu']:g} cores",
        f"{number(machine['memory_used'])} of {number(machine['memory'])} MiB",
        *(f"{gpu['used']} of {gpu['count']} {name}" for name, gpu in machine["gpus"].items()),
    ]
    return f"Containers on {clean(machine['name'])} have asked for {', '.join(parts)}"
