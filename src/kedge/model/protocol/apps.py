"""Apps, deployments and functions: they are declared, looked up, changed while they run, and ended."""

from __future__ import annotations

from typing import Any

from kedge.model.protocol.base import Message
from kedge.model.spec import MAIN_ENVIRONMENT, AppSpec, Variant

ROLLING = "rolling"
RECREATE = "recreate"
STRATEGIES = (ROLLING, RECREATE)

# ---------------------------------------------------------------- client → plane: apps


class AppCreated(Message, frozen=True):
    request: int
    app: AppSpec


class AppStopped(Message, frozen=True):
    """Ends an app: queued inputs close, running ones are cancelled, containers go."""

    app: str
    request: int = 0
    reason: str = "stopped by its owner"


class AppDeployed(Message, frozen=True):
    """A new version of a deployed app (`app.deployment` and `app.version` are given by the server), or of a served one,
    which ends with its session (`app.ephemeral`).

    One container of each function is started first. Where one cannot come up, the old version goes on serving and the
    Reply has the reason; otherwise calls by name and by label go to the new version from then on, and the old one
    finishes what it has. Reply: {"app": id of the deployment, "version": n, "labels": {function or Class.method:
    label}} once that is on disk. Meanwhile the session gets Notices of level "deploy"."""

    request: int
    app: AppSpec
    strategy: str = ROLLING


class AppRolledBack(Message, frozen=True):
    """Brings an earlier version back, as a new one. Answered like AppDeployed, and with "origin_version"."""

    request: int
    name: str
    environment: str = MAIN_ENVIRONMENT
    version: int | None = None
    """None: the one before the current."""
    strategy: str = ROLLING


# ---------------------------------------------------------------- client → plane: their functions


class FunctionRequested(Message, frozen=True):
    """Looks up one function: by its id (`function`), or by names. Reply: {"app": id to call it under, "name",
    "environment", "version", "spec": FunctionSpec, "labels": {method: label}}; NotFoundError says what there is
    instead.

    With an empty `name` and `function` it looks up the app alone: the Reply has no "spec"."""

    request: int
    function: str = ""
    app: str = ""
    name: str = ""
    environment: str = MAIN_ENVIRONMENT
    version: int | None = None


class VariantBound(Message, frozen=True):
    """Announces a pool for parameters or options before its first input."""

    variant: Variant


class AutoscalerUpdated(Message, frozen=True):
    """Live override until the app is created anew. None leaves a setting as it is."""

    request: int
    pool: str
    min_containers: int | None = None
    max_containers: int | None = None
    buffer_containers: int | None = None
    scaledown_window: float | None = None


class ConcurrencyUpdated(Message, frozen=True):
    """Live change of `@concurrent` until the app is created anew. None leaves a number as it is."""

    request: int
    pool: str
    max_inputs: int | None = None
    target_inputs: int | None = None


# ---------------------------------------------------------------- plane → store, and back after a restart


class DeploymentChanged(Message, frozen=True):
    """To the store, and back from it after a restart: `app` is the current version of its deployment from now on, or
    the deployment has been stopped. The store answers `session` with `value` when that is on disk."""

    deployment: str
    environment: str
    name: str
    app: str
    """Id of the version's app; empty where it has stopped."""
    version: int
    origin_version: int = 0
    """The version that was brought back; 0 for a new one."""
    session: str = ""
    request: int = 0
    value: Any = None
    versions: dict[int, str] = {}
    """After a restart: the apps of all its versions by number. One that was brought back has several."""


class AppOver(Message, frozen=True):
    """To the store: the last container of this app has gone, and nothing in the plane refers to it any more."""

    app: str
