"""GPUs that several containers share by memory: who fits, where, and what follows from what is measured."""

from __future__ import annotations

import pytest

from kedge.core.outbox import STORE
from kedge.core.scheduler import Placement, Scheduler, Unplaceable
from kedge.model import protocol as p
from kedge.model.gpus import GpuDevice
from kedge.model.spec import AutoscalerSettings, GpuRequest, Resources
from tests.core.conftest import F, Make, function

GIB = 1024
G = "fu-1-g"
LONG = AutoscalerSettings(scaledown_window=3600.0)


def machine(*memory: int, name: str = "H100") -> Scheduler:
    """One with devices of so many GiB each."""
    scheduler = Scheduler()
    devices = tuple(GpuDevice(index, name, each * GIB) for index, each in enumerate(memory))
    scheduler.join("n1", 64.0, 65536, {}, devices)
    return scheduler


def share(gib: float, name: str = "H100", count: int = 1) -> Resources:
    return Resources(gpus=(GpuRequest(name, count),), vram=int(gib * GIB))


def part(fraction: float, name: str = "H100") -> Resources:
    return Resources(gpus=(GpuRequest(name, 1, fraction),))


def whole(count: int = 1, name: str = "H100") -> Resources:
    return Resources(gpus=(GpuRequest(name, count),))


def placed(outcome: Placement | Unplaceable) -> Placement:
    assert isinstance(outcome, Placement), outcome
    return outcome


def refused(outcome: Placement | Unplaceable) -> str:
    assert isinstance(outcome, Unplaceable), outcome
    assert not outcome.lasting, outcome
    return outcome.reason


def never(outcome: Placement | Unplaceable) -> str:
    assert isinstance(outcome, Unplaceable), outcome
    assert outcome.lasting, outcome
    return outcome.reason


# ---------------------------------------------------------------- who fits where


def test_a_device_is_given_away_by_memory_until_it_is_full() -> None:
    scheduler = machine(80)
    places = [placed(scheduler.place(share(20))) for _ in range(4)]
    assert [(place.devices, place.vram) for place in places] == [((0,), (20 * GIB,))] * 4
    assert "0 of 81920 MiB left of H100 [0]" in refused(scheduler.place(share(0.001)))
    scheduler.release(places[0])
    placed(scheduler.place(share(20)))


def test_a_fraction_is_a_part_of_the_device_that_it_gets() -> None:
    scheduler = machine(80, 40)
    assert placed(scheduler.place(part(0.5))).vram == (20 * GIB,), "the smaller one leaves more of the larger one"
    assert placed(scheduler.place(part(0.75))).vram == (60 * GIB,)


def test_halves_of_an_odd_number_do_not_add_up_to_more() -> None:
    scheduler = Scheduler()
    scheduler.join("n1", 64.0, 65536, {}, (GpuDevice(0, "H100", 81559),))
    assert placed(scheduler.place(part(0.5))).vram == (40780,)
    refused(scheduler.place(part(0.5)))
    placed(scheduler.place(part(0.49)))


def test_sharers_are_packed_and_leave_whole_devices_free() -> None:
    scheduler = machine(80, 80, 80)
    assert [placed(scheduler.place(share(30))).devices for _ in range(3)] == [(0,), (0,), (1,)]
    assert placed(scheduler.place(share(15))).devices == (0,), "on the fullest that has room"
    assert placed(scheduler.place(whole())).devices == (2,)
    refused(scheduler.place(whole()))


def test_a_device_is_whole_or_shared_and_never_both() -> None:
    scheduler = machine(80)
    held = placed(scheduler.place(whole()))
    refused(scheduler.place(share(1)))
    scheduler.release(held)
    held = placed(scheduler.place(share(1)))
    assert "0 of 1 H100 free, 80896 of 81920 MiB left of H100 [0]" in refused(scheduler.place(whole()))
    scheduler.release(held)
    placed(scheduler.place(whole()))


def test_several_devices_with_memory_of_each() -> None:
    scheduler = machine(80, 80, 80)
    placed(scheduler.place(share(70)))
    place = placed(scheduler.place(share(20, count=2)))
    assert (place.devices, place.vram) == ((1, 2), (20 * GIB, 20 * GIB))
    refused(scheduler.place(share(20, count=3)))
    placed(scheduler.place(share(10, count=3)))


def test_devices_of_one_container_are_of_one_kind() -> None:
    scheduler = Scheduler()
    scheduler.join("n1", 64.0, 65536, {"L4": 1, "H100": 2})
    place = placed(scheduler.place(share(5, "ANY", 2)))
    assert (place.gpu, place.devices) == ("H100", (1, 2))


def test_any_device_that_has_the_memory() -> None:
    scheduler = Scheduler()
    scheduler.join("n1", 64.0, 65536, {"L4": 1, "H100": 1})
    assert placed(scheduler.place(share(20, "ANY"))).gpu == "L4"
    assert placed(scheduler.place(share(20, "ANY"))).gpu == "H100"
    assert placed(scheduler.place(share(2, "ANY"))).gpu == "L4", "the fullest one"


