"""What a step is built with: its `Workspace`, and which module builds which kind."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import msgspec

from kedge.exception import InvalidError
from kedge.images.chamber import Bound, Overlay
from kedge.images.plan import Planned, argument
from kedge.images.running import Runner, inherited
from kedge.images.store import Layer, Store
from kedge.model.spec import ImageStep

Handler = Callable[["Workspace"], Layer]


class Surroundings(Protocol):
    """Where commands of a step run: the machine as it is, or the root of the image so far."""

    def command(self, words: Sequence[str], directory: str = "/", binds: Sequence[Bound] = ()) -> list[str]:
        """`words` as a command of this machine that runs them there, and sees these files of the machine, too."""
        ...

    def variables(self, further: Mapping[str, str]) -> dict[str, str]:
        """An environment for commands there, with these variables in it."""
        ...


class Machine:
    """The machine as it is."""

    def command(self, words: Sequence[str], directory: str = "/", binds: Sequence[Bound] = ()) -> list[str]:
        return list(words)

    def variables(self, further: Mapping[str, str]) -> dict[str, str]:
        return {**inherited(os.environ), **further}


MODULES = {
    **dict.fromkeys(("debian_slim",), "python_base"),
    **dict.fromkeys(
        (
            "pip_install",
            "uv_pip_install",
            "pip_install_from_requirements",
            "pip_install_from_pyproject",
            "pip_install_private_repos",
        ),
        "python_steps",
    ),
    **dict.fromkeys(("uv_sync", "poetry_install_from_file"), "project_steps"),
    **dict.fromkeys(("env", "workdir", "entrypoint", "cmd", "shell", "from_id"), "settings"),
    **dict.fromkeys(
        (
            "apt_install",
            "run_commands",
            "run_function",
            "add_local_file",
            "add_local_dir",
            "add_local_python_source",
        ),
        "commands",
    ),
    **dict.fromkeys(("dockerfile_commands", "from_dockerfile"), "dockerfile"),
    **dict.fromkeys(
        ("from_registry", "from_aws_ecr", "from_gcp_artifact_registry", "from_scratch"),
        "registry",
    ),
    **dict.fromkeys(("micromamba", "micromamba_install"), "micromamba"),
}
"""Kind → module of this room, which has it in its table `HANDLERS`."""


def handler(kind: str) -> Handler:
    """Who builds steps of this kind."""
    module = MODULES.get(kind)
    if module is None:
        raise InvalidError(
            f"Image.{kind} cannot be built by this version of kedge; known steps are {', '.join(MODULES)}"
        )
    try:
        found: Handler = importlib.import_module(f"kedge.images.{module}").HANDLERS[kind]
    except (ModuleNotFoundError, KeyError):
        raise InvalidError(f"Image.{kind} cannot be built by this version of kedge") from None
    return found


class Workspace:
    """Where one step is built.

    Args:
        store: Where layers are.
        planned: The step.
        parent: What it starts from.
        runner: Runs commands, and tells how they go.
        secrets: Variables of the step's `secrets`.
        fresh: Whether versions are resolved anew although an earlier build has left a lock.
        host_apt: Whether Debian packages are those of this machine.
        volumes: What commands of the step see of its `volumes`, by the path. Without `upper` it is read-only.
    """

    def __init__(
        self,
        store: Store,
        planned: Planned,
        parent: Layer,
        runner: Runner,
        secrets: Mapping[str, str] | None = None,
        fresh: bool = False,
        host_apt: bool = False,
        volumes: Mapping[str, Overlay] | None = None,
    ) -> None:
        self.store = store
        self.planned = planned
        self.parent = parent
        self.runner = runner
        self.secrets = dict(secrets or {})
        self.fresh = fresh
        self.host_apt = host_apt
        self.volumes = dict(volumes or {})
        self.directory = store.directory(planned.id)
        """Its own: empty at the beginning, and removed unless the step succeeds."""
        self._began = time.monotonic()

    def upon(self, parent: Layer, step: ImageStep | None = None) -> Workspace:
        """The same place for the next part of a step that has several, such as a Dockerfile."""
        planned = self.planned if step is None else msgspec.structs.replace(self.planned, step=step)
        return Workspace(
            self.store, planned, parent, self.runner, self.secrets, self.fresh, self.host_apt, self.volumes
        )

    @property
    def step(self) -> ImageStep:
        return self.planned.step

    def argument(self, name: str, default: Any = None) -> Any:
        """What the recipe says about `name`, decoded from JSON."""
        return argument(self.step, name, default)

    def texts(self, name: str) -> list[str]:
        """An argument that is a string or a list of them, as a list."""
        value = self.argument(name)
        return [value] if isinstance(value, str) else [str(item) for item in value or ()]

    @property
    def files(self) -> Path:
        """The caller's files that this step reads."""
        files = self.step.files
        if files is None or not files.root or not os.path.isdir(files.root):
            raise InvalidError(
                f"the files of Image.{self.step.kind} are not on this machine; start the app again, so that they are "
                "sent anew"
            )
        return Path(files.root)

    def file(self, name: str) -> Path:
        """One of `files`, by the name that the recipe has for it: an absolute name is known by its last part."""
        root = self.files
        if self.step.files is not None and self.step.files.is_file:
            return next(path for path in root.iterdir() if path.is_file())
        for path in (root / name.lstrip("/"), root / os.path.basename(name)):
            if path.is_file() and path.resolve().is_relative_to(root.resolve()):
                return path
        raise InvalidError(f"Image.{self.step.kind}: there is no file {name!r} among those that were sent")

    def variables(self) -> dict[str, str]:
        """What commands of this step find in their environment beside `running.inherited`: the image's variables, then
        the step's `env`, then its secrets."""
        return {**dict(self.parent.image.variables), **dict(self.argument("env") or {}), **self.secrets}

    def say(self, text: str) -> None:
        """A line of log and progress."""
        self.runner.say(text)

    def run(
        self,
        command: Sequence[str],
        *,
        variables: Mapping[str, str] | None = None,
        directory: str | Path | None = None,
        shown: str = "",
        timeout: float | None = None,
        quiet: bool = False,
    ) -> None:
        """Runs a command to its end, its output streamed to log and progress. CommandFailed where it fails.

        Args:
            command: Program and arguments.
            variables: All that it finds in its environment, unless `running.inherited()` and `self.variables()`.
            directory: Where it runs.
            shown: What people see of it, where the command itself is not what they wrote.
            timeout: Seconds, where less than those of the whole build.
            quiet: What a failing command has said is in the log only.
        """
        given = variables if variables is not None else {**inherited(os.environ), **self.variables()}
        self.runner.run(list(command), given, directory or self.directory, shown=shown, timeout=timeout, quiet=quiet)

    def surroundings(self) -> AbstractContextManager[Surroundings]:
        """Where commands run that need what the image has so far: its own root, where it has one."""
        if not self.parent.image.layers:
            return nullcontext(Machine())
        from kedge.images import overlay

        return overlay.entered(self)

    def layer(self, **changes: Any) -> Layer:
        """The layer that this step gives: its parent, with these fields of `BuiltImage` or `Layer` replaced."""
        of_layer = {name: changes.pop(name) for name in ("cmd", "shell", "lock") if name in changes}
        image = msgspec.structs.replace(self.parent.image, **changes)
        return msgspec.structs.replace(
            self.parent,
            id=self.planned.id,
            parent=self.parent.id,
            kind=self.step.kind,
            title=self.planned.title,
            image=image,
            at=time.time(),
            seconds=time.monotonic() - self._began,
            **of_layer,
        )
