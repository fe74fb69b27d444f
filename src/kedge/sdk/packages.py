"""The steps of an image that install Python packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kedge.sdk import recipe
from kedge.sdk.secret import Secret

if TYPE_CHECKING:
    from typing import Self

    from kedge.sdk.recipe import Path


class PackageSteps(recipe.Recipe):
    """A recipe that can install packages. Each method gives a new recipe with one step more."""

    __slots__ = ()

    def pip_install(
        self,
        *packages: recipe.Strings,
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] = (),
        gpu: Any = None,
    ) -> Self:
        """Installs packages with pip."""
        return self._then(
            "pip_install",
            recipe.note("Image.pip_install", secrets),
            packages=recipe.flatten("Image.pip_install", packages),
            find_links=find_links,
            index_url=index_url,
            extra_index_url=extra_index_url,
            pre=pre,
            extra_options=extra_options,
            force_build=force_build,
            **recipe.build_options("Image.pip_install", env, secrets, gpu),
        )

    def uv_pip_install(
        self,
        *packages: recipe.Strings,
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
    ) -> Self:
        """Installs packages with uv."""
        return self._then(
            "uv_pip_install",
            recipe.note("Image.uv_pip_install", secrets),
            packages=recipe.flatten("Image.uv_pip_install", packages),
            requirements=[str(path) for path in requirements],
            find_links=find_links,
            index_url=index_url,
            extra_index_url=extra_index_url,
            pre=pre,
            extra_options=extra_options,
            uv_version=uv_version,
            force_build=force_build,
            **recipe.build_options("Image.uv_pip_install", env, secrets, gpu),
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
    ) -> Self:
        """Installs what the lock file of a uv project says."""
        return self._then(
            "uv_sync",
            recipe.note("Image.uv_sync", secrets),
            uv_project_dir=str(uv_project_dir),
            not_frozen=not frozen,
            groups=list(groups),
            extras=list(extras),
            extra_options=extra_options,
            uv_version=uv_version,
            force_build=force_build,
            **recipe.build_options("Image.uv_sync", env, secrets, gpu),
        )

    def pip_install_from_requirements(self, requirements_txt: Path, *, force_build: bool = False, **pip: Any) -> Self:
        """Installs a requirements file; keywords as those of `pip_install`."""
        return self._then(
            "pip_install_from_requirements",
            recipe.note("Image.pip_install_from_requirements", pip.get("secrets", ())),
            path=str(requirements_txt),
            force_build=force_build,
            **recipe.plain(pip),
        )

    def pip_install_from_pyproject(
        self, pyproject_toml: Path, optional_dependencies: Sequence[str] = (), *, force_build: bool = False, **pip: Any
    ) -> Self:
        """Installs the dependencies that a pyproject.toml names."""
        return self._then(
            "pip_install_from_pyproject",
            recipe.note("Image.pip_install_from_pyproject", pip.get("secrets", ())),
            path=str(pyproject_toml),
            optional_dependencies=list(optional_dependencies),
            force_build=force_build,
            **recipe.plain(pip),
        )

    def pip_install_private_repos(
        self, *repositories: str, git_user: str, secrets: Sequence[Secret] = (), force_build: bool = False, **pip: Any
    ) -> Self:
        """Installs packages of private Git repositories."""
        return self._then(
            "pip_install_private_repos",
            recipe.note("Image.pip_install_private_repos", secrets),
            repositories=recipe.flatten("Image.pip_install_private_repos", repositories),
            git_user=git_user,
            secrets=recipe.names_of(secrets),
            force_build=force_build,
            **recipe.plain(pip),
        )

    def poetry_install_from_file(
        self,
        poetry_pyproject_toml: Path,
        poetry_lockfile: Path | None = None,
        *,
        force_build: bool = False,
        **poetry: Any,
    ) -> Self:
        """Installs what a Poetry project says."""
        lock = poetry_lockfile and str(poetry_lockfile)
        return self._then(
            "poetry_install_from_file",
            recipe.note("Image.poetry_install_from_file", poetry.get("secrets", ())),
            path=str(poetry_pyproject_toml),
            lock=lock,
            force_build=force_build,
            **recipe.plain(poetry),
        )

    def micromamba_install(
        self,
        *packages: recipe.Strings,
        spec_file: Path | None = None,
        channels: Sequence[str] = (),
        force_build: bool = False,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] = (),
        gpu: Any = None,
    ) -> Self:
        """Installs packages with micromamba."""
        return self._then(
            "micromamba_install",
            recipe.note("Image.micromamba_install", secrets),
            packages=recipe.flatten("Image.micromamba_install", packages),
            spec_file=spec_file and str(spec_file),
            channels=list(channels),
            force_build=force_build,
            **recipe.build_options("Image.micromamba_install", env, secrets, gpu),
        )