def test_another_machine_when_the_first_is_full() -> None:
    scheduler = machine(80)
    scheduler.join("n2", 4.0, 8192, {"H100": 1})
    assert [placed(scheduler.place(share(60))).node for _ in range(2)] == ["n1", "n2"]


def test_room_that_others_would_leave() -> None:
    scheduler = machine(80, 80)
    first, second = placed(scheduler.place(share(60))), placed(scheduler.place(share(50)))
    assert (first.devices, second.devices) == ((0,), (1,))
    assert not scheduler.would_place(share(40), [])
    assert scheduler.would_place(share(40), [first])
    assert scheduler.would_place(whole(), [second])
    assert not scheduler.would_place(whole(2), [second])
    assert scheduler.would_place(whole(2), [second, first])
    assert scheduler.would_place(share(25), [])
    assert not scheduler.would_place(share(25), [], peak=35 * GIB)
    assert [(slab.vram, slab.sharers) for slab in scheduler.nodes["n1"].devices] == [(60 * GIB, 1), (50 * GIB, 1)]


# ---------------------------------------------------------------- what can never be


@pytest.mark.parametrize(
    ("scheduler", "resources", "text"),
    [
        (
            machine(80, 80),
            share(100),
            "gpu H100 with vram 100 GiB was asked for, and this machine has H100=2 of 80 GiB: a device has 80 GiB at "
            'most: write vram="80Gi" or less (it is counted per device)',
        ),
        (
            machine(80),
            share(10, count=2),
            'gpu H100:2 with vram 10 GiB was asked for, and this machine has H100=1 of 80 GiB: write gpu="H100"',
        ),
        (
            machine(22, 22, name="L4"),
            part(0.5),
            'gpu H100:0.5 was asked for, and this machine has L4=2 of 22 GiB: write gpu="L4", or '
            'gpu=["H100:0.5", "L4"] for the first that there is, or declare devices with KEDGE_GPUS="H100=1"',
        ),
        (
            machine(),
            share(10, "ANY"),
            "gpu ANY with vram 10 GiB was asked for, and this machine has no GPU: declare devices with "
            'KEDGE_GPUS="H100=1", or leave out gpu= and vram=',
        ),
        (
            machine(0, name="MYCHIP"),
            part(0.5, "MYCHIP"),
            "gpu MYCHIP:0.5 was asked for, and this machine has MYCHIP=1: how much memory it has is not known: declare "
            'it with KEDGE_GPUS="MYCHIP=1:24Gi"',
        ),
    ],
)
def test_what_does_not_fit_anywhere_is_refused_with_the_numbers(
    scheduler: Scheduler, resources: Resources, text: str
) -> None:
    assert never(scheduler.place(resources)) == text


def test_where_devices_are_real_nobody_is_told_to_declare_some() -> None:
    scheduler = Scheduler()
    scheduler.join("n1", 4.0, 8192, {}, (GpuDevice(0, "L4", 23034, "GPU-1"),))
    assert never(scheduler.place(whole())) == (
        'gpu H100 was asked for, and this machine has L4=1 of 22.5 GiB: write gpu="L4", or gpu=["H100", "L4"] for the '
        "first that there is"
    )


def test_a_shortage_names_the_memory_that_is_asked_for_and_left() -> None:
    scheduler = machine(80)
    placed(scheduler.place(share(60)))
    assert refused(scheduler.place(share(30))) == (
        "a container asks for 0.125 cpu and 128 MiB and 30720 MiB of H100; n1: 0.125 of 64 cpu and 128 of 65536 MiB "
        "are taken (0 of 1 H100 free, 20480 of 81920 MiB left of H100 [0])"
    )
    assert "and H100:0.5; n1" in refused(scheduler.place(part(0.5)))
    assert "10240 MiB of H100 (40960 MiB by what was measured)" in refused(scheduler.place(share(10), peak=40 * GIB))


# ---------------------------------------------------------------- what is measured


def test_more_is_reserved_where_more_was_seen() -> None:
    scheduler = machine(80)
    assert placed(scheduler.place(share(10), peak=30 * GIB)).vram == (30 * GIB,)
    assert placed(scheduler.place(share(40), peak=30 * GIB)).vram == (40 * GIB,), "never less than was declared"
    refused(scheduler.place(share(5), peak=30 * GIB))


def test_what_was_seen_makes_nothing_impossible() -> None:
    assert placed(machine(80).place(share(10), peak=900 * GIB)).vram == (80 * GIB,)


def test_a_share_grows_where_it_is() -> None:
    scheduler = machine(80)
    first, second = placed(scheduler.place(share(30))), placed(scheduler.place(share(30)))
    grown = scheduler.grown(first, 70 * GIB)
    assert (grown.vram, grown.devices) == ((70 * GIB,), (0,))
    (slab,) = scheduler.nodes["n1"].devices
    assert slab.vram == 100 * GIB, "more than there is, since it is used"
    assert scheduler.grown(grown, 50 * GIB) is grown, "it never shrinks"
    scheduler.release(second)
    assert "10240 of 81920 MiB left" in refused(scheduler.place(share(20)))
    scheduler.release(grown)
    assert (slab.vram, slab.sharers) == (0, 0)


