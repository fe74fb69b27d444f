"""Files of this machine that images read: found, bounded, and kept under `KEDGE_HOME/files` by what they hold.

A directory that has not changed is not read again: what its files held is remembered with their size and times. Only
what an unchanged file system says is believed, so a file that was written a moment ago is read each time.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from kedge.exception import InvalidError
from kedge.sdk import output
from kedge.sdk.server_process import unusable
from kedge.wire.trees import ENTRY_LIMIT, PART, SIZE_LIMIT, Entry, Trees, digest_of, parts_of

REMEMBERED_FROM = 16
"""Files from which on it pays to remember what they held."""
REMEMBERED_BYTES = 4 * 2**20
SETTLED_NS = 2 * 10**9
"""A file may change without another time of change for as long as this."""
SHOWN = 3
NOTED_FROM = 2**30
"""Bytes that take so long to read that it is said."""

Ignored = Callable[[str], bool]
"""Whether a path, relative to its directory, is left out."""
Files = Mapping[str, str]
"""Relative path, with '/', → absolute path."""
_Seen = dict[str, tuple[int, int, int, int, int, str]]
"""Absolute path → size, times of modification and change, inode, mode; hash."""


def files_in(what: str, directory: str, ignored: Ignored, covers: Ignored = lambda path: False) -> dict[str, str]:
    """The plain files below a directory. Links are followed as long as they stay in it.

    Args:
        what: Who asks, for errors.
        directory: Absolute.
        ignored: Which files are left out.
        covers: Which directories are left out whole, without a look.

    Raises InvalidError for links that lead out of it, and where there is too much.
    """
    top = os.path.realpath(directory)
    found: dict[str, str] = {}
    for relative, path in _walk(what, top, top, "", ignored, covers, (top,)):
        found[relative] = path
        if len(found) > ENTRY_LIMIT:
            raise InvalidError(
                f"{what}: {directory} has more than {ENTRY_LIMIT:,} files; leave some out with ignore=['…'], or name "
                "the directory that is needed"
            )
    return found


def _walk(
    what: str, top: str, directory: str, prefix: str, ignored: Ignored, covers: Ignored, above: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    try:
        with os.scandir(directory) as scanned:
            places = sorted(scanned, key=lambda place: place.name)
    except OSError as error:
        raise InvalidError(f"{what}: {directory} cannot be read: {error.strerror}") from None
    for place in places:
        relative = f"{prefix}{place.name}"
        path = place.path
        if place.is_symlink():
            if ignored(relative) or covers(relative):
                continue
            path = os.path.realpath(path)
            if not os.path.exists(path):
                continue  # it leads nowhere
            if not path.startswith(top + os.sep) and path != top:
                raise InvalidError(
                    f"{what}: {place.path} is a link that leads out of {top}, to {path}; leave it out with "
                    f"ignore=[{relative!r}], or add what it leads to by itself"
                )
        if os.path.isdir(path):
            if path not in above and not covers(relative):  # else it leads to where it is itself
                yield from _walk(what, top, path, f"{relative}/", ignored, covers, (*above, path))
        elif os.path.isfile(path) and not ignored(relative):  # no sockets, pipes and devices
            yield relative, path


def keep(what: str, files: Files, home: str) -> tuple[str, str]:
    """Digest and directory of a copy of the files, as they are now. InvalidError where they are too much."""
    trees = Trees(os.path.join(home, "files"))
    states = _states(what, files)
    total = sum(state.st_size for state in states.values())
    if total > SIZE_LIMIT or len(files) > ENTRY_LIMIT:
        large = sorted(files, key=lambda path: -states[path].st_size)[:SHOWN]
        shown = ", ".join(f"{path} ({states[path].st_size / 2**30:.1f} GiB)" for path in large)
        raise InvalidError(
            f"{what}: {len(files):,} files with {total / 2**30:.1f} GiB are too much; at most {ENTRY_LIMIT:,} files "
            f"and {SIZE_LIMIT // 2**30} GiB are taken. The largest: {shown}. Leave some out with ignore=['…'], or keep "
            "them in a kedge.Volume"
        )
    remembers = len(files) > REMEMBERED_FROM or total > REMEMBERED_BYTES
    memory = _memory_file(trees, files) if remembers else ""
    try:
        seen = _recalled(memory)
        fresh = sum(state.st_size for path, state in states.items() if seen.get(files[path], ())[:5] != _mark(state))
        if fresh >= NOTED_FROM and (sink := output.current()) is not None:
            sink.notice(f"{what}: reading {fresh / 2**30:.1f} GiB; what does not change is not read again")
        entries = [_entry(what, trees, relative, files[relative], states[relative], seen) for relative in sorted(files)]
        digest = digest_of(entries)
        root = trees.find(digest)
        if not root:
            lost = trees.missing(entries)  # remembered, and removed since
            for entry in lost:
                again = trees.take(parts_of(files[entry.path]), entry.path, entry.executable)
                if again != entry:
                    raise InvalidError(f"{what}: {files[entry.path]} changes while it is read; start again")
            root = trees.write(entries)
        if memory:
            _remember(memory, entries, files, states)
    except OSError as error:
        raise unusable(home, error) from error
    return digest, root


def keep_contents(contents: Mapping[str, bytes], home: str) -> tuple[str, str]:
    """The same for files that are made here."""
    trees = Trees(os.path.join(home, "files"))
    try:
        entries = [trees.take([data], path, False) for path, data in sorted(contents.items())]
        return digest_of(entries), trees.find(digest_of(entries)) or trees.write(entries)
    except OSError as error:
        raise unusable(home, error) from error


def _states(what: str, files: Files) -> dict[str, os.stat_result]:
    states = {}
    for relative, path in files.items():
        try:
            states[relative] = os.stat(path)
        except OSError as error:
            raise InvalidError(f"{what}: {path} cannot be read: {error.strerror}") from None
    return states


def _entry(what: str, trees: Trees, relative: str, path: str, state: os.stat_result, seen: _Seen) -> Entry:
    executable = bool(state.st_mode & stat.S_IXUSR)
    known = seen.get(path)
    if known is not None and known[:5] == _mark(state):
        return Entry(relative, known[5], state.st_size, executable)
    try:
        if state.st_size > PART:
            return trees.take(parts_of(path), relative, executable)
        with open(path, "rb") as file:
            data = file.read()
    except PermissionError as error:
        raise InvalidError(f"{what}: {path} cannot be read: {error.strerror}; leave it out with ignore=['…']") from None
    entry = Entry(relative, hashlib.sha256(data).hexdigest(), len(data), executable)
    return entry if trees.has(entry) else trees.take([data], relative, executable)


# ---------------------------------------------------------------- what was read before


def _mark(state: os.stat_result) -> tuple[int, int, int, int, int]:
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_mode


def _memory_file(trees: Trees, files: Files) -> str:
    """One per place that files were taken from."""
    place = os.path.commonpath([os.path.dirname(path) for path in files.values()])
    name = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return os.path.join(trees.directory, "seen", name)


def _recalled(memory: str) -> _Seen:
    if not memory:
        return {}
    try:
        return msgspec.msgpack.decode(Path(memory).read_bytes(), type=_Seen)
    except (OSError, msgspec.DecodeError):
        return {}


def _remember(memory: str, entries: list[Entry], files: Files, states: Mapping[str, os.stat_result]) -> None:
    settled = time.time_ns() - SETTLED_NS
    seen: _Seen = {
        files[entry.path]: (*_mark(states[entry.path]), entry.hash)
        for entry in entries
        if max(states[entry.path].st_mtime_ns, states[entry.path].st_ctime_ns) < settled
    }
    directory = os.path.dirname(memory)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(prefix=".new-", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.msgpack.encode(seen))
        os.rename(draft, memory)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise
