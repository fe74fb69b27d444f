"""What exceptions say of themselves."""

from __future__ import annotations

from kedge.exception import InputCancellation, InputTimeout


def test_an_interruption_says_why_it_was_raised() -> None:
    """It is raised as a bare class; user code writes it to its log."""
    assert str(InputCancellation()) == "the input was cancelled"
    assert str(InputTimeout()) == "the input ran longer than its timeout"
    assert str(InputTimeout("own words")) == "own words"
