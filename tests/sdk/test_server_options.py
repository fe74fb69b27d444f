"""What is remembered of the last start of the machine's server."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedge.sdk import server_options


@pytest.mark.parametrize(
    ("before", "given", "both"),
    [
        ([], [], []),
        (["--port", "1"], [], ["--port", "1"]),
        (["--port", "1", "--gpus", "A100=1"], ["--port", "2"], ["--port", "2", "--gpus", "A100=1"]),
        (["--insecure"], ["--insecure", "--cpus", "2"], ["--insecure", "--cpus", "2"]),
        (["--port=1"], ["--memory", "5"], ["--port", "1", "--memory", "5"]),
    ],
)
def test_an_option_that_is_given_takes_the_place_of_the_same_one(
    before: list[str], given: list[str], both: list[str]
) -> None:
    assert server_options.merged(before, given) == both


def test_what_cannot_be_read_is_not_remembered(tmp_path: Path) -> None:
    assert server_options.load(str(tmp_path)) == []
    file = Path(server_options.path(str(tmp_path)))
    file.parent.mkdir()
    for text, words in (
        ('["--port", "1"]', ["--port", "1"]),
        ("[1]", []),
        ('"--port"', []),
        ("[", []),
    ):
        file.write_text(text)
        assert server_options.load(str(tmp_path)) == words
