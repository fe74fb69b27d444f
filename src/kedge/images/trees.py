"""Directory trees that share their files by hard links."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from kedge.wire import removal

Leave = Callable[[str], bool]
"""Whether what lies at this path, relative to the tree, is left out."""


def link_tree(source: Path, target: Path, leave: Leave | None = None) -> None:
    """`target` has all that `source` has, the files by hard links, or as copies where those are not possible. What is
    there already and means the same file is replaced."""
    stack = [""]
    while stack:
        relative = stack.pop()
        _make_directory(target / relative)
        with os.scandir(source / relative) as entries:
            for entry in entries:
                path = f"{relative}/{entry.name}" if relative else entry.name
                if leave is not None and leave(path):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    stack.append(path)
                else:
                    link_file(entry.path, target / path)


def link_file(source: str | Path, target: Path) -> None:
    """The same file, or a copy of it; in the place of what is there."""
    discard(target)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    try:
        os.link(source, target)
    except OSError:  # another file system, or too many links
        shutil.copy2(source, target)


def discard(path: Path) -> None:
    """What may be there is not there any more."""
    if os.path.lexists(path):
        removal.remove(str(path))
        if path.is_dir():
            raise PermissionError(errno.EACCES, "what is in this directory cannot be removed", str(path))


def _make_directory(path: Path) -> None:
    """A directory, in the place of what is none."""
    if path.is_symlink() or not path.is_dir():
        discard(path)
    path.mkdir(parents=True, exist_ok=True)


def apply_upper(upper: Path, target: Path) -> None:
    """What an overlay's upper directory changes, done to a tree: its files in the place of those that were there, its
    whiteouts as deletions, its opaque directories without what was in them."""
    stack = [""]
    while stack:
        relative = stack.pop()
        source, directory = upper / relative, target / relative
        if _is_opaque(source) and relative:
            discard(directory)
        _make_directory(directory)
        with os.scandir(source) as entries:
            for entry in entries:
                path = f"{relative}/{entry.name}" if relative else entry.name
                if is_whiteout(entry.stat(follow_symlinks=False)):
                    discard(target / path)
                elif entry.is_dir(follow_symlinks=False):
                    stack.append(path)
                else:
                    link_file(entry.path, target / path)


def is_whiteout(status: os.stat_result) -> bool:
    """How an overlay says that a file is gone."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(path: Path) -> bool:
    for name in ("trusted.overlay.opaque", "user.overlay.opaque"):
        try:
            if os.getxattr(path, name) == b"y":
                return True
        except OSError:
            continue
    return False


def make_read_only(path: Path) -> None:
    """Nobody writes there by accident: files may be those of uv's cache."""
    for directory, _, names in os.walk(path, topdown=False):
        for name in names:
            file = os.path.join(directory, name)
            mode = os.lstat(file).st_mode
            if stat.S_ISREG(mode) and mode & 0o222:
                os.chmod(file, stat.S_IMODE(mode) & ~0o222)
        os.chmod(directory, stat.S_IMODE(os.stat(directory).st_mode) & ~0o222)


def size_of(path: Path) -> int:
    """Bytes on disk that would be free without this tree: what is linked elsewhere does not count."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            status = os.lstat(os.path.join(directory, name))
            if status.st_nlink == 1:
                total += status.st_blocks * 512
    return total
