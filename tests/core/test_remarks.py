"""What the core has to say for the log of an app, where nobody may be there to hear it."""

from __future__ import annotations

from typing import Any

import pytest

from kedge.core.room import LASTING_S
from kedge.model import protocol as p
from kedge.model.payload import FAILURE
from kedge.model.spec import GpuRequest, Resources
from tests.core.conftest import Bench, F, Make, function

G = "fu-1-g"


def remarks(b: Bench) -> list[p.Remarked]:
    return [order for _, order in b.commands if isinstance(order, p.Remarked)]


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"exit_code": 7}, "the container died: exit code 7 (2 inputs were in it)"),
        ({"exit_code": 7, "reason": "left with exit code 7"}, "the container died: exit code 7 (2 inputs were in it)"),
        ({"signal": 11}, "the container died: killed by signal 11 (2 inputs were in it)"),
        ({"out_of_memory": True, "signal": 9}, "the container died: out of memory (2 inputs were in it)"),
    ],
)
def test_a_container_that_takes_inputs_along_is_remarked(bench: Make, how: dict[str, Any], text: str) -> None:
    b = bench(function(slots=2))
    b.submit(2)
    b.ready()
    b.lose("ct-1", **how)
    assert remarks(b) == [p.Remarked(F, text, "ct-1")]


def test_one_that_dies_while_it_starts_is_remarked(bench: Make) -> None:
    b = bench(function())
    b.submit()
    b.lose("ct-1", exit_code=1)
    assert remarks(b) == [p.Remarked(F, "the container died while it was starting: exit code 1", "ct-1")]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"exit_code": 0}, False),
        ({"signal": 15}, False),
        ({"signal": 9, "blameless": True}, False),
        ({"exit_code": 3}, True),
        ({"signal": 11}, True),
        ({"signal": 9, "out_of_memory": True}, True),
    ],
)
def test_an_idle_one_is_remarked_where_its_end_is_a_surprise(bench: Make, how: dict[str, Any], said: bool) -> None:
    b = bench(function())
    b.submit()
    b.ready()
    b.finish("ct-1")
    b.lose("ct-1", **how)
    assert [r.text.endswith("(no input was in it)") for r in remarks(b)] == [True] * said


def test_one_that_is_stopped_on_purpose_is_not_remarked(bench: Make) -> None:
    b = bench(function())
    b.submit()
    b.ready()
    b.send(p.AppStopped("ap-1"), "se-1")
    b.lose("ct-1", signal=9)
    assert remarks(b) == []


def test_what_stays_without_room_is_remarked_once(bench: Make) -> None:
    b = bench(function(), function("g", resources=Resources(cpu=4.0)), cpu=4.0)
    b.submit()
    b.ready()
    b.submit(call="fc-2", pool=G)
    assert remarks(b) == [], "it may have room in a moment"
    b.wait(LASTING_S * 5)
    (remark,) = remarks(b)
    assert (remark.pool, remark.container) == (G, "")
    assert remark.text.startswith("g has no container and waits for room: a container asks for 4 cpu")


def test_what_has_room_again_soon_is_not_remarked(bench: Make) -> None:
    b = bench(function(), function("g", resources=Resources(cpu=4.0)), cpu=4.0)
    b.submit()
    b.ready()
    b.submit(call="fc-2", pool=G)
    b.wait(LASTING_S / 2)
    b.finish("ct-1")
    b.lose("ct-1", exit_code=0)
    b.wait(LASTING_S * 5)
    assert b.started == ["ct-1", "ct-2"]
    assert remarks(b) == []


def test_what_can_never_have_room_is_remarked_once(bench: Make) -> None:
    b = bench(function(resources=Resources(gpus=(GpuRequest("H100"),))))
    b.submit()
    b.submit(call="fc-2")
    (remark,) = remarks(b)
    assert remark.text.startswith("f cannot run here: gpu H100 was asked for, and this machine has no GPU")


def test_the_end_of_a_container_comes_before_that_of_its_input(bench: Make) -> None:
    b = bench(function())
    b.submit(durable=True, stream=True)
    b.ready()
    b.lose("ct-1", exit_code=7)
    kinds = [type(order) for _, order in b.last if isinstance(order, p.Remarked | p.OutputsRecorded)]
    assert kinds == [p.Remarked, p.OutputsRecorded]


def test_a_record_says_whose_it_is(bench: Make) -> None:
    b = bench(function())
    b.submit(durable=True)
    b.ready()
    b.finish("ct-1", status=FAILURE)
    (record,) = b.orders(p.OutputsRecorded)
    assert (record.call, record.pool, record.method) == ("fc-1", F, "")
