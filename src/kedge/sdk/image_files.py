"""What an image reads of this machine: its steps with their files, as they are when an app starts.

A recipe names files; here they are found, copied (`local_files`), and the steps say where they lie in the copy instead
of where they lay here. What is added without `copy=True` becomes a mount. Nothing of this happens in containers.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kedge.exception import InvalidError, ModuleNotMountable, NotFoundError
from kedge.model.spec import HOME, CodeSpec, ImageSpec, ImageStep, LocalFiles
from kedge.sdk import alias, contexts, patterns, project_files, recipe, snapshot, volume_mounts
from kedge.sdk.local_files import files_in, keep, keep_contents
from kedge.sdk.patterns import FilePatternMatcher
from kedge.sdk.serializer import PYTHON

BASES = ("debian_slim", "micromamba", "from_registry", "from_dockerfile", "from_name", "from_id")
_MOUNTS = ("add_local_file", "add_local_dir", "add_local_python_source")
_OWN_PYTHON = ("debian_slim", "micromamba")
"""Bases that have the caller's Python version unless they are given one."""


def bound(spec: ImageSpec, code: CodeSpec, home: str) -> ImageSpec:
    """The image with its files, as they are now. Its digest stays that of the declaration.

    Args:
        spec: As it was declared.
        code: What `run_function` imports its function from.
        home: The state directory.

    Raises NotFoundError or InvalidError that name the line of the recipe.
    """
    if not spec.steps:
        return spec
    steps: list[ImageStep] = []
    mounts: list[LocalFiles] = []
    python_path: list[str] = []
    for declared in spec.steps:
        step = Step(declared, home, code)
        arguments, files = _READERS.get(declared.kind, _nothing)(step)
        if declared.kind == "add_local_python_source":
            python_path = [HOME]
        if files is not None and declared.kind in _MOUNTS and not step.arguments.get("copy"):
            mounts.append(files)
        else:
            made = recipe.step(declared.kind, arguments | _secrets(step.note, arguments) | _volumes(step))
            steps.append(ImageStep(made.kind, made.arguments, files))
    if not steps or steps[0].kind not in BASES:
        steps.insert(0, recipe.step("debian_slim", {"python_version": PYTHON}))
    return ImageSpec(tuple(steps), spec.digest, "", tuple(mounts), tuple(python_path))


class Step:
    """One step that is being bound."""

    def __init__(self, declared: ImageStep, home: str, code: CodeSpec) -> None:
        self.kind = declared.kind
        self.arguments: dict[str, Any] = {key: msgspec.json.decode(value) for key, value in declared.arguments}
        self.note = recipe.notes.get(declared, recipe.Note())
        self.code = code
        self._home = home
        self.what = f"Image.{self.kind}" + (f" ({_near(self.note.place)})" if self.note.place else "")
        """For errors."""

    def file(self, name: str) -> str:
        """The path of a file that must be there."""
        return self.existing(self.arguments[name], "file")

    def directory(self, name: str) -> str:
        return self.existing(self.arguments[name], "directory")

    def existing(self, given: str, kind: str = "file") -> str:
        """The absolute path of what is there; NotFoundError, or InvalidError where it is of the other kind."""
        path = os.path.abspath(os.path.expanduser(given))
        if os.path.isdir(path) if kind == "directory" else os.path.isfile(path):
            return path
        if os.path.exists(path):
            other = "a file; use add_local_file" if kind == "directory" else "a directory, and a file is needed"
            raise InvalidError(f"{self.what}: {path} is {other}")
        beside = os.path.join(os.path.dirname(self.note.place.rpartition(":")[0]), given)
        hint = "."
        if self.note.place and not os.path.isabs(given) and os.path.exists(beside):
            hint = f"; there is one beside the file that declares it: write Path(__file__).parent / {given!r}"
        raise NotFoundError(f"{self.what}: there is no {kind} {path}{hint}")

    def ignored(self, matcher: FilePatternMatcher | None = None) -> tuple[Callable[[str], bool], Callable[[str], bool]]:
        """Which files are left out, and which directories whole. `matcher` where the step says nothing."""
        if "ignore" in self.arguments:
            described = self.arguments["ignore"]
            if isinstance(described, Mapping) and "callable" in described:
                ignore = self.note.ignore
                if ignore is None:
                    raise InvalidError(f"{self.what}: ignore is a function that another process has defined")
                return (lambda path: bool(ignore(Path(path)))), (lambda path: False)
            matcher = patterns.matcher_of(described)
        if matcher is None:
            return (lambda path: False), (lambda path: False)
        return matcher, matcher.covers

    def kept(self, files: Mapping[str, str], target: str = "", is_file: bool = False) -> LocalFiles:
        digest, root = keep(self.what, files, self._home)
        return LocalFiles(digest, root, target, is_file)

    def stored(self, contents: Mapping[str, bytes]) -> LocalFiles:
        """Files that are not on disk yet."""
        digest, root = keep_contents(contents, self._home)
        return LocalFiles(digest, root)

    def with_arguments(self, **changes: Any) -> dict[str, Any]:
        return {**self.arguments, **changes}


