"""What `kedge shell` does: finds out what a function would find around it, and becomes a shell there."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

import click
import msgspec

from kedge.cli import containerviews, surroundings
from kedge.cli.asking import Facts, ask, connected, find
from kedge.cli.functionviews import functions_of, named, only
from kedge.cli.reference import ImportFailed, Reference, runnables_of
from kedge.exception import AuthError, ConnectionError, NotFoundError
from kedge.model.protocol import ContainersRequested, FunctionsRequested
from kedge.model.spec import DEFAULT_CPU, FunctionSpec
from kedge.sdk import alias, config, snapshot
from kedge.sdk.client import Client
from kedge.wire.transport import is_tcp

_BESIDE = (
    "kedge: the function has an image, and this shell is beside it: it has files and commands of this machine. "
    "`kedge shell ct-…` is within a container of it (`kedge container list` shows those that run)"
)
_TAKES = ("ready", "leaving", "starting")
"""States of a container, the one to be entered first. One that starts may not be there yet."""


def open_shell(ref: str | None, command: str | None, is_module: bool, environment: str | None) -> int:
    """Becomes the shell. Returns the exit code where it cannot."""
    try:
        launch, container = _meant(ref, is_module, environment)
    except ImportFailed as failed:
        from kedge.cli import failures

        failures.print_import_failure(failed, "there is no shell")
        return 2
    if container is None and launch.get("image"):
        click.echo(_BESIDE, err=True)
    elif container is not None and not str(ref).startswith("ct-"):
        click.echo(f"kedge: the function has an image, and this shell is within {container['container']}", err=True)
    shell = os.environ.get("SHELL") or shutil.which("bash") or "/bin/sh"
    if command is None and sys.stdin.isatty():
        where = container["container"] if container else ref or "a function without settings"
        click.echo(f"kedge: this shell runs as {where} does; `exit` leaves it", err=True)
    return surroundings.become([shell] if command is None else [shell, "-c", command], launch, container)


def _meant(ref: str | None, is_module: bool, environment: str | None) -> tuple[Facts, Facts | None]:
    """What the function or container that is meant was or would be started with, and the container."""
    if ref is None or is_module or _is_file(ref):
        alias.install()  # as `kedge run` and `kedge deploy` do
        if ref is None:
            return here(None), None
        app, spec = _declared(Reference(ref, is_module, "kedge shell"))
        entered = _at_server(app, spec, config.environment(environment)) if spec is not None else None
        return entered or (here(spec), None)
    return _running(ref, environment)


def _at_server(app: str | None, spec: FunctionSpec, environment: str) -> tuple[Facts, Facts] | None:
    """A container of a declared function that has files of its own; None also where no server can be asked."""
    if app is None or not spec.image.steps:
        return None
    try:
        client = find()
    except (ConnectionError, AuthError):
        return None
    if client is None:
        return None
    try:
        return None if is_tcp(client.address) else _within(client, app, spec.name, environment)
    finally:
        client.close()


def _within(client: Client, app: str, function: str, environment: str) -> tuple[Facts, Facts] | None:
    """What a container of a function was started with, and the container; None where none of it runs."""
    there: list[Facts] = ask(client, lambda request: ContainersRequested(request))
    chosen = one_to_enter(there, app, function, environment)
    return None if chosen is None else containerviews.entered(client, chosen)


def one_to_enter(containers: Sequence[Facts], app: str, function: str, environment: str) -> str | None:
    """The id of the container of a function that a shell is to be in: of those that take inputs the youngest, which has
    the version that was deployed last. `app` is a name or an id."""
    known = [
        each
        for each in reversed(containers)
        if app in (each["app_name"], each["app"])
        and (each["function"], each["environment"]) == (function, environment)
        and each["state"] in _TAKES
        and each["process"]
    ]
    return min(known, key=lambda each: _TAKES.index(each["state"]))["container"] if known else None


def here(spec: FunctionSpec | None) -> Facts:
    """What a function of this process would be started with, were its app run now."""
    environment = snapshot.environment()
    facts: Facts = msgspec.to_builtins(environment)
    return {
        **facts,
        "environment": config.environment(),
        "variables": dict(environment.variables),
        "env": dict(spec.env) if spec is not None else {},
        "code": "",
        "cpu": spec.resources.cpu if spec is not None else DEFAULT_CPU,
        "image": spec is not None and bool(spec.image.steps),
    }


def _is_file(ref: str) -> bool:
    source = ref.partition("::")[0]
    return source.endswith(".py") or os.sep in source


def _declared(reference: Reference) -> tuple[str | None, FunctionSpec | None]:
    """The function that a reference names, with the name of its app; None where it names the file alone, and that has
    several or none."""
    from kedge.sdk import registry

    module = reference.load()
    apps = list({id(app): app for app in registry.apps_in(module).values()}.values())
    runnables = [runnable for app in apps for runnable in runnables_of(app) if hasattr(runnable.handle, "spec")]
    specs: dict[str, tuple[str | None, FunctionSpec]] = {
        name: (runnable.app.name, runnable.handle.spec)
        for runnable in runnables
        for name in (runnable.name, runnable.handle.spec.name)
    }
    if not reference.target:
        different = list({spec.name: (app, spec) for app, spec in specs.values()}.values())
        return different[0] if len(different) == 1 else (None, None)
    found = specs.get(reference.target)
    if found is None:
        from kedge.sdk.usage import nearest

        near, listed = nearest(reference.target, specs), ", ".join(specs) or "nothing"
        raise NotFoundError(f"{reference.source} has no function {reference.target!r}.{near} It has: {listed}")
    return found


def _running(ref: str, environment: str | None) -> tuple[Facts, Facts | None]:
    """What a container, or a function that is deployed, was started with."""
    with connected("so neither a container nor an app is") as client:
        containerviews.refuse_elsewhere(client, "shell")
        if ref.startswith("ct-"):
            return containerviews.entered(client, ref)
        function = only(named(functions_of(client, environment), ref), ref)["function"]
        found: list[Facts] = ask(client, lambda request: FunctionsRequested(request, function=function, secrets=True))
        if not found:
            raise NotFoundError(f"{ref} has just been stopped")
        one = found[0]
        entered = _within(client, one["app"], one["name"], one["environment"]) if one["launch"]["image"] else None
    return entered or (one["launch"], None)
