"""`Image`: what containers have installed, as an immutable recipe. Every method gives a new image.

Nothing is built here: a recipe is steps and a digest of them (see `recipe`). Building comes in a later version; until
then containers run in the caller's own environment, and say so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Concatenate, NoReturn, ParamSpec

from kedge.exception import InvalidError
from kedge.model.spec import ImageSpec, ImageStep
from kedge.sdk import context, recipe, validation
from kedge.sdk.later import Secret, refuse

P = ParamSpec("P")
Path = str | PurePath
Strings = str | list[str] | tuple[str, ...]
Ignore = Sequence[str] | Callable[[Any], bool]


class Image:
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

    __slots__ = ("_mounts", "spec")

    def __init__(self, steps: tuple[ImageStep, ...] = (), mounts: str = "") -> None:
        self.spec: ImageSpec = recipe.image_spec(steps)
        """Steps and digest."""
        self._mounts = mounts
        """The last step that mounts local files, after which no build step may come."""

    @property
    def digest(self) -> str:
        """Equal for equal recipes, in any process."""
        return self.spec.digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and other.spec.digest == self.spec.digest

    def __hash__(self) -> int:
        return hash(self.spec.digest)

    def __repr__(self) -> str:
        return f"<Image {' → '.join(step.kind for step in self.spec.steps)}>"

    def _then(self, kind: str, /, **arguments: Any) -> Image:
        if self._mounts:
            raise InvalidError(
                f"Image.{kind} comes after {self._mounts}, whose files are added when a container starts; move "
                f"{self._mounts} to the end of the recipe, or write {self._mounts}(…, copy=True) to bake them in"
            )
        return Image((*self.spec.steps, recipe.step(kind, arguments)))

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
        """An image of a registry, such as `nvidia/cuda:12.4.0-devel-ubuntu22.04`; `add_python` installs Python in it."""
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
        return Image()._then("from_gcp_artifact_registry", tag=tag, secret=secret and repr(secret), add_python=add_python)

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

    # ------------------------------------------------------------ Python packages

    def pip_install(
        self,
        *packages: Strings,
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] = (),
        gpu: Any = None,
    ) -> Image:
        """Installs packages with pip."""
        return self._then(
            "pip_install",
            packages=recipe.flatten("Image.pip_install", packages),
            find_links=find_links,
            index_url=index_url,
            extra_index_url=extra_index_url,
            pre=pre,
            extra_options=extra_options,
            force_build=force_build,
            **_build_options("Image.pip_install", env, secrets, gpu),
        )

    def uv_pip_install(
        self,
        *packages: Strings,
        requirements: Sequence[str] = (),
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        uv_version: str | None = None,
        force_build: bool = False,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] = (),
        gpu: Any = None,
    ) -> Image:
        """Installs packages with uv."""
        return self._then(
            "uv_pip_install",
            packages=recipe.flatten("Image.uv_pip_install", packages),
            requirements=[str(path) for path in requirements],
            find_links=find_links,
            index_url=index_url,
            extra_index_url=extra_index_url,
            pre=pre,
            extra_options=extra_options,
            uv_version=uv_version,
            force_build=force_build,
            **_build_options("Image.uv_pip_install", env, secrets, gpu),
        )

    def uv_sync(
        self,
        uv_project_dir: Path = "./",
        *,
        frozen: bool = True,
        groups: Sequence[str] = (),
        extras: Sequence[str] = (),
        extra_options: str = "",
        uv_version: str | None = None,
        force_build: bool = False,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] = (),
        gpu: Any = None,
    ) -> Image:
        """Installs what the lock file of a uv project says."""
        return self._then(
            "uv_sync",
            uv_project_dir=str(uv_project_dir),
            not_frozen=not frozen,
            groups=list(groups),
            extras=list(extras),
            extra_options=extra_options,
            uv_version=uv_version,
            force_build=force_build,
            **_build_options("Image.uv_sync", env, secrets, gpu),
        )

    def pip_install_from_requirements(self, requirements_txt: Path, *, force_build: bool = False, **pip: Any) -> Image:
        """Installs a requirements file; keywords as those of `pip_install`."""
        return self._then("pip_install_from_requirements", path=str(requirements_txt), force_build=force_build, **_pip(pip))

    def pip_install_from_pyproject(
        self, pyproject_toml: Path, optional_dependencies: Sequence[str] = (), *, force_build: bool = False, **pip: Any
    ) -> Image:
        """Installs the dependencies that a pyproject.toml names."""
        return self._then(
            "pip_install_from_pyproject",
            path=str(pyproject_toml),
            optional_dependencies=list(optional_dependencies),
            force_build=force_build,
            **_pip(pip),
        )

    def pip_install_private_repos(
        self, *repositories: str, git_user: str, secrets: Sequence[Secret] = (), force_build: bool = False, **pip: Any
    ) -> Image:
        """Installs packages of private Git repositories."""
        return self._then(
            "pip_install_private_repos",
            repositories=recipe.flatten("Image.pip_install_private_repos", repositories),
            git_user=git_user,
            secrets=recipe.names_of(secrets),
            force_build=force_build,
            **_pip(pip),
        )

    def poetry_install_from_file(
        self, poetry_pyproject_toml: Path, poetry_lockfile: Path | None = None, *, force_build: bool = False, **poetry: Any
    ) -> Image:
        """Installs what a Poetry project says."""
        lock = poetry_lockfile and str(poetry_lockfile)
        return self._then(
            "poetry_install_from_file", path=str(poetry_pyproject_toml), lock=lock, force_build=force_build, **_pip(poetry)
        )

    def micromamba_install(
        self,
        *packages: Strings,
        spec_file: Path | None = None,
        channels: Sequence[str] = (),
        force_build: bool = False,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] = (),
        gpu: Any = None,
    ) -> Image:
        """Installs packages with micromamba."""
        return self._then(
            "micromamba_install",
            packages=recipe.flatten("Image.micromamba_install", packages),
            spec_file=spec_file and str(spec_file),
            channels=list(channels),
            force_build=force_build,
            **_build_options("Image.micromamba_install", env, secrets, gpu),
        )

    # ------------------------------------------------------------ the system

    def apt_install(self, *packages: Strings, force_build: bool = False, **options: Any) -> Image:
        """Installs Debian packages."""
        names = recipe.flatten("Image.apt_install", packages)
        return self._then("apt_install", packages=names, force_build=force_build, **_pip(options))

    def run_commands(
        self,
        *commands: Strings,
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
            **_build_options("Image.run_commands", env, secrets, gpu),
        )

    def dockerfile_commands(
        self,
        *commands: Strings,
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
            **_build_options("Image.dockerfile_commands", env, secrets, gpu),
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
            **_build_options("Image.run_function", env, secrets, gpu),
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

    def add_local_dir(
        self, local_path: Path, remote_path: str, *, copy: bool = False, ignore: Ignore = ()
    ) -> Image:
        """Adds a directory: when a container starts, or into the image with `copy=True`."""
        remote = _absolute(remote_path)
        return self._add("add_local_dir", copy, local_path=str(local_path), remote_path=remote, ignore=_ignored(ignore))

    def add_local_python_source(self, *modules: str, copy: bool = False, ignore: Ignore = ()) -> Image:
        """Adds modules or packages of this machine, by the names they are imported with."""
        for module in modules:
            if not isinstance(module, str) or not all(part.isidentifier() for part in module.split(".")):
                raise InvalidError(f"Image.add_local_python_source takes module names such as 'helpers', not {module!r}")
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


def _build_options(what: str, env: Any, secrets: Sequence[Any], gpu: Any) -> dict[str, Any]:
    return {
        "env": dict(validation.environment(f"{what}: env", env or {})),
        "secrets": recipe.names_of(secrets),
        "gpu": [f"{device.name}:{device.count}" for device in validation.gpus_of(f"{what}: gpu", gpu)],
    }


def _pip(options: Mapping[str, Any]) -> dict[str, Any]:
    """Further keywords of an installer, as JSON can say them."""
    named = {key: recipe.names_of(value) if key == "secrets" else value for key, value in options.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in named.items()}


def _absolute(remote_path: str) -> str:
    if not isinstance(remote_path, str) or not remote_path.startswith("/"):
        raise InvalidError(f"the remote path must be absolute, such as '/root/data', not {remote_path!r}")
    return remote_path


def _ignored(ignore: Ignore) -> list[str]:
    if callable(ignore):
        return [f"{getattr(ignore, '__module__', '')}:{getattr(ignore, '__qualname__', repr(type(ignore)))}"]
    return [str(pattern) for pattern in ignore]
