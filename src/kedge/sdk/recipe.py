"""Image recipes as values: how steps become `ImageStep`s, a digest, and the key of a function that runs at build time.

A step's arguments are JSON texts sorted by name; what is None, empty or False is left out, so that writing a default
changes nothing. The digest covers every step in order, and not `force_build`, which is a wish about one build.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import msgspec

from kedge.exception import InvalidError
from kedge.model.spec import ImageSpec, ImageStep
from kedge.sdk import validation

if TYPE_CHECKING:
    from pathlib import PurePath

    Path = str | PurePath

Strings = str | list[str] | tuple[str, ...]

_NOT_IN_DIGEST = frozenset(["force_build"])
_PYTHON_VERSION = re.compile(r"3\.\d{1,2}(\.\d{1,2})?t?")


class Recipe:
    """An immutable chain of steps."""

    __slots__ = ("_mounts", "spec")

    def __init__(self, steps: tuple[ImageStep, ...] = (), mounts: str = "") -> None:
        self.spec: ImageSpec = image_spec(steps)
        """Steps and digest."""
        self._mounts = mounts
        """The last step that mounts local files, after which no build step may come."""

    @property
    def digest(self) -> str:
        """Equal for equal recipes, in any process."""
        return self.spec.digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and other.spec.digest == self.spec.digest

    def __hash__(self) -> int:
        return hash(self.spec.digest)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {' → '.join(step.kind for step in self.spec.steps)}>"

    def _then(self, kind: str, /, **arguments: Any) -> Self:
        if self._mounts:
            raise InvalidError(
                f"Image.{kind} comes after {self._mounts}, whose files are added when a container starts; move "
                f"{self._mounts} to the end of the recipe, or write {self._mounts}(…, copy=True) to bake them in"
            )
        return type(self)((*self.spec.steps, step(kind, arguments)))


def step(kind: str, arguments: Mapping[str, Any]) -> ImageStep:
    """One step; arguments are anything that JSON can say."""
    kept = {key: value for key, value in arguments.items() if value is not None and value is not False and value != ()}
    kept = {key: value for key, value in kept.items() if value != [] and value != {} and value != ""}
    encoded = [(key, msgspec.json.encode(value, order="deterministic").decode()) for key, value in kept.items()]
    return ImageStep(kind, tuple(sorted(encoded)))


def image_spec(steps: tuple[ImageStep, ...]) -> ImageSpec:
    """Steps with their digest."""
    if not steps:
        return ImageSpec()
    hashed = [(s.kind, [pair for pair in s.arguments if pair[0] not in _NOT_IN_DIGEST]) for s in steps]
    return ImageSpec(steps, _sha256(msgspec.json.encode(hashed)))


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
    key = _sha256("\0".join([source, *_constants(raw), given]).encode())
    return {"function": f"{raw.__module__}:{raw.__qualname__}", "key": key, "given": given}


def _sha256(data: bytes) -> str:
    import hashlib  # not at the top, for the time of `import kedge`

    return hashlib.sha256(data).hexdigest()


def _constants(raw: Callable[..., Any]) -> list[str]:
    """Plain values among the globals that a function names: changing one changes what the function does."""
    code, values = raw.__code__, raw.__globals__
    plain = (str, bytes, int, float, bool, type(None), tuple, frozenset)
    return [f"{name}={values[name]!r}" for name in sorted(set(code.co_names)) if isinstance(values.get(name), plain)]


def build_options(what: str, env: Any, secrets: Sequence[Any], gpu: Any) -> dict[str, Any]:
    return {
        "env": dict(validation.environment(f"{what}: env", env or {})),
        "secrets": names_of(secrets),
        "gpu": [f"{device.name}:{device.count}" for device in validation.gpus_of(f"{what}: gpu", gpu)],
    }


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Further keywords of an installer, as JSON can say them."""
    named = {key: names_of(value) if key == "secrets" else value for key, value in options.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in named.items()}
