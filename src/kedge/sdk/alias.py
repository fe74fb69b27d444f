"""`import modal` under kedge: the name `modal`, and every `modal.x`, are the kedge modules of the same meaning.

`install()` puts a finder in front of all others, so the alias wins over an installed package of that name. It makes no
second copy of any module: `modal.App is kedge.App`, and `modal.exception is kedge.exception`. What has no counterpart
is a ModuleNotFoundError that says so.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

ALIAS = "modal"

SUBMODULES = {
    "app": "kedge.sdk.app",
    "cls": "kedge.sdk.cls",
    "dict": "kedge.sdk.dicts",
    "exception": "kedge.exception",
    "experimental": "kedge.experimental",
    "file_pattern_matcher": "kedge.sdk.patterns",
    "functions": "kedge.sdk.function",
    "gpu": "kedge.gpu",
    "image": "kedge.sdk.image",
    "output": "kedge.sdk.output",
    "partial_function": "kedge.sdk.decorators",
    "queue": "kedge.sdk.queues",
    "retries": "kedge.sdk.retries",
    "runner": "kedge.sdk.runner",
    "schedule": "kedge.sdk.schedule",
    "secret": "kedge.sdk.secret",
    "volume": "kedge.sdk.volume",
}
"""Counterparts of public submodules."""


class AliasFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `modal` and everything below it among kedge's modules."""

    def __init__(self) -> None:
        self._specs: dict[str, importlib.machinery.ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != ALIAS and not fullname.startswith(f"{ALIAS}."):
            return None
        if fullname != ALIAS and fullname.partition(".")[2] not in SUBMODULES:
            raise ModuleNotFoundError(
                f"{fullname} has no counterpart in kedge; `import {ALIAS}` means kedge here (--no-alias: not)",
                name=fullname,
            )
        return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname == ALIAS)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        name = "kedge" if spec.name == ALIAS else SUBMODULES[spec.name.partition(".")[2]]
        module = importlib.import_module(name)
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just written the alias' spec into the module, which has run already; undo that.
        assert module.__spec__ is not None
        module.__spec__ = self._specs.pop(module.__spec__.name)


def install() -> None:
    """Makes `import modal` mean kedge in this process. Modules of that name that were imported before are forgotten."""
    if not is_installed():
        for name in [name for name in sys.modules if name == ALIAS or name.startswith(f"{ALIAS}.")]:
            del sys.modules[name]
        sys.meta_path.insert(0, AliasFinder())
    sys.modules[ALIAS] = importlib.import_module("kedge")


def uninstall() -> None:
    """Takes the alias away again."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, AliasFinder)]
    for name in [name for name in sys.modules if name == ALIAS or name.startswith(f"{ALIAS}.")]:
        del sys.modules[name]


def is_installed() -> bool:
    return any(isinstance(finder, AliasFinder) for finder in sys.meta_path)
