"""Batches in the session: one slot, one start, a result for each member. Pure."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kedge.container.session import DRAINED, Action, Cancel, Exit, Session, Start
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
)
from kedge.model.spec import Concurrency

DONE = Result(payload=Payload(data=b"42"))
OTHER = Result(FAILURE, error=ErrorInfo("ValueError", "the oven is cold"))
CANCELLED = Result(TERMINATED)


def members(*leases: int, credited: bool = False, of: int = 0) -> list[Dispatch]:
    """Inputs of one batch, which their tens name; `of` says how many it has where these are not all."""
    count = of or len(leases)
    return [
        Dispatch(lease, "fc-1", lease, "", Payload(), 0, credited, batch=lease // 10, members=count) for lease in leases
    ]


def give(session: Session, *leases: int, credited: bool = False, of: int = 0) -> list[list[int]]:
    """Dispatches members of one batch: the batches that start."""
    return starts(session.receive(InputsDispatched(members(*leases, credited=credited, of=of))))


def starts(actions: list[Action]) -> list[list[int]]:
    return [[member.lease for member in action.members] for action in actions if isinstance(action, Start)]


def results(session: Session) -> dict[int, Result]:
    finished = [message for message in session.outgoing() if isinstance(message, InputsFinished)]
    return {item.lease: item.result for message in finished for item in message.inputs}


# ---------------------------------------------------------------- one slot, one start


def test_a_batch_starts_once_in_one_slot_by_the_name_of_its_first_member() -> None:
    session = Session(1)
    (start,) = session.receive(InputsDispatched(members(10, 11, 12)))
    assert isinstance(start, Start)
    assert start.dispatch.lease == 10
    assert [member.lease for member in start.members] == [10, 11, 12]
    assert (session.running, session.waiting) == (1, 0)


def test_a_batch_waits_until_all_its_members_have_come() -> None:
    session = Session(1)
    assert give(session, 10, of=3) == []
    assert give(session, 11, of=3) == []
    assert (session.running, session.waiting) == (0, 0)
    assert give(session, 12, of=3) == [[10, 11, 12]]


def test_a_member_that_comes_twice_is_counted_once() -> None:
    session = Session(1)
    assert give(session, 10, of=2) == []
    assert give(session, 10, of=2) == []
    assert give(session, 11, of=2) == [[10, 11]]
    assert give(session, 10, 11) == []
    session.batch_finished(10, [DONE, DONE])
    assert give(session, 10, 11) == []


def test_each_member_gets_its_own_result_and_the_slot_is_free_once() -> None:
    session = Session(1)
    give(session, 10, 11)
    assert give(session, 20, 21) == []
    assert starts(session.batch_finished(10, [DONE, OTHER], 0.5)) == [[20, 21]]
    assert session.outgoing() == [InputsFinished([Finished(10, DONE, 0.5), Finished(11, OTHER, 0.5)], [])]
    assert session.batch_finished(10, [DONE, OTHER]) == []
    assert session.batch_finished(99, [DONE]) == []
    assert session.running == 1


def test_as_many_batches_run_as_there_are_slots_and_inputs_without_one_take_their_turn() -> None:
    session = Session(2)
    assert give(session, 10, 11) == [[10, 11]]
    assert give(session, 20) == [[20]]
    assert give(session, 30, 31) == []
    session.receive(InputsDispatched([Dispatch(40, "fc-1", 40, "", Payload())]))
    assert give(session, 50) == []
    assert session.waiting == 3
    assert starts(session.batch_finished(20, [DONE])) == [[30, 31]]
    (start,) = session.batch_finished(30, [DONE, DONE])
    assert isinstance(start, Start)
    assert (start.dispatch.lease, start.members) == (40, ())
    assert starts(session.finished(40, DONE)) == [[50]]


def test_a_result_too_few_is_a_mistake_of_ours() -> None:
    session = Session(1)
    give(session, 10, 11)
    with pytest.raises(ValueError, match="shorter"):
        session.batch_finished(10, [DONE])


def test_more_slots_start_waiting_batches() -> None:
    session = Session(1)
    give(session, 10, 11)
    give(session, 20, 21)
    assert starts(session.receive(ConcurrencyChanged(Concurrency(2, 2)))) == [[20, 21]]


def test_credited_members_are_said_to_have_started_and_can_be_recalled_before() -> None:
    session = Session(1)
    assert give(session, 10, 11, credited=True) == [[10, 11]]
    assert session.outgoing() == [InputsStarted([10, 11])]
    give(session, 20, 21, 22, credited=True)
    session.receive(InputsRecalled([21, 11]))
    assert session.outgoing() == [InputsReturned([21])]
    assert starts(session.batch_finished(10, [DONE, DONE])) == [[20, 22]]
    session.receive(InputsRecalled([20]))
    assert session.outgoing() == [InputsFinished([Finished(10, DONE), Finished(11, DONE)], [20, 22])]
    give(session, 30, 31, credited=True)
    session.receive(InputsRecalled([30, 31]))
    assert session.outgoing() == [InputsReturned([30, 31])]
    assert session.batch_finished(20, [DONE, DONE]) == []


def test_fewer_slots_give_back_the_part_of_a_credited_batch_that_has_come() -> None:
    session = Session(2)
    give(session, 10)
    give(session, 20, of=3, credited=True)
    session.receive(SlotsChanged(1))
    assert InputsReturned([20]) in session.outgoing()
    assert give(session, 21, 22, of=3, credited=True) == []
    assert session.outgoing() == [InputsReturned([21, 22])]
    session.batch_finished(10, [DONE])
    assert give(session, 31, 32, of=2) == [[31, 32]]


# ---------------------------------------------------------------- cancelling


def test_a_member_that_was_cancelled_before_the_start_is_left_out() -> None:
    session = Session(1)
    give(session, 10)
    session.receive(InputsCancelled([20]))
    assert give(session, 20, 21, 22) == []
    session.receive(InputsCancelled([22]))
    assert results(session) == {20: CANCELLED, 22: CANCELLED}
    assert starts(session.batch_finished(10, [DONE])) == [[21]]


def test_a_cancel_while_the_batch_is_still_coming_counts() -> None:
    session = Session(1)
    assert give(session, 10, 11, of=3) == []
    assert session.receive(InputsCancelled([10])) == []
    assert results(session) == {10: CANCELLED}
    assert give(session, 12, of=3) == [[11, 12]]


def test_a_batch_of_which_nothing_is_left_never_starts() -> None:
    session = Session(1)
    session.receive(InputsCancelled([10, 11]))
    assert give(session, 10, 11) == []
    assert give(session, 20, of=2) == []
    session.receive(InputsCancelled([20, 21]))
    assert give(session, 20, 21) == []
    give(session, 30)
    give(session, 40, 41)
    session.receive(InputsCancelled([40, 41]))
    assert session.waiting == 0
    assert session.batch_finished(30, [DONE]) == []
    assert results(session) == dict.fromkeys([10, 11, 20, 21, 40, 41], CANCELLED) | {30: DONE}


def test_cancelling_a_member_of_a_running_batch_drops_its_result_only() -> None:
    session = Session(1)
    give(session, 10, 11, 12)
    assert session.receive(InputsCancelled([10, 12])) == []
    assert not session.dirty
    session.batch_finished(10, [DONE, DONE, DONE])
    assert results(session) == {10: CANCELLED, 11: DONE, 12: CANCELLED}


def test_the_code_is_interrupted_once_when_no_member_wants_it_any_more() -> None:
    session = Session(1)
    give(session, 10, 11, 12)
    assert session.receive(InputsCancelled([11])) == []
    assert session.receive(InputsCancelled([11, 12])) == []
    assert session.receive(InputsCancelled([10])) == [Cancel(10, "cancelled")]
    assert session.receive(InputsCancelled([10, 11, 12])) == []
    assert session.running == 1
    session.batch_finished(10, [DONE, DONE, DONE])
    assert results(session) == {10: CANCELLED, 11: CANCELLED, 12: CANCELLED}


def test_time_is_over_for_all_but_the_first_reason_of_each_member_counts() -> None:
    session = Session(1)
    give(session, 10, 11, 12)
    session.receive(InputsCancelled([11]))
    assert session.receive(InputsCancelled([10, 11, 12], "timeout")) == [Cancel(10, "timeout")]
    assert [session.reason(lease) for lease in (10, 11, 12)] == ["timeout", "cancelled", "timeout"]
    late = Result(TIMEOUT, error=ErrorInfo("FunctionTimeoutError", "the input ran longer"))
    session.batch_finished(10, [late, late, late])
    assert results(session) == {10: late, 11: CANCELLED, 12: late}


# ---------------------------------------------------------------- drains


def test_a_drain_lets_granted_batches_finish_also_those_that_are_still_coming() -> None:
    session = Session(1)
    give(session, 10, 11)
    give(session, 20, of=2)
    assert session.receive(ContainerDrained("idle")) == []
    assert session.batch_finished(10, [DONE, DONE]) == []
    assert give(session, 21, of=2) == [[20, 21]]
    assert session.batch_finished(20, [DONE, DONE]) == [Exit("idle")]


def test_a_drain_returns_credited_batches_whole_or_in_parts() -> None:
    session = Session(1)
    give(session, 10)
    give(session, 20, 21, credited=True)
    give(session, 30, of=2, credited=True)
    assert session.receive(ContainerDrained("idle")) == []
    assert give(session, 31, of=2, credited=True) == []
    assert session.outgoing() == [InputsReturned([20, 21, 30, 31])]
    session.receive(InputsCancelled([40]))
    assert give(session, 40, 41, credited=True) == []
    assert session.outgoing() == [InputsReturned([41]), InputsFinished([Finished(40, CANCELLED)], [])]
    assert session.batch_finished(10, [DONE]) == [Exit("idle")]


def test_a_drain_that_cancels_interrupts_batches_and_reports_nothing_of_them() -> None:
    session = Session(2)
    give(session, 10, 11, 12)
    give(session, 20, 21)
    give(session, 30, 31)
    give(session, 40, of=2)
    session.receive(InputsCancelled([11, 20, 21]))
    assert session.receive(ContainerDrained("stop", cancel=True)) == [Cancel(10, DRAINED)]
    assert give(session, 41, of=2) == []
    assert session.batch_finished(10, [DONE] * 3) == []
    assert session.batch_finished(20, [DONE] * 2) == [Exit("stop")]
    assert results(session) == {11: CANCELLED, 20: CANCELLED, 21: CANCELLED}


def test_giving_up_leaves_batches_behind() -> None:
    session = Session(1)
    give(session, 10, 11)
    session.receive(ContainerDrained("stop", cancel=True))
    assert session.give_up() == [Exit("stop")]
    assert session.batch_finished(10, [DONE, DONE]) == []
    assert session.outgoing() == []


def test_a_draining_container_leaves_when_the_rest_of_its_only_batch_turns_out_to_be_cancelled() -> None:
    session = Session(1)
    first, second = members(10, 11)
    session.receive(InputsCancelled([10, 11]))
    assert session.receive(InputsDispatched([first])) == []
    assert session.receive(ContainerDrained("idle")) == []
    assert session.receive(InputsDispatched([second])) == [Exit("idle")]


# ---------------------------------------------------------------- any order


class BatchMachine(RuleBasedStateMachine):
    """Any order of messages and ends, with batches in pieces and inputs of their own, against a plain account."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(2)
        self.lease = self.number = 0
        self.coming: list[Dispatch] = []
        """What is left of a batch that has come in part."""
        self.granted: set[int] = set()
        """Leases the plane has not heard the end of."""
        self.batched: set[int] = set()
        self.running: dict[int, list[int]] = {}
        """First lease → all leases of what runs in one slot."""
        self.told: set[int] = set()
        """Those that run and are cancelled."""
        self.interrupted: set[int] = set()
        self.owed: dict[int, str] = {}
        """Lease → status of the result that the next frame must hold."""
        self.draining = self.cancelling = False
        self.exits = 0

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                leases = [member.lease for member in action.members] or [action.dispatch.lease]
                assert leases[0] == action.dispatch.lease
                assert len({member.batch for member in action.members}) <= 1
                assert not any(lease in running for running in self.running.values() for lease in leases)
                assert set(leases) <= self.granted
                assert not self.exits
                self.running[leases[0]] = leases
            elif isinstance(action, Cancel):
                assert action.lease in self.running
                assert action.lease not in self.interrupted
                self.interrupted.add(action.lease)
            else:
                assert not self.running
                self.exits += 1

    def send(self, inputs: list[Dispatch]) -> None:
        self.granted |= {dispatch.lease for dispatch in inputs}
        self.act(self.session.receive(InputsDispatched(inputs)))

    @precondition(lambda self: not self.coming)
    @rule(count=st.integers(0, 4), credited=st.booleans(), now=st.integers(0, 4))
    def dispatch(self, count: int, credited: bool, now: int) -> None:
        """A batch of `count`, of which only the first `now` come at once; 0 is an input of its own."""
        self.number += count > 0
        leases = range(self.lease + 1, self.lease + 1 + max(count, 1))
        self.lease = leases[-1]
        number = self.number if count else 0
        inputs = [Dispatch(i, "fc-1", i, "", Payload(), 0, credited, batch=number, members=count) for i in leases]
        now = max(now, 1)
        self.coming = inputs[now:]
        self.batched |= set(leases) if count else set()
        self.send(inputs[:now])

    @precondition(lambda self: self.coming)
    @rule()
    def rest(self) -> None:
        inputs, self.coming = self.coming, []
        self.send(inputs)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        first = data.draw(st.sampled_from(sorted(self.running)))
        leases = self.running.pop(first)
        self.interrupted.discard(first)
        for lease in leases:
            if lease in self.told:
                self.owed[lease] = TERMINATED
            elif not self.cancelling:
                self.owed[lease] = SUCCESS
        dones = [DONE] * len(leases)
        if first in self.batched:
            self.act(self.session.batch_finished(first, dones))
            assert self.session.batch_finished(first, dones) == []
        else:
            self.act(self.session.finished(first, DONE))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        leases = data.draw(st.lists(st.integers(0, self.lease), min_size=1, max_size=4))
        if not self.cancelling:
            self.told |= {lease for running in self.running.values() for lease in running if lease in leases}
        self.act(self.session.receive(InputsCancelled(leases)))

    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        leases = data.draw(st.lists(st.integers(0, self.lease), max_size=6))
        self.act(self.session.receive(InputsRecalled(leases)))

    @rule(maximum=st.integers(1, 4))
    def change(self, maximum: int) -> None:
        self.act(self.session.receive(ConcurrencyChanged(Concurrency(maximum, maximum))))

    @rule(inputs=st.integers(1, 4))
    def want_fewer(self, inputs: int) -> None:
        self.act(self.session.receive(SlotsChanged(inputs)))

    @precondition(lambda self: self.lease > 6)
    @rule()
    def want_to_leave(self) -> None:
        self.act(self.session.receive(ContainerLeaving("enough")))

    @precondition(lambda self: self.lease > 6)
    @rule(cancel=st.booleans())
    def drain(self, cancel: bool) -> None:
        self.draining = True
        self.cancelling |= cancel
        self.act(self.session.receive(ContainerDrained("", cancel)))

    @rule()
    def flush(self) -> None:
        started: set[int] = set()
        running = {lease for leases in self.running.values() for lease in leases}
        for message in self.session.outgoing():
            if isinstance(message, InputsReturned):
                for lease in message.leases:
                    assert lease not in running
                    self.granted.remove(lease)
            elif isinstance(message, InputsFinished):
                for item in message.inputs:
                    assert item.lease not in running
                    self.granted.remove(item.lease)
                    assert item.result.status == self.owed.pop(item.lease, TERMINATED)
                started |= set(message.started)
            elif isinstance(message, InputsStarted):
                started |= set(message.leases)
        assert started <= running
        assert not self.owed, "every end is reported with the next frame"

    @invariant()
    def slots(self) -> None:
        assert self.session.running == len(self.running) <= 4
        assert self.exits <= 1
        for first, leases in self.running.items():
            unwanted = self.cancelling or set(leases) <= self.told
            assert (first in self.interrupted) == unwanted
        if self.session.waiting and not self.draining:
            assert self.session.running >= self.session.slots
        if self.draining and not (self.running or self.session.waiting or self.coming):
            assert self.exits == 1


BatchMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestBatchMachine = BatchMachine.TestCase
