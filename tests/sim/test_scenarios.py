"""Every named story comes out as told, whatever the delays."""

from __future__ import annotations

import pytest

from kedge.sim.scenarios import SCENARIOS

SCARS = {
    "a_lease_is_delivered_twice_while_its_input_runs",
    "a_cancel_lands_after_the_output_was_sent",
    "a_retry_waits_until_its_predecessor_has_left",
    "an_output_arrives_before_the_caller_has_recorded_the_id",
    "a_stale_attempt_reports_late",
    "a_container_crashes_while_it_drains",
    "the_server_restarts_in_mid_burst",
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_story(name: str) -> None:
    for seed in range(3):
        SCENARIOS[name](seed)


def test_the_seven_scars_are_told() -> None:
    assert set(SCENARIOS) >= SCARS
