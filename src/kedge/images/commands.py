"""Steps that change the root of an image: Debian packages, shell commands, copied files.

What commands write becomes the step's own two directories: `fs/` over the root, `venv/` over the Python environment.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from kedge.exception import ImageBuildError, InvalidError
from kedge.images import calling, debian, overlay, runtime
from kedge.images.chamber import Bound
from kedge.images.overlay import TOOLS, Place
from kedge.images.running import CommandFailed
from kedge.images.steps import Handler, Workspace
from kedge.images.store import Layer

SHELL = ("/bin/sh", "-c")
COPIED = "/run/kedge-copied"
"""Where commands find the files that a step copies."""

_CODE, _ORDER, _CALLING = "/run/kedge-code", "/run/kedge-order.json", "/run/kedge-calling.py"

_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*(:[a-z0-9-]+)?([=/][A-Za-z0-9.+:~_-]+)?[+-]?")
COPY_CONTENTS = (
    'mkdir -p "$2" && if tar --version 2>/dev/null | grep -q GNU; '
    'then tar -C "$1" --mode=u+w -c . | tar -C "$2" -x --no-same-owner --no-overwrite-dir --keep-directory-symlink; '
    'else cp -r "$1"/. "$2"/; fi'
)
"""Contents of $1 into the directory $2. What is there keeps its modes, and links to directories stay links."""
COPY_FILE = 'mkdir -p "$(dirname "$2")" && cp -d --preserve=mode,timestamps "$1" "$2" && chmod u+w "$2"'
_INSTALL = (
    "apt-get update -q -o Acquire::Retries=3 && "
    'apt-get install -q -y --no-install-recommends -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 -- "$@" && '
    "rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb"
)
_UNKNOWN = re.compile(
    r"E: (?:Unable to locate package (?P<name>\S+)"
    r"|Package '(?P<virtual>[^']+)' has no installation candidate"
    r"|(?:Version|Release) '[^']+' for '(?P<version>[^']+)' was not found)"
)
_PIP = re.compile(r"(^|[\s;&|(/])pip3?(\.\d+)?(\s|$)|-m\s+pip\b")


# ---------------------------------------------------------------- steps


def apt_install(workspace: Workspace) -> Layer:
    packages = workspace.texts("packages")
    for package in packages:
        if not _PACKAGE.fullmatch(package):
            raise InvalidError(f"Image.apt_install takes names of Debian packages such as 'ffmpeg', not {package!r}")
    if workspace.host_apt:
        return _of_the_host(workspace, packages)
    if not packages:
        return workspace.layer()
    with changed(workspace) as (place, layer):
        words = place.command(["/bin/sh", "-c", _INSTALL, "sh", *packages])
        shown = f"apt-get install {' '.join(packages)}"
        try:
            workspace.run(words, variables=place.variables(workspace.variables()), shown=shown)
        except CommandFailed as failure:
            raise _explained(failure) from None
    return workspace.layer(**layer)


def run_commands(workspace: Workspace) -> Layer:
    check_wishes(workspace)
    commands = workspace.texts("commands")
    shell = workspace.parent.shell or SHELL
    with changed(workspace) as (place, layer):
        variables = place.variables(workspace.variables())
        for command in commands:
            add_pip(workspace, place, command)
            words = place.command([*shell, command], workspace.parent.image.directory)
            workspace.run(words, variables=variables, shown=command)
    return workspace.layer(**layer)


def run_function(workspace: Workspace) -> Layer:
    """Calls a function of the caller's with the Python of the image."""
    check_wishes(workspace)
    image = workspace.parent.image
    function = str(workspace.argument("function", ""))
    if not image.packages:
        raise InvalidError(f"Image.run_function({function}) needs Python, and the image has none: add_python=… adds it")
    own = runtime.ensure(workspace.store, image.python_version, os.path.realpath(image.python), workspace.runner)
    order = {
        "function": function,
        "given": msgspec.json.decode(workspace.argument("given") or "[[], {}]"),
        "pickled": workspace.argument("pickled", ""),
        "alias": bool(workspace.argument("alias")),
        "code": _CODE if workspace.step.files is not None else "",
        "runtime": own,
    }
    written = workspace.directory / "call.json"
    written.write_bytes(msgspec.json.encode(order))
    binds = [Bound(str(written), _ORDER), Bound(calling.__file__, _CALLING)]
    binds += [Bound(path, path) for path in (*own, str(runtime.package_directory()))]
    if workspace.step.files is not None:
        binds.append(Bound(str(workspace.files), _CODE))
    with changed(workspace) as (place, layer):
        words = place.command([f"{image.packages}/bin/python", "-u", _CALLING, _ORDER], image.directory, binds)
        timeout = workspace.argument("timeout")
        variables = place.variables(workspace.variables())
        workspace.run(words, variables=variables, shown=f"{function}()", timeout=timeout and float(timeout))
    written.unlink()
    return workspace.layer(**layer)


