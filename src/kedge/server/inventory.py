"""What there is on a server, as plain values for people and programs: apps, containers, functions, calls that are open.

Read from the plane, never changed there. An app that is deployed is one entry, whatever number of versions of it still
finish something; its id is the one that stands for whichever version is current.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from kedge.core.apps import App
from kedge.core.containers import DRAINING, READY
from kedge.core.devices import spelled
from kedge.model.ids import app_of, function_id
from kedge.model.payload import SUCCESS, TERMINATED
from kedge.model.spec import AppSpec, FunctionSpec, MethodSpec
from kedge.server.launches import Launches

if TYPE_CHECKING:
    from kedge.core.calls import Call
    from kedge.core.containers import Container
    from kedge.core.plane import Plane
    from kedge.core.pool import Pool
    from kedge.core.versions import Deployment

DEPLOYED = "deployed"
SERVED = "served"
EPHEMERAL = "ephemeral"
DETACHED = "detached"
DEPLOYING = "deploying"
STOPPING = "stopping"
STOPPED = "stopped"

Facts = dict[str, Any]


class Inventory:
    """Of one plane.

    Args:
        plane: Whose apps these are.
        launches: What containers are started with.
        address: What leads to the web functions: `http://127.0.0.1:5334`, or empty where nothing does.
        runs: When a function (by its id) runs by its schedule: {"next", "last", "missed"}, or nothing.
    """

    def __init__(
        self, plane: Plane, launches: Launches, address: Callable[[], str], runs: Callable[[str], Facts]
    ) -> None:
        self._plane = plane
        self.launches = launches
        self._address = address
        self._runs = runs

    # ------------------------------------------------------------ apps

    def apps(self, environment: str = "", name: str = "") -> list[Facts]:
        """Those of an environment (or all), with this name or id (or any): first what is deployed, by name."""
        versions: dict[str, list[App]] = {}
        found: list[Facts] = []
        for app in self._plane.apps.values():
            if app.spec.deployment:
                versions.setdefault(app.spec.deployment, []).append(app)
            else:
                found.append(self._run(app))
        deployed = [self._deployment(d, versions.get(d.id, [])) for d in self._plane.deployments.by_id.values()]
        deployed.sort(key=lambda facts: (facts["state"] == STOPPED, facts["name"], facts["environment"]))
        return [
            facts
            for facts in deployed + found
            if environment in ("", facts["environment"]) and name in ("", facts["name"], facts["app"])
        ]

    def versions(self, environment: str, name: str) -> list[Facts]:
        """The versions of one deployed app that can be rolled back to or still run, newest first."""
        for deployment in self._plane.deployments.by_id.values():
            if name in (deployment.name, deployment.id) and environment in ("", deployment.environment):
                current = deployment.number
                return [self._version(deployment, n, current) for n in sorted(deployment.versions, reverse=True)]
        return []

    def _run(self, app: App) -> Facts:
        spec = app.spec
        state = STOPPING if app.stopped else EPHEMERAL if spec.ephemeral else DETACHED
        return self._app(spec.app, spec.name, spec.environment_name, state, spec, [app]) | {"version": 0, "tag": ""}

    def _deployment(self, deployment: Deployment, apps: list[App]) -> Facts:
        current, state = deployment.current, DEPLOYED
        if deployment.stop_requests or (current is None and apps and deployment.candidate is None):
            state = STOPPING
        elif current is None:
            state = DEPLOYING if deployment.candidate is not None else STOPPED
        elif deployment.session:
            state = SERVED
        spec = current.spec if current is not None else None
        facts = self._app(deployment.id, deployment.name, deployment.environment, state, spec, apps)
        tag = spec.tag if spec is not None else ""
        return facts | {"version": deployment.number or deployment.last, "tag": tag}

    def _app(
        self, id: str, name: str, environment: str, state: str, spec: AppSpec | None, apps: Iterable[App]
    ) -> Facts:
        pools = [pool for app in apps for pool in app.pools.values()]
        labels = self._plane.routes.of_app(id)
        return {
            "app": id,
            "name": name,
            "environment": environment,
            "state": state,
            "ephemeral": state in (SERVED, EPHEMERAL) or (spec is not None and spec.ephemeral),
            "deployed_at": spec.created_at if spec is not None and spec.deployment else 0.0,
            "created_at": spec.created_at if spec is not None else 0.0,
            "containers": sum(len(pool.fleet.containers) for pool in pools),
            "running": sum(pool.in_flight for pool in pools),
            "queued": sum(pool.backlog + pool.queue.delayed for pool in pools),
            "functions": [function.name for function in spec.functions] if spec is not None else [],
            "labels": labels,
            "urls": self._urls(labels),
        }

    def _version(self, deployment: Deployment, number: int, current: int) -> Facts:
        app = deployment.versions[number]
        pools = app.pools.values() if number == self._number(app) else ()
        return {
            "app": app.spec.app,
            "deployment": deployment.id,
            "name": deployment.name,
            "environment": deployment.environment,
            "version": number,
            "tag": app.spec.tag,
            "deployed_at": app.spec.created_at,
            "origin_version": app.spec.version if app.spec.version != number else 0,
            "current": number == current,
            "kept": True,
            "containers": sum(len(pool.fleet.containers) for pool in pools),
            "functions": [function.name for function in app.spec.functions],
        }

    def _number(self, app: App) -> int:
        """The number of a version; the last one where it was brought back."""
        deployment = self._plane.deployments.by_id.get(app.spec.deployment)
        versions = deployment.versions if deployment is not None else {}
        return max((number for number, each in versions.items() if each is app), default=app.spec.version)

    def _urls(self, labels: dict[str, str]) -> dict[str, str]:
        address = self._address()
        return {name: f"{address}/{label}/" for name, label in labels.items()} if address else {}

    # ------------------------------------------------------------ containers

    def containers(self, now: float, app: str = "", container: str = "", secrets: bool = False) -> list[Facts]:
        """Those of an app (or all), or this one, with what it was started with; the oldest first."""
        found: list[Facts] = []
        for each in self._plane.containers.values():
            owner = self._plane.apps[each.pool.app]
            spec = owner.spec
            if app in ("", spec.app, spec.deployment) and container in ("", each.id):
                facts = self._container(each, owner, now)
                found.append(
                    facts | {"launch": self._surroundings(spec, each.pool.spec, secrets)} if container else facts
                )
        return found

    def _container(self, container: Container, app: App, now: float) -> Facts:
        pool, place, spec = container.pool, container.placement, app.spec
        return {
            "container": container.id,
            "app": spec.deployment or spec.app,
            "app_name": spec.name,
            "environment": spec.environment_name,
            "version": self._number(app),
            "function": pool.spec.name,
            "variant": pool.id.partition("@")[2],
            "state": _state(container, app),
            "process": container.process,
            "isolation": self.launches.rung(container.id),
            "inputs": container.running,
            "credited": len(container.credits),
            "max_inputs": pool.maximum,
            "age_s": now - container.requested_at,
            "idle_s": now - container.idle_since if container.idle and container.state == "ready" else 0.0,
            "cpu": place.cpu,
            "memory": place.memory,
            "gpu": place.gpu,
            "devices": list(place.devices),
            "vram": list(place.vram),
            "device_variables": self.launches.outfitter.device_variables(pool.spec, place.devices),
        }

    # ------------------------------------------------------------ functions

    def functions(self, environment: str = "", app: str = "", function: str = "", secrets: bool = False) -> list[Facts]:
        """Those of an environment, an app (by id) or all, or this one, with what a program needs to run where it does.

        A function of a deployed app is that of the current version; what is asked for by a version's own id, its."""
        found: list[Facts] = []
        own_app = app_of(function) if function else app
        for each in self._plane.apps.values():
            spec = each.spec
            own = own_app == spec.app  # asked for by the id of the version itself
            if each.stopped or (each.retired and not own) or (spec.deployment and not self._is_current(each, own)):
                continue
            if environment not in ("", spec.environment_name) or own_app not in ("", spec.app, spec.deployment):
                continue
            under = spec.app if own or not spec.deployment else spec.deployment
            for declared in spec.functions:
                id = function_id(under, declared.name)
                if function in ("", id):
                    facts = self._function(id, each, declared)
                    found.append(facts | {"launch": self._surroundings(spec, declared, secrets)} if function else facts)
        return found

    def _is_current(self, app: App, own: bool) -> bool:
        return own or self._plane.deployments.current(app.spec.deployment) is app

    def _function(self, id: str, app: App, spec: FunctionSpec) -> Facts:
        pools = [pool for pool in app.pools.values() if pool.spec.name == spec.name]
        labels = self._plane.routes.of_app(app.spec.deployment or app.spec.app)
        own = {name: label for name, label in labels.items() if name in _names(spec)}
        runs = self._runs(id) if spec.schedule is not None else {}
        return {
            "function": id,
            "name": spec.name,
            "app": app_of(id),
            "app_name": app.spec.name,
            "environment": app.spec.environment_name,
            "version": self._number(app),
            "deployed": bool(app.spec.deployment),
            "settings": settings_of(spec),
            "methods": [_method(method) for method in spec.methods],
            "schedule": None if spec.schedule is None else msgspec.to_builtins(spec.schedule),
            "next_run": runs.get("next"),
            "last_run": runs.get("last"),
            "missed_runs": runs.get("missed", 0),
            "labels": own,
            "urls": self._urls(own),
            "pools": [_pool(pool) for pool in pools],
        }

    def _surroundings(self, app: AppSpec, function: FunctionSpec, secrets: bool) -> Facts:
        """What a program needs to run as a container of this function does. Holds the values of variables."""
        outfitter = self.launches.outfitter
        environment = outfitter.environment(app, function, outfitter.footing(app, function))
        hidden = {"secrets": outfitter.secrets(app, function)} if secrets else {}
        return hidden | {
            "environment": app.environment_name,
            "python": environment.python,
            "directory": environment.directory,
            "sys_path": list(environment.sys_path),
            "code": app.code.root,
            "variables": dict(environment.variables),
            "env": dict(function.env),
            "alias_modal": environment.alias_modal,
            "cpu": function.resources.cpu,
            "image": bool(function.image.id),
        }

    # ------------------------------------------------------------ calls

    def calls(self, function: str, limit: int, now: float, wall: float) -> list[Facts]:
        """Open calls of a function, newest first. For those of a deployment, of all its versions."""
        ids = {function, *self._own_ids(function)}
        newest = (call for call in reversed(self._plane.calls.by_id.values()) if _function_of(call.pool) in ids)
        found: list[Facts] = []
        for call in newest:
            if len(found) == limit:
                break
            found.append(_call(call, now, wall))
        return found

    def pools_of(self, function: str) -> list[str]:
        """Every id under which calls of a function may have been submitted, without parameters and options."""
        return list(dict.fromkeys([function, *self._own_ids(function)]))

    def _own_ids(self, function: str) -> list[str]:
        deployment, name = app_of(function), function[3:].partition("-")[2]
        apps = [app for app in self._plane.apps.values() if app.spec.deployment == deployment]
        return [function_id(app.spec.app, name) for app in apps]


