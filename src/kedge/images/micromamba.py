"""Environments of conda packages, made by micromamba, mamba or conda, whichever this machine has."""

from __future__ import annotations

import os
import shutil

from kedge.exception import ImageBuildError, InvalidError
from kedge.images import interpreters
from kedge.images.running import inherited
from kedge.images.steps import Handler, Workspace
from kedge.images.store import Layer

_PROGRAMS = ("micromamba", "mamba", "conda")
_CHANNEL = "conda-forge"


def micromamba(workspace: Workspace) -> Layer:
    version = workspace.argument("python_version") or interpreters.own_version()
    return _environment(workspace, [f"python={version}", "pip"], [_CHANNEL], version)


def micromamba_install(workspace: Workspace) -> Layer:
    image = workspace.parent.image
    if not os.path.isdir(os.path.join(image.packages, "conda-meta")):
        raise InvalidError(
            "Image.micromamba_install adds to an environment of conda packages; the recipe begins with "
            "Image.micromamba()"
        )
    packages = workspace.texts("packages")
    for name in workspace.texts("spec_file"):
        packages += ["--file", str(workspace.file(name))]
    if not packages:
        raise InvalidError("Image.micromamba_install names no package: write micromamba_install('cudatoolkit', …)")
    before = workspace.directory / "before.txt"
    listed = explicit(image.packages)
    before.write_text("".join(f"{line}\n" for line in ["@EXPLICIT", *listed]))
    return _environment(
        workspace, packages, workspace.texts("channels") or [_CHANNEL], image.python_version, str(before)
    )


def explicit(environment: str) -> list[str]:
    """The addresses of all packages of an environment."""
    import msgspec

    directory = os.path.join(environment, "conda-meta")
    found = []
    for name in sorted(os.listdir(directory)):
        if name.endswith(".json"):
            with open(os.path.join(directory, name), "rb") as file:
                found.append(str(msgspec.json.decode(file.read())["url"]))
    return found


def program() -> str:
    for name in _PROGRAMS:
        if path := shutil.which(name):
            return path
    raise ImageBuildError(
        f"Image.micromamba needs one of {', '.join(_PROGRAMS)} on the PATH of the server, and none is there; it is one "
        "file: see https://mamba.readthedocs.io, or use Image.debian_slim() with pip_install"
    )


def _environment(
    workspace: Workspace, packages: list[str], channels: list[str], version: str, before: str = ""
) -> Layer:
    """A new environment: what was there before, then more. Files are linked from the package cache."""
    path, tool = str(workspace.directory / "venv"), program()
    variables = {**inherited(os.environ), **workspace.variables()}
    chosen = [word for channel in channels for word in ("--channel", channel)]
    if before:
        words = [tool, "create", "--yes", "--quiet", "--prefix", path, "--file", before]
        workspace.run(words, variables=variables, shown=f"{os.path.basename(tool)} create")
    action = "install" if before else "create"
    words = [tool, action, "--yes", "--quiet", "--prefix", path, *chosen, *packages]
    workspace.run(words, variables=variables, shown=f"{os.path.basename(tool)} {action} {' '.join(packages)}")
    lock = workspace.directory / "lock.txt"
    lock.write_text("".join(f"{address}\n" for address in explicit(path)))
    return workspace.layer(
        python=f"{path}/bin/python", python_version=version, packages=path, package_layers=(), lock=str(lock)
    )


HANDLERS: dict[str, Handler] = {"micromamba": micromamba, "micromamba_install": micromamba_install}
