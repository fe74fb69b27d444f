"""Answers to who asks for a function by name or by id, also where there is none: then with what there is instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kedge.model import protocol as p
from kedge.model.ids import app_of, deployment_id
from kedge.model.payload import ErrorInfo
from kedge.model.spec import FunctionSpec

if TYPE_CHECKING:
    from kedge.core.apps import App
    from kedge.core.plane import Plane
    from kedge.core.versions import Deployment


class Lookup:
    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def function_requested(self, message: p.FunctionRequested, now: float, sender: str) -> None:
        found = self._find(message)
        if isinstance(found, str):
            self._plane.outbox.send(sender, p.Reply(message.request, None, ErrorInfo("NotFoundError", found)))
            return
        app, spec, under = found
        labels = self._plane.routes.of_app(app.spec.deployment or app.spec.app)
        value: dict[str, Any] = {
            "app": under,
            "name": app.spec.name,
            "environment": app.spec.environment_name,
            "version": app.spec.version,
        }
        if spec is not None:
            names = {f"{spec.name}.{m.name}" if m.name else spec.name: m.name for m in spec.methods}
            labels = {names[name]: label for name, label in labels.items() if name in names}
            value["spec"] = spec
        value["labels"] = labels
        self._plane.outbox.send(sender, p.Reply(message.request, value))

    def _find(self, message: p.FunctionRequested) -> tuple[App, FunctionSpec | None, str] | str:
        """The app, its function, and the id to call it under; or why there is none."""
        if message.function:
            app = self._plane.registry.app_with(message.function)
            if app is None:
                return self.why_not(message.function, None)
            declared = app.functions[self._plane.registry.own_id(message.function, app)].name
            return app, app.declared(declared), app_of(message.function)
        deployment = self._plane.deployments.by_id.get(deployment_id(message.environment, message.app))
        if deployment is None or deployment.current is None:
            return no_such_app(self._plane.deployments.by_id.values(), message.app, message.environment)
        app, under = deployment.current, deployment.id
        if message.version is not None:
            chosen = deployment.versions.get(message.version)
            if chosen is None:
                there = ", ".join(map(str, sorted(deployment.versions)))
                return f"{message.app} has no version {message.version} (any more); there are {there}"
            app, under = chosen, chosen.spec.app
        if not message.name:
            return app, None, under
        function = app.declared(message.name)
        if function is None:
            there = ", ".join(sorted(f.name for f in app.spec.functions)) or "nothing"
            return f"the app {message.app} has no function or class {message.name!r}; it has {there}"
        return app, function, under

    def why_not(self, function: str, app: App | None) -> str:
        """Why there is no such function."""
        deployment = self._plane.deployments.by_id.get(app_of(function))
        name = function.partition("@")[0][3:].partition("-")[2]
        if app is not None and deployment is not None:
            there = ", ".join(sorted(f.name for f in app.spec.functions))
            return f"version {deployment.number} of {deployment.name} has no function {name!r}; it has {there}"
        if deployment is not None:
            return f"the app {deployment.name} has been stopped; deploy it again with `kedge deploy`"
        return f"there is no running function {function}: its app has stopped, or never ran on this server"


def no_such_app(deployments: Iterable[Deployment], name: str, environment: str) -> str:
    """What to say where nothing is deployed under a name."""
    current = [one for one in deployments if one.current is not None and not one.current.spec.ephemeral]
    there = sorted(deployment.name for deployment in current if deployment.environment == environment)
    elsewhere = sorted({deployment.environment for deployment in current if deployment.name == name})
    known = f"deployed there: {', '.join(there[:20])}" if there else "nothing is deployed there"
    hint = f"It is deployed in {', '.join(elsewhere)}" if elsewhere else "Deploy it with `kedge deploy`"
    return f"no app {name!r} is deployed in the environment {environment!r}; {known}. {hint}"


def version_to_restore(
    message: p.AppRolledBack, deployment: Deployment | None, deployments: Iterable[Deployment]
) -> tuple[int, str]:
    """The number of the version that a rollback means; or 0, and why there is none."""
    name, number = message.name, message.version
    if deployment is None or deployment.current is None:
        return 0, no_such_app(deployments, name, message.environment)
    if message.strategy not in p.STRATEGIES:
        return 0, f"strategy={message.strategy!r} is not known; write one of {', '.join(p.STRATEGIES)}"
    there = {n: app for n, app in deployment.versions.items() if not app.stopped}
    earlier = [n for n in sorted(there) if there[n] is not deployment.current]
    if number is None:
        if not earlier:
            return 0, f"{name} has no version before the current one ({deployment.number})"
        number = max((n for n in earlier if n < deployment.number), default=earlier[-1])
    if there.get(number) is deployment.current:
        return 0, f"version {number} of {name} is the current one"
    if number not in there:
        known = ", ".join(map(str, earlier)) or "none"
        return 0, f"{name} has no version {number} to go back to; it has {known}"
    return number, ""
