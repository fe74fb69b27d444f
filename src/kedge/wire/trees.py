"""Directories of files under one digest, of any size: `<directory>/trees/<digest>`, hard-linked from
`<directory>/objects/<hash>`, where each content lies once.

Whoever takes files of a machine, and whoever receives them, names, checks and writes them here in the same way. What
lies in a tree is never changed: links of it are in other trees.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress

from msgspec import Struct

from kedge.wire.source import DIGEST, DRAFT, objection

ENTRY_LIMIT = 100_000
"""Files of a tree."""
SIZE_LIMIT = 50 * 2**30
"""Bytes of a tree."""
PART = 8 * 1024 * 1024
"""Bytes that are read, written or sent at once."""
HASH = re.compile(r"[0-9a-f]{64}")


class Entry(Struct, frozen=True, array_like=True, gc=False):
    """One file of a tree."""

    path: str
    """Relative, with '/'."""
    hash: str
    """sha256 of its content."""
    size: int
    executable: bool = False

    @property
    def object(self) -> str:
        """Name of the file that holds it; a link cannot be executable in one place and not in another."""
        return f"{self.hash}x" if self.executable else self.hash


def digest_of(entries: Iterable[Entry]) -> str:
    """The name of a tree: equal files have equal digests, whatever order they come in."""
    hasher = hashlib.sha256()
    for entry in sorted(entries, key=lambda entry: entry.path):
        text = f"{len(entry.path)} {entry.size} {entry.executable:d} {entry.hash} {entry.path}\n"
        hasher.update(text.encode("utf-8", "surrogateescape"))
    return hasher.hexdigest()[:32]


def refusal(entries: Sequence[Entry]) -> str:
    """Why these are no tree; empty where they are one."""
    if len(entries) > ENTRY_LIMIT:
        return f"more than {ENTRY_LIMIT} files"
    if sum(entry.size for entry in entries) > SIZE_LIMIT:
        return f"more than {SIZE_LIMIT // 2**30} GiB"
    if not all(HASH.fullmatch(entry.hash) and entry.size >= 0 for entry in entries):
        return "a hash that is none"
    return objection(entry.path for entry in entries)


class Trees:
    """One directory of trees. Cheap to make: nothing is read before it is asked for."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.objects = os.path.join(directory, "objects")
        """Where contents are, under their names."""
        self._trees = os.path.join(directory, "trees")

    def find(self, digest: str) -> str:
        """Where a tree is; empty where it is not. One that is asked for stays for a while."""
        path = os.path.join(self._trees, digest)
        try:
            os.utime(path)
        except OSError:
            return ""
        return path

    def has(self, entry: Entry) -> bool:
        """Whether its content is there."""
        try:
            return os.stat(os.path.join(self.objects, entry.object)).st_size == entry.size
        except OSError:
            return False

    def missing(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those whose content is not there, each content once."""
        wanted = {entry.object: entry for entry in entries}
        return [entry for entry in wanted.values() if not self.has(entry)]

    def take(self, parts: Iterable[bytes], path: str, executable: bool) -> Entry:
        """Keeps a content, and says what it is."""
        os.makedirs(self.objects, mode=0o700, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(prefix=DRAFT, dir=self.objects)
        hasher, size = hashlib.sha256(), 0
        try:
            with os.fdopen(descriptor, "wb") as file:
                for part in parts:
                    hasher.update(part)
                    size += len(part)
                    file.write(part)
            os.chmod(draft, 0o555 if executable else 0o444)
            entry = Entry(path, hasher.hexdigest(), size, executable)
            os.rename(draft, os.path.join(self.objects, entry.object))
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise
        return entry

    def write(self, entries: Sequence[Entry], *, synced: bool = False) -> str:
        """Makes the tree of contents that are all there, and says where it is: all of it at once, or nothing."""
        digest = digest_of(entries)
        root = os.path.join(self._trees, digest)
        os.makedirs(self._trees, mode=0o700, exist_ok=True)
        draft = tempfile.mkdtemp(prefix=DRAFT, dir=self._trees)
        try:
            os.chmod(draft, 0o755)
            for directory in sorted({os.path.dirname(entry.path) for entry in entries}):
                os.makedirs(os.path.join(draft, directory), mode=0o755, exist_ok=True)
            for entry in entries:
                _link(os.path.join(self.objects, entry.object), os.path.join(draft, entry.path))
            if synced:
                os.sync()
            os.rename(draft, root)
        except OSError:
            if not os.path.isdir(root):
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return root

    def sweep(self, used: Collection[str], lifetime: float, now: float) -> None:
        """Removes trees that are not among those of these digests and that nobody has asked for in `lifetime` seconds,
        and contents that no tree has."""
        for place in _scan(self._trees):
            if not (DIGEST.fullmatch(place.name) or place.name.startswith(DRAFT)):
                continue
            with suppress(OSError):
                if place.name in used:
                    os.utime(place.path, times=(now, now))
                elif place.stat(follow_symlinks=False).st_mtime < now - lifetime:
                    shutil.rmtree(place.path, ignore_errors=True)
        for place in _scan(self.objects):
            with suppress(OSError):
                found = place.stat(follow_symlinks=False)
                # One that was taken just now may be about to be linked.
                if found.st_nlink == 1 and found.st_ctime < min(now, time.time()) - lifetime:
                    os.unlink(place.path)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # too many links of one file, or a file system that has none
        shutil.copyfile(source, target)
        os.chmod(target, stat.S_IMODE(os.stat(source).st_mode))


def _scan(directory: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as places:
            yield from list(places)
    except OSError:
        return


def parts_of(path: str) -> Iterator[bytes]:
    """The content of a file."""
    with open(path, "rb") as file:
        while part := file.read(PART):
            yield part


def entries_of(root: str) -> list[Entry]:
    """What a tree holds, read anew."""
    entries = []
    for directory, subdirectories, names in os.walk(root):
        subdirectories.sort()
        for name in sorted(names):
            path = os.path.join(directory, name)
            hasher, size = hashlib.sha256(), 0
            for part in parts_of(path):
                hasher.update(part)
                size += len(part)
            executable = bool(os.stat(path).st_mode & stat.S_IXUSR)
            entries.append(Entry(os.path.relpath(path, root), hasher.hexdigest(), size, executable))
    return entries
