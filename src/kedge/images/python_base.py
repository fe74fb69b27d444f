"""The base that recipes begin with: an interpreter of the asked version, and an empty environment for it."""

from __future__ import annotations

import os
from pathlib import Path

from kedge.images import interpreters
from kedge.images.environments import Environment
from kedge.images.interpreters import Interpreter
from kedge.images.steps import Machine, Workspace
from kedge.images.store import Layer

_OF_THE_SYSTEM = ("/", "/usr", "/usr/local")
"""Installations that every root has of its own."""


def debian_slim(workspace: Workspace) -> Layer:
    """Python and pip, on top of the machine's own files. A Debian root comes below as soon as a step needs one."""
    version = workspace.argument("python_version") or interpreters.own_version()
    return with_python(workspace, version)


def with_python(workspace: Workspace, version: str) -> Layer:
    """The parent layer with Python of this version, and an empty environment."""
    interpreter = interpreters.find(version)
    workspace.say(f"Python {interpreter.version} at {interpreter.path}")
    environment = Environment(workspace, Machine())
    environment.create(interpreter.path)
    add_pip(environment, interpreter)
    lock = environment.finish()
    return workspace.layer(
        python=str(environment.python),
        python_version=interpreter.minor,
        packages=str(environment.path),
        package_layers=(),
        visible=visible(interpreter),
        lock=lock,
    )


def visible(interpreter: Interpreter) -> tuple[str, ...]:
    """The directories of an interpreter that a root has to show."""
    places = dict.fromkeys([interpreter.prefix, os.path.realpath(interpreter.prefix)])
    return tuple(place for place in places if place not in _OF_THE_SYSTEM)


def add_pip(environment: Environment, interpreter: Interpreter) -> None:
    """pip comes with Python, as a wheel: programs may call it in `run_commands`."""
    for directory in (
        Path(interpreter.prefix) / "lib" / f"python{interpreter.minor}" / "ensurepip" / "_bundled",
        Path("/usr/share/python-wheels"),
    ):
        if any(directory.glob("pip-*.whl")):
            environment.uv(
                [
                    "pip",
                    "install",
                    "--no-progress",
                    "--python",
                    str(environment.python),
                    "--no-index",
                    "--find-links",
                    str(directory),
                    "pip",
                ]
            )
            return


HANDLERS = {"debian_slim": debian_slim}
