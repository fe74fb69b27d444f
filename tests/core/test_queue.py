"""Fair between calls, first come first served inside a call."""

from __future__ import annotations

from random import Random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.core.calls import Call, Input
from kedge.core.queue import SLACK, InputQueue
from kedge.model.payload import Payload


def call(name: str) -> Call:
    return Call(name, cast(Any, None), "se-1", "", False, False, "")


def inputs(of: Call, count: int, first: int = 0) -> list[Input]:
    return [Input(of, index, Payload(), 0.0) for index in range(first, first + count)]


def filled(*batches: list[Input]) -> InputQueue:
    queue = InputQueue()
    for batch in batches:
        for input in batch:
            queue.append(input)
    return queue


def drain(queue: InputQueue) -> str:
    return " ".join(f"{input.call.id}{input.index}" for input in iter_pops(queue))


def iter_pops(queue: InputQueue) -> list[Input]:
    return [queue.pop() for _ in range(queue.ready)]


A, B, C = call("a"), call("b"), call("c")


def test_calls_take_turns() -> None:
    assert drain(filled(inputs(A, 4), inputs(B, 2), inputs(C, 1))) == "a0 b0 c0 a1 b1 a2 a3"


def test_a_huge_map_delays_a_single_call_by_one_input() -> None:
    queue = filled(inputs(A, 10_000))
    queue.pop()
    queue.append(Input(B, 0, Payload(), 0.0))
    assert queue.pop().call is A
    assert queue.pop().call is B


def test_what_comes_back_is_first_of_its_call() -> None:
    queue = filled(inputs(A, 3), inputs(B, 2))
    first, second = queue.pop(), queue.pop()
    assert (first.call, second.call) == (A, B)
    queue.put_back(second)
    queue.put_back(first)
    assert drain(queue) == "a0 b0 a1 b1 a2"


def test_what_comes_back_alone_is_first_of_all() -> None:
    queue = filled(inputs(A, 1))
    lost = queue.pop()
    for input in inputs(B, 2):
        queue.append(input)
    queue.put_back(lost)
    assert drain(queue) == "a0 b0 b1"


def test_reversed_returns_keep_the_order() -> None:
    queue = filled(inputs(A, 6))
    granted = [queue.pop() for _ in range(4)]
    for input in reversed(granted):
        queue.put_back(input)
    assert drain(queue) == "a0 a1 a2 a3 a4 a5"


def test_delays() -> None:
    queue = filled(inputs(A, 1))
    late, later = inputs(B, 2)
    queue.delay(later, 2.0)
    queue.delay(late, 1.0)
    assert (queue.ready, len(queue), queue.next_wake) == (1, 3, 1.0)
    queue.wake(0.9)
    assert queue.ready == 1
    queue.wake(1.0)
    assert (queue.ready, queue.next_wake) == (2, 2.0)
    queue.wake(9.0)
    assert drain(queue) == "a0 b0 b1"
    assert queue.next_wake is None


def close(queue: InputQueue, *gone: Input) -> None:
    for input in gone:
        input.closed = True
        queue.withdraw(input)


def test_what_is_withdrawn_never_comes() -> None:
    batch = inputs(A, 4)
    queue = filled(batch, inputs(B, 1))
    late, suspect = inputs(A, 2, first=8)
    queue.delay(late, 5.0)
    queue.suspect(suspect)
    close(queue, batch[1], late, suspect)
    assert (queue.ready, len(queue), queue.next_wake) == (4, 4, None)
    assert list(queue.of(A)) == [batch[0], batch[2], batch[3]]
    queue.wake(9.0)
    close(queue, batch[0], batch[2], batch[3])
    assert queue.calls() == [B]
    assert list(queue.of(A)) == []
    assert drain(queue) == "b0"


def test_a_call_that_was_emptied_and_comes_again_has_one_turn() -> None:
    first = inputs(A, 1)
    queue = filled(inputs(B, 3), first)
    close(queue, *first)
    for input in inputs(A, 2, first=1):
        queue.append(input)
    assert queue.first().call is B
    assert drain(queue) == "b0 a1 b1 a2 b2"


def test_who_waits_for_a_call_is_known_while_it_waits() -> None:
    child = Call("c", cast(Any, None), "se-1", "", False, False, "in-1")
    batch = inputs(child, 2)
    queue = filled(inputs(A, 1), batch)
    assert queue.parents == {"in-1": 1}
    close(queue, *batch)
    assert queue.parents == {}
    queue.put_back(Input(child, 2, Payload(), 0.0))
    assert queue.parents == {"in-1": 1}
    assert drain(queue) == "c2 a0"
    assert queue.parents == {}


