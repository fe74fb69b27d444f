"""What libraries want done around a fork, held back where a fork has nothing to mend.

A fork server has one thread, and holds no lock when it forks. `threading`, `logging` and `random` would put in order
what is in order, and kedge what it has not begun: in each of its containers, and that would copy half a megabyte there.
What other libraries have asked for is done. A container, which may have threads and may fork, has all of it as ever.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

Hook = Callable[[], object]

_NEEDLESS = ("threading", "logging", "random", "kedge")


_register = getattr(os, "register_at_fork", None)
_held: list[dict[str, Hook]] = []
"""The arguments of each `os.register_at_fork`."""
_wanted: list[dict[str, Hook]] = []
"""Those that are not needless."""


def hold() -> None:
    """Call it before the first import of anything that has hooks."""
    if _register is not None:
        vars(os)["register_at_fork"] = _hold


def fork() -> int:
    """Like `os.fork`. Only for a process with one thread that has held its hooks."""
    _call(reversed(_wanted), "before")
    process = -1
    try:
        process = os.fork()
    finally:
        _call(_wanted, "after_in_parent" if process else "after_in_child")
    if not process:
        _release()
    return process


def _hold(**hooks: Hook) -> None:
    known = {"before", "after_in_child", "after_in_parent"}
    if not hooks or hooks.keys() - known or not all(map(callable, hooks.values())):
        assert _register is not None
        _register(**hooks)  # says what is wrong
    _held.append(hooks)
    if not all(map(_is_needless, hooks.values())):
        _wanted.append(hooks)


def _is_needless(hook: Hook) -> bool:
    return (getattr(hook, "__module__", None) or "").partition(".")[0] in _NEEDLESS


def _call(all_hooks: Iterable[dict[str, Hook]], when: str) -> None:
    for hooks in all_hooks:
        if when in hooks:
            try:
                hooks[when]()
            except Exception:  # os.fork goes on, too
                sys.excepthook(*sys.exc_info())


def _release() -> None:
    """In a child: from now on it is a process like any other."""
    if _register is None or os.register_at_fork is not _hold:
        return
    vars(os)["register_at_fork"] = _register
    for hooks in _held:
        _register(**hooks)
    threading: Any = sys.modules.get("threading")
    if threading is not None:
        threading.main_thread()._set_native_id()
