"""Building one image, step by step, in the process that does nothing else."""

from __future__ import annotations

import fcntl
import os
import platform
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from kedge.exception import Error, ImageBuildError, NotFoundError
from kedge.images import advice, runtime
from kedge.images.buildlog import BuildLog
from kedge.images.chamber import Overlay
from kedge.images.plan import Plan, Planned, argument, plan
from kedge.images.running import CommandFailed, Runner
from kedge.images.settings import base_of
from kedge.images.steps import Workspace, handler
from kedge.images.store import ROOT, Built, Layer, Store, remove
from kedge.model.spec import BuiltImage, ImageSpec, ImageStep

TIMEOUT_S = 3600.0
TIMEOUT_VARIABLE = "KEDGE_IMAGE_TIMEOUT"
RUNTIMES = "runtimes"
"""Their log."""
BUILDING = "building"
"""Held shared by everybody who builds; who prunes takes it alone."""


class Request(Struct, frozen=True, kw_only=True):
    """What a builder process reads from its standard input, as one line of JSON."""

    home: str
    image: ImageSpec
    force: bool = False
    ignore_cache: bool = False
    """Like `force`, and later builds go on with what was there before."""
    secrets: dict[str, dict[str, str]] = {}
    """Values of the secrets of a step, by its index in the recipe."""
    volumes: dict[str, dict[str, Overlay]] = {}
    """What a step sees of volumes, by its index in the recipe and the path. Without `upper` it is read-only."""
    timeout: float = TIMEOUT_S
    runtimes: dict[str, str] = {}
    """Version → interpreter: instead of an image, what containers of these versions need."""
    host_apt: bool = False
    """Debian packages are those of this machine."""


