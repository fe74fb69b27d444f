"""What libraries want done around a fork, held back where a fork has nothing to mend.

A fork server has one thread, and holds no lock when it forks. `threading` and `logging` would put in order what is in
order, `random` do what a container does itself, and kedge's runtime mend what it has not begun: in each container, and
that would copy memory there. What others have asked for is done, also what keeps containers from giving out each
other's ids. A container, which may have threads and may fork, has all of it as ever.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

Hook = Callable[[], object]

_NEEDLESS = ("threading", "logging", "random", "kedge.container", "kedge.sdk.server_process")
"""Modules, with all below them, whose hooks are."""

_register = getattr(os, "register_at_fork", None)
_holding = False
_held: list[dict[str, Hook]] = []
"""The arguments of each `os.register_at_fork`."""
_wanted: list[dict[str, Hook]] | None = None
"""Those that are not needless; None until something was forked."""


def hold() -> None:
    """Call it before the first import of anything that has hooks."""
    global _holding
    if _register is not None:
        _holding = True
        vars(os)["register_at_fork"] = _hold


def fork() -> int:
    """Like `os.fork`. Only for a process with one thread that has held its hooks."""
    global _wanted
    if _wanted is None:
        _wanted = _selected()
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
    bad = not hooks or hooks.keys() - known or not all(map(callable, hooks.values()))
    if bad or not _holding:  # Python says what is wrong; who took this function by name may call it in a container
        assert _register is not None
        _register(**hooks)
        return
    _held.append(hooks)


def _selected() -> list[dict[str, Hook]]:
    threading: Any = sys.modules.get("threading")
    needless = set(_NEEDLESS)
    if threading is not None and threading.active_count() > 1:
        # Up to 3.11, Python never forgets a thread of C code that has once asked who it is.
        needless.discard("threading")
    return [hooks for hooks in _held if any(_module_of(hook).isdisjoint(needless) for hook in hooks.values())]


def _module_of(hook: Hook) -> set[str]:
    """`a.b.c` as `{"a", "a.b", "a.b.c"}`."""
    names = (getattr(hook, "__module__", None) or "").split(".")
    return {".".join(names[: count + 1]) for count in range(len(names))}


def _call(all_hooks: Iterable[dict[str, Hook]], when: str) -> None:
    for hooks in all_hooks:
        if when in hooks:
            try:
                hooks[when]()
            except Exception:  # os.fork goes on, too
                sys.excepthook(*sys.exc_info())


def _release() -> None:
    """In a child: from now on it is a process like any other."""
    global _holding
    if _register is None or not _holding:
        return
    _holding = False
    if os.register_at_fork is _hold:  # not one that a library has put around it
        vars(os)["register_at_fork"] = _register
    for hooks in _held:
        _register(**hooks)
    threading: Any = sys.modules.get("threading")
    if threading is not None:
        threading.main_thread()._set_native_id()
