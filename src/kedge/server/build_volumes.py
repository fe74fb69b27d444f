"""Volumes in builds of images: each is mounted once per build, so that a step finds what those before it have written.

That is committed when the build has ended, whether it succeeded or not: what was downloaded need not be again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec

from kedge.images.chamber import Overlay
from kedge.images.plan import argument
from kedge.model.spec import ImageSpec, VolumeMount, VolumeRef

Seen = dict[str, dict[str, Overlay]]
"""What steps see, by their index in the recipe and by the path."""
Key = tuple[VolumeRef, int]
"""A volume without where and how it is seen, and the how manieth time that one step has it."""


class Volumes(Protocol):
    """They give builds what they give containers."""

    def mount(self, ref: VolumeRef, environment: str, container: str, number: int) -> VolumeMount: ...

    def ended(self, container: str) -> None: ...

    async def settled(self, volume: str) -> None: ...


class BuildVolumes:
    """The builds of one server."""

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes
        self._count = 0

    @asynccontextmanager
    async def mounted(self, spec: ImageSpec) -> AsyncIterator[Seen]:
        """What the steps of one build see, for as long as it takes. NotFoundError where there is no such volume."""
        wanted = wishes(spec)
        self._count += 1
        name = f"build-{os.getpid()}-{self._count}"
        mounts: dict[Key, VolumeMount] = {}
        try:
            for ref, key in ((ref, key) for step in wanted.values() for ref, key in step):
                if key not in mounts:
                    first = msgspec.structs.replace(ref, read_only=not _is_written(key, wanted))
                    mounts[key] = self._volumes.mount(first, ref.environment or "main", name, len(mounts))
            yield {index: {ref.target: _shown(ref, mounts[key]) for ref, key in step} for index, step in wanted.items()}
        finally:
            self._volumes.ended(name)
            for volume in {mount.volume for mount in mounts.values()}:
                await self._volumes.settled(volume)  # what starts from the image finds what the build has written


def wishes(spec: ImageSpec) -> dict[str, list[tuple[VolumeRef, Key]]]:
    """The volumes of each step that has some."""
    found: dict[str, list[tuple[VolumeRef, Key]]] = {}
    for index, step in enumerate(spec.steps):
        times: Counter[VolumeRef] = Counter()
        for ref in msgspec.convert(argument(step, "volumes") or [], list[VolumeRef]):
            volume = msgspec.structs.replace(ref, target="", read_only=False, create=False)
            found.setdefault(str(index), []).append((ref, (volume, 0 if ref.read_only else times[volume])))
            times[volume] += not ref.read_only
    return found


def _is_written(key: Key, wanted: dict[str, list[tuple[VolumeRef, Key]]]) -> bool:
    return any(other == key and not ref.read_only for step in wanted.values() for ref, other in step)


def _shown(ref: VolumeRef, mount: VolumeMount) -> Overlay:
    if not mount.upper:
        return Overlay((mount.lower,))
    if ref.read_only:
        return Overlay((mount.upper, mount.lower))
    return Overlay((mount.lower,), mount.upper, mount.work)
