"""What there is on disk: `<KEDGE_HOME>/images`, shared by all servers of a KEDGE_HOME.

    layers/<id>/layer.json   written last; with venv/, fs/, lock.txt … beside it
    built/<im-id>.json       an image: its steps, and what containers are made of
    locks/<id>.txt           the packages of a Python step; stays when its layer is removed
    logs/<id>.log            the output of a step
    names/<name>             the image that is published under a name
    salts/<id>               what makes the ids of a forced build differ from those before
    turns/<id>               who builds a step holds this lock; who uses an image holds one on `turns/<im-id>`
    asked/                   which packages an index was asked for lately (`freshness`)
    cache/, bytecode/        what uv has fetched, and what Python has compiled: hard-linked into layers
    runtimes/<version>/      the container side of kedge for a version of Python

All of it is on one file system, because of the hard links.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

import msgspec
from msgspec import Struct

from kedge.model.spec import BuiltImage
from kedge.wire import removal

LAYER_FILE = "layer.json"

T = TypeVar("T")


class Layer(Struct, frozen=True, kw_only=True):
    """One step, built: what an image would be that ended here."""

    id: str = ""
    parent: str = ""
    kind: str = ""
    title: str = ""
    image: BuiltImage = BuiltImage(id="", python="", python_version="", packages="")
    """Everything up to here. Its id is empty."""
    cmd: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()
    """What runs commands of later steps; empty: /bin/sh -c."""
    lock: str = ""
    """File with all Python packages and their versions, as of the last Python step."""
    at: float = 0.0
    """Seconds since the epoch when it was built."""
    seconds: float = 0.0
    """How long that took."""


ROOT = Layer()
"""What the first step starts from: nothing."""


class Built(Struct, frozen=True, kw_only=True):
    """An image, as it is kept."""

    image: BuiltImage
    layers: tuple[str, ...]
    """Ids of its steps, the first one first."""
    titles: tuple[str, ...] = ()
    at: float = 0.0
    seconds: float = 0.0
    """How long the steps took that were not there before."""


class Store:
    """The directory. Cheap to make: nothing is read or written before it is asked for."""

    def __init__(self, home: Path) -> None:
        self.path = (home / "images").resolve()  # a link to another disk is followed once, for good
        self.layers = self.path / "layers"
        self.built = self.path / "built"
        self.locks = self.path / "locks"
        self.logs = self.path / "logs"
        self.salts = self.path / "salts"
        self.names = self.path / "names"
        self.turns = self.path / "turns"
        self.cache = self.path / "cache"
        self.bytecode = self.path / "bytecode"
        self.runtimes = self.path / "runtimes"

    # ------------------------------------------------------------ layers

    def directory(self, step: str) -> Path:
        return self.layers / step

    def layer(self, step: str) -> Layer | None:
        """None where it is not there, or not complete."""
        return _read(self.layers / step / LAYER_FILE, Layer)

    def keep_layer(self, layer: Layer) -> None:
        """From now on it is there."""
        _write(self.layers / layer.id / LAYER_FILE, layer)

    def lock_of(self, step: str) -> Path:
        return self.locks / f"{step}.txt"

    def log_of(self, step: str) -> Path:
        return self.logs / f"{step}.log"

    # ------------------------------------------------------------ images

    def image(self, image: str) -> Built | None:
        return _read(self.built / f"{image}.json", Built)

    def keep_image(self, built: Built) -> None:
        _write(self.built / f"{built.image.id}.json", built)

    def images(self) -> list[Built]:
        """All of them, the latest first."""
        found = [_read(path, Built) for path in _entries(self.built) if path.name.endswith(".json")]
        return sorted((built for built in found if built is not None), key=lambda built: -built.at)

    def named(self) -> dict[str, str]:
        """Names of published images → their ids."""
        return {unquote(path.name): path.read_text() for path in _entries(self.names) if path.name[0] != "."}

    def publish(self, name: str, image: str) -> None:
        _replace(self.names / quote(name, safe=""), image.encode())

    # ------------------------------------------------------------ forced builds

    def salt(self, natural: str) -> str:
        try:
            return (self.salts / natural).read_text()
        except OSError:
            return ""

    def keep_salt(self, natural: str, salt: str) -> None:
        _replace(self.salts / natural, salt.encode())

    # ------------------------------------------------------------ turns

    @contextmanager
    def turn(self, name: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Alone with `name` among all processes of this KEDGE_HOME. `waiting` is called where somebody else has it."""
        descriptor = self.open_turn(name)
        try:
            if waiting is not None:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def open_turn(self, name: str) -> int:
        """The lock file of `name`, to be locked and closed by the caller."""
        self.turns.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(self.turns / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def remove(path: Path) -> None:
    """A whole tree, also one that is read-only, or that somebody else is removing."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    while path.exists():
        try:
            _remove_tree(path)
        except FileNotFoundError:  # somebody else was quicker with a part of it
            continue


def _remove_tree(path: Path) -> None:
    try:
        for directory, _, _ in os.walk(path):  # and not its files: other images and uv's cache have them as well
            if not os.access(directory, os.W_OK):
                os.chmod(directory, 0o700)
        shutil.rmtree(path)
    except RecursionError:  # a step may have made directories of any depth
        removal.remove(str(path))
    except PermissionError:  # files of the users that a build without root has had
        from kedge.images import overlay

        overlay.remove_tree(path)


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None


def _write(path: Path, value: Struct) -> None:
    _replace(path, msgspec.json.encode(value))


def _replace(path: Path, data: bytes) -> None:
    """All of it or nothing, on disk before it has its name."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
