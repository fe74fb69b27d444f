"""Steps that install what a project says: uv's lock, Poetry's lock."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from kedge.exception import InvalidError
from kedge.images.environments import Environment
from kedge.images.python_steps import changed, copied
from kedge.images.running import CommandFailed
from kedge.images.steps import Workspace
from kedge.images.store import Layer


def uv_sync(workspace: Workspace) -> Layer:
    """The packages of uv.lock, without the project itself, beside what is installed already."""
    frozen = not workspace.argument("not_frozen")
    project = _project(workspace, "pyproject.toml")
    if frozen and not (project / "uv.lock").exists():
        raise InvalidError(
            "Image.uv_sync: there is no uv.lock beside pyproject.toml; make one with `uv lock`, or write frozen=False"
        )
    words = ["sync", "--no-progress", "--no-install-workspace", "--inexact", "--project", str(project)]
    words += ["--frozen"] if frozen else []
    for group in workspace.texts("groups"):
        words += ["--group", group]
    for extra in workspace.texts("extras"):
        words += ["--extra", extra]
    words += shlex.split(workspace.argument("extra_options") or "")
    with workspace.surroundings() as place:
        environment = Environment(workspace, place)
        environment.derive()
        environment.uv(
            [*words, "--python", str(environment.python)],
            {"UV_PROJECT_ENVIRONMENT": str(environment.path), "UV_PYTHON": str(environment.python)},
        )
        return changed(workspace, environment)


def poetry_install_from_file(workspace: Workspace) -> Layer:
    """The packages of poetry.lock, or of pyproject.toml where there is no lock, without the project itself.

    Poetry says which versions; uv installs them."""
    project = _project(workspace, workspace.argument("path", "pyproject.toml"))
    lock = workspace.argument("lock")
    if lock and Path(lock).name != "poetry.lock":
        shutil.copyfile(workspace.file(lock), project / "poetry.lock")
    if not (project / "poetry.lock").exists() and not workspace.argument("ignore_lockfile"):
        workspace.say("there is no poetry.lock: versions are resolved now")
    with workspace.surroundings() as place:
        environment = Environment(workspace, place)
        environment.derive()
        requirements = project / "kedge-requirements.txt"
        words = ["tool", "run", "--quiet", "--from", _poetry(workspace), "--with", "poetry-plugin-export", "poetry"]
        words += ["export", "--format", "requirements.txt", "--without-hashes", "--output", str(requirements)]
        words += ["--directory", str(project)]
        for name, option in (("with_", "--with"), ("without", "--without"), ("only", "--only")):
            if groups := workspace.texts(name):
                words += [option, ",".join(groups)]
        try:
            environment.uv(words, directory=str(project))
        except CommandFailed as error:
            raise CommandFailed(
                error.command,
                f"{error.reason}. Poetry runs by `uv tool run`, which fetches it from the package index",
                error.lines,
            ) from None
        environment.install(["--requirement", str(requirements)])
        return changed(workspace, environment)


def _poetry(workspace: Workspace) -> str:
    version = workspace.argument("poetry_version")
    return f"poetry=={version}" if version and version != "latest" else "poetry"


def _project(workspace: Workspace, name: str) -> Path:
    """The caller's project, copied: what tools write there is the step's own."""
    directory = copied(workspace)
    found = workspace.file(name)
    if found.name != "pyproject.toml":
        shutil.copyfile(found, directory / "pyproject.toml")
        return directory
    return (directory / found.relative_to(workspace.files)).parent


HANDLERS = {"uv_sync": uv_sync, "poetry_install_from_file": poetry_install_from_file}
