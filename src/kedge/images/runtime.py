"""The container side of kedge for any version of Python: a directory with kedge itself and the few packages it needs.

It comes last on a container's `sys.path`, so it must hold nothing else: whatever lay there would be importable. For the
server's own version it is linked out of what the server has; for others it is fetched once.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kedge import _version
from kedge.exception import ImageBuildError
from kedge.images import bytecode, interpreters, trees, uvtool
from kedge.images.running import CommandFailed, Runner, inherited
from kedge.images.store import Store, remove

if TYPE_CHECKING:
    from importlib.metadata import Distribution

NEEDED = ("msgspec", "cloudpickle")
WANTED = ("uvloop", "aiohttp")
"""Faster loops, and clients of HTTP: where they cannot be had, containers do without."""
_NAME = re.compile(r"^[A-Za-z0-9._-]+")


def package_directory() -> Path:
    """Where kedge itself is."""
    return Path(os.path.realpath(_version.__file__)).parent


def directory(store: Store, version: str) -> Path:
    """Where the runtime of a minor version is, or will be. Another version of kedge has another one."""
    if version == interpreters.own_version():
        name = _own_digest()
    else:
        name = _digest([_version.__version__, str(package_directory()), *NEEDED, *WANTED])
    return store.runtimes / version / name


def find(store: Store, version: str) -> tuple[str, ...]:
    """The directories that come last on `sys.path`; none where they have to be made first."""
    found = directory(store, version)
    return (str(found),) if (found / "kedge").is_dir() else ()


def ensure(store: Store, version: str, python: str, runner: Runner) -> tuple[str, ...]:
    """Makes it unless it is there. ImageBuildError where what it needs cannot be had."""
    if found := find(store, version):
        return found
    with store.turn(f"runtime-{version}"):
        if found := find(store, version):
            return found
        target = directory(store, version)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
        try:
            if version == interpreters.own_version() and (parts := _own_parts()) is not None:
                for source, relative in parts:
                    (draft / relative).parent.mkdir(parents=True, exist_ok=True)
                    trees.link_file(source, draft / relative)
            else:
                _fetch(store, version, python, runner, draft)
            if os.path.exists(python):
                _compile(store, version, python, runner, draft)
            (draft / "kedge").symlink_to(package_directory())
            if target.exists():
                remove(target)
            draft.chmod(0o755)
            draft.rename(target)
        finally:
            remove(draft)
    return find(store, version)


def _fetch(store: Store, version: str, python: str, runner: Runner, target: Path) -> None:
    runner.say(f"fetching what containers of Python {version} need: {', '.join(NEEDED + WANTED)}")
    store.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    variables = uvtool.environment(inherited(os.environ), store.cache)
    words = [uvtool.program(), "pip", "install", "--no-progress", "--target", str(target), "--only-binary", ":all:"]
    # An interpreter that only the image's own root has cannot be asked.
    words += (
        ["--python", python] if os.path.exists(python) else ["--python", sys.executable, "--python-version", version]
    )
    for packages in ((*NEEDED, *WANTED), NEEDED):
        try:
            runner.run([*words, *packages], variables, "/", shown=f"uv pip install {' '.join(packages)}")
            # The packages of an image are its own: what lists them finds none of these.
            for path in (*target.glob("*.dist-info"), target / "bin", target / ".lock"):
                remove(path)
            return
        except CommandFailed as error:
            failed = error
    raise ImageBuildError(
        f"containers of Python {version} need {' and '.join(NEEDED)}, which could not be fetched ({failed.reason}):\n"
        + "\n".join(failed.lines)
        + f"\nOnce they could, it is kept. Python {interpreters.own_version()} needs no network for it"
    )


def _compile(store: Store, version: str, python: str, runner: Runner, draft: Path) -> None:
    tag = f"cpython-{version.replace('.', '')}"

    def run(command: object) -> None:
        runner.run(list(command), {"PATH": os.defpath}, "/", shown="compile modules")  # type: ignore[call-overload]

    bytecode.compile_packages(draft, python, tag, store.bytecode, draft, run)
    if os.access(package_directory(), os.W_OK):
        try:
            words = [python, "-I", "-S", "-m", "compileall", "-q", str(package_directory())]
            runner.run(words, {"PATH": os.defpath}, "/", shown="compile kedge")
        except CommandFailed:
            pass  # containers then compile what they import


# ---------------------------------------------------------------- what the server has


@functools.cache
def _own_digest() -> str:
    parts = [f"{found.metadata['Name']} {found.version}" for found in _own_distributions()]
    return _digest([_version.__version__, str(package_directory()), *parts])


def _own_distributions() -> list[Distribution]:
    """Those packages and what they need, as far as they are installed here."""
    from importlib.metadata import PackageNotFoundError, distribution

    found: dict[str, Distribution] = {}
    waiting = [*NEEDED, *WANTED]
    while waiting:
        name = waiting.pop()
        key = name.lower().replace("_", "-")
        if key in found:
            continue
        try:
            found[key] = distribution(name)
        except PackageNotFoundError:
            continue
        for text in found[key].requires or ():
            match = _NAME.match(text)
            if match and "extra ==" not in text:
                waiting.append(match[0])
    return [found[key] for key in sorted(found)]


def _own_parts() -> list[tuple[str, str]] | None:
    """(file, path in the runtime) of all of them; None where the installation does not say what belongs to whom."""
    parts: list[tuple[str, str]] = []
    for package in _own_distributions():
        files = list(_files(package))
        if not files:
            return None
        parts += files
    return parts


def _files(package: Distribution) -> Iterator[tuple[str, str]]:
    for file in package.files or ():
        relative = str(file)
        path = str(package.locate_file(file))
        if relative.startswith("..") or ".dist-info/" in relative or not os.path.isfile(path):
            continue
        yield path, relative


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
