"""What lines of a Dockerfile copy: which files of the build context are sent along with them."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence

from kedge.exception import NotFoundError
from kedge.sdk.local_files import Ignored, files_in
from kedge.sdk.patterns import FilePatternMatcher

_COPY = re.compile(r"\s*(?:ONBUILD\s+)?(COPY|ADD)\s+(.*)", re.IGNORECASE | re.DOTALL)
_REMOTE = re.compile(r"(https?://|git@|git://|ftp://)")
EVERYTHING = "**"


def sources(what: str, lines: Sequence[str]) -> list[str]:
    """What COPY and ADD name of the context, as patterns, in their order.

    >>> sources("x", ["COPY a.txt b /x/", "ADD https://example.org/a /a", "COPY --from=base /b /b", "RUN cp c d"])
    ['a.txt', 'b']
    """
    found: list[str] = []
    for command in _joined(lines):
        match = _COPY.match(command)
        if match is None:
            continue
        words = _words(match.group(2))
        options = [word for word in words if word.startswith("--")]
        named = [word for word in words if not word.startswith("--")][:-1]
        if any(option.startswith("--from=") for option in options):
            continue
        for source in named:
            if source.startswith("<<") or _REMOTE.match(source):
                continue
            cleaned = os.path.normpath(source.lstrip("/") or ".")
            # A variable may stand for anything.
            pattern = EVERYTHING if cleaned == "." or "$" in cleaned else cleaned
            if pattern not in found:
                found.append(pattern)
    return found


def _joined(lines: Sequence[str]) -> list[str]:
    """Commands, without comments and with their continuations."""
    commands, part = [], ""
    for line in lines:
        if line.lstrip().startswith("#"):
            continue
        if line.rstrip().endswith("\\"):
            part += line.rstrip()[:-1] + " "
        else:
            commands.append(part + line)
            part = ""
    return [*commands, part] if part else commands


def _words(text: str) -> list[str]:
    options, rest = [], text.strip()
    while rest.startswith("--"):
        option, _, rest = rest.partition(" ")
        options.append(option)
        rest = rest.lstrip()
    if rest.startswith("["):
        try:
            return options + [str(word) for word in json.loads(rest)]
        except ValueError:
            pass
    try:
        return options + shlex.split(rest)
    except ValueError:
        return options + rest.split()


def ignore_file(directory: str, dockerfile: str) -> FilePatternMatcher | None:
    """What the .dockerignore file of a context says; that of the Dockerfile itself goes before."""
    for path in (f"{dockerfile}.dockerignore" if dockerfile else "", os.path.join(directory, ".dockerignore")):
        if path and os.path.isfile(path):
            return FilePatternMatcher.from_file(path)
    return None


def chosen(
    what: str,
    directory: str,
    named: Sequence[str],
    ignored: Ignored,
    covers: Ignored,
) -> dict[str, str]:
    """The files that are copied, by their place in the context. NotFoundError where a source matches nothing."""
    files: dict[str, str] = {}
    for source in named:
        if source.split("/")[0] == "..":
            raise NotFoundError(f"{what}: {source} lies outside of the build context {directory}; set context_dir")
        top = os.path.join(directory, source)
        if os.path.islink(top) or any(character in source for character in "*?[\\"):
            inside = _matching(what, directory, source, ignored, covers)
        elif os.path.isdir(top):
            inside = _below(what, top, source, ignored, covers)
        else:
            inside = {source: top} if os.path.isfile(top) and not ignored(source) else {}
        if not inside and not os.path.isdir(top):
            raise NotFoundError(f"{what}: COPY {source}: no file of the build context {directory} matches it")
        files |= inside
    return files


def _matching(what: str, directory: str, pattern: str, ignored: Ignored, covers: Ignored) -> dict[str, str]:
    wanted = FilePatternMatcher(pattern)
    return files_in(what, directory, lambda path: not wanted(path) or ignored(path), covers)


def _below(what: str, top: str, source: str, ignored: Ignored, covers: Ignored) -> dict[str, str]:
    inside = files_in(what, top, lambda path: ignored(f"{source}/{path}"), lambda path: covers(f"{source}/{path}"))
    return {f"{source}/{relative}": path for relative, path in inside.items()}
