"""`Image`: what containers have installed, as an immutable recipe. Every method gives a new image.

Nothing is built here: a recipe is steps and a digest of them (see `recipe`). Building comes in a later version; until
then containers run in the caller's own environment, and say so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec

from kedge.exception import InvalidError
from kedge.sdk import context, recipe, validation
from kedge.sdk.later import Secret, refuse
from kedge.sdk.packages import PackageSteps

if TYPE_CHECKING:
    from kedge.sdk.recipe import Path

P = ParamSpec("P")
Ignore = Sequence[str] | Callable[[Any], bool]


class Image(PackageSteps):
    """A recipe for the environment of containers: a base, then steps.

    Example:
        image = (
            kedge.Image.debian_slim(python_version="3.12")
            .apt_install("ffmpeg")
            .pip_install("numpy", "pillow")
            .env({"MODE": "fast"})
        )
        app = kedge.App("media", image=image)
    """

    __slots__ = ()

    # ------------------------------------------------------------ bases

    @staticmethod
    def debian_slim(python_version: str | None = None, force_build: bool = False) -> Image:
        """Debian with Python; the caller's Python version unless one is given."""
        version = recipe.python_version("Image.debian_slim: python_version", python_version)
        return Image()._then("debian_slim", python_version=version, force_build=force_build)

    @staticmethod
    def micromamba(python_version: str | None = None, force_build: bool = False) -> Image:
        """A base with micromamba, for `micromamba_install`."""
        version = recipe.python_version("Image.micromamba: python_version", python_version)
        return Image()._then("micromamba", python_version=version, force_build=force_build)

    @staticmethod
    def from_registry(
        tag: str,
        secret: Secret | None = None,
        *,
        setup_dockerfile_commands: Sequence[str] = (),
        force_build: bool = False,
        add_python: str | None = None,
    ) -> Image:
        """An image of a registry, such as `nvidia/cuda:12.4.0-devel-ubuntu22.04`; `add_python` adds Python."""
        return Image()._then(
            "from_registry",
            tag=validation.text("Image.from_registry: tag", tag),
            secret=secret and repr(secret),
            setup_dockerfile_commands=list(setup_dockerfile_commands),
            force_build=force_build,
            add_python=recipe.python_version("Image.from_registry: add_python", add_python),
        )

    @staticmethod
    def from_aws_ecr(tag: str, secret: Secret | None = None, *, add_python: str | None = None) -> Image:
        """An image of AWS' registry."""
        return Image()._then("from_aws_ecr", tag=tag, secret=secret and repr(secret), add_python=add_python)

    @staticmethod
    def from_gcp_artifact_registry(tag: str, secret: Secret | None = None, *, add_python: str | None = None) -> Image:
        """An image of Google's registry."""
        return Image()._then(
            "from_gcp_artifact_registry", tag=tag, secret=secret and repr(secret), add_python=add_python
        )

    @staticmethod
    def from_dockerfile(
        path: Path,
        *,
        context_dir: Path | None = None,
        ignore: Ignore = (),
        build_args: Mapping[str, str] | None = None,
        add_python: str | None = None,
        force_build: bool = False,
    ) -> Image:
        """What a Dockerfile describes."""
        return Image()._then(
            "from_dockerfile",
            path=str(path),
            context_dir=context_dir and str(context_dir),
            ignore=_ignored(ignore),
            build_args=dict(build_args or {}),
            add_python=recipe.python_version("Image.from_dockerfile: add_python", add_python),
            force_build=force_build,
        )

    @staticmethod
    def from_scratch() -> Image:
        """An empty file system."""
        return Image()._then("from_scratch")

    @staticmethod
    def from_name(name: str) -> Image:
        """An image published under a name."""
        return Image()._then("from_name", name=validation.text("Image.from_name: name", name))

    @staticmethod
    def from_id(image_id: str) -> Image:
        """An image that was built before."""
        return Image()._then("from_id", image_id=validation.text("Image.from_id: image_id", image_id))

    # ------------------------------------------------------------ the system

    def apt_install(self, *packages: recipe.Strings, force_build: bool = False, **options: Any) -> Image:
        """Installs Debian packages."""
        names = recipe.flatten("Image.apt_install", packages)
        return self._then("apt_install", packages=names, force_build=force_build, **recipe.plain(options))

    def run_commands(
        self,
        *commands: recipe.Strings,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] = (),
        volumes: Mapping[Any, Any] | None = None,
        gpu: Any = None,
        force_build: bool = False,
    ) -> Image:
        """Runs shell commands."""
        return self._then(
            "run_commands",
            commands=recipe.flatten("Image.run_commands", commands),
            volumes={str(path): repr(volume) for path, volume in (volumes or {}).items()},
            force_build=force_build,
            **recipe.build_options("Image.run_commands", env, secrets, gpu),
        )

    def dockerfile_commands(
        self,
        *commands: recipe.Strings,
        context_dir: Path | None = None,
        ignore: Ignore = (),
        env: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] = (),
        gpu: Any = None,
        force_build: bool = False,
    ) -> Image:
        """Adds lines as a Dockerfile has them."""
        return self._then(
            "dockerfile_commands",
            commands=recipe.flatten("Image.dockerfile_commands", commands),
            context_dir=context_dir and str(context_dir),
            ignore=_ignored(ignore),
            force_build=force_build,
            **recipe.build_options("Image.dockerfile_commands", env, secrets, gpu),
        )

    def run_function(
        self,
        raw_f: Callable[..., Any],
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] = (),
        volumes: Mapping[Any, Any] | None = None,
        gpu: Any = None,
        cpu: Any = None,
        memory: Any = None,
        timeout: float = 3600,
        force_build: bool = False,
        include_source: bool = True,
    ) -> Image:
        """Runs a Python function while building, for example to download a model's weights.

        It runs again when its source, the constants that it names, or its arguments change.
        """
        validation.resources("Image.run_function", cpu=cpu, memory=memory)
        return self._then(
            "run_function",
            **recipe.build_function(raw_f, args, kwargs or {}),
            volumes={str(path): repr(volume) for path, volume in (volumes or {}).items()},
            cpu=cpu,
            memory=memory,
            timeout=validation.seconds("Image.run_function: timeout", timeout),
            no_source=not include_source,
            force_build=force_build,
            **recipe.build_options("Image.run_function", env, secrets, gpu),
        )

    # ------------------------------------------------------------ settings

    def env(self, vars: Mapping[str, str]) -> Image:
        """Sets environment variables."""
        return self._then("env", vars=dict(validation.environment("Image.env", vars)))

    def workdir(self, path: Path) -> Image:
        """Sets the working directory."""
        return self._then("workdir", path=str(path))

    def cmd(self, cmd: Sequence[str]) -> Image:
        """Sets the default command."""
        return self._then("cmd", cmd=list(validation.texts("Image.cmd", cmd)))

    def entrypoint(self, entrypoint_commands: Sequence[str]) -> Image:
        """Sets the entry point; it must run the command that it is given."""
        return self._then("entrypoint", entrypoint=[*entrypoint_commands])

    def shell(self, shell_commands: Sequence[str]) -> Image:
        """Sets the shell that runs commands."""
        return self._then("shell", shell=[*shell_commands])

    # ------------------------------------------------------------ local files

    def add_local_file(self, local_path: Path, remote_path: str, *, copy: bool = False) -> Image:
        """Adds one file: when a container starts, or into the image with `copy=True`."""
        return self._add("add_local_file", copy, local_path=str(local_path), remote_path=_absolute(remote_path))

    def add_local_dir(self, local_path: Path, remote_path: str, *, copy: bool = False, ignore: Ignore = ()) -> Image:
        """Adds a directory: when a container starts, or into the image with `copy=True`."""
        remote = _absolute(remote_path)
        return self._add("add_local_dir", copy, local_path=str(local_path), remote_path=remote, ignore=_ignored(ignore))

    def add_local_python_source(self, *modules: str, copy: bool = False, ignore: Ignore = ()) -> Image:
        """Adds modules or packages of this machine, by the names they are imported with."""
        for module in modules:
            if not all(part.isidentifier() for part in str(module).split(".")):
                raise InvalidError(
                    f"Image.add_local_python_source takes module names such as 'helpers', not {module!r}"
                )
        return self._add("add_local_python_source", copy, modules=list(modules), ignore=_ignored(ignore))

    def _add(self, kind: str, copy: bool, **arguments: Any) -> Image:
        if copy:
            return self._then(kind, copy=True, **arguments)
        return Image((*self.spec.steps, recipe.step(kind, arguments)), mounts=kind)

    # ------------------------------------------------------------ use

    def pipe(self, func: Callable[Concatenate[Image, P], Image], *args: P.args, **kwargs: P.kwargs) -> Image:
        """`func(image, …)`: puts a function of your own into the chain."""
        result = func(self, *args, **kwargs)
        if not isinstance(result, Image):
            raise InvalidError(f"Image.pipe: {func!r} must return an Image, but returned {result!r}")
        return result

    @contextlib.contextmanager
    def imports(self) -> Iterator[None]:
        """Imports that containers of this image can do, and the caller perhaps not.

        A failing import ends the block silently in the caller's process and in containers of other images; in
        containers of this image it is raised.

        Example:
            with image.imports():
                import torch
        """
        try:
            yield
        except ImportError:
            here = context.container()
            if here is not None and here.function is not None and here.function.image.digest == self.spec.digest:
                raise

    def build(self, app: Any = None) -> NoReturn:
        """Builds the image. Comes in a later version."""
        refuse("Image.build", "Containers run in the caller's environment; install packages there.")

    def publish(self, name: str) -> NoReturn:
        """Keeps the built image under a name. Comes in a later version."""
        refuse("Image.publish")


def _absolute(remote_path: str) -> str:
    if not str(remote_path).startswith("/"):
        raise InvalidError(f"the remote path must be absolute, such as '/root/data', not {remote_path!r}")
    return str(remote_path)


def _ignored(ignore: Ignore) -> list[str]:
    if callable(ignore):
        return [f"{getattr(ignore, '__module__', '')}:{getattr(ignore, '__qualname__', repr(type(ignore)))}"]
    return [str(pattern) for pattern in ignore]
