"""Snapshots of code: files under one digest, named, checked and written the same way by whoever takes or receives them.

Equal files have equal digests, and a directory of that name holds all of them or is not there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence

TOTAL_LIMIT = 64 * 1024 * 1024
"""Bytes of a snapshot: more is data, not code."""
FILE_LIMIT = 5000
"""Files of a snapshot: more than that is a working directory, not a package."""
PATH_LIMIT = 1024
"""Characters of a path inside of one."""

DIGEST = re.compile(r"[0-9a-f]{32}")
DRAFT = ".new-"
"""How the names of directories begin that are not complete."""

Files = Sequence[tuple[str, bytes]]
"""(relative path, content), in an order that never changes."""


def digest_of(files: Files) -> str:
    """The name of a snapshot. It depends on the order of its files."""
    hasher = hashlib.sha256()
    for relative, content in files:
        hasher.update(f"{len(relative)} {len(content)}\n{relative}\n".encode("utf-8", "surrogateescape"))
        hasher.update(content)
    return hasher.hexdigest()[:32]


def objection(paths: Iterable[str]) -> str:
    """Why files of these names are not written into a directory of ours; empty where they may be.

    >>> objection(["pkg/__init__.py", "pkg/data.txt"])
    ''
    >>> objection(["../../.bashrc"])
    "the path '../../.bashrc' leads out of the snapshot; write it relative to the directory of the package"
    """
    seen: set[str] = set()
    directories: set[str] = set()
    for path in paths:
        shown = repr(path[:60])
        parts = path.split("/")
        if len(path) > PATH_LIMIT:
            return f"the path {shown}… has {len(path)} characters; at most {PATH_LIMIT} are allowed"
        if "\0" in path or "" in parts[1:] or "." in parts or not path:
            return f"{shown} is no path of a file; write names joined by '/'"
        if parts[0] == "" or ".." in parts:
            return f"the path {shown} leads out of the snapshot; write it relative to the directory of the package"
        if path in seen:
            return f"the path {shown} comes twice"
        seen.add(path)
        directories.update("/".join(parts[:count]) for count in range(1, len(parts)))
    both = seen & directories
    return f"the path {min(both)[:60]!r} is a file and a directory at once" if both else ""


def write(files: Files, root: str, *, synced: bool = False) -> None:
    """All files at once: nobody sees half a snapshot, and of two who write the same one the first wins.

    With `synced` it is on disk, not only on its way there, before it has its name: what counts on it may be so, too.
    """
    parent = os.path.dirname(root)
    for directory in (os.path.dirname(parent), parent):
        os.makedirs(directory, mode=0o700, exist_ok=True)
    draft = tempfile.mkdtemp(prefix=DRAFT, dir=parent)
    try:
        for relative, content in files:
            path = os.path.join(draft, relative)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
        if synced:
            os.sync()  # thousands of small files, each with its directory: one by one would take much longer
        os.rename(draft, root)
    except OSError:
        if not os.path.isdir(root):
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
