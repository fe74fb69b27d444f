"""What tests of images are made of: recipes, small wheels, and builds in a KEDGE_HOME of their own. No network."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kedge.images.builder import Builder, Progress, Request
from kedge.images.store import Built, Layer, Store
from kedge.model.spec import ImageSpec, ImageStep, LocalFiles


def step(kind: str, files: LocalFiles | None = None, **arguments: Any) -> ImageStep:
    """A step as the SDK makes it."""
    return ImageStep(kind, tuple(sorted((key, json.dumps(value)) for key, value in arguments.items())), files)


def recipe(*steps: ImageStep) -> ImageSpec:
    return ImageSpec(steps)


def wheel(
    directory: Path, name: str, version: str, *needs: str, code: str = "", scripts: Mapping[str, str] | None = None
) -> None:
    """A wheel with one module, whose VERSION is its version."""
    directory.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}/__init__.py": f"VERSION = {version!r}\n{code}",
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if scripts:
        files[f"{info}/entry_points.txt"] = "[console_scripts]\n" + "".join(
            f"{script} = {target}\n" for script, target in scripts.items()
        )
    record = "".join(f"{path},{_digest(text)},{len(text)}\n" for path, text in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def _digest(text: str) -> str:
    raw = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
    return "sha256=" + raw.decode().rstrip("=")


class Site:
    """A KEDGE_HOME and a shelf of wheels. Builds run in this process, and see no index."""

    def __init__(self, path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = path / "home"
        self.wheels = path / "wheels"
        self.store = Store(self.home)
        self.events: list[Progress] = []
        self.wheels.mkdir()
        self.store.path.mkdir(parents=True)
        for name in ("bytecode", "runtimes"):  # compiled once for all tests
            (shared / name).mkdir(exist_ok=True)
            (self.store.path / name).symlink_to(shared / name)
        for name, value in (
            ("PIP_NO_INDEX", "1"),
            ("UV_FIND_LINKS", str(self.wheels)),
            ("PIP_CONFIG_FILE", "/dev/null"),
        ):
            monkeypatch.setenv(name, value)
        for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
            monkeypatch.delenv(name, raising=False)

    def wheel(self, name: str, version: str, *needs: str, **further: Any) -> None:
        wheel(self.wheels, name, version, *needs, **further)

    def build(self, *steps: ImageStep, **wishes: Any) -> Built:
        """Builds, and keeps what was told in `events`."""
        self.events.clear()
        request = Request(home=str(self.home), image=recipe(*steps), **wishes)
        return Builder(request, self.events.append).build()

    def layer(self, built: Built, number: int = -1) -> Layer:
        layer = self.store.layer(built.layers[number])
        assert layer is not None
        return layer

    def states(self) -> list[tuple[str, int]]:
        """(state, step) of everything but output."""
        return [(event.state, event.step) for event in self.events if event.state != "output"]

    def site_packages(self, built: Built) -> Path:
        return next(Path(built.image.packages).glob("lib/python*/site-packages"))

    def files(self, name: str, **contents: str) -> LocalFiles:
        """Files of a caller, bound: `a__b` is the file `a.b`."""
        root = self.home.parent / "bound" / name
        root.mkdir(parents=True)
        for key, text in contents.items():
            (root / key.replace("__", ".")).write_text(text)
        return LocalFiles(_digest("".join(contents.values())), str(root))
