"""Inputs whose container died: who is to blame is found out apart from the others."""

from __future__ import annotations

from kedge.core.suspects import CLEARED_AFTER, CLEARED_AFTER_S, MAX_LOSSES, MAX_SHARED_LOSSES, MOST_CONTAINERS
from kedge.model import protocol as p
from kedge.model.payload import INTERNAL_FAILURE, SUCCESS
from kedge.model.spec import AutoscalerSettings, MethodSpec, Resources
from tests.core.conftest import F, Make, function

ONE = AutoscalerSettings(min_containers=1, max_containers=1)
TWO = AutoscalerSettings(min_containers=2, max_containers=2)


def test_suspects_run_one_at_a_time(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=ONE))
    b.submit(3)
    b.ready()
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    for index in range(3):
        assert b.running("ct-2") == [f"fc-1:{index}"]
        b.finish("ct-2")
    assert b.statuses() == dict.fromkeys(range(3), SUCCESS)


def test_people_hear_of_a_container_that_died_with_inputs(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=ONE))
    b.submit(2)
    b.ready()
    b.lose("ct-1", reason="killed by signal 11 (SIGSEGV)")
    b.ready("ct-2")
    b.lose("ct-2", out_of_memory=True)
    assert [order.text for _, order in b.commands if isinstance(order, p.Notice)] == [
        "a container of f died with 2 inputs in it: it was killed by signal 11 (SIGSEGV); "
        "they run again apart from each other",
        "a container of f died with 1 input in it: it was out of memory",
    ]


def test_people_do_not_hear_of_a_container_that_ended_with_what_was_cancelled(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=ONE))
    b.submit(2)
    b.ready()
    b.send(p.CallCancelled("fc-1", indices=[0]), "se-1")
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    b.send(p.CallCancelled("fc-1"), "se-1")
    b.lose("ct-2")
    assert [order.text for _, order in b.commands if isinstance(order, p.Notice)] == [
        "a container of f died with 1 input in it: it was killed by signal 9"
    ]


def test_new_inputs_do_not_wait_for_suspects_where_there_is_but_one_container(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=ONE))
    b.submit(2)
    b.ready()
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    b.submit(1, "fc-2")
    assert b.running("ct-2") == ["fc-1:0", "fc-2:0"]
    b.submit(3, "fc-3")
    assert len(b.running("ct-2")) == 4, "its slots are the limit"


def test_new_inputs_do_not_wait_for_suspects_where_there_is_no_room_for_another_container(bench: Make) -> None:
    b = bench(function(slots=4, resources=Resources(1.0)), cpu=1.0)
    b.submit(2)
    b.ready()
    b.wait(10.0)
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    b.submit(1, "fc-2")
    assert b.running("ct-2") == ["fc-1:0", "fc-2:0"]


def test_new_inputs_do_not_keep_a_suspect_from_its_container(bench: Make) -> None:
    """It must run alone, and the only container never becomes empty by itself, since new inputs come all the time."""
    b = bench(function(slots=4, autoscaler=TWO))
    b.ready()
    b.submit(1)
    b.submit(1, "fc-poison")
    b.wait(3.0)
    b.lose("ct-1", signal=9)
    b.ready()
    assert (b.running("ct-2"), b.running("ct-3")) == (["fc-1:0"], ["fc-poison:0"])
    b.send(p.AutoscalerUpdated(1, F, min_containers=1, max_containers=1), "se-1")
    b.lose("ct-3", signal=9)
    b.submit(1, "fc-a")
    assert b.running("ct-2") == ["fc-1:0", "fc-a:0"], "the first is not charged"
    b.wait(10.0)
    b.submit(1, "fc-b")
    assert b.running("ct-2") == ["fc-1:0", "fc-a:0"], "it is cleared, and the container is for the other one"
    b.finish("ct-2")
    assert b.running("ct-2") == ["fc-poison:0"]
    b.finish("ct-2")
    assert b.running("ct-2") == ["fc-b:0"]


def test_who_runs_beside_a_suspect_that_kills_is_not_suspected(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=ONE))
    b.submit(1)
    b.submit(1, "fc-other")
    b.ready()
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    b.submit(2, "fc-2")
    assert b.running("ct-2") == ["fc-1:0", "fc-2:0", "fc-2:1"]
    b.lose("ct-2", signal=9)
    b.ready("ct-3")
    assert b.running("ct-3") == ["fc-1:0"], "now it has a loss of its own, and nobody runs beside it"
    b.finish("ct-3")
    assert sorted(b.running("ct-3")) == ["fc-2:0", "fc-2:1", "fc-other:0"]


