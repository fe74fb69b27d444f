from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kedge.container import session as session_module
from kedge.container.session import Cancel, Exit, Session, Start
from kedge.model.payload import FAILURE, SUCCESS, TERMINATED, TIMEOUT, ErrorInfo, Payload, Result
from kedge.model.protocol import (
    ConcurrencyChanged,
    ContainerDrained,
    ContainerLeaving,
    Dispatch,
    Finished,
    InputsCancelled,
    InputsDispatched,
    InputsFinished,
    InputsRecalled,
    InputsReturned,
    InputsStarted,
    SlotsChanged,
    StreamCredited,
    Welcome,
)
from kedge.model.spec import Concurrency
from kedge.model.web import WEB

DONE = Result(payload=Payload(data=b"42"))


def input(lease: int, credited: bool = False) -> Dispatch:
    return Dispatch(lease, "fc-1", lease, "", Payload(), 0, credited)


def give(session: Session, *leases: int, credited: bool = False) -> list[int]:
    """Dispatches inputs; the leases that start."""
    return starts(session.receive(InputsDispatched([input(lease, credited) for lease in leases])))


def starts(actions: list[session_module.Action]) -> list[int]:
    return [action.dispatch.lease for action in actions if isinstance(action, Start)]


def test_an_input_starts_at_once_and_is_reported_when_it_has_ended() -> None:
    session = Session(1)
    assert give(session, 7) == [7]
    assert session.outgoing() == []
    assert session.finished(7, DONE, 0.25) == []
    assert session.outgoing() == [InputsFinished([Finished(7, DONE, 0.25)], [])]
    assert session.outgoing() == []
    assert not session.dirty


def test_credited_inputs_wait_in_order_and_start_as_slots_become_free() -> None:
    session = Session(2)
    assert give(session, 1, 2) == [1, 2]
    assert give(session, 3, 4, 5, credited=True) == []
    assert session.waiting == 3
    assert starts(session.finished(2, DONE)) == [3]
    assert starts(session.finished(1, DONE)) == [4]
    assert session.running == 2


def test_what_has_started_and_not_finished_is_said_once_with_the_results() -> None:
    session = Session(1)
    give(session, 1)
    give(session, 2, 3, credited=True)
    session.finished(1, DONE)
    session.finished(2, DONE)
    assert session.outgoing() == [InputsFinished([Finished(1, DONE), Finished(2, DONE)], [3])]
    session.finished(3, DONE)
    assert session.outgoing() == [InputsFinished([Finished(3, DONE)], [])]


def test_a_credited_input_that_finds_a_free_slot_is_reported_as_started() -> None:
    session = Session(1)
    assert give(session, 1, credited=True) == [1]
    assert session.outgoing() == [InputsStarted([1])]


def test_more_than_max_inputs_never_run_even_where_the_plane_grants_them() -> None:
    session = Session(2)
    assert give(session, 1, 2, 3) == [1, 2]
    assert starts(session.finished(1, DONE)) == [3]


def test_recall_returns_what_has_not_started_and_nothing_else() -> None:
    session = Session(1)
    give(session, 1)
    give(session, 2, 3, 4, credited=True)
    session.finished(1, DONE)
    assert session.receive(InputsRecalled([1, 2, 3, 99])) == []
    assert session.outgoing() == [InputsReturned([3]), InputsFinished([Finished(1, DONE)], [2])]
    assert starts(session.finished(2, DONE)) == [4]


def test_recall_leaves_granted_inputs_alone() -> None:
    session = Session(1)
    give(session, 1, 2)
    session.receive(InputsRecalled([2]))
    assert session.outgoing() == []
    assert starts(session.finished(1, DONE)) == [2]


def test_a_duplicate_dispatch_is_dropped_while_it_runs_waits_and_after_it_ended() -> None:
    session = Session(1)
    give(session, 1)
    give(session, 2, credited=True)
    assert give(session, 1, 2) == []
    assert starts(session.finished(1, DONE)) == [2]
    assert give(session, 1, 2) == []
    assert session.finished(2, DONE) == []
    assert session.waiting == 0


