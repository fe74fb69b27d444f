"""Fair between calls, first come first served inside a call."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from kedge.core.calls import Call, Input
from kedge.core.queue import InputQueue
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
    for call in dict.fromkeys(input.call for input in gone):
        queue.drop_closed(call)


def test_drop_closed() -> None:
    batch = inputs(A, 3)
    queue = filled(batch, inputs(B, 1))
    late = Input(A, 9, Payload(), 0.0)
    queue.delay(late, 5.0)
    close(queue, batch[1], late)
    assert len(queue) == queue.ready == 3
    close(queue, batch[0], batch[2])
    assert queue.calls() == [B]
    assert drain(queue) == "b0"


def test_remove_call() -> None:
    queue = filled(inputs(A, 2), inputs(B, 2))
    late = Input(A, 9, Payload(), 0.0)
    queue.delay(late, 5.0)
    queue.delay(Input(B, 8, Payload(), 0.0), 6.0)
    assert [input.index for input in queue.remove_call(A)] == [0, 1, 9]
    assert queue.remove_call(C) == []
    assert (queue.ready, len(queue)) == (2, 3)
    queue.wake(6.0)
    assert drain(queue) == "b0 b1 b8"


def test_out_of_turn() -> None:
    queue = filled(inputs(A, 2), inputs(B, 2), inputs(C, 2))
    assert queue.pop_from(B).call is B
    assert queue.waiting(B) == 1
    assert queue.calls()[0] is A
    assert list(queue.turns()) == queue.calls()
    assert drain(queue) == "a0 c0 b1 a1 c1"


@given(st.lists(st.sampled_from(["a", "b", "c", "pop", "back", "drop a"]), max_size=200))
def test_it_never_loses_or_repeats_an_input(steps: list[str]) -> None:
    queue, calls = InputQueue(), {"a": A, "b": B, "c": C}
    waiting: list[Input] = []
    out: list[Input] = []
    for number, step in enumerate(steps):
        if step in calls:
            waiting.append(Input(calls[step], number, Payload(), 0.0))
            queue.append(waiting[-1])
        elif step == "pop" and queue.ready:
            out.append(queue.pop())
            waiting.remove(out[-1])
        elif step == "back" and out:
            waiting.append(out.pop())
            queue.put_back(waiting[-1])
        elif step == "drop a":
            gone = queue.remove_call(A)
            assert sorted(i.index for i in gone) == sorted(i.index for i in waiting if i.call is A)
            waiting = [input for input in waiting if input.call is not A]
        assert queue.ready == len(queue) == len(waiting)
        assert sorted(i.index for i in queue) == sorted(i.index for i in waiting)
    for of in calls.values():
        mine = [input.index for input in queue if input.call is of]
        assert queue.waiting(of) == len(mine)
