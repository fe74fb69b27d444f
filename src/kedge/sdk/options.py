"""The keywords of `@app.function`, `@app.cls` and `with_options`, and how they become a `FunctionSpec`.

A keyword is spelled twice: here, with its type, and as a field in `model.spec`. `FIELDS` says which field it sets; a
test holds the two lists together. `apply` is the only place where values are checked and put into a spec, for
declarations and variants alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from msgspec import structs

from kedge.exception import DeprecationError, InvalidError, NoEffectWarning, UnavailableError
from kedge.model.spec import Concurrency, FunctionSpec
from kedge.sdk import secret, validation, volume_mounts
from kedge.sdk.image import Image
from kedge.sdk.retries import Retries, policy_of
from kedge.sdk.schedule import schedule_of
from kedge.sdk.target import Limits
from kedge.sdk.usage import old_spelling, warn

if TYPE_CHECKING:
    from kedge.sdk.schedule import Schedule
    from kedge.sdk.secret import Secret
    from kedge.sdk.volume import Volume


class VariantOptions(TypedDict, total=False):
    """What `with_options` may change. None leaves a setting as it is."""

    cpu: float | tuple[float, float] | None
    memory: int | str | tuple[int | str, int | str] | None
    gpu: str | Sequence[str] | bool | None
    vram: int | str | None
    env: Mapping[str, str | None] | None
    secrets: Sequence[Secret] | None
    volumes: Mapping[Any, Volume] | None
    retries: int | Retries | None
    max_containers: int | None
    buffer_containers: int | None
    scaledown_window: float | None
    timeout: float | None
    queue_timeout: float | None
    region: str | Sequence[str] | None
    cloud: str | None
    routing_region: str | None
    concurrency_limit: int | None


class ClsOptions(VariantOptions, total=False):
    """The keywords of `@app.cls`."""

    image: Image | None
    serialized: bool
    network_file_systems: Mapping[Any, Any] | None
    ephemeral_disk: int | None
    min_containers: int | None
    proxy: Any
    startup_timeout: float | None
    max_queued_inputs: int | None
    cancellation_grace: float | None
    interrupt_sockets: bool | None
    nonpreemptible: bool
    enable_memory_snapshot: bool
    block_network: bool
    restrict_modal_access: bool
    single_use_containers: bool
    i6pn: bool | None
    include_source: bool | None
    experimental_options: Mapping[str, Any] | None
    allow_concurrent_inputs: int | None
    keep_warm: int | None
    container_idle_timeout: float | None
    max_inputs: int | None


class FunctionOptions(ClsOptions, total=False):
    """The keywords of `@app.function`."""

    schedule: Schedule | None
    name: str | None
    is_generator: bool | None


CALL_LIMITS = Limits.__struct_fields__
"""Keywords of `with_options` that travel with each call: alone they make no variant."""
VARIANT_KEYWORDS = tuple(VariantOptions.__annotations__)
CLS_KEYWORDS = tuple(ClsOptions.__annotations__)
FUNCTION_KEYWORDS = tuple(FunctionOptions.__annotations__)

UNAVAILABLE = {
    "network_file_systems": "Write volumes={'/path': kedge.Volume.from_name('NAME', create_if_missing=True)} instead.",
}
"""Refused where they hold anything: ignoring them would be worse."""

OLD = {
    "allow_concurrent_inputs": "concurrency",
    "keep_warm": "min_containers",
    "container_idle_timeout": "scaledown_window",
    "max_inputs": "single_use_containers",
}
"""Old spellings, and the field that they set."""

FIELDS = {
    "cpu": "resources",
    "memory": "resources",
    "gpu": "resources",
    "vram": "resources",
    "ephemeral_disk": "resources",
    "min_containers": "autoscaler",
    "max_containers": "autoscaler",
    "buffer_containers": "autoscaler",
    "scaledown_window": "autoscaler",
    "experimental_options": "preload",
    "is_generator": "methods",
    **{
        keyword: keyword
        for keyword in FUNCTION_KEYWORDS
        if keyword in FunctionSpec.__struct_fields__
    },
}  # fmt: skip
"""The field of FunctionSpec that a keyword sets."""


def proxy_name(what: str, value: Any) -> str:
    """The name of a `Proxy`."""
    from kedge.sdk.later import Proxy

    if not isinstance(value, Proxy):
        raise InvalidError(f"{what} must be a kedge.Proxy, such as kedge.Proxy.from_name('NAME'), not {value!r}")
    return value.name


_Check = Callable[[str, Any], Any]
_VALUES: dict[str, _Check] = {
    "env": validation.environment,
    "secrets": secret.references,
    "volumes": volume_mounts.references,
    "proxy": proxy_name,
    "retries": policy_of,
    "timeout": validation.seconds,
    "startup_timeout": validation.seconds,
    "queue_timeout": validation.seconds,
    "max_queued_inputs": lambda what, value: validation.whole_number(what, value, least=1),
    "cancellation_grace": validation.seconds,
    "interrupt_sockets": validation.flag,
    "region": validation.texts,
    "cloud": validation.text,
    "routing_region": validation.text,
    "concurrency_limit": lambda what, value: validation.whole_number(what, value, least=1),
    "nonpreemptible": validation.flag,
    "enable_memory_snapshot": validation.flag,
    "block_network": validation.flag,
    "restrict_modal_access": validation.flag,
    "single_use_containers": validation.flag,
    "i6pn": validation.flag,
    "include_source": validation.flag,
    "schedule": schedule_of,
}
"""Keywords whose checked value is the field of the same name."""

_AUTOSCALER: dict[str, _Check] = {
    "min_containers": validation.whole_number,
    "max_containers": lambda what, value: validation.whole_number(what, value, least=1),
    "buffer_containers": validation.whole_number,
    "scaledown_window": validation.seconds,
}


def apply(owner: str, spec: FunctionSpec, options: Mapping[str, Any]) -> FunctionSpec:
    """`spec` with the checked options in it. None means: as it was. InvalidError names `owner`, keyword and fix."""
    refuse_unavailable(owner, options)
    given = {key: value for key, value in options.items() if value is not None}
    changes: dict[str, Any] = {
        key: check(f"{owner}: {key}", given[key]) for key, check in _VALUES.items() if key in given
    }
    if "image" in given:
        changes["image"] = image_of(owner, given["image"])
    if "experimental_options" in given:
        changes["preload"] = _preload(owner, given["experimental_options"])
    changes["resources"] = _resources(owner, spec, given)
    scaling = {key: check(f"{owner}: {key}", given[key]) for key, check in _AUTOSCALER.items() if key in given}
    changes["autoscaler"] = structs.replace(spec.autoscaler, **scaling)
    result = structs.replace(spec, **changes)
    check_scaling(owner, result)
    return result


def vary(owner: str, spec: FunctionSpec, limits: Limits, changes: Mapping[str, Any]) -> tuple[FunctionSpec, Limits]:
    """What `with_options` makes of a handle: the settings of its containers, and what its calls bring along."""
    given = {key: changes[key] for key in CALL_LIMITS if changes.get(key) is not None}
    checked = {key: _VALUES[key](f"{owner}: {key}", value) for key, value in given.items()}
    rest = {key: value for key, value in changes.items() if key not in CALL_LIMITS}
    return apply(owner, spec, rest), structs.replace(limits, **checked)


def check_scaling(owner: str, spec: FunctionSpec) -> None:
    """InvalidError where the smallest number of containers is above the largest."""
    least, most = spec.autoscaler.min_containers, spec.autoscaler.max_containers
    if most is not None and least > most:
        raise InvalidError(
            f"{owner}: min_containers={least} is above max_containers={most}; raise the one or lower the other"
        )


def check_schedule(owner: str, spec: FunctionSpec, code: Callable[..., Any]) -> None:
    """InvalidError where a function that runs by itself cannot: nobody gives it arguments or reads its values."""
    if spec.schedule is None:
        return
    method = spec.methods[0]
    parameters = inspect.signature(code).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    why = ""
    if method.web is not None:
        why = f"answers requests (@kedge.{method.web.kind}); put the schedule on a function of its own"
    elif method.is_generator:
        why = "is a generator, whose values nobody would read; let it return, or store what it finds"
    elif method.batching is not None:
        why = "takes batches of inputs; put the schedule on a function that calls it"
    elif needed:
        why = f"needs {', '.join(needed)}; nobody gives it arguments, so give each parameter a default"
    if why:
        raise InvalidError(f"{owner}: schedule= runs {spec.name} by itself, but it {why}")


def _resources(owner: str, spec: FunctionSpec, given: Mapping[str, Any]) -> Any:
    keys = {key: given[key] for key in ("cpu", "memory", "ephemeral_disk") if key in given}
    fresh = validation.resources(owner, **keys)
    changes: dict[str, Any] = {}
    if "cpu" in keys:
        changes |= {"cpu": fresh.cpu, "cpu_limit": fresh.cpu_limit}
    if "memory" in keys:
        changes |= {"memory": fresh.memory, "memory_limit": fresh.memory_limit}
    changes |= validation.shared(owner, spec.resources, given)
    if "ephemeral_disk" in keys:
        changes["ephemeral_disk"] = fresh.ephemeral_disk
    return structs.replace(spec.resources, **changes)


def image_of(owner: str, value: Any) -> Any:
    """The ImageSpec of an `Image`."""
    if not isinstance(value, Image):
        raise InvalidError(
            f"{owner}: image must be a kedge.Image, such as kedge.Image.debian_slim().pip_install('numpy'), "
            f"not {value!r}"
        )
    return value.spec


def refuse_unavailable(owner: str, options: Mapping[str, Any]) -> None:
    """UnavailableError, by name, for what would otherwise be silently ignored."""
    for key, instead in UNAVAILABLE.items():
        value = options.get(key)
        if value:
            items = list(value.values()) if isinstance(value, Mapping) else value
            shown = ", ".join(map(repr, items)) if isinstance(items, (list, tuple)) else repr(items)
            raise UnavailableError(
                f"{owner}: {key}= ({shown}) does not exist in this version of kedge yet, and is refused rather than "
                f"ignored; remove it.{' ' + instead if instead else ''}"
            )


def _preload(owner: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, Mapping):
        raise InvalidError(f"{owner}: experimental_options is a dict, such as {{'preload': ['torch']}}, not {value!r}")
    for key in value:
        if key != "preload":
            warn(f"{owner}: experimental_options={{{key!r}: …}} has no effect in kedge", NoEffectWarning)
    preload = value.get("preload", ())
    return validation.texts(f"{owner}: experimental_options['preload']", preload) if preload else ()


def modernise(owner: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], Concurrency | None]:
    """Options in today's spelling, with one warning per old one; and the concurrency that an old one asked for."""
    result = {key: value for key, value in options.items() if key not in OLD}
    concurrency: Concurrency | None = None
    for old, field in OLD.items():
        value = options.get(old)
        if value is None:
            continue
        what = f"{owner}: {old}"
        if old == "allow_concurrent_inputs":
            validation.whole_number(what, value, least=1)
            old_spelling(f"{owner}({old}={value})", f"@kedge.concurrent(max_inputs={value}) below it")
            concurrency = Concurrency(value, value, declared=True)
            continue
        if old == "max_inputs":
            if value != 1:
                raise InvalidError(
                    f"{what}={value!r} can only be 1 (one input per container, now single_use_containers=True); for "
                    f"inputs at the same time write @kedge.concurrent(max_inputs={value!r}) below it"
                )
            value = True
        if result.get(field) is not None:
            raise InvalidError(
                f"{what} is the old spelling of {field}, which is given too; keep {field}={result[field]!r}"
            )
        old_spelling(f"{owner}({old}=…)", f"{field}={value!r}")
        result[field] = value
    return result, concurrency


