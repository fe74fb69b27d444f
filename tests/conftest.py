"""No test depends on what the machine or its user has configured, or leaves anything there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _nothing_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    directory: Path = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("KEDGE_")]:
            patch.delenv(name)
        patch.setenv("KEDGE_HOME", str(directory / "home"))
        patch.setenv("KEDGE_CONFIG", str(directory / "kedge.toml"))
        yield
