"""The old `modal.gpu` spelling: `gpu.A100(count=2)` gives `"A100:2"`, with a warning that names the string to write.

`gpu=kedge.gpu.H100()` and `gpu="H100"` are the same thing.
"""

from __future__ import annotations

import typing

from kedge.exception import InvalidError
from kedge.sdk import validation
from kedge.sdk.usage import nearest, old_spelling

_MEMORY_SIZES = {"40": "A100-40GB", "40GB": "A100-40GB", "80": "A100-80GB", "80GB": "A100-80GB"}


def _spell(name: str, written: str, count: int) -> str:
    validation.whole_number(f"kedge.gpu.{written}: count", count, least=1)
    text = name if count == 1 else f"{name}:{count}"
    old_spelling(f"kedge.gpu.{written}(…)", f'gpu="{text}"')
    return text


def A100(*, count: int = 1, size: str | None = None, memory: int | None = None) -> str:
    """`"A100"`, `"A100-40GB"` or `"A100-80GB"`, with the count."""
    wanted = size if size is not None else memory
    if wanted is None:
        return _spell("A100", "A100", count)
    name = _MEMORY_SIZES.get(str(wanted).upper())
    if name is None:
        raise InvalidError(f"kedge.gpu.A100: size is '40GB' or '80GB', not {wanted!r}; write gpu='A100-80GB'")
    return _spell(name, "A100", count)


class _Named:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *, count: int = 1) -> str:
        return _spell(self._name.upper(), self._name, count)

    def __repr__(self) -> str:
        return f"kedge.gpu.{self._name}"


_SIMPLE = ("T4", "L4", "A10G", "A10", "L40S", "H100", "H200", "B200", "Any")


def __getattr__(name: str) -> typing.Any:
    if name in _SIMPLE:
        return _Named(name)
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"kedge.gpu has no {name!r}.{nearest(name, [*_SIMPLE, 'A100'])} Write gpu='NAME' or gpu='NAME:2'"
    )
