"""docs/guide/data.md: its programs keep and share what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedge.model.spec import NAMESPACE
from tests.docs.replay import replay, steps
from tests.docs.site import site_in
from tests.engines.sandbox import missing

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "data.md"


def test_the_page_shows_what_happens(tmp_path: Path) -> None:
    if reason := missing(NAMESPACE):
        pytest.skip(f"containers cannot have files of their own here: {reason}")
    assert len([step for step in steps(PAGE) if step.commands]) == 6
    with site_in(tmp_path / "site", KEDGE_PORT="") as site:
        replay(PAGE, site)
