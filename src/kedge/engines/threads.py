"""How many threads numerical libraries use: one in a fork server, where a pool would not survive the fork; as many as
the container's cpu in a container. What the user has set in the environment wins in containers."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from typing import Any

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def single(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a fork server: whatever the user set, one thread."""
    return {**variables, **dict.fromkeys(VARIABLES, "1")}


def sized(variables: Mapping[str, str], cpu: float) -> dict[str, str]:
    """The environment of a container with `cpu` cores.

    >>> sized({"OMP_NUM_THREADS": "8"}, 1.5)["OMP_NUM_THREADS"], sized({}, 1.5)["OMP_NUM_THREADS"]
    ('8', '2')
    """
    return {**dict.fromkeys(VARIABLES, str(max(1, math.ceil(cpu)))), **variables}


def resize_loaded(variables: Mapping[str, str]) -> None:
    """In a forked container: tells libraries that were loaded with one thread what `sized` has set since."""
    openblas, openmp = (_number(variables.get(name, "")) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"))
    if openblas > 1 and "numpy" in sys.modules:
        _resize_openblas(openblas)
    torch: Any = sys.modules.get("torch")
    if openmp > 1 and torch is not None:
        torch.set_num_threads(openmp)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _resize_openblas(count: int) -> None:
    try:
        import ctypes

        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            paths = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "openblas" in line and ".so" in line}
        for path in paths:
            library = ctypes.CDLL(path, os.RTLD_NOLOAD)
            for name in ("openblas_set_num_threads", "scipy_openblas_set_num_threads"):
                for suffix in ("", "64_", "_64"):  # builds differ in how they name the same function
                    if hasattr(library, name + suffix):
                        getattr(library, name + suffix)(count)
    except (ImportError, OSError):  # no ctypes, no /proc: it stays with one thread
        pass
