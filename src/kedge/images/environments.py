"""Python environments of layers: made new, or out of the parent's, then changed by uv, compiled, locked, read-only.

An environment is one directory, `<layer>/venv`, whole in itself. What it has in common with its parent's is linked, not
copied, so a further step costs what it adds. Its path never changes, and is the same for containers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from kedge.exception import InvalidError
from kedge.images import bytecode, freshness, trees, uvtool
from kedge.images.advice import is_out_of_reach
from kedge.images.chamber import Bound
from kedge.images.running import CommandFailed, inherited
from kedge.images.steps import Surroundings, Workspace

_TOOLS = "/run/kedge"
"""Where `overlay` shows uv."""
_OWN = ("pyvenv.cfg", "CACHEDIR.TAG", ".gitignore", ".lock", "lib64")
"""What belongs to one environment only."""


FILES = "files"
"""Where the caller's files are for the time of a step, in its directory."""


class Environment:
    """The environment of the layer that is being built.

    Args:
        workspace: Its step.
        place: Where commands run.
    """

    def __init__(self, workspace: Workspace, place: Surroundings) -> None:
        self.path = workspace.directory / "venv"
        self.python = self.path / "bin" / "python"
        self._workspace = workspace
        self._place = place

    # ------------------------------------------------------------ making

    def create(self, interpreter: str, options: Sequence[str] = ()) -> None:
        """An empty one."""
        self.uv(["venv", "--quiet", "--no-project", *options, "--python", interpreter, str(self.path)])

    def derive(self) -> None:
        """One with everything that the parent's has, changes by commands included."""
        image = self._workspace.parent.image
        if not image.packages:
            raise InvalidError(
                f"Image.{self._workspace.step.kind} needs Python, and the image has none: give its base one with "
                "add_python=…, or begin with Image.debian_slim()"
            )
        before = Path(image.packages)
        if (before / "conda-meta").is_dir():  # its interpreter is in there
            trees.link_tree(before, self.path, leave=lambda path: path.endswith("/__pycache__"))
        else:
            shares = "include-system-site-packages = true" in (before / "pyvenv.cfg").read_text()
            self.create(os.path.realpath(image.python), ["--system-site-packages"] if shares else [])
            trees.link_tree(before, self.path, leave=_is_own)
        for upper in reversed(image.package_layers):
            trees.apply_upper(Path(upper), self.path)
        self._adopt_programs(str(before))

    def _adopt_programs(self, before: str) -> None:
        """Scripts in bin/ name their interpreter: from now on this environment's."""
        old, new = f"{before}/bin/".encode(), f"{self.path}/bin/".encode()
        for path in (self.path / "bin").iterdir():
            if path.is_symlink() or path.stat().st_size > 2**20:
                continue
            content = path.read_bytes()
            if old in content and content[:2] == b"#!":
                mode = path.stat().st_mode
                path.unlink()
                path.write_bytes(content.replace(old, new))
                path.chmod(mode | 0o200)

    # ------------------------------------------------------------ changing

    def uv(
        self,
        words: Sequence[str],
        variables: Mapping[str, str] | None = None,
        directory: str = "/",
        quiet: bool = False,
    ) -> None:
        """Runs uv. What people see of it is the command without the paths of this machine's programs."""
        workspace = self._workspace
        cache = workspace.store.cache
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        given = uvtool.environment(self._place.variables({**workspace.variables(), **(variables or {})}), cache)
        given.pop("VIRTUAL_ENV", None)
        if workspace.parent.image.layers:
            local = [
                path for path in uvtool.local_paths(given, words) if not path.startswith(str(workspace.store.path))
            ]
            command = self._place.command([f"{_TOOLS}/uv", *words], directory, [Bound(path, path) for path in local])
            workspace.run(command, variables=given, shown=_shown(words), quiet=quiet)
        else:
            command = [uvtool.program(), *words]
            workspace.run(command, variables=given, directory=directory, shown=_shown(words), quiet=quiet)

    def install(self, words: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
        """`uv pip install …` into it, or what an earlier build of this step has come to."""
        if self._as_before(words, variables):
            return
        command = ["pip", "install", *self._here()]
        names, asked = freshness.named(words), self._asked(words)
        if names and not self._workspace.fresh and asked.lately(names) and self._offline(command, words, variables):
            return
        try:
            self.uv([*command, *words], variables)
        except CommandFailed as error:
            if not is_out_of_reach(error.reason, error.lines):
                raise
            self._workspace.say("the index cannot be reached: trying with what was fetched before")
            if not self._offline(command, words, variables):
                raise
        else:
            if names:
                asked.note({*names, *map(freshness.canonical, installed(self.site_packages()))})

    def _offline(self, command: Sequence[str], words: Sequence[str], variables: Mapping[str, str] | None) -> bool:
        """Whether it could be done with what is in the cache of uv. Nothing is said where it could not."""
        try:
            self.uv([*command, "--offline", *words], variables, quiet=True)
        except CommandFailed:
            return False
        return True

    def _asked(self, words: Sequence[str]) -> freshness.Asked:
        store = self._workspace.store
        told = uvtool.environment(inherited(os.environ), store.cache)
        return freshness.Asked(store.path / "asked", freshness.way(words, told, os.path.realpath(self.python)))

    def _as_before(self, words: Sequence[str], variables: Mapping[str, str] | None) -> bool:
        """The packages of the lock that an earlier build has left, where there is one and they can still be had."""
        lock = self._workspace.store.lock_of(self._workspace.planned.id)
        if self._workspace.fresh or not lock.exists():
            return False
        if not lock.read_text().strip():
            return False
        copy = self._workspace.directory / "lock.txt"
        shutil.copyfile(lock, copy)
        self._workspace.say("installing the versions that this step had before (force_build=True resolves anew)")
        try:
            self.uv(["pip", "sync", *self._here(), *_index_options(words), str(copy)], variables)
        except CommandFailed:
            self._workspace.say("these cannot be had any more: resolving anew")
            return False
        return True

    def _here(self) -> list[str]:
        alone = ["--no-index"] if uvtool.without_index(inherited(os.environ)) else []
        return ["--no-progress", "--python", str(self.python), *alone]

    # ------------------------------------------------------------ finishing

    def finish(self) -> str:
        """Compiled, locked, read-only. Gives the path of its lock."""
        lock = self._lock()
        site, shelf = self.site_packages(), self._workspace.store.bytecode
        tag = site.parent.name.replace("python", "cpython-").replace(".", "")
        bytecode.compile_packages(site, str(self.python), tag, shelf, self._workspace.directory, self._compile)
        trees.make_read_only(self.path)
        trees.discard(self._workspace.directory / FILES)
        return lock

    def site_packages(self) -> Path:
        return next(path for path in (self.path / "lib").glob("python*/site-packages"))

    def _compile(self, command: Sequence[str]) -> None:
        self._workspace.run(self._place.command(command), variables={"PATH": os.defpath}, shown="compile modules")

    def _lock(self) -> str:
        """What is installed, by name and version; also kept where it survives the layer."""
        lines = sorted(_pinned(self.site_packages()), key=str.lower)
        path = self._workspace.directory / "lock.txt"
        text = "".join(f"{line}\n" for line in lines)
        path.write_text(text)
        kept = self._workspace.store.lock_of(self._workspace.planned.id)
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = kept.with_suffix(".new")
        draft.write_text(text)
        draft.replace(kept)
        return str(path)


def installed(site: Path) -> list[str]:
    """Names of the packages in a site-packages directory."""
    return [path.name.split("-")[0] for path in site.glob("*.dist-info")]


def _pinned(site: Path) -> list[str]:
    """`name==version`, or `name @ url`, of each installed package, as `pip freeze` says it."""
    import json
    from importlib.metadata import PathDistribution

    found = []
    for path in site.glob("*.dist-info"):
        metadata = PathDistribution(path)
        name, version = metadata.name, metadata.version
        origin = path / "direct_url.json"
        if origin.exists():
            facts = json.loads(origin.read_text())
            url = str(facts.get("url", ""))
            if "vcs_info" in facts:
                url = f"{facts['vcs_info']['vcs']}+{url}@{facts['vcs_info']['commit_id']}"
            if facts.get("subdirectory"):
                url += f"#subdirectory={facts['subdirectory']}"
            found.append(f"{name} @ {url}")
        else:
            found.append(f"{name}=={version}")
    return found


def _is_own(relative: str) -> bool:
    if relative in _OWN:
        return True
    directory, _, name = relative.rpartition("/")
    if name == "__pycache__":  # of what is there in the end, `bytecode` knows the right ones
        return True
    return directory == "bin" and name.startswith(("python", "activate", "deactivate", "pydoc.bat"))


_OF_INDEXES = (
    "--index-url",
    "--extra-index-url",
    "--find-links",
    "--index-strategy",
    "--allow-insecure-host",
    "--default-index",
    "--index",
)


def _index_options(words: Sequence[str]) -> list[str]:
    """Those options that say where packages come from."""
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in _OF_INDEXES:
            found += [word, next(rest, "")]
        elif word.partition("=")[0] in _OF_INDEXES or word == "--no-index":
            found.append(word)
    return found


def _shown(words: Sequence[str]) -> str:
    """A command as people would write it."""
    import shlex

    shown: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--python":
            next(rest, "")
        elif word not in ("--no-progress", "--quiet", "--no-project"):
            shown.append(word)
    return f"uv {shlex.join(shown)}"
