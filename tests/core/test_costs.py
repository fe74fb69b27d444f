"""What one message costs does not grow with what waits, runs or drains: counted in instructions, not in seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from kedge.model import protocol as p
from kedge.model.payload import FAILURE, Payload, Result
from kedge.model.spec import AutoscalerSettings, Concurrency, MethodSpec, Resources, RetryPolicy
from tests.core.conftest import Bench, F, function

ONE = AutoscalerSettings(min_containers=1, max_containers=1)
METHODS = (MethodSpec("a", concurrency_limit=1), MethodSpec("b", concurrency_limit=1))
FEW, MANY = 25, 500

Case = Callable[[int], tuple[Bench, Any, str]]
"""Makes a bench where so many are there, and gives the message whose cost is counted, with its sender."""


def instructions(b: Bench, message: Any, sender: str) -> int:
    """How many the plane carries out for one message."""
    count = (counted_by_events if sys.version_info >= (3, 12) else counted_by_trace)(
        lambda: b.plane.handle(message, b.now, sender)
    )
    b.plane.check()
    return count


def counted_by_events(act: Callable[[], object]) -> int:
    count = 0

    def one_more(*_: object) -> None:
        nonlocal count
        count += 1

    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
    tool, event = 4, monitoring.events.INSTRUCTION
    monitoring.use_tool_id(tool, "costs")
    monitoring.register_callback(tool, event, one_more)
    monitoring.set_events(tool, event)
    try:
        act()
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
    return count


def counted_by_trace(act: Callable[[], object]) -> int:
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


def quiet(*functions: Any, **options: Any) -> Bench:
    """A bench that does not recount everything after each of many messages."""
    b = Bench(*functions, **options)
    b.plane.check = lambda: None  # type: ignore[method-assign]
    return b


def calls(b: Bench, count: int, first: int = 0, **options: Any) -> None:
    for number in range(first, first + count):
        b.submit(1, f"fc-{number}", **options)


def a_call_of_many_is_cancelled(n: int) -> tuple[Bench, Any, str]:
    b = quiet(function(autoscaler=ONE))
    calls(b, n)
    return b, p.CallCancelled(f"fc-{n // 2}"), "se-1"


def an_input_of_many_is_cancelled(n: int) -> tuple[Bench, Any, str]:
    b = quiet(function(autoscaler=ONE))
    b.submit(n)
    return b, p.CallCancelled("fc-1", indices=[n // 2]), "se-1"


def a_retry_of_many_is_cancelled(n: int) -> tuple[Bench, Any, str]:
    b = quiet(function(slots=n, retries=RetryPolicy(1, 1.0, 60.0), autoscaler=ONE))
    b.ready()
    calls(b, n)
    b.finish("ct-1", status=FAILURE)
    return b, p.CallCancelled(f"fc-{n // 2}"), "se-1"


def a_suspect_of_many_is_cancelled(n: int) -> tuple[Bench, Any, str]:
    b = quiet(function(slots=n, autoscaler=ONE))
    b.ready()
    calls(b, n)
    b.lose("ct-1", signal=9)
    return b, p.CallCancelled(f"fc-{n // 2}"), "se-1"


def an_input_comes_beside_many_suspects(n: int) -> tuple[Bench, Any, str]:
    b = quiet(function(slots=n, autoscaler=AutoscalerSettings(min_containers=2, max_containers=2)))
    b.ready()
    calls(b, n)
    b.lose("ct-1", signal=9)
    b.ready()
    return b, p.InputsSubmitted("fc-x", F, 0, [Payload()]), "se-1"


def an_input_ends_whose_method_many_calls_wait_for(n: int) -> tuple[Bench, Any, str]:
    b = quiet(function(methods=METHODS, autoscaler=ONE))
    calls(b, n, method="a")
    b.ready()
    return b, p.InputsFinished([p.Finished(1, Result(), 0.1)]), "ct-1"


def an_input_comes_whose_method_many_calls_wait_for(n: int) -> tuple[Bench, Any, str]:
    b = quiet(function(methods=METHODS, autoscaler=ONE))
    b.ready()
    calls(b, n, method="a")
    return b, p.InputsSubmitted("fc-x", F, 0, [Payload()], method="b"), "se-1"


def an_input_comes_and_there_is_no_room(n: int) -> tuple[Bench, Any, str]:
    b = quiet(function("g", resources=Resources(1.0)), function("f", resources=Resources(1.0)), cpu=1.0)
    b.submit(1, "fc-g", "fu-1-g")
    b.ready()
    calls(b, n)
    return b, p.InputsSubmitted("fc-x", F, 0, [Payload()]), "se-1"


def an_input_comes_while_one_of_many_containers_drains(n: int) -> tuple[Bench, Any, str]:
    b = quiet(function(slots=2, autoscaler=AutoscalerSettings(min_containers=n, max_containers=n)), cpu=1e6)
    b.ready()
    b.submit(1)
    b.send(p.ContainerLeaving(), "ct-1")
    b.ready()
    return b, p.InputsSubmitted("fc-x", F, 0, [Payload()]), "se-1"


def slots_are_said_by_one_of_many_containers(n: int) -> tuple[Bench, Any, str]:
    settings = AutoscalerSettings(min_containers=n, max_containers=n)
    b = quiet(function(concurrency=Concurrency(4, 4, True), autoscaler=settings), cpu=1e6)
    b.ready()
    return b, p.SlotsChanged(2), "ct-1"


CASES: list[Case] = [
    a_call_of_many_is_cancelled,
    an_input_of_many_is_cancelled,
    a_retry_of_many_is_cancelled,
    a_suspect_of_many_is_cancelled,
    an_input_comes_beside_many_suspects,
    an_input_ends_whose_method_many_calls_wait_for,
    an_input_comes_whose_method_many_calls_wait_for,
    an_input_comes_and_there_is_no_room,
    an_input_comes_while_one_of_many_containers_drains,
    slots_are_said_by_one_of_many_containers,
]


@pytest.mark.parametrize("case", CASES)
def test_a_message_costs_the_same_among_few_and_among_many(case: Case) -> None:
    few, many = instructions(*case(FEW)), instructions(*case(MANY))
    assert few > 100, "the message did something"
    assert many < few * 1.5, f"{few} instructions among {FEW}, {many} among {MANY}"
