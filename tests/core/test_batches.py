"""`@batched`: a slot is a batch."""

from __future__ import annotations

from typing import Any

from kedge.model import protocol as p
from kedge.model.payload import SUCCESS, TERMINATED
from kedge.model.spec import AutoscalerSettings, Batching, FunctionSpec, MethodSpec
from tests.core.conftest import Bench, F, Make, function

ONE = AutoscalerSettings(min_containers=1, max_containers=1)


def batched(size: int = 3, wait_ms: int = 100, slots: int = 1, **options: Any) -> FunctionSpec:
    return function(
        slots=slots, methods=(MethodSpec(batching=Batching(size, wait_ms)),), **{"autoscaler": ONE, **options}
    )


def batches(b: Bench, container: str = "ct-1") -> list[list[int]]:
    """Indices of the inputs that a container holds, batch by batch."""
    found: dict[int, list[p.Dispatch]] = {}
    for dispatch in b.leases[container].values():
        found.setdefault(dispatch.batch, []).append(dispatch)
    assert 0 not in found
    assert all(member.members == len(batch) for batch in found.values() for member in batch)
    return [[member.index for member in batch] for batch in found.values()]


def test_a_full_batch_goes_at_once(bench: Make) -> None:
    b = bench(batched())
    b.ready()
    b.submit(3)
    assert batches(b) == [[0, 1, 2]]


def test_a_part_of_a_batch_goes_when_its_first_input_has_waited(bench: Make) -> None:
    b = bench(batched(wait_ms=100))
    b.ready()
    b.submit(1)
    b.wait(0.06)
    b.submit(1, first=1)
    b.wait(0.039)
    assert batches(b) == []
    b.wait(0.002)
    assert batches(b) == [[0, 1]]


def test_without_a_wait_whatever_is_there_goes(bench: Make) -> None:
    b = bench(batched(wait_ms=0))
    b.ready()
    b.submit(1)
    assert batches(b) == [[0]]


def test_a_batch_grows_while_no_slot_is_free(bench: Make) -> None:
    b = bench(batched(size=4, wait_ms=10))
    b.ready()
    b.submit(1)
    b.wait(0.02)
    for index in (1, 2, 3):
        b.submit(1, first=index)
        b.wait(0.02)
    assert batches(b) == [[0]]
    b.finish("ct-1")
    assert batches(b) == [[1, 2, 3]]


def test_inputs_of_several_calls_meet_in_a_batch(bench: Make) -> None:
    b = bench(batched())
    b.ready()
    for number in range(3):
        b.submit(1, f"fc-{number}")
    assert sorted(d.call for d in b.leases["ct-1"].values()) == ["fc-0", "fc-1", "fc-2"]


def test_a_slot_is_a_batch(bench: Make) -> None:
    b = bench(batched(slots=2))
    b.ready()
    b.submit(10)
    assert batches(b) == [[0, 1, 2], [3, 4, 5]]
    pool = b.plane.pools[F]
    assert (pool.running, pool.in_flight) == (2, 6)
    b.finish("ct-1", 1, 2, 3)
    assert batches(b) == [[3, 4, 5], [6, 7, 8]]


def test_its_slot_is_free_when_the_last_member_has_ended(bench: Make) -> None:
    b = bench(batched(wait_ms=0))
    b.ready()
    b.submit(6)
    b.finish("ct-1", 1, 2)
    assert batches_left(b) == [[2]]
    assert b.statuses() == {0: SUCCESS, 1: SUCCESS}
    b.finish("ct-1", 3)
    assert batches(b) == [[3, 4, 5]]


def batches_left(b: Bench) -> list[list[int]]:
    return [[dispatch.index for dispatch in b.leases["ct-1"].values()]]


def test_cancelling_a_member_drops_only_its_result(bench: Make) -> None:
    b = bench(batched())
    b.ready()
    b.submit(3)
    b.send(p.CallCancelled("fc-1", indices=[1]), "se-1")
    assert b.orders(p.InputsCancelled) == [p.InputsCancelled([2])]
    b.finish("ct-1")
    assert b.statuses() == {0: SUCCESS, 1: TERMINATED, 2: SUCCESS}
    assert b.plane.pools[F].running == 0


