"""No test depends on what the machine or its user has configured, or leaves anything there."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
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


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is collected stays. Hundreds of tests fork: garbage collection in a child would look at all tests there
    are, and so copy the memory that they are in."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()
