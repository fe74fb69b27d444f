"""Where containers go, and what is said where they cannot."""

from __future__ import annotations

from typing import Any

import pytest

from kedge.core.scheduler import Placement, Scheduler, Unplaceable
from kedge.model.gpus import matches
from kedge.model.spec import FunctionSpec, GpuRequest, Resources


def machine(cpu: float = 4.0, memory: int = 8192, **gpus: int) -> Scheduler:
    scheduler = Scheduler()
    scheduler.join("n1", cpu, memory, {name.replace("_", "-"): count for name, count in gpus.items()})
    return scheduler


def placed(outcome: Placement | Unplaceable) -> Placement:
    assert isinstance(outcome, Placement), outcome
    return outcome


def refused(outcome: Placement | Unplaceable) -> Unplaceable:
    assert isinstance(outcome, Unplaceable), outcome
    return outcome


def gpu(*names: str, count: int = 1) -> Resources:
    return Resources(gpus=tuple(GpuRequest(name, count) for name in names))


@pytest.mark.parametrize(
    ("have", "asked", "answer"),
    [
        ("H100", "H100", True),
        ("H100", "H100!", True),
        ("A100-80GB", "A100", True),
        ("A100-40GB", "A100-80GB", False),
        ("A100", "A100-80GB", False),
        ("L4", "L40S", False),
        ("L40S", "L4", False),
    ],
)
def test_names_match(have: str, asked: str, answer: bool) -> None:
    assert matches(have, asked) is answer


def test_requests_fill_a_machine_and_leave_it() -> None:
    scheduler = machine()
    places = [placed(scheduler.place(Resources(cpu=1.0))) for _ in range(4)]
    assert refused(scheduler.place(Resources(cpu=0.125))).lasting is False
    scheduler.release(places[0])
    assert placed(scheduler.place(Resources(cpu=0.5))).node == "n1"


def test_memory_bounds_as_cpu_does() -> None:
    scheduler = machine()
    placed(scheduler.place(Resources(memory=8000)))
    assert "8000 of 8192 MiB are taken" in refused(scheduler.place(Resources(memory=500))).reason


def test_requests_above_the_machine_are_clamped_to_it() -> None:
    place = placed(machine().place(Resources(cpu=64.0, memory=1_000_000)))
    assert (place.cpu, place.memory) == (4.0, 8192)


def test_who_asks_for_more_than_there_is_is_told() -> None:
    def told(**resources: Any) -> str:
        function = FunctionSpec(name="train", module="m", qualname="train", resources=Resources(**resources))
        return machine(cpu=4.0, memory=8192).too_large(function)

    assert told(cpu=4.0, memory=8192) == ""
    assert told(cpu=8.0) == "train: cpu=8 is more than the 4 cores that there are: it is given what there is"
    assert told(cpu=8.0, memory=65536) == (
        "train: cpu=8 is more than the 4 cores that there are and memory=65536 (MiB) is more than the 8192 MiB that "
        "there are: it is given what there is"
    )
    function = FunctionSpec(name="train", module="m", qualname="train", resources=Resources(cpu=8.0))
    assert Scheduler().too_large(function) == "", "no machine has joined yet"


def test_a_small_machine_adds_up_exactly() -> None:
    """Thirty-two eighths are four, whatever floats make of them."""
    scheduler = machine()
    for _ in range(100):
        places = [placed(scheduler.place(Resources(cpu=0.1))) for _ in range(40)]
        refused(scheduler.place(Resources(cpu=0.1)))
        for place in places:
            scheduler.release(place)


def test_overcommit_ignores_cpu_and_memory_but_not_devices() -> None:
    scheduler = machine(H100=1)
    placed(scheduler.place(Resources(cpu=4.0, gpus=(GpuRequest("H100"),))))
    assert placed(scheduler.place(Resources(cpu=4.0), overcommit=True))
    refused(scheduler.place(gpu("H100"), overcommit=True))


def test_devices_are_given_by_number_and_come_back() -> None:
    scheduler = machine(L4=2, H100=4)
    first = placed(scheduler.place(gpu("H100", count=3)))
    assert first.devices == (2, 3, 4)
    refused(scheduler.place(gpu("H100", count=2)))
    second = placed(scheduler.place(gpu("H100")))
    assert second.devices == (5,)
    scheduler.release(second)
    scheduler.release(first)
    assert placed(scheduler.place(gpu("H100", count=2))).devices == (2, 3)


