"""Versions of deployed apps: which one gets the calls, and how the next one takes over without losing any."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kedge.core.apps import rebased
from kedge.core.deployments import HANDOVER_S, KEPT_VERSIONS, ROOM_PATIENCE_S
from kedge.core.outbox import STORE
from kedge.model import protocol as p
from kedge.model.ids import deployment_id, function_id, pool_id
from kedge.model.payload import FAILURE, SUCCESS, ErrorInfo, Payload
from kedge.model.spec import (
    AppSpec,
    AutoscalerSettings,
    FunctionSpec,
    GpuRequest,
    MethodSpec,
    ParameterSpec,
    Resources,
    RetryPolicy,
    Variant,
    WebSpec,
)
from tests.core.conftest import Bench, Make, app, function

D = deployment_id("main", "a")
POOL = function_id(D, "f")
"""The function `f` of whichever version is current."""


def web(name: str = "f", label: str | None = None, **options: Any) -> FunctionSpec:
    return function(name, methods=(MethodSpec(web=WebSpec(kind="asgi_app", label=label)),), **options)


def version(number: int, *functions: FunctionSpec) -> AppSpec:
    return app(*(functions or (function(),)), id=f"ap-v{number}", ephemeral=False)


def deploy(b: Bench, number: int, *functions: FunctionSpec, session: str = "se-9", **options: Any) -> p.Reply | None:
    """Deploys it and lets all its containers come up; the answer, if there is one."""
    b.send(p.AppDeployed(100 + number, version(number, *functions), **options), session)
    b.ready()
    return answer(b, 100 + number)


def answer(b: Bench, request: int) -> p.Reply | None:
    """To a deploy: either directly, or by the store once it is on disk."""
    recorded = [
        o for to, o in b.commands if to == STORE and isinstance(o, p.DeploymentChanged) and o.request == request
    ]
    replies = b.replies(request)
    assert len(recorded) + len(replies) <= 1
    return p.Reply(request, recorded[0].value) if recorded else (replies[0] if replies else None)


def error(b: Bench, request: int) -> str:
    reply = answer(b, request)
    assert reply is not None
    assert reply.error is not None
    return reply.error.message


def pool_of(b: Bench, number: int, name: str = "f") -> Any:
    return b.plane.pools[function_id(f"ap-v{number}", name)]


# ---------------------------------------------------------------- the first version


def test_a_version_is_current_once_a_container_of_each_function_is_up(bench: Make) -> None:
    b = bench()
    b.send(p.AppDeployed(1, version(1, function("f"), function("g"))), "se-9")
    assert len(b.started) == 2
    b.ready("ct-1")
    assert answer(b, 1) is None
    b.ready("ct-2")
    reply = answer(b, 1)
    assert reply is not None
    assert reply.value == {"app": D, "version": 1, "origin_version": 0, "labels": {}, "unproved": [], "notes": []}
    recorded = b.orders(p.DeploymentChanged, STORE)[0]
    assert (recorded.deployment, recorded.app, recorded.version, recorded.session) == (D, "ap-v1", 1, "se-9")
    assert [n.text for n in b.orders(p.Notice, "se-9")] == ["g is up after 0 s"]


def test_containers_that_were_tried_leave_like_others(bench: Make) -> None:
    b = bench()
    deploy(b, 1, function(autoscaler=AutoscalerSettings(scaledown_window=5.0)))
    assert pool_of(b, 1).fleet.ready == 1
    b.wait(6.0)
    assert pool_of(b, 1).fleet.ready == 0


def test_calls_by_the_id_of_the_deployment_reach_the_current_version(bench: Make) -> None:
    b = bench()
    deploy(b, 1)
    b.submit(pool=POOL)
    assert b.running("ct-1") == ["fc-1:0"]
    b.finish("ct-1")
    assert b.statuses() == {0: SUCCESS}


def test_a_first_version_that_cannot_start_leaves_nothing(bench: Make) -> None:
    b = bench()
    b.send(p.AppDeployed(1, version(1)), "se-9")
    b.send(p.ContainerFailed(ErrorInfo("ImportError", "no module named torch")), "ct-1")
    assert error(b, 1) == "f cannot start: no module named torch"
    b.lose("ct-1")
    assert b.plane.apps == {}
    b.submit(pool=POOL)
    refused = b.orders(p.CallRefused)[0]
    assert refused.error.message == "the app a has been stopped; deploy it again with `kedge deploy`"


def test_a_container_that_dies_while_it_starts_fails_the_deploy(bench: Make) -> None:
    b = bench()
    b.send(p.AppDeployed(1, version(1)), "se-9")
    b.lose("ct-1", signal=9)
    assert error(b, 1).startswith("f cannot start: ")
    assert "it was killed by signal 9" in error(b, 1)


def test_a_start_that_takes_too_long_fails_the_deploy(bench: Make) -> None:
    b = bench()
    b.send(p.AppDeployed(1, version(1, function(startup_timeout=20.0))), "se-9")
    b.wait(21.0)
    assert "was not ready 20 s after its start" in error(b, 1)


def test_a_device_that_no_machine_has_fails_the_deploy_with_what_there_is(bench: Make) -> None:
    b = bench(gpus={"L4": 1})
    b.send(p.AppDeployed(1, version(1, function(resources=Resources(gpus=(GpuRequest("H100"),))))), "se-9")
    assert "H100" in error(b, 1)
    assert "L4" in error(b, 1)


def test_what_finds_no_room_now_is_not_tried(bench: Make) -> None:
    b = bench(function("busy", resources=Resources(cpu=4.0)), cpu=4.0)
    b.submit(pool="fu-1-busy")
    b.ready()
    b.send(p.AppDeployed(2, version(1, function(resources=Resources(cpu=4.0)))), "se-9")
    assert answer(b, 2) is None
    b.wait(ROOM_PATIENCE_S)
    reply = answer(b, 2)
    assert reply is not None
    assert reply.value["unproved"] == ["f"]
    assert "could not be tried" in [o for _, o in b.commands if isinstance(o, p.Notice)][-1].text


def test_functions_that_have_no_room_beside_each_other_are_tried_in_turn(bench: Make) -> None:
    b = bench(cpu=4.0)
    whole = [function(name, resources=Resources(cpu=4.0)) for name in ("f", "g", "h")]
    b.send(p.AppDeployed(2, version(1, *whole)), "se-9")
    for _ in whole:
        b.ready()
        for container in [c.id for c in b.plane.containers.values() if c.state == "draining"]:
            b.lose(container, exit_code=0)
    reply = answer(b, 2)
    assert reply is not None
    assert reply.value["unproved"] == []
    assert len(b.started) == 3


def test_a_class_whose_parameters_must_be_given_is_not_tried(bench: Make) -> None:
    b = bench()
    deploy(b, 1, function(is_class=True, parameters=(ParameterSpec("size", "str"),)))
    assert b.started == []
    assert answer(b, 101) is not None


# ---------------------------------------------------------------- the next one


def test_the_old_version_finishes_what_it_has_and_gets_nothing_new(bench: Make) -> None:
    b = bench()
    deploy(b, 1)
    b.submit(1, "fc-1", pool=POOL)
    b.submit(1, "fc-2", pool=POOL)
    b.ready()
    b.submit(1, "fc-queued", pool=POOL)
    reply = deploy(b, 2)
    assert reply is not None
    assert reply.value["version"] == 2
    b.submit(1, "fc-3", pool=POOL)
    new = next(iter(pool_of(b, 2).fleet.containers))
    assert b.running(new) == ["fc-3:0"]
    for container in list(pool_of(b, 1).fleet.containers):
        b.finish(container)
    b.ready()
    for container in list(pool_of(b, 1).fleet.containers):
        b.finish(container)
    assert b.statuses("fc-1") == b.statuses("fc-2") == b.statuses("fc-queued") == {0: SUCCESS}
    b.wait(1.0)
    assert pool_of(b, 1).fleet.ready == 0


def test_idle_containers_of_the_old_version_leave_at_once_also_kept_ones(bench: Make) -> None:
    b = bench()
    kept = function(autoscaler=AutoscalerSettings(min_containers=2, scaledown_window=3600.0))
    deploy(b, 1, kept)
    deploy(b, 2, kept)
    b.wait(0.1)
    assert pool_of(b, 1).fleet.ready == 0
    assert pool_of(b, 2).fleet.ready == 2


def test_a_new_version_that_cannot_start_changes_nothing(bench: Make) -> None:
    b = bench()
    deploy(b, 1, web())
    b.send(p.AppDeployed(2, version(2, web(label="other"))), "se-9")
    b.send(p.ContainerFailed(ErrorInfo("ValueError", "bad weights")), b.started[-1])
    assert error(b, 2) == "f cannot start: bad weights. Version 1 of a goes on serving"
    b.submit(pool=POOL)
    assert b.running("ct-1") == ["fc-1:0"]
    assert b.plane.routes.find("a-f") is not None
    assert b.plane.routes.find("other") is None
    b.lose(b.started[-1])
    reply = deploy(b, 3)
    assert reply is not None
    assert reply.value["version"] == 2  # a deploy that failed has no number


def test_recreate_makes_room_before_it_starts(bench: Make) -> None:
    whole = function(resources=Resources(cpu=4.0), autoscaler=AutoscalerSettings(min_containers=1))
    b = bench(cpu=4.0)
    deploy(b, 1, whole)
    b.send(p.AppDeployed(2, version(2, whole), p.RECREATE), "se-9")
    b.wait(0.1)
    b.submit(1, "fc-2", pool=POOL)
    assert b.plane.pools[function_id("ap-v1", "f")].fleet.ready == 0
    b.lose("ct-1", exit_code=0)
    b.ready()
    assert b.running(b.started[-1]) == ["fc-2:0"]


def test_recreate_goes_back_where_the_new_version_cannot_start(bench: Make) -> None:
    b = bench()
    deploy(b, 1, function(autoscaler=AutoscalerSettings(min_containers=1)))
    b.send(p.AppDeployed(2, version(2), p.RECREATE), "se-9")
    b.send(p.ContainerFailed(ErrorInfo("ValueError", "bad")), b.started[-1])
    assert error(b, 2) == "f cannot start: bad. Version 1 of a goes on serving"
    b.wait(0.1)
    b.ready()
    b.submit(pool=POOL)
    assert len(pool_of(b, 1).fleet.containers) >= 1
    assert b.plane.deployments.by_id[D].number == 1


def test_a_deploy_takes_the_place_of_one_that_is_still_tried(bench: Make) -> None:
    b = bench()
    b.send(p.AppDeployed(1, version(1)), "se-8")
    b.send(p.AppDeployed(2, version(2)), "se-9")
    assert error(b, 1) == "another deploy has taken the place of this one"
    b.ready("ct-2")
    reply = answer(b, 2)
    assert reply is not None
    assert reply.value["version"] == 1


def test_a_deploy_that_nobody_waits_for_is_given_up(bench: Make) -> None:
    b = bench()
    deploy(b, 1)
    b.send(p.AppDeployed(2, version(2)), "se-8")
    b.send(p.SessionClosed(), "se-8")
    assert b.plane.deployments.by_id[D].number == 1
    assert b.plane.deployments.tried == {}


def test_an_unknown_strategy_is_refused(bench: Make) -> None:
    b = bench()
    b.send(p.AppDeployed(1, version(1), "blue-green"), "se-9")
    assert error(b, 1) == "strategy='blue-green' is not known; write one of rolling, recreate"


# ---------------------------------------------------------------- versions by number


def test_rollback_brings_a_version_back_under_a_new_number(bench: Make) -> None:
    b = bench()
    deploy(b, 1)
    deploy(b, 2)
    b.send(p.AppRolledBack(7, "a"), "se-9")
    b.ready()
    reply = answer(b, 7)
    assert reply is not None
    assert (reply.value["version"], reply.value["origin_version"]) == (3, 1)
    b.submit(pool=POOL)
    b.ready()
    assert any(b.running(c) for c in pool_of(b, 1).fleet.containers)
    b.send(p.AppRolledBack(8, "a", version=2), "se-9")
    b.ready()
    reply = answer(b, 8)
    assert reply is not None
    assert (reply.value["version"], reply.value["origin_version"]) == (4, 2)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (p.AppRolledBack(7, "a"), "a has no version before the current one (1)"),
        (p.AppRolledBack(7, "a", version=1), "version 1 of a is the current one"),
        (p.AppRolledBack(7, "a", version=5), "a has no version 5 to go back to; it has none"),
        (
            p.AppRolledBack(7, "b"),
            "no app 'b' is deployed in the environment 'main'; deployed there: a. Deploy it with `kedge deploy`",
        ),
        (
            p.AppRolledBack(7, "a", "test"),
            "no app 'a' is deployed in the environment 'test'; nothing is deployed there. It is deployed in main",
        ),
    ],
)
def test_rollbacks_that_cannot_be(bench: Make, message: p.AppRolledBack, text: str) -> None:
    b = bench()
    deploy(b, 1)
    b.send(message, "se-9")
    assert error(b, 7) == text


def test_a_version_can_be_called_by_its_own_id(bench: Make) -> None:
    b = bench()
    deploy(b, 1)
    deploy(b, 2)
    b.send(p.FunctionRequested(5, app="a", name="f", version=1), "se-1")
    value = b.replies(5)[0].value
    assert (value["app"], value["version"], value["spec"].name) == ("ap-v1", 1, "f")
    b.submit(pool=function_id("ap-v1", "f"))
    b.ready()
    assert any(b.running(c) for c in pool_of(b, 1).fleet.containers)


def test_old_versions_are_forgotten_when_they_have_nothing_left(bench: Make) -> None:
    b = bench()
    for number in range(1, 25):
        deploy(b, number)
        b.wait(0.1)
        for container in [c.id for c in b.plane.containers.values() if c.state == "draining"]:
            b.lose(container, exit_code=0)
    assert sorted(b.plane.deployments.by_id[D].versions) == list(range(5, 25))
    assert "ap-v1" not in b.plane.apps


# ---------------------------------------------------------------- parameters and options live on


def bind(b: Bench, spec: FunctionSpec, digest: str = "d1", parameters: Payload | None = None) -> str:
    b.send(p.VariantBound(Variant(function=POOL, variant=digest, parameters=parameters, spec=spec)), "se-1")
    return pool_id(POOL, digest)


def test_a_variant_that_was_announced_to_one_version_is_known_to_the_next(bench: Make) -> None:
    b = bench()
    deploy(b, 1, function(timeout=10.0, slots=2))
    id = bind(b, function(timeout=99.0, slots=2))
    deploy(b, 2, function(timeout=10.0, slots=4, env=(("NEW", "1"),)))
    b.submit(pool=id)
    b.ready()
    pool = b.plane.pools[pool_id(function_id("ap-v2", "f"), "d1")]
    assert pool.running == 1
    assert (pool.spec.timeout, pool.maximum, pool.spec.env) == (99.0, 4, (("NEW", "1"),))


def test_a_variant_made_from_an_old_declaration_gets_the_current_code(bench: Make) -> None:
    b = bench()
    old, new = replace(function(), qualname="old"), replace(function(), qualname="new")
    deploy(b, 1, old)
    deploy(b, 2, new)
    parameters = Payload(format="m", data=b"x")
    b.submit(pool=bind(b, old, "d2", parameters))
    pool = b.plane.pools[pool_id(function_id("ap-v2", "f"), "d2")]
    assert (pool.spec.qualname, pool.parameters) == ("new", parameters)


def test_options_are_put_on_top_of_the_current_declaration() -> None:
    first, second = function(timeout=10.0), function(timeout=20.0, slots=3)
    made = function(timeout=20.0, slots=3, queue_timeout=1.0)
    renewed = rebased(made, [second, first], function(timeout=30.0, slots=5))
    assert (renewed.timeout, renewed.concurrency.max_inputs, renewed.queue_timeout) == (30.0, 5, 1.0)


def test_a_function_that_the_current_version_does_not_have(bench: Make) -> None:
    b = bench()
    deploy(b, 1, function("f"), function("g"))
    deploy(b, 2, function("g"))
    b.submit(pool=POOL)
    assert b.orders(p.CallRefused)[0].error.message == "version 2 of a has no function 'f'; it has g"


# ---------------------------------------------------------------- names


def test_functions_are_found_by_name(bench: Make) -> None:
    b = bench()
    deploy(b, 1, web("site"), function("f"))
    b.send(p.FunctionRequested(5, app="a", name="site"), "se-1")
    value = b.replies(5)[0].value
    assert (value["app"], value["name"], value["environment"], value["version"]) == (D, "a", "main", 1)
    assert value["labels"] == {"": "a-site"}
    b.send(p.FunctionRequested(6, function=POOL), "se-1")
    assert b.replies(6)[0].value["spec"].name == "f"
    b.send(p.FunctionRequested(7, app="a"), "se-1")
    assert "spec" not in b.replies(7)[0].value
    assert b.replies(7)[0].value["labels"] == {"site": "a-site"}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (p.FunctionRequested(5, app="a", name="h"), "the app a has no function or class 'h'; it has f"),
        (p.FunctionRequested(5, app="a", name="f", version=9), "a has no version 9 (any more); there are 1"),
        (
            p.FunctionRequested(5, app="z", name="f"),
            "no app 'z' is deployed in the environment 'main'; deployed there: a. Deploy it with `kedge deploy`",
        ),
        (
            p.FunctionRequested(5, function="fu-00-x"),
            "there is no running function fu-00-x: its app has stopped, or never ran on this server",
        ),
    ],
)
def test_what_is_not_found_is_said_with_what_there_is(bench: Make, message: p.FunctionRequested, text: str) -> None:
    b = bench()
    deploy(b, 1)
    b.send(message, "se-1")
    found = b.replies(5)[0].error
    assert found is not None
    assert (found.type, found.message) == ("NotFoundError", text)


def test_two_environments_do_not_meet(bench: Make) -> None:
    b = bench()
    deploy(b, 1, web())
    spec = version(2, web())
    b.send(p.AppDeployed(2, replace(spec, environment_name="test")), "se-9")
    b.ready()
    assert sorted(b.plane.routes.by_label) == ["a-f", "a-f-test"]
    b.submit(pool=POOL)
    assert b.running("ct-1") == ["fc-1:0"]


# ---------------------------------------------------------------- the end


def test_stopping_a_deployment_ends_all_its_versions(bench: Make) -> None:
    b = bench()
    deploy(b, 1, web())
    b.submit(pool=POOL)
    deploy(b, 2, web())
    b.send(p.AppStopped(D, 9), "se-5")
    assert b.orders(p.DeploymentChanged, STORE)[0].app == ""
    assert b.plane.routes.by_label == {}
    assert b.error() == "the app a has stopped: stopped by its owner"
    for container in list(b.plane.containers):
        assert answer(b, 9) is None
        b.lose(container, exit_code=0)
    assert answer(b, 9) == p.Reply(9, {"app": D})
    assert b.orders(p.DeploymentChanged, STORE)[0].session == "se-5"  # who hears of it once it is on disk
    assert b.plane.apps == {}
    reply = deploy(b, 3)
    assert reply is not None
    assert reply.value["version"] == 3


def test_a_deploy_during_a_stop_is_refused(bench: Make) -> None:
    b = bench()
    deploy(b, 1)
    b.submit(pool=POOL)
    b.send(p.AppStopped(D, 9), "se-5")
    b.send(p.AppDeployed(2, version(2)), "se-9")
    assert error(b, 2) == "a is being stopped; deploy it again when it has stopped"


# ---------------------------------------------------------------- served apps


def served(number: int, *functions: FunctionSpec) -> AppSpec:
    return app(*(functions or (web(),)), id=f"ap-s{number}", ephemeral=True)


def test_a_served_app_ends_with_its_session_and_not_the_deployed_one(bench: Make) -> None:
    b = bench()
    deploy(b, 1, web())
    b.send(p.AppDeployed(2, served(1)), "se-7")
    b.ready()
    assert sorted(b.plane.routes.by_label) == ["a-f", "a-f-dev"]
    assert b.replies(2)[0].value["labels"] == {"f": "a-f-dev"}
    b.send(p.AppDeployed(3, served(2)), "se-7")
    b.ready()
    assert b.replies(3)[0].value["version"] == 2
    b.send(p.SessionClosed(), "se-7")
    assert list(b.plane.routes.by_label) == ["a-f"]
    for container in list(b.plane.containers.values()):
        if container.pool.app != "ap-v1":
            b.lose(container.id, exit_code=0)
    assert list(b.plane.apps) == ["ap-v1"]
    assert list(b.plane.deployments.by_id) == [D]


def test_two_programs_cannot_serve_the_same_app(bench: Make) -> None:
    b = bench()
    b.send(p.AppDeployed(2, served(1)), "se-7")
    b.ready()
    b.send(p.AppDeployed(3, served(2)), "se-8")
    assert "is served already by another program" in error(b, 3)


# ---------------------------------------------------------------- restart


def test_a_restarted_plane_knows_what_is_current(bench: Make) -> None:
    b = bench()
    specs = [replace(version(n, web()), deployment=D, version=n) for n in (1, 2)]
    for spec in specs:
        b.send(p.AppCreated(0, spec))
    b.send(p.DeploymentChanged(D, "main", "a", "ap-v1", 3, 1))
    assert b.plane.deployments.by_id[D].number == 3
    b.submit(pool=POOL)
    assert [c.pool.app for c in b.plane.containers.values()] == ["ap-v1"]
    route = b.plane.routes.find("a-f")
    assert route is not None
    assert route.app == D
    reply = deploy(b, 4)
    assert reply is not None
    assert reply.value["version"] == 4


def test_a_stopped_deployment_goes_on_counting_after_a_restart(bench: Make) -> None:
    b = bench()
    b.send(p.DeploymentChanged(D, "main", "a", "", 5))
    reply = deploy(b, 1)
    assert reply is not None
    assert reply.value["version"] == 6


def listening() -> FunctionSpec:
    return function(methods=(MethodSpec(web=WebSpec(kind="web_server", port=8000)),))


def test_a_web_server_s_port_passes_from_version_to_version(bench: Make) -> None:
    b = bench()
    deploy(b, 1, listening())
    b.submit(pool=POOL)
    deploy(b, 2, listening())
    b.submit(1, "fc-2", pool=POOL)
    b.wait(100.0)
    assert answer(b, 102) is None, "the version before still answers something"
    b.finish("ct-1")
    b.wait(1.0)
    b.lose("ct-1", exit_code=0)
    b.ready()
    assert b.running(b.started[-1]) == ["fc-2:0"]
    reply = answer(b, 102)
    assert reply is not None
    assert reply.value["unproved"] == []


def test_a_web_server_that_cannot_start_gives_the_port_back_and_who_waits_is_served(bench: Make) -> None:
    b = bench()
    deploy(b, 1, listening())
    b.send(p.AppDeployed(102, version(2, listening())), "se-9")
    b.wait(0.1)
    b.submit(2, "fc-2", pool=POOL)
    b.lose("ct-1", exit_code=0)
    b.send(p.ContainerFailed(ErrorInfo("ValueError", "nothing listens")), b.started[-1])
    assert error(b, 102) == "f cannot start: nothing listens. Version 1 of a goes on serving"
    b.lose(b.started[-1])
    b.ready()
    container = b.started[-1]
    assert b.plane.containers[container].pool.app == "ap-v1"
    for _ in range(2):
        b.finish(container)
    assert b.statuses("fc-2") == {0: SUCCESS, 1: SUCCESS}


def test_who_takes_over_at_once_does_not_wait_for_ever(bench: Make) -> None:
    b = bench()
    deploy(b, 1, listening())
    b.submit(pool=POOL)
    deploy(b, 2, listening())
    b.wait(HANDOVER_S + ROOM_PATIENCE_S)
    reply = answer(b, 102)
    assert reply is not None
    assert reply.value["unproved"] == ["f"]


def test_a_call_that_spans_a_deploy_stays_in_the_version_in_which_it_has_begun(bench: Make) -> None:
    b = bench()
    deploy(b, 1, function("f"))
    b.submit(1, pool=POOL)
    deploy(b, 2, function("f"))
    b.submit(1, pool=POOL, first=1)
    assert b.plane.dropped == {}
    b.finish("ct-1")
    assert b.running("ct-1") == ["fc-1:1"]
    deploy(b, 3, function("g"))
    b.submit(1, pool=POOL, first=2)
    b.send(p.CallClosed("fc-1", 3), "se-1")
    b.finish("ct-1")
    b.finish("ct-3")  # the old version has got another one, since its call had two inputs
    assert b.statuses() == {0: SUCCESS, 1: SUCCESS, 2: SUCCESS}
    b.submit(1, call="fc-2", pool=POOL)
    assert "has no function 'f'" in b.orders(p.CallRefused)[0].error.message


def test_an_old_version_is_not_forgotten_while_an_input_of_it_waits_for_its_retry(bench: Make) -> None:
    b = bench()
    retrying = function(
        retries=RetryPolicy(max_retries=1, initial_delay=60.0), autoscaler=AutoscalerSettings(scaledown_window=1.0)
    )
    deploy(b, 1, retrying)
    b.submit(pool=POOL)
    b.finish("ct-1", status=FAILURE)
    for number in range(2, KEPT_VERSIONS + 3):
        deploy(b, number, retrying)
        for container in [c.id for c in b.plane.containers.values() if c.pool.app != f"ap-v{number}"]:
            b.lose(container)
    assert "ap-v2" not in b.plane.apps
    assert b.statuses() == {}
    b.wait(61.0)
    b.ready()
    b.finish(b.started[-1])
    assert b.statuses() == {0: SUCCESS}


def test_parameters_outlive_the_version_to_which_they_were_announced(bench: Make) -> None:
    b = bench()
    deploy(b, 1)
    b.send(p.VariantBound(Variant(function=POOL, variant="abc", parameters=Payload(data=b"x"), spec=function())))
    for number in range(2, KEPT_VERSIONS + 3):
        deploy(b, number)
        for container in [c.id for c in b.plane.containers.values() if c.pool.app != f"ap-v{number}"]:
            b.lose(container)
    assert "ap-v1" not in b.plane.apps
    b.submit(pool=pool_id(POOL, "abc"))
    b.ready()
    b.finish(b.started[-1])
    assert b.statuses() == {0: SUCCESS}


def test_of_two_apps_that_are_tried_at_the_same_time_the_first_to_be_up_gets_the_label(bench: Make) -> None:
    b = bench()
    b.send(p.AppDeployed(1, replace(version(1, web(label="shop")), name="first")), "se-7")
    b.send(p.AppDeployed(2, replace(version(2, web(label="shop")), name="second")), "se-8")
    b.ready("ct-2")
    b.ready("ct-1")
    reply = answer(b, 2)
    assert reply is not None
    assert reply.error is None
    assert error(b, 1).startswith("the label 'shop' of f belongs to f of the app ")
    route = b.plane.routes.find("shop")
    assert route is not None
    assert route.app == deployment_id("main", "second")


def test_a_version_that_serves_again_leaves_a_label_to_who_has_taken_it_meanwhile(bench: Make) -> None:
    b = bench()
    deploy(b, 1, web(label="shop"))
    b.send(p.AppDeployed(2, version(2, web(label="store")), p.RECREATE), "se-9")
    b.send(p.AppDeployed(3, replace(version(3, web(label="shop")), name="other")), "se-8")
    candidate, other = b.started[-2:]
    b.ready(other)
    b.send(p.ContainerFailed(ErrorInfo("ImportError", "no")), candidate)
    assert error(b, 2).endswith("Version 1 of a goes on serving")
    route = b.plane.routes.find("shop")
    assert route is not None
    assert route.app == deployment_id("main", "other")
    assert b.plane.routes.find("store") is None


def test_a_deploy_that_is_said_again_is_answered_and_not_made_again(bench: Make) -> None:
    b = bench()
    b.send(p.AppDeployed(1, version(1)), "se-1")
    b.send(p.AppDeployed(1, version(1)), "se-2")  # the connection was lost, and another one was made
    b.send(p.SessionClosed(), "se-1")
    b.ready()
    changed = b.orders(p.DeploymentChanged, STORE)[0]
    assert (changed.session, changed.request, changed.value["version"]) == ("se-2", 1, 1)
    b.send(p.AppDeployed(7, version(1)), "se-3")
    changed = b.orders(p.DeploymentChanged, STORE)[0]
    assert (changed.session, changed.request, changed.version, changed.value["version"]) == ("se-3", 7, 1, 1)
    b.send(p.AppDeployed(8, version(2)), "se-4")
    b.send(p.AppDeployed(9, version(1)), "se-5")
    assert b.replies(9)[0].value["version"] == 1
    b.ready()
    assert b.plane.deployments.by_id[D].number == 2


def test_an_app_that_is_stopped_while_its_first_version_gives_it_its_place_was_never_there(bench: Make) -> None:
    b = bench()
    b.send(p.AppDeployed(1, version(1), p.RECREATE), "se-9")
    b.send(p.AppStopped(D, 2), "se-8")
    b.lose("ct-1")
    assert error(b, 1).startswith("a has been stopped meanwhile")
    assert b.replies(2)[0].value == {"app": D}
    assert [o for to, o in b.commands if to == STORE] == [p.AppOver("ap-v1")], "and nothing of a deployment"


def test_a_version_that_is_stopped_by_its_own_id_while_it_is_tried_is_given_up(bench: Make) -> None:
    b = bench()
    deploy(b, 1)
    b.send(p.AppDeployed(2, version(2)), "se-9")
    b.send(p.AppStopped("ap-v2", 3), "se-8")
    assert error(b, 2) == "it has been stopped meanwhile: stopped by its owner. Version 1 of a goes on serving"
    b.lose(b.started[-1])
    assert b.replies(3)[0].value == {"app": "ap-v2"}


def test_a_version_that_gave_way_and_was_stopped_then_does_not_come_back(bench: Make) -> None:
    b = bench()
    deploy(b, 1, web())
    b.send(p.AppDeployed(2, version(2, web()), p.RECREATE), "se-9")
    b.send(p.AppStopped("ap-v1", 3), "se-8")
    b.lose("ct-1")
    b.send(p.ContainerFailed(ErrorInfo("ImportError", "no module named torch")), b.started[-1])
    assert error(b, 2) == "f cannot start: no module named torch"
    assert (b.plane.deployments.current(D), b.plane.routes.by_label) == (None, {})
    b.lose(b.started[-1])
    deploy(b, 3, web())
    assert list(b.plane.routes.by_label) == ["a-f"]


def test_a_stopped_version_that_is_not_gone_yet_is_not_brought_back(bench: Make) -> None:
    b = bench()
    deploy(b, 1)
    b.submit(pool=POOL)
    deploy(b, 2)
    b.send(p.AppStopped("ap-v1", 3), "se-8")
    b.send(p.AppRolledBack(4, "a", version=1), "se-9")
    assert error(b, 4) == "a has no version 1 to go back to; it has none"
    b.send(p.AppRolledBack(5, "a"), "se-9")
    assert error(b, 5) == "a has no version before the current one (2)"


def test_a_served_app_may_be_replaced_before_there_is_room_for_its_first_version(bench: Make) -> None:
    b = bench()
    large = function(resources=Resources(cpu=64.0))
    deploy(b, 1, large)
    for number in (2, 3):
        b.send(p.AppDeployed(number, app(large, id=f"ap-s{number}")), "se-7")
        assert [c.state for c in b.plane.containers.values()] == ["draining"]  # it makes room
    assert error(b, 2) == "another deploy has taken the place of this one"
    b.lose("ct-1", exit_code=0)
    b.ready()
    assert b.replies(3)[0].value["app"] == SERVED
    b.submit(pool=function_id(SERVED, "f"))
    assert b.running(b.started[-1]) == ["fc-1:0"]
    b.send(p.SessionClosed(), "se-7")
    b.lose(b.started[-1])
    assert list(b.plane.apps) == ["ap-v1"]


SERVED = deployment_id("main", "a", served=True)


def restored_as_served(b: Bench) -> None:
    """As a server finds it that has been started again."""
    b.send(p.AppCreated(0, replace(app(web(), id="ap-v1"), deployment=SERVED, version=1)))
    b.send(p.DeploymentChanged(SERVED, "main", "a", "ap-v1", 1))


def test_what_is_served_after_a_restart_ends_with_its_new_session(bench: Make) -> None:
    b = bench()
    restored_as_served(b)
    b.send(p.AppDeployed(1, app(web(), id="ap-v2")), "se-7")
    b.ready()
    assert list(b.plane.routes.by_label) == ["a-f-dev"]
    b.send(p.AppDeployed(2, app(web(), id="ap-v3")), "se-8")
    assert "is served already by another program" in error(b, 2)
    b.send(p.SessionClosed(), "se-7")
    for container in list(b.plane.containers):
        b.lose(container)
    assert (b.plane.apps, b.plane.routes.by_label, b.plane.deployments.by_id) == ({}, {}, {})


def test_what_was_served_and_is_claimed_by_nobody_leaves_nothing(bench: Make) -> None:
    b = bench()
    restored_as_served(b)
    b.send(p.FunctionRequested(1, "", "a", "f"), "se-9")
    assert "nothing is deployed there" in b.replies(1)[0].error.message
    b.send(p.AppStopped("ap-v1", reason="its program did not come back"))
    assert (b.plane.apps, b.plane.routes.by_label, b.plane.deployments.by_id) == ({}, {}, {})
    assert b.orders(p.DeploymentChanged) == []  # it never was on disk
