"""What scenarios are made of: their register, a machine with one app on it, and things to wait for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kedge.model.payload import SUCCESS
from kedge.model.spec import FunctionSpec
from kedge.sim.client import SimCall, SimClient
from kedge.sim.link import Conditions
from kedge.sim.machine import SimContainer
from kedge.sim.world import World, app

Scenario = Callable[[int], World]
SCENARIOS: dict[str, Scenario] = {}
F = "fu-story-f"
"""The pool of the function that most stories are about."""


def scenario(story: Callable[[int], World]) -> Scenario:
    SCENARIOS[story.__name__] = story
    return story


def stage(seed: int, *functions: FunctionSpec, cpu: float = 4.0, **conditions: Any) -> tuple[World, SimClient]:
    """A machine, an app called `story`, and a program that calls it."""
    world = World(seed, Conditions(**conditions))
    world.join("node", cpu)
    world.deploy(app("story", *functions))
    return world, SimClient(world)


def only(world: World) -> SimContainer:
    (container,) = world.engine.containers.values()
    return container


def wait(world: World, condition: Callable[[], bool], seconds: float = 100.0) -> None:
    assert world.run(world.now + seconds, condition), f"it did not come to this in {seconds:g} s: {world.stuck()}"


def is_running(world: World, pool: str = F, count: int = 1) -> Callable[[], bool]:
    """Whether user code runs `count` inputs of a pool."""
    return lambda: sum(len(c.runs) for c in world.engine.containers.values() if c.pool == pool) >= count


def dropped(world: World) -> dict[str, int]:
    return world.plane.dropped


def every(call: SimCall, status: str = SUCCESS) -> bool:
    return call.over and list(call.statuses.values()) == [status] * len(call.payloads)