def _state(container: Container, app: App) -> str:
    """`leaving` also where it takes no new inputs since its version is not the current one any more."""
    if container.state == DRAINING or (container.state == READY and app.retired):
        return "leaving"
    return container.state


def settings_of(spec: FunctionSpec) -> Facts:
    """What was declared, without code and without the values of variables, which may be secrets."""
    autoscaler, resources = spec.autoscaler, spec.resources
    return {
        "class": spec.is_class,
        "max_inputs": spec.concurrency.max_inputs,
        "target_inputs": spec.concurrency.target_inputs,
        "concurrency_limit": spec.concurrency_limit,
        "min_containers": autoscaler.min_containers,
        "max_containers": autoscaler.max_containers,
        "buffer_containers": autoscaler.buffer_containers,
        "scaledown_window": autoscaler.scaledown_window,
        "cpu": resources.cpu,
        "memory": resources.memory,
        "gpu": [spelled(gpu) for gpu in resources.gpus],
        "vram": resources.vram,
        "timeout": spec.timeout,
        "startup_timeout": spec.startup_timeout,
        "queue_timeout": spec.queue_timeout,
        "max_queued_inputs": spec.max_queued_inputs,
        "retries": spec.retries.max_retries,
        "cancellation_grace": spec.cancellation_grace,
        "single_use_containers": spec.single_use_containers,
        "parameters": [
            {"name": one.name, "type": one.type, "required": one.default is None} for one in spec.parameters
        ],
        "variables": [name for name, _ in spec.env],
    }


