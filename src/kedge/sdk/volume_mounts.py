"""Volumes in declarations: `volumes={"/path": volume}` checked, and made before an app runs."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from kedge.exception import InvalidError
from kedge.model.protocol import VolumeRequested
from kedge.model.spec import AppSpec, VolumeRef
from kedge.sdk.volume import Volume

if TYPE_CHECKING:
    from kedge.sdk.client import Client


def references(what: str, value: Any) -> tuple[VolumeRef, ...]:
    """The checked `volumes={"/path": volume}` of a declaration, in the order of their paths."""
    if not isinstance(value, Mapping):
        raise InvalidError(f"{what} must be a dict such as {{'/data': kedge.Volume.from_name('data')}}, not {value!r}")
    found: dict[str, VolumeRef] = {}
    for path, volume in value.items():
        target = _target(what, path)
        if not isinstance(volume, Volume):
            raise InvalidError(
                f"{what}: what is mounted at {target!r} must be a kedge.Volume, such as "
                f"kedge.Volume.from_name('NAME'), not {volume!r}"
            )
        if target in found:
            raise InvalidError(f"{what}: two volumes are mounted at {target!r}; give one of them another path")
        found[target] = volume.ref_at(target)
    _check_nesting(what, found)
    return tuple(found[target] for target in sorted(found))


def _check_nesting(what: str, targets: Iterable[str]) -> None:
    for target in targets:
        outer = next((other for other in targets if target.startswith(f"{other}/")), None)
        if outer is not None:
            raise InvalidError(
                f"{what}: {target!r} lies inside of {outer!r}, where another volume is mounted; mount them beside each "
                "other"
            )


def merged(what: str, first: tuple[VolumeRef, ...], then: tuple[VolumeRef, ...]) -> tuple[VolumeRef, ...]:
    """An app's volumes and a function's own, which win at the same path."""
    both = {ref.target: ref for ref in (*first, *then)}
    _check_nesting(what, both)
    return tuple(both[target] for target in sorted(both))


def provide(client: Client, spec: AppSpec) -> None:
    """Makes sure that the volumes of an app are there before it starts: those with `create_if_missing` are made.
    NotFoundError names the first that is missing."""
    asked: dict[VolumeRef, None] = {}
    for function in spec.functions:
        for ref in function.volumes:
            asked[replace(ref, target="", read_only=False, sub_path="")] = None
    for ref in asked:
        where = ref.environment or spec.environment_name
        client.request(partial(VolumeRequested, name=ref.name, id=ref.id, environment=where, create=ref.create))


def _target(what: str, path: Any) -> str:
    if not isinstance(path, (str, os.PathLike)) or not str(path).startswith("/"):
        raise InvalidError(f"{what}: {str(path)!r} must be an absolute path in the container, such as '/data'")
    text = str(path)
    if "\0" in text or ".." in text.split("/"):
        raise InvalidError(f"{what}: {text!r} cannot be a path to mount at; write it without '..'")
    target = posixpath.normpath(text).replace("//", "/")
    if target in _TAKEN or target.split("/")[1] in ("proc", "sys", "dev"):
        raise InvalidError(f"{what}: nothing can be mounted at {target!r}; choose a path of its own, such as '/data'")
    return target


_TAKEN = ("/", "/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/tmp", "/run", "/var", "/root")
"""What containers themselves live on: a volume there would hide it."""
