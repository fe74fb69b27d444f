"""Steps that install packages by name, by requirements files, or from private repositories."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from kedge.exception import InvalidError
from kedge.images import uvtool
from kedge.images.environments import FILES, Environment
from kedge.images.steps import Workspace
from kedge.images.store import Layer

_PIP = ("--index-strategy", "unsafe-best-match")
"""As pip does: the best version of all indexes. uv by itself stops at the first index that has the package."""


def pip_install(workspace: Workspace) -> Layer:
    return install(workspace, [*_PIP, *options(workspace), "--", *_some(workspace, workspace.texts("packages"))])


def uv_pip_install(workspace: Workspace) -> Layer:
    files = [part for name in workspace.texts("requirements") for part in ("--requirement", _copied(workspace, name))]
    packages = workspace.texts("packages")
    return install(workspace, [*options(workspace), *files, "--", *_some(workspace, packages, bool(files))])


def pip_install_from_requirements(workspace: Workspace) -> Layer:
    file = _copied(workspace, workspace.argument("path", ""))
    return install(workspace, [*_PIP, *options(workspace), "--requirement", file])


def pip_install_from_pyproject(workspace: Workspace) -> Layer:
    path = workspace.file(workspace.argument("path", ""))
    try:
        project = tomllib.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidError(f"{path.name} cannot be read: {error}") from None
    packages = dependencies(project, workspace.texts("optional_dependencies"))
    if not packages:
        return install(workspace, None)
    return install(workspace, [*_PIP, *options(workspace), "--", *packages])


def dependencies(project: Mapping[str, object], groups: Sequence[str]) -> list[str]:
    """What a pyproject.toml says is needed.

    >>> dependencies({"project": {"dependencies": ["numpy"], "optional-dependencies": {"web": ["fastapi"]}}}, ["web"])
    ['numpy', 'fastapi']
    """
    table = project.get("project")
    if not isinstance(table, dict) or "dependencies" not in table:
        raise InvalidError(
            "pyproject.toml has no [project] with dependencies; write them there, or use Image.pip_install or "
            "Image.poetry_install_from_file"
        )
    found = [str(item) for item in table["dependencies"]]
    optional = table.get("optional-dependencies", {})
    for group in groups:
        if group not in optional:
            known = ", ".join(sorted(optional)) or "none"
            raise InvalidError(f"pyproject.toml has no optional dependencies {group!r}; it has: {known}")
        found += [str(item) for item in optional[group]]
    return found


def pip_install_private_repos(workspace: Workspace) -> Layer:
    repositories, user = workspace.texts("repositories"), str(workspace.argument("git_user", ""))
    addresses = [repository_address(repository) for repository in repositories]
    tokens: dict[str, str] = {}
    for repository in repositories:
        host = repository.split("/")[0]
        name = TOKENS[host]
        if not workspace.secrets.get(name):
            raise InvalidError(
                f"Image.pip_install_private_repos: {repository} needs a token: give it a secret with {name}, such as "
                f'secrets=[kedge.Secret.from_name("NAME", required_keys=["{name}"])]'
            )
        tokens[host] = workspace.secrets[name]
    return install(workspace, [*_PIP, *options(workspace), "--", *addresses], git_access(user, tokens))


TOKENS = {"github.com": "GITHUB_TOKEN", "gitlab.com": "GITLAB_TOKEN"}
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+){2,}(@[\w./-]+)?(#subdirectory=[\w./-]+)?")


def repository_address(repository: str) -> str:
    """
    >>> repository_address("github.com/acme/tools@1.2")
    'git+https://github.com/acme/tools@1.2'
    """
    if not _REPOSITORY.fullmatch(repository) or repository.split("/")[0] not in TOKENS:
        raise InvalidError(
            f"Image.pip_install_private_repos: {repository!r} is no repository; write github.com/OWNER/NAME@VERSION or "
            "gitlab.com/OWNER/NAME@VERSION"
        )
    return f"git+https://{repository}"


def git_access(user: str, tokens: Mapping[str, str]) -> dict[str, str]:
    """Variables that make git use these tokens. In no command line, no lock and no log."""
    found = {"GIT_CONFIG_COUNT": str(len(tokens)), "GIT_TERMINAL_PROMPT": "0"}
    for number, (host, token) in enumerate(tokens.items()):
        found[f"GIT_CONFIG_KEY_{number}"] = f"url.https://{user}:{token}@{host}/.insteadOf"
        found[f"GIT_CONFIG_VALUE_{number}"] = f"https://{host}/"
    return found


# ---------------------------------------------------------------- what they have in common


def install(workspace: Workspace, words: Sequence[str] | None, variables: Mapping[str, str] | None = None) -> Layer:
    """The parent's environment with more in it; None: nothing more."""
    with workspace.surroundings() as place:
        environment = Environment(workspace, place)
        environment.derive()
        if words is not None:
            environment.install(words, variables)
        return changed(workspace, environment)


def changed(workspace: Workspace, environment: Environment) -> Layer:
    """The layer of a step that has changed the environment and nothing else."""
    lock = environment.finish()
    return workspace.layer(python=str(environment.python), packages=str(environment.path), package_layers=(), lock=lock)


def options(workspace: Workspace) -> list[str]:
    """The options of uv that say what the step's arguments say."""
    found: list[str] = []
    for name, option in (
        ("index_url", "--index-url"),
        ("extra_index_url", "--extra-index-url"),
        ("find_links", "--find-links"),
    ):
        for value in workspace.texts(name):
            found += [option, value]
    if workspace.argument("pre"):
        found += ["--prerelease", "allow"]
    return found + uvtool.pip_options(workspace.argument("extra_options") or "")


def _some(workspace: Workspace, packages: list[str], others: bool = False) -> list[str]:
    if not packages and not others:
        raise InvalidError(f"Image.{workspace.step.kind} has nothing to install; name at least one package")
    return packages


def _copied(workspace: Workspace, name: str) -> str:
    """A file of the caller's, where commands of the step can read it; with it what lies beside it, since requirements
    files name each other."""
    return str(copied(workspace) / workspace.file(name).relative_to(workspace.files))


def copied(workspace: Workspace) -> Path:
    """The caller's files, in a directory of the step's own that goes with its end."""
    target = workspace.directory / FILES
    if not target.exists():
        shutil.copytree(workspace.files, target)
    return target


HANDLERS = {
    "pip_install": pip_install,
    "uv_pip_install": uv_pip_install,
    "pip_install_from_requirements": pip_install_from_requirements,
    "pip_install_from_pyproject": pip_install_from_pyproject,
    "pip_install_private_repos": pip_install_private_repos,
}
