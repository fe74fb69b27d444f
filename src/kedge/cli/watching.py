"""Whether files of a project have changed: looked at when the system says so, and once a second in any case.

What counts is what the files look like, not the events: so it does not matter how an editor saves (in place, under
another name, in many steps), whether a directory was replaced, or whether its file system tells of changes at all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator

QUIET_MS = 100
"""Milliseconds without another change after which a burst of changes is over."""
BURST_MS = 2000
"""Milliseconds after which a burst that does not end is looked at anyhow."""
LOOK_MS = 1000
"""Milliseconds between two looks where nothing was said."""

State = dict[str, tuple[int, int, int]]
"""(time of the change, size, number) of files that are there."""


class Watched:
    """Files, and directories in which every module counts, also one that comes later."""

    def __init__(self, files: Iterable[str] = (), trees: Iterable[str] = (), directories: Iterable[str] = ()) -> None:
        self._files = frozenset(files)
        self._trees = tuple(sorted(set(trees)))
        """Packages: with all that is below them."""
        self._directories = tuple(sorted(set(directories)))

    def extended(self, other: Watched, *, loosely: bool) -> Watched:
        """Both; `loosely` also the modules that stand beside any of the files, which an import may have missed."""
        files = self._files | other._files
        beside = {os.path.dirname(path) for path in files} if loosely else set()
        return Watched(files, {*self._trees, *other._trees}, {*self._directories, *other._directories, *beside})

    def state(self) -> State:
        """What they look like now."""
        paths = set(self._files)
        for directory in self._directories:
            paths |= {path for path in _entries(directory) if path.endswith(".py")}
        for tree in self._trees:
            for directory, below, names in os.walk(tree):
                below[:] = [name for name in below if not name.startswith((".", "__pycache__"))]
                paths |= {os.path.join(directory, name) for name in names if name.endswith(".py")}
        found: State = {}
        for path in sorted(paths):
            try:
                facts = os.stat(path)
            except OSError:
                continue
            found[path] = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        return found

    def since(self, earlier: State) -> State:
        """What they looked like at an earlier moment, as far as that was looked at, else what they look like now."""
        return {**self.state(), **{path: facts for path, facts in earlier.items() if self._covers(path)}}

    def _covers(self, path: str) -> bool:
        return (
            path in self._files
            or os.path.dirname(path) in self._directories
            or path.startswith(tuple(tree + os.sep for tree in self._trees))
        )

    def places(self) -> list[str]:
        """The directories in which changes happen. Of one that is gone, the nearest that is there."""
        found = {os.path.dirname(path) for path in self._files} | set(self._directories)
        for tree in self._trees:
            found |= {directory for directory, _, _ in os.walk(tree) if "__pycache__" not in directory} or {tree}
        return sorted({_there(place) for place in found})

    def wait(self, before: State, stop: threading.Event) -> State | None:
        """What they look like once that is something else than `before`, and nothing has changed for a moment. None
        when `stop` is set."""
        if self.state() != before:
            return self._settled(stop)
        for _ in self._moments(stop):
            if stop.is_set():
                return None
            now = self.state()
            if now != before:
                return now
        return None

    def _settled(self, stop: threading.Event) -> State | None:
        """What they look like as soon as that stays the same for a moment."""
        last = None
        while not stop.wait(QUIET_MS / 1000):
            now = self.state()
            if now == last:
                return now
            last = now
        return None

    def _moments(self, stop: threading.Event) -> Iterator[object]:
        """When to look: after each burst of changes, and now and then."""
        from watchfiles import watch

        try:
            yield from watch(
                *self.places(),
                watch_filter=None,
                debounce=BURST_MS,
                step=QUIET_MS,
                stop_event=stop,
                rust_timeout=LOOK_MS,
                yield_on_timeout=True,
                recursive=False,
                raise_interrupt=False,
            )
        except OSError:
            # A directory has just gone, or the system watches as many as it can.
            while not stop.wait(LOOK_MS / 1000):
                yield None


def _entries(directory: str) -> list[str]:
    try:
        return [os.path.join(directory, name) for name in os.listdir(directory)]
    except OSError:
        return []


def _there(place: str) -> str:
    while not os.path.isdir(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    return place
