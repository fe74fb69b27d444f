"""What peers may say: values that decode and make no sense are refused here, so that the plane never meets them.

`refusal(message)` is empty for a good message; otherwise it names the field, what it was, and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kedge.model import protocol as p
from kedge.model import web
from kedge.model.spec import AppSpec
from kedge.server import bounds as b
from kedge.wire.source import DIGEST, FILE_LIMIT, PATH_LIMIT
from kedge.wire.trees import HASH, PART, SIZE_LIMIT


def refusal(message: Any) -> str:
    """Why this message of a peer is refused; empty where it is not."""
    check = _CHECKS.get(type(message))
    if check is not None:
        try:
            check(message)
        except b.Absurd as error:
            return f"{type(message).__name__}.{error}"
    return ""


# ---------------------------------------------------------------- clients


def _app_created(message: p.AppCreated) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    _new_app(message.app)


def _new_app(spec: AppSpec) -> None:
    b.app(spec)
    if spec.deployment or spec.version or spec.origin_version:
        raise b.Absurd("app.deployment, version and origin_version are given by the server; leave them out")


def _app_deployed(message: p.AppDeployed) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.text("strategy", message.strategy)
    _new_app(message.app)
    if not message.app.name:
        raise b.Absurd("app.name is empty; a deployed app is found by its name")


def _app_rolled_back(message: p.AppRolledBack) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.text("name", message.name)
    b.matching("environment", message.environment, b.ENVIRONMENT)
    b.whole("version", message.version, 0, b.MAX_VERSION)
    b.text("strategy", message.strategy)


def _function_requested(message: p.FunctionRequested) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.text("function", message.function, 2 * b.MAX_TEXT)
    b.text("app", message.app)
    b.text("name", message.name)
    b.matching("environment", message.environment, b.ENVIRONMENT)
    b.whole("version", message.version, 0, b.MAX_VERSION)


def _code_uploaded(message: p.CodeUploaded) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.matching("digest", message.digest, DIGEST)
    b.items("files", message.files, FILE_LIMIT)
    for path, _ in message.files:
        b.text("files", path, PATH_LIMIT)


def _files_offered(message: p.FilesOffered) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.matching("digest", message.digest, DIGEST)
    b.items("entries", message.entries)
    for path, hash, size, _ in message.entries:
        b.text("entries.path", path, PATH_LIMIT)
        b.matching("entries.hash", hash, HASH)
        b.whole("entries.size", size, 0, SIZE_LIMIT)


def _files_sent(message: p.FilesSent) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.matching("hash", message.hash, HASH)
    b.whole("offset", message.offset, 0, SIZE_LIMIT)
    b.whole("data", len(message.data), 0, PART)


def _secrets_changed(message: p.SecretsChanged) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.text("action", message.action)
    b.text("name", message.name)
    b.matching("environment", message.environment, b.ENVIRONMENT)
    b.items("required_keys", list(message.required_keys), b.MAX_ANSWER)


def _objects_requested(message: p.ObjectsRequested) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.text("kind", message.kind)
    b.text("action", message.action)
    b.text("name", message.name)
    b.matching("environment", message.environment, b.ENVIRONMENT)
    b.text("id", message.id)


def _entries_requested(message: p.EntriesRequested) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.text("object", message.object)
    b.text("what", message.what)
    b.items("keys", message.keys, b.MAX_ANSWER)
    b.whole("after", message.after, 0, b.MAX_REQUEST)


def _entries_changed(message: p.EntriesChanged) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.text("object", message.object)
    b.text("token", message.token)
    b.items("keys", message.keys, b.MAX_ANSWER)
    b.items("entries", message.entries, b.MAX_ANSWER)
    b.payloads("entries", (payload for _, payload in message.entries))


def _items_put(message: p.ItemsPut) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.text("object", message.object)
    b.text("token", message.token)
    b.text("partition", message.partition, 64)
    b.items("values", message.values, b.MAX_ANSWER)
    b.payloads("values", message.values)
    b.number("ttl", message.ttl, 0, b.MAX_SECONDS)
    b.number("wait", message.wait, 0, b.MAX_SECONDS)


def _items_wanted(message: p.ItemsWanted) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.text("object", message.object)
    b.text("token", message.token)
    b.text("partition", message.partition, 64)
    b.whole("count", message.count, 1, b.MAX_ANSWER)
    b.number("wait", message.wait, 0, b.MAX_SECONDS)


def _items_settled(message: p.ItemsSettled) -> None:
    b.text("object", message.object)
    b.text("token", message.token)


def _items_requested(message: p.ItemsRequested) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.text("object", message.object)
    b.text("what", message.what)
    b.text("partition", message.partition, 64)
    b.whole("after", message.after, -1, b.MAX_REQUEST)
    b.whole("count", message.count, 1, b.MAX_ANSWER)
    b.number("wait", message.wait, 0, b.MAX_SECONDS)


def _container_stop_requested(message: p.ContainerStopRequested) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.matching("container", message.container, b.APP_ID)


def _apps_requested(message: p.AppsRequested) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.matching("environment", message.environment, b.ANY_ENVIRONMENT)
    b.text("name", message.name)


def _containers_requested(message: p.ContainersRequested) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.matching("app", message.app, b.ANY_APP_ID)
    b.matching("container", message.container, b.ANY_APP_ID)


def _functions_requested(message: p.FunctionsRequested) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.matching("environment", message.environment, b.ANY_ENVIRONMENT)
    b.matching("app", message.app, b.ANY_APP_ID)
    b.text("function", message.function, 2 * b.MAX_TEXT)


def _calls_asked_for(message: p.CallsRequested) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.text("function", message.function, 2 * b.MAX_TEXT)
    b.whole("limit", message.limit, 1, b.MAX_ANSWER)


def _tokens_changed(message: p.TokensChanged) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.text("action", message.action)
    b.text("kind", message.kind)
    b.text("name", message.name, 128)
    b.text("id", message.id)


def _server_requested(message: p.ServerRequested) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)


def _app_stopped(message: p.AppStopped) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.text("reason", message.reason, 10_000)


def _inputs_submitted(message: p.InputsSubmitted) -> None:
    b.matching("call", message.call, b.CALL_ID)
    b.items("payloads", message.payloads)
    b.whole("first", message.first, 0, b.MAX_INPUTS)
    if message.total != -1:
        b.whole("total", message.total, message.first + len(message.payloads), b.MAX_INPUTS)
    if len(message.method) + len(message.parent) > b.MAX_TEXT:
        raise b.Absurd(f"method and parent have more than {b.MAX_TEXT} characters")
    b.number("timeout", message.timeout, 0, b.MAX_SECONDS)
    b.number("queue_timeout", message.queue_timeout, 0, b.MAX_SECONDS)
    b.payloads("payloads", message.payloads)


def _call_closed(message: p.CallClosed) -> None:
    b.whole("total", message.total, 0, b.MAX_INPUTS)


def _call_cancelled(message: p.CallCancelled) -> None:
    b.matching("call", message.call, b.CALL_ID)
    if message.indices is not None:
        b.items("indices", message.indices)
    b.whole("request", message.request, 0, b.MAX_REQUEST)


def _outputs_requested(message: p.OutputsRequested) -> None:
    b.matching("call", message.call, b.CALL_ID)
    b.whole("start", message.start, 0, b.MAX_INPUTS)
    b.whole("end", message.end, message.start, b.MAX_INPUTS)
    b.whole("request", message.request, 0, b.MAX_REQUEST)


def _stream_credited(message: p.StreamCredited) -> None:
    b.whole("values", message.values, 0, b.MAX_INPUTS)


def _statistics_requested(message: p.StatisticsRequested) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)


def _autoscaler_updated(message: p.AutoscalerUpdated) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.autoscaler("", message)


def _concurrency_updated(message: p.ConcurrencyUpdated) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.whole("max_inputs", message.max_inputs, 1, b.MAX_SLOTS)
    b.whole("target_inputs", message.target_inputs, 1, b.MAX_SLOTS)


def _call_requested(message: p.CallRequested) -> None:
    b.whole("request", message.request, 0, b.MAX_REQUEST)
    b.matching("call", message.call, b.CALL_ID)


def _output_subscribed(message: p.OutputSubscribed) -> None:
    b.matching("app", message.app, b.APP_ID)


# ---------------------------------------------------------------- containers


def _container_ready(message: p.ContainerReady) -> None:
    b.items("imports", message.imports, 10_000)
    for name in message.imports:
        b.text("imports", name)


def _inputs_finished(message: p.InputsFinished) -> None:
    b.items("inputs", message.inputs)
    b.items("started", message.started)
    for item in message.inputs:
        if not 0 <= item.run_s <= b.MAX_SECONDS:
            raise b.Absurd(f"inputs.run_s is {item.run_s}; it must be a number from 0 to {b.MAX_SECONDS:g}")
        result = item.result
        if result.payload is not None and (result.payload.blob or result.payload.size):
            b.payloads("inputs.payload", (result.payload,))
        if result.error is not None:
            b.payloads("inputs.error.payload", (result.error.payload,))


def _leases(message: p.InputsStarted | p.InputsReturned | p.InputsOverran) -> None:
    b.items("leases", message.leases)


def _stream_values(message: p.StreamValues) -> None:
    b.whole("first", message.first, 0, 2**62)
    b.items("values", message.values)
    b.payloads("values", message.values)


def _web_sent(message: p.WebSent) -> None:
    b.matching("call", message.call, b.CALL_ID)
    b.items("events", message.events)
    for event in message.events:
        if isinstance(event, web.ResponseStarted):
            b.whole("events.status", event.status, 100, 999)
        elif isinstance(event, web.SocketClosed):
            b.whole("events.code", event.code, 0, 65535)


def _web_credited(message: p.WebCredited) -> None:
    b.matching("call", message.call, b.CALL_ID)
    b.whole("size", message.size, 0, 2**62)


def _volume(message: Any) -> None:
    """Any message about volumes. What a path may be is said by whoever looks for it."""
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if isinstance(value, str):
            b.text(name, value, PATH_LIMIT * 4)
        elif isinstance(value, list):
            b.items(name, value)
        elif isinstance(value, int) and not isinstance(value, bool):
            b.whole(name, value, 0, b.MAX_REQUEST)


_CHECKS: dict[type, Callable[[Any], None]] = {
    p.AppCreated: _app_created,
    p.AppDeployed: _app_deployed,
    p.AppRolledBack: _app_rolled_back,
    p.FunctionRequested: _function_requested,
    p.CodeUploaded: _code_uploaded,
    p.FilesOffered: _files_offered,
    p.FilesSent: _files_sent,
    p.SecretsChanged: _secrets_changed,
    p.ObjectsRequested: _objects_requested,
    p.EntriesRequested: _entries_requested,
    p.EntriesChanged: _entries_changed,
    p.ItemsPut: _items_put,
    p.ItemsWanted: _items_wanted,
    p.ItemsSettled: _items_settled,
    p.ItemsRequested: _items_requested,
    p.ContainerStopRequested: _container_stop_requested,
    p.AppsRequested: _apps_requested,
    p.ContainersRequested: _containers_requested,
    p.FunctionsRequested: _functions_requested,
    p.CallsRequested: _calls_asked_for,
    p.TokensChanged: _tokens_changed,
    p.ServerRequested: _server_requested,
    p.VolumeRequested: _volume,
    p.VolumesRequested: _volume,
    p.VolumeChanged: _volume,
    p.VolumeListed: _volume,
    p.VolumeRead: _volume,
    p.VolumeEdited: _volume,
    p.VolumeUploaded: _volume,
    p.VolumeCommitted: _volume,
    p.VolumeReloaded: _volume,
    p.WebSent: _web_sent,
    p.WebCredited: _web_credited,
    p.AppStopped: _app_stopped,
    p.VariantBound: lambda message: b.variant(message.variant),
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
    p.SlotsChanged: lambda message: b.whole("inputs", message.inputs, 1, b.MAX_SLOTS),
    p.ContainerLeaving: lambda message: b.text("reason", message.reason),
    p.StreamValues: _stream_values,
}
