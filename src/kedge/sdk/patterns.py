"""`FilePatternMatcher`: which files a directory's patterns mean, as a .dockerignore file does.

`*` and `?` stay within one name, `**` crosses directories, a pattern that matches a directory means all below it, `!`
takes files out again, and the last pattern that matches decides. Patterns are relative to the directory that is added.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from kedge.exception import InvalidError, NotFoundError

Ignore = str | Sequence[str] | Callable[[Path], bool]
"""What `ignore=` takes."""


class FilePatternMatcher:
    """Says of a path whether its patterns match it.

    Example:
        image.add_local_dir("data", "/root/data", ignore=kedge.FilePatternMatcher("**/*.csv", "!important/*.csv"))
        image.add_local_dir(".", "/root/app", ignore=~kedge.FilePatternMatcher("**/*.py"))
        image.add_local_dir(".", "/root/app", ignore=kedge.FilePatternMatcher.from_file(".gitignore"))
    """

    def __init__(self, *pattern: str) -> None:
        for text in pattern:
            if not isinstance(text, str):
                raise InvalidError(f"FilePatternMatcher takes patterns such as '**/*.py', not {text!r}")
        self._given: tuple[str, ...] = pattern
        self._file = ""
        self._inverted = False

    @classmethod
    def from_file(cls, file_path: str | PurePath) -> FilePatternMatcher:
        """The patterns of a file, one in a line; those that begin with # are comments. Read when it is first needed."""
        matcher = cls()
        matcher._file = os.path.abspath(os.fspath(file_path))
        return matcher

    def __invert__(self) -> FilePatternMatcher:
        """Matches what this one does not."""
        matcher = type(self)(*self._given)
        matcher._file, matcher._inverted = self._file, not self._inverted
        return matcher

    def __call__(self, file_path: str | PurePath) -> bool:
        """Whether a path (relative to the directory) is meant."""
        return self._matches(PurePath(file_path).as_posix()) is not self._inverted

    def __repr__(self) -> str:
        inner = f".from_file({self._file!r})" if self._file else f"({', '.join(map(repr, self._given))})"
        return f"{'~' if self._inverted else ''}FilePatternMatcher{inner}"

    def covers(self, directory: str) -> bool:
        """Whether everything below a directory is meant, so that nobody needs to look there."""
        return not self._inverted and not any(negated for _, negated in self._rules) and self._matches(directory)

    def described(self) -> dict[str, Any] | list[str]:
        """The same as JSON; see `described` below."""
        if not self._file and not self._inverted:
            return list(self._given)
        what: dict[str, Any] = {"file": self._file} if self._file else {"patterns": list(self._given)}
        return what | ({"inverted": True} if self._inverted else {})

    @property
    def patterns(self) -> tuple[str, ...]:
        """As they were given, or stand in the file."""
        if not self._file:
            return self._given
        try:
            lines = Path(self._file).read_text("utf-8-sig").splitlines()
        except OSError as error:
            raise NotFoundError(
                f"FilePatternMatcher.from_file: {self._file} cannot be read: {error.strerror}"
            ) from None
        return tuple(line for line in lines if line.strip() and not line.startswith("#"))

    @cached_property
    def _rules(self) -> list[tuple[re.Pattern[str], bool]]:
        return [rule for pattern in self.patterns if (rule := _rule(pattern)) is not None]

    def _matches(self, path: str) -> bool:
        path = path.removeprefix("./").strip("/")
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        matched = False
        for expression, negated in self._rules:
            # A pattern can change what is so far only in its own direction.
            if negated == matched and any(expression.fullmatch(one) for one in above):
                matched = not negated
        return matched


NON_PYTHON_FILES = ~FilePatternMatcher("**/*.py")
"""What `add_local_python_source` leaves out."""


def described(what: str, ignore: Any) -> Any:
    """`ignore` as JSON: a list of patterns; `{"patterns" | "file", "inverted"}`; `{"callable": name}`.

    Args:
        what: Who was given it, for the error.
        ignore: Patterns, a matcher, or a function of a path.
    """
    if isinstance(ignore, FilePatternMatcher):
        return ignore.described()
    if callable(ignore):
        code = getattr(ignore, "__code__", None)
        line = f":{code.co_firstlineno}" if code is not None else ""
        name = getattr(ignore, "__qualname__", type(ignore).__qualname__)
        return {"callable": f"{getattr(ignore, '__module__', '')}:{name}{line}"}
    given = [ignore] if isinstance(ignore, str) else list(ignore) if isinstance(ignore, Iterable) else [ignore]
    if not all(isinstance(pattern, str) for pattern in given):
        raise InvalidError(
            f"{what}: ignore is a list of patterns such as ['**/*.csv'], a function of a path, or a "
            f"kedge.FilePatternMatcher, not {ignore!r}"
        )
    for pattern in given:
        _rule(pattern)
    return given


def matcher_of(description: Any) -> FilePatternMatcher:
    """The matcher that `described` has described."""
    if not isinstance(description, dict):
        return FilePatternMatcher(*(description or ()))
    file = description.get("file")
    matcher = FilePatternMatcher.from_file(file) if file else FilePatternMatcher(*description["patterns"])
    return ~matcher if description.get("inverted") else matcher


def _rule(pattern: str) -> tuple[re.Pattern[str], bool] | None:
    """A pattern as an expression, and whether it takes files out again. None where it says nothing."""
    text = pattern.strip()
    negated = text.startswith("!")
    text = text[negated:].strip()
    if not text:
        if negated:
            raise InvalidError("the pattern '!' takes out nothing; write what it takes out, such as '!keep.csv'")
        return None
    text = os.path.normpath(text).lstrip("/")
    if text in ("", "."):
        text = "**"  # the directory itself
    try:
        return re.compile(_expression(text), re.DOTALL), negated
    except re.error as error:
        raise InvalidError(f"the pattern {pattern!r} cannot be understood: {error}") from None


def _expression(pattern: str) -> str:
    """
    >>> _expression("**/*.py"), _expression("data/**"), _expression("a?[!b-d]")
    ('(?:.*/)?[^/]*\\\\.py', 'data/.*', 'a[^/][^b-d]')
    """
    found, place = [], 0
    while place < len(pattern):
        character = pattern[place]
        if pattern.startswith("**/", place):
            found.append("(?:.*/)?")
            place += 3
        elif pattern.startswith("**", place):
            found.append(".*")
            place += 2
        elif character == "*":
            found.append("[^/]*")
            place += 1
        elif character == "?":
            found.append("[^/]")
            place += 1
        elif character == "[":
            end = pattern.find("]", place + 2)
            if end < 0:
                raise InvalidError(f"the pattern {pattern!r} has a '[' without its ']'; write '\\[' for the character")
            inside = pattern[place + 1 : end]
            inside = "^" + inside[1:] if inside[0] in "!^" else inside
            found.append(f"[{inside}]")
            place = end + 1
        elif character == "\\" and place + 1 < len(pattern):
            found.append(re.escape(pattern[place + 1]))
            place += 2
        else:
            found.append(re.escape(character))
            place += 1
    return "".join(found)
