"""Calls end to end: what runs, where, and what comes back. Counts, never times."""

from __future__ import annotations

import asyncio
import os
import sys
import warnings

import pytest

import kedge
from tests.e2e import harbour

pytestmark = [pytest.mark.usefixtures("running"), pytest.mark.slow]


def test_remote_runs_elsewhere_and_local_here() -> None:
    assert harbour.square.remote(7) == 49
    assert harbour.square.local(7) == 49
    assert harbour.where.remote()["process"] != os.getpid()


def test_an_input_knows_its_ids_and_its_module() -> None:
    facts = harbour.where.remote()
    assert facts["local"] is False
    assert str(facts["call"]).startswith("fc-")
    assert str(facts["input"]) == f"in-{str(facts['call'])[3:]}-0"
    assert facts["file"] == harbour.__file__, "data files beside the module must be found"
    assert facts["name"] == "tests.e2e.harbour"
    assert kedge.current_input_id() is None
    assert kedge.is_local()


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and /proc, are Linux")
def test_a_container_has_little_memory_of_its_own() -> None:
    """Most of it is shared with the fork server: 4 to 5 MB are not (`benchmarks/isolation.py`)."""
    assert harbour.own_memory.remote() < 7 << 20


def test_one_input_at_a_time_runs_on_the_main_thread() -> None:
    assert harbour.where.remote()["main_thread"] is True


async def call_async() -> list[int]:
    first = await harbour.square_async.remote.aio(3)
    rest = await asyncio.gather(*(harbour.square.remote.aio(x) for x in range(5)))
    return [first, *rest]


def test_async_calls() -> None:
    assert asyncio.run(call_async()) == [9, 0, 1, 4, 9, 16]


def test_a_blocking_call_in_an_event_loop_works_and_warns_with_the_line() -> None:
    async def blocking() -> int:
        return harbour.square.remote(4)

    with pytest.warns(match=r"\.aio"):
        assert asyncio.run(blocking()) == 16


def test_map_keeps_the_order_and_passes_none() -> None:
    assert list(harbour.square.map(range(500))) == [x * x for x in range(500)]
    assert sorted(harbour.square.map(range(50), order_outputs=False)) == sorted(x * x for x in range(50))
    assert list(harbour.square.map([])) == []
    assert list(harbour.square.starmap([(1,), (2,)])) == [1, 4]


def test_map_raises_the_first_failure_or_returns_it() -> None:
    with pytest.raises(harbour.Wreck):
        list(harbour.fail.map(["fine", "wreck"]))
    fine, wreck = harbour.fail.map(["fine", "wreck"], return_exceptions=True)
    assert fine == "fine"
    assert isinstance(wreck, harbour.Wreck)
    assert wreck.depth == 32


def test_generators_stream_more_than_a_window() -> None:
    assert list(harbour.count_to.remote_gen(300)) == list(range(300))
    assert list(harbour.count_to_async.remote_gen(100)) == list(range(100))

    async def collect() -> list[int]:
        return [value async for value in harbour.count_to_async.remote_gen.aio(100)]

    assert asyncio.run(collect()) == list(range(100))


def test_spawn_gives_a_handle_that_other_handles_find() -> None:
    call = harbour.square.spawn(12)
    assert call.get() == 144
    assert call.get(timeout=5) == 144, "reading does not consume"
    again = kedge.FunctionCall.from_id(call.object_id)
    assert again.get(timeout=5) == 144
    assert kedge.FunctionCall.gather(harbour.square.spawn(2), harbour.square.spawn(3)) == [4, 9]


def test_get_gives_up_after_its_timeout_with_the_builtin_error(tmp_path: object) -> None:
    call = harbour.sleep_forever.spawn(f"{tmp_path}/marker")
    with pytest.raises(TimeoutError):
        call.get(timeout=0.05)
    call.cancel()


def test_an_unknown_call_says_so() -> None:
    with pytest.raises(kedge.exception.OutputExpiredError, match="fc-doesnotexist"):
        kedge.FunctionCall.from_id("fc-doesnotexist").get(timeout=5)


def test_a_closure_travels_by_value() -> None:
    assert harbour.times_3.remote(5) == 15


def test_functions_call_functions() -> None:
    assert harbour.nested.remote(4) == 0 + 1 + 4 + 9 + 16


def test_sync_inputs_share_a_container_up_to_max_inputs() -> None:
    results = list(harbour.crowd.map([0.05] * 18))
    assert {process for _, process, _ in results} == {results[0][1]}, "one container"
    assert max(peak for peak, _, _ in results) == 6
    ids = {id for _, _, id in results}
    assert len(ids) == 18, "each input has an id of its own"
    assert len({id.rpartition("-")[0] for id in ids}) == 1, "and all of them the same call"


def test_async_inputs_share_a_container_up_to_max_inputs() -> None:
    results = list(harbour.crowd_async.map([0.05] * 18))
    assert len({process for _, process in results}) == 1
    assert max(peak for peak, _ in results) == 6


def test_max_containers_bounds_how_many_there_are() -> None:
    assert 1 <= len(set(harbour.slow_process.map([0.05] * 20))) <= 3


def test_a_class_keeps_its_state_and_has_a_pool_per_parameter_set() -> None:
    vasa, wasp = harbour.Ship(name="Vasa"), harbour.Ship(name="Wasp", guns=18)
    name, guns, log, process = vasa.describe.remote()
    assert (name, guns, log) == ("Vasa", 64, ["Vasa rigged", "twice"])
    assert wasp.describe.remote()[:2] == ("Wasp", 18)
    assert wasp.describe.remote()[3] != process
    assert harbour.Ship(name="Vasa").describe.remote()[3] == process, "equal parameters meet in one pool"
    assert wasp.sail.remote(2) == 36
    assert list(vasa.watch.remote_gen(2)) == ["Vasa 0", "Vasa 1"]


def test_variants_have_containers_of_their_own() -> None:
    wide = harbour.where.with_concurrency(max_inputs=4)
    assert wide.remote()["main_thread"] is False
    assert harbour.where.remote()["main_thread"] is True


def test_large_values_travel_both_ways() -> None:
    size = 3 * 1024 * 1024
    assert harbour.length.remote(b"x" * size) == size
    assert len(harbour.big.remote(size)) == size


def test_statistics_count_what_is_there() -> None:
    harbour.square.remote(1)
    stats = harbour.square.get_current_stats()
    assert (stats.backlog, stats.num_running_inputs) == (0, 0)
    assert stats.num_total_runners >= 1
    assert stats.input_headroom >= 1
    assert stats.num_cancelled_inputs == 0
    waited, ran = stats.wait_p95_s, stats.run_p50_s
    assert waited is not None
    assert ran is not None
    assert waited >= (stats.wait_p50_s or 0.0)
    assert ran > 0.0


def test_a_blocked_loop_does_not_stop_other_functions() -> None:
    blocked = harbour.block_the_loop.spawn(0.5)
    assert harbour.square.remote(3) == 9
    assert blocked.get(timeout=30) == "blocked"


def test_a_gpu_that_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(kedge.exception.Error, match=r"gpu H100 was asked for, and this machine has no GPU.*KEDGE_GPUS"):
        harbour.on_gpu.remote()


def test_for_each_and_spawn_map() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        harbour.square.for_each(range(5))
        call = harbour.square.spawn_map(range(3))
    assert call.num_inputs() == 3
    assert list(call.iter()) == [0, 1, 4]