def test_new_inputs_leave_the_suspects_alone_while_another_container_is_coming(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=TWO))
    b.ready()
    b.submit(2)
    b.lose("ct-1", signal=9)
    assert b.running("ct-2") == ["fc-1:0"], "an empty container goes to a suspect at once"
    b.submit(2, "fc-2")
    assert b.running("ct-2") == ["fc-1:0"]
    b.ready("ct-3")
    assert b.running("ct-3")[0] == "fc-1:1", "suspects come first"
    assert len(b.running("ct-2") + b.running("ct-3")) == 4, "and then there is no place of their own for the others"


def test_the_emptiest_container_is_held_where_none_is_empty(bench: Make) -> None:
    b = bench(function(slots=2, target=1, autoscaler=AutoscalerSettings(min_containers=3, max_containers=3)))
    b.ready()
    b.submit(5)
    assert [len(b.running(f"ct-{n}")) for n in (1, 2, 3)] == [2, 2, 1]
    b.send(p.AutoscalerUpdated(1, F, min_containers=2, max_containers=2), "se-1")
    b.lose("ct-1", signal=9)
    b.submit(1, "fc-2")
    assert len(b.running("ct-3")) == 1, "it is held for a suspect, so the new input waits"
    b.finish("ct-3")
    assert b.running("ct-3") == ["fc-1:0"]


def test_a_lonely_death_is_charged_and_a_shared_one_is_not(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=ONE))
    b.submit(2)
    b.ready()
    b.lose("ct-1", signal=9)
    for number in range(MAX_LOSSES):
        b.ready(f"ct-{number + 2}")
        assert b.running(f"ct-{number + 2}") == ["fc-1:0"]
        b.lose(f"ct-{number + 2}", out_of_memory=True)
    assert b.statuses() == {0: INTERNAL_FAILURE}
    assert b.error() == (
        "the container died while it ran this input, 5 times, so the input is given up; "
        "the last time it was out of memory"
    )
    b.ready()
    b.finish(b.started[-1])
    assert b.statuses() == {0: INTERNAL_FAILURE, 1: SUCCESS}


def test_a_suspect_is_cleared_when_it_has_outlived_its_accident(bench: Make) -> None:
    b = bench(function(slots=4))
    b.submit(1)
    b.ready()
    b.wait(3.0)
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    b.submit(1, "fc-2")
    b.wait(CLEARED_AFTER * 3.0 + CLEARED_AFTER_S - 0.1)
    assert b.running("ct-2") == ["fc-1:0"]
    b.wait(0.2)
    assert b.running("ct-2") == ["fc-1:0", "fc-2:0"]


def test_a_suspect_may_join_those_that_are_cleared(bench: Make) -> None:
    """With one container and long inputs they would otherwise run one after the other to the end."""
    b = bench(function(slots=4, autoscaler=ONE))
    b.submit(3)
    b.ready()
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    for count in (1, 2, 3):
        assert len(b.running("ct-2")) == count
        b.wait(CLEARED_AFTER_S + 0.01)
    b.submit(2, "fc-2")
    assert b.running("ct-2") == ["fc-1:0", "fc-1:1", "fc-1:2", "fc-2:0"], "and then it is open for everybody"


def test_who_joins_the_cleared_and_kills_is_known(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=ONE))
    b.submit(2)
    b.ready()
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    b.wait(CLEARED_AFTER_S + 0.01)
    assert b.running("ct-2") == ["fc-1:0", "fc-1:1"]
    b.lose("ct-2", signal=9)
    b.ready("ct-3")
    assert b.running("ct-3") == ["fc-1:1"], "it joined last: from now on it is alone"
    b.wait(60.0)
    b.lose("ct-3", signal=9)
    b.ready("ct-4")
    assert b.running("ct-4") == ["fc-1:1"]
    b.wait(121.0 + CLEARED_AFTER_S)
    assert b.running("ct-4") == ["fc-1:1", "fc-1:0"], "cleared by its age, and the other never was a suspect again"


def test_nobody_is_suspected_when_the_machine_goes(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=ONE))
    b.send(p.NodeJoined("n2", 64.0, 65536))
    b.submit(4)
    b.ready()
    b.send(p.NodeLost("n1"))
    b.ready()
    assert b.running("ct-2") == [f"fc-1:{index}" for index in range(4)]


def test_nobody_is_suspected_when_what_holds_the_container_dies(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=ONE))
    b.submit(4)
    b.ready()
    b.lose("ct-1", reason="the supervisor of its machine died", blameless=True)
    b.ready()
    assert b.running("ct-2") == [f"fc-1:{index}" for index in range(4)]


