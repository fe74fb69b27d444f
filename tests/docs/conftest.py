"""What several documents need, made once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.images.test_roots import bases as bases  # what the root of images begins with: made once for all test runs


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<KEDGE_HOME>/images` of several servers and test processes: what one of them has built is there for the
    others."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a directory of its own in that of all
        base = base.parent
    found = base / "images"
    found.mkdir(exist_ok=True)
    return found
