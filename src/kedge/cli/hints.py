"""What to write instead, where code has missed what an image decides about, or has reached a limit of its function: a
sentence below its traceback."""

from __future__ import annotations

import errno
import importlib.machinery
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from kedge.sdk.tracebacks import REMOTE, describe

if TYPE_CHECKING:
    from kedge.sdk.app import App

_STARTS_A_PROGRAM = "_execute_child"
"""The function of `subprocess` whose FileNotFoundError is about a command."""
_INSTALLED = ("site-packages", "dist-packages")


def on_import(error: BaseException) -> str:
    """For an import of the user's file that failed on this machine; empty where there is nothing to say."""
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
        return _file(error.filename, directory)
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


def _is_own(name: str, path: Iterable[str]) -> bool:
    """Whether it is a module of the user's on this machine, rather than an installed one."""
    own = [entry for entry in path if not any(part in _INSTALLED for part in entry.split(os.sep))]
    return name not in sys.stdlib_module_names and importlib.machinery.PathFinder.find_spec(name, own) is not None


def _top(name: str) -> str:
    return name.partition(".")[0]
