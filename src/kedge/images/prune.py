"""What images there are, what they have said, and removing those that nobody uses. Works without a server."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

from kedge.exception import ConflictError, NotFoundError
from kedge.images import bytecode, debian, trees, uvtool
from kedge.images.builder import BUILDING, RUNTIMES
from kedge.images.running import inherited
from kedge.images.store import Built, Store, remove

CACHE_S = 600.0


def listed(store: Store, used: Collection[str] = ()) -> list[dict[str, Any]]:
    """All images, the latest first."""
    names = store.named()
    return [
        {
            "id": built.image.id,
            "steps": list(built.titles),
            "python": built.image.python_version,
            "built_at": built.at,
            "seconds": built.seconds,
            "size_bytes": sum(trees.size_of(store.directory(layer)) for layer in built.layers),
            "used": built.image.id in used,
            "names": [name for name, image in names.items() if image == built.image.id],
            "packages": _packages(store, built),
        }
        for built in store.images()
    ]


def named(store: Store, text: str) -> Built:
    """The image with this id, or the only one whose id begins so. NotFoundError where there is none."""
    wanted = text if text.startswith("im-") else f"im-{text}"
    found = [built for built in store.images() if built.image.id.startswith(wanted)]
    exact = [built for built in found if built.image.id == wanted]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        raise NotFoundError(f"{text!r} is the beginning of {len(found)} images; write more of the id")
    raise NotFoundError(f"there is no image {text!r}; `kedge image list` shows all")


def log_of(store: Store, image: str) -> str:
    """The output of all steps of an image, in their order; also of a step that has failed, by its id."""
    try:
        built = named(store, image)
    except NotFoundError:
        path = store.log_of(image)
        if "/" in image or not path.is_file():
            raise
        return path.read_text("utf-8", "replace")
    parts = []
    for number, (layer, title) in enumerate(zip(built.layers, built.titles, strict=False), 1):
        parts.append(f"== step {number} of {len(built.layers)}: {title}\n")
        try:
            parts.append(store.log_of(layer).read_text("utf-8", "replace"))
        except OSError:
            parts.append("(its log has been removed)\n")
    return "".join(parts)


def sweep(store: Store) -> None:
    """Removes what builds have left behind that were killed."""
    for directory in _entries(store.layers):
        if store.layer(directory.name) is None:
            turn = store.open_turn(directory.name)
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if store.layer(directory.name) is None:
                    remove(directory)
            except BlockingIOError:
                continue  # it is being built
            finally:
                os.close(turn)


def prune(store: Store, used: Collection[str], *, cache: bool = False) -> dict[str, Any]:
    """Removes images that are not in `used`, have no name and are in no server's use, then all layers, logs and
    compiled files that no image needs. With `cache` also what uv keeps and no environment has. Locks stay: a later
    build gives the same.

    Gives {"images": n, "layers": n, "freed_bytes": n, "kept": n}."""
    store.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    alone = store.open_turn(BUILDING)
    before = _free(store.path)
    try:
        try:
            fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError("an image is being built at this moment; prune when that is done") from None
        spared = {*used, *store.named().values()}
        unused = [built.image.id for built in store.images() if built.image.id not in spared]
        gone = [image for image in unused if _remove_image(store, image)]
        kept = store.images()
        layers = _remove_layers(store, {layer for built in kept for layer in built.layers})
        debian.sweep(store.path, {path for built in kept for path in built.image.layers}, everything=cache)
        bytecode.sweep(store.bytecode)
        if cache:
            _prune_cache(store)
    finally:
        os.close(alone)
    return {
        "images": len(gone),
        "layers": layers,
        "kept": len(kept),
        "freed_bytes": max(_free(store.path) - before, 0),
    }


def _remove_image(store: Store, image: str) -> bool:
    """False where a server uses it."""
    descriptor = store.open_turn(image)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (store.built / f"{image}.json").unlink(missing_ok=True)
        (store.turns / image).unlink(missing_ok=True)
        store.log_of(image).unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _remove_layers(store: Store, needed: Collection[str]) -> int:
    """Also those that were never finished."""
    count = 0
    for directory in _entries(store.layers):
        if directory.name not in needed:
            (directory / "layer.json").unlink(missing_ok=True)  # from now on it is rubbish, whatever happens
            remove(directory)
            count += 1
    for path in _entries(store.logs):
        if path.stem not in needed and not path.stem.startswith("im-") and path.stem != RUNTIMES:
            path.unlink(missing_ok=True)
    for path in _entries(store.turns):
        if path.name not in needed and not path.name.startswith(("im-", "runtime-")) and path.name != BUILDING:
            path.unlink(missing_ok=True)
    return count


def _prune_cache(store: Store) -> None:
    variables = uvtool.environment(inherited(os.environ), store.cache)
    subprocess.run(
        [uvtool.program(), "cache", "clean" if not any(store.images()) else "prune", "--quiet"],
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=CACHE_S,
        check=False,
    )


def _packages(store: Store, built: Built) -> int:
    """How many packages its environment has."""
    layer = store.layer(built.layers[-1]) if built.layers else None
    try:
        return len(Path(layer.lock).read_text().splitlines()) if layer is not None and layer.lock else 0
    except OSError:
        return 0


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _free(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
