"""Files of the caller that an image adds when a container starts: the binds that put them into its file system.

A directory is one bind where nothing else is. Where the image has a directory of that name, or something else goes into
it, its entries are added one by one, so that what is there stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from kedge.exception import InvalidError
from kedge.model.spec import Bind, LocalFiles

SHARED = frozenset(("/", "/root", "/home", "/tmp", "/usr", "/etc", "/opt", "/var", "/mnt", "/srv"))
"""Directories that every container has, and that are its own."""
AT_MOST = 2000
"""Binds of one step: each costs a container's start a few microseconds."""


def binds(mounts: Sequence[LocalFiles], layers: Sequence[str], others: Sequence[str]) -> Iterator[Bind]:
    """Later mounts win.

    Args:
        mounts: What is added.
        layers: Directories that make up the root of the image; none: it is the machine's own.
        others: Paths at which something else goes.
    """
    for number, files in enumerate(mounts):
        if files.is_file:
            yield Bind(_only(files.root), files.target)
            continue
        beside = [other for index, other in enumerate(mounts) if index != number]
        for count, bind in enumerate(_merged(files.root, files.target, _sharing(beside, layers, others))):
            if count == AT_MOST:
                raise InvalidError(
                    f"more than {AT_MOST} files would have to be added one by one to {files.target}, which the image "
                    "has: add them to a directory of their own, or with copy=True"
                )
            yield bind


def _sharing(beside: Sequence[LocalFiles], layers: Sequence[str], others: Sequence[str]) -> Callable[[str], bool]:
    """Whether something else than the files themselves is at a path, or below it."""
    roots = [root.rstrip("/") for root in layers or ("/",)]
    targets = [*others, *(files.target for files in beside)]

    def is_shared(place: str) -> bool:
        return (
            place in SHARED
            or any(_is_in(target, place) for target in targets)
            or any(os.path.isdir(root + place) for root in roots)
            or any(_has(files, place) for files in beside)
        )

    return is_shared


def _merged(source: str, target: str, is_shared: Callable[[str], bool]) -> Iterator[Bind]:
    if not is_shared(target):
        yield Bind(source, target)
        return
    for name in sorted(os.listdir(source)):
        path, place = os.path.join(source, name), os.path.join(target, name)
        if os.path.isdir(path):
            yield from _merged(path, place, is_shared)
        else:
            yield Bind(path, place)


def _only(root: str) -> str:
    return os.path.join(root, os.listdir(root)[0]) if os.path.isdir(root) else root


def _is_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")


def _has(files: LocalFiles, place: str) -> bool:
    """Whether `place` is a directory among these files."""
    return _is_in(place, files.target) and os.path.isdir(files.root + place[len(files.target.rstrip("/")) :])
