"""How the memory of a fork server lies, for those that are forked from it: they copy what they write to, page by page.

Small objects go to what is free between others first, over the pages of a whole heap: what is free is filled before.
Caches hold on to objects all over it: what they would let go of in every fork, they let go of before.
Big pages spare every fork the copying of one entry for each small page: with torch, that is most of what a fork costs.
The kernel still copies no more than the small page that is written to.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

try:
    import ctypes

    _libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
except (ImportError, OSError):  # small Debian Pythons come without ctypes
    _libc = None

_COLLAPSE = 25
"""MADV_COLLAPSE of Linux 6.1. Where that is not known, or there is no big page to be had, all stays as it is."""
_BIG = 2 << 20
_SIZES = range(32, 513, 16)
"""Of Python's own allocator, without the smallest, in which hardly anything lies."""
_ROW = 24
"""So many neighbours in a row lie where nothing else is."""
_MOST = 1 << 17
"""Bytes of one size, where Python takes its memory elsewhere and there are no rows."""
_BEYOND_CACHED = 1 << 20
"""Integers from here on are objects of their own, of the smallest size above."""


def fill() -> None:
    """Call it last of all before forks."""
    _forget_lookups()
    _fillings.extend(_filled())


def big_places() -> list[int]:
    """Where a big page could lie in the memory of this process."""
    if _libc is None:
        return []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        return [place for start, end in big_ranges(maps) for place in range(start, end, _BIG)]


def collapse(place: int) -> None:
    """Makes one big page of what lies there, in milliseconds. Of no use while forks live, which share the small ones.
    What cannot be done is left."""
    _libc.madvise(ctypes.c_void_p(place), ctypes.c_size_t(_BIG), _COLLAPSE)


def _forget_lookups() -> None:
    """Python's cache of attributes of types is full of what was loaded last. Each new entry would write to the name of
    the one that it replaces, anywhere in memory: with torch, a fifth of all pages that a container copies."""
    clear = getattr(sys, "_clear_type_cache", None)
    if clear is not None:
        clear()


_fillings: list[object] = []
"""They are needed for ever: nothing is to be free where they lie."""


def _filled() -> Iterator[object]:
    header = sys.getsizeof(b"")
    for size in _SIZES:
        last, row, count = 0, 0, 0
        while row < _ROW and count * size < _MOST:
            filling: object = bytes(size - header) if size > header else count + _BEYOND_CACHED
            row = row + 1 if id(filling) - last == size else 0
            last = id(filling)
            count += 1
            yield filling


def big_ranges(maps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Of the lines of /proc/self/maps: where whole big pages fit into memory that is written to and no file's. Pure.

    >>> list(big_ranges(["1ff000-7ff000 rw-p 0 00:00 0 [heap]", "800000-a00000 r--p 0 08:01 9 /lib"]))
    [(2097152, 6291456)]
    """
    for line in maps:
        place, rights, _, _, inode, *name = line.split(maxsplit=5)
        if rights == "rw-p" and inode == "0" and (not name or name[0].strip() == "[heap]"):
            start, end = (int(text, 16) for text in place.split("-"))
            start, end = -(-start // _BIG) * _BIG, end // _BIG * _BIG
            if start < end:
                yield start, end