def remarks(commands: list[tuple[str, object]]) -> list[str]:
    return [order.text for address, order in commands if address == STORE and isinstance(order, p.Remarked)]


def test_the_peak_of_a_pool_counts_for_those_that_run_and_those_that_come(bench: Make) -> None:
    b = bench(function(resources=share(10), autoscaler=LONG), gpus={"H100": 1})
    b.submit(1)
    b.ready()
    first = b.plane.containers[b.started[0]]
    assert first.placement.vram == (10 * GIB,)
    b.send(p.VramMeasured({first.id: 5 * GIB}))
    assert first.placement.vram == (10 * GIB,)
    assert remarks(b.last) == []
    b.send(p.VramMeasured({first.id: 30 * GIB}))
    assert first.placement.vram == (30 * GIB,)
    assert remarks(b.last) == [
        "f uses 30 GiB of GPU memory, and declares H100 with vram 10 GiB, which is 10 GiB here: from now on its "
        'containers are counted with what they use. Declare vram="30Gi" to have that room from the start'
    ]
    b.send(p.VramMeasured({first.id: 35 * GIB, "ct-gone": 1}))
    assert first.placement.vram == (35 * GIB,)
    assert remarks(b.last) == [], "said once"
    b.submit(2, call="fc-2")
    second = b.plane.containers[b.started[1]]
    assert second.placement.vram == (35 * GIB,)
    assert len(b.started) == 2, "a third one of 35 GiB does not fit, and one of 10 would have"


def test_idle_containers_leave_a_device_that_turns_out_to_be_too_small(bench: Make) -> None:
    b = bench(
        function(resources=share(20), autoscaler=LONG),
        function("g", resources=share(20), autoscaler=LONG),
        function("h", resources=share(20), autoscaler=LONG),
        gpus={"H100": 1},
    )
    for number, pool in enumerate((F, G, "fu-1-h")):
        b.submit(1, call=f"fc-{number}", pool=pool)
        b.ready()
        if pool != "fu-1-h":
            b.finish(b.started[-1], after=1.0)
    first, second, works = b.started
    b.send(p.VramMeasured({works: 30 * GIB}))
    assert b.drained() == [], "20 + 20 + 30 fit"
    b.send(p.VramMeasured({works: 45 * GIB}))
    assert b.drained() == [first], "the longest idle, and 20 + 45 fit"
    b.send(p.VramMeasured({works: 46 * GIB}))
    assert b.drained() == [], "one is leaving already"
    b.send(p.VramMeasured({works: 70 * GIB}))
    assert b.drained() == [second]


def test_containers_with_whole_devices_are_not_counted_by_memory(bench: Make) -> None:
    b = bench(function(resources=whole()), gpus={"H100": 1})
    b.submit(1)
    b.ready()
    container = b.plane.containers[b.started[0]]
    b.send(p.VramMeasured({container.id: 30 * GIB}))
    assert container.placement.vram == ()


# ---------------------------------------------------------------- who makes room


def test_an_idle_model_leaves_for_another(bench: Make) -> None:
    b = bench(
        function(resources=share(60), autoscaler=LONG),
        function("g", resources=share(30), autoscaler=LONG),
        gpus={"H100": 1},
    )
    b.submit(1)
    b.ready()
    (first,) = b.started
    b.finish(first)
    b.submit(1, call="fc-2", pool=G)
    assert b.drained() == [first]
    b.lose(first, exit_code=0)
    assert len(b.started) == 2


def test_only_those_leave_that_are_in_the_way(bench: Make) -> None:
    """The container that has been idle for longest stays: it has no GPU."""
    b = bench(
        function(resources=Resources(), autoscaler=LONG),
        function("g", resources=share(60), autoscaler=LONG),
        function("h", resources=share(60), autoscaler=LONG),
        gpus={"H100": 1},
    )
    for number, pool in enumerate((F, G)):
        b.submit(1, call=f"fc-{number}", pool=pool)
        b.ready()
        b.finish(b.started[-1], after=1.0)
    plain, model = b.started
    b.submit(1, call="fc-h", pool="fu-1-h")
    assert b.drained() == [model]
    assert plain in b.plane.containers


def test_as_few_leave_as_make_the_room(bench: Make) -> None:
    b = bench(
        function(resources=share(20), autoscaler=LONG),
        function("g", resources=share(40), autoscaler=LONG),
        gpus={"H100": 1},
    )
    b.submit(3)
    b.ready()
    for container in b.started[:3]:
        b.finish(container)
    b.submit(1, call="fc-2", pool=G)
    assert len(b.drained()) == 2


def test_a_model_that_works_is_never_asked_to_leave(bench: Make) -> None:
    b = bench(function(resources=share(60), autoscaler=LONG), function("g", resources=share(60)), gpus={"H100": 1})
    b.submit(1)
    b.ready()
    b.submit(1, call="fc-2", pool=G)
    assert b.drained() == []
    assert "61440 MiB of H100" in b.plane.pools[G].fleet.waiting_for_room
    b.finish(b.started[0])
    assert b.drained() == [b.started[0]]
