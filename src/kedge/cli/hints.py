"""What to write instead, where code has missed what an image decides about, or has reached a limit of its function: a
sentence below its traceback."""

from __future__ import annotations

import errno
import importlib.machinery
import os
import re
import sys
import traceback
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from kedge.model.spec import HOME
from kedge.sdk.tracebacks import REMOTE, describe
from kedge.wire.source import DIGEST

if TYPE_CHECKING:
    from kedge.sdk.app import App

_STARTS_A_PROGRAM = "_execute_child"
"""The function of `subprocess` whose FileNotFoundError is about a command."""
_OF_CODE = re.compile(rf"(?:{HOME}|.*/code/{DIGEST.pattern})/(?P<relative>.+)", re.DOTALL)
"""Where containers with files of their own have code, and data beside it."""
_INSTALLED = ("site-packages", "dist-packages")


def on_import(error: BaseException) -> str:
    """For an import of the user's file that failed on this machine; empty where there is nothing to say."""
    if isinstance(error, ImportError) and "no known parent package" in str(error):
        directory, module = _as_module(traceback.extract_tb(error.__traceback__)[-1].filename)
        return f"It belongs to a package: write `-m {module}` instead of the file, in the directory {directory}."
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    return (
        f"Where {_top(error.name)} is in an image only: import it inside of the functions that use it, or in a block "
        "`with image.imports():`."
    )


def on_failure(error: BaseException | None, app: App) -> str:
    """For a run or a deploy that failed; empty where no container missed anything or reached a limit."""
    if error is None:
        return ""
    specs = [function.spec for function in app.registered_functions.values()]
    specs += [cls.spec for cls in app.registered_classes.values()]
    if limit := too_large(error, {spec.resources.ephemeral_disk for spec in specs} - {None}):
        return limit
    if not any(spec.image.steps for spec in specs):
        return ""
    return missed(error, os.getcwd(), [entry for entry in sys.path if entry])


def too_large(error: BaseException, limits: Collection[int | None]) -> str:
    """For a file that got as large as the function's disk; `limits` are those that the functions have, in MiB."""
    frames = describe(error)[1]
    remote = bool(frames) and frames[-1][0].startswith(REMOTE)
    if not remote or not limits or not isinstance(error, OSError) or error.errno != errno.EFBIG:
        return ""
    if len(limits) > 1:
        return "No file of a container gets larger than the ephemeral_disk=… (MiB) of its function: give it more there."
    (limit,) = limits
    return f"No file of a container gets larger than its function's ephemeral_disk={limit} (MiB): give it more there."


def missed(error: BaseException, directory: str, path: Sequence[str]) -> str:
    """What a container of an image has missed, and which step of an image brings it.

    Args:
        error: What came back from the container.
        directory: Where files with a relative name are looked for on this machine.
        path: Where modules are.
    """
    frames = describe(error)[1]
    if not frames or not frames[-1][0].startswith(REMOTE):
        return ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _module(_top(error.name), path)
    if isinstance(error, FileNotFoundError) and isinstance(error.filename, str) and error.filename:
        if frames[-1][2] == _STARTS_A_PROGRAM and os.sep not in error.filename:
            return (
                f"Where the function has an image, that has no command {error.filename!r}: .apt_install(…) brings what "
                "a Debian package has."
            )
        return _file(error.filename, directory) or _beside(error.filename, path)
    return ""


def _module(name: str, path: Sequence[str]) -> str:
    if _is_own(name, path):
        step = f".add_local_python_source({name!r})"
        return (
            f"{name} is on this machine, and not in the container: where the function has an image, add {step} to it."
        )
    return (
        f"Where the function has an image, {name} is not in it: add .pip_install({name!r}), or the name that the "
        "package has there."
    )


def _file(name: str, directory: str) -> str:
    here = os.path.join(directory, name)
    if not os.path.exists(here):
        return ""
    step = "add_local_dir" if os.path.isdir(here) else "add_local_file"
    return (
        f"{name} is on this machine: containers of an image do not see it. Add .{step}({name!r}, '/…') to the image, "
        "and read it from there; or keep it in a volume."
    )


def _beside(name: str, path: Iterable[str]) -> str:
    """For a file that code has looked for beside itself, where the container has the code."""
    found = _OF_CODE.fullmatch(name)
    if found is None:
        return ""
    relative = found["relative"]
    top = relative.partition("/")[0]
    for place in _own(path):
        if os.path.exists(os.path.join(place, relative)):
            step = "add_local_dir" if os.path.isdir(os.path.join(place, top)) else "add_local_file"
            return (
                f"{relative} is beside your code on this machine, and not in the container: add "
                f".{step}({os.path.join(place, top)!r}, {f'{HOME}/{top}'!r}) to the image."
            )
    return ""


def _is_own(name: str, path: Iterable[str]) -> bool:
    """Whether it is a module of the user's on this machine, rather than an installed one."""
    spec = importlib.machinery.PathFinder.find_spec
    return name not in sys.stdlib_module_names and spec(name, _own(path)) is not None


def _own(path: Iterable[str]) -> list[str]:
    return [entry for entry in path if not any(part in _INSTALLED for part in entry.split(os.sep))]


def _as_module(file: str) -> tuple[str, str]:
    """The directory that a file of a package can be imported from, and its name there."""
    directory, name = os.path.split(os.path.abspath(file))
    parts = [os.path.splitext(name)[0], os.path.basename(directory)]
    while os.path.isfile(os.path.join(directory := os.path.dirname(directory), "__init__.py")):
        parts.append(os.path.basename(directory))
    return directory, ".".join(reversed(parts))


def _top(name: str) -> str:
    return name.partition(".")[0]
