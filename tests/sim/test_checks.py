"""The checks are awake: a plane that breaks a rule is caught, by the rule that it breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kedge.core.agenda import Agenda
from kedge.core.calls import Input
from kedge.core.containers import Container
from kedge.core.devices import Slab
from kedge.core.fleet import Fleet
from kedge.core.outbox import Outbox
from kedge.core.plane import Plane
from kedge.core.room import Rooms
from kedge.core.router import LoadIndex
from kedge.core.scheduler import Scheduler
from kedge.core.suspects import Suspects
from kedge.model import protocol as p
from kedge.model.payload import Result
from kedge.sim import __main__ as cli
from kedge.sim.checks import Violation
from kedge.sim.scenarios import SCENARIOS

Patch = pytest.MonkeyPatch


def one_slot_too_many(patch: Patch) -> None:
    pick = LoadIndex.pick
    patch.setattr(LoadIndex, "pick", lambda self, target, maximum: pick(self, target, maximum + 1))


def never_the_least_loaded(patch: Patch) -> None:
    """Bursts on the fullest instead of filling the others up to target first."""
    pick = LoadIndex.pick
    patch.setattr(LoadIndex, "pick", lambda self, target, maximum: pick(self, maximum, maximum))


def lost_inputs_stay_lost(patch: Patch) -> None:
    def lost(
        self: Suspects, container: Container, message: p.ContainerLost, blameless: bool, starting: bool = False
    ) -> None:
        self._pool.left(container)
        for input in list(container.leases.values()):
            self._pool.release(container, input)
            if not input.closed:
                del input.call.open[input.index]

    patch.setattr(Suspects, "lost", lost)


def results_are_sent_twice(patch: Patch) -> None:
    deliver = Outbox.deliver

    def twice(self: Outbox, session: str, call: str, index: int, result: Result) -> None:
        deliver(self, session, call, index, result)
        deliver(self, session, call, index, result)

    patch.setattr(Outbox, "deliver", twice)


def leases_are_used_again(patch: Patch) -> None:
    def new_lease(self: Plane, input: Input) -> int:
        self._lease = input.lease = self._lease % 50 + 1
        return self._lease

    patch.setattr(Plane, "new_lease", new_lease)


def cancels_are_not_passed_on(patch: Patch) -> None:
    send = Outbox.send

    def forgetful(self: Outbox, address: str, message: Any) -> None:
        if type(message) is not p.InputsCancelled:
            send(self, address, message)

    patch.setattr(Outbox, "send", forgetful)


def room_is_never_given_back(patch: Patch) -> None:
    patch.setattr(Scheduler, "release", lambda self, placement: None)


def machines_are_endless(patch: Patch) -> None:
    place = Scheduler.place
    patch.setattr(
        Scheduler, "place", lambda self, resources, overcommit=False, peak=0: place(self, resources, True, peak)
    )


def memory_of_devices_is_endless(patch: Patch) -> None:
    patch.setattr(Slab, "has_room", lambda self, vram: not self.whole)


def shared_devices_are_given_whole(patch: Patch) -> None:
    patch.setattr(Slab, "unused", property(lambda self: not self.whole))


def nobody_leaves_for_others(patch: Patch) -> None:
    patch.setattr(Rooms, "_make", lambda self, idle, waiting: None)


def idle_containers_stay(patch: Patch) -> None:
    patch.setattr(Fleet, "_look_if_idle", lambda self, container, planned, now: None)


def duties_are_done_too_late(patch: Patch) -> None:
    """next_deadline names a time, and at that time nothing is due."""
    run = Agenda.run
    patch.setattr(Agenda, "run", lambda self, now: run(self, now - 1.0))


def a_broken_connection_counts_as_a_lost_container(patch: Patch) -> None:
    def disconnected(self: Plane, message: p.ContainerDisconnected, now: float, sender: str) -> None:
        self._container_lost(p.ContainerLost(message.container, "presumed"), now, sender)

    patch.setattr(Plane, "_container_disconnected", disconnected)


CAUGHT = [
    (one_slot_too_many, "many_cancels_at_once", "above max_inputs=4"),
    (never_the_least_loaded, "a_steady_load_starts_and_stops_nothing", "target: "),
    (lost_inputs_stay_lost, "a_stale_attempt_reports_late", "kept without open inputs"),
    (results_are_sent_twice, "to_zero_and_back", "one result: "),
    (leases_are_used_again, "a_burst_finds_no_container", "leases: "),
    (cancels_are_not_passed_on, "a_caller_leaves", "it did not come to this"),
    (room_is_never_given_back, "to_zero_and_back", "AssertionError"),
    (machines_are_endless, "two_functions_share_room_for_one", "capacity: "),
    (memory_of_devices_is_endless, "two_models_share_a_gpu", "vram: "),
    (shared_devices_are_given_whole, "a_whole_gpu_is_nobody_s_beside", "devices: "),
    (nobody_leaves_for_others, "idle_containers_make_room", "it did not come to this"),
    (duties_are_done_too_late, "to_zero_and_back", "no spinning: "),
    (idle_containers_stay, "a_poison_input_kills_its_containers", "rest: "),
    (a_broken_connection_counts_as_a_lost_container, "a_retry_waits_until_its_predecessor_has_left", "one attempt: "),
]


@pytest.mark.parametrize(("sabotage", "story", "text"), CAUGHT, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_plane_is_caught(sabotage: Callable[[Patch], None], story: str, text: str, monkeypatch: Patch) -> None:
    SCENARIOS[story](0)
    sabotage(monkeypatch)
    with pytest.raises(AssertionError) as caught:
        SCENARIOS[story](0)
    assert text in f"{type(caught.value).__name__} {caught.value}"


def test_the_command_shows_how_to_replay_a_failure(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    results_are_sent_twice(monkeypatch)
    assert cli.main(["--seed", "3", "--runs", "5"]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = next(line for line in lines if line.startswith("FAILED"))
    seed = failed.split()[-1]
    assert lines[-1] == f"replay: python -m kedge.sim --seed {seed}"
    assert "one result: " in lines[-2]
    assert 5 <= len(lines) - 2 <= 42
    assert cli.main(["--seed", seed]) == 1
    monkeypatch.undo()
    assert cli.main(["--seed", seed]) == 0


def test_the_command_sums_up_what_it_has_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--runs", "2"]) == 0
    assert cli.main(["--scenario", "to_zero_and_back"]) == 0
    batch, story = capsys.readouterr().out.splitlines()
    assert "events" in batch
    assert "virtual hours" in batch
    assert story == "to_zero_and_back, seed 0: all as told"


def test_a_failure_carries_the_last_events(monkeypatch: Patch) -> None:
    results_are_sent_twice(monkeypatch)
    with pytest.raises(Violation) as caught:
        SCENARIOS["to_zero_and_back"](0)
    assert caught.value.rule == "one result"
    assert any("InputsFinished" in note for note in caught.value.__notes__)
