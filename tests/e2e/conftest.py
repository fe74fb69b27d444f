"""Real processes: a server, its supervisor, fork servers and containers, in a state directory of the test run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import harbour


@pytest.fixture(scope="session", autouse=True)
def kedge_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """KEDGE_HOME of every test here: nothing of the user's is touched."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEDGE_HOME", str(home))
        patch.delenv("KEDGE_SERVER", raising=False)
        yield home


@pytest.fixture(scope="module")
def running(kedge_home: Path) -> Iterator[None]:
    """The app of `harbour` runs while the tests of a module do."""
    with harbour.app.run():
        yield