def test_siblings_of_a_terminated_container_are_not_suspected(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=ONE))
    b.submit(1)
    b.ready()
    b.submit(2, "fc-2")
    b.send(p.CallCancelled("fc-1", terminate_containers=True), "se-1")
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    assert b.running("ct-2") == ["fc-2:0", "fc-2:1"]


def test_even_blameless_losses_have_an_end(bench: Make) -> None:
    b = bench(function(autoscaler=ONE))
    b.submit(1)
    for number in range(MAX_SHARED_LOSSES):
        b.wait(70.0)
        b.ready()
        b.lose(f"ct-{number + 1}", blameless=True)
    assert b.statuses() == {0: INTERNAL_FAILURE}


def test_suspects_ask_for_few_containers(bench: Make) -> None:
    b = bench(function(slots=20))
    b.submit(20)
    b.ready()
    b.lose("ct-1", signal=9)
    starting = [c for c in b.plane.containers.values() if c.state == "starting"]
    assert len(starting) == MOST_CONTAINERS


def test_suspects_that_wait_can_be_cancelled(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=ONE))
    b.submit(3)
    b.ready()
    b.lose("ct-1", signal=9)
    b.send(p.CallCancelled("fc-1", indices=[0]), "se-1")
    b.ready("ct-2")
    assert b.running("ct-2") == ["fc-1:1"]
    b.send(p.CallCancelled("fc-1"), "se-1")
    assert b.plane.pools[F].queue.suspects.__len__() == 0
    b.submit(1, "fc-2")
    assert b.running("ct-2") == ["fc-1:1", "fc-2:0"], "its code has not ended"


def test_a_limit_of_the_function_holds_for_suspects(bench: Make) -> None:
    b = bench(function(slots=4, concurrency_limit=2, autoscaler=TWO))
    b.ready()
    b.submit(4)
    b.lose("ct-1", signal=9)
    b.ready()
    assert sum(len(b.running(c)) for c in b.plane.containers) == 2


def test_a_limit_of_a_method_holds_for_suspects(bench: Make) -> None:
    methods = (MethodSpec("a", concurrency_limit=1), MethodSpec("b", concurrency_limit=1))
    b = bench(function(is_class=True, methods=methods, autoscaler=ONE))
    b.submit(2, method="a")
    b.submit(1, "fc-2", method="b")
    b.ready()
    assert b.running("ct-1") == ["fc-1:0", "fc-2:0"]
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    b.wait(CLEARED_AFTER_S + 0.01)
    assert b.running("ct-2") == ["fc-1:0", "fc-2:0"]
    b.wait(CLEARED_AFTER_S + 0.01)
    assert b.running("ct-2") == ["fc-1:0", "fc-2:0"]


def test_a_suspect_that_could_not_start_is_one_still(bench: Make) -> None:
    """It joined others in the moment in which its container took fewer inputs, and came back."""
    b = bench(function(slots=4, autoscaler=ONE))
    b.submit(3)
    b.ready()
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    b.wait(CLEARED_AFTER_S + 0.01)
    assert b.running("ct-2") == ["fc-1:0", "fc-1:1"]
    lease = max(b.leases["ct-2"])
    del b.leases["ct-2"][lease]
    b.send(p.SlotsChanged(1), "ct-2")
    b.send(p.InputsReturned([lease]), "ct-2")
    b.submit(1, "fc-2")
    b.finish("ct-2")
    assert b.running("ct-2") == ["fc-1:1"]
    b.finish("ct-2")
    assert b.running("ct-2") == ["fc-1:2"]


def test_a_loss_without_blame_clears_no_suspect(bench: Make) -> None:
    b = bench(function(slots=4, autoscaler=ONE))
    b.submit(1)
    b.ready()
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    b.lose("ct-2", reason="the supervisor of its machine died", blameless=True)
    b.submit(1, "fc-2")
    b.ready("ct-3")
    assert b.running("ct-3") == ["fc-1:0"], "still alone"


