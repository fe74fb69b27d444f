"""Which further files the files of a Python project name: requirements of requirements, members of a workspace."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kedge.exception import InvalidError, NotFoundError

_OPTION = re.compile(r"(?:-r|--requirement|-c|--constraint)(?:\s+|\s*=\s*|(?=[^\s=-]))(.+)")
_EDITABLE = re.compile(r"^(?:-e|--editable)(?:\s+|\s*=\s*)")
_LOCAL = re.compile(r"(?:(?P<name>[\w.\-]+(?:\[[^\]]*\])?)\s*@\s*)?(?:file:(?://)?)?(?P<path>\.{0,2}/[^\s;#]+)")
_COMMENT = re.compile(r"(^|\s)#.*$")
NESTED = 100
"""Requirements files that one may name, and those again."""


def requirements(what: str, paths: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The files, with all that they name, below the deepest directory that holds them all; and where each of `paths` is
    there. NotFoundError or InvalidError where one cannot be taken along."""
    found: dict[str, None] = {}
    waiting = [(path, "") for path in reversed(paths)]
    while waiting:
        path, named_by = waiting.pop()
        if path in found:
            continue
        if not os.path.isfile(path):
            raise NotFoundError(f"{what}: {named_by} names {path}, which is not there")
        if len(found) >= NESTED:
            raise InvalidError(f"{what}: more than {NESTED} files of requirements name each other")
        found[path] = None
        if not path.endswith(".toml"):
            waiting += [(other, path) for other in reversed(_named_by(what, path))]
    top = os.path.commonpath([os.path.dirname(path) for path in found])
    relative = {path: os.path.relpath(path, top) for path in found}
    return {relative[path]: path for path in found}, [relative[path] for path in paths]


def _named_by(what: str, path: str) -> list[str]:
    """The absolute paths that a requirements file names."""
    directory, named = os.path.dirname(path), []
    text = Path(path).read_text("utf-8-sig", "replace").replace("\\\n", " ")
    for number, raw in enumerate(text.splitlines(), 1):
        line = _COMMENT.sub("", raw).strip()
        where = f"{what}: line {number} of {path}"
        option = _OPTION.fullmatch(line)
        given = option.group(1).strip().strip("'\"") if option is not None else ""
        local = _LOCAL.match(_EDITABLE.sub("", line))
        if local is not None:
            raise InvalidError(
                f"{where} installs {local.group('path')}, which the build does not have; bring it with "
                "add_local_python_source(), or with add_local_dir(…, copy=True) and "
                "run_commands('python -m pip install …')"
            )
        if not given or "://" in given:
            continue  # a package, or what pip fetches
        if os.path.isabs(given):
            raise InvalidError(
                f"{where} names {given} of this machine; write it relative to the file, so that it can be taken along"
            )
        named.append(os.path.normpath(os.path.join(directory, given)))
    return named


def uv_project(what: str, directory: str, frozen: bool) -> dict[str, str]:
    """What `uv sync` reads of a project without its own source."""
    project, lock = os.path.join(directory, "pyproject.toml"), os.path.join(directory, "uv.lock")
    if not os.path.isfile(project):
        raise NotFoundError(f"{what}: there is no pyproject.toml in {directory}")
    if frozen and not os.path.isfile(lock):
        raise NotFoundError(
            f"{what}: there is no uv.lock in {directory}; make one with `uv lock`, or write frozen=False to resolve it "
            "when the image is built"
        )
    files = {"pyproject.toml": project}
    for name in ("uv.lock", "uv.toml", ".python-version"):
        if os.path.isfile(os.path.join(directory, name)):
            files[name] = os.path.join(directory, name)
    for member in _members(what, directory, project):
        files[os.path.relpath(member, directory)] = member
    return files


def _members(what: str, directory: str, project: str) -> list[str]:
    """The pyproject.toml of each member of a workspace."""
    import tomllib  # a container of Python 3.10 imports this module, and has no tomllib

    try:
        with open(project, "rb") as file:
            declared: dict[str, Any] = tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise InvalidError(f"{what}: {project} is no TOML: {error}") from None
    patterns = declared.get("tool", {}).get("uv", {}).get("workspace", {}).get("members", [])
    found = []
    for pattern in patterns if isinstance(patterns, list) else []:
        for member in sorted(glob.glob(os.path.join(directory, str(pattern)))):
            path = os.path.join(member, "pyproject.toml")
            if os.path.isfile(path):
                if not os.path.realpath(path).startswith(os.path.realpath(directory) + os.sep):
                    raise InvalidError(f"{what}: the workspace member {pattern!r} leads out of {directory}")
                found.append(path)
    return found
