"""What a recipe would give, before anything is done: its steps, each with an id and a title. Pure.

The id of a step covers its kind, its arguments, the digest of its files, and the id of the step before it: equal
recipes meet in one layer, whoever asks. Where a step is forced (`force_build`), its id gets a salt that no build had
before; so nothing that containers run from is ever changed. The salt is kept under the id that the step would have
had, and later builds of the same recipe use it too: they find what was forced last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from kedge.model.spec import ImageSpec, ImageStep

BUILDER = "1"
"""Changes whenever equal steps would give something else than before: everything is built anew then."""
MOUNTS = ("add_local_file", "add_local_dir", "add_local_python_source")
"""Kinds that are steps of a build only with `copy=True`; else their files are added when a container starts."""
BASES = (
    "debian_slim",
    "from_registry",
    "from_dockerfile",
    "from_scratch",
    "micromamba",
    "from_aws_ecr",
    "from_gcp_artifact_registry",
    "from_name",
    "from_id",
)
DEFAULT_BASE = ImageStep("debian_slim")
SHOWN = 60
"""Characters of a title."""

SaltOf = Callable[[str, bool], str]
"""(id without a salt, whether the step is forced) → salt, which may be empty."""


class Planned(Struct, frozen=True, kw_only=True):
    """One step of a plan."""

    number: int
    """Counted from 1."""
    step: ImageStep
    natural: str
    """The id without a salt."""
    id: str
    salt: str
    title: str
    position: int
    """Index of the step in the recipe; -1 for a base that the recipe leaves out."""


class Plan(Struct, frozen=True, kw_only=True):
    steps: tuple[Planned, ...]
    image: str
    """Id of the image that they give."""


def plan(spec: ImageSpec, platform: str, salt_of: SaltOf, force: bool = False) -> Plan:
    """The steps of a bound recipe. With `force` all of them are built anew."""
    steps = [(index, step) for index, step in enumerate(spec.steps) if is_build_step(step)]
    if not steps or steps[0][1].kind not in BASES:
        steps.insert(0, (-1, DEFAULT_BASE))
    planned: list[Planned] = []
    parent = f"{BUILDER} {platform}"
    for number, (position, step) in enumerate(steps, 1):
        natural = _natural(parent, step)
        salt = salt_of(natural, force or argument(step, "force_build", False) is True)
        parent = _digest(natural, salt) if salt else natural
        planned.append(
            Planned(
                number=number,
                step=step,
                natural=natural,
                id=parent,
                salt=salt,
                title=title_of(step),
                position=position,
            )
        )
    return Plan(steps=tuple(planned), image=f"im-{parent}")


def is_build_step(step: ImageStep) -> bool:
    return step.kind not in MOUNTS or argument(step, "copy", False) is True


def argument(step: ImageStep, name: str, default: Any = None) -> Any:
    """One argument of a step, decoded."""
    for key, text in step.arguments:
        if key == name:
            return msgspec.json.decode(text)
    return default


def title_of(step: ImageStep) -> str:
    """What people see of a step.

    >>> title_of(ImageStep("pip_install", (("packages", '["numpy", "fastapi"]'),)))
    'pip_install numpy fastapi'
    """
    shown: list[str] = []
    for name in _TOLD:
        value = argument(step, name)
        if value is not None:
            shown += [str(item) for item in value] if isinstance(value, list) else [str(value)]
    variables = argument(step, "vars")
    if isinstance(variables, dict):
        shown += variables  # the names: values may be nobody's business
    text = " ".join([step.kind, *(part.replace("\n", " ") for part in shown)])
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


_TOLD = (
    "python_version",
    "tag",
    "packages",
    "commands",
    "function",
    "modules",
    "repositories",
    "path",
    "local_path",
    "remote_path",
    "uv_project_dir",
    "requirements",
    "spec_file",
    "entrypoint",
    "cmd",
    "shell",
)


def _natural(parent: str, step: ImageStep) -> str:
    files = (step.files.digest, step.files.target, step.files.is_file) if step.files is not None else None
    given = [_hashed(*pair, bound=files is not None) for pair in step.arguments if pair[0] not in _NOT_IN_ID]
    return _digest(parent, msgspec.json.encode([step.kind, given, files]).decode())


_NOT_IN_ID = frozenset(["force_build", "ignore", "context_dir", "uv_project_dir", "secret", "secrets"])
"""Wishes about one build, and what says only where things are."""
_FILES = frozenset(["path", "lock", "requirements", "spec_file", "local_path"])


def _hashed(name: str, value: str, bound: bool) -> tuple[str, str]:
    """An argument as it counts: where files are on the caller's machine does not, once they are here."""
    if not bound or name not in _FILES:
        return name, value
    paths = msgspec.json.decode(value)
    names = [str(path).rsplit("/", 1)[-1] if str(path).startswith("/") else str(path) for path in _listed(paths)]
    return name, "\0".join(names)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
