"""How many containers a pool should have, and why. Pure arithmetic: `decide(observation, settings)` keeps no state.

The law: enough containers to hold everything running and queued at the target, between `min_containers` and
`max_containers`, plus `buffer_containers` while the pool is active. Starting containers count fully, so nothing is
started twice. A backlog that the ready slots drain sooner than a new container could start is no reason to start one.
What suspects have for themselves comes on top.

A better law replaces `decide`; what it may look at is `Observation`, what it may answer is `Decision`.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from kedge.model.spec import AutoscalerSettings

PATIENCE_S = 1.0
"""Seconds above target after which the measured load, and no longer the hope of draining it, decides."""


class Observation(NamedTuple):
    """What is known of a pool at this moment. Counts are exact: the queue and the slots are ours."""

    queued: int
    """Inputs that wait, credited ones included."""
    running: int
    """Inputs that hold a slot."""
    ready: int
    """Containers that take inputs. Those that are held for suspects are not among them, nor is what runs in them."""
    starting: int
    target_inputs: int
    max_inputs: int
    service_s: float | None
    """Mean seconds of user code per input; None before the first one has ended."""
    startup_s: float
    """Expected seconds from the order for a container to its first input."""
    over_s: float = 0.0
    """Seconds since the inputs last fitted the ready containers at target."""
    finished: int = 0
    """Inputs that ended within `over_s`."""
    limit: int | None = None
    """concurrency_limit of the function: more than this never runs at once."""
    method_need: int = 0
    """Containers that the limits of single methods ask for."""
    withheld: int = 0
    """Slots below target that ready containers do not offer, because their own code says so."""
    held: int = 0
    """Containers that are held for suspects."""
    suspects: int = 0
    """Containers that suspects ask for beside these."""


class Decision(NamedTuple):
    desired: int
    reason: str
    review_s: float | None = None
    """Seconds after which to decide again even if nothing happens; None where only events can change the answer."""


def decide(seen: Observation, settings: AutoscalerSettings) -> Decision:
    """The number of containers to have now.

    >>> idle = Observation(0, 0, 0, 0, 40, 50, None, 0.1)
    >>> decide(idle._replace(queued=100), AutoscalerSettings()).desired
    3
    >>> decide(idle._replace(queued=100), AutoscalerSettings(max_containers=2)).desired
    2
    >>> decide(idle._replace(queued=100, ready=1, service_s=0.001), AutoscalerSettings()).reason
    '100 inputs at target 40 want 3, but 1 ready drain them in 1.2 ms, sooner than a start of 100 ms'
    """
    demand, apart = seen.queued + seen.running, seen.held + seen.suspects
    if seen.limit is not None:
        demand = min(demand, max(0, seen.limit - apart))
    withheld = seen.withheld if demand else 0
    by_target = apart + max(ceil((demand + withheld) / seen.target_inputs), seen.method_need)
    wanted, reason = by_target, f"{demand} inputs at target {seen.target_inputs}"
    if apart:
        reason += f" and {apart} containers for suspects"
    buffer = settings.buffer_containers if demand or apart else 0
    review, least = None, 0
    have = seen.ready + seen.starting + seen.held
    if by_target > have and seen.ready and seen.service_s is not None:
        drain_s = max(0, demand + withheld - seen.ready * seen.target_inputs) * seen.service_s
        drain_s /= seen.ready * seen.max_inputs
        # Where fewer have ended than run, slots are held by inputs that are much longer than most.
        hope = seen.over_s < PATIENCE_S or seen.finished >= seen.running
        if drain_s < seen.startup_s and hope:
            measured = seen.over_s >= PATIENCE_S
            busy = seen.finished * seen.service_s / seen.over_s if measured else 0.0
            needed = max(1, seen.method_need, ceil((busy + withheld) / seen.target_inputs))
            needed += apart if measured else seen.held
            wanted, least = min(by_target, needed), have
            review = PATIENCE_S
            reason += (
                f" want {by_target}, but {seen.ready} ready drain them in {drain_s * 1000:.1f} ms, "
                f"sooner than a start of {seen.startup_s * 1000:.0f} ms"
                if wanted + buffer <= have
                else f", {busy:.1f} busy on average"
            )
    desired = max(least, wanted + buffer)
    if desired < settings.min_containers:
        desired, reason = settings.min_containers, f"min_containers={settings.min_containers}"
    if settings.max_containers is not None and desired > settings.max_containers:
        desired, reason = settings.max_containers, f"{reason}, capped by max_containers={settings.max_containers}"
    return Decision(desired, reason, review)
