"""Patterns mean what they mean in a .dockerignore file."""

from __future__ import annotations

from pathlib import Path

import pytest

import kedge
from kedge import FilePatternMatcher
from kedge.exception import InvalidError, NotFoundError
from kedge.sdk.patterns import NON_PYTHON_FILES, described, matcher_of


@pytest.mark.parametrize(
    ("patterns", "matched", "others"),
    [
        (["*.py"], ["a.py"], ["x/a.py", "a.pyc"]),
        (["**/*.py"], ["a.py", "x/a.py", "x/y/a.py"], ["a.txt"]),
        (["data"], ["data", "data/a", "data/b/c"], ["x/data", "data2"]),
        (["/data/"], ["data/a"], ["x/data"]),
        (["data/**"], ["data/a", "data/b/c"], ["data"]),
        (["**/cache"], ["cache", "x/cache", "x/cache/a"], ["caches"]),
        (["a?c", "[xy]1", "[!ab]z"], ["abc", "x1", "cz"], ["a/c", "z1", "az"]),
        (["*", "!keep.txt"], ["a", "b/c"], ["keep.txt"]),
        (["data", "!data/keep"], ["data/a"], ["data/keep", "data/keep/b"]),
        (["!a", "a"], ["a"], ["b"]),
        (["a", "!a", "a"], ["a"], []),
        (["."], ["a", "x/y"], []),
        (["./x//y/../z"], ["x/z", "x/z/a"], ["x/y"]),
        ([r"a\*b"], ["a*b"], ["axb"]),
        (["a.b"], ["a.b"], ["axb"]),
        (["**/x/**/y"], ["x/y", "a/x/b/c/y"], ["xy"]),
        (["", "  "], [], ["a"]),
        ([], [], ["a"]),
    ],
)
def test_what_a_pattern_means(patterns: list[str], matched: list[str], others: list[str]) -> None:
    matcher = FilePatternMatcher(*patterns)
    assert [path for path in (*matched, *others) if matcher(path)] == matched
    assert [path for path in (*matched, *others) if (~matcher)(path)] == others
    again = matcher_of(described("x", ~matcher))
    assert [path for path in (*matched, *others) if again(path)] == others


def test_paths_may_be_written_as_people_do() -> None:
    matcher = FilePatternMatcher("x/*.py")
    assert matcher(Path("x/a.py"))
    assert matcher("./x/a.py")
    assert (~~matcher)("x/a.py")
    assert NON_PYTHON_FILES("a.txt")
    assert not NON_PYTHON_FILES("x/a.py")


def test_patterns_of_a_file_are_read_when_they_are_needed(tmp_path: Path) -> None:
    file = tmp_path / "ignored"
    matcher = FilePatternMatcher.from_file(file)
    assert repr(~matcher) == f"~FilePatternMatcher.from_file({str(file)!r})"
    with pytest.raises(NotFoundError, match=r"from_file: .*ignored cannot be read: No such file"):
        matcher("a")
    file.write_text("# a comment\n\n*.log\n!keep.log\n")
    assert [path for path in ("a.log", "keep.log", "# a comment") if matcher(path)] == ["a.log"]
    assert matcher_of(described("x", ~matcher))("keep.log")


def test_directories_that_need_no_look() -> None:
    assert FilePatternMatcher("**/node_modules").covers("x/node_modules")
    assert not FilePatternMatcher("data", "!data/keep").covers("data"), "something in it may be wanted"
    assert not (~FilePatternMatcher("data")).covers("other"), "data may be below"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: FilePatternMatcher(3),  # type: ignore[arg-type]
            r"FilePatternMatcher takes patterns such as '\*\*/\*\.py', not 3",
        ),
        (lambda: FilePatternMatcher("!")("a"), r"the pattern '!' takes out nothing"),
        (lambda: FilePatternMatcher("[a")("a"), r"'\[a' has a '\[' without its '\]'"),
        (lambda: FilePatternMatcher("[z-a]")("a"), r"'\[z-a\]' cannot be understood"),
    ],
)
def test_wrong_patterns(make: object, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        make()  # type: ignore[operator]


def test_it_is_found_where_programs_look_for_it() -> None:
    from kedge.sdk import alias

    assert alias.SUBMODULES["file_pattern_matcher"] == FilePatternMatcher.__module__
    assert kedge.FilePatternMatcher is FilePatternMatcher
