"""The reducer as a whole: apps, what is refused, statistics, live settings."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from kedge.core.outbox import ENGINE, STORE
from kedge.model import protocol as p
from kedge.model.payload import SUCCESS, TERMINATED, Payload, Result
from kedge.model.spec import AutoscalerSettings, ImageSpec, ImageStep, MethodSpec, ParameterSpec, Variant
from tests.core.conftest import Bench, F, Make, app, function

ONE = AutoscalerSettings(min_containers=1)


def refusal(b: Bench) -> str:
    (refused,) = b.orders(p.CallRefused, "se-1")
    return str(refused.error.message)


# ---------------------------------------------------------------- apps


def test_an_app_is_confirmed_and_starts_nothing(bench: Make) -> None:
    b = bench(function())
    assert b.replies(1) == [p.Reply(1, {"app": "ap-1", "labels": {}, "notes": []})]
    assert b.started == []


def test_the_same_app_again_changes_nothing(bench: Make) -> None:
    b = bench(function(autoscaler=ONE))
    b.send(p.AppCreated(2, app(function())), "se-1")
    assert b.replies(2) == [p.Reply(2, {"app": "ap-1", "labels": {}, "notes": []})]
    assert len(b.started) == 1


def test_an_unknown_function_is_refused(bench: Make) -> None:
    b = bench(function())
    b.submit(1, pool="fu-1-nothing")
    assert refusal(b) == "there is no running function fu-1-nothing: its app has stopped, or never ran on this server"
    b.send(p.StatisticsRequested(3, "fu-1-nothing"), "se-1")
    error = b.replies(3)[0].error
    assert error is not None
    assert error.type == "NotFoundError"


def test_nobody_is_told_where_nobody_asked(bench: Make) -> None:
    """Inputs out of the store, of an app that is not there: no message goes to no address."""
    b = bench(function())
    b.submit(1, pool="fu-2-f", session="", durable=True)
    assert [address for address, _ in b.last if not address] == []


def test_stopping_an_app(bench: Make) -> None:
    b = bench(function(slots=2))
    b.submit(5)
    b.ready("ct-1")
    b.send(p.AppStopped("ap-1", 9, "you said so"), "se-1")
    assert b.statuses() == dict.fromkeys(range(5), TERMINATED)
    assert b.error() == "the app a has stopped: you said so"
    assert b.drained() == ["ct-1", "ct-2", "ct-3"]
    assert all(order.cancel for order in b.orders(p.ContainerDrained))
    assert b.replies(9) == []
    b.submit(1, "fc-2")
    assert refusal(b) == "the app a has stopped: you said so"
    for container in b.started:
        assert b.orders(p.AppOver) == []
        b.lose(container, exit_code=0)
    assert b.replies(9) == [p.Reply(9, {"app": "ap-1"})]
    assert b.orders(p.AppOver, STORE) == [p.AppOver("ap-1")]
    assert (b.plane.apps, b.plane.pools, b.plane.calls.by_id) == ({}, {}, {})
    b.submit(1, "fc-3")
    assert "there is no running function" in refusal(b)


def test_stopping_twice_answers_both(bench: Make) -> None:
    b = bench(function())
    b.submit(1)
    b.ready()
    b.send(p.AppStopped("ap-1", 8), "se-1")
    b.send(p.AppStopped("ap-1", 9), "se-2")
    b.lose("ct-1", exit_code=0)
    b.send(p.AppStopped("ap-1", 10), "se-2")
    assert [len(b.replies(request)) for request in (8, 9, 10)] == [1, 1, 1]
    assert b.replies(10) == [p.Reply(10, {"app": "ap-1", "known": False})]


def test_a_stopped_app_gets_no_new_pools(bench: Make) -> None:
    """Not by its functions, not by variants, and so no containers either when a machine joins."""
    b = bench(function(), function("kept", autoscaler=ONE))
    b.ready()
    b.send(p.AppStopped("ap-1"), "se-1")
    b.submit(1)
    b.send(p.VariantBound(Variant(function=F, variant="x", spec=function(autoscaler=ONE))), "se-1")
    assert list(b.plane.pools) == ["fu-1-kept"]
    b.send(p.NodeJoined("n2", 4.0, 1024))
    assert b.orders(p.StartContainer) == []


def test_a_durable_call_of_a_stopped_app_is_recorded_as_ended(bench: Make) -> None:
    b = bench(function())
    b.submit(2, durable=True)
    b.send(p.AppStopped("ap-1"), "se-1")
    (recorded,) = b.orders(p.OutputsRecorded)
    assert [output.result.status for output in recorded.outputs] == [TERMINATED, TERMINATED]


def test_an_ephemeral_app_ends_with_its_session(bench: Make) -> None:
    b = bench(function(autoscaler=ONE))
    b.ready()
    b.send(p.SessionClosed(), "se-1")
    assert b.drained() == ["ct-1"]
    b.lose("ct-1", exit_code=0)
    assert b.plane.apps == {}


def test_a_deployed_app_does_not(bench: Make) -> None:
    b = bench()
    b.send(p.AppCreated(1, app(function(autoscaler=ONE), ephemeral=False)), "se-1")
    b.ready()
    b.send(p.SessionClosed(), "se-1")
    assert b.drained() == []
    assert "ap-1" in b.plane.apps


def test_an_app_follows_its_program_to_a_new_connection(bench: Make) -> None:
    b = bench(function(autoscaler=ONE))
    b.ready()
    b.send(p.AppCreated(2, app(function())), "se-2")
    b.send(p.SessionClosed("connection lost"), "se-1")
    assert b.drained() == []
    b.send(p.SessionClosed(), "se-2")
    assert b.drained() == ["ct-1"]


# ---------------------------------------------------------------- variants


def test_a_variant_has_a_pool_of_its_own(bench: Make) -> None:
    b = bench(function())
    b.send(p.VariantBound(Variant(function=F, variant="v1", spec=function(slots=7))), "se-1")
    b.submit(7, pool=f"{F}@v1")
    b.submit(1, "fc-2")
    b.ready()
    assert [len(b.running(container)) for container in b.started] == [7, 1]


def test_a_variant_runs_in_the_image_that_was_built_for_its_function(bench: Make) -> None:
    """Who makes a variant has the image as it was declared."""
    declared = ImageSpec((ImageStep("debian_slim"),), "d1")
    built = replace(declared, id="im-1")
    b = bench(replace(function(), image=built))
    b.send(p.VariantBound(Variant(function=F, variant="v1", spec=replace(function(), image=declared))), "se-1")
    assert b.plane.pools[f"{F}@v1"].spec.image == built


def test_a_variant_is_never_other_code_than_its_function(bench: Make) -> None:
    """Whoever may call a function may announce variants of it; whose code would that run?"""
    b = bench(function())
    other = replace(function(), name="g", module="os", qualname="system", is_class=True, serialized=Payload(data=b"x"))
    b.send(p.VariantBound(Variant(function=F, variant="v1", spec=replace(other, timeout=7.0))), "se-1")
    assert b.plane.pools[f"{F}@v1"].spec == replace(function(), timeout=7.0)


def test_an_announced_variant_keeps_its_min_containers(bench: Make) -> None:
    b = bench(function())
    b.send(p.VariantBound(Variant(function=F, variant="v1", spec=function(autoscaler=ONE))), "se-1")
    assert b.orders(p.StartContainer)[0].pool == f"{F}@v1"


def test_a_class_with_parameters_keeps_none_until_it_is_used(bench: Make) -> None:
    parameters = (ParameterSpec("size", "int"),)
    b = bench(function(parameters=parameters, autoscaler=ONE))
    assert b.started == []


def test_methods_with_limits_make_the_slots(bench: Make) -> None:
    methods = (MethodSpec("a", concurrency_limit=3), MethodSpec("b"))
    b = bench(function(methods=methods, is_class=True))
    b.submit(1, method="a")
    assert b.plane.pools[F].maximum == 4


# ---------------------------------------------------------------- statistics and settings


def test_statistics(bench: Make) -> None:
    b = bench(function(slots=2, autoscaler=AutoscalerSettings(max_containers=2)), function("g"))
    b.submit(7)
    b.ready("ct-1")
    b.finish("ct-1", 1, run_s=0.25)
    b.send(p.StatisticsRequested(5, F), "se-1")
    value = b.replies(5)[0].value
    expected = {
        "pool": F,
        "name": "f",
        "backlog": 4,
        "delayed": 0,
        "running": 2,
        "headroom": 0,
        "submitted": 7,
        "finished": 1,
        "failed": 0,
        "service_s": 0.25,
        "containers": 1,
        "starting": 1,
        "started": 2,
        "desired": 2,
    }
    assert {name: value[name] for name in expected} == expected
    b.send(p.StatisticsRequested(6, app="ap-1"), "se-1")
    assert [pool["name"] for pool in b.replies(6)[0].value] == ["f"]
    b.send(p.StatisticsRequested(7), "se-1")
    assert b.replies(7)[0].value["containers"] == 2


def test_live_settings(bench: Make) -> None:
    b = bench(function())
    b.send(p.AutoscalerUpdated(5, F, min_containers=2, scaledown_window=7.0), "se-1")
    value = {"min_containers": 2, "max_containers": None, "buffer_containers": 0, "scaledown_window": 7.0}
    assert b.replies(5) == [p.Reply(5, value)]
    assert len(b.started) == 2
    b.send(p.AutoscalerUpdated(6, F, max_containers=1), "se-1")
    error = b.replies(6)[0].error
    assert error is not None
    assert error.message == "min_containers=2 is above max_containers=1"
    assert b.plane.pools[F].fleet.settings.max_containers is None


# ---------------------------------------------------------------- the rest


@pytest.mark.parametrize(
    ("message", "sender", "what"),
    [
        (p.ContainerReady(), "ct-99", "ready said by a container that is gone"),
        (p.ContainerReady(), "ct-1", "ready a container that was not starting"),
        (p.InputsFinished([]), "ct-99", "inputs finished by a container that is gone"),
        (p.InputsStarted([1]), "ct-99", "inputs started by a container that is gone"),
        (p.InputsReturned([1]), "ct-99", "inputs returned by a container that is gone"),
        (p.InputsReturned([77]), "ct-1", "returned a lease that is over"),
        (p.InputsFinished([p.Finished(77, Result())]), "ct-1", "finished a lease that is over"),
        (p.ContainerLost("ct-99"), "", "lost a container that is gone"),
    ],
)
def test_what_is_out_of_place_is_counted(bench: Make, message: p.Message, sender: str, what: str) -> None:
    b = bench(function())
    b.submit(1)
    b.ready()
    assert b.send(message, sender) == []
    assert b.plane.statistics()["dropped"] == {what: 1}
    b.finish("ct-1", 1)
    assert b.statuses() == {0: SUCCESS}


@pytest.mark.parametrize(
    "message",
    [
        p.ContainerStarted("ct-99", 1),
        p.ContainerDisconnected("ct-99"),
        p.Heartbeat(0),
        p.CallClosed("fc-99", 1),
        p.CallCancelled("fc-99"),
        p.OutputsForgotten("fc-99"),
        p.NodeLost("n99"),
        p.SessionClosed(),
        p.TimePassed(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_is_about_nothing_does_nothing(bench: Make, message: p.Message) -> None:
    b = bench(function())
    assert b.send(message, "se-99") == []


def test_a_lost_machine_moves_its_inputs(bench: Make) -> None:
    b = bench(function(slots=4), cpu=0.125)
    b.submit(4)
    b.ready()
    b.send(p.NodeLost("n1"))
    assert b.plane.containers == {}
    b.send(p.NodeJoined("n2", 1.0, 1024))
    assert b.orders(p.StartContainer, ENGINE)[0].node == "n2"
    b.ready()
    assert len(b.running("ct-2")) == 4


def test_every_lease_is_new(bench: Make) -> None:
    b = bench(function(slots=3, autoscaler=AutoscalerSettings(max_containers=1)))
    seen: list[int] = []
    for number in range(5):
        b.submit(3, f"fc-{number}")
        b.ready()
        seen += list(b.leases[b.started[-1]])
        if number % 2:
            b.lose(b.started[-1], signal=9)
            b.ready()
            seen += list(b.leases[b.started[-1]])
        b.finish(b.started[-1])
    assert len(set(seen)) == len(seen)


def test_stories(bench: Make) -> None:
    b = bench(function())
    b.submit(1)
    b.ready()
    assert b.plane.story("fc-1") == "<Call fc-1 of fu-1-f: 1 open, 0 recorded>"
    assert b.plane.story("ct-1") == "<Container ct-1 ready: 1 running, 0 credited>"
    assert "'running': 1" in b.plane.story(F)
    assert b.plane.story("fc-9") == "fc-9 is not known (any more)"


def test_the_same_messages_give_the_same_commands() -> None:
    told = []
    for _ in range(2):
        b = Bench(function(slots=3, target=2), function("g"))
        b.submit(9)
        b.submit(3, "fc-2", "fu-1-g")
        b.ready()
        b.send(p.CallCancelled("fc-2"), "se-1")
        b.lose("ct-1", signal=9)
        b.wait(100.0)
        told.append(b.commands)
    assert told[0] == told[1]


def test_core_cost_does_not_grow_with_waiting_calls(bench: Make) -> None:
    """Methods that are full everywhere are looked at once per step, however many calls wait for them."""
    methods = (MethodSpec("a", concurrency_limit=1), MethodSpec("b", concurrency_limit=1))
    b = bench(function(methods=methods, autoscaler=AutoscalerSettings(max_containers=1)))
    for number in range(300):
        b.submit(1, f"fc-{number}", method="ab"[number % 2])
    b.ready()
    pool = b.plane.pools[F]
    looked: list[str] = []
    pick = pool.pick_for
    pool.pick_for = lambda method: looked.append(method) or pick(method)  # type: ignore[method-assign,func-returns-value]
    b.finish("ct-1", 1)
    assert len(looked) <= 4