def test_a_lease_that_runs_for_ages_is_still_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "REMEMBERED_LEASES", 4)
    session = Session(2)
    give(session, 1)
    for lease in range(2, 30):
        assert give(session, lease) == [lease]
        session.finished(lease, DONE)
    assert give(session, 1) == []
    assert len(session._seen) + len(session._seen_before) <= 8


def test_a_slot_is_freed_exactly_once() -> None:
    session = Session(1)
    give(session, 1)
    give(session, 2, 3, credited=True)
    assert starts(session.finished(1, DONE)) == [2]
    assert session.finished(1, DONE) == []
    assert session.finished(99, DONE) == []
    assert session.running == 1
    assert session.outgoing() == [InputsFinished([Finished(1, DONE)], [2])]


@pytest.mark.parametrize(("reason", "status"), [("cancelled", TERMINATED), ("timeout", TIMEOUT)])
def test_a_cancelled_input_is_cancelled_whatever_its_code_returns(reason: str, status: str) -> None:
    session = Session(1)
    give(session, 1)
    assert session.receive(InputsCancelled([1], reason)) == [Cancel(1, reason)]
    assert session.running == 1
    session.finished(1, DONE, 0.5)
    assert session.outgoing() == [InputsFinished([Finished(1, Result(status), 0.5)], [])]


def test_late_code_says_where_it_was_and_nothing_else_of_what_it_left_counts() -> None:
    session = Session(3)
    give(session, 1, 2, 3)
    session.receive(InputsCancelled([1, 2], "timeout"))
    session.receive(InputsCancelled([3]))
    late, own = ErrorInfo("FunctionTimeoutError", "the input ran longer"), ErrorInfo("ValueError", "of the code's own")
    session.finished(1, Result(TIMEOUT, DONE.payload, late, 7))
    session.finished(2, Result(FAILURE, error=own))
    session.finished(3, Result(TIMEOUT, error=late))
    results = [item.result for item in session.outgoing()[0].inputs]
    assert results == [Result(TIMEOUT, error=late, count=7), Result(TIMEOUT), Result(TERMINATED)]


def test_only_the_first_cancel_of_an_input_counts() -> None:
    session = Session(1)
    give(session, 1)
    session.receive(InputsCancelled([1], "timeout"))
    assert session.receive(InputsCancelled([1])) == []
    assert session.reason(1) == "timeout"


def test_a_cancelled_stream_keeps_the_count_of_its_values() -> None:
    session = Session(1)
    give(session, 1)
    session.receive(InputsCancelled([1]))
    session.finished(1, Result(count=5))
    assert session.outgoing()[0].inputs[0].result == Result(TERMINATED, count=5)


def test_cancelling_what_waits_ends_it_without_a_start() -> None:
    session = Session(1)
    give(session, 1)
    give(session, 2, 3, credited=True)
    assert session.receive(InputsCancelled([2])) == []
    assert session.outgoing() == [InputsFinished([Finished(2, Result(TERMINATED))], [])]
    assert starts(session.finished(1, DONE)) == [3]


def test_a_cancel_that_comes_before_its_input_is_remembered() -> None:
    session = Session(1)
    session.receive(InputsCancelled([5]))
    assert give(session, 5) == []
    assert session.outgoing() == [InputsFinished([Finished(5, Result(TERMINATED))], [])]
    assert give(session, 6) == [6]


def test_a_cancel_that_comes_after_the_end_is_ignored() -> None:
    session = Session(1)
    give(session, 1)
    session.finished(1, DONE)
    assert session.receive(InputsCancelled([1])) == []
    assert session.outgoing() == [InputsFinished([Finished(1, DONE)], [])]
    assert not session._early


