"""What a container finds around it, and how it is kept apart: out of what was declared, what was built, and what this
machine can do.

* Without an image code runs in its caller's environment and sees the machine's files, on the rung `process`.
* With an image it has its own: the best of `namespace` and `process` that there is. Its root is the image's, or that of
  the machine without anything that belongs to people (homes, data, temporary files), and what it writes goes with it.
* Who asks for a rung gets it, or is told why not. Files that are to appear at a path of their own need one above
  `process`.
"""

from __future__ import annotations

import functools
import os
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from kedge.engines import boot, probe
from kedge.exception import InvalidError, NotFoundError, UnavailableError
from kedge.model.spec import (
    NAMESPACE,
    PROCESS,
    RUNGS,
    AppSpec,
    Bind,
    BuiltImage,
    EnvironmentSpec,
    FunctionSpec,
    Isolation,
    Limits,
    SecretRef,
    VolumeMount,
    VolumeRef,
)
from kedge.server import added
from kedge.server.payloads import Payloads

HANDED_ON = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
"""Variables of the server that code of another machine sees."""
_OF_THE_NETWORK = ("TZ", "http_proxy", "https_proxy", "no_proxy")
"""Those that an image's containers see as well, which are about where they are and not whose they are."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOME = "/root"
"""Of containers with a root of their own, as elsewhere: programs write there."""
_SHOWN = frozenset(("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "opt", "nix", "snap"))
"""Directories of the machine's root that hold programs. Everything else in it belongs to somebody, and is hidden."""
_MADE = frozenset(("proc", "sys", "dev", "lost+found"))
"""Directories that the engine provides."""
_SETTINGS = "/etc"
"""Of the machine. What in it is not for everybody (hashes of passwords, keys of its services) is not for containers."""
_NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts")


class Vault(Protocol):
    def values(self, ref: SecretRef, environment: str) -> dict[str, str]: ...


class Volumes(Protocol):
    def mount(self, ref: VolumeRef, environment: str, container: str, number: int) -> VolumeMount: ...


class Images(Protocol):
    def find(self, image: str) -> BuiltImage | None: ...


class Devices(Protocol):
    """What containers need of this machine to use its GPUs."""

    def variables(self, devices: tuple[int, ...]) -> dict[str, str]: ...

    def nodes(self, devices: tuple[int, ...]) -> tuple[str, ...]: ...

    def libraries(self) -> tuple[str, ...]: ...


class Nothing:
    """Where there are no images, no secrets, no volumes, no devices."""

    def find(self, image: str) -> BuiltImage | None:
        return None

    def values(self, ref: SecretRef, environment: str) -> dict[str, str]:
        raise NotFoundError(f"there is no secret {ref.name or ref.id!r}")

    def mount(self, ref: VolumeRef, environment: str, container: str, number: int) -> VolumeMount:
        raise NotFoundError(f"there is no volume {ref.name or ref.id!r}")

    def variables(self, devices: tuple[int, ...]) -> dict[str, str]:
        return {}

    def nodes(self, devices: tuple[int, ...]) -> tuple[str, ...]:
        return ()

    def libraries(self) -> tuple[str, ...]:
        return ()


_NOTHING = Nothing()


class Footing(NamedTuple):
    """What the containers of a function stand on."""

    rung: str
    built: BuiltImage | None
    """None where the function has no image."""

    @property
    def root(self) -> BuiltImage | None:
        """What they have a root of their own of; None where they see the machine's files."""
        return None if self.rung == PROCESS else self.built


