"""Volumes in builds: one mount per volume, which all steps of a build share, and a commit at its end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kedge.exception import NotFoundError
from kedge.images.chamber import Overlay
from kedge.model.spec import ImageSpec, VolumeMount, VolumeRef
from kedge.server.build_volumes import BuildVolumes
from tests.images.kit import recipe, step

BASE = step("debian_slim")


class Shelf:
    """Volumes that write down what is asked of them."""

    def __init__(self) -> None:
        self.did: list[Any] = []

    def mount(self, ref: VolumeRef, environment: str, container: str, number: int) -> VolumeMount:
        if ref.name == "missing":
            raise NotFoundError("there is no volume 'missing'")
        self.did.append((ref.name, environment, "read-only" if ref.read_only else "writable", number))
        at = f"/{ref.name}/{number}"
        own = ("", "") if ref.read_only else (f"{at}/upper", f"{at}/work")
        return VolumeMount(target=ref.target, volume=f"vo-{ref.name}", lower=f"{at}/tree", upper=own[0], work=own[1])

    def ended(self, container: str) -> None:
        self.did.append("ended")

    async def settled(self, volume: str) -> None:
        self.did.append(f"settled {volume}")


def volume(target: str, name: str = "cache", **more: Any) -> dict[str, Any]:
    return {"target": target, "name": name, **more}


def seen(shelf: Shelf, spec: ImageSpec, fails: bool = False) -> dict[str, dict[str, Overlay]]:
    async def build() -> dict[str, dict[str, Overlay]]:
        async with BuildVolumes(shelf).mounted(spec) as found:
            if fails:
                raise RuntimeError("the build has failed")
            return found

    return asyncio.run(build())


def test_a_step_finds_what_one_before_it_has_written() -> None:
    shelf = Shelf()
    fills = step("run_function", volumes=[volume("/model", create=True, environment="dev")])
    goes_on = step("run_commands", volumes=[volume("/m", environment="dev")])
    looks = step("run_commands", volumes=[volume("/r", read_only=True, environment="dev")])
    found = seen(shelf, recipe(BASE, fills, goes_on, looks))
    written = Overlay(("/cache/0/tree",), "/cache/0/upper", "/cache/0/work")
    assert found == {
        "1": {"/model": written},
        "2": {"/m": written},
        "3": {"/r": Overlay(("/cache/0/upper", "/cache/0/tree"))},
    }
    assert shelf.did == [("cache", "dev", "writable", 0), "ended", "settled vo-cache"]


def test_what_nobody_writes_to_is_read_only() -> None:
    shelf = Shelf()
    both = step("run_commands", volumes=[volume("/a", read_only=True), volume("/b", "other", read_only=True)])
    assert seen(shelf, recipe(BASE, both))["1"] == {
        "/a": Overlay(("/cache/0/tree",)),
        "/b": Overlay(("/other/1/tree",)),
    }
    assert shelf.did[:2] == [("cache", "main", "read-only", 0), ("other", "main", "read-only", 1)]


def test_two_places_of_one_step_are_two_mounts_as_in_containers() -> None:
    found = seen(Shelf(), recipe(BASE, step("run_commands", volumes=[volume("/a"), volume("/b")])))["1"]
    assert found["/a"].upper != found["/b"].upper


def test_parts_of_a_volume_are_mounts_of_their_own() -> None:
    found = seen(Shelf(), recipe(BASE, step("run_commands", volumes=[volume("/a"), volume("/b", sub_path="b")])))["1"]
    assert found["/a"].upper != found["/b"].upper


def test_what_a_build_has_written_is_kept_where_it_fails() -> None:
    shelf = Shelf()
    with pytest.raises(RuntimeError):
        seen(shelf, recipe(BASE, step("run_function", volumes=[volume("/a")])), fails=True)
    assert shelf.did[1:] == ["ended", "settled vo-cache"]


def test_a_volume_that_is_not_there_ends_the_build_before_it_begins() -> None:
    shelf = Shelf()
    with pytest.raises(NotFoundError, match="there is no volume 'missing'"):
        seen(shelf, recipe(BASE, step("run_function", volumes=[volume("/a"), volume("/b", "missing")])))
    assert shelf.did[1:] == ["ended", "settled vo-cache"]


def test_an_image_without_volumes_asks_for_none() -> None:
    shelf = Shelf()
    assert seen(shelf, recipe(BASE, step("run_commands", commands=["true"]))) == {}
    assert shelf.did == ["ended"]