def test_early_cancels_are_bounded_and_the_oldest_goes() -> None:
    session = Session(1)
    session.receive(InputsCancelled(list(range(session_module.EARLY_CANCELS + 1))))
    assert len(session._early) == session_module.EARLY_CANCELS
    assert give(session, 0) == [0]
    assert give(session, 1) == []


def test_drain_returns_credits_lets_the_rest_finish_and_exits_once() -> None:
    session = Session(1)
    give(session, 1)
    give(session, 2, 3, credited=True)
    assert session.receive(ContainerDrained("idle")) == []
    assert session.outgoing() == [InputsReturned([2, 3])]
    assert give(session, 4, credited=True) == []
    assert session.outgoing() == [InputsReturned([4])]
    assert session.finished(1, DONE) == [Exit("idle")]
    assert session.receive(ContainerDrained("again")) == []


def test_drain_of_an_idle_container_exits_at_once() -> None:
    assert Session(1).receive(ContainerDrained("idle")) == [Exit("idle")]


def test_drain_runs_what_was_granted_before_it() -> None:
    session = Session(1)
    give(session, 1, 2)
    assert session.receive(ContainerDrained()) == []
    assert starts(session.finished(1, DONE)) == [2]
    assert session.finished(2, DONE) == [Exit("")]


def test_a_drain_that_cancels_reports_nothing_of_what_it_cancelled() -> None:
    session = Session(2)
    give(session, 1, 2, 3)
    give(session, 4, credited=True)
    session.receive(InputsCancelled([1]))
    assert session.receive(ContainerDrained("stop", cancel=True)) == [Cancel(2, session_module.DRAINED)]
    assert session.finished(2, DONE) == []
    assert session.finished(1, DONE) == [Exit("stop")]
    assert session.outgoing() == [InputsReturned([4]), InputsFinished([Finished(1, Result(TERMINATED))], [])]


def test_giving_up_leaves_behind_what_a_drain_has_cancelled() -> None:
    session = Session(2)
    give(session, 1, 2)
    session.receive(ContainerDrained("stop", cancel=True))
    session.finished(1, DONE)
    assert session.stopping
    assert session.give_up() == [Exit("stop")]
    assert session.finished(2, DONE) == []
    assert session.give_up() == []
    assert session.outgoing() == []


def test_nobody_gives_up_what_may_finish() -> None:
    session = Session(1)
    give(session, 1)
    assert session.give_up() == []
    session.receive(ContainerDrained("idle"))
    session.receive(InputsCancelled([1]))
    assert not session.stopping
    assert session.give_up() == []
    assert session.finished(1, DONE) == [Exit("idle")]


def test_nothing_starts_after_the_exit_or_after_a_drain_that_cancels() -> None:
    idle = Session(1)
    idle.receive(ContainerDrained())
    assert give(idle, 1) == []
    busy = Session(2)
    give(busy, 1)
    busy.receive(ContainerDrained(cancel=True))
    assert give(busy, 2) == []
    assert busy.finished(1, DONE) == [Exit("")]


def test_cancelling_the_last_waiting_input_of_a_draining_container_lets_it_leave() -> None:
    session = Session(1)
    give(session, 1, 2)
    session.receive(ContainerDrained())
    session.receive(InputsCancelled([2]))
    assert session.finished(1, DONE) == [Exit("")]


def test_concurrency_changes_live() -> None:
    session = Session(1)
    give(session, 1)
    give(session, 2, 3, 4, credited=True)
    assert starts(session.receive(ConcurrencyChanged(Concurrency(3, 3)))) == [2, 3]
    assert session.receive(ConcurrencyChanged(Concurrency(1, 1))) == []
    assert session.finished(1, DONE) == []
    assert session.finished(2, DONE) == []
    assert starts(session.finished(3, DONE)) == [4]


