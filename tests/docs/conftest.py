"""What several documents need, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.images.test_roots import bases as bases  # what the root of images begins with: made once for all test runs


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<KEDGE_HOME>/images` of several servers: what one of them has built or fetched is there for the others."""
    return tmp_path_factory.mktemp("images")
