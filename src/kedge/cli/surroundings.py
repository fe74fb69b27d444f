"""What the code of a container finds around it: interpreter, variables, directory. For commands that run beside it.

`variables_of` is to agree with what a container does with its launch (`container.loader.settle`, `engines.threads`).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from kedge.cli import entering

Facts = dict[str, Any]

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit codes as shells give them."""
_LIBRARY = re.compile(r"(.*/)?(site-packages|dist-packages|lib-dynload|python\d[\d.]*(\.zip)?)")
"""Entries of a path that an interpreter has by itself."""
_ALIASED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "aliased")
"""On the path of a program, lets `import modal` mean kedge there as it does in containers."""
_OF_TERMINAL = ("TERM", "COLORTERM", "LINES", "COLUMNS", "SSH_TTY", "TERM_PROGRAM")


def variables_of(launch: Facts, container: Facts | None, own: Mapping[str, str]) -> dict[str, str]:
    """The variables of a command.

    Args:
        launch: What the container was started with.
        container: The container, if it is there and not only its function.
        own: Variables of this process: what belongs to its terminal is taken from them.
    """
    from kedge.engines import threads

    found = threads.sized(launch["variables"], launch["cpu"])
    found |= {name: own[name] for name in _OF_TERMINAL if name in own}
    found |= launch.get("secrets") or {}
    found |= launch["env"]
    found |= {"KEDGE_IS_REMOTE": "1", "KEDGE_ENVIRONMENT": launch["environment"]}
    if container is not None:
        found["KEDGE_CONTAINER_ID"] = container["container"]
        if container["devices"]:
            found["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, container["devices"]))
        found |= container.get("device_variables") or {}
    if launch["alias_modal"]:
        found["MODAL_IS_REMOTE"] = "1"
        if container is not None:
            found["MODAL_TASK_ID"] = container["container"]
    found["PATH"] = os.pathsep.join([os.path.dirname(launch["python"]), found.get("PATH") or os.defpath])
    modules = [entry for entry in (launch["code"], *launch["sys_path"]) if entry and not _LIBRARY.fullmatch(entry)]
    if launch["alias_modal"]:
        modules.append(_ALIASED)
    before = [entry for entry in found.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if modules or before:
        found["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*modules, *before]))
    return found


def become(command: Sequence[str], launch: Facts, container: Facts | None) -> NoReturn:
    """Replaces this process by a command: so its terminal, its signals and its exit code are as they should be."""
    variables = variables_of(launch, container, os.environ)
    directory = launch["directory"]
    if container is not None and container["process"]:
        entering.enter(container["process"])
    try:
        os.chdir(directory)
    except OSError as error:
        click.echo(f"kedge: running in {os.getcwd()}: cannot enter {directory}: {error.strerror}", err=True)
    program = shutil.which(command[0], path=variables["PATH"])
    if program is None:
        click.echo(f"Error: there is no command {command[0]!r} on the path of the container", err=True)
        sys.exit(NOT_FOUND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        os.execve(program, list(command), variables)
    except OSError as error:
        click.echo(f"Error: {program} cannot be run: {error.strerror}", err=True)
        sys.exit(NOT_EXECUTABLE)