def test_its_own_code_may_take_fewer_which_the_plane_hears_first() -> None:
    session = Session(3)
    give(session, 1, 2, 3)
    give(session, 4, credited=True)
    assert session.receive(SlotsChanged(1)) == []
    session.finished(1, DONE)
    assert session.outgoing() == [SlotsChanged(1), InputsReturned([4]), InputsFinished([Finished(1, DONE)], [])]
    assert not session.dirty
    assert give(session, 5) == []
    assert session.outgoing() == [InputsReturned([5])], "granted before the plane knew: it is for another container"
    assert session.finished(2, DONE) == []
    session.finished(3, DONE)
    assert give(session, 6) == [6]
    assert session.receive(SlotsChanged(2)) == []
    assert session.outgoing()[0] == SlotsChanged(2)


def test_zero_is_as_many_as_there_may_be() -> None:
    session = Session(4)
    session.receive(SlotsChanged(2))
    session.outgoing()
    session.receive(SlotsChanged(0))
    assert session.outgoing() == [SlotsChanged(4)]
    session.receive(ConcurrencyChanged(Concurrency(6, 6)))
    assert session.slots == 6
    assert not session.dirty


def test_a_request_is_not_given_back() -> None:
    """What follows of it is on its way here as well."""
    session = Session(3)
    give(session, 1)
    session.receive(SlotsChanged(1))
    session.outgoing()
    request = Dispatch(2, "fc-2", 0, "", Payload(WEB), stream=True)
    assert starts(session.receive(InputsDispatched([request]))) == [2]
    assert give(session, 3) == []
    assert session.outgoing() == [InputsReturned([3])]


def test_its_own_number_and_that_of_the_plane_hold_both() -> None:
    session = Session(4)
    session.receive(SlotsChanged(9))
    assert session.outgoing() == [SlotsChanged(4)], "no more than the plane allows"
    session.receive(SlotsChanged(2))
    session.outgoing()
    session.receive(ConcurrencyChanged(Concurrency(3, 3)))
    assert session.outgoing() == [SlotsChanged(2)], "said again: the plane may have understood the old one otherwise"
    session.receive(ConcurrencyChanged(Concurrency(1, 1)))
    assert give(session, 1, 2) == [1]
    assert starts(session.receive(ConcurrencyChanged(Concurrency(9, 9)))) == [2]
    assert session.slots == 2
    other = Session(1)
    other.receive(ConcurrencyChanged(Concurrency(3, 3)))
    assert not other.dirty, "where its code has no wish of its own the plane knows it all"


def test_when_its_own_code_wants_to_leave_only_what_was_granted_for_certain_runs() -> None:
    session = Session(1)
    give(session, 1, 2)
    give(session, 3, credited=True)
    session.receive(ContainerLeaving("why"))
    session.receive(ContainerLeaving("again"))
    assert session.outgoing() == [ContainerLeaving("why"), InputsReturned([3])]
    assert give(session, 4, credited=True) == []
    assert session.outgoing() == [InputsReturned([4])]
    assert starts(session.finished(1, DONE)) == [2]
    assert session.finished(2, DONE) == [], "the plane says when it is over"
    assert session.receive(ContainerDrained("so be it")) == [Exit("so be it")]
    session.receive(ContainerLeaving("late"))
    assert [type(message) for message in session.outgoing()] == [InputsFinished]


def test_other_messages_are_none_of_its_business() -> None:
    session = Session(1)
    assert session.receive(Welcome("")) == []
    assert session.receive(StreamCredited("fc-1", 0, 5)) == []
    assert not session.dirty