def test_a_cancelled_member_does_not_make_the_code_of_the_others_overdue(bench: Make) -> None:
    b = bench(batched(timeout=300.0, cancellation_grace=10.0))
    b.ready()
    b.submit(3)
    b.send(p.CallCancelled("fc-1", indices=[1]), "se-1")
    assert b.wait(200) == []
    b.send(p.CallCancelled("fc-1"), "se-1")
    b.wait(9.9)
    assert not b.plane.containers["ct-1"].quarantined
    b.wait(0.2)
    assert b.plane.containers["ct-1"].quarantined, "now nobody wants it, and it was told to end"


def test_a_limit_counts_inputs_not_batches(bench: Make) -> None:
    b = bench(batched(size=3, slots=4, concurrency_limit=7))
    b.ready()
    b.submit(20)
    assert [len(batch) for batch in batches(b)] == [3, 3], "a batch of one would waste the slot"
    b.finish("ct-1", 1, 2, 3)
    assert [len(batch) for batch in batches(b)] == [3, 3]


def test_a_limit_below_the_size_makes_smaller_batches(bench: Make) -> None:
    b = bench(batched(size=8, concurrency_limit=2))
    b.ready()
    b.submit(5)
    assert batches(b) == [[0, 1]]


def test_containers_are_counted_in_batches(bench: Make) -> None:
    b = bench(batched(size=10, autoscaler=AutoscalerSettings()))
    b.submit(35)
    assert len(b.started) == 4


def test_members_of_a_lost_batch_run_again_alone(bench: Make) -> None:
    b = bench(batched())
    b.submit(3)
    b.ready()
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    assert batches(b, "ct-2") == [[0]]
    b.finish("ct-2")
    assert batches(b, "ct-2") == [[1]]


def test_a_failed_member_is_retried_in_another_batch(bench: Make) -> None:
    from kedge.model.payload import FAILURE
    from kedge.model.spec import RetryPolicy

    b = bench(batched(wait_ms=0, retries=RetryPolicy(1, 1.0, 1.0)))
    b.ready()
    b.submit(3)
    b.finish("ct-1", 2, status=FAILURE)
    b.finish("ct-1", 1, 3)
    b.wait(1.1)
    assert batches(b) == [[1]]
    assert [d.attempt for d in b.leases["ct-1"].values()] == [1]


def test_batches_are_never_credited(bench: Make) -> None:
    b = bench(batched(wait_ms=0))
    b.ready()
    b.submit(30)
    b.finish("ct-1", run_s=0.0001)
    assert b.credited("ct-1") == []


def test_a_limit_of_the_method_counts_batches(bench: Make) -> None:
    """A batch is a slot, and that is what the limit of a method is about."""
    methods = (MethodSpec("a", concurrency_limit=2, batching=Batching(3, 0)),)
    b = bench(function(is_class=True, slots=5, methods=methods, autoscaler=ONE))
    b.ready()
    b.submit(8, method="a")
    assert batches(b) == [[0, 1, 2], [3, 4, 5]]
    b.finish("ct-1", 1, 2)
    assert b.orders(p.InputsDispatched) == [], "the slot of the first batch is free when all of it has ended"
    b.finish("ct-1", 3)
    assert batches(b) == [[3, 4, 5], [6, 7]]
    b.finish("ct-1")
    assert b.statuses() == dict.fromkeys(range(8), SUCCESS)


def test_a_limited_method_asks_for_containers_in_batches(bench: Make) -> None:
    methods = (MethodSpec("a", concurrency_limit=2, batching=Batching(3, 0)),)
    b = bench(function(is_class=True, slots=5, methods=methods))
    b.submit(18, method="a")
    assert len(b.started) == 3, "six batches, two in each container"
