"""A plane to call, and a client that uses it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest

from kedge.sdk import client as client_module
from kedge.sdk.client import Client
from kedge.sdk.target import Target
from tests.sdk.fake_plane import HELD, FakePlane


@pytest.fixture
def plane() -> Iterator[FakePlane]:
    # Not tmp_path: the path of a Unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="kedge") as home:
        made = FakePlane(home)
        yield made
        made.close()


@pytest.fixture
def far_plane() -> Iterator[FakePlane]:
    """A plane that is reached over TCP, as if it were on another machine."""
    with tempfile.TemporaryDirectory(prefix="kedge") as home:
        made = FakePlane(home, over_tcp=True)
        yield made
        made.close()


@pytest.fixture
def client(plane: FakePlane) -> Iterator[Client]:
    """The current client of this process, connected to `plane`."""
    made = Client(plane.address)
    client_module.use(made)
    yield made
    made.close()


@pytest.fixture
def held() -> Target:
    """A function whose inputs the test answers."""
    return Target(app="ap-1", pool=HELD, name="held")


def target(pool: str, **fields: object) -> Target:
    return Target(app="ap-1", pool=pool, name=pool, **fields)  # type: ignore[arg-type]
