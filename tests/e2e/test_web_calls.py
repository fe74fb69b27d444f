"""Calls from web handlers: awaited, from threads, and those that block the loop, which is no reason to stand still."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import calling_functions as functions
from tests.e2e.web_clients import crowd, http, url_of

pytestmark = pytest.mark.slow

BURST = 20


@pytest.fixture(scope="module", autouse=True)
def running_callers(kedge_home: Path) -> Iterator[None]:
    with functions.app.run():
        yield


@pytest.mark.parametrize("path", ["generate", "generate-plain", "generate-aio"])
@pytest.mark.parametrize("name", ["narrow", "wide"])
def test_a_burst_of_requests_whose_handlers_call(name: str, path: str) -> None:
    url = url_of(getattr(functions, name)) + path
    with crowd(BURST) as ask:
        answers = [ask(url, params={"prompt": str(number)}) for number in range(BURST)]
        outputs = [answer.result().json()["output"] for answer in answers]
    assert outputs == [f"echo {number}" for number in range(BURST)]


def test_a_handler_may_wait_for_the_loop_of_its_own_kind() -> None:
    """What it calls is given to another container, since its own cannot begin it."""
    url = url_of(functions.Own().web)  # type: ignore[arg-type]
    with http() as client:
        assert client.get(url, params={"prompt": "first"}).json() == "own first"
    with crowd(4) as ask:
        answers = [ask(url, params={"prompt": str(number)}) for number in range(4)]
        assert [answer.result().json() for answer in answers] == [f"own {number}" for number in range(4)]
