from __future__ import annotations

from pathlib import Path

import pytest

from tests.images.kit import Site


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all builds of a test run share."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def site(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, shelf, monkeypatch)
