"""What peers may say: values that decode and make no sense are refused here, so that the plane never meets them.

`refusal(message)` is empty for a good message; otherwise it names the field, what it was, and what is allowed. The
bounds are far above what honest programs need, and low enough that no single message can stall the server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any

from kedge.model import protocol as p
from kedge.model.payload import Payload
from kedge.model.spec import AppSpec, FunctionSpec, Variant

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

_APP = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_CALL = re.compile(r"[A-Za-z0-9_.-]{0,128}")
_BLOB = re.compile(r"[A-Za-z0-9]{0,64}")


class Absurd(ValueError):
    """A value that no honest peer sends."""


def refusal(message: Any) -> str:
    """Why this message of a peer is refused; empty where it is not."""
    check = _CHECKS.get(type(message))
    if check is not None:
        try:
            check(message)
        except Absurd as error:
            return f"{type(message).__name__}.{error}"
    return ""


# ---------------------------------------------------------------- parts


def _whole(name: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise Absurd(f"{name} is {value}; it must be from {least} to {most}")


def _number(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not (isfinite(value) and least <= value <= most):
        raise Absurd(f"{name} is {value}; it must be a number from {least:g} to {most:g}")


def _text(name: str, value: str, most: int = MAX_TEXT) -> None:
    if len(value) > most:
        raise Absurd(f"{name} has {len(value)} characters; at most {most} are allowed")


def _id(name: str, value: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(value):
        raise Absurd(f"{name} is {value[:60]!r}; it must match {pattern.pattern}")


def _items(name: str, values: list[Any], most: int = MAX_ITEMS) -> None:
    if len(values) > most:
        raise Absurd(f"{name} has {len(values)} entries; at most {most} are allowed, send several messages")


def _payloads(name: str, values: Iterable[Payload | None]) -> None:
    for value in values:
        if value is not None and (value.blob or value.size):
            _id(f"{name}.blob", value.blob, _BLOB)
            _whole(f"{name}.size", value.size, 0, 2**62)


# ---------------------------------------------------------------- declarations


def _function(where: str, spec: FunctionSpec) -> None:
    _text(f"{where}.name", spec.name)
    if not spec.name:
        raise Absurd(f"{where}.name is empty")
    here = f"{where}[{spec.name!r}]"
    slots = spec.concurrency
    _whole(f"{here}.concurrency.max_inputs", slots.max_inputs, 1, MAX_SLOTS)
    _whole(f"{here}.concurrency.target_inputs", slots.target_inputs, 1, slots.max_inputs)
    _whole(f"{here}.concurrency_limit", spec.concurrency_limit, 1, MAX_INPUTS)
    for method in spec.methods:
        _text(f"{here}.methods.name", method.name)
        _whole(f"{here}.methods[{method.name!r}].concurrency_limit", method.concurrency_limit, 1, MAX_SLOTS)
        if method.batching is not None:
            _whole(f"{here}.methods[{method.name!r}].max_batch_size", method.batching.max_batch_size, 1, MAX_BATCH)
            _whole(f"{here}.methods[{method.name!r}].wait_ms", method.batching.wait_ms, 0, MAX_WAIT_MS)
    _number(f"{here}.timeout", spec.timeout, 0, MAX_SECONDS)
    _number(f"{here}.startup_timeout", spec.startup_timeout, 0, MAX_SECONDS)
    _number(f"{here}.queue_timeout", spec.queue_timeout, 0, MAX_SECONDS)
    _number(f"{here}.cancellation_grace", spec.cancellation_grace, 0, MAX_SECONDS)
    _whole(f"{here}.max_queued_inputs", spec.max_queued_inputs, 1, MAX_INPUTS)
    _autoscaler(f"{here}.autoscaler.", spec.autoscaler)
    retries = spec.retries
    _whole(f"{here}.retries.max_retries", retries.max_retries, 0, 100)
    _number(f"{here}.retries.backoff_coefficient", retries.backoff_coefficient, 0, 100)
    _number(f"{here}.retries.initial_delay", retries.initial_delay, 0, MAX_SECONDS)
    _number(f"{here}.retries.max_delay", retries.max_delay, 0, MAX_SECONDS)
    _number(f"{here}.resources.cpu", spec.resources.cpu, 0, MAX_CPU)
    _whole(f"{here}.resources.memory", spec.resources.memory, 0, MAX_MEMORY)
    for gpu in spec.resources.gpus:
        _whole(f"{here}.resources.gpus.count", gpu.count, 1, 1024)
    _payloads(f"{here}.serialized", (spec.serialized,))


def _autoscaler(where: str, settings: Any) -> None:
    """Of a declaration, or a live change."""
    _whole(f"{where}min_containers", settings.min_containers, 0, MAX_CONTAINERS)
    _whole(f"{where}max_containers", settings.max_containers, 0, MAX_CONTAINERS)
    _whole(f"{where}buffer_containers", settings.buffer_containers, 0, MAX_CONTAINERS)
    _number(f"{where}scaledown_window", settings.scaledown_window, 0, MAX_SECONDS)


def _app(spec: AppSpec) -> None:
    _id("app.app", spec.app, _APP)
    _text("app.name", spec.name)
    if len(spec.functions) > MAX_ITEMS:
        raise Absurd(f"app.functions has {len(spec.functions)} entries; at most {MAX_ITEMS} are allowed")
    for function in spec.functions:
        _function("app.functions", function)


def _variant(variant: Variant) -> None:
    _text("variant.function", variant.function, 2 * MAX_TEXT)
    _text("variant.variant", variant.variant)
    _payloads("variant.parameters", (variant.parameters,))
    _function("variant.spec", variant.spec)


# ---------------------------------------------------------------- clients


def _app_created(message: p.AppCreated) -> None:
    _whole("request", message.request, 0, MAX_REQUEST)
    _app(message.app)


def _app_stopped(message: p.AppStopped) -> None:
    _whole("request", message.request, 0, MAX_REQUEST)
    _text("reason", message.reason, 10_000)


def _inputs_submitted(message: p.InputsSubmitted) -> None:
    _id("call", message.call, _CALL)
    _items("payloads", message.payloads)
    _whole("first", message.first, 0, MAX_INPUTS)
    if message.total != -1:
        _whole("total", message.total, message.first + len(message.payloads), MAX_INPUTS)
    if len(message.method) + len(message.parent) > MAX_TEXT:
        raise Absurd(f"method and parent have more than {MAX_TEXT} characters")
    _number("timeout", message.timeout, 0, MAX_SECONDS)
    _number("queue_timeout", message.queue_timeout, 0, MAX_SECONDS)
    _payloads("payloads", message.payloads)


def _call_closed(message: p.CallClosed) -> None:
    _whole("total", message.total, 0, MAX_INPUTS)


def _call_cancelled(message: p.CallCancelled) -> None:
    _id("call", message.call, _CALL)
    if message.indices is not None:
        _items("indices", message.indices)
    _whole("request", message.request, 0, MAX_REQUEST)


def _outputs_requested(message: p.OutputsRequested) -> None:
    _id("call", message.call, _CALL)
    _whole("start", message.start, 0, MAX_INPUTS)
    _whole("end", message.end, message.start, MAX_INPUTS)
    _whole("request", message.request, 0, MAX_REQUEST)


def _stream_credited(message: p.StreamCredited) -> None:
    _whole("values", message.values, 0, MAX_INPUTS)


def _statistics_requested(message: p.StatisticsRequested) -> None:
    _whole("request", message.request, 0, MAX_REQUEST)


def _autoscaler_updated(message: p.AutoscalerUpdated) -> None:
    _whole("request", message.request, 0, MAX_REQUEST)
    _autoscaler("", message)


def _concurrency_updated(message: p.ConcurrencyUpdated) -> None:
    _whole("request", message.request, 0, MAX_REQUEST)
    _whole("max_inputs", message.max_inputs, 1, MAX_SLOTS)
    _whole("target_inputs", message.target_inputs, 1, MAX_SLOTS)


def _call_requested(message: p.CallRequested) -> None:
    _whole("request", message.request, 0, MAX_REQUEST)
    _id("call", message.call, _CALL)


def _output_subscribed(message: p.OutputSubscribed) -> None:
    _id("app", message.app, _APP)


# ---------------------------------------------------------------- containers


def _container_ready(message: p.ContainerReady) -> None:
    _items("imports", message.imports, 10_000)
    for name in message.imports:
        _text("imports", name)


def _inputs_finished(message: p.InputsFinished) -> None:
    _items("inputs", message.inputs)
    _items("started", message.started)
    for item in message.inputs:
        if not 0 <= item.run_s <= MAX_SECONDS:
            raise Absurd(f"inputs.run_s is {item.run_s}; it must be a number from 0 to {MAX_SECONDS:g}")
        result = item.result
        if result.payload is not None and (result.payload.blob or result.payload.size):
            _payloads("inputs.payload", (result.payload,))
        if result.error is not None:
            _payloads("inputs.error.payload", (result.error.payload,))


def _leases(message: p.InputsStarted | p.InputsReturned | p.InputsOverran) -> None:
    _items("leases", message.leases)


def _stream_values(message: p.StreamValues) -> None:
    _whole("first", message.first, 0, 2**62)
    _items("values", message.values)
    _payloads("values", message.values)


_CHECKS: dict[type, Callable[[Any], None]] = {
    p.AppCreated: _app_created,
    p.AppStopped: _app_stopped,
    p.VariantBound: lambda message: _variant(message.variant),
    p.InputsSubmitted: _inputs_submitted,
    p.CallClosed: _call_closed,
    p.CallCancelled: _call_cancelled,
    p.OutputsRequested: _outputs_requested,
    p.StreamCredited: _stream_credited,
    p.StatisticsRequested: _statistics_requested,
    p.AutoscalerUpdated: _autoscaler_updated,
    p.ConcurrencyUpdated: _concurrency_updated,
    p.CallRequested: _call_requested,
    p.OutputSubscribed: _output_subscribed,
    p.ContainerReady: _container_ready,
    p.InputsFinished: _inputs_finished,
    p.InputsStarted: _leases,
    p.InputsReturned: _leases,
    p.InputsOverran: _leases,
    p.SlotsChanged: lambda message: _whole("inputs", message.inputs, 1, MAX_SLOTS),
    p.ContainerLeaving: lambda message: _text("reason", message.reason),
    p.StreamValues: _stream_values,
}
