"""What containers run: the user's code as it is now, and the environment that it runs in.

A snapshot is a copy of the module that declares the functions (the main script, or the whole top-level package around
it), and of what the program has imported from beside it, under `KEDGE_HOME/code/<digest>`: a version that was deployed
stays what it was. Equal code has equal digests and is stored once. Code that is installed (site-packages, the standard
library) is not copied: containers have it as well.
"""

from __future__ import annotations

import os
import shutil
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from types import ModuleType

from msgspec import structs

from kedge.exception import ModuleNotMountable
from kedge.model.spec import CodeSpec, EnvironmentSpec, FunctionSpec
from kedge.sdk import alias
from kedge.sdk.serializer import MAIN, PYTHON
from kedge.sdk.server_process import unusable
from kedge.wire.source import FILE_LIMIT, TOTAL_LIMIT, digest_of, write

DATA_LIMIT = 1024 * 1024
"""Bytes of a file that is not Python source, above which it stays where it is: weights and data sets are no code."""
_SKIPPED_DIRECTORIES = frozenset(("__pycache__", "node_modules"))
_SKIPPED_SUFFIXES = (".pyc", ".pyo", ".so", ".pyd", ".dylib", "~", ".swp")
_MAIN_NAMES = ("__main__", MAIN)


def take(specs: Sequence[FunctionSpec], home: str, include_source: bool = True) -> CodeSpec:
    """Stores the code of an app and says where it is.

    Args:
        specs: The functions and classes of the app.
        home: The state directory that holds snapshots.
        include_source: False: containers import the files where they are now.

    Raises ModuleNotMountable where a package is too large to be code, and Error where `home` cannot be written.
    """
    for module in _modules_of(specs):
        code = _describe(module)
        if code is not None:
            return _store(code, home) if include_source else code
    return CodeSpec()


def environment() -> EnvironmentSpec:
    """This process' interpreter, path, variables and directory."""
    directory = os.getcwd()
    path = [os.path.abspath(os.path.join(directory, entry)) for entry in sys.path]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("KEDGE_")}
    return EnvironmentSpec(
        python=sys.executable or shutil.which("python3") or "python3",
        python_version=PYTHON,
        sys_path=tuple(dict.fromkeys(path)),
        variables=tuple(sorted(variables.items())),
        directory=directory,
        alias_modal=alias.is_installed(),
    )


def program_name() -> str:
    """What an app without a name is called: the main script's name."""
    path = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    return os.path.splitext(os.path.basename(path))[0] or "app"


# ---------------------------------------------------------------- which files


def _modules_of(specs: Sequence[FunctionSpec]) -> Iterator[ModuleType]:
    """The modules that containers must import, the main script first; installed ones are left out."""
    names = dict.fromkeys(spec.module for spec in specs if spec.serialized is None)
    for name in sorted(names, key=lambda name: name not in _MAIN_NAMES):
        module = sys.modules.get(name)
        path = getattr(module, "__file__", None)
        if module is not None and path and not is_installed(os.path.abspath(path)):
            yield module


def is_installed(path: str) -> bool:
    """Whether a file lies where packages are installed, or is Python's own."""
    places = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")]
    places += [*site.getsitepackages(), site.getusersitepackages()]
    return any(path.startswith(os.path.abspath(place) + os.sep) for place in places if place)


def _describe(module: ModuleType) -> CodeSpec | None:
    """The module or package to ship, where it is now; None where it has no files of its own to ship."""
    path = os.path.abspath(str(module.__file__))
    if not os.path.isfile(path):
        return None
    if module.__name__ in _MAIN_NAMES:
        spec = module.__spec__
        name = spec.name if spec is not None and module.__name__ == "__main__" else ""
        if "." in name:
            # python -m package.module: the package is shipped, and this module of it is the main one.
            top = _parent(path, name.count("."))
            return CodeSpec(
                root=os.path.dirname(top), origin=os.path.dirname(top), module=name, is_package=True, main=True
            )
        stem = os.path.splitext(os.path.basename(path))[0]
        return CodeSpec(root=os.path.dirname(path), origin=path, module=stem, main=True)
    top_name = module.__name__.partition(".")[0]
    package = sys.modules.get(top_name, module)
    if hasattr(package, "__path__"):
        if getattr(package, "__file__", None):
            directory = os.path.dirname(os.path.abspath(str(package.__file__)))
        else:
            # A namespace package: of its places the one that the module is in. Others may be installed.
            steps = module.__name__.count(".") + (os.path.basename(path) == "__init__.py")
            directory = _parent(path, steps)
            if os.path.basename(directory) != top_name:
                return None
        return CodeSpec(root=os.path.dirname(directory), origin=directory, module=top_name, is_package=True)
    return CodeSpec(root=os.path.dirname(path), origin=path, module=top_name)


