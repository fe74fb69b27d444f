"""Image recipes as values: how steps become `ImageStep`s, a digest, and the key of a function that runs at build time.

A step's arguments are JSON texts sorted by name; what is None, empty or False is left out, so that writing a default
changes nothing. The digest covers every step in order. Containers import the file again and must come to the same
digest, so it leaves out what depends on the machine: where local files are, what they hold, whose secrets are used; and
`force_build`, which is a wish about one build.

What a recipe cannot say as JSON (functions, secrets, the line it stands in) is in its note, which stays in this
process.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from kedge.exception import InvalidError
from kedge.model.spec import ImageSpec, ImageStep
from kedge.sdk import context, validation

if TYPE_CHECKING:
    from pathlib import PurePath
    from typing import Self

    Path = str | PurePath

Strings = str | list[str] | tuple[str, ...]

_NOT_IN_DIGEST = frozenset(["force_build", "ignore", "key", "secret", "secrets", "volumes"])
_LOCAL_FILES = frozenset(["local_path", "lock", "path", "requirements", "spec_file"])
_LOCAL_DIRECTORIES = frozenset(["context_dir", "uv_project_dir"])
_ELSEWHERE = frozenset(["workdir"])
"""Kinds of steps whose paths are not the caller's."""
MAIN = "__kedge_main__"
_OURS = "kedge.sdk."
_PYTHON_VERSION = re.compile(r"3\.\d{1,2}(\.\d{1,2})?t?")


class Note(NamedTuple):
    """What only this process knows of a step."""

    place: str = ""
    """The line that it was declared in: `app.py:12`."""
    ignore: Any = None
    """A function of a path."""
    secrets: tuple[Any, ...] = ()
    volumes: tuple[tuple[str, Any], ...] = ()
    function: Any = None
    """Of run_function."""


notes: dict[ImageStep, Note] = {}
"""By the step as it was declared; of equal ones the last."""


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
        return isinstance(other, Recipe) and _wishless(other.spec.steps) == _wishless(self.spec.steps)

    def __hash__(self) -> int:
        return hash(self.spec.digest)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {' → '.join(step.kind for step in self.spec.steps)}>"

    def _then(self, kind: str, /, note: Note | None = None, **arguments: Any) -> Self:
        if self._mounts:
            raise InvalidError(
                f"Image.{kind} comes after {self._mounts}, whose files are added when a container starts; move "
                f"{self._mounts} to the end of the recipe, or write {self._mounts}(…, copy=True) to bake them in"
            )
        return self._with(kind, arguments, note, "")

    def _with(self, kind: str, arguments: Mapping[str, Any], note: Note | None, mounts: str) -> Self:
        made = step(kind, arguments)
        notes[made] = (note or Note())._replace(place=_place())
        return type(self)((*self.spec.steps, made), mounts)


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
    hashed = [
        (s.kind, [_hashed(s.kind, *pair) for pair in s.arguments if pair[0] not in _NOT_IN_DIGEST]) for s in steps
    ]
    return ImageSpec(steps, _sha256(msgspec.json.encode(hashed)))


def _hashed(kind: str, key: str, value: str) -> tuple[str, str]:
    """An argument as it is on any machine: of an absolute path of this one, only the name of the file."""
    if kind in _ELSEWHERE or (key not in _LOCAL_FILES and key not in _LOCAL_DIRECTORIES):
        return key, value
    decoded = msgspec.json.decode(value)
    paths = decoded if isinstance(decoded, list) else [decoded]
    whole_directory = key in _LOCAL_DIRECTORIES or kind == "add_local_dir"
    names = [path if not os.path.isabs(path) else "" if whole_directory else os.path.basename(path) for path in paths]
    return key, "\0".join(names)


def _wishless(steps: tuple[ImageStep, ...]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(s.kind, [pair for pair in s.arguments if pair[0] != "force_build"]) for s in steps]


def _place() -> str:
    """The line outside of kedge that is being executed."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


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
        given = msgspec.json.encode([list(args), dict(kwargs)], order="deterministic").decode()
    except TypeError as error:
        raise InvalidError(f"Image.run_function: args and kwargs must be plain values ({error})") from None
    named = {"function": f"{raw.__module__}:{raw.__qualname__}", "given": given}
    if context.container() is not None:
        return named  # nothing is built there, and the source may be out of sight
    try:
        source = inspect.getsource(raw)
    except OSError:
        source = raw.__code__.co_code.hex()
    return named | {"key": _sha256("\0".join([source, *_constants(raw), given]).encode())}


def note(what: str, secrets: Sequence[Any]) -> Note:
    """A note of secrets, of which the recipe only has their names."""
    for secret in secrets or ():
        if isinstance(secret, (str, Mapping)):
            raise InvalidError(f"{what}: secrets are kedge.Secret values, such as kedge.Secret.from_name('NAME')")
    return Note(secrets=tuple(secrets or ()))


def _sha256(data: bytes) -> str:
    import hashlib  # not at the top, for the time of `import kedge`

    return hashlib.sha256(data).hexdigest()


def _constants(raw: Callable[..., Any]) -> list[str]:
    """Plain values among the globals that a function names: changing one changes what the function does."""
    code, values = raw.__code__, raw.__globals__
    plain = (str, bytes, int, float, bool, type(None), tuple, frozenset)
    return [
        f"{name}={values[name]!r}" for name in sorted(set(code.co_names)) if isinstance(values.get(name, ...), plain)
    ]


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
