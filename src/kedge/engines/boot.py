"""The first lines of every process that an engine starts, run by path: `python …/boot.py ROLE FD PATH RUNNER`.

By path, because the interpreter may be the user's own, where kedge is not installed: PATH names the directories of
kedge and of the few packages that its container side needs, and they come last on `sys.path`. Until a container begins
its own life, no directory of the user is on `sys.path`: a `random.py` beside a script must not become part of the
runtime, and a fork server must never hold user modules.

Imports at the top of this file must be those that every interpreter has loaded anyway.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

SUPERVISOR = "supervisor"
FORK_SERVER = "fork-server"
CONTAINER = "container"
PROBE = "probe"


def command(
    python: str, role: str, descriptor: int, runtime: Sequence[str], runner: str, options: Sequence[str] = ()
) -> list[str]:
    """The command line that starts a process in `role` with the interpreter `python`."""
    return [python, *options, os.path.abspath(__file__), role, str(descriptor), os.pathsep.join(runtime), runner]


def library_entries(entries: Iterable[str]) -> list[str]:
    """Those entries of a `sys.path` that hold installed packages or the standard library, in their order.

    >>> library_entries(["", "/home/ann/project", "/opt/venv/lib/python3.11/site-packages"])
    ['/opt/venv/lib/python3.11/site-packages']
    """
    standard = os.path.dirname(os.path.abspath(os.__file__))
    known = {standard, os.path.join(standard, "lib-dynload")}
    zipped = f"python{sys.version_info[0]}{sys.version_info[1]}.zip"
    return [
        entry
        for entry in entries
        if entry in known or os.path.basename(entry) in ("site-packages", "dist-packages", zipped)
    ]


def completed(entries: Iterable[str], runtime: Iterable[str]) -> list[str]:
    """`entries`, then what is missing of the directories that the runtime needs."""
    path = list(entries)
    return path + [directory for directory in runtime if directory not in path]


def _bare_package(name: str, directory: str) -> None:
    """Makes `name` importable without running its `__init__`: the supervisor has no use for what users import."""
    package = type(sys)(name)
    package.__path__ = [directory]
    sys.modules[name] = package


def _own_package(name: str, directory: str) -> None:
    """Imports `name` from where this file lies: what an image has installed under the name is another version of it."""
    import importlib.util

    file = os.path.join(directory, "__init__.py")
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[directory])
    assert spec is not None
    assert spec.loader is not None
    bare = sys.modules.get(name)
    package = sys.modules[name] = importlib.util.module_from_spec(spec)
    if bare is not None:  # parts of it are there already
        package.__dict__.update({key: part for key, part in bare.__dict__.items() if f"{name}.{key}" in sys.modules})
    spec.loader.exec_module(package)


def main() -> None:
    role, descriptor, path, runner = sys.argv[1:5]
    os.set_inheritable(int(descriptor), False)  # it came through an exec; it goes through no other
    runtime = path.split(os.pathsep)
    own = library_entries(sys.path)
    sys.path[:] = completed(own, runtime)
    sys.argv[1:] = []
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if role != CONTAINER:
        _bare_package("kedge", package)
    if role == FORK_SERVER:
        from kedge.engines import fork_hooks

        fork_hooks.hold()
    if role in (FORK_SERVER, CONTAINER):
        _own_package("kedge", package)
    if role == PROBE:
        from kedge.engines import probe

        probe.main(int(descriptor), runner)
    elif role == SUPERVISOR:
        from kedge.engines import supervisor

        supervisor.main(int(descriptor), runtime, runner)
    elif role == FORK_SERVER:
        from kedge.engines import fork_server

        fork_server.main(int(descriptor), runtime, runner)
    else:
        from kedge.engines import child

        child.main(int(descriptor), runtime, runner)


if __name__ == "__main__":
    main()
