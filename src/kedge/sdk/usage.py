"""How misuse is told: keyword-only decorators that name the fix, nearest-name hints, warnings at the user's own line.

Everything here speaks about the call that the user wrote, never about kedge's own frames.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from kedge.exception import DeprecationError, InvalidError
from kedge.sdk import context

P = ParamSpec("P")
R = TypeVar("R")

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` with a leading blank, or an empty string where nothing is near."""
    import difflib  # only where something went wrong

    by_fold = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), by_fold, n=1, cutoff=0.6)
    return f" Did you mean {by_fold[close[0]]!r}?" if close else ""


def keywords_only(
    form: str, *, name: str = "", accepts: Iterable[str] | None = None, bound: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Refuses positional, missing and unknown arguments with a text that shows `form`, the right way to write it.

    `name` is how users know the callable. `accepts` lists the keywords of a callable that takes `**options`; `bound`
    leaves `self` alone.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters.values()
        keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        required = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
        known = frozenset([*keywords, *(accepts or ())])
        known_in_order = [*keywords, *(accepts or ())]
        positional = int(bound)
        title = name or function.__name__

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            if len(args) > positional:
                raise InvalidError(_misplaced(title, args[positional], form))
            unknown = next((key for key in kwargs if key not in known), None)
            if unknown is not None:
                hint = nearest(unknown, known) or f" It takes {', '.join(known_in_order) or 'no arguments'}."
                raise InvalidError(f"{title} has no parameter {unknown!r}.{hint}")
            missing = next((key for key in required if key not in kwargs), None)
            if missing is not None:
                raise InvalidError(f"{title} needs {missing}=…; write {form}")
            return function(*args, **kwargs)

        return checked

    return decorate


def _misplaced(title: str, value: object, form: str) -> str:
    if inspect.isclass(value) or inspect.isroutine(value) or callable(value):
        return f"@{title} was used without parentheses; write {form}"
    return f"{title} takes keyword arguments only, but got {value!r} by position; write {form}"


def old_spelling(old: str, new: str) -> None:
    """Warns that `old` was written where `new` is the name today."""
    warn(f"{old} is an old spelling; write {new}", DeprecationError)


def warn(message: str, category: type[Warning]) -> None:
    """Warns at the nearest line outside kedge. A container that imports a file says nothing: its caller did, and there
    may be hundreds of containers."""
    here = context.container()
    if here is not None and here.control is None:
        return
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and is_own(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def calling_module() -> str:
    """Name of the module of the nearest line outside kedge."""
    frame = sys._getframe(1)
    while frame.f_back is not None and is_own(frame):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "__main__"))


def is_own(frame: FrameType) -> bool:
    """Whether it runs code of kedge."""
    return frame.f_code.co_filename.startswith(_PACKAGE)


def where(function: Callable[..., Any]) -> str:
    """`file.py:12` of a function or class, for messages about it; empty where unknown."""
    code = getattr(function, "__code__", None)
    if code is None:
        return ""
    return f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}"