def test_methods_take_turns_by_their_calls() -> None:
    calls = {name: call(name) for name in "pqrs"}
    for name, method in zip("pqrs", "xyxy", strict=True):
        calls[name].method = method
    queue = InputQueue(by_method=True)
    for name in "pqrs":
        for input in inputs(calls[name], 2):
            queue.append(input)
    assert (queue.waiting("x"), queue.waiting("y"), queue.waiting("z")) == (4, 4, 0)
    assert queue.next_method(without=["x"]) == "y"
    assert queue.next_method(without=["x", "y"]) is None
    order = []
    while (method := queue.next_method(without=[])) is not None:
        input = queue.pop(method)
        order.append(f"{input.call.id}{input.index}")
    assert order == ["p0", "q0", "r0", "s0", "p1", "q1", "r1", "s1"]
    assert (queue.ready, queue.waiting("x")) == (0, 0)
    queue.append(Input(calls["p"], 2, Payload(), 0.0))
    queue.put_back(Input(calls["q"], 2, Payload(), 0.0))
    assert queue.next_method(without=[]) == "y", "what comes back is first of all"


def entries(queue: InputQueue) -> int:
    """What it keeps, also of those that were withdrawn."""
    lines = [line for turns in queue._turns.values() for line in turns]
    return sum(len(line.inputs) for line in lines) + len(lines) + len(queue._delayed)


@pytest.mark.parametrize("order", [1, -1, 7])
def test_nothing_piles_up_where_inputs_are_withdrawn(order: int) -> None:
    """From the front, from the back, and from all over: of one long call, of many short ones, of delayed ones."""
    queue = InputQueue()
    long, short = inputs(A, 5_000), [Input(call(f"s{n}"), 0, Payload(), 0.0) for n in range(5_000)]
    late = inputs(B, 5_000)
    for number in range(5_000):
        queue.append(long[number])
        queue.append(short[number])
        queue.delay(late[number], 100.0 + number)
    for number in range(5_000):
        at = number * order % 5_000
        close(queue, long[at], short[at], late[at])
        assert entries(queue) <= 4 * (len(queue) + SLACK) + 5
    assert len(queue) == 0
    assert drain(queue) == ""


steps = st.lists(st.sampled_from(["a", "b", "c", "late", "pop", "back", "wake", "suspect", "drop"]), max_size=200)


@given(steps, st.booleans(), st.randoms(use_true_random=False))
def test_it_never_loses_or_repeats_an_input(steps: list[str], by_method: bool, random: Random) -> None:
    calls = {name: call(name) for name in "abc"}
    calls["b"].method = "m"
    queue = InputQueue(by_method)
    ready: list[Input] = []
    late: list[Input] = []
    alone: list[Input] = []
    out: list[Input] = []
    for number, step in enumerate(steps):
        match step:
            case "a" | "b" | "c":
                ready.append(Input(calls[step], number, Payload(), 0.0))
                queue.append(ready[-1])
            case "late":
                late.append(Input(calls["b"], number, Payload(), 0.0))
                queue.delay(late[-1], float(number))
            case "wake":
                queue.wake(float(number))
                ready += late
                late = []
            case "pop" if queue.ready:
                method = queue.next_method(without=[]) if by_method else ""
                assert method is not None
                out.append(queue.pop(method))
                ready.remove(out[-1])
            case "back" if out:
                ready.append(out.pop())
                queue.put_back(ready[-1])
            case "suspect" if out:
                alone.append(out.pop())
                queue.suspect(alone[-1])
                assert next(iter(queue.suspects)) is alone[-1]
            case "drop" if ready or late or alone:
                lane = random.choice([lane for lane in (ready, late, alone) if lane])
                close(queue, lane.pop(random.randrange(len(lane))))
        waiting = [*ready, *late, *alone]
        assert (queue.ready, queue.delayed, len(queue)) == (len(ready), len(late), len(waiting))
        assert sorted(i.index for i in queue) == sorted(i.index for i in waiting)
        if by_method:
            assert [queue.waiting(m) for m in ("", "m")] == [sum(i.call.method == m for i in ready) for m in ("", "m")]
        elif ready:
            assert queue.first() in ready
    for of in calls.values():
        assert {i.index for i in queue.of(of)} == {i.index for i in ready if i.call is of}
