"""What the user's code imports from installed packages, and what that costs: a fork server may hold it next time."""

from __future__ import annotations

import builtins
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

HEAVY_S = 0.002
"""An import below this is not worth holding."""
_INSTALLED = ("site-packages", "dist-packages")

clock = time.perf_counter


class ImportCosts:
    """Measures top-level imports while it is entered. The cost of a module includes what it imports in turn.

    Example:
        with ImportCosts() as costs:
            importlib.import_module("script")
        costs.heavy(preloaded=())                 # ["torch", "numpy"]
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._import: Any = None

    def __enter__(self) -> ImportCosts:
        self._import = builtins.__import__
        builtins.__import__ = self._measured  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if builtins.__import__ == self._measured:
            builtins.__import__ = self._import

    def heavy(self, preloaded: Sequence[str] = ()) -> list[str]:
        """Installed modules worth holding: those `preloaded` ones that were used, then new ones, dearest first."""
        kept = [name for name in preloaded if name in self._seconds]
        dear = sorted(self._seconds, key=lambda name: -self._seconds[name])
        return kept + [
            name for name in dear if name not in kept and self._seconds[name] >= HEAVY_S and _is_installed(name)
        ]

    def _measured(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        if level:
            return self._import(name, globals, locals, fromlist, level)
        top = name.partition(".")[0]
        if top in sys.modules:
            self._seconds.setdefault(top, 0.0)
            return self._import(name, globals, locals, fromlist, level)
        began = clock()
        try:
            return self._import(name, globals, locals, fromlist, level)
        finally:
            self._seconds[top] = max(self._seconds.get(top, 0.0), clock() - began)


def _is_installed(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    places = [getattr(spec, "origin", None) or "", *(getattr(spec, "submodule_search_locations", None) or ())]
    return any(part in place for place in places for part in _INSTALLED)
