"""What one container has changed in its view of a volume: the upper directory of an overlay, read.

A container may write while this reads, and may be hostile: directories are entered by descriptor, links are never
followed, and what is neither a file, a directory nor a link is left out. `Upper` remembers what it has handed over, so
that the next time only what has changed since then is a change: whoever wrote a file last wins, also where an earlier
writer commits again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from kedge.server.volume_trees import DEPTH_LIMIT, DIRECTORY, FILE, LINK, Changes, Put, below

QUIET_S = 1.0
"""In the background, files that were written to within this time wait for the next time…"""
SMALL = 16 * 1024 * 1024
"""…once where they are small, and for as long as they are being written where they are not."""
TRIES = 3
"""How often a file is copied that changes meanwhile, before it is taken as it is."""
WHITEOUT, OPAQUE = "whiteout", "opaque"
_STEP = 64 * 1024 * 1024
_FICLONE = 0x40049409


class Mark(NamedTuple):
    """How something looked: equal marks are the same content."""

    kind: str
    inode: int = 0
    size: int = 0
    mtime: int = 0
    ctime: int = 0
    mode: int = 0


class LeftOut(NamedTuple):
    path: str
    why: str


class Upper:
    """Args:
    directory: The upper directory.
    lower: The tree below it.
    prefix: Where in the volume it is (`sub_path`), with a slash at the end, or empty.
    """

    def __init__(self, directory: str, lower: str, prefix: str = "") -> None:
        self.directory = directory
        self.lower = lower
        self.prefix = prefix
        self.left_out: list[LeftOut] = []
        """What the last reading could not take along."""
        self._known: dict[str, Mark] = {}
        """What has been handed over."""
        self._waiting: dict[str, None] = {}
        """Small files that were too young the last time."""

    def collect(self, staging: Callable[[], str], *, now: float | None = None, final: bool = False) -> Collected:
        """Copies what has changed into the directory `staging()` and says what it is. With `now` (seconds since the
        epoch), files that are just being written wait for the next time. Nothing is remembered before `taken`.

        `final`: nobody writes here any more, so that files need not be copied."""
        found, expanded = self._look()
        waiting: dict[str, None] = {}
        puts: list[Put] = []
        fresh: dict[str, Mark] = {}
        root = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            for path, mark in found.items():
                if mark == self._known.get(path) or mark.kind == WHITEOUT:
                    continue
                if now is not None and mark.kind == FILE and self._is_young(path, mark, now, waiting):
                    continue
                if mark.kind in (DIRECTORY, OPAQUE):
                    put, taken = Put(self.prefix + path, DIRECTORY, mode=mark.mode), mark
                else:
                    made = self._take(root, path, mark, staging, len(puts), patient=now is None, final=final)
                    if made is None:
                        continue
                    put, taken = made
                puts.append(put)
                fresh[path] = taken
            deletions = self._deletions(root, found, expanded)
        finally:
            os.close(root)
        known = {path: self._known[path] for path, mark in found.items() if path in self._known} | fresh
        known |= {path: mark for path, mark in found.items() if mark.kind == WHITEOUT}
        return Collected(Changes([self.prefix + path for path in deletions], puts), known, waiting)

    def taken(self, collected: Collected) -> None:
        """What was collected is in a tree now."""
        self._known = collected.known
        self._waiting = collected.waiting

    # ------------------------------------------------------------ what there is

    def _look(self) -> tuple[dict[str, Mark], list[str]]:
        """Everything in the upper directory, parents first; and which of it hides what is below, newly."""
        found: dict[str, Mark] = {}
        hiding: list[str] = []
        self.left_out = []
        root = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            self._walk(root, "", found, 0)
        finally:
            os.close(root)
        for path, mark in found.items():
            known = self._known.get(path)
            if mark.kind in (WHITEOUT, OPAQUE) and (
                known is None or known.kind != mark.kind or known.inode != mark.inode
            ):
                hiding.append(path)
        return found, hiding

    def _walk(self, descriptor: int, prefix: str, found: dict[str, Mark], depth: int) -> None:
        with os.scandir(descriptor) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            path = f"{prefix}{name}"
            if not _is_text(name):
                self.left_out.append(LeftOut(_shown(path), "its name is not UTF-8"))
                continue
            try:
                facts = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue
            kind = _kind(descriptor, name, facts)
            if not kind:
                self.left_out.append(LeftOut(path, "it is a socket, a pipe or a device"))
            elif kind != DIRECTORY:
                found[path] = _mark(kind, facts)
            elif depth >= DEPTH_LIMIT:
                self.left_out.append(LeftOut(path, f"it is deeper than {DEPTH_LIMIT} directories"))
            else:
                self._enter(descriptor, name, path, facts, found, depth)

    def _enter(
        self, parent: int, name: str, path: str, facts: os.stat_result, found: dict[str, Mark], depth: int
    ) -> None:
        try:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        except PermissionError:
            self.left_out.append(LeftOut(path, "it cannot be read by the server"))
            return
        except OSError:  # something else by now, or nothing
            return
        try:
            kind = OPAQUE if _flag(inner, "opaque") else DIRECTORY
            found[path] = Mark(kind, facts.st_ino if kind == OPAQUE else 0, mode=stat.S_IMODE(facts.st_mode))
            self._walk(inner, f"{path}/", found, depth + 1)
        finally:
            os.close(inner)

    def _is_young(self, path: str, mark: Mark, now: float, waiting: dict[str, None]) -> bool:
        if now - mark.ctime / 1e9 >= QUIET_S or (mark.size <= SMALL and path in self._waiting):
            return False
        waiting[path] = None
        return True

    def _deletions(self, root: int, found: dict[str, Mark], hiding: list[str]) -> list[str]:
        """What this container has removed: it saw it, and it is not there any more. What others have added meanwhile
        to a directory that it removed stays."""
        gone: dict[str, None] = {}
        for path in hiding:
            if found[path].kind == WHITEOUT:
                gone[path] = None
            for entry in below(self.lower, path):
                if entry.path not in found and not self._removed_before(entry.path):
                    gone[entry.path] = None
        for path in self._known:
            if path not in found and not self._removed_before(path) and not _exists(root, path):
                gone[path] = None
        return list(gone)

    def _removed_before(self, path: str) -> bool:
        known = self._known.get(path)
        return known is not None and known.kind == WHITEOUT

    # ------------------------------------------------------------ copying

    def _take(
        self, root: int, path: str, mark: Mark, staging: Callable[[], str], number: int, *, patient: bool, final: bool
    ) -> tuple[Put, Mark] | None:
        """A copy of a file, or a link; None where it is gone, or where it changes while it is copied and the next time
        will do."""
        place = self.prefix + path
        try:
            with _parent(root, path) as (parent, name):
                if mark.kind == LINK:
                    return Put(place, LINK, os.readlink(name, dir_fd=parent)), mark
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        except PermissionError:
            self.left_out.append(LeftOut(path, "it cannot be read by the server"))
            return None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.EIO):
                raise
            return None  # replaced or removed meanwhile: the next time sees by what
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                return None
            target = os.path.join(staging(), str(number))
            if final and _linked(descriptor, target, facts):
                return Put(place, FILE, target), mark
            for _ in range(TRIES if patient else 1):
                before = _mark(FILE, os.fstat(descriptor))
                copy(descriptor, target)
                after = _mark(FILE, os.fstat(descriptor))
                if after == before:
                    return Put(place, FILE, target), before
            # Marked as before the copy: the next time it is copied again.
            return (Put(place, FILE, target), before) if patient else None
        finally:
            os.close(descriptor)


class Collected(NamedTuple):
    changes: Changes
    known: dict[str, Mark]
    waiting: dict[str, None]

    @property
    def empty(self) -> bool:
        return not (self.changes.puts or self.changes.deletions)


# ---------------------------------------------------------------- single things


def copy(source: int, target: str) -> None:
    """A copy of an open file, with its mode, times and holes, that shares its blocks where the disk can do that."""
    import fcntl

    facts = os.fstat(source)
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.ioctl(out, _FICLONE, source)
        except OSError:
            _copy_data(source, out, facts.st_size)
        if os.geteuid() == 0:
            os.fchown(out, facts.st_uid, facts.st_gid)
        os.fchmod(out, _mode(facts))
        os.utime(out, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    finally:
        os.close(out)


def _linked(source: int, target: str, facts: os.stat_result) -> bool:
    """Whether an open file could get a second name: that takes no time, and no room."""
    try:
        # With a descriptor the link behind this path is followed, which it is not without one.
        os.link(f"/proc/self/fd/{source}", target, src_dir_fd=source, follow_symlinks=True)
        os.chmod(target, _mode(facts))
    except OSError:
        with suppress(OSError):
            os.unlink(target)
        return False
    return True


def _mode(facts: os.stat_result) -> int:
    """A file of a volume gives nobody other rights, and the server can read it."""
    return (stat.S_IMODE(facts.st_mode) & 0o1777) | 0o400


def _copy_data(source: int, target: int, size: int) -> None:
    os.ftruncate(target, size)
    offset = 0
    while offset < size:
        try:
            start = os.lseek(source, offset, os.SEEK_DATA)
            end = os.lseek(source, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            start, end = offset, size
        _copy_range(source, target, start, min(end, size))
        offset = max(end, offset + 1)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        count = min(end - start, _STEP)
        try:
            done = os.copy_file_range(source, target, count, start, start)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            data = os.pread(source, min(count, 1024 * 1024), start)
            done = os.pwrite(target, data, start) if data else 0
        if not done:
            return  # it has become shorter
        start += done


def _is_text(name: str) -> bool:
    """Whether programs in every language, and the terminal, can say this name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _mark(kind: str, facts: os.stat_result) -> Mark:
    if kind == WHITEOUT:
        # Whiteouts share one inode between them, whose times say nothing about any of them.
        return Mark(kind)
    return Mark(kind, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, stat.S_IMODE(facts.st_mode))