def _parent(path: str, levels: int) -> str:
    for _ in range(levels):
        path = os.path.dirname(path)
    return path


def _files(code: CodeSpec) -> Iterator[tuple[str, str]]:
    """(relative path, path) of what belongs to the module or package itself, in an order that never changes."""
    if code.is_package:
        return _tree(code.root, code.module.partition(".")[0])
    return iter([(f"{code.module}.py", code.origin)])


def _tree(root: str, top: str) -> Iterator[tuple[str, str]]:
    for directory, subdirectories, names in os.walk(os.path.join(root, top)):
        subdirectories[:] = sorted(
            name
            for name in subdirectories
            if name not in _SKIPPED_DIRECTORIES
            and not name.startswith(".")
            and not os.path.exists(os.path.join(directory, name, "pyvenv.cfg"))
        )
        for name in sorted(names):
            path = os.path.join(directory, name)
            if name.startswith(".") or name.endswith(_SKIPPED_SUFFIXES) or not os.path.isfile(path):
                continue
            if name.endswith(".py") or os.path.getsize(path) <= DATA_LIMIT:
                yield os.path.relpath(path, root), path


def _beside(code: CodeSpec) -> list[str]:
    """Names of the modules and packages that were imported from the same directory: files of the same project."""
    found = set()
    own = code.module.partition(".")[0]
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        top, _, _ = name.partition(".")
        if not isinstance(path, str) or top in (own, "kedge") or name in _MAIN_NAMES:
            continue
        place = os.path.join(code.root, *name.split("."))
        if os.path.abspath(path) in (f"{place}.py", os.path.join(place, "__init__.py")) and not is_installed(place):
            found.add(top)
    return sorted(found)


def _files_beside(root: str, top: str) -> Iterator[tuple[str, str]]:
    path = os.path.join(root, top)
    return _tree(root, top) if os.path.isdir(path) else iter([(f"{top}.py", f"{path}.py")])


def stored_files(code: CodeSpec) -> list[tuple[str, bytes]]:
    """What a stored snapshot holds, in the order that its digest was made in."""
    stored = structs.replace(code, origin=os.path.join(code.root, f"{code.module}.py"))
    own = code.module.partition(".")[0]
    tops = {os.path.splitext(name)[0] for name in os.listdir(code.root)} - {own, *_SKIPPED_DIRECTORIES}
    return _read(stored, sorted(tops))


# ---------------------------------------------------------------- storing them


def _read(code: CodeSpec, beside: Iterable[str]) -> list[tuple[str, bytes]]:
    """The files of a module or package, and of those beside it. ModuleNotMountable where the first are too much to be
    code; of the others, what is too much stays where it is."""
    files = [(relative, _content(path)) for relative, path in _bounded(_files(code))]
    if _is_too_much(files):
        raise ModuleNotMountable(
            f"{code.origin} is too large to be shipped as code: more than {FILE_LIMIT} files or "
            f"{TOTAL_LIMIT // 2**20} MiB. Move data out of the package, or declare the app with "
            "include_source=False, so that containers import it from where it is"
        )
    for top in beside:
        more = [(relative, _content(path)) for relative, path in _bounded(_files_beside(code.root, top))]
        if not _is_too_much([*files, *more]):
            files += more
    return files


def _bounded(files: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """No more than is needed to see that it is too much."""
    total = 0
    for number, (relative, path) in enumerate(files):
        yield relative, path
        total += os.path.getsize(path)
        if number > FILE_LIMIT or total > TOTAL_LIMIT:
            return


def _is_too_much(files: Sequence[tuple[str, bytes]]) -> bool:
    return len(files) > FILE_LIMIT or sum(len(content) for _, content in files) > TOTAL_LIMIT


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _store(code: CodeSpec, home: str) -> CodeSpec:
    files = _read(code, _beside(code))
    digest = digest_of(files)
    root = os.path.join(home, "code", digest)
    if os.path.isdir(root):
        with suppress(OSError):
            os.utime(root)  # what nobody uses for long is removed by the machine's server
    else:
        try:
            write(files, root)
        except OSError as error:
            raise unusable(home, error) from error
    return CodeSpec(
        digest=digest, root=root, origin=code.origin, module=code.module, is_package=code.is_package, main=code.main
    )
