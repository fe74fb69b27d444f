"""The window of a map, without any connection."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.model.payload import FAILURE, ErrorInfo, Payload, Result
from kedge.model.protocol import InputsSubmitted, Output
from kedge.sdk.map_window import BLOB_COST, LEAST_RETRY, MapWindow


def payload(size: int = 10, blob: bool = False) -> Payload:
    return Payload(blob="file", size=size) if blob else Payload(data=b"x" * size)


def result(index: int, size: int = 1) -> Result:
    return Result(payload=payload(size), count=index)


def outputs(*indices: int, size: int = 1) -> list[Output]:
    return [Output(index, result(index, size)) for index in indices]


def taken(window: MapWindow) -> list[int]:
    found = []
    while (output := window.take()) is not None:
        found.append(output.count)
    return found


def test_results_come_in_the_order_of_their_inputs() -> None:
    window = MapWindow(ordered=True)
    window.submit([payload()] * 4)
    window.receive(outputs(1, 3))
    assert taken(window) == []
    window.receive(outputs(0))
    assert taken(window) == [0, 1]
    window.receive(outputs(2))
    assert taken(window) == [2, 3]
    assert window.idle


def test_or_as_they_come() -> None:
    window = MapWindow(ordered=False)
    window.submit([payload()] * 3)
    window.receive(outputs(2, 0))
    assert taken(window) == [2, 0]
    assert window.unfinished


@pytest.mark.parametrize("ordered", [True, False])
def test_a_result_counts_once(ordered: bool) -> None:
    window = MapWindow(ordered)
    window.submit([payload()] * 2)
    window.receive(outputs(0, 0, 7))
    window.receive(outputs(0))
    assert taken(window) == [0]
    window.receive(outputs(0))
    assert taken(window) == []


def test_an_input_takes_room_until_its_result_is_taken() -> None:
    window = MapWindow(max_inputs=3)
    assert window.room == 3
    window.submit([payload()] * 3)
    assert window.room == 0
    window.receive(outputs(0, 1))
    assert window.room == 0, "a slow consumer stops the submission"
    taken(window)
    assert window.room == 2


def test_bytes_are_bounded_too_and_one_input_is_always_possible() -> None:
    window = MapWindow(max_bytes=100)
    assert window.room > 1
    window.submit([payload(500)])
    assert window.room == 0
    window.receive(outputs(0))
    assert window.room > 0, "the argument is gone, the result is small"
    taken(window)
    assert window.room > 1


def test_results_count_while_nobody_takes_them() -> None:
    window = MapWindow(max_bytes=100)
    window.submit([payload(10), payload(10)])
    window.receive(outputs(0, size=200))
    assert window.room == 0
    taken(window)
    assert window.room > 0


def test_files_count_little_because_they_take_no_memory() -> None:
    window = MapWindow(max_bytes=4 * BLOB_COST)
    window.submit([payload(100 * BLOB_COST, blob=True)] * 3)
    assert window.room > 0
    window.submit([payload(100 * BLOB_COST, blob=True)])
    assert window.room == 0


def test_what_has_no_result_is_sent_again_in_runs() -> None:
    window = MapWindow()
    window.submit([payload(i) for i in range(6)])
    window.receive(outputs(1, 4))
    template = InputsSubmitted("fc-1", "pool", 0, [], "m", parent="in-1-0")
    again = window.resend(template)
    assert [(m.first, [len(x.data) for x in m.payloads]) for m in again] == [(0, [0]), (2, [2, 3]), (5, [5])]
    assert all((m.call, m.pool, m.method, m.parent) == ("fc-1", "pool", "m", "in-1-0") for m in again)


REFUSED = Result(FAILURE, error=ErrorInfo("ResourceExhaustedError", "full", retry_after=1.5))
TEMPLATE = InputsSubmitted("fc-1", "pool", 0, [], timeout=5.0)


def test_refused_inputs_are_sent_again_and_nothing_new_meanwhile() -> None:
    window = MapWindow(max_inputs=10)
    window.submit([payload(i) for i in range(6)])
    window.receive([Output(index, REFUSED) for index in (5, 2, 3)])
    assert (window.refused, window.retry_after, window.room) == (True, 1.5, 0)
    assert taken(window) == []
    again = window.retry(TEMPLATE, due=True)
    assert [(m.first, [len(x.data) for x in m.payloads]) for m in again] == [(2, [2, 3]), (5, [5])]
    assert all((m.call, m.timeout, m.total) == ("fc-1", 5.0, -1) for m in again)
    assert (window.refused, window.room) == (False, 4)
    window.receive([Output(3, REFUSED), *outputs(0, 1, 2, 4, 5)])
    assert taken(window) == [0, 1, 2]
    assert [m.first for m in window.retry(TEMPLATE, due=True)] == [3]
    window.receive(outputs(3))
    assert taken(window) == [3, 4, 5]
    assert window.idle
    assert window.retry(TEMPLATE, due=True) == []


def test_no_more_are_sent_again_than_may_find_room() -> None:
    window = MapWindow()
    window.submit([payload()] * 500)
    window.receive([*outputs(*range(50)), *(Output(index, REFUSED) for index in range(150, 500))])
    (message,) = window.retry(TEMPLATE, due=True)
    assert (message.first, len(message.payloads)) == (150, 100), "as many as the server has"
    hopeless = MapWindow()
    hopeless.submit([payload()] * 500)
    hopeless.receive([Output(index, REFUSED) for index in range(500)])
    (message,) = hopeless.retry(TEMPLATE, due=True)
    assert (message.first, len(message.payloads)) == (0, LEAST_RETRY)


def test_each_result_makes_room_for_one_of_them_at_once() -> None:
    window = MapWindow()
    window.submit([payload()] * 9)
    window.receive([Output(index, REFUSED) for index in range(3, 9)])
    assert window.retry(TEMPLATE, due=False) == []
    window.receive(outputs(0, 1))
    assert [(m.first, len(m.payloads)) for m in window.retry(TEMPLATE, due=False)] == [(3, 2)]
    assert window.retry(TEMPLATE, due=False) == []
    window.receive([Output(3, REFUSED), *outputs(4)])
    assert [m.first for m in window.retry(TEMPLATE, due=False)] == [3]


def test_what_waits_for_a_retry_is_not_sent_with_the_rest_after_a_restart() -> None:
    window = MapWindow()
    window.submit([payload()] * 3)
    window.receive([Output(1, REFUSED)])
    assert [m.first for m in window.resend(TEMPLATE)] == [0, 2]
    window.retry(TEMPLATE, due=True)
    assert [(m.first, len(m.payloads)) for m in window.resend(TEMPLATE)] == [(0, 3)]


def test_arguments_that_were_not_let_in_are_nobody_else_s() -> None:
    window = MapWindow()
    window.submit([payload(), payload(7, blob=True)])
    window.receive([Output(1, REFUSED), *outputs(0)])
    assert window.leftovers() == [result(0).payload, payload(7, blob=True)]


def test_an_error_of_the_same_name_out_of_user_code_is_a_result() -> None:
    window = MapWindow()
    window.submit([payload()])
    raised = ErrorInfo("ResourceExhaustedError", "of another function", module="kedge.exception")
    window.receive([Output(0, Result(FAILURE, error=raised))])
    assert window.take() is not None


@given(st.integers(0, 60), st.booleans(), st.randoms(use_true_random=False))
def test_every_result_comes_out_once_whatever_the_order(count: int, ordered: bool, chance: random.Random) -> None:
    window = MapWindow(ordered, max_inputs=7)
    under_way: list[int] = []
    got: list[int] = []
    while len(got) < count:
        if window.room and window.submitted < count and chance.random() < 0.6:
            under_way.append(window.submit([payload()]))
        elif under_way:
            chance.shuffle(under_way)
            batch = [under_way.pop() for _ in range(chance.randint(1, len(under_way)))]
            window.receive(outputs(*batch, batch[0]))
        if chance.random() < 0.7:
            got += taken(window)
        assert 0 <= window.submitted - window.taken <= 7
    assert sorted(got) == list(range(count))
    assert not ordered or got == sorted(got)
    assert window.idle
    assert window.room == 7