def _kind(parent: int, name: str, facts: os.stat_result) -> str:
    mode = facts.st_mode
    if stat.S_ISDIR(mode):
        return DIRECTORY
    if stat.S_ISLNK(mode):
        return LINK
    if stat.S_ISCHR(mode) and facts.st_rdev == 0:
        return WHITEOUT
    if not stat.S_ISREG(mode):
        return ""
    return WHITEOUT if facts.st_size == 0 and _is_marked_whiteout(parent, name) else FILE


def _is_marked_whiteout(parent: int, name: str) -> bool:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
    except OSError:
        return False
    try:
        return _flag(descriptor, "whiteout")
    finally:
        os.close(descriptor)


def _flag(descriptor: int, name: str) -> bool:
    """Whether the kernel has marked a file or directory of an overlay so."""
    for space in ("trusted", "user"):
        try:
            if os.getxattr(descriptor, f"{space}.overlay.{name}") in (b"y", b""):
                return True
        except OSError:
            continue
    return False


def _exists(root: int, path: str) -> bool:
    try:
        with _parent(root, path) as (parent, name):
            os.stat(name, dir_fd=parent, follow_symlinks=False)
    except PermissionError:  # it cannot be seen just now
        return True
    except OSError:
        return False
    return True


@contextmanager
def _parent(root: int, path: str) -> Iterator[tuple[int, str]]:
    """The directory of a path, opened name by name so that no link is followed, and the last name."""
    names = path.split("/")
    here = os.dup(root)
    try:
        for name in names[:-1]:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = inner
        yield here, names[-1]
    finally:
        os.close(here)
