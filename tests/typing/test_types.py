"""Types are promised by two files: one that must pass, one whose every marked line must be an error."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECKERS = {
    "mypy": ["-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context"],
    "pyright": ["-m", "pyright", "--pythonpath", sys.executable],
}

pytestmark = pytest.mark.slow


def error_lines(checker: str, name: str) -> tuple[set[int], str]:
    """The lines of a file with errors, and all that the checker printed."""
    command = [sys.executable, *CHECKERS[checker], str(HERE / name)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent.parent, timeout=110)
    found = re.findall(rf"{re.escape(name)}:(\d+)(?::\d+)?(?: -|:) error", result.stdout)
    return {int(line) for line in found}, result.stdout + result.stderr


@pytest.mark.parametrize("checker", CHECKERS)
def test_types_of_the_user_reach_every_form_of_a_call(checker: str) -> None:
    lines, text = error_lines(checker, "accepted.py")
    assert not lines, text
    assert "0 errors" in text or not text.strip(), text


@pytest.mark.parametrize("checker", CHECKERS)
def test_wrong_calls_are_type_errors(checker: str) -> None:
    source = (HERE / "refused.py").read_text().splitlines()
    expected = {number for number, line in enumerate(source, 1) if line.endswith("# E")}
    lines, text = error_lines(checker, "refused.py")
    assert len(expected) > 20
    assert lines == expected, text
