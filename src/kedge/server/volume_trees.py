"""Trees of files that never change once they are there: how one is made of another, and how paths in it are read.

A new tree is a copy of the last one in directories only: its files are hard links. What has changed is put in their
place, never written into them, so that whoever sees an older tree goes on seeing what it saw. Paths are relative, with
"/" between names; "" is the tree itself. Symbolic links are kept as links, and never followed out of the tree.

Plain functions on directories: no event loop, no locks.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from typing import Any

from msgspec import Struct

from kedge.exception import InvalidError, NotFoundError
from kedge.wire import removal

PATH_LIMIT = 4000
"""Bytes of a path: the system's limit, with some left for the directories above it."""
NAME_LIMIT = 255
DEPTH_LIMIT = 128
"""Directories within each other."""
LINKS_LIMIT = 40
"""Links that are followed on the way to one file."""

discard = removal.remove
FILE, DIRECTORY, LINK = "file", "directory", "link"
_GLOB = re.compile(r"[*?\[]")
_NEVER = re.compile(r"(?!)")


class Put(Struct, frozen=True):
    """One thing that is to be in the next tree."""

    path: str
    kind: str
    source: str = ""
    """Of a file: where its content lies now, to be moved; of a link: where it leads."""
    mode: int = 0o755


class Changes(Struct, frozen=True):
    """What is to be different in the next tree: first the deletions, then the puts, directories before their
    content."""

    deletions: list[str] = []
    """Paths that are to be gone; a directory among them only where nothing is left in it."""
    puts: list[Put] = []


class Entry(Struct, frozen=True):
    """Something in a tree, for who asks what there is."""

    path: str
    kind: str
    size: int
    mtime: float
    mode: int


# ---------------------------------------------------------------- paths


def clean(path: Any, what: str = "the path") -> str:
    """A path as people write it, relative and without detours. InvalidError where it leads out or is none.

    >>> clean("/models//llama/"), clean("."), clean("")
    ('models/llama', '', '')
    """
    if not isinstance(path, str):
        raise InvalidError(f"{what} must be a string such as 'models/weights.bin', not {path!r}")
    shown = repr(path[:80])
    if "\0" in path:
        raise InvalidError(f"{what} {shown} holds a NUL character; write names joined by '/'")
    names = [name for name in path.split("/") if name not in ("", ".")]
    if ".." in names:
        raise InvalidError(f"{what} {shown} leads out of the volume; write it from the volume's root, without '..'")
    try:
        sizes = [len(name.encode()) for name in names]
    except UnicodeEncodeError:
        raise InvalidError(f"{what} {shown} holds what is no text: half of a surrogate pair") from None
    if sum(sizes) + len(sizes) > PATH_LIMIT or len(names) > DEPTH_LIMIT or max(sizes, default=0) > NAME_LIMIT:
        raise InvalidError(
            f"{what} {shown}… is too long: at most {PATH_LIMIT} bytes, {NAME_LIMIT} for each name, {DEPTH_LIMIT} names"
        )
    return "/".join(names)


def locate(tree: str, path: str) -> str:
    """Where a path of a tree really is, its links followed inside of the tree. NotFoundError where there is nothing,
    InvalidError where a link leads out."""
    names = clean(path).split("/")[::-1] if clean(path) else []
    found: list[str] = []
    links = 0
    while names:
        name = names.pop()
        if name in ("", "."):
            continue
        if name == "..":
            if not found:
                raise InvalidError(f"{path!r} leads out of the volume, by a symbolic link; that is not followed")
            found.pop()
            continue
        here = os.path.join(tree, *found, name)
        try:
            mode = os.lstat(here).st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"there is no {path!r} in the volume") from None
        if not stat.S_ISLNK(mode):
            found.append(name)
            continue
        links += 1
        target = os.readlink(here)
        if links > LINKS_LIMIT:
            raise InvalidError(f"{path!r} is a symbolic link that leads to itself")
        if target.startswith("/"):
            raise InvalidError(
                f"{path!r} leads out of the volume, by a symbolic link to {target!r}; it is not followed"
            )
        names += target.split("/")[::-1]
    return os.path.join(tree, *found)


def kind_of(tree: str, path: str) -> str:
    """What is at a path, without following a link at its end or on the way; empty where there is nothing."""
    try:
        mode = os.lstat(os.path.join(tree, path)).st_mode if _parents_are_plain(tree, path) else 0
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return _kind(mode)


