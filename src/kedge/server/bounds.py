"""How large, long and many the values may be that peers send: whole declarations, and the parts of any message.

Each function raises Absurd, which names the field, what it was, and what is allowed. The bounds are far above what
honest programs need, and low enough that no single message can stall the server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import isfinite
from typing import Any

from kedge.model.payload import Payload
from kedge.model.spec import AppSpec, FunctionSpec, MethodSpec, ScheduleSpec, Variant, WebSpec

MAX_ITEMS = 100_000
"""Entries of one list in a message."""
MAX_INPUTS = 2**31
"""Inputs of one call."""
MAX_REQUEST = 2**53
MAX_TEXT = 512
"""Characters of a name or id."""
MAX_SLOTS = 100_000
"""Inputs that one container may be asked to run at once."""
MAX_BATCH = 10_000
MAX_WAIT_MS = 24 * 3600 * 1000
MAX_CONTAINERS = 100_000
MAX_SECONDS = 366 * 24 * 3600.0
MAX_CPU = 1e6
MAX_MEMORY = 2**40
"""MiB."""
MAX_VERSION = 2**31
MAX_DOMAINS = 100
MAX_VOLUMES = 100
"""Volumes of one function."""
MAX_DOMAIN = 253
"""Characters of a host name."""
MAX_ANSWER = 10_000
"""Entries of a list that somebody asks for."""

APP_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
CALL_ID = re.compile(r"[A-Za-z0-9_.-]{0,128}")
BLOB = re.compile(r"[A-Za-z0-9]{0,64}")
ANY_APP_ID = re.compile(r"[A-Za-z0-9_.-]{0,128}")
ENVIRONMENT = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
ANY_ENVIRONMENT = re.compile(r"([a-z0-9][a-z0-9-]{0,63})?")
_WEB_KINDS = ("fastapi_endpoint", "asgi_app", "wsgi_app", "web_server")
_UNITS = ("years", "months", "weeks", "days", "hours", "minutes", "seconds")


class Absurd(ValueError):
    """A value that no honest peer sends."""


# ---------------------------------------------------------------- parts


def whole(name: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise Absurd(f"{name} is {value}; it must be from {least} to {most}")


def number(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not (isfinite(value) and least <= value <= most):
        raise Absurd(f"{name} is {value}; it must be a number from {least:g} to {most:g}")


def text(name: str, value: str, most: int = MAX_TEXT) -> None:
    if len(value) > most:
        raise Absurd(f"{name} has {len(value)} characters; at most {most} are allowed")


def matching(name: str, value: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(value):
        raise Absurd(f"{name} is {value[:60]!r}; it must match {pattern.pattern}")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise Absurd(f"{name} is {value[:60]!r}; it must be one of {', '.join(known)}")


def items(name: str, values: list[Any], most: int = MAX_ITEMS) -> None:
    if len(values) > most:
        raise Absurd(f"{name} has {len(values)} entries; at most {most} are allowed, send several messages")


def payloads(name: str, values: Iterable[Payload | None]) -> None:
    for value in values:
        if value is not None and (value.blob or value.size):
            matching(f"{name}.blob", value.blob, BLOB)
            whole(f"{name}.size", value.size, 0, 2**62)


# ---------------------------------------------------------------- declarations


def _function(where: str, spec: FunctionSpec) -> None:
    text(f"{where}.name", spec.name)
    if not spec.name:
        raise Absurd(f"{where}.name is empty")
    here = f"{where}[{spec.name!r}]"
    slots = spec.concurrency
    whole(f"{here}.concurrency.max_inputs", slots.max_inputs, 1, MAX_SLOTS)
    whole(f"{here}.concurrency.target_inputs", slots.target_inputs, 1, slots.max_inputs)
    whole(f"{here}.concurrency_limit", spec.concurrency_limit, 1, MAX_INPUTS)
    for method in spec.methods:
        _method(f"{here}.methods", method)
    if spec.schedule is not None:
        _schedule(f"{here}.schedule", spec.schedule)
    number(f"{here}.timeout", spec.timeout, 0, MAX_SECONDS)
    number(f"{here}.startup_timeout", spec.startup_timeout, 0, MAX_SECONDS)
    number(f"{here}.queue_timeout", spec.queue_timeout, 0, MAX_SECONDS)
    number(f"{here}.cancellation_grace", spec.cancellation_grace, 0, MAX_SECONDS)
    whole(f"{here}.max_queued_inputs", spec.max_queued_inputs, 1, MAX_INPUTS)
    autoscaler(f"{here}.autoscaler.", spec.autoscaler)
    retries = spec.retries
    whole(f"{here}.retries.max_retries", retries.max_retries, 0, 100)
    number(f"{here}.retries.backoff_coefficient", retries.backoff_coefficient, 0, 100)
    number(f"{here}.retries.initial_delay", retries.initial_delay, 0, MAX_SECONDS)
    number(f"{here}.retries.max_delay", retries.max_delay, 0, MAX_SECONDS)
    number(f"{here}.resources.cpu", spec.resources.cpu, 0, MAX_CPU)
    whole(f"{here}.resources.memory", spec.resources.memory, 0, MAX_MEMORY)
    for gpu in spec.resources.gpus:
        whole(f"{here}.resources.gpus.count", gpu.count, 1, 1024)
        number(f"{here}.resources.gpus.fraction", gpu.fraction, 0, 1)
    whole(f"{here}.resources.vram", spec.resources.vram, 1, MAX_MEMORY)
    if len(spec.volumes) > MAX_VOLUMES:
        raise Absurd(f"{here}.volumes has {len(spec.volumes)} entries; at most {MAX_VOLUMES} are allowed")
    for volume in spec.volumes:
        text(f"{here}.volumes.target", volume.target)
        text(f"{here}.volumes.name", volume.name)
        text(f"{here}.volumes.sub_path", volume.sub_path, 4096)
    payloads(f"{here}.serialized", (spec.serialized,))


def _method(where: str, method: MethodSpec) -> None:
    text(f"{where}.name", method.name)
    here = f"{where}[{method.name!r}]"
    whole(f"{here}.concurrency_limit", method.concurrency_limit, 1, MAX_SLOTS)
    if method.batching is not None:
        whole(f"{here}.max_batch_size", method.batching.max_batch_size, 1, MAX_BATCH)
        whole(f"{here}.wait_ms", method.batching.wait_ms, 0, MAX_WAIT_MS)
    if method.web is not None:
        _web(f"{here}.web", method.web)


def _web(where: str, spec: WebSpec) -> None:
    one_of(f"{where}.kind", spec.kind, _WEB_KINDS)
    text(f"{where}.label", spec.label or "")
    text(f"{where}.method", spec.method, 32)
    whole(f"{where}.port", spec.port, 1, 65535)
    number(f"{where}.startup_timeout", spec.startup_timeout, 0, MAX_SECONDS)
    if len(spec.custom_domains) > MAX_DOMAINS:
        raise Absurd(
            f"{where}.custom_domains has {len(spec.custom_domains)} entries; at most {MAX_DOMAINS} are allowed"
        )
    for domain in spec.custom_domains:
        text(f"{where}.custom_domains", domain, MAX_DOMAIN)


def _schedule(where: str, spec: ScheduleSpec) -> None:
    text(f"{where}.cron", spec.cron)
    text(f"{where}.timezone", spec.timezone, 64)
    if len(spec.period) > len(_UNITS):
        raise Absurd(f"{where}.period has {len(spec.period)} entries; at most {len(_UNITS)} are allowed")
    for unit, amount in spec.period:
        one_of(f"{where}.period", unit, _UNITS)
        number(f"{where}.period.{unit}", amount, 0, MAX_SECONDS)


def autoscaler(where: str, settings: Any) -> None:
    """Of a declaration, or a live change."""
    whole(f"{where}min_containers", settings.min_containers, 0, MAX_CONTAINERS)
    whole(f"{where}max_containers", settings.max_containers, 0, MAX_CONTAINERS)
    whole(f"{where}buffer_containers", settings.buffer_containers, 0, MAX_CONTAINERS)
    number(f"{where}scaledown_window", settings.scaledown_window, 0, MAX_SECONDS)


def app(spec: AppSpec) -> None:
    matching("app.app", spec.app, APP_ID)
    text("app.name", spec.name)
    matching("app.environment_name", spec.environment_name, ENVIRONMENT)
    matching("app.deployment", spec.deployment, ANY_APP_ID)
    text("app.tag", spec.tag)
    whole("app.version", spec.version, 0, MAX_VERSION)
    whole("app.origin_version", spec.origin_version, 0, MAX_VERSION)
    number("app.created_at", spec.created_at, 0, 2**40)
    if len(spec.functions) > MAX_ITEMS:
        raise Absurd(f"app.functions has {len(spec.functions)} entries; at most {MAX_ITEMS} are allowed")
    for function in spec.functions:
        _function("app.functions", function)


def variant(variant: Variant) -> None:
    text("variant.function", variant.function, 2 * MAX_TEXT)
    text("variant.variant", variant.variant)
    payloads("variant.parameters", (variant.parameters,))
    _function("variant.spec", variant.spec)