class Progress(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What it tells: one line of JSON each."""

    state: str
    """As in ImageProgressed; at the end `built` or `failed`."""
    step: int = 0
    steps: int = 0
    title: str = ""
    text: str = ""
    seconds: float = 0.0
    image: str = ""
    """Id, when it is built."""
    cached: bool = False
    """Every step was there already."""
    error: str = ""
    """The kind of error that it failed with."""


Tell = Callable[[Progress], None]


def platform_name() -> str:
    """What layers of different machines must not share."""
    return f"{sys.platform}-{platform.machine()}"


def planned(store: Store, spec: ImageSpec, force: bool = False, host_apt: bool = False) -> Plan:
    """The plan of a recipe as it would be built now. Forced steps have ids of no other build."""

    def salt_of(natural: str, forced: bool) -> str:
        return secrets.token_hex(8) if forced else store.salt(natural)

    where = platform_name()
    if host_apt and any(step.kind == "apt_install" for step in spec.steps):
        where += " host-apt"  # these layers have no packages in them
    return plan(_with_base(store, spec), where, salt_of, force)


def _with_base(store: Store, spec: ImageSpec) -> ImageSpec:
    """The recipe with the id of an image in the place of its name."""
    first = spec.steps[0] if spec.steps else ImageStep("")
    if first.kind not in ("from_name", "from_id"):
        return spec
    image = argument(first, "image_id", "")
    if first.kind == "from_name":
        name = argument(first, "name", "")
        image = store.named().get(name, "")
        if not image:
            raise NotFoundError(f"no image is published as {name!r}; Image.publish({name!r}) does that")
    base_of(store, image)
    begin = ImageStep("from_id", (("image_id", msgspec.json.encode(image).decode()),))
    return msgspec.structs.replace(spec, steps=(begin, *spec.steps[1:]))


class Builder:
    """Builds what is missing of one image."""

    def __init__(self, request: Request, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        self._request = request
        self._store = Store(Path(request.home))
        self._tell = tell
        self._clock = clock
        self._deadline = clock() + request.timeout
        self._fresh = request.force or request.ignore_cache

    def prepare(self) -> None:
        """The runtimes."""
        log = BuildLog(self._store.log_of(RUNTIMES))
        try:
            runner = Runner(log, self._output, deadline=self._deadline, limit_s=self._request.timeout)
            for version, python in self._request.runtimes.items():
                runtime.ensure(self._store, version, python, runner)
        except CommandFailed as error:
            raise ImageBuildError(str(error)) from None
        finally:
            log.close()
        self._tell(Progress(state="built"))

    def build(self) -> Built:
        """The image. ImageBuildError says which step failed, and how."""
        began = self._clock()
        sharing = self._store.open_turn(BUILDING)
        try:
            fcntl.flock(sharing, fcntl.LOCK_SH)
            found = planned(self._store, self._request.image, self._fresh, self._request.host_apt)
            parent, cached, fresh = ROOT, True, False
            for step in found.steps:
                fresh = fresh or self._fresh or argument(step.step, "force_build", False) is True
                layer = self._present(step)
                if layer is None:
                    layer, cached = self._make(step, found, parent, fresh), False
                else:
                    self._say("cached", step, found)
                parent = layer
            built = self._complete(found, parent, self._clock() - began)
        finally:
            os.close(sharing)
        self._tell(Progress(state="built", image=found.image, cached=cached, seconds=self._clock() - began))
        return built

    def _present(self, step: Planned) -> Layer | None:
        layer = self._store.layer(step.id)
        return layer if layer is not None and has_interpreter(layer.image) else None

    def _make(self, step: Planned, found: Plan, parent: Layer, fresh: bool) -> Layer:
        def waiting() -> None:
            self._say("waiting", step, found, text="somebody else builds this step")

        with self._store.turn(step.id, waiting):
            layer = self._present(step)
            if layer is not None:
                self._say("cached", step, found)
                return layer
            self._say("started", step, found)
            began = self._clock()
            layer = self._build(step, found, parent, fresh)
            self._say("finished", step, found, seconds=self._clock() - began)
            return layer

    def _build(self, step: Planned, found: Plan, parent: Layer, fresh: bool) -> Layer:
        store, directory = self._store, self._store.directory(step.id)
        remove(directory)
        log = BuildLog(store.log_of(step.id))
        values = self._request.secrets.get(str(step.position), {})
        runner = Runner(
            log,
            lambda text: self._say("output", step, found, text=text),
            secrets=list(values.values()),
            deadline=self._deadline,
            limit_s=self._request.timeout,
        )
        complete = False
        try:
            directory.mkdir(mode=0o755, parents=True)
            volumes = self._request.volumes.get(str(step.position), {})
            workspace = Workspace(store, step, parent, runner, values, fresh, self._request.host_apt, volumes)
            layer = handler(step.step.kind)(workspace)
            runner.flush()
            store.keep_layer(layer)
            if step.salt and not self._request.ignore_cache:
                store.keep_salt(step.natural, step.salt)
            complete = True
            return layer
        except CommandFailed as error:
            raise self._failure(step, found, error.command, error.reason, error.lines, log) from None
        except OSError as error:
            raise self._failure(step, found, "", str(error), [], log) from None
        except Error as error:
            raise self._failure(step, found, "", str(error), [], None) from None
        except Exception as error:
            log.write(traceback.format_exc().encode("utf-8", "replace"))
            what = f"kedge failed on it ({type(error).__name__}: {error})"
            raise self._failure(step, found, "", what, [], log) from None
        finally:
            log.close()
            if not complete:
                remove(directory)

    def _complete(self, found: Plan, last: Layer, seconds: float) -> Built:
        image = msgspec.structs.replace(last.image, id=found.image)
        if image.python:
            log = BuildLog(self._store.log_of(found.image))
            try:
                runner = Runner(log, self._output, deadline=self._deadline, limit_s=self._request.timeout)
                runtime.ensure(self._store, image.python_version, os.path.realpath(image.python), runner)
            except CommandFailed as error:
                raise ImageBuildError(
                    advice.failure(0, 0, "the runtime", error.command, error.reason, error.lines, str(log.path))
                ) from None
            finally:
                log.close()
        before = self._store.image(found.image)
        first = found.steps[0]
        base = base_of(self._store, argument(first.step, "image_id", "")) if first.step.kind == "from_id" else None
        built = Built(
            image=image,
            layers=(*(base.layers if base else ()), *(step.id for step in found.steps)),
            titles=(*(base.titles if base else ()), *(step.title for step in found.steps)),
            at=time.time(),
            seconds=seconds if before is None else before.seconds,
        )
        self._store.keep_image(built)
        return built

    def _output(self, text: str) -> None:
        self._tell(Progress(state="output", text=text))

    def _say(self, state: str, step: Planned, found: Plan, text: str = "", seconds: float = 0.0) -> None:
        self._tell(
            Progress(
                state=state, step=step.number, steps=len(found.steps), title=step.title, text=text, seconds=seconds
            )
        )

    def _failure(
        self, step: Planned, found: Plan, command: str, reason: str, lines: list[str], log: BuildLog | None
    ) -> ImageBuildError:
        path = str(log.path) if log is not None else ""
        return ImageBuildError(advice.failure(step.number, len(found.steps), step.title, command, reason, lines, path))


def has_interpreter(image: BuiltImage) -> bool:
    """Whether an image's Python is still there, as far as that can be seen from outside of its root."""
    if image.python and image.layers and not image.visible:
        return os.path.lexists(image.python)
    return not image.python or os.path.exists(image.python)


def timeout_of(environ: Mapping[str, str]) -> float:
    """Seconds that a build may take."""
    try:
        seconds = float(environ[TIMEOUT_VARIABLE])
    except (KeyError, ValueError):
        return TIMEOUT_S
    return seconds if seconds > 0 else TIMEOUT_S


def facts(progress: Progress) -> dict[str, Any]:
    """As the fields of ImageProgressed."""
    return {
        "state": progress.state,
        "step": progress.step,
        "steps": progress.steps,
        "title": progress.title,
        "text": progress.text,
        "seconds": progress.seconds,
    }