def check_concurrency_limit(owner: str, spec: FunctionSpec) -> None:
    """Warns where a limit over all containers is below what one container takes: old programs meant containers."""
    limit, slots = spec.concurrency_limit, spec.concurrency.max_inputs
    if limit is not None and limit < slots:
        warn(
            f"{owner}: concurrency_limit={limit} caps the inputs in flight over all containers, below the {slots} that "
            f"a single one takes (max_inputs={slots}); to cap the number of containers write max_containers={limit}",
            DeprecationError,
        )


def warn_without_effect(owner: str, spec: FunctionSpec) -> None:
    """Warns about settings that protect something and cannot be honoured yet, and once about those that mean nothing on
    a machine of one's own."""
    if spec.restrict_modal_access:
        warn(
            f"{owner}: restrict_modal_access=True has no effect yet; code in containers can ask their server for "
            "whatever programs can",
            NoEffectWarning,
        )
    for keys, meaning in _WITHOUT_MEANING.items():
        given = [key for key in keys if getattr(spec, key)]
        if given and keys not in _said:
            _said.add(keys)
            warn(f"{owner}: {', '.join(f'{key}=' for key in given)} {meaning}", NoEffectWarning)


_WITHOUT_MEANING = {
    ("region", "cloud", "routing_region"): "has no effect in kedge: containers run on the machine of their server",
    ("proxy",): "has no effect in kedge: containers reach the network from the address of their server's machine",
}
_said: set[tuple[str, ...]] = set()
"""Once per process: programs give these to each of their functions."""
