"""What several documents need, made once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.images.test_roots import bases as bases  # what the root of images begins with: made once for all test runs


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<KEDGE_HOME>/images` of several servers and test processes: what one of them has built is there for the
    others. Packages that were fetched and modules that were compiled are there for later test runs as well: with
    torch, that takes half a minute."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a directory of its own in that of all
        base = base.parent
    found = base / "images"
    found.mkdir(exist_ok=True)
    kept = Path(os.environ.get("KEDGE_TEST_PACKAGES") or f"{tempfile.gettempdir()}/kedge-packages-{os.getuid()}")
    for name in ("cache", "bytecode"):
        (kept / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            (found / name).symlink_to(kept / name)
        except FileExistsError:
            pass  # another test process was first
    return found