def check_target(tree: str, path: str) -> None:
    """InvalidError where something cannot be written at `path`, because a link or a file is on the way."""
    names = path.split("/")
    for count in range(1, len(names)):
        parent = "/".join(names[:count])
        kind = kind_of(tree, parent)
        if kind not in ("", DIRECTORY):
            what = "a symbolic link" if kind == LINK else "a file"
            raise InvalidError(f"{path!r} cannot be written: {parent!r} is {what} in the volume; choose another path")


def _parents_are_plain(tree: str, path: str) -> bool:
    names = path.split("/")
    return all(stat.S_ISDIR(os.lstat(os.path.join(tree, *names[:count])).st_mode) for count in range(1, len(names)))


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return DIRECTORY
    if stat.S_ISLNK(mode):
        return LINK
    return FILE if stat.S_ISREG(mode) else ""


# ---------------------------------------------------------------- looking


def entries(tree: str, path: str = "", recursive: bool = False, after: str = "") -> Iterator[Entry]:
    """What is in a directory, or the one file at `path`, in the order of their paths, from behind `after` on.
    A pattern (`logs/*.txt`) gives what matches it; its `*` stands for any characters of one name."""
    if _GLOB.search(path) and not kind_of(tree, clean(path)):  # else it is a name, such as pages/[id]
        yield from _matching(tree, clean(path), after)
        return
    root = locate(tree, path)
    if not os.path.isdir(root):
        if not after:
            yield _entry(clean(path), os.lstat(root))
        return
    prefix = os.path.relpath(root, tree)
    yield from _below(root, "" if prefix == "." else prefix, recursive, after)


def _below(directory: str, prefix: str, recursive: bool, after: str) -> Iterator[Entry]:
    with os.scandir(directory) as found:
        there = sorted(found, key=lambda entry: _order(entry.name))
    for entry in there:
        path = f"{prefix}/{entry.name}" if prefix else entry.name
        ahead = _order(path) > _order(after)
        if ahead:
            yield _entry(path, entry.stat(follow_symlinks=False))
        # What is below a name that has been passed may still be ahead.
        if (
            recursive
            and (ahead or after == path or after.startswith(f"{path}/"))
            and entry.is_dir(follow_symlinks=False)
        ):
            yield from _below(entry.path, path, recursive, after)


def _order(path: str) -> list[str]:
    """Directories come right before what they hold."""
    return path.split("/")


def _matching(tree: str, pattern: str, after: str) -> Iterator[Entry]:
    fixed = pattern[: _GLOB.search(pattern).start()].rpartition("/")[0]  # type: ignore[union-attr]
    names = pattern.split("/")
    if names[-1] == "**":
        names.append("*")  # what is below, not what it is below of
    parts = [None if name == "**" else re.compile(fnmatch.translate(name)) for name in names]
    try:
        found = entries(tree, fixed, recursive=True, after=after)
        yield from (entry for entry in found if _fits(parts, entry.path.split("/")))
    except NotFoundError:
        return


def _fits(parts: list[re.Pattern[str] | None], names: list[str]) -> bool:
    """Whether names match a pattern, in which None stands for any number of them. It takes steps in proportion to the
    length of both: one expression for the whole path can take years."""
    places = _further(parts, {0})
    for name in names:
        ahead = set()
        for place in places:
            part = parts[place] if place < len(parts) else _NEVER
            if part is None:
                ahead.add(place)
            elif part.match(name):
                ahead.add(place + 1)
        places = _further(parts, ahead)
    return len(parts) in places


def _further(parts: list[re.Pattern[str] | None], places: set[int]) -> set[int]:
    found = set(places)
    for place in places:
        while place < len(parts) and parts[place] is None:
            place += 1
            found.add(place)
    return found


def _entry(path: str, facts: os.stat_result) -> Entry:
    return Entry(path, _kind(facts.st_mode), facts.st_size, facts.st_mtime, stat.S_IMODE(facts.st_mode))


# ---------------------------------------------------------------- making


def clone(tree: str, draft: str) -> None:
    """Makes `draft` an equal tree, whose files are the same ones."""
    os.mkdir(draft, 0o700)
    _clone(tree, draft)
    shutil.copystat(tree, draft)


