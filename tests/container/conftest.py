from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.fake_plane import FakePlane


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[FakePlane]:
    plane = FakePlane(tmp_path)
    yield plane
    plane.stop()
