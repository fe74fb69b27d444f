"""What the last lines of a failed step mean, in a sentence that says what to do. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"No space left on device|os error 28|Disk quota exceeded",
        "The disk is full: `kedge image prune` frees what no image uses, or set KEDGE_HOME to a directory on another "
        "disk.",
    ),
    (
        r"Failed to read `--find-links` directory",
        "find_links= is a URL, or the absolute path of a directory on the server's machine, which a build reads there. "
        'Wheels of your own also come by add_local_dir("wheels", "/wheels", copy=True) and run_commands("python -m pip '
        'install /wheels/*.whl").',
    ),
    (
        r"(container registry|initializing source|docker://).*(no such host|server misbehaving|i/o timeout|"
        r"connection refused|network is unreachable)",
        "The registry cannot be reached. An image that another machine has comes here by `podman save` there and "
        "`podman load` here; those of Debian and Python (python:3.12-slim) need no registry.",
    ),
    (
        r"dns error|failed to lookup address|Temporary failure in name resolution|Could not resolve host|"
        r"Name or service not known|Network is unreachable|Connection refused|error sending request|"
        r"network was disabled|tcp connect error|Connection timed out|client error \(Connect\)|operation timed out",
        "The package index cannot be reached. Without a network, packages must have been fetched before, or be in a "
        "directory that find_links= (or PIP_FIND_LINKS, UV_FIND_LINKS) names; an index of your own is set with "
        "index_url= or PIP_INDEX_URL.",
    ),
    (
        r"401 Unauthorized|403 Forbidden|Authentication failed|could not read Username|terminal prompts disabled|"
        r"Missing credentials|Permission denied \(publickey\)|Repository not found",
        "Access was refused: check the token in the secret of this step, and what it may read.",
    ),
    (
        r"(has|with) no wheels? with a matching|only has wheels (for|with) the following|not a supported wheel|"
        r"does not satisfy Python|requires-python|Requires-Python|depends on Python",
        "There is no version of a package for the Python of this image: ask for another one with "
        "Image.debian_slim(python_version=…), or for another version of the package.",
    ),
    (
        r"was not found in the package registry|was not found in the provided package locations|"
        r"No matching distribution",
        "A package of this name is not known: check its spelling, or name the index that has it with extra_index_url=.",
    ),
    (
        r"your requirements are unsatisfiable|versions? conflict|are incompatible|ResolutionImpossible|"
        r"cannot be used(?! (multiple|with))",
        "What was asked for contradicts itself, or names a version that does not exist: loosen one of the pins that "
        "are named above, or install the two in images of their own.",
    ),
    (
        r"command '?(gcc|cc|g\+\+|clang|x86_64-linux-gnu-gcc)'? failed|(gcc|cc|g\+\+|make|cmake|rustc|cargo|nvcc): "
        r"(command )?not found|fatal error: .*\.h|Python\.h|error: can't find Rust compiler|"
        r"unable to execute '?(gcc|cc)|pg_config",
        "A package is compiled, and something for that is missing: add it before this step, such as "
        '.apt_install("build-essential"), or take a version that comes as a wheel.',
    ),
    (r"Permission denied|EACCES", "Something may not be read or written: check whose KEDGE_HOME is."),
    (r"MemoryError|Killed$|Cannot allocate memory|killed by SIGKILL", "It may have run out of memory."),
)


def is_out_of_reach(reason: str, lines: Sequence[str]) -> bool:
    """Whether it failed because the package index could not be reached."""
    return advise(reason, lines).startswith("The package index cannot be reached")


def advise(reason: str, lines: Sequence[str]) -> str:
    """A sentence, or nothing.

    >>> advise("exit code 1", ["error: No space left on device (os error 28)"])[:18]
    'The disk is full: '
    """
    text = re.sub(r"\s+", " ", "\n".join([*lines, reason]))
    for pattern, sentence in _KNOWN:
        if re.search(pattern, text):
            return sentence
    return ""


def failure(number: int, steps: int, title: str, command: str, reason: str, lines: Sequence[str], log: str) -> str:
    """The text of an ImageBuildError."""
    parts = [f"image step {number} of {steps} failed ({title}): {reason}"]
    if command:
        parts.append(f"  command: {command}")
    if lines:
        parts.append("  its last lines:" if len(lines) > 1 else "  its last line:")
        parts += [f"    {line}" for line in lines]
    if advice := advise(reason, lines):
        parts.append(advice)
    if log:
        parts.append(f"All of its output is in {log}")
    return "\n".join(parts)
