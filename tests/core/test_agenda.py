"""What is due when."""

from __future__ import annotations

from kedge.core.agenda import Agenda


def test_duties_are_done_in_order_and_all_that_are_due() -> None:
    agenda, done = Agenda(), list[str]()
    for when, name in ((3.0, "c"), (1.0, "a"), (2.0, "b1"), (2.0, "b2")):
        agenda.at(when, lambda now, name=name: done.append(f"{name} at {now}"))  # type: ignore[misc]
    assert agenda.next == 1.0
    agenda.run(0.5)
    assert done == []
    agenda.run(2.5)
    assert done == ["a at 2.5", "b1 at 2.5", "b2 at 2.5"]
    assert (agenda.next, agenda.now) == (3.0, 2.5)
    agenda.run(3.0)
    assert agenda.next is None


def test_what_a_duty_makes_due_at_once_is_done_at_once() -> None:
    agenda, done = Agenda(), list[float]()
    agenda.at(1.0, lambda now: agenda.at(now, done.append))
    agenda.at(1.0, lambda now: agenda.at(now + 1.0, done.append))
    agenda.run(1.0)
    assert done == [1.0]
    agenda.run(2.0)
    assert done == [1.0, 2.0]
