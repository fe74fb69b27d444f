"""Function handles: what they are aimed at, what they refuse, and that each form of a call reaches the invocation."""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import cloudpickle
import pytest
from msgspec import structs

import kedge
from kedge.exception import AsyncUsageWarning, ExecutionError, InvalidError
from kedge.model.spec import Batching, Concurrency
from kedge.sdk import context
from kedge.sdk.target import Target
from tests.sdk.fakes import Recorder, record, running


def square(x: int, scale: int = 1) -> int:
    """Squares."""
    return x * x * scale


def values(limit: int) -> Iterator[int]:
    yield from range(limit)


async def fetch(url: str) -> str:
    return url.upper()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return record(monkeypatch)


def test_a_handle_looks_like_its_function_and_is_not_called_directly() -> None:
    handle = kedge.App().function()(square)
    assert (handle.__name__, handle.__doc__, handle.__module__) == ("square", "Squares.", __name__)
    assert handle.get_raw_f() is square
    assert handle.local(3, scale=2) == 18
    assert repr(handle) == "<kedge.Function square>"
    with pytest.raises(TypeError, match=r"square is a kedge function .* square.remote\(…\) .* or square.local\(…\)"):
        handle(3)  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"values.remote_gen\(…\)"):
        kedge.App().function()(values)(3)  # type: ignore[operator]


def test_local_gives_what_the_plain_function_gives() -> None:
    app = kedge.App()
    assert list(app.function()(values).local(3)) == [0, 1, 2]
    assert asyncio.run(app.function()(fetch).local("a")) == "A"


def test_calls_need_a_running_app() -> None:
    app = kedge.App("mine")
    handle = app.function()(square)
    with pytest.raises(
        ExecutionError, match=r"square cannot be called yet: App\('mine'\) is not running. .*`kedge run`"
    ):
        handle.remote(3)
    app.started("ap-1")
    assert handle.target().app == "ap-1"
    assert handle.object_id == "fu-1-square"
    app.stopped("was stopped by its owner")
    with pytest.raises(ExecutionError, match=r"cannot be called any more: App\('mine'\) was stopped by its owner"):
        handle.map([1])


def test_targets() -> None:
    handle = running().function()(square)
    assert handle.target() == Target(app="ap-1", pool="fu-1-square", name="square")
    assert handle.target() is handle.target()
    assert running().function()(values).target().is_generator


def test_every_form_of_a_call(recorder: Recorder) -> None:
    handle = running().function()(square)
    target = handle.target()
    handle.remote(3, scale=2)
    handle.spawn(3)
    list(handle.map([1], [2], kwargs={"scale": 3}, order_outputs=False, return_exceptions=True))
    list(handle.starmap([(1, 2)]))
    handle.for_each([1], ignore_exceptions=True)
    handle.spawn_map([1])
    handle.get_current_stats()
    handle.update_autoscaler(min_containers=2)
    handle.update_concurrency(max_inputs=7, target_inputs=5)
    settings = {"min_containers": 2, "max_containers": None, "buffer_containers": None, "scaledown_window": None}
    assert recorder.calls == [
        ("call", target, (3,), {"scale": 2}),
        ("spawn", target, (3,), {}),
        ("map", target, ([1], [2]), {"scale": 3}, False, True, False),
        ("map", target, ([(1, 2)],), {}, True, False, True),
        ("map", target, ([1],), {}, False, True, False),
        ("spawn_map", target, ([1],), {}),
        ("statistics", target),
        ("update_autoscaler", target, settings),
        ("update_concurrency", target, {"max_inputs": 7, "target_inputs": 5}),
    ]


def test_every_form_has_an_asynchronous_twin(recorder: Recorder) -> None:
    handle = running().function()(square)
    generator = running().function()(values)

    async def main() -> None:
        await handle.remote.aio(3)
        await handle.spawn.aio(3)
        assert [value async for value in handle.map.aio([1])] == ["map_async"]  # type: ignore[comparison-overlap]
        assert [value async for value in handle.starmap.aio([(1, 2)])]
        await handle.for_each.aio([1])
        await handle.spawn_map.aio([1])
        await handle.get_current_stats.aio()
        await handle.update_autoscaler.aio(max_containers=2)
        await handle.update_concurrency.aio(target_inputs=2)
        assert [value async for value in generator.remote_gen.aio(3)]
        assert await handle.get_web_url.aio() is None

    asyncio.run(main())
    kinds = [call[0] for call in recorder.calls]
    assert kinds == [
        "call_async", "spawn_async", "map_async", "map_async", "map_async", "spawn_map_async", "statistics_async",
        "update_autoscaler_async", "update_concurrency_async", "stream_async",
    ]  # fmt: skip