class Outfitter:
    """Fits containers out.

    Args:
        state: The state directory of this server: blobs, scratch directories.
        socket: Path of the socket that containers connect to.
        workplace: Where code of other machines runs, when it has no image.
        home: KEDGE_HOME, which containers with a root of their own must not see.
        rungs: For each rung why it cannot be had here; empty where it can.
        preferred: The rung that was asked for this server; empty: the best for each app.
    """

    def __init__(
        self,
        state: Path,
        socket: str,
        workplace: str = "/",
        home: str = "",
        *,
        images: Images = _NOTHING,
        vault: Vault = _NOTHING,
        volumes: Volumes = _NOTHING,
        devices: Devices = _NOTHING,
        rungs: Mapping[str, str] = MappingProxyType({PROCESS: ""}),
        preferred: str = "",
    ) -> None:
        self._state = state
        self._socket = socket
        self._workplace = workplace
        self._home = home
        self._images = images
        self._vault = vault
        self._volumes = volumes
        self._devices = devices
        self.payloads = Payloads(state)
        self.rungs = rungs
        self.preferred = preferred

    # ------------------------------------------------------------ which rung

    def footing(self, app: AppSpec, spec: FunctionSpec) -> Footing:
        """What all else follows from. UnavailableError where no rung will do, NotFoundError where its image is gone."""
        built = self._built(spec)
        return Footing(self._rung(app, spec, built), built)

    def _rung(self, app: AppSpec, spec: FunctionSpec, built: BuiltImage | None) -> str:
        wanted = app.isolation or self.preferred
        if wanted:
            reason = self.rungs.get(wanted, f"there is no such rung; it is one of {', '.join(RUNGS)}")
            if reason:
                raise UnavailableError(
                    f"{spec.name}: isolation {wanted!r} cannot be had on this machine: {reason}. `kedge doctor` shows "
                    "what can"
                )
            rung = wanted
        elif spec.image.id or spec.volumes or spec.block_network:
            rung = probe.best(self.rungs)
        else:
            rung = PROCESS
        if rung == PROCESS:
            if spec.block_network:
                raise UnavailableError(
                    f"{spec.name}: block_network=True needs a network of its own, {self._why_process()}"
                )
            if what := _needs_files(spec, built):
                raise UnavailableError(f"{spec.name}: {what} needs a file system of its own, {self._why_process()}")
        return rung

    def _why_process(self) -> str:
        why = self.rungs.get(NAMESPACE, "") or f"isolation {PROCESS!r} was asked for"
        return f"from isolation {NAMESPACE!r} on: {why}"

    def objection(self, app: AppSpec) -> Exception | None:
        """Why the containers of an app could not start here, as far as that can be said before; None where they can."""
        try:
            for spec in app.functions:
                self.footing(app, spec)
                for secret in spec.secrets:
                    self._vault.values(secret, app.environment_name)
        except (InvalidError, NotFoundError, UnavailableError) as error:
            return error
        return None

    # ------------------------------------------------------------ what is around

    def environment(self, app: AppSpec, spec: FunctionSpec, footing: Footing) -> EnvironmentSpec:
        """Interpreter, path, variables and directory of a function's containers, secrets not among them."""
        if footing.built is not None:
            return self._of_image(app, spec, footing.built, own=footing.root is not None)
        declared = app.environment
        if declared.python:
            return declared
        # It comes from another machine: this server's own interpreter, without what this server was told.
        os.makedirs(self._workplace, mode=0o700, exist_ok=True)
        return replace(
            declared,
            python=sys.executable,
            python_version=f"{sys.version_info[0]}.{sys.version_info[1]}",
            sys_path=tuple(boot.library_entries(sys.path)),
            variables=tuple(sorted((name, os.environ[name]) for name in HANDED_ON if name in os.environ)),
            directory=self._workplace,
        )

    def secrets(self, app: AppSpec, spec: FunctionSpec) -> dict[str, str]:
        """The variables of all its secrets; later ones win."""
        found: dict[str, str] = {}
        for secret in spec.secrets:
            found |= self._vault.values(secret, app.environment_name)
        return found

    def isolation(
        self, app: AppSpec, spec: FunctionSpec, footing: Footing, container: str, devices: tuple[int, ...]
    ) -> Isolation:
        """How one container is kept apart, and what it sees."""
        rung, built, root = footing.rung, footing.built, footing.root
        binds: Iterable[Bind] = ()
        own: tuple[Bind, ...] = ()
        if root:
            own = (Bind(self.payloads.open(container), str(self.payloads.blobs), read_only=False),)
            around = tuple(self._binds(app, root, bool(devices)))
            others = [*(bind.target for bind in around), *(ref.target for ref in spec.volumes)]
            binds = (*around, *added.binds(spec.image.mounts, root.layers, others))
        return Isolation(
            rung=rung,
            shares_files=not root,
            layers=root.layers if root else (),
            packages=root.packages if root else "",
            package_layers=root.package_layers if root else (),
            hidden=self._hidden(bool(root.layers)) if root else (),
            binds=tuple(binds),
            own=own,
            volumes=tuple(
                self._volumes.mount(ref, app.environment_name, container, number)
                for number, ref in enumerate(spec.volumes)
            ),
            scratch="" if rung == PROCESS else str(self._state / "containers" / container),
            network=not spec.block_network,
            devices=self._devices.nodes(devices) if root else (),
            limits=Limits(
                cpu=spec.resources.cpu_limit,
                memory=spec.resources.memory_limit,
                disk=spec.resources.ephemeral_disk,
            ),
            entrypoint=built.entrypoint if built else (),
        )

    def device_variables(self, spec: FunctionSpec, devices: tuple[int, ...]) -> dict[str, str]:
        """What tells code which GPUs it has. Without an image and without a GPU it sees what its caller does."""
        return self._devices.variables(devices) if devices or spec.image.id else {}

    def _built(self, spec: FunctionSpec) -> BuiltImage | None:
        """What was built of its image; None where it has none. NotFoundError where that is gone."""
        if not spec.image.id:
            return None
        built = self._images.find(spec.image.id)
        if built is None:
            raise NotFoundError(
                f"the image {spec.image.id} of {spec.name} is not there any more: run or deploy the app again, which "
                "builds it"
            )
        return built

    def _of_image(self, app: AppSpec, spec: FunctionSpec, built: BuiltImage, own: bool) -> EnvironmentSpec:
        programs = os.path.dirname(built.python)
        if own:
            variables = {name: os.environ[name] for name in _OF_THE_NETWORK if name in os.environ}
            variables |= {"HOME": HOME, "USER": "root", "LANG": "C.UTF-8", "PATH": SYSTEM_PATH}
        else:
            variables = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
        variables |= dict(built.variables)
        variables["PATH"] = f"{programs}:{variables.get('PATH', SYSTEM_PATH)}"
        variables["VIRTUAL_ENV"] = built.packages
        if own:
            path = [HOME, *spec.image.python_path]
        else:  # files are imported from where they are
            path = [files.root for files in spec.image.mounts if files.target in spec.image.python_path]
        directory = built.directory
        if not own and (directory == HOME or not os.path.isdir(directory)):
            os.makedirs(self._workplace, mode=0o700, exist_ok=True)
            directory = self._workplace
        return EnvironmentSpec(
            python=built.python,
            python_version=built.python_version,
            python_path=tuple(dict.fromkeys(path)),
            variables=tuple(sorted(variables.items())),
            directory=directory,
            alias_modal=app.environment.alias_modal,
            runtime=built.runtime,
            image=built.id,
        )

    # ------------------------------------------------------------ what is seen

    def _binds(self, app: AppSpec, built: BuiltImage, gpu: bool) -> Iterable[Bind]:
        for source in (*built.visible, *_runtime_places(built.runtime)):
            yield Bind(source, source)
        if not built.layers:
            for path in _private(_SETTINGS)[0]:
                yield Bind("/dev/null", path)
        yield from _network_files(bool(built.layers))
        yield Bind(self._socket, self._socket, read_only=False)
        if app.code.root:
            yield Bind(app.code.root, app.code.root)
        if gpu and built.layers:
            for library in self._devices.libraries():
                yield Bind(library, library)

    def _hidden(self, own_root: bool) -> tuple[str, ...]:
        """Directories that are to be empty. A root of the image's own has nothing to hide but what is temporary."""
        if own_root:
            return ("/tmp", "/run", "/var/tmp")
        found = [f"/{name}" for name in _top_level() if name not in _SHOWN and name not in _MADE]
        found += _private(_SETTINGS)[1]
        if self._home and self._home.split("/")[1] in _SHOWN:
            found.append(self._home)
        return tuple(sorted(found))


