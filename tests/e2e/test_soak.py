"""Mixed traffic while everything is killed, for twenty seconds; `python -m benchmarks.soak` goes on for longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import soak

pytestmark = pytest.mark.slow


@pytest.mark.timeout(300)
def test_everything_is_answered_or_fails_visibly_and_spawned_calls_are_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path / "home"))
    outcome = soak.run(1 / 3, 20, tmp_path)
    assert outcome.happened["servers killed"]
    assert outcome.happened["containers killed"]
    assert all(kind.answered for kind in outcome.kinds.values()), outcome.table()
    assert outcome.holds, outcome.table()