Bound = tuple[dict[str, Any], LocalFiles | None]


def _nothing(step: Step) -> Bound:
    return step.arguments, None


def _base(step: Step) -> Bound:
    return {"python_version": PYTHON, **step.arguments}, None


# ---------------------------------------------------------------- what is added


def _local_file(step: Step) -> Bound:
    path, target = step.file("local_path"), step.arguments["remote_path"]
    name = os.path.basename(path)
    if target.endswith("/"):
        target += name
    arguments = {"remote_path": target, "copy": step.arguments.get("copy")}
    return arguments, step.kept({name: path}, target, is_file=True)


def _local_dir(step: Step) -> Bound:
    path, target = step.directory("local_path"), step.arguments["remote_path"]
    target = os.path.normpath(target)
    arguments = {"remote_path": target, "copy": step.arguments.get("copy")}
    return arguments, step.kept(files_in(step.what, path, *step.ignored()), target)


def _python_source(step: Step) -> Bound:
    files: dict[str, str] = {}
    for module in step.arguments["modules"]:
        files.update(module_files(step, module))
    return {"modules": step.arguments["modules"], "copy": step.arguments.get("copy")}, step.kept(files, HOME)


def module_files(step: Step, module: str) -> dict[str, str]:
    """The files of a module or package, where they lie below the directory that it is imported from."""
    top, *below = module.split(".")
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        found = None
    if found is None or (found.origin is None and not found.submodule_search_locations):
        raise ModuleNotMountable(
            f"{step.what}: there is no module {top!r} that could be imported here; it must lie beside the program, or "
            "on sys.path"
        )
    if found.origin in ("built-in", "frozen"):
        raise ModuleNotMountable(f"{step.what}: {top} is a part of Python itself, which containers have")
    if not found.submodule_search_locations:
        if below:
            raise ModuleNotMountable(f"{step.what}: {top} is a module, not a package; it has no {module}")
        return {os.path.basename(str(found.origin)): str(found.origin)}
    files: dict[str, str] = {}
    ignored, covers = step.ignored(patterns.NON_PYTHON_FILES)
    for place in _places(found.submodule_search_locations, below):
        directory, prefix = place, top
        for name in below:
            initial = os.path.join(directory, "__init__.py")
            if os.path.isfile(initial):  # of a package around it
                files[f"{prefix}/__init__.py"] = initial
            directory, prefix = os.path.join(directory, name), f"{prefix}/{name}"
        if os.path.isdir(directory):
            inside = files_in(step.what, directory, lambda path: _cache(path) or ignored(path), covers)
            files |= {f"{prefix}/{relative}": path for relative, path in inside.items()}
        elif below and os.path.isfile(f"{directory}.py"):
            files[f"{prefix}.py"] = f"{directory}.py"
        else:
            raise ModuleNotMountable(f"{step.what}: there is no {module} in {place}")
    return files


def _places(locations: Iterable[str], below: Sequence[str]) -> list[str]:
    """The directories of a package to take. A namespace package has several: those that have what lies `below`, and of
    these only the installed ones where there is no other."""
    places = [os.path.abspath(place) for place in locations]
    if len(places) > 1:
        paths = {place: os.path.join(place, *below) for place in places}
        places = [place for place, path in paths.items() if os.path.isdir(path) or os.path.isfile(f"{path}.py")]
        places = [place for place in places if not snapshot.is_installed(place)] or places or list(paths)
    return places


def _cache(path: str) -> bool:
    return "__pycache__" in path.split("/")


# ---------------------------------------------------------------- what is read


def _requirements(step: Step) -> Bound:
    files, names = project_files.requirements(step.what, [step.file("path")])
    return step.with_arguments(path=names[0]), step.kept(files)


def _uv_pip(step: Step) -> Bound:
    given = step.arguments.get("requirements")
    if not given:
        return step.arguments, None
    files, names = project_files.requirements(step.what, [step.existing(path) for path in given])
    return step.with_arguments(requirements=names), step.kept(files)


def _pyproject(step: Step) -> Bound:
    return step.with_arguments(path="pyproject.toml"), step.kept({"pyproject.toml": step.file("path")})


