"""Which packages the index was asked for a moment ago: what uv has in its cache about them is as good as the index.

An index may say by itself how long its answers hold; ten minutes are what pypi.org says. Many mirrors say nothing, and
uv then asks about every package again, which takes longer than everything else that a small image takes.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

LATELY_S = 600.0
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(\[[^\]]*\])?\s*([<>=!~,.*\w\s+-]*)")


def named(words: Sequence[str]) -> list[str] | None:
    """The packages that a command of uv names after `--`; None where it names anything else, such as files.

    >>> named(["--prerelease", "allow", "--", "NumPy>=2", "uvicorn[standard]"])
    ['numpy', 'uvicorn']
    >>> named(["--requirement", "r.txt"]), named(["--", "git+https://example.org/x"])
    (None, None)
    """
    if "--" not in words or "--requirement" in words:
        return None
    found = []
    for word in words[words.index("--") + 1 :]:
        match = _REQUIREMENT.fullmatch(word)
        if match is None:
            return None
        found.append(canonical(match[1]))
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class Asked:
    """Marks of one way to ask: the same indexes, the same Python.

    Args:
        directory: Where they are kept.
        way: Everything that makes answers differ.
    """

    def __init__(self, directory: Path, way: Sequence[str], clock: float | None = None) -> None:
        self._directory = directory / hashlib.sha256("\0".join(way).encode()).hexdigest()[:16]
        self._now = time.time() if clock is None else clock

    def lately(self, names: Iterable[str]) -> bool:
        """Whether the index was asked about all of these."""
        try:
            return all(0 <= self._now - os.stat(self._directory / name).st_mtime < LATELY_S for name in names)
        except OSError:
            return False

    def note(self, names: Iterable[str]) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            path = self._directory / name
            path.touch()
            os.utime(path, (self._now, self._now))


def way(words: Sequence[str], variables: Mapping[str, str], python: str) -> list[str]:
    """Indexes and Python of a command."""
    before = words[: words.index("--")] if "--" in words else words
    told = [f"{name}={value}" for name, value in sorted(variables.items()) if name.startswith("UV_")]
    return [python, *before, "", *told]