def test_gpus_are_tried_in_order_of_preference() -> None:
    scheduler = machine(L4=1, H100=1)
    wanted = gpu("H100", "A100", "L4")
    assert placed(scheduler.place(wanted)).gpu == "H100"
    assert placed(scheduler.place(wanted)).gpu == "L4"
    assert refused(scheduler.place(wanted)).lasting is False


def test_any_takes_whatever_there_is() -> None:
    scheduler = machine(L4=1)
    assert placed(scheduler.place(gpu("ANY"))).gpu == "L4"
    assert refused(machine().place(gpu("ANY"))).lasting


@pytest.mark.parametrize(
    ("scheduler", "resources", "text"),
    [
        (
            machine(),
            gpu("H100"),
            'gpu H100 was asked for, and this machine has no GPU: declare devices with KEDGE_GPUS="H100=1", '
            "or leave out gpu=",
        ),
        (machine(L4=2), gpu("H100", count=8), "gpu H100:8 was asked for, and this machine has L4=2"),
        (machine(A100_40GB=1), gpu("A100-80GB", "H100"), "gpu A100-80GB or H100 was asked for"),
        (machine(H100=2), gpu("H100", count=4), "gpu H100:4 was asked for, and this machine has H100=2"),
    ],
)
def test_what_can_never_be_is_said_at_once(scheduler: Scheduler, resources: Resources, text: str) -> None:
    answer = refused(scheduler.place(resources))
    assert answer.lasting
    assert answer.reason.startswith(text)


def test_a_shortage_names_what_is_taken() -> None:
    scheduler = machine(H100=1)
    placed(scheduler.place(Resources(cpu=2.5, memory=512, gpus=(GpuRequest("H100"),))))
    answer = refused(scheduler.place(gpu("H100")))
    assert answer.reason == (
        "a container asks for 0.125 cpu and 128 MiB and H100:1; "
        "n1: 2.5 of 4 cpu and 512 of 8192 MiB are taken (0 of 1 H100 free)"
    )
    assert not answer.lasting


def test_no_machine() -> None:
    scheduler = machine()
    scheduler.leave("n1")
    assert refused(scheduler.place(Resources())) == Unplaceable("no machine has joined yet")


def test_the_second_machine_is_used_when_the_first_is_full() -> None:
    scheduler = machine(cpu=1.0)
    scheduler.join("n2", 4.0, 8192, {})
    nodes = [placed(scheduler.place(Resources(cpu=1.0))).node for _ in range(5)]
    assert nodes == ["n1"] + ["n2"] * 4


def test_a_release_after_the_machine_has_left_is_nothing() -> None:
    scheduler = machine()
    place = placed(scheduler.place(Resources()))
    scheduler.leave("n1")
    scheduler.release(place)
    scheduler.join("n1", 4.0, 8192, {})
    assert scheduler.nodes["n1"].cpu_used == 0.0


def test_would_place_counts_what_would_go() -> None:
    scheduler = machine(H100=1)
    holds = placed(scheduler.place(gpu("H100")))
    rest = placed(scheduler.place(Resources(cpu=3.875)))
    assert not scheduler.would_place(Resources(cpu=1.0), [])
    assert scheduler.would_place(Resources(cpu=1.0), [rest])
    assert not scheduler.would_place(gpu("H100"), [rest])
    assert scheduler.would_place(gpu("H100"), [holds])
    assert scheduler.would_place(gpu("L4", "ANY"), [holds])


def test_a_port_is_one_container_s_at_a_time() -> None:
    scheduler = machine()
    first = placed(scheduler.place(Resources(ports=(8000,))))
    answer = refused(scheduler.place(Resources(ports=(8001, 8000)), overcommit=True))
    assert answer.reason == (
        "port 8000 is taken by another container, and one at a time can listen there; let that one take more inputs "
        "(@kedge.concurrent), or return an ASGI app instead of listening on a port"
    )
    assert not answer.lasting
    assert scheduler.would_place(Resources(ports=(8000,)), [first])
    assert not scheduler.would_place(Resources(ports=(8000,)), [])
    second = placed(scheduler.place(Resources(ports=(8001,))))
    scheduler.release(first)
    placed(scheduler.place(Resources(ports=(8000,))))
    scheduler.release(second)