def test_who_was_charged_holds_up_nobody_who_was_not(bench: Make) -> None:
    """It must wait for an empty container; the others may join those that are cleared."""
    b = bench(function(slots=4, autoscaler=TWO))
    b.ready()
    b.submit(1, "fc-poison")
    b.submit(4)
    assert (len(b.running("ct-1")), b.running("ct-2")) == (4, ["fc-1:3"])
    b.send(p.AutoscalerUpdated(1, F, min_containers=1, max_containers=1), "se-1")
    b.lose("ct-1", signal=9)
    b.finish("ct-2")
    assert b.running("ct-2") == ["fc-poison:0"]
    b.lose("ct-2", signal=9)
    b.ready("ct-3")
    assert b.running("ct-3") == ["fc-poison:0"]
    b.lose("ct-3", signal=9)
    b.wait(5.0)
    b.send(p.AutoscalerUpdated(2, F, max_containers=2), "se-1")
    b.ready("ct-4", "ct-5")
    assert (b.running("ct-4"), b.running("ct-5")) == (["fc-poison:0"], ["fc-1:0"])
    b.send(p.AutoscalerUpdated(3, F, max_containers=1), "se-1")
    b.lose("ct-4", signal=9)
    b.wait(CLEARED_AFTER_S + 0.01)
    assert b.running("ct-5") == ["fc-1:0", "fc-1:1"], "not alone, but cleared: and the poison waits for them all"


def test_an_input_that_calls_its_own_function_is_not_kept_from_it(bench: Make) -> None:
    """It is suspected, and waits for a call that waits for a slot of its container."""
    b = bench(function(slots=4, autoscaler=ONE))
    b.submit(2)
    b.ready()
    b.wait(3.0)
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    b.submit(1, "fc-child", parent="in-1-0")
    b.submit(1, "fc-2")
    assert b.running("ct-2") == ["fc-1:0", "fc-child:0", "fc-2:0"]
    b.finish("ct-2")
    assert b.running("ct-2") == ["fc-1:1"]


def test_nothing_is_held_for_suspects_that_are_cancelled(bench: Make) -> None:
    b = bench(function(slots=2, target=1, autoscaler=AutoscalerSettings(min_containers=3, max_containers=3)))
    b.ready()
    b.submit(5)
    b.send(p.AutoscalerUpdated(1, F, min_containers=2, max_containers=2), "se-1")
    b.lose("ct-1", signal=9)
    b.submit(1, "fc-2")
    assert len(b.running("ct-3")) == 1, "held"
    b.send(p.CallCancelled("fc-1", indices=[0, 3]), "se-1")
    assert len(b.running("ct-3")) == 2, "and open again, since nobody is suspected"


def test_held_containers_serve_nobody_else_so_others_are_started(bench: Make) -> None:
    b = bench(function(slots=10))
    b.submit(1)
    b.ready()
    b.wait(100.0)
    b.lose("ct-1", signal=9)
    b.ready("ct-2")
    assert b.running("ct-2") == ["fc-1:0"]
    b.submit(3, "fc-2")
    b.ready("ct-3")
    assert b.running("ct-3") == [f"fc-2:{index}" for index in range(3)]
    assert len(b.started) == 3


def test_suspects_under_a_limit_ask_for_no_more_than_may_run(bench: Make) -> None:
    b = bench(function(slots=20, concurrency_limit=20))
    b.submit(20)
    b.ready()
    b.send(p.CallCancelled("fc-1", indices=list(range(2, 20))), "se-1")
    b.lose("ct-1", signal=9)
    assert len(b.started) == 3, "two suspects, two containers"
    c = bench(function(slots=20, concurrency_limit=2))
    c.submit(20)
    c.ready()
    c.lose("ct-1", signal=9)
    c.ready()
    assert [len(c.running(container)) for container in c.started] == [0, 1, 1]


def test_a_nested_suspect_gets_a_container_beyond_the_room_there_is(bench: Make) -> None:
    """Its caller holds the machine, and waits for it."""
    b = bench(function("f", resources=Resources(1.0)), function("g", resources=Resources(1.0)), cpu=1.0)
    b.submit(1)
    b.ready()
    b.submit(1, "fc-2", "fu-1-g", parent="in-1-0")
    b.ready("ct-2")
    b.lose("ct-2", signal=9)
    b.ready("ct-3")
    assert b.running("ct-3") == ["fc-2:0"]


def test_a_container_that_is_to_run_dry_lets_in_what_its_inputs_wait_for(bench: Make) -> None:
    """Otherwise neither the caller nor the suspect would ever move."""
    b = bench(function(slots=4, autoscaler=TWO))
    b.ready()
    b.submit(4)
    b.submit(1, "fc-parent")
    b.send(p.AutoscalerUpdated(1, F, min_containers=1, max_containers=1), "se-1")
    b.lose("ct-1", signal=9)
    b.submit(1, "fc-2")
    assert b.running("ct-2") == ["fc-parent:0"], "held for the suspects"
    b.submit(1, "fc-child", parent="in-parent-0")
    assert "fc-child:0" in b.running("ct-2")
    b.finish("ct-2")
    assert b.running("ct-2")[0] == "fc-1:0"