def _clone(source: str, target: str) -> None:
    with os.scandir(source) as found:
        for entry in found:
            path = os.path.join(target, entry.name)
            if not entry.is_dir(follow_symlinks=False):
                os.link(entry.path, path, follow_symlinks=False)
                continue
            facts = entry.stat(follow_symlinks=False)
            os.mkdir(path, 0o700)
            _clone(entry.path, path)
            os.chmod(path, stat.S_IMODE(facts.st_mode))
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
            _own(path, facts)


def apply(changes: Changes, draft: str) -> None:
    """Makes a draft of the last tree the next one. What was put is moved out of its source, or linked to it where that
    is in a tree."""
    for path in sorted(changes.deletions, key=_order, reverse=True):
        _delete(draft, path)
    for put in changes.puts:
        here = _place(draft, put.path)
        if put.kind == DIRECTORY:
            if os.path.islink(here) or not os.path.isdir(here):
                discard(here)
                os.mkdir(here)
            os.chmod(here, put.mode | 0o700)  # the next draft is made by reading this one
            continue
        discard(here)
        if put.kind == LINK:
            os.symlink(put.source, here)
        else:
            os.link(put.source, here, follow_symlinks=False)


def remove(tree: str, path: str, recursive: bool) -> Changes:
    """The changes that remove a file, a link, or with `recursive` a directory and all in it."""
    kind = kind_of(tree, path)
    if not path:
        raise InvalidError("the root of a volume cannot be removed; name what is in it, or delete the volume")
    if not kind:
        raise NotFoundError(f"there is no {path!r} in the volume")
    if kind == DIRECTORY and not recursive:
        raise InvalidError(f"{path!r} is a directory; recursive=True (rm -r) removes it with all that is in it")
    return Changes([path, *(entry.path for entry in below(tree, path))])


def below(tree: str, path: str) -> Iterator[Entry]:
    """All that is in a directory of the tree, however deep; nothing where there is none."""
    if kind_of(tree, path) == DIRECTORY:
        yield from _below(os.path.join(tree, path), path, True, "")


def copies(tree: str, sources: Iterable[str], target: str, recursive: bool) -> Changes:
    """The changes that copy files (and directories, with `recursive`) to `target`, or into it where that is a
    directory, or where there are several."""
    wanted = [clean(source) for source in sources]
    if not wanted:
        raise InvalidError("there is nothing to copy; name at least one path")
    into = kind_of(tree, clean(target)) == DIRECTORY or target.endswith("/") or len(wanted) > 1
    puts: list[Put] = []
    for source in wanted:
        real = locate(tree, source)
        base = clean(target)
        if into:
            base = f"{base}/{source.rpartition('/')[2]}" if base else source.rpartition("/")[2]
        check_target(tree, base)
        facts = os.lstat(real)
        if not stat.S_ISDIR(facts.st_mode):
            puts.append(Put(base, FILE, real))
            continue
        if not recursive:
            raise InvalidError(f"{source!r} is a directory; recursive=True (cp -r) copies it with all that is in it")
        if base == source or base.startswith(f"{source}/"):
            raise InvalidError(f"{source!r} cannot be copied into itself; choose a target outside of it")
        puts.append(Put(base, DIRECTORY, mode=stat.S_IMODE(facts.st_mode)))
        for entry in _below(real, "", True, ""):
            here = os.path.join(real, entry.path)
            origin = os.readlink(here) if entry.kind == LINK else here
            puts.append(Put(f"{base}/{entry.path}", entry.kind, origin, entry.mode))
    return Changes([], puts)


def _place(draft: str, path: str) -> str:
    """Where `path` is in a draft. What is on the way and is no directory gives way to one: it is never followed."""
    names = path.split("/")
    here = draft
    for name in names[:-1]:
        here = os.path.join(here, name)
        try:
            if stat.S_ISDIR(os.lstat(here).st_mode):
                continue
            os.unlink(here)
        except FileNotFoundError:
            pass
        os.mkdir(here)
    return os.path.join(here, names[-1])


def _delete(draft: str, path: str) -> None:
    try:
        if not _parents_are_plain(draft, path):
            return
        here = os.path.join(draft, path)
        if stat.S_ISDIR(os.lstat(here).st_mode):
            os.rmdir(here)
        else:
            os.unlink(here)
    except OSError:
        return  # gone already, or a directory into which others have put something


def _own(path: str, facts: os.stat_result) -> None:
    if os.geteuid() == 0 and (facts.st_uid or facts.st_gid):
        os.chown(path, facts.st_uid, facts.st_gid, follow_symlinks=False)
