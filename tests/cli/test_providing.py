"""Commands that put something at a server start the machine's where none runs; those that only ask do not."""

from __future__ import annotations

import pytest

from kedge.sdk import runner, server_process
from kedge.sdk.server_process import ServerAddress
from tests.cli.live import Live

STARTED = "kedge: started the server of this machine; it stays, and `kedge server stop` ends it"
CREATE = [
    ("secret", "create", "openai", "KEY=value"),
    ("volume", "create", "models"),
    ("dict", "create", "results"),
    ("queue", "create", "jobs"),
]


@pytest.fixture
def starts(live: Live, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """No server is found. One that is started is the live one; whether it is to be private is noted."""
    starts: list[bool] = []

    class Started:
        def __init__(self, private: bool) -> None:
            starts.append(private)
            self.address = ServerAddress(live.shell.path)
            self.facts: dict[str, list[str]] = {"notes": ["its web address is taken"]}

    monkeypatch.setattr(server_process, "find", lambda directory=None: None)
    monkeypatch.setattr(runner, "ServerProcess", Started)
    return starts


@pytest.mark.parametrize("words", CREATE, ids=lambda words: words[0])
def test_what_is_created_starts_the_server_of_the_machine_and_says_so(
    live: Live, starts: list[bool], words: tuple[str, ...]
) -> None:
    made = live.run(*words)
    assert starts == [False]
    assert made.stderr.splitlines()[:2] == [STARTED, "kedge: its web address is taken"]
    if words[0] != "volume":  # the live one keeps none
        assert (made.exit_code, words[2] in made.stdout) == (0, True)


@pytest.mark.parametrize("words", CREATE, ids=lambda words: words[0])
def test_where_one_runs_nothing_is_said_of_it(live: Live, words: tuple[str, ...]) -> None:
    assert "started" not in live.run(*words).output


@pytest.mark.parametrize("kind", ["secret", "volume", "dict", "queue"])
def test_a_name_that_cannot_be_starts_nothing(live: Live, starts: list[bool], kind: str) -> None:
    refused = live.run(kind, "create", "no/name", *(("KEY=value",) if kind == "secret" else ()))
    assert refused.exit_code == 1
    assert starts == []


@pytest.mark.parametrize("kind", ["secret", "volume", "dict", "queue"])
@pytest.mark.parametrize("words", [("list",), ("delete", "one", "-y")], ids=lambda words: words[0])
def test_what_only_asks_starts_nothing(live: Live, starts: list[bool], kind: str, words: tuple[str, ...]) -> None:
    refused = live.run(kind, *words)
    assert (refused.exit_code, refused.stderr) == (
        1,
        "Error: no server is running; `kedge server start` starts one.\n",
    )
    assert starts == []
