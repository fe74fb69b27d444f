"""docs/guide/images.md: its images are built, and its commands print what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedge.model.spec import NAMESPACE
from tests.docs.replay import replay, steps
from tests.docs.site import site_in
from tests.engines.sandbox import missing

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "images.md"


def test_the_page_shows_what_happens(tmp_path: Path, bases: Path) -> None:
    if reason := missing(NAMESPACE):
        pytest.skip(f"containers cannot have files of their own here: {reason}")
    assert len([step for step in steps(PAGE) if step.commands]) == 6
    images = tmp_path / "images"
    images.mkdir()
    (images / "bases").symlink_to(bases)
    with site_in(tmp_path / "site", images, KEDGE_PORT="") as site:
        replay(PAGE, site)