def copy_files(workspace: Workspace) -> Layer:
    """add_local_file, add_local_dir and add_local_python_source, with `copy=True`."""
    files = workspace.files
    assert workspace.step.files is not None
    target, is_file = workspace.step.files.target, workspace.step.files.is_file
    with changed(workspace) as (place, layer):
        if is_file:
            (only,) = files.iterdir()
            copy(workspace, place, only, target, into=False)
        else:
            copy(workspace, place, files, target, into=True)
    return workspace.layer(**layer)


# ---------------------------------------------------------------- what they share


@contextmanager
def changed(workspace: Workspace) -> Iterator[tuple[Place, dict[str, Any]]]:
    """A place whose changes are kept. The dictionary has what `Workspace.layer` is told of them, afterwards."""
    layer: dict[str, Any] = {}
    with overlay.opened(workspace) as place:
        try:
            yield place, layer
            lock = frozen(workspace, place)
        except CommandFailed as failure:
            if note := _disk_is_full(workspace.directory):
                failure.lines.append(note)
            raise
    layer.update(overlay.changes(workspace, place))
    if lock:
        layer["lock"] = lock


def copy(workspace: Workspace, place: Place, source: Path, target: str, *, into: bool) -> None:
    """Copies from inside, so that links in the image lead where they do for containers.

    Args:
        source: A file or directory of this machine.
        target: An absolute path in the image.
        into: The contents of `source` go into the directory `target`; else `target` is the copy itself.
    """
    bound = Bound(str(source), f"{COPIED}/{source.name}")
    script = COPY_CONTENTS if into else COPY_FILE
    words = place.command(["/bin/sh", "-c", script, "sh", bound.target, target], binds=[bound])
    workspace.run(words, variables=place.variables({}), shown=f"copy {source.name} to {target}")


def add_pip(workspace: Workspace, place: Place, command: str) -> None:
    """Environments have no pip of their own: commands that use it find it."""
    packages = place.image.packages
    trees = [place.package_upper, *map(Path, place.image.package_layers), *([Path(packages)] if packages else [])]
    if (
        not packages
        or not _PIP.search(command)
        or any(any(tree.glob("lib/python*/site-packages/pip")) for tree in trees)
    ):
        return
    words = [
        f"{TOOLS}/uv",
        "pip",
        "install",
        "--quiet",
        "--python",
        f"{packages}/bin/python",
        "pip",
        "setuptools",
        "wheel",
    ]
    workspace.run(place.command(words), variables=place.variables({}), shown="uv pip install pip")


def frozen(workspace: Workspace, place: Place) -> str:
    """The file that says which Python packages there are now, where commands have changed them; else empty."""
    found = place.package_upper.glob("lib/python*/site-packages/*")
    if not any(path.suffix in (".dist-info", ".egg-link", ".pth") for path in found):
        return ""
    words = [f"{TOOLS}/uv", "pip", "freeze", "--python", f"{place.image.packages}/bin/python"]
    variables = place.variables({})
    listed = subprocess.run(
        place.command(words), env=variables, capture_output=True, text=True, check=False, timeout=120
    )
    if listed.returncode != 0:
        raise CommandFailed("uv pip freeze", f"exit code {listed.returncode}", listed.stderr.splitlines()[-20:])
    path = workspace.directory / "lock.txt"
    path.write_text(listed.stdout)
    return str(path)


def check_wishes(workspace: Workspace) -> None:
    if workspace.argument("gpu"):
        workspace.say("gpu= is not needed here: builds run on this machine, without its GPUs")


def _explained(failure: CommandFailed) -> CommandFailed:
    """apt's own words for a package that does not exist, with the name where people look for it."""
    found = [match for line in failure.lines if (match := _UNKNOWN.search(line))]
    names = [next(name for name in match.groups() if name) for match in found]
    if not names:
        return failure
    reason = f"there is no package {', '.join(dict.fromkeys(names))} in Debian {debian.machine().suite}"
    return CommandFailed(failure.command, f"{reason}; names are at https://packages.debian.org", failure.lines)


def _disk_is_full(directory: Path) -> str:
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    if free > 16 << 20 and found.f_favail > 100:
        return ""
    return f"No space left on device: {free >> 20} MiB are free where KEDGE_HOME is"


# ---------------------------------------------------------------- packages of the machine


def _of_the_host(workspace: Workspace, packages: Sequence[str]) -> Layer:
    try:
        missing = debian.missing_on_host(packages)
    except OSError:
        raise ImageBuildError(
            "--host-apt accepts Debian packages that this machine has installed, but it has no dpkg-query to ask; "
            "start the server without --host-apt"
        ) from None
    if missing:
        raise ImageBuildError(
            f"this server takes Debian packages from its own machine (--host-apt), where {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed; on it: `apt-get install {' '.join(missing)}`, or "
            "start the server without --host-apt"
        )
    workspace.say(f"installed on this machine: {' '.join(packages)}")
    return workspace.layer()


HANDLERS: dict[str, Handler] = {
    "apt_install": apt_install,
    "run_commands": run_commands,
    "run_function": run_function,
    "add_local_file": copy_files,
    "add_local_dir": copy_files,
    "add_local_python_source": copy_files,
}
