"""How many containers there should be, as a table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.core.autoscaler import Observation, decide
from kedge.model.spec import AutoscalerSettings

IDLE = Observation(0, 0, 0, 0, target_inputs=8, max_inputs=10, service_s=None, startup_s=0.1)
ANY = AutoscalerSettings()
TABLE = [
    # what is seen, settings, desired
    ("nothing to do", {}, {}, 0),
    ("one input", {"queued": 1}, {}, 1),
    ("exactly at target", {"queued": 8}, {}, 1),
    ("one above target", {"queued": 9}, {}, 2),
    ("running and queued count alike", {"queued": 4, "running": 5, "ready": 1}, {}, 2),
    ("containers that start are enough", {"queued": 16, "starting": 2}, {}, 2),
    ("min_containers at rest", {}, {"min_containers": 3}, 3),
    ("min_containers below the need", {"queued": 33}, {"min_containers": 3}, 5),
    ("max_containers", {"queued": 1000}, {"max_containers": 4}, 4),
    ("max_containers=0 starts none", {"queued": 1}, {"max_containers": 0}, 0),
    ("buffer at rest", {}, {"buffer_containers": 2}, 0),
    ("buffer while active", {"running": 1, "ready": 1}, {"buffer_containers": 2}, 3),
    ("buffer above min", {"queued": 20}, {"buffer_containers": 2, "min_containers": 4}, 5),
    ("buffer below max", {"queued": 20}, {"buffer_containers": 9, "max_containers": 5}, 5),
    ("limit", {"queued": 1000, "limit": 10}, {}, 2),
    ("limit counts what runs", {"queued": 1000, "running": 10, "ready": 2, "limit": 10}, {}, 2),
    ("a method needs more", {"queued": 4, "method_need": 3}, {}, 3),
    ("max_containers beats methods", {"queued": 4, "method_need": 3}, {"max_containers": 2}, 2),
    # containers that serve not everybody, or not in full
    ("suspects have containers for themselves", {"queued": 9, "held": 1, "suspects": 2}, {}, 5),
    ("nothing but suspects", {"held": 1, "suspects": 2, "ready": 1}, {}, 3),
    ("what suspects run counts under the limit", {"queued": 100, "held": 1, "suspects": 1, "limit": 10}, {}, 3),
    ("suspects take up the limit", {"queued": 100, "held": 1, "suspects": 1, "limit": 2}, {}, 2),
    ("max_containers beats suspects", {"queued": 9, "held": 1, "suspects": 2}, {"max_containers": 2}, 2),
    ("buffer while suspects run", {"held": 1}, {"buffer_containers": 1}, 2),
    ("containers that take fewer by their own wish", {"queued": 2, "running": 2, "ready": 2, "withheld": 14}, {}, 3),
    ("nobody needs what they do not offer", {"ready": 2, "withheld": 14}, {}, 0),
    # a backlog that the ready slots drain sooner than a container starts
    ("drains in time", {"queued": 100, "ready": 1, "service_s": 0.001}, {}, 1),
    ("drains too late", {"queued": 100, "ready": 1, "service_s": 0.1}, {}, 13),
    ("nothing is ready to drain it", {"queued": 100, "starting": 1, "service_s": 0.001}, {}, 13),
    ("service time is not known", {"queued": 100, "ready": 1}, {}, 13),
    ("a slow start is worth avoiding", {"queued": 100, "ready": 1, "service_s": 0.1, "startup_s": 60.0}, {}, 1),
    ("drains in time, and min", {"queued": 100, "ready": 1, "service_s": 0.001}, {"min_containers": 3}, 3),
    ("drains in time, and a method", {"queued": 100, "ready": 1, "service_s": 0.001, "method_need": 2}, {}, 2),
    ("drains in time, and a buffer", {"queued": 100, "ready": 1, "service_s": 0.001}, {"buffer_containers": 2}, 3),
    (
        "drains in time, and the buffer is there",
        {"queued": 100, "ready": 2, "starting": 1, "service_s": 0.001},
        {"buffer_containers": 2},
        3,
    ),
    (
        "drains in time, and suspects may",
        {"queued": 99, "ready": 1, "service_s": 0.001, "held": 1, "suspects": 1},
        {},
        2,
    ),
    (
        "suspects have waited for a place that did not come",
        {"queued": 20, "ready": 1, "service_s": 0.001, "suspects": 1, "over_s": 2.0, "finished": 400},
        {},
        2,
    ),
    # after a second of it, what was measured decides
    (
        "it went on, and containers are needed",
        {"queued": 12, "running": 10, "ready": 1, "service_s": 0.05, "over_s": 2.0, "finished": 400},
        {},
        2,
    ),
    (
        "it went on, and slots were mostly free",
        {"queued": 12, "running": 10, "ready": 1, "service_s": 0.001, "over_s": 2.0, "finished": 400},
        {},
        1,
    ),
    (
        "it did not drain: slots are held by longer inputs",
        {"queued": 12, "running": 10, "ready": 1, "service_s": 0.001, "over_s": 2.0, "finished": 3},
        {},
        3,
    ),
]


@pytest.mark.parametrize(("seen", "settings", "desired"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_desired(seen: dict[str, float], settings: dict[str, int], desired: int) -> None:
    decision = decide(IDLE._replace(**seen), AutoscalerSettings(**settings))
    assert decision.desired == desired


def test_reasons_are_for_people() -> None:
    assert decide(IDLE._replace(queued=9), ANY).reason == "9 inputs at target 8"
    assert decide(IDLE, AutoscalerSettings(min_containers=1)).reason == "min_containers=1"
    capped = decide(IDLE._replace(queued=99), AutoscalerSettings(max_containers=2))
    assert capped.reason == "99 inputs at target 8, capped by max_containers=2"
    drains = decide(IDLE._replace(queued=18, ready=1, service_s=0.01), ANY)
    text = "18 inputs at target 8 want 3, but 1 ready drain them in 10.0 ms, sooner than a start of 100 ms"
    assert drains.reason == text


def test_hope_is_looked_at_again() -> None:
    """While a backlog is expected to drain, the decision asks for another one in a second; otherwise events do."""
    hope = IDLE._replace(queued=18, ready=1, service_s=0.01)
    assert decide(hope, ANY).review_s == 1.0
    assert decide(hope._replace(service_s=10.0), ANY).review_s is None
    assert decide(IDLE, ANY).review_s is None


counts = st.integers(0, 200)
observations = st.builds(
    Observation,
    queued=counts,
    running=counts,
    ready=counts,
    starting=counts,
    target_inputs=st.integers(1, 20),
    max_inputs=st.integers(20, 30),
    service_s=st.one_of(st.none(), st.floats(1e-6, 100)),
    startup_s=st.floats(1e-3, 100),
    over_s=st.floats(0, 10),
    finished=counts,
    limit=st.none(),
    method_need=st.just(0),
    withheld=st.integers(0, 20),
    held=st.integers(0, 5),
    suspects=st.integers(0, 4),
)


@given(observations, st.integers(0, 5), st.integers(0, 5), st.integers(0, 9))
def test_desired_stays_within_its_bounds(seen: Observation, least: int, more: int, buffer: int) -> None:
    settings = AutoscalerSettings(min_containers=least, max_containers=least + more, buffer_containers=buffer)
    assert least <= decide(seen, settings).desired <= least + more


@given(observations, counts)
def test_more_inputs_never_ask_for_fewer_containers(seen: Observation, more: int) -> None:
    seen = seen._replace(over_s=0.0)
    assert decide(seen._replace(queued=seen.queued + more), ANY).desired >= min(
        decide(seen, ANY).desired, seen.ready + seen.starting + seen.held + 1
    )


@given(observations)
def test_nothing_asks_for_more_than_the_target_does(seen: Observation) -> None:
    demand = seen.queued + seen.running
    wanted = -(-(demand + seen.withheld) // seen.target_inputs) if demand else 0
    desired = decide(seen, ANY).desired
    assert desired <= max(wanted + seen.held + seen.suspects, seen.ready + seen.starting + seen.held)
