"""docs/guide/gpus.md: its programs run on declared devices, and its commands print what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.replay import replay, steps
from tests.docs.site import site_in

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "gpus.md"


def test_the_page_shows_what_happens(tmp_path: Path) -> None:
    assert len([step for step in steps(PAGE) if step.commands]) == 3
    with site_in(tmp_path / "site", KEDGE_PORT="") as site:
        replay(PAGE, site)