def test_a_blocking_call_in_a_running_loop_warns_and_names_aio(recorder: Recorder) -> None:
    handle = running().function()(square)

    async def main() -> None:
        with pytest.warns(
            AsyncUsageWarning, match=r"\.remote\(…\) blocks the running event loop.*remote.aio"
        ) as caught:
            handle.remote(3)
        assert caught[0].filename == __file__

    asyncio.run(main())
    assert recorder.calls[0][0] == "call"


def test_a_call_beside_a_thread_that_imports_asyncio(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is in sys.modules before anything is in the module."""
    monkeypatch.setitem(sys.modules, "asyncio", ModuleType("asyncio"))
    running().function()(square).remote(3)
    assert recorder.calls[0][0] == "call"


def test_a_blocking_map_in_a_running_loop_warns_too(recorder: Recorder) -> None:
    handle = running().function()(square)

    async def main() -> None:
        with pytest.warns(AsyncUsageWarning, match=r"\.map\(…\) blocks .*\.map\.aio\(…\)` \(or `async for`"):
            list(handle.map([3]))
        with pytest.warns(AsyncUsageWarning, match=r"for_each\.aio"):
            handle.for_each([3])

    asyncio.run(main())
    assert [call[0] for call in recorder.calls] == ["map", "map"]


def test_generators_are_called_by_remote_gen_only(recorder: Recorder) -> None:
    generator = running().function()(values)
    assert list(generator.remote_gen(3)) == ["stream"]  # type: ignore[comparison-overlap]
    for call in (generator.remote, generator.spawn, generator.map, generator.spawn_map):
        with pytest.raises(
            InvalidError, match=r"values is a generator: .* write `for value in values.remote_gen\(…\)`"
        ):
            call([3])  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match=r"square is not a generator; write square.remote\(…\)"):
        running().function()(square).remote_gen(3)


def test_iterators_are_checked() -> None:
    handle = running().function()(square)
    with pytest.raises(
        InvalidError, match=r"square.map\(\) needs an iterator per parameter; write square.map\(\[1, 2, 3\]"
    ):
        handle.map()
    with pytest.raises(InvalidError, match=r"square.map takes iterators, not 3; .* as kwargs="):
        handle.map(3)  # type: ignore[arg-type]


def test_web_functions_are_not_called() -> None:
    app = running()
    handle: Any = app.function(serialized=True, name="web")(kedge.asgi_app()(lambda: "app"))
    assert handle.local() == "app"
    with pytest.raises(InvalidError, match=r"web is a web function \(@kedge.asgi_app\): .remote\(…\) cannot call it"):
        handle.remote()
    assert [spec.name for spec in app.function_specs()] == ["web"]


def test_batched_functions_take_lists_here_and_single_values_from_callers() -> None:
    app = running()
    handle: Any = app.function(serialized=True, name="b")(
        kedge.batched(max_batch_size=2, wait_ms=1)(lambda xs: [x + 1 for x in xs])  # type: ignore[call-overload]
    )
    (spec,) = app.function_specs()
    assert spec.methods[0].batching == Batching(2, 1)
    assert handle.local([1, 2]) == [2, 3]
    with pytest.raises(InvalidError, match=r"b is not a generator; write b.remote\(…\)"):
        handle.remote_gen(1)


def test_a_batched_function_cannot_be_declared_a_generator() -> None:
    with pytest.raises(InvalidError, match=r"is_generator=True and @kedge.batched exclude each other.*remove is_gen"):
        running().function(serialized=True, name="b", is_generator=True)(
            kedge.batched(max_batch_size=2, wait_ms=1)(lambda xs: xs)  # type: ignore[call-overload]
        )


# ---------------------------------------------------------------- variants


def test_variants_have_pools_of_their_own_and_leave_the_handle_alone() -> None:
    handle = running().function(memory=512)(square)
    variant = handle.with_options(gpu="h100", timeout=9, max_containers=3)
    target = variant.target()
    assert handle.target().variant is None
    assert target.variant is not None
    assert target.pool == f"fu-1-square@{target.variant.variant}"
    assert (target.variant.function, target.variant.parameters) == ("fu-1-square", None)
    spec = target.variant.spec
    assert (spec.autoscaler.max_containers, spec.resources.gpus[0].name, spec.resources.memory) == (3, "H100", 512)
    assert (target.timeout, spec.timeout) == (9.0, 300.0), "limits of calls travel with the calls"
    assert handle.spec.autoscaler.max_containers is None
    assert handle.target().timeout == 0.0


def test_limits_of_calls_need_no_containers_of_their_own() -> None:
    handle = running().function(timeout=60, queue_timeout=9)(square)
    hasty = handle.with_options(timeout=5).with_options(queue_timeout=0.5)
    target = hasty.target()
    assert (target.pool, target.variant, target.timeout, target.queue_timeout) == ("fu-1-square", None, 5.0, 0.5)
    assert handle.with_options(timeout=60).target().timeout == 60.0, "said for the call, even where it is the same"
    assert (handle.target().timeout, handle.target().queue_timeout) == (0.0, 0.0), "as the function says"
    variant = hasty.with_options(memory=512).with_concurrency(max_inputs=2).target()
    assert (variant.timeout, variant.queue_timeout) == (5.0, 0.5)
    other = handle.with_concurrency(max_inputs=2).with_options(memory=512, timeout=7).target()
    assert (variant.pool, variant.variant) == (other.pool, other.variant), "limits are no part of a variant"
    assert hasty.with_options(timeout=None, gpu=None).target() == target
    assert pickle.loads(pickle.dumps(hasty)).target() == target
    assert hasty.local(3) == 9


def test_equal_variants_meet_in_one_pool_and_different_ones_do_not() -> None:
    one, two = running().function()(square), running().function()(square)
    chained = one.with_options(memory=512).with_concurrency(max_inputs=4)
    other_order = two.with_concurrency(max_inputs=4).with_options(memory=512)
    assert chained.target().pool == other_order.target().pool
    assert chained.target().pool != one.with_options(memory=512).target().pool
    assert one.with_options(memory=128).target().variant is None, "the declared value again"


def test_with_concurrency_and_batching() -> None:
    handle = running().function()(square)
    assert handle.with_concurrency(max_inputs=4, target_inputs=3).spec.concurrency == Concurrency(4, 3, True)
    with pytest.raises(InvalidError, match=r"with_concurrency: target_inputs=5 is above max_inputs=4"):
        handle.with_concurrency(max_inputs=4, target_inputs=5)
    with pytest.raises(InvalidError, match=r"square takes no batches; add @kedge.batched"):
        handle.with_batching(max_batch_size=3, wait_ms=1)
    batched: Any = running().function(name="b", serialized=True)(
        kedge.batched(max_batch_size=2, wait_ms=1)(lambda x: x)  # type: ignore[call-overload]
    )
    assert batched.with_batching(max_batch_size=3, wait_ms=1).spec.methods[0].batching.max_batch_size == 3
    with pytest.raises(InvalidError, match=r"max_batch_size must be 1 to 1000"):
        batched.with_batching(max_batch_size=1001, wait_ms=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpu": (4, 2)}, r"with_options: cpu: the limit 2 is below the request 4"),
        ({"min_containers": 2}, r"with_options has no parameter 'min_containers'"),
        ({"image": None}, r"with_options has no parameter 'image'"),
        ({"timeout": 0}, r"with_options: timeout must be more than 0 seconds"),
        ({"timeout": "soon", "gpu": "H100"}, r"with_options: timeout must be a number of seconds, not 'soon'"),
        ({"queue_timeout": -1}, r"with_options: queue_timeout must be more than 0 seconds, got -1"),
        ({"secrets": ["x"]}, r"with_options: secrets holds a value of type str; write kedge.Secret.from_name"),
    ],
)
def test_variants_are_checked_where_they_are_written(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        kedge.App().function()(square).with_options(**options)


def test_update_autoscaler_is_checked() -> None:
    handle = running().function(min_containers=3)(square)
    with pytest.raises(InvalidError, match=r"update_autoscaler: max_containers must be at least 1"):
        handle.update_autoscaler(max_containers=0)
    with pytest.raises(InvalidError, match=r"min_containers=3 is above max_containers=2"):
        handle.update_autoscaler(min_containers=3, max_containers=2)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({}, r"square.update_concurrency\(\) changes nothing; write square.update_concurrency\(max_inputs=…\), target"),
        ({"max_inputs": 0}, r"update_concurrency: max_inputs must be at least 1, got 0"),
        ({"max_inputs": 1.5}, r"update_concurrency: max_inputs must be a whole number \(at least 1\), not 1.5"),
        ({"max_inputs": True}, r"max_inputs must be a whole number"),
        ({"max_inputs": 10**6}, r"max_inputs=1000000 is more than one container can run at once; .* at most 100000"),
        ({"target_inputs": 0}, r"update_concurrency: target_inputs must be 1 to 100000, got 0"),
        ({"max_inputs": 4, "target_inputs": 5}, r"update_concurrency: target_inputs=5 is above max_inputs=4"),
    ],
)
def test_update_concurrency_is_checked_where_it_is_written(
    numbers: dict[str, Any], message: str, recorder: Recorder
) -> None:
    handle = running().function()(square)
    with pytest.raises(InvalidError, match=message) as caught:
        handle.update_concurrency(**numbers)
    assert caught.traceback[0].path.name == "test_function.py"
    with pytest.raises(InvalidError, match=message):
        asyncio.run(handle.update_concurrency.aio(**numbers))
    assert not recorder.calls


# ---------------------------------------------------------------- across processes


def test_a_pickled_handle_reaches_the_same_pool() -> None:
    handle = running().function()(square)
    for one in (handle, handle.with_options(memory=512), handle.with_concurrency(max_inputs=3)):
        again = pickle.loads(pickle.dumps(one))
        assert again.target() == one.target()
        with pytest.raises(ExecutionError, match="the code of square is not in this process"):
            again.local(3)
    assert again.with_options(memory=99).target().pool == one.with_options(memory=99).target().pool


def test_code_by_value_is_pickled_when_the_app_starts() -> None:
    app = running()
    factor = 3

    def countdown(x: int) -> Any:
        return factor * (countdown.remote(x - 1) if x else 1)

    countdown = app.function(serialized=True)(countdown)  # type: ignore[assignment]
    factor = 5
    (spec,) = app.function_specs()
    assert spec.serialized is not None
    assert spec.serialized.format == "v"
    raw = cloudpickle.loads(spec.serialized.data)
    assert raw(0) == 5
    inner = raw.__closure__[0].cell_contents
    assert inner.target() == countdown.target()  # type: ignore[attr-defined]


def test_a_variant_of_code_by_value_carries_the_code() -> None:
    app = running()
    handle = app.function(serialized=True, name="four")(lambda: 4)
    variant = handle.with_options(memory=512).target().variant
    assert variant is not None
    assert variant.spec.serialized is not None
    again = pickle.loads(pickle.dumps(handle))
    bound = again.with_options(memory=512).target().variant
    assert bound.variant == variant.variant
    assert cloudpickle.loads(bound.spec.serialized.data)() == 4


def test_large_code_by_value_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    app = kedge.App()
    large = bytes(300 * 1024)
    app.function(serialized=True, name="large")(lambda: large)
    with pytest.warns(UserWarning, match=r"the code of large takes \d+ bytes by value: a large object is captured"):
        app.function_specs()
    monkeypatch.setattr("kedge.sdk.app.CODE_LIMIT", 1024)
    with pytest.raises(InvalidError, match=r"takes \d+ bytes by value, the limit is 1024: .*pass it as an argument"):
        app.function_specs()


def test_handles_in_a_container_use_its_app() -> None:
    handle, foreign = kedge.App("mine").function()(square), kedge.App("theirs").function(name="f")(values)
    unnamed = kedge.App().function()(square)
    context.set_container(app_id="ap-9", app_name="mine", function=structs.replace(handle.spec, timeout=5))
    try:
        assert handle.target().pool == "fu-9-square"
        assert unnamed.target().pool == "fu-9-square"
        with pytest.raises(
            ExecutionError, match=r"f belongs to App\('theirs'\), which is not the app of this container"
        ):
            foreign.remote_gen(3)
    finally:
        context.clear_container()


def test_code_by_value_can_run_where_the_handle_arrives() -> None:
    app = running()
    helper = app.function(serialized=True, name="helper")(lambda x: x + 1)

    def caller(x: int) -> Any:
        return helper.local(x) * 2

    app.function(serialized=True)(caller)
    spec = app.function_specs()[1]
    assert spec.serialized is not None
    assert cloudpickle.loads(spec.serialized.data)(1) == 4
    assert pickle.loads(pickle.dumps(helper)).local(1) == 2
