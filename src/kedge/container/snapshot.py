"""The user's code as it was when the app was created, imported in place of what lies on `sys.path` today.

The stored files are compiled (and their bytecode is kept) beside the snapshot, but tracebacks and warnings name the
original, where the user edits, and quote the stored lines. `__file__` and `__path__` name a place that the container
has, so that data files beside a module are found, and what a snapshot does not hold (a compiled extension):

* the original, where the container sees the machine's files;
* else the snapshot of a package, which holds its small data files as well, and the home of the container for a package
  of which the image has files that are not in the snapshot, and for modules without a package.
"""

from __future__ import annotations

import importlib.util
import linecache
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

from kedge.model.spec import CodeSpec
from kedge.sdk.serializer import MAIN


class Snapshot:
    """Finder on `sys.meta_path` for what was shipped: a module or package and those that were imported from beside it,
    and the main script under its container name."""

    def __init__(self, code: CodeSpec, home: str = "") -> None:
        """
        Args:
            code: What was shipped.
            home: Where files are that were added to the image; empty where the container sees the machine's files.
        """
        self._code = code
        self._home = home
        self._top = code.module.partition(".")[0]
        """`python -m boat.main` ships all of `boat`, of which one module is the main one."""
        self._tops = frozenset([self._top])
        if code.digest:  # else it is the directory that people work in, where everything is found by the path
            self._tops |= {os.path.splitext(name)[0] for name in os.listdir(code.root)}
        self._loaders: dict[str, SnapshotLoader] = {}
        self._places: dict[str, str] = {}
        """Where a module or package without a dot in its name is, for those who look for data beside it."""

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

    def quote_stored_lines(self) -> None:
        """Lets whatever quotes source (tracebacks, warnings, `inspect`) have the stored lines, even where the original
        was edited meanwhile, or is not in this container. Nothing is read before somebody asks."""
        read = linecache.updatecache

        def update(filename: str, module_globals: dict[str, Any] | None = None) -> list[str]:
            loader = self._loaders.get(filename)
            if loader is None:
                return read(filename, module_globals)
            try:
                source = loader.get_source(loader.name) or ""
            except (ImportError, SyntaxError):
                return []
            lines = source.splitlines(keepends=True)
            # Without a modification time linecache leaves the entry alone.
            linecache.cache[filename] = (len(source), None, lines, filename)
            return lines

        linecache.updatecache = update
        if sys.version_info < (3, 13):  # whose own hook reads the file that a traceback names
            threading.excepthook = _print_end_of_thread

    def _spec(self, name: str, stored_as: str, path: Sequence[str] | None) -> ModuleSpec | None:
        relative = os.path.join(*stored_as.split("."))
        for candidate, is_package in ((os.path.join(relative, "__init__.py"), True), (relative + ".py", False)):
            stored = os.path.join(self._code.root, candidate)
            if os.path.isfile(stored):
                shown, place = self._shown(candidate), self._place(candidate)
                loader = self._loaders[shown] = self._loaders[place] = SnapshotLoader(name, stored, shown)
                locations = [os.path.dirname(place)] if is_package else None
                return importlib.util.spec_from_file_location(
                    name, place, loader=loader, submodule_search_locations=locations
                )
        if os.path.isdir(os.path.join(self._code.root, relative)):
            # A namespace package: what is in it is asked for here, too, and other parts of it may be installed.
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = list(dict.fromkeys([self._place(relative), *self._elsewhere(name, path)]))
            return spec
        return None

    def _elsewhere(self, name: str, path: Sequence[str] | None) -> list[str]:
        """The other places of a namespace package, as those who find modules after us know them."""
        for finder in [finder for finder in sys.meta_path if finder is not self]:
            spec = finder.find_spec(name, path)
            if spec is not None:
                return list(spec.submodule_search_locations or ()) if spec.origin is None else []
        return []

    def _place(self, relative: str) -> str:
        """What `__file__` says of a stored file: where this container has what lies beside it."""
        if not self._home:
            return self._shown(relative)
        top = relative.partition(os.sep)[0]
        if top not in self._places:
            stored = os.path.join(self._code.root, top)
            stays = os.path.isdir(stored) and not _has_more(os.path.join(self._home, top), stored)
            self._places[top] = self._code.root if stays else self._home
        return os.path.join(self._places[top], relative)

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

    def source_to_code(self, data: Any, path: Any) -> CodeType:  # type: ignore[override]
        # What the compiler has to say (a syntax error, a warning) is about the original, too.
        return super().source_to_code(data, self._shown)

    def get_code(self, fullname: str) -> CodeType | None:
        code = super().get_code(fullname)
        return None if code is None else _relocated(code, self._shown)


def _relocated(code: CodeType, filename: str) -> CodeType:
    """`code` and all functions in it, as if compiled from `filename`."""
    constants = tuple(_relocated(item, filename) if isinstance(item, CodeType) else item for item in code.co_consts)
    return code.replace(co_filename=filename, co_consts=constants)


def _print_end_of_thread(args: threading.ExceptHookArgs) -> None:
    """Says what Python's hook says."""
    if args.exc_type is SystemExit or sys.stderr is None:
        return
    name = args.thread.name if args.thread is not None else threading.get_ident()
    text = "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
    print(f"Exception in thread {name}:\n{text}", end="", file=sys.stderr, flush=True)


def _has_more(directory: str, stored: str) -> bool:
    """Whether there is a file that is not stored."""
    for place, _, names in os.walk(directory):
        known = os.path.join(stored, os.path.relpath(place, directory))
        if not all(os.path.lexists(os.path.join(known, name)) for name in names):
            return True
    return False


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
