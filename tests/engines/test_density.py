"""How the memory of a fork server lies before it forks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kedge.engines.density import big_ranges

NEIGHBOURS = """
import gc, sys
from kedge.engines import density
scattered = [bytes(40) for _ in range(50_000)]
kept = [sum(one) + len(one) for one in scattered]
holes = scattered[::70]
del scattered[::70]
places = {id(one) for one in holes}
holes.clear()
gc.disable()
if "pack" in sys.argv:
    density.fill()
    for place in density.big_places():
        density.collapse(place)
fresh = [bytes(40) for _ in range(500)]
print(sum(id(one) in places for one in fresh), [sum(one) + len(one) for one in scattered] == kept[: len(scattered)])
"""


def in_holes(*words: str) -> int:
    """How many of 500 new objects lie where some between others were freed before."""
    command = [sys.executable, "-c", NEIGHBOURS, *words]
    count, intact = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert intact == "True"
    return int(count)


def test_only_memory_of_its_own_that_holds_a_whole_big_page_is_chosen() -> None:
    maps = [
        "00100000-00500000 rw-p 00000000 00:00 0 ",
        "00600000-00a00000 rw-p 00000000 00:00 0                                  [heap]\n",
        "01000000-01400000 r--p 00000000 00:00 0 ",
        "02000000-02400000 rw-p 00000000 08:01 77                                 /usr/lib/a b.so",
        "03000000-03400000 rw-s 00000000 00:01 12                                 /memfd:shared (deleted)",
        "04000000-04400000 rw-p 00000000 00:00 0                                  [stack]",
        "05100000-05300000 rw-p 00000000 00:00 0 ",
    ]
    assert list(big_ranges(maps)) == [(0x200000, 0x400000), (0x600000, 0xA00000)]


def test_what_is_free_between_objects_is_filled() -> None:
    if in_holes() < 400:
        pytest.skip("this Python takes the memory of small objects elsewhere")
    assert in_holes("pack") < 50
