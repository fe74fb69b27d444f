"""Isolated containers under test: what they are made of, and which rungs this machine has."""

from __future__ import annotations

import functools
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from kedge.engines import probe
from kedge.model.spec import NAMESPACE, Bind, Isolation

_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "opt", "proc", "sys", "dev")
_numbers = itertools.count()


_survey = functools.cache(probe.survey)


def missing(rung: str) -> str:
    """Why the machine does not have the rung; empty where it has it. Asked once by each process that tests."""
    return _survey()[rung]


def needs(rung: str) -> None:
    """Skips the test where the machine does not have the rung."""
    if why := missing(rung):
        pytest.skip(f"no {rung}: {why}")


def interpreter() -> tuple[Bind, ...]:
    """What this Python needs beside the system's own directories."""
    places = dict.fromkeys([sys.prefix, sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable))])
    return tuple(Bind(path, path) for path in places if path.split("/")[1] not in _SYSTEM)


def system() -> tuple[Bind, ...]:
    """The machine's programs and libraries, for roots that have none."""
    return tuple(Bind(f"/{name}", f"/{name}") for name in ("usr", "lib", "lib64", "bin") if os.path.isdir(f"/{name}"))


def isolated(directory: Path, rung: str = NAMESPACE, *, binds: tuple[Bind, ...] = (), **options: Any) -> Isolation:
    """A container over the machine's root that sees programs and nothing else. `options` are fields of Isolation."""
    needs(rung)
    with os.scandir("/") as entries:
        hidden = sorted(f"/{e.name}" for e in entries if e.is_dir(follow_symlinks=False) and e.name not in _SYSTEM)
    scratch = directory / "containers" / f"c{next(_numbers)}"
    fields: dict[str, Any] = {
        "rung": rung,
        "shares_files": False,
        "hidden": tuple(hidden),
        "scratch": str(scratch),
        "binds": (*interpreter(), *binds),
    }
    return Isolation(**{**fields, **options})


def scratches(directory: Path) -> list[str]:
    """Scratch directories that are there."""
    place = directory / "containers"
    return [name for name in os.listdir(place) if not name.startswith(".")] if place.exists() else []


def mounted(directory: Path) -> list[str]:
    """Mounts below a directory that this process sees."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(directory) in line]
