"""The README, docs/guide/web.md and docs/guide/deploy.md: programs and commands do what the pages show."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.replay import replay, steps
from tests.docs.site import Site, site_in

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    # Any port that is usual or free, as for everybody: the page says that it stays from start to start.
    with site_in(tmp_path / "site", KEDGE_PORT="") as site:
        yield site


@pytest.mark.parametrize("name", ["README.md", "docs/guide/web.md", "docs/guide/deploy.md"])
def test_the_page_shows_what_happens(site: Site, name: str) -> None:
    assert steps(ROOT / name)
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    replay(ROOT / name, site)
