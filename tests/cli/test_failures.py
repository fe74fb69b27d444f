"""Tracebacks as people see them: the user's frames, and which of them ran in a container."""

from __future__ import annotations

import pytest

from kedge.cli.failures import remote_cause, styled, traceback_text
from kedge.exception import ConnectionError, InvalidError, RemoteError
from kedge.sdk import tracebacks


def remote_failure() -> BaseException:
    error = ValueError("bad 5")
    error.add_note("input 3")
    frames = [("/app/script.py", 15, "fail", "return inner(x)"), ("/app/script.py", 14, "inner", "raise ValueError(y)")]
    tracebacks.attach(error, frames, "")
    try:
        raise error
    except ValueError as caught:
        return caught


def test_remote_frames_follow_local_ones_and_are_marked() -> None:
    lines = traceback_text(remote_failure()).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith('test_failures.py", line 18, in remote_failure')
    assert lines[3:] == [
        '  File "remote:/app/script.py", line 15, in fail',
        "    return inner(x)",
        '  File "remote:/app/script.py", line 14, in inner',
        "    raise ValueError(y)",
        "ValueError: bad 5",
        "input 3",
    ]


def test_on_a_terminal_remote_files_look_different() -> None:
    text = styled('  File "remote:/a.py", line 1, in f\n  File "/b.py", line 2, in g\nValueError: bad\n')
    assert text.plain == '  File "remote:/a.py", line 1, in f\n  File "/b.py", line 2, in g\nValueError: bad\n'
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert styles["remote:/a.py"] != styles["/b.py"]
    assert styles["ValueError"] == "bold red"


@pytest.mark.parametrize("text", ["", "\n", "no traceback at all", '  File "x', "é\x00\udcff: \n  + Exception Group"])
def test_styling_changes_no_text(text: str) -> None:
    assert styled(text).plain == text


def test_what_kedge_itself_says_needs_no_traceback() -> None:
    error = ConnectionError("no server answers")
    assert traceback_text(error) == "Error: no server answers\n"


def test_everything_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_TRACEBACK", "1")
    assert traceback_text(ConnectionError("gone")) == "kedge.exception.ConnectionError: gone\n"


def test_frames_of_installed_packages_are_one_line() -> None:
    frames = [("/app/script.py", 15, "train", "model(x)")]
    frames += [(f"/usr/lib/python3.11/site-packages/torch/{name}.py", 1, name, "y") for name in "abc"]
    error = ValueError("bad")
    tracebacks.attach(error, frames, "")
    assert traceback_text(error).splitlines()[1:] == [
        '  File "remote:/app/script.py", line 15, in train',
        "    model(x)",
        "  … 2 frames in site-packages/torch",
        '  File "remote:/usr/lib/python3.11/site-packages/torch/c.py", line 1, in c',
        "    y",
        "ValueError: bad",
    ]


@pytest.mark.parametrize(
    ("cause", "shown"),
    [
        (InvalidError("it returns int, which is no ASGI app"), ""),
        (InvalidError("something else"), "Error: something else\n"),
        (ValueError("it returns int, which is no ASGI app"), "ValueError: it returns int, which is no ASGI app\n"),
    ],
)
def test_what_the_error_says_anyway_is_not_said_twice(cause: Exception, shown: str) -> None:
    error = RemoteError("page cannot start: it returns int, which is no ASGI app")
    error.__cause__ = cause
    assert remote_cause(error) == shown


def test_the_cause_in_user_code_is_always_shown() -> None:
    error = RemoteError("page cannot start: bad 5")
    error.__cause__ = remote_failure()
    assert "in fail" in remote_cause(error)


def test_of_an_exception_only_its_name_is_stressed() -> None:
    text = (
        "Traceback (most recent call last):\n"
        '  File "/a.py", line 1, in f\n'
        "ImageBuildError: step 2 failed\n"
        "All of its output is in /build.log\n"
        "\n"
        "The above exception was the direct cause of the following exception:\n"
        "\n"
        "Traceback (most recent call last):\n"
        '  File "/b.py", line 2, in g\n'
        "ValueError: bad\n"
    )
    found = styled(text)
    assert [found.plain[span.start : span.end] for span in found.spans if span.style == "bold red"] == [
        "ImageBuildError",
        "ValueError",
    ]
