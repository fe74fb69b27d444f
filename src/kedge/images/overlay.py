"""Commands in an image's own root: the layers so far below, this step's directories on top, the machine's network.

`entered` is for steps that only look at the root, such as packages that are compiled against its headers: what they
write there is thrown away. `opened` is for steps that change it: what they write is the new layer. Both turn a command
into one that runs there (`chamber`); mounts and processes end with it.

It takes root, or a user namespace with subordinate ids; `users` says which, or what is missing.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kedge.exception import ImageBuildError
from kedge.images import chamber, debian, uvtool
from kedge.images.chamber import Bound, Overlay, Plan
from kedge.model.spec import BuiltImage
from kedge.wire import removal

if TYPE_CHECKING:
    from kedge.images.steps import Workspace

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = "/run/kedge"
"""Where commands find uv. /run is nobody's: containers do not see what a build has there."""
_ENDING_S = 10.0
_OF_INDEXES = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "cert")
_UV_OF_INDEXES = frozenset(
    f"UV_{name}"
    for name in ("DEFAULT_INDEX", "INDEX", "INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "NO_INDEX", "INDEX_STRATEGY")
) | {"UV_INSECURE_HOST"}
_ROOM_OF_OTHERS = 65536
"""Ids that a Debian system counts on."""


class Place:
    """Where commands of one step run.

    Args:
        plan: What they see.
        image: The image so far.
        upper: Takes what commands write to the root.
        package_upper: Takes what they write to the Python environment.
        cache: What uv and pip have fetched before.
    """

    def __init__(self, plan: Plan, image: BuiltImage, upper: Path, package_upper: Path, cache: Path) -> None:
        self.plan = plan
        self.image = image
        self.upper = upper
        self.package_upper = package_upper
        self._cache = str(cache)

    def command(self, words: Sequence[str], directory: str = "/", binds: Sequence[Bound] = ()) -> list[str]:
        """`words` as a command of the machine that runs them here."""
        plan = Plan(**{**vars(self.plan), "directory": directory, "binds": (*self.plan.binds, *binds)})
        return chambered(plan, words)

    def variables(self, further: Mapping[str, str]) -> dict[str, str]:
        """An environment for commands here: nothing of the machine's but the way to the network."""
        found = {
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            **debian.networking(os.environ),
            **index_settings(os.environ),
            "PIP_CACHE_DIR": f"{self._cache}/pip",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "UV_CACHE_DIR": self._cache,
            "UV_LINK_MODE": "copy",
            **further,
        }
        environment = [f"{self.image.packages}/bin"] if self.image.packages else []
        if "PATH" not in further:
            found["PATH"] = ":".join([*environment, SYSTEM_PATH, TOOLS])
        elif environment and environment[0] not in further["PATH"].split(":"):
            found["PATH"] = f"{environment[0]}:{further['PATH']}:{TOOLS}"
        if environment:
            found["VIRTUAL_ENV"] = self.image.packages
        return found


def chambered(plan: Plan, words: Sequence[str]) -> list[str]:
    # -I -S: variables of the command, such as PYTHONPATH, are not for the program that prepares its place
    return [sys.executable, "-I", "-S", chamber.__file__, plan.text(), *words]


@contextlib.contextmanager
def entered(workspace: Workspace) -> Iterator[Place]:
    """The root of the image so far, with the directory of all images at its path. What is written elsewhere goes."""
    with _stage(workspace) as stage:
        upper, package_upper = _directory(stage / "fs"), _directory(stage / "venv")
        images = Bound(str(workspace.store.path), str(workspace.store.path), read_only=False, deep=False)
        yield _place(workspace, workspace.parent.image.layers, stage, upper, package_upper, [images])


@contextlib.contextmanager
def opened(workspace: Workspace) -> Iterator[Place]:
    """The root of the image so far, or a Debian base, where all that is written becomes this step's layer."""
    lower = workspace.parent.image.layers or (str(debian.ensure(workspace)),)
    with _stage(workspace) as stage:
        # The base of a Dockerfile may have made its environment in the same step.
        names = ("fs", "venv") if not (workspace.directory / "venv").exists() else ("fs-changes", "venv-changes")
        upper, package_upper = (_directory(workspace.directory / name) for name in names)
        cache = str(_directory(workspace.store.cache))  # what commands fetch with pip and uv does not grow the layer
        yield _place(workspace, lower, stage, upper, package_upper, [Bound(cache, cache, read_only=False)])


def changes(workspace: Workspace, place: Place) -> dict[str, tuple[str, ...]]:
    """The fields of `BuiltImage` that this step's layer changes. Directories into which nothing was written go."""
    assert place.plan.root is not None
    below = tuple(place.plan.root.lower)
    found = {"layers": below, "package_layers": workspace.parent.image.package_layers}
    for name, upper in (("layers", place.upper), ("package_layers", place.package_upper)):
        if _is_empty(upper):
            upper.rmdir()
        else:
            found[name] = (str(upper), *found[name])
    return found


def _place(
    workspace: Workspace, lower: Sequence[str], stage: Path, upper: Path, package_upper: Path, binds: Sequence[Bound]
) -> Place:
    image = workspace.parent.image
    packages = None
    if image.packages:
        below = (*image.package_layers, image.packages)
        packages = Overlay(below, str(package_upper), str(_directory(stage / "venv-work")))
    shown = [Bound(path, path) for path in (*image.visible, *image.runtime) if not _in_system(path)]
    shown += [
        Bound(path, path) for path in local_indexes(index_settings(os.environ)) if not os.path.exists(lower[-1] + path)
    ]
    shown.append(Bound(os.path.realpath(uvtool.program()), f"{TOOLS}/uv"))
    plan = Plan(
        stage=str(stage),
        root=Overlay(tuple(lower), str(upper), str(_directory(stage / "work"))),
        packages=image.packages,
        package_overlay=packages,
        binds=(*binds, *shown),
        volumes=tuple(workspace.volumes.items()),
        files=tuple(debian.files_of_now(debian.machine()).items()),
        users=users(),
    )
    return Place(plan, image, upper, package_upper, workspace.store.cache)


@contextlib.contextmanager
def _stage(workspace: Workspace) -> Iterator[Path]:
    users()  # rather before anything is there
    stage = _directory(workspace.directory / "stage")
    try:
        yield stage
    finally:
        _wait_for_end(stage / chamber.PID_FILE)
        remove_tree(stage)


def _wait_for_end(file: Path) -> None:
    """Until a place that was left by force is empty: its processes may still write for a moment."""
    try:
        descriptor = os.pidfd_open(int(file.read_text()))
    except (OSError, ValueError):
        return
    try:
        select.select([descriptor], [], [], _ENDING_S)
    finally:
        os.close(descriptor)


def _directory(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _is_empty(path: Path) -> bool:
    with os.scandir(path) as entries:
        return next(entries, None) is None


def _in_system(path: str) -> bool:
    """Debian has its own, from the same packages."""
    return path in ("/", "/usr", "/bin", "/lib", "/usr/lib", "/usr/bin") or path.startswith(("/usr/lib/", "/usr/bin/"))


# ---------------------------------------------------------------- the way to packages


def index_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """What pip and uv are told on this machine about where packages are, as variables."""
    pip = uvtool.pip_settings(environ)
    told = {f"PIP_{name.upper().replace('-', '_')}": pip[name] for name in _OF_INDEXES if name in pip}
    return told | {name: value for name, value in environ.items() if name in _UV_OF_INDEXES}


def local_indexes(settings: Mapping[str, str]) -> list[str]:
    """Directories and files of this machine that these settings lead to.

    >>> local_indexes({"PIP_CERT": "/nowhere", "UV_INDEX": "file:///usr/lib https://pypi.example/simple"})
    ['/usr/lib']
    """
    found: list[str] = []
    for value in settings.values():
        for word in value.replace(",", " ").split():
            path = word.removeprefix("file://")
            if not path.startswith("/") or not os.path.exists(path):
                continue
            path = os.path.normpath(path)
            found.append(
                os.path.dirname(path) if os.path.basename(path) == "simple" else path
            )  # its files lie beside it
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------- without root


def users() -> tuple[tuple[int, int], ...]:
    """How commands get a root of their own: nothing to do as root, else the ids that newuidmap maps. ImageBuildError
    says what is missing for either."""
    what = "commands in an image (apt_install, run_commands, …) run in a file system of their own"
    if sys.platform != "linux":
        raise ImageBuildError(f"{what}, which takes Linux; steps such as pip_install work here")
    if os.geteuid() == 0:
        return ()
    name, uid = _user(), os.getuid()
    missing = [f"`{tool}` (apt-get install uidmap)" for tool in ("newuidmap", "newgidmap") if not shutil.which(tool)]
    ranges: list[tuple[int, int]] = []
    for path in ("/etc/subuid", "/etc/subgid"):
        found = subordinate(_text(path), name, uid)
        if found is None:
            missing.append(
                f"{_ROOM_OF_OTHERS} ids in {path} "
                f"(usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name})"
            )
        else:
            ranges.append((found[0], _ROOM_OF_OTHERS))
    for path, wanted in (
        ("/proc/sys/kernel/unprivileged_userns_clone", "1"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0"),
    ):
        if _text(path).strip() not in ("", wanted):
            missing.append(f"user namespaces for everybody (sysctl {path[10:].replace('/', '.')}={wanted})")
    if missing:
        raise ImageBuildError(
            f"{what}, which takes root, or user namespaces with subordinate ids; missing for {name}: "
            + "; ".join(missing)
            + ". Steps such as pip_install need none of this; --host-apt accepts packages that this machine has."
        )
    return tuple(ranges)


def subordinate(text: str, name: str, uid: int) -> tuple[int, int] | None:
    """(first, count) of somebody's first range that is large enough, from /etc/subuid or /etc/subgid.

    >>> subordinate("ann:100000:65536\\nbob:165536:65536", "bob", 1001)
    (165536, 65536)
    """
    for line in text.splitlines():
        owner, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if owner in (name, str(uid)) and first.isdigit() and count.isdigit() and int(count) >= _ROOM_OF_OTHERS:
            return int(first), int(count)
    return None


def remove_tree(path: Path) -> None:
    """Also one with files of subordinate ids, and directories that nobody may enter."""
    removal.remove(str(path))
    if path.exists() and os.geteuid() != 0:
        plan = Plan(users=users())
        subprocess.run(chambered(plan, ["rm", "-rf", "--", str(path)]), check=False, stderr=subprocess.DEVNULL)
    if path.exists():
        shutil.rmtree(path)  # which says why it cannot be


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
