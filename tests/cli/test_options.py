"""Signatures become options: what each annotation takes, and what is refused with what advice."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import click
import pytest
from click.testing import CliRunner

from kedge.cli.values import options_of, takes_raw_arguments


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


def given(function: Callable[..., Any], *words: str) -> dict[str, Any]:
    """What the function would be called with."""
    found: dict[str, Any] = {}
    command = click.Command("main", params=list(options_of("main", function)), callback=lambda **kw: found.update(kw))
    command.main(list(words), standalone_mode=False)
    return found


def everything(
    text: str,
    count: int = 3,
    ratio: float = 0.5,
    loud: bool = False,
    when: datetime.datetime | None = None,
    day: Optional[datetime.date] = None,  # noqa: UP045
    mode: Literal["fast", "slow"] = "fast",
    level: Literal[1, 2] = 1,
    colour: Colour = Colour.RED,
    path: Path = Path("here"),
    noted: Annotated[int, "note"] = 1,
) -> None: ...


def test_defaults_are_those_of_the_signature() -> None:
    assert given(everything, "--text", "a") == {
        "text": "a",
        "count": 3,
        "ratio": 0.5,
        "loud": False,
        "when": None,
        "day": None,
        "mode": "fast",
        "level": 1,
        "colour": Colour.RED,
        "path": Path("here"),
        "noted": 1,
    }


def test_values_get_the_annotated_type() -> None:
    words = "--text 7 --count 12 --ratio 2 --loud --when 2025-03-28T14:30:00 --day 2025-03-28 --mode slow --level 2"
    got = given(everything, *words.split(), "--colour", "BLUE", "--path", "/tmp", "--noted", "5")
    assert got == {
        "text": "7",
        "count": 12,
        "ratio": 2.0,
        "loud": True,
        "when": datetime.datetime(2025, 3, 28, 14, 30),
        "day": datetime.date(2025, 3, 28),
        "mode": "slow",
        "level": 2,
        "colour": Colour.BLUE,
        "path": Path("/tmp"),
        "noted": 5,
    }


def test_a_flag_can_be_denied() -> None:
    def main(use_cache: bool = True) -> None: ...

    assert given(main) == {"use_cache": True}
    assert given(main, "--no-use-cache") == {"use_cache": False}


def test_lists_are_repeated_options() -> None:
    def main(name: list[str], size: tuple[int, ...] = (1, 2), other: list[int] | None = None) -> None: ...

    assert given(main, "--name", "a", "--name", "b") == {"name": ["a", "b"], "size": (1, 2), "other": None}
    assert given(main, "--name", "a", "--size", "5")["size"] == (5,)


def test_without_an_annotation_the_default_tells() -> None:
    def main(text, count=3, on=False) -> None: ...  # type: ignore[no-untyped-def]

    assert given(main, "--text", "1", "--count", "4", "--on") == {"text": "1", "count": 4, "on": True}


def test_an_annotation_for_type_checkers_only_is_refused_where_it_matters() -> None:
    def main(x: "Nowhere", y: int = 1) -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037

    with pytest.raises(click.UsageError, match=r"main: the parameter x is 'Nowhere', which a command line cannot give"):
        options_of("main", main)


def test_what_no_text_can_stand_for_is_refused() -> None:
    def main(table: dict[str, int]) -> None: ...

    with pytest.raises(click.UsageError, match=r"the parameter table is dict\[str, int\], which a command line cannot"):
        options_of("main", main)


def test_keywords_without_names_are_refused() -> None:
    def main(**settings: int) -> None: ...

    with pytest.raises(click.UsageError, match=r"main has \*\*settings, which options cannot give"):
        options_of("main", main)


def test_only_star_args_reads_the_command_line_itself() -> None:
    assert takes_raw_arguments(lambda *args: None)
    assert not takes_raw_arguments(lambda x, *args: None)


def test_bad_values_say_what_would_be_right() -> None:
    command = click.Command("main", params=list(options_of("main", everything)))
    for words, text in [
        (["--when", "noon"], "'noon' is no datetime; write for example 2025-03-28T14:30:00."),
        (["--mode", "fats"], "'fats' is not one of fast, slow. Did you mean 'fast'?"),
        (["--count", "many"], "'many' is not a valid integer"),
        ([], "Missing option '--text'"),
    ]:
        result = CliRunner().invoke(command, words)
        assert result.exit_code == 2
        assert text in result.output


def test_help_shows_types_and_defaults() -> None:
    command = click.Command("main", params=list(options_of("main", everything)))
    output = CliRunner().invoke(command, ["--help"]).output
    for text in ["--count INTEGER", "[default: 3]", "--loud / --no-loud", "[fast|slow]", "[RED|BLUE]", "[required]"]:
        assert text in output
