"""The user's code as it was when the app was created, imported in place of what lies on `sys.path` today.

The stored files are compiled (and their bytecode is kept) beside the snapshot, but everything that people and programs
see names the original: `__file__`, `__path__`, tracebacks. So data files beside a module are found, and a traceback
points to where the user edits. What a snapshot does not hold (a compiled extension in the package) is found there, too.
"""

from __future__ import annotations

import importlib.util
import linecache
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType

from kedge.model.spec import CodeSpec
from kedge.sdk.serializer import MAIN


class Snapshot:
    """Finder on `sys.meta_path` for what was shipped: a module or package and those that were imported from beside it,
    and the main script under its container name."""

    def __init__(self, code: CodeSpec) -> None:
        self._code = code
        self._top = code.module.partition(".")[0]
        """`python -m boat.main` ships all of `boat`, of which one module is the main one."""
        self._tops = frozenset([self._top])
        if code.digest:  # else it is the directory that people work in, where everything is found by the path
            self._tops |= {os.path.splitext(name)[0] for name in os.listdir(code.root)}
        self._loaders: dict[str, SnapshotLoader] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == MAIN and self._code.main:
            return self._spec(name, self._code.module, path)
        return self._spec(name, name, path) if name.partition(".")[0] in self._tops else None

    @property
    def main_in_package(self) -> str:
        """Full name of the main module where it is one of a package (`python -m package.module`)."""
        return self._code.module if self._code.main and self._code.is_package else ""

    def prime_linecache(self) -> None:
        """Lets tracebacks quote the stored lines, even where the original was edited meanwhile. Called on errors."""
        for shown, loader in list(self._loaders.items()):
            entry = linecache.cache.get(shown)
            if entry is None or len(entry) != 4 or entry[1] is not None:
                source = loader.get_source(loader.name) or ""
                # Without a modification time linecache leaves the entry alone.
                linecache.cache[shown] = (len(source), None, source.splitlines(keepends=True), shown)

    def _spec(self, name: str, stored_as: str, path: Sequence[str] | None) -> ModuleSpec | None:
        relative = os.path.join(*stored_as.split("."))
        for candidate, is_package in ((os.path.join(relative, "__init__.py"), True), (relative + ".py", False)):
            stored = os.path.join(self._code.root, candidate)
            if os.path.isfile(stored):
                shown = self._shown(candidate)
                loader = self._loaders[shown] = SnapshotLoader(name, stored, shown)
                locations = [os.path.dirname(shown)] if is_package else None
                return importlib.util.spec_from_file_location(
                    name, shown, loader=loader, submodule_search_locations=locations
                )
        if os.path.isdir(os.path.join(self._code.root, relative)):
            # A namespace package: what is in it is asked for here, too, and other parts of it may be installed.
            spec = ModuleSpec(name, None, is_package=True)
            shown = self._shown(relative)
            spec.submodule_search_locations = list(dict.fromkeys([shown, *self._elsewhere(name, path)]))
            return spec
        return None

    def _elsewhere(self, name: str, path: Sequence[str] | None) -> list[str]:
        """The other places of a namespace package, as those who find modules after us know them."""
        for finder in [finder for finder in sys.meta_path if finder is not self]:
            spec = finder.find_spec(name, path)
            if spec is not None:
                return list(spec.submodule_search_locations or ()) if spec.origin is None else []
        return []

    def _shown(self, relative: str) -> str:
        """Where a stored file came from. The origin may be the file, the package's directory, or what holds it."""
        origin = self._code.origin
        if not self._code.is_package:
            directory = os.path.dirname(origin) if origin.endswith(".py") else origin
            return os.path.join(directory, relative)
        if os.path.basename(origin) == "__init__.py":
            origin = os.path.dirname(origin)
        if os.path.basename(origin) == self._top:
            origin = os.path.dirname(origin)
        return os.path.join(origin, relative)


class SnapshotLoader(SourceFileLoader):
    """Loads a stored file under the name of its original."""

    def __init__(self, name: str, stored: str, shown: str) -> None:
        super().__init__(name, stored)
        self._shown = shown

    def get_code(self, fullname: str) -> CodeType | None:
        code = super().get_code(fullname)
        return None if code is None else _relocated(code, self._shown)


def _relocated(code: CodeType, filename: str) -> CodeType:
    """`code` and all functions in it, as if compiled from `filename`."""
    constants = tuple(_relocated(item, filename) if isinstance(item, CodeType) else item for item in code.co_consts)
    return code.replace(co_filename=filename, co_consts=constants)


def import_main(snapshot: Snapshot) -> ModuleType:
    """Runs the caller's main script under its container name, so that `if __name__ == "__main__"` stays false.

    Its classes are pickled by the names `__main__` and the script's own here and there, so it answers to all three.
    """
    spec = snapshot.find_spec(MAIN)
    if spec is None or spec.loader is None or spec.origin is None:
        raise ModuleNotFoundError("the snapshot of the main script is empty", name=MAIN)
    module = importlib.util.module_from_spec(spec)
    stem = os.path.splitext(os.path.basename(spec.origin))[0]
    if snapshot.main_in_package:
        # As `python -m` leaves it: relative imports look at these two.
        stem = snapshot.main_in_package
        module.__package__ = stem.rpartition(".")[0]
        module.__spec__ = ModuleSpec(stem, spec.loader, origin=spec.origin)
    sys.modules[MAIN] = sys.modules["__main__"] = module
    # Not over a module of that name: a script called random.py must not become everybody's `random`.
    sys.modules.setdefault(stem, module)
    spec.loader.exec_module(module)
    return module
