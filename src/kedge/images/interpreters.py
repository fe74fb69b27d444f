"""Finding a Python of the asked version on this machine: the server's own, uv's, pyenv's, the system's.

Candidates are found by looking at directories. Only the one that is taken is run, once, to hear what it says of itself.
A shim (a script that decides by the working directory which Python it is) is never taken.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from kedge.exception import InvalidError, NotFoundError

OLDEST = (3, 10)
"""Of what containers run. kedge itself, outside of them, needs a newer one."""
ASK_S = 20.0

_UV = re.compile(r"cpython-(\d+\.\d+(?:\.\d+)?)(\+freethreaded)?-.*")
_PYENV = re.compile(r"(\d+\.\d+\.\d+)(t?)")
_SYSTEM = re.compile(r"python(3\.\d+)(t?)")
_QUESTION = (
    "import sys, platform, json, sysconfig; print(json.dumps({'version': platform.python_version(), "
    "'prefix': sys.base_prefix, 'tag': sys.implementation.cache_tag, 'name': sys.implementation.name, "
    "'python': sys.executable}))"
)


class Candidate(Struct, frozen=True):
    """A Python that may be there."""

    version: str
    """As far as its name says: `3.12` or `3.12.4`, with `t` where it is free-threaded."""
    path: str
    source: str
    """kedge, uv, pyenv or system."""


class Interpreter(Struct, frozen=True):
    """A Python that has answered."""

    path: str
    version: str
    """`3.12.4`."""
    prefix: str
    """Its installation."""

    @property
    def minor(self) -> str:
        return minor_of(self.version)


def minor_of(version: str) -> str:
    """
    >>> minor_of("3.12.4")
    '3.12'
    """
    return ".".join(version.split(".")[:2])


def own_version() -> str:
    """The minor version of the server's own interpreter: the default of images."""
    return minor_of(platform.python_version())


def candidates(environ: Mapping[str, str], home: Path, system: Iterable[str] | None = None) -> list[Candidate]:
    """All that look like a CPython, each of them once, the preferred ones first; within a source the latest version
    first."""
    own = Candidate(platform.python_version(), os.path.realpath(_base_executable()), "kedge")
    data = environ.get("XDG_DATA_HOME") or str(home / ".local" / "share")
    of_uv = Path(environ.get("UV_PYTHON_INSTALL_DIR") or Path(data) / "uv" / "python")
    of_pyenv = Path(environ.get("PYENV_ROOT") or home / ".pyenv") / "versions"
    found = [own] if sys.implementation.name == "cpython" else []
    found += _installations(of_uv, _UV, "uv") + _installations(of_pyenv, _PYENV, "pyenv")
    for directory in ("/usr/local/bin", "/usr/bin", "/opt/homebrew/bin") if system is None else system:
        for entry in _names(Path(directory)):
            match = _SYSTEM.fullmatch(entry)
            if match and not _is_shim(Path(directory) / entry):
                found.append(Candidate(match[1] + match[2], f"{directory}/{entry}", "system"))
    once: dict[tuple[str, bool], Candidate] = {}
    for candidate in found:
        once.setdefault((os.path.realpath(candidate.path), candidate.version.endswith("t")), candidate)
    return list(once.values())


def choose(version: str, found: Iterable[Candidate]) -> list[Candidate]:
    """Those that can be the asked version, in the order in which they are tried.

    >>> choose("3.12", [Candidate("3.11.7", "/a", "uv"), Candidate("3.12.1", "/b", "pyenv")])
    [Candidate(version='3.12.1', path='/b', source='pyenv')]
    """
    free_threaded = version.endswith("t")
    wanted = version.rstrip("t").split(".")
    chosen = []
    for candidate in found:
        has = candidate.version.rstrip("t").split(".")
        if candidate.version.endswith("t") != free_threaded:
            continue
        if has[: len(wanted)] == wanted or (len(has) < len(wanted) and has == wanted[: len(has)]):
            chosen.append(candidate)
    return chosen


def check(version: str) -> None:
    """InvalidError for a version that containers cannot have."""
    parts = tuple(int(part) for part in version.rstrip("t").split(".")[:2])
    if parts < OLDEST:
        raise InvalidError(
            f"python_version={version!r} is too old: containers need Python {_text(OLDEST)} or newer. Write "
            f'python_version="{_text(OLDEST)}"'
        )


def find(version: str, environ: Mapping[str, str] | None = None) -> Interpreter:
    """A Python of this version. NotFoundError says what there is, and how to get one."""
    check(version)
    environ = os.environ if environ is None else environ
    there = candidates(environ, Path(environ.get("HOME") or Path.home()))
    wanted = version.rstrip("t")
    for candidate in choose(version, there):
        answer = ask(candidate.path)
        if answer is not None and (answer.version == wanted or answer.version.startswith(f"{wanted}.")):
            return answer
    raise NotFoundError(missing(version, there))


def missing(version: str, there: Iterable[Candidate]) -> str:
    """Why there is no such Python, what there is instead, and what to do."""
    listed = dict.fromkeys(f"{candidate.version} ({candidate.source}: {candidate.path})" for candidate in there)
    what = "; found are " + ", ".join(listed) if listed else "; none was found at all"
    return (
        f"the image wants Python {version}, which this machine does not have{what}. Install it with "
        f"`uv python install {version}` or `pyenv install {version}`, or ask for a version that is there with "
        "Image.debian_slim(python_version=…)"
    )


def ask(path: str) -> Interpreter | None:
    """What the Python at this path says of itself; None where it does not run."""
    try:
        answer = subprocess.run(
            [path, "-I", "-S", "-c", _QUESTION],
            capture_output=True,
            timeout=ASK_S,
            check=True,
            stdin=subprocess.DEVNULL,
            env={"PATH": os.defpath},
        )
        facts = msgspec.json.decode(answer.stdout)
        if facts["name"] != "cpython":
            return None
        return Interpreter(path, facts["version"], facts["prefix"])
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError, KeyError):
        return None


def _installations(directory: Path, pattern: re.Pattern[str], source: str) -> list[Candidate]:
    found = []
    for name in _names(directory):
        match = pattern.fullmatch(name)
        path = directory / name / "bin" / "python3"
        if match and path.exists() and not (directory / name).is_symlink():
            found.append(Candidate(match[1] + ("t" if match[2] else ""), os.path.realpath(path), source))
    return sorted(found, key=lambda candidate: [-int(part) for part in candidate.version.rstrip("t").split(".")])


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _is_shim(path: Path) -> bool:
    """A script instead of a program."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return True


def _base_executable() -> str:
    """The interpreter below a virtual environment."""
    return getattr(sys, "_base_executable", "") or sys.executable


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
