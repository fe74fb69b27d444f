"""Compiled modules, made once per source file and Python: `images/bytecode/<tag>/…`, hard-linked into environments.

What Python has compiled for one environment serves every other one that has the same source. The same means the digest
that the package's RECORD gives: time and size, by which Python compares, are equal in two versions of a package more
often than one would think. They are compared as well, since Python would not take the file otherwise.
"""

from __future__ import annotations

import csv
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from kedge.images.trees import link_file

_HEADER = 16
_COMPILE = """\
import compileall, multiprocessing, os, sys
def do(names):
    for name in names:
        compileall.compile_file(name, quiet=2)
if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        names = file.read().split("\\0")
    parts = [names[i : i + 25] for i in range(0, len(names), 25)]
    count = min(os.cpu_count() or 1, len(parts), 16)
    if count == 1:
        do(names)
    else:
        with multiprocessing.get_context("fork").Pool(count) as pool:
            pool.map(do, parts, chunksize=1)
"""

Run = Callable[[Sequence[str]], None]
"""Runs a command to its end."""


def compile_packages(packages: Path, python: str, tag: str, cache: Path, scratch: Path, run: Run) -> int:
    """Compiles all modules of a site-packages directory without compiled ones, and says how many were compiled anew."""
    missing: list[tuple[Path, Path, Path | None]] = []
    digests = recorded(packages)
    for directory, names, files in os.walk(packages):
        names[:] = [name for name in names if name != "__pycache__"]
        compiled = Path(directory) / "__pycache__"
        made = False
        for name in files:
            if not name.endswith(".py"):
                continue
            source, target = Path(directory) / name, compiled / f"{name[:-3]}.{tag}.pyc"
            digest = digests.get(str(source.relative_to(packages)))
            status = source.stat()
            # The time as well: empty modules, for one, are all the same.
            kept = cache / tag / digest[:2] / f"{digest}-{int(status.st_mtime):x}.pyc" if digest else None
            if kept is not None and fits(kept, status):
                if not made:
                    compiled.mkdir(exist_ok=True)
                    made = True
                link_file(kept, target)
            else:
                missing.append((source, target, kept))
    if missing:
        _compile([str(source) for source, _, _ in missing], python, scratch, run)
        for _, target, kept in missing:
            if kept is not None and target.exists():  # a template for another language version cannot be compiled
                kept.parent.mkdir(parents=True, exist_ok=True)
                link_file(target, kept)
    return len(missing)


def recorded(packages: Path) -> dict[str, str]:
    """The digests of installed files, by their paths in site-packages, as the packages themselves give them."""
    found: dict[str, str] = {}
    for record in packages.glob("*.dist-info/RECORD"):
        with record.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.reader(file):
                if len(row) >= 2 and row[0].endswith(".py") and row[1].startswith("sha256="):
                    found[row[0]] = row[1][7:]
    return found


def fits(compiled: Path, source: os.stat_result) -> bool:
    """Whether this compiled file was made of a source file of this time and size.

    Anything else than that counts as not: Python would make it anew as well."""
    try:
        with compiled.open("rb") as file:
            header = file.read(_HEADER)
    except OSError:
        return False
    if len(header) < _HEADER:
        return False
    flags, time, size = struct.unpack("<4xIII", header)
    return bool(flags == 0 and time == int(source.st_mtime) & 0xFFFFFFFF and size == source.st_size & 0xFFFFFFFF)


def sweep(cache: Path, remove: Callable[[str], None] = os.unlink) -> None:
    """Removes what no environment has any more."""
    for directory, _, names in os.walk(cache, topdown=False):
        for name in names:
            path = os.path.join(directory, name)
            if os.lstat(path).st_nlink == 1:
                remove(path)
        if directory != str(cache) and not os.listdir(directory):
            os.rmdir(directory)


def _compile(sources: list[str], python: str, scratch: Path, run: Run) -> None:
    """A module that does not compile is left alone: whoever imports it hears why."""
    names = scratch / "modules"
    names.write_text("\0".join(sources), "utf-8")
    run([python, "-I", "-S", "-c", _COMPILE, str(names)])
    names.unlink()