class SessionMachine(RuleBasedStateMachine):
    """Any order of messages and ends against a plain account of what the plane knows."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(2)
        self.lease = 0
        self.granted: set[int] = set()
        """Leases the plane has not heard the end of."""
        self.running: set[int] = set()
        self.left: set[int] = set()
        """Given up while they ran."""
        self.cancelled: set[int] = set()
        self.unreported: set[int] = set()
        """Ended here: a result is owed."""
        self.exits = 0
        self.draining = self.cancelling = self.leaving = False
        self.wanted = 0

    def act(self, actions: list[session_module.Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                lease = action.dispatch.lease
                assert not (action.dispatch.credited and (self.leaving or self.draining))
                assert len(self.running) < self.session.slots
                assert lease in self.granted
                assert lease not in self.running
                assert not self.exits
                self.running.add(lease)
            elif isinstance(action, Cancel):
                assert action.lease in self.running
                self.cancelled.add(action.lease)
            else:
                assert not self.running
                self.exits += 1

    @rule(count=st.integers(1, 5), credited=st.booleans())
    def dispatch(self, count: int, credited: bool) -> None:
        inputs = [input(self.lease + i, credited) for i in range(1, count + 1)]
        self.lease += count
        self.granted |= {dispatch.lease for dispatch in inputs}
        self.act(self.session.receive(InputsDispatched(inputs)))

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        lease = data.draw(st.integers(0, self.lease))
        ran = lease in self.running
        self.running.discard(lease)
        if ran:
            self.unreported.add(lease)
        self.act(self.session.finished(lease, DONE))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        lease = data.draw(st.integers(0, self.lease))
        self.act(self.session.receive(InputsCancelled([lease])))

    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        leases = data.draw(st.lists(st.integers(0, self.lease), max_size=6))
        self.act(self.session.receive(InputsRecalled(leases)))

    @rule(maximum=st.integers(1, 4))
    def change(self, maximum: int) -> None:
        self.act(self.session.receive(ConcurrencyChanged(Concurrency(maximum, maximum))))

    @rule(slots=st.integers(1, 5))
    def want(self, slots: int) -> None:
        self.wanted = slots
        self.act(self.session.receive(SlotsChanged(slots)))

    @precondition(lambda self: self.lease > 4)
    @rule()
    def want_to_leave(self) -> None:
        self.act(self.session.receive(ContainerLeaving("")))
        self.leaving = True

    @precondition(lambda self: self.lease > 4)
    @rule(cancel=st.booleans())
    def drain(self, cancel: bool) -> None:
        self.draining = True
        self.cancelling |= cancel
        self.act(self.session.receive(ContainerDrained("", cancel)))

    @precondition(lambda self: self.lease > 4)
    @rule()
    def give_up(self) -> None:
        if self.cancelling:
            self.left |= self.running
            self.running.clear()
        self.act(self.session.give_up())

    @rule()
    def flush(self) -> None:
        started: set[int] = set()
        for message in self.session.outgoing():
            if isinstance(message, InputsReturned):
                for lease in message.leases:
                    assert lease in self.granted
                    assert lease not in self.running
                    self.granted.remove(lease)
            elif isinstance(message, InputsFinished):
                for item in message.inputs:
                    assert item.lease in self.granted
                    assert item.lease not in self.running
                    self.granted.remove(item.lease)
                    if item.lease in self.unreported:
                        expected = TERMINATED if item.lease in self.cancelled else SUCCESS
                    else:
                        expected = TERMINATED
                    assert item.result.status == expected
                    self.unreported.discard(item.lease)
                started |= set(message.started)
            elif isinstance(message, SlotsChanged):
                assert message.inputs == min(self.wanted, self.session.max_inputs)
            elif isinstance(message, ContainerLeaving):
                assert self.leaving
            else:
                started |= set(message.leases)
        assert started <= self.running | self.left
        if not self.cancelling:
            assert not self.unreported, "every end is reported with the next frame"

    @invariant()
    def slots(self) -> None:
        assert self.session.running == len(self.running)
        assert self.exits <= 1
        if self.session.waiting and not self.draining:
            assert self.session.running >= self.session.slots
        assert self.session.slots == min(self.session.max_inputs, self.wanted or self.session.max_inputs)
        if self.draining and not self.running and not self.session.waiting:
            assert self.exits == 1


SessionMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestSessionMachine = SessionMachine.TestCase
