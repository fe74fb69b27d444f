"""What a server says of isolation and limits."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from kedge.cli import serverfacts
from kedge.engines import warden
from kedge.server import protection


class Known:
    def __init__(self, rungs: Mapping[str, str], preferred: str = "") -> None:
        self.rungs = rungs
        self.preferred = preferred


@pytest.mark.parametrize(
    ("rungs", "preferred", "rung"),
    [
        ({"process": "", "namespace": ""}, "", "namespace"),
        ({"process": "", "namespace": "not here"}, "", "process"),
        ({"process": ""}, "", "process"),
        ({"process": "", "namespace": "", "gvisor": ""}, "gvisor", "gvisor"),
    ],
)
def test_the_rung_is_the_one_asked_for_or_the_best(rungs: dict[str, str], preferred: str, rung: str) -> None:
    assert protection.facts(Known(rungs, preferred))["isolation"] == {"rung": rung, "rungs": rungs}


def test_without_control_groups_kedge_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warden.SWITCH, "off")
    assert protection.enforced() == dict.fromkeys(("cpu", "memory", "pids", "disk"), "kedge")


def test_the_status_says_both_in_a_line() -> None:
    facts = {
        "machines": [],
        "isolation": {"rung": "namespace", "rungs": {}},
        "limits": {"cpu": "cgroup v2", "memory": "cgroup v2", "pids": "kedge", "disk": "kedge"},
        "disk": {"free_bytes": 2**30},
        "failures": 0,
        "dropped": {},
    }
    assert next(iter(serverfacts.lines(facts))) == (
        "Isolation of containers with images: namespace. Limits are kept by cgroup v2 (cpu, memory), kedge (pids, "
        "disk); `kedge doctor` says more."
    )