def _poetry(step: Step) -> Bound:
    project = step.file("path")
    files = {"pyproject.toml": project}
    lock = step.arguments.get("lock")
    beside = os.path.join(os.path.dirname(project), "poetry.lock")
    if lock:
        files["poetry.lock"] = step.existing(lock)
    elif os.path.isfile(beside) and not step.arguments.get("ignore_lockfile"):
        files["poetry.lock"] = beside
    locked = "poetry.lock" if "poetry.lock" in files else None
    return step.with_arguments(path="pyproject.toml", lock=locked), step.kept(files)


def _uv_sync(step: Step) -> Bound:
    directory = step.existing(step.arguments.get("uv_project_dir", "."), "directory")
    files = project_files.uv_project(step.what, directory, frozen=not step.arguments.get("not_frozen"))
    return step.with_arguments(uv_project_dir="."), step.kept(files)


def _conda(step: Step) -> Bound:
    if "spec_file" not in step.arguments:
        return step.arguments, None
    path = step.file("spec_file")
    return step.with_arguments(spec_file=os.path.basename(path)), step.kept({os.path.basename(path): path})


def _dockerfile(step: Step) -> Bound:
    path = step.file("path")
    lines = Path(path).read_text("utf-8-sig", "replace").splitlines()
    arguments = {**_without(step.arguments, "path", "ignore", "context_dir"), "commands": lines}
    return arguments, _context(step, lines, path)


def _dockerfile_commands(step: Step) -> Bound:
    lines = [line for command in step.arguments.get("commands", ()) for line in command.splitlines()]
    arguments = {**_without(step.arguments, "ignore", "context_dir"), "commands": lines}
    return arguments, _context(step, lines, "")


def _context(step: Step, lines: Sequence[str], dockerfile: str) -> LocalFiles | None:
    sources = contexts.sources(step.what, lines)
    if not sources:
        return None
    directory = step.existing(step.arguments.get("context_dir") or ".", "directory")
    ignored, covers = step.ignored(contexts.ignore_file(directory, dockerfile))
    return step.kept(contexts.chosen(step.what, directory, sources, ignored, covers))


def _function(step: Step) -> Bound:
    """The function's key stands for its files: what else changes in them is no reason to run it again."""
    module, _, name = step.arguments["function"].partition(":")
    arguments = step.with_arguments(alias=alias.is_installed())
    if step.code.root and not step.arguments.get("no_source") and _is_in(module, step.code):
        if module == "__main__" or module == recipe.MAIN:
            arguments["function"] = f"{step.code.module}:{name}"
        return arguments, LocalFiles(step.arguments["key"][:32], step.code.root)
    if module not in ("__main__", recipe.MAIN):
        return arguments, None  # it is installed in the image, or add_local_python_source(copy=True) brings it
    import cloudpickle

    if step.note.function is None:
        raise InvalidError(f"{step.what}: {name} is a function that another process has defined")
    raw = getattr(step.note.function, "get_raw_f", lambda: step.note.function)()
    kept = step.stored({"function.pickle": cloudpickle.dumps(raw)})
    return arguments | {"pickled": "function.pickle"}, LocalFiles(step.arguments["key"][:32], kept.root)


def _is_in(module: str, code: CodeSpec) -> bool:
    if module in ("__main__", recipe.MAIN):
        return code.main
    place = os.path.join(code.root, *module.split("."))
    return os.path.isfile(f"{place}.py") or os.path.isfile(os.path.join(place, "__init__.py"))


def _secrets(note: recipe.Note, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The references in the place of descriptions; `image_builds` replaces those that the server does not know yet."""
    references = [msgspec.to_builtins(secret.reference) for secret in note.secrets]
    if not references:
        return {}
    return {"secret": references[0]} if "secret" in arguments else {"secrets": references}


def _volumes(step: Step) -> dict[str, Any]:
    """The references in the place of descriptions."""
    if not step.note.volumes:
        return {}
    found = volume_mounts.references(f"{step.what}: volumes", dict(step.note.volumes))
    return {"volumes": [msgspec.to_builtins(reference) for reference in found]}


def _near(place: str) -> str:
    """From the working directory, where it lies in there."""
    relative = os.path.relpath(place)
    return place if relative.startswith("..") else relative


def _without(arguments: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in names}


_READERS: dict[str, Callable[[Step], Bound]] = {
    **dict.fromkeys(_OWN_PYTHON, _base),
    "add_local_file": _local_file,
    "add_local_dir": _local_dir,
    "add_local_python_source": _python_source,
    "pip_install_from_requirements": _requirements,
    "uv_pip_install": _uv_pip,
    "pip_install_from_pyproject": _pyproject,
    "poetry_install_from_file": _poetry,
    "uv_sync": _uv_sync,
    "micromamba_install": _conda,
    "from_dockerfile": _dockerfile,
    "dockerfile_commands": _dockerfile_commands,
    "run_function": _function,
}