def _names(spec: FunctionSpec) -> list[str]:
    return [f"{spec.name}.{method.name}" if method.name else spec.name for method in spec.methods]


def _method(method: MethodSpec) -> Facts:
    return {
        "name": method.name,
        "async": method.is_async,
        "generator": method.is_generator,
        "concurrency_limit": method.concurrency_limit,
        "timeout": method.timeout,
        "batching": None if method.batching is None else msgspec.to_builtins(method.batching),
        "web": None if method.web is None else msgspec.to_builtins(method.web),
    }


def _pool(pool: Pool) -> Facts:
    """Live numbers, and the settings that a running program may have changed."""
    return pool.statistics() | {
        "variant": pool.id.partition("@")[2],
        "autoscaler": msgspec.to_builtins(pool.fleet.settings),
    }


def _function_of(pool: Pool) -> str:
    return pool.id.partition("@")[0]


def _call(call: Call, now: float, wall: float) -> Facts:
    inputs = call.open.values()
    running = sum(1 for input in inputs if input.container is not None and not input.credited)
    first = next(iter(inputs), None)
    failed = sum(1 for status in call.done.values() if status not in (SUCCESS, TERMINATED))
    return {
        "call": call.id,
        "function": call.pool.spec.name,
        "method": call.method,
        "variant": call.pool.id.partition("@")[2],
        "state": "running" if running else "queued" if call.open else "open",
        "durable": call.durable,
        "inputs": call.total if call.total is not None else call.submitted,
        "running": running,
        "queued": len(call.open) - running,
        "done": call.submitted - len(call.open),
        "failed": failed,
        "parent": call.parent,
        "changed_at": None if first is None else wall - (now - first.queued_at),
    }
