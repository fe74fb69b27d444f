"""Image recipes as values: how steps become `ImageStep`s, a digest, and the key of a function that runs at build time.

A step's arguments are JSON texts sorted by name; what is None, empty or False is left out, so that writing a default
changes nothing. The digest covers every step in order, and not `force_build`, which is a wish about one build.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from kedge.exception import InvalidError
from kedge.model.spec import ImageSpec, ImageStep

_NOT_IN_DIGEST = frozenset(["force_build"])
_PYTHON_VERSION = re.compile(r"3\.\d{1,2}(\.\d{1,2})?t?")


def step(kind: str, arguments: Mapping[str, Any]) -> ImageStep:
    """One step; arguments are anything that JSON can say."""
    kept = {key: value for key, value in arguments.items() if value is not None and value is not False and value != ()}
    kept = {key: value for key, value in kept.items() if value != [] and value != {} and value != ""}
    encoded = [(key, msgspec.json.encode(value, order="deterministic").decode()) for key, value in kept.items()]
    return ImageStep(kind, tuple(sorted(encoded)))


def image_spec(steps: tuple[ImageStep, ...]) -> ImageSpec:
    """Steps with their digest."""
    hashed = [(s.kind, [pair for pair in s.arguments if pair[0] not in _NOT_IN_DIGEST]) for s in steps]
    return ImageSpec(steps, hashlib.sha256(msgspec.json.encode(hashed)).hexdigest() if steps else "")


def flatten(what: str, values: Iterable[Any]) -> list[str]:
    """Strings of `f("a", "b")`, `f(["a", "b"])` or a mix of both."""
    found: list[str] = []
    for value in values:
        items = value if isinstance(value, (list, tuple)) else [value]
        for item in items:
            if not isinstance(item, str):
                raise InvalidError(f"{what} takes strings, or lists of strings, not {item!r}")
            found.append(item)
    return found


def python_version(what: str, value: Any) -> str | None:
    """`3.12` or `3.12.4` as a string; a float is refused, because 3.10 is the same number as 3.1."""
    if value is None:
        return None
    if not isinstance(value, str) or not _PYTHON_VERSION.fullmatch(value):
        raise InvalidError(f"{what} is a string such as '3.12', not {value!r}")
    return value


def names_of(values: Sequence[Any]) -> list[str]:
    """Secrets and volumes in a recipe, by description: their contents never enter it."""
    return [repr(value) for value in values]


def build_function(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Arguments of a `run_function` step: the name to call, and a key of source, referenced constants and arguments."""
    raw = getattr(function, "get_raw_f", lambda: function)()
    if not inspect.isfunction(raw):
        raise InvalidError(f"Image.run_function takes a function, not {function!r}")
    if "<locals>" in raw.__qualname__ or raw.__name__ == "<lambda>":
        raise InvalidError(
            f"Image.run_function: {raw.__qualname__} is defined inside of another function; define it at the top level "
            f"of a module, so that the build can import it"
        )
    try:
        source = inspect.getsource(raw)
    except OSError:
        source = raw.__code__.co_code.hex()
    try:
        given = msgspec.json.encode([list(args), dict(kwargs)], order="deterministic").decode()
    except TypeError as error:
        raise InvalidError(f"Image.run_function: args and kwargs must be plain values ({error})") from None
    key = hashlib.sha256("\0".join([source, *_constants(raw), given]).encode()).hexdigest()
    return {"function": f"{raw.__module__}:{raw.__qualname__}", "key": key, "given": given}


def _constants(raw: Callable[..., Any]) -> list[str]:
    """Plain values among the globals that a function names: changing one changes what the function does."""
    code, values = raw.__code__, raw.__globals__
    plain = (str, bytes, int, float, bool, type(None), tuple, frozenset)
    return [f"{name}={values[name]!r}" for name in sorted(set(code.co_names)) if isinstance(values.get(name), plain)]
