"""What a server says of how it keeps containers apart and within their limits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

from kedge.engines import cgroups, probe, system, warden


class Rungs(Protocol):
    """Which rungs this machine has, and which one was asked for: an `Outfitter`."""

    rungs: Mapping[str, str]
    preferred: str


def facts(known: Rungs) -> dict[str, Any]:
    """`isolation` of containers with images whose app asks for none, and why each rung cannot be had (empty: it can);
    `limits` by what enforces them."""
    return {
        "isolation": {"rung": known.preferred or probe.best(known.rungs), "rungs": dict(known.rungs)},
        "limits": enforced(),
    }


def enforced() -> dict[str, str]:
    """By control groups, or by kedge's own watch."""
    homes = {}
    if os.environ.get(warden.SWITCH) != "off":
        homes = cgroups.find(kin={os.getpid(), *system.children()}).homes
    ways = {name: f"cgroup v{homes[name].version}" if name in homes else "kedge" for name in cgroups.CONTROLLERS}
    return {**ways, "disk": "kedge"}
