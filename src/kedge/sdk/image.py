"""`Image`: what containers have installed, as an immutable recipe. Every method gives a new image.

Nothing is read or built here: a recipe is steps and a digest of them (see `recipe`). When an app starts, the files that
its images name are read (`image_files`), and the server builds what it does not have (`image_builds`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec

from kedge.exception import InvalidError, UnavailableError
from kedge.sdk import context, recipe, validation
from kedge.sdk.packages import PackageSteps
from kedge.sdk.recipe import Note
from kedge.sdk.secret import Secret

if TYPE_CHECKING:
    from kedge.sdk.app import App
    from kedge.sdk.patterns import Ignore
    from kedge.sdk.recipe import Path

P = ParamSpec("P")


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
            Note(secrets=(secret,) if secret is not None else ()),
            tag=validation.text("Image.from_registry: tag", tag),
            secret=secret and repr(secret),
            setup_dockerfile_commands=list(setup_dockerfile_commands),
            force_build=force_build,
            add_python=recipe.python_version("Image.from_registry: add_python", add_python),
        )

    @staticmethod
    def from_aws_ecr(tag: str, secret: Secret | None = None, **options: Any) -> NoReturn:
        """AWS' registry has tokens that only its own tools make: refused, with what to write instead."""
        _refuse_registry("from_aws_ecr", tag, "aws ecr get-login-password")

    @staticmethod
    def from_gcp_artifact_registry(tag: str, secret: Secret | None = None, **options: Any) -> NoReturn:
        """Google's registry has tokens that only its own tools make: refused, with what to write instead."""
        _refuse_registry("from_gcp_artifact_registry", tag, "gcloud auth print-access-token")

    @staticmethod
    def from_dockerfile(
        path: Path,
        *,
        context_dir: Path | None = None,
        ignore: Ignore | None = None,
        build_args: Mapping[str, str] | None = None,
        add_python: str | None = None,
        secrets: Sequence[Secret] = (),
        gpu: Any = None,
        force_build: bool = False,
    ) -> Image:
        """What a Dockerfile describes. Without `ignore`, the .dockerignore file of its context says what it leaves out.

        COPY and ADD read from `context_dir`; without it, from the directory that the program runs in.
        """
        return Image()._then(
            "from_dockerfile",
            _note("Image.from_dockerfile", ignore, secrets),
            path=str(path),
            context_dir=context_dir and str(context_dir),
            **_ignored("Image.from_dockerfile", ignore),
            **recipe.build_options("Image.from_dockerfile", None, secrets, gpu),
            build_args=dict(build_args or {}),
            add_python=recipe.python_version("Image.from_dockerfile: add_python", add_python),
            force_build=force_build,
        )

    @staticmethod
    def from_scratch() -> NoReturn:
        """An empty file system, in which no Python could run: refused."""
        raise UnavailableError(
            "Image.from_scratch is an empty file system, and a container needs Python in it; begin with "
            "Image.debian_slim(), or with Image.from_registry('TAG', add_python='3.12')"
        )

    @staticmethod
    def from_name(name: str) -> Image:
        """An image that `publish` keeps under a name."""
        return Image()._then("from_name", name=validation.text("Image.from_name: name", name))

    @staticmethod
    def from_id(image_id: str) -> Image:
        """An image that the server has built before, by its id (`kedge image list`)."""
        return Image()._then("from_id", image_id=validation.text("Image.from_id: image_id", image_id))

    # ------------------------------------------------------------ the system

    def apt_install(self, *packages: recipe.Strings, force_build: bool = False, **options: Any) -> Image:
        """Installs Debian packages."""
        names = recipe.flatten("Image.apt_install", packages)
        note = Note(secrets=tuple(options.get("secrets") or ()))
        return self._then("apt_install", note, packages=names, force_build=force_build, **recipe.plain(options))

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
            _note("Image.run_commands", None, secrets, volumes),
            commands=recipe.flatten("Image.run_commands", commands),
            volumes={str(path): repr(volume) for path, volume in (volumes or {}).items()},
            force_build=force_build,
            **recipe.build_options("Image.run_commands", env, secrets, gpu),
        )

    def dockerfile_commands(
        self,
        *commands: recipe.Strings,
        context_dir: Path | None = None,
        ignore: Ignore | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] = (),
        gpu: Any = None,
        force_build: bool = False,
    ) -> Image:
        """Adds lines as a Dockerfile has them. COPY and ADD read from `context_dir`."""
        return self._then(
            "dockerfile_commands",
            _note("Image.dockerfile_commands", ignore, secrets),
            commands=recipe.flatten("Image.dockerfile_commands", commands),
            context_dir=context_dir and str(context_dir),
            **_ignored("Image.dockerfile_commands", ignore),
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
            _note("Image.run_function", None, secrets, volumes)._replace(function=raw_f),
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
        """Adds one file: when a container starts, or into the image with `copy=True`. A `remote_path` that ends in '/'
        is the directory that it goes to."""
        remote = _absolute("Image.add_local_file", remote_path)
        return self._add("add_local_file", copy, Note(), local_path=str(local_path), remote_path=remote)

    def add_local_dir(self, local_path: Path, remote_path: str, *, copy: bool = False, ignore: Ignore = ()) -> Image:
        """Adds a directory: when a container starts, or into the image with `copy=True`.

        Args:
            local_path: A directory of this machine.
            remote_path: Where containers find what it holds.
            copy: Make it part of the image, so that later steps can build on it; a change then builds the image anew.
            ignore: What is left out: patterns as in a .dockerignore file, a function of a path, or a
                `FilePatternMatcher`. All relative to `local_path`.
        """
        return self._add(
            "add_local_dir",
            copy,
            _note("Image.add_local_dir", ignore),
            local_path=str(local_path),
            remote_path=_absolute("Image.add_local_dir", remote_path),
            **_ignored("Image.add_local_dir", ignore),
        )

    def add_local_python_source(self, *modules: str, copy: bool = False, ignore: Ignore | None = None) -> Image:
        """Adds modules or packages of this machine, by the names they are imported with. Without `ignore`, of a package
        only its .py files; with `ignore=[]`, all."""
        for module in map(str, modules):
            if not all(part.isidentifier() for part in module.split(".")):
                raise InvalidError(
                    f"Image.add_local_python_source takes module names such as 'helpers', not {module!r}"
                )
        if not modules:
            raise InvalidError("Image.add_local_python_source needs the name of a module, such as 'helpers'")
        return self._add(
            "add_local_python_source",
            copy,
            _note("Image.add_local_python_source", ignore),
            modules=list(modules),
            **_ignored("Image.add_local_python_source", ignore),
        )

    def _add(self, kind: str, copy: bool, note: Note, **arguments: Any) -> Image:
        if copy:
            return self._then(kind, note, copy=True, **arguments)
        return self._with(kind, arguments, note, kind)

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

    def build(self, app: App | None = None) -> Image:
        """Has the server build the image now, rather than when an app that uses it starts.

        Args:
            app: Whose code `run_function` steps import. Without one, that of the main script.

        Raises ImageBuildError where it cannot be built.
        """
        from kedge.sdk import image_builds

        image_builds.build(self.spec, app)
        return self

    def publish(self, name: str) -> Image:
        """Builds the image and has the server keep it under a name, for `Image.from_name`."""
        from kedge.sdk import image_builds

        image_builds.build(self.spec, None, validation.name("Image.publish: name", name))
        return self


def _absolute(what: str, remote_path: str) -> str:
    remote = str(remote_path)
    if not remote.startswith("/"):
        raise InvalidError(f"{what}: the remote path must be absolute, such as '/root/data', not {remote_path!r}")
    if ".." in remote.split("/"):
        raise InvalidError(f"{what}: the remote path {remote_path!r} has '..' in it; write where it leads to")
    return remote


def _ignored(what: str, ignore: Ignore | None) -> dict[str, Any]:
    """The argument of a step; none where nothing was said."""
    if ignore is None:
        return {}
    from kedge.sdk import patterns  # not at the top, for the time of `import kedge`

    # No pattern is something else than nothing said, where files are left out by default.
    return {"ignore": patterns.described(what, ignore) or {"patterns": []}}


def _note(
    what: str, ignore: Ignore | None = None, secrets: Sequence[Secret] = (), volumes: Mapping[Any, Any] | None = None
) -> Note:
    return recipe.note(what, secrets)._replace(
        ignore=ignore if callable(ignore) else None,
        volumes=tuple((str(path), volume) for path, volume in (volumes or {}).items()),
    )


def _refuse_registry(method: str, tag: str, command: str) -> NoReturn:
    raise UnavailableError(
        f"Image.{method}({tag!r}) needs tokens that only that cloud's tools make; write Image.from_registry({tag!r}, "
        "secret=kedge.Secret.from_dict({'REGISTRY_USERNAME': …, 'REGISTRY_PASSWORD': …})) with what "
        f"`{command}` prints"
    )
