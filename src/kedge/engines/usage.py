"""What containers use, where no control group counts it: memory, processes and disk of process trees, read from /proc
and from directories."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from stat import S_ISDIR
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")
_BLOCK = 512
"""Of `st_blocks`, whatever the file system."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def tree(root: int, proc: str = "/proc") -> list[int]:
    """A process and all below it. Containers adopt their orphans, so nobody of them is elsewhere."""
    found = [root]
    for process in found:
        tasks = f"{proc}/{process}/task"
        try:
            for task in os.listdir(tasks):
                with open(f"{tasks}/{task}/children", encoding="ascii") as file:
                    found += [int(word) for word in file.read().split()]
        except OSError:  # it has ended, or this kernel does not tell children
            continue
    return found


def resident(processes: Iterable[int], proc: str = "/proc") -> int:
    """Bytes that they have in memory, with what they share counted for each: never too little, and quickly known."""
    total = 0
    for process in processes:
        try:
            with open(f"{proc}/{process}/statm", encoding="ascii") as file:
                total += int(file.read().split()[1]) * _PAGE
        except (OSError, IndexError):
            continue
    return total


def proportional(processes: Iterable[int], proc: str = "/proc") -> int:
    """Bytes that they have in memory or swapped out, with what is shared divided by those who share it. Takes the
    kernel some milliseconds for a gigabyte."""
    total = 0
    for process in processes:
        try:
            with open(f"{proc}/{process}/smaps_rollup", encoding="ascii", errors="replace") as file:
                for line in file:
                    name, _, rest = line.partition(":")
                    if name in ("Pss", "SwapPss"):
                        total += int(rest.split()[0]) * 1024
        except (OSError, ValueError, IndexError):
            continue
    return total


def tasks_of_machine(proc: str = "/proc") -> int:
    """Processes and threads of everybody, at the price of one small file."""
    try:
        with open(f"{proc}/loadavg", encoding="ascii") as file:
            return int(file.read().split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return 0


class Household(NamedTuple):
    """The processes below one, itself included, and how many threads they have together."""

    processes: list[int]
    threads: int


def census(roots: Collection[int], proc: str = "/proc") -> dict[int, Household]:
    """All households of `roots`, from one look at all processes."""
    parents: dict[int, int] = {}
    threads: dict[int, int] = {}
    for name in os.listdir(proc):
        if name.isdecimal():
            try:
                with open(f"{proc}/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                parents[int(name)], threads[int(name)] = int(fields[1]), int(fields[17])
            except (OSError, ValueError, IndexError):  # it ended meanwhile
                continue
    return households(parents, threads, roots)


def households(parents: dict[int, int], threads: dict[int, int], roots: Collection[int]) -> dict[int, Household]:
    """Who hangs below which root.

    >>> households({10: 1, 11: 10, 12: 11, 13: 1}, {10: 2, 11: 1, 12: 1, 13: 9}, [10])
    {10: Household(processes=[10, 11, 12], threads=4)}
    """
    owner: dict[int, int] = {root: root for root in roots}
    members: dict[int, list[int]] = {root: [] for root in roots}
    for process in threads:
        path = []
        while process not in owner and process in parents:
            path.append(process)
            owner[process] = 0  # a loop cannot be, but /proc is not read at one moment
            process = parents[process]
        found = owner.get(process, 0)
        owner.update(dict.fromkeys(path, found))
    for process in threads:
        if owner.get(process):
            members[owner[process]].append(process)
    return {root: Household(found, sum(threads[process] for process in found)) for root, found in members.items()}


def on_disk(directory: str) -> int:
    """Bytes that a directory tree takes on its file system. Links are not followed, hard links count once, and what
    cannot be read counts as nothing. It goes from directory to directory by descriptors: no path is too long."""
    seen: set[int] = set()
    try:
        here = os.open(directory, _DIRECTORY)
    except OSError:
        return 0
    facts = os.fstat(here)
    device, total = facts.st_dev, 0
    above: list[tuple[int, list[str]]] = []
    """Of each directory on the way: its inode, and what in it is still to be looked into."""
    size, waiting = _entries(here, device, seen)
    try:
        while True:
            total += size
            size = 0
            if waiting:
                name = waiting.pop()
                try:
                    inner = os.open(name, _DIRECTORY, dir_fd=here)
                except OSError:  # it has gone, or is not for this process
                    continue
                above.append((os.fstat(here).st_ino, waiting))
                here = _closed(here, inner)
                size, waiting = _entries(here, device, seen)
            elif above:
                inode, waiting = above.pop()
                here = _closed(here, os.open("..", _DIRECTORY, dir_fd=here))
                if os.fstat(here).st_ino != inode:  # it has been moved meanwhile: the next time will do
                    return total
            else:
                return total
    except OSError:
        return total
    finally:
        os.close(here)


def _closed(old: int, new: int) -> int:
    os.close(old)
    return new


def _entries(directory: int, device: int, seen: set[int]) -> tuple[int, list[str]]:
    """Bytes of what is in an open directory, and the directories among it."""
    total, inner = 0, []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    facts = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if facts.st_dev != device or (facts.st_nlink > 1 and facts.st_ino in seen):
                    continue
                total += facts.st_blocks * _BLOCK
                if S_ISDIR(facts.st_mode):
                    inner.append(entry.name)
                elif facts.st_nlink > 1:
                    seen.add(facts.st_ino)
    except OSError:
        pass
    return total, inner