def _needs_files(spec: FunctionSpec, built: BuiltImage | None) -> str:
    """What of a function can only be had with a file system of its own; empty where nothing is."""
    if spec.volumes:
        return f"the volume at {spec.volumes[0].target}"
    outside = [files.target for files in spec.image.mounts if files.target not in spec.image.python_path]
    if outside:
        return f"what the image adds at {outside[0]}"
    if built is not None and (built.layers or built.package_layers):
        return "an image with system packages or commands"
    return ""


def _top_level() -> list[str]:
    with os.scandir("/") as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


@functools.lru_cache(maxsize=4)
def _private(root: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What below a directory not everybody may read: files, and directories that not everybody may enter."""
    files: list[str] = []
    directories: list[str] = []
    for here, below, names in os.walk(root):
        for name in [*below, *names]:
            path = os.path.join(here, name)
            try:
                mode = os.lstat(path).st_mode
            except OSError:  # it has gone
                continue
            if stat.S_ISREG(mode) and not mode & stat.S_IROTH:
                files.append(path)
            elif stat.S_ISDIR(mode) and not mode & stat.S_IXOTH:
                directories.append(path)
                below.remove(name)
    return tuple(sorted(files)), tuple(sorted(directories))


@functools.lru_cache(maxsize=64)
def _runtime_places(runtime: tuple[str, ...]) -> tuple[str, ...]:
    """Directories of a runtime, and where its links lead."""
    found: dict[str, None] = {}
    for directory in runtime:
        found[directory] = None
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            if os.path.islink(path):
                found[os.path.realpath(path)] = None
    return tuple(found)


def _network_files(own_root: bool) -> Iterable[Bind]:
    """How names are looked up is the machine's business, also where its files are hidden or another system's."""
    for path in _NETWORK_FILES:
        real = os.path.realpath(path)
        if not os.path.exists(real):
            continue
        if own_root:
            yield Bind(real, path)
        elif real != path and real.split("/")[1] not in _SHOWN:
            yield Bind(real, real)
