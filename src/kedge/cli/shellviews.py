"""What `kedge shell` does: finds out what a function would find around it, and becomes a shell there."""

from __future__ import annotations

import os
import shutil
import sys

import click
import msgspec

from kedge.cli import containerviews, surroundings
from kedge.cli.asking import Facts, ask, connected
from kedge.cli.functionviews import functions_of, named, only
from kedge.cli.reference import ImportFailed, Reference, runnables_of
from kedge.exception import NotFoundError
from kedge.model.protocol import FunctionsRequested
from kedge.model.spec import DEFAULT_CPU, FunctionSpec
from kedge.sdk import alias, config, snapshot

_BESIDE = (
    "kedge: the function has an image, and this shell is beside it: it has files and commands of this machine. "
    "`kedge shell ct-…` is within a container of it (`kedge container list` shows those that run)"
)


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
    shell = os.environ.get("SHELL") or shutil.which("bash") or "/bin/sh"
    if command is None and sys.stdin.isatty():
        where = container["container"] if container else ref or "a function without settings"
        click.echo(f"kedge: this shell runs as {where} does; `exit` leaves it", err=True)
    return surroundings.become([shell] if command is None else [shell, "-c", command], launch, container)


def _meant(ref: str | None, is_module: bool, environment: str | None) -> tuple[Facts, Facts | None]:
    """What the function or container that is meant was or would be started with, and the container."""
    if ref is None or is_module or _is_file(ref):
        alias.install()  # as `kedge run` and `kedge deploy` do
        return here(_declared(Reference(ref, is_module, "kedge shell")) if ref is not None else None), None
    return _running(ref, environment)


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


def _declared(reference: Reference) -> FunctionSpec | None:
    """The function that a reference names; None where it names the file alone, and that has several or none."""
    from kedge.sdk import registry

    module = reference.load()
    apps = list({id(app): app for app in registry.apps_in(module).values()}.values())
    handles = {runnable.name: runnable.handle for app in apps for runnable in runnables_of(app)}
    specs: dict[str, FunctionSpec] = {name: each.spec for name, each in handles.items() if hasattr(each, "spec")}
    specs |= {spec.name: spec for spec in specs.values()}
    if not reference.target:
        different = list({spec.name: spec for spec in specs.values()}.values())
        return different[0] if len(different) == 1 else None
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
    return found[0]["launch"], None
