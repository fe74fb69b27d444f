"""Checks of single values, with messages that name the parameter, the value and what to write instead. Pure."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kedge.exception import InvalidError
from kedge.model.gpus import ANY_GPU, NAMES
from kedge.model.spec import DEFAULT_CPU, DEFAULT_MEMORY, RUNGS, GpuRequest, Resources
from kedge.sdk.usage import nearest

_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_MIB = 1024 * 1024
_UNITS = {
    "": _MIB,
    "k": 1000, "kb": 1000, "ki": 1024, "kib": 1024,
    "m": 1000**2, "mb": 1000**2, "mi": 1024**2, "mib": 1024**2,
    "g": 1000**3, "gb": 1000**3, "gi": 1024**3, "gib": 1024**3,
    "t": 1000**4, "tb": 1000**4, "ti": 1024**4, "tib": 1024**4,
}  # fmt: skip

VARIABLE_LIMIT = 128 * 1024
"""Bytes of one environment variable, with its name: no Linux process can be given more."""


def whole_number(what: str, value: Any, *, least: int = 0, most: int | None = None) -> int:
    """`value` where it is an int (not a bool) within the bounds."""
    bounds = f"at least {least}" if most is None else f"{least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidError(f"{what} must be a whole number ({bounds}), not {_shown(value)}")
    if value < least or (most is not None and value > most):
        raise InvalidError(f"{what} must be {bounds}, got {value}")
    return value


def number(what: str, value: Any, unit: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidError(f"{what} must be a number of {unit}, not {_shown(value)}")
    return float(value)


def seconds(what: str, value: Any) -> float:
    """`value` where it is a positive number of seconds."""
    if value is None:
        raise InvalidError(f"{what} cannot be None: give a number of seconds, for example {what.split()[-1]}=3600")
    checked = number(what, value, "seconds")
    if checked <= 0:
        raise InvalidError(f"{what} must be more than 0 seconds, got {value}")
    return checked


def flag(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidError(f"{what} is True or False, not {_shown(value)}")
    return value


def text(what: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidError(f"{what} must be a non-empty string, not {_shown(value)}")
    return value


def texts(what: str, value: Any) -> tuple[str, ...]:
    """One string or a sequence of strings."""
    if isinstance(value, str):
        return (text(what, value),)
    if not isinstance(value, Sequence):
        raise InvalidError(f"{what} must be a string or a list of strings, not {_shown(value)}")
    return tuple(text(what, item) for item in value)


def name(what: str, value: Any) -> str:
    """A name that fits into ids, paths and addresses."""
    text(what, value)
    if not re.fullmatch(r"[A-Za-z0-9_.\-]{1,64}", value):
        raise InvalidError(f"{what} may hold letters, digits, '.', '-' and '_', 64 at most; got {value!r}")
    return str(value)


def environment(what: str, value: Any) -> tuple[tuple[str, str], ...]:
    """Environment variables, sorted. None as a value leaves the variable out."""
    if not isinstance(value, Mapping):
        raise InvalidError(f"{what} must be a dict of strings, such as {{'MODE': 'fast'}}, not {_shown(value)}")
    pairs = []
    for key, item in value.items():
        if not isinstance(key, str) or not key or "=" in key or "\0" in key:
            raise InvalidError(f"{what}: {key!r} cannot be the name of an environment variable")
        if item is None:
            continue
        if not isinstance(item, str):
            raise InvalidError(f"{what}: {key} must be a string, not {_shown(item)}; write {key!r}: {str(item)!r}")
        if "\0" in item:
            raise InvalidError(f"{what}: {key} holds a null character, which no variable can")
        try:
            size = len(f"{key}={item}".encode()) + 1
        except UnicodeEncodeError:
            raise InvalidError(f"{what}: {key!r} holds what is no text: half of a surrogate pair") from None
        if size > VARIABLE_LIMIT:
            raise InvalidError(
                f"{what}: {key} has {size} bytes, and the system takes {VARIABLE_LIMIT} at most; put what is larger "
                "into a file (Image.add_local_file) or a kedge.Volume"
            )
        pairs.append((key, item))
    return tuple(sorted(pairs))


# ---------------------------------------------------------------- resources


def resources(
    owner: str, *, cpu: Any = None, memory: Any = None, gpu: Any = None, vram: Any = None, ephemeral_disk: Any = None
) -> Resources:
    """Checked resources of one container; None means the default."""
    cores, cores_limit = cpu_of(f"{owner}: cpu", cpu)
    mebibytes, mebibytes_limit = memory_of(f"{owner}: memory", memory)
    if ephemeral_disk is not None:
        whole_number(f"{owner}: ephemeral_disk (MiB)", ephemeral_disk, least=1)
    given = {key: value for key, value in (("gpu", gpu), ("vram", vram)) if value is not None}
    return Resources(
        cores,
        cores_limit,
        mebibytes,
        mebibytes_limit,
        ephemeral_disk=ephemeral_disk,
        **shared(owner, Resources(), given),
    )


def cpu_of(what: str, value: Any) -> tuple[float, float | None]:
    """Request and limit in cores of `4`, `0.5` or `(request, limit)`."""
    if value is None:
        return DEFAULT_CPU, None
    request, limit = _pair(what, value)
    if isinstance(request, str) or isinstance(limit, str):
        raise InvalidError(f"{what} is a number of cores, such as cpu=2.0, not {_shown(value)}")
    cores = number(what, request, "cores")
    if cores <= 0:
        raise InvalidError(f"{what} must be more than 0 cores, got {request}")
    if limit is None:
        return cores, None
    if number(what, limit, "cores") < cores:
        raise InvalidError(f"{what}: the limit {limit} is below the request {request}; write cpu=(request, limit)")
    return cores, float(limit)


def memory_of(what: str, value: Any) -> tuple[int, int | None]:
    """Request and limit in MiB of `1024`, `"16Gi"` or `(request, limit)`.

    >>> memory_of("memory", "16Gi"), memory_of("memory", (512, "1Gi"))
    ((16384, None), (512, 1024))
    """
    if value is None:
        return DEFAULT_MEMORY, None
    request, limit = _pair(what, value)
    mebibytes = _mebibytes(what, request)
    if limit is None:
        return mebibytes, None
    mebibytes_limit = _mebibytes(what, limit)
    if mebibytes_limit < mebibytes:
        raise InvalidError(
            f"{what}: the limit {limit!r} is below the request {request!r}; write memory=(request, limit)"
        )
    return mebibytes, mebibytes_limit


def _pair(what: str, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, (tuple, list)):
        return value, None
    if len(value) != 2:
        raise InvalidError(f"{what} is one value or a pair (request, limit), not {_shown(value)}")
    return value[0], value[1]


def _mebibytes(what: str, value: Any) -> int:
    if isinstance(value, str):
        match = _MEMORY.fullmatch(value)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise InvalidError(
                f'{what}={value!r} is no amount of memory; write MiB as a number, or "16Gi", "512Mi", "2GB"'
            )
        value = math.ceil(float(match[1]) * unit / _MIB)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidError(f'{what} is a whole number of MiB or a string such as "16Gi", not {_shown(value)}')
    if value < 1:
        raise InvalidError(f"{what} must be at least 1 MiB, got {value}")
    return value


def gpus_of(what: str, value: Any, declared: str | None = None) -> tuple[GpuRequest, ...]:
    """Acceptable devices, in order of preference, of `"h100"`, `"H100:8"`, `"H100:0.5"` or a list of those. None and
    False are none.

    `declared` is a text like KEDGE_GPUS ("H100=8,MYGPU=2"), whose names are known too.

    >>> gpus_of("gpu", ["h100:2", "A100:0.5"])
    (GpuRequest(name='H100', count=2, fraction=0.0), GpuRequest(name='A100', count=1, fraction=0.5))
    """
    if value is None or value is False:
        return ()
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if not items:
        raise InvalidError(f"{what}=[] asks for no device; leave it out, or name one, such as gpu='H100'")
    if declared is None:
        declared = os.environ.get("KEDGE_GPUS", "")
    known = [*NAMES, *_declared_names(declared)]
    return tuple(_gpu(what, item, known) for item in items)


def _declared_names(declared: str) -> Iterable[str]:
    return [part.partition("=")[0].strip().upper() for part in declared.split(",") if "=" in part]


def _gpu(what: str, value: Any, known: Sequence[str]) -> GpuRequest:
    if not isinstance(value, str):
        raise InvalidError(
            f"{what} is a name such as 'H100', with a count 'H100:8', or a list of those, not {_shown(value)}"
        )
    kind, colon, count = value.strip().partition(":")
    kind, count = kind.strip().upper(), count.strip()
    remote = os.environ.get("KEDGE_IS_REMOTE") == "1"  # the caller knew which names there are
    if (kind.removesuffix("!") not in known and not remote) or (kind.endswith("!") and kind[:-1] in (ANY_GPU, "B200+")):
        hint = nearest(kind, known) or f" Known are {', '.join(known)}."
        raise InvalidError(
            f"{what}: no GPU is called {kind!r}.{hint} Others can be declared with KEDGE_GPUS='NAME=count'"
        )
    if not colon:
        return GpuRequest(kind, 1)
    if count.isdecimal() and int(count) >= 1:
        return GpuRequest(kind, int(count))
    if re.fullmatch(r"\d*\.\d+", count):
        fraction = float(count)
        if not 0 < fraction <= 1:
            raise InvalidError(
                f"{what}: {value!r} asks for {count} devices; a part of one is below 1 ('{kind}:0.5'), and several are "
                f"whole ('{kind}:2')"
            )
        return GpuRequest(kind, 1, fraction if fraction < 1 else 0.0)
    raise InvalidError(
        f"{what}: {value!r} has no usable count; write '{kind}:2' for two devices, or '{kind}:0.5' for half of one"
    )


def vram_of(what: str, value: Any) -> int:
    """MiB of device memory.

    >>> vram_of("vram", "20Gi")
    20480
    """
    if isinstance(value, (tuple, list)):
        raise InvalidError(f'{what} is one amount for each device, such as "20Gi", not {_shown(value)}')
    return _mebibytes(what, value)


def shared(owner: str, base: Resources, given: Mapping[str, Any]) -> dict[str, Any]:
    """What `gpu` and `vram` change in `base`: `vram` alone means any device, and with it there is no fraction."""
    changes: dict[str, Any] = {}
    gpus, vram = base.gpus, base.vram
    if "gpu" in given:
        gpus = changes["gpus"] = gpus_of(f"{owner}: gpu", given["gpu"])
    if "vram" in given:
        vram = changes["vram"] = vram_of(f"{owner}: vram", given["vram"])
    parts = [gpu for gpu in gpus if gpu.fraction]
    if "vram" in given and "gpu" in given:
        if not gpus:
            raise InvalidError(f"{owner}: vram={given['vram']!r} is memory of a device, and gpu= asks for none")
        if parts:
            name = parts[0].name
            raise InvalidError(
                f"{owner}: gpu='{name}:{parts[0].fraction:g}' and vram={given['vram']!r} both say how much of a "
                f"device; keep gpu='{name}' with vram=, or the fraction without"
            )
    elif "vram" in given:
        changes["gpus"] = tuple(GpuRequest(gpu.name, gpu.count) for gpu in gpus) or (GpuRequest(ANY_GPU),)
    elif "gpu" in given and vram is not None and (parts or not gpus):
        changes["vram"] = None
    return changes


def _shown(value: object) -> str:
    return f"{value!r} ({type(value).__name__})" if value is not None else "None"


def isolation(what: str, value: Any) -> str:
    """A rung of the isolation ladder; empty for None."""
    if value is None:
        return ""
    if value not in RUNGS:
        raise InvalidError(f"{what} is one of {', '.join(RUNGS)}, not {value!r}")
    return str(value)
