"""Images, as the server has them: what is there is found at once, what is missing is built by a process of its own.

Who asks for the same image at the same time waits for one build. It goes on for as long as anybody waits; then its
process is told to end (`kedge.images.__main__`), and what was half-made goes with it. Nothing of users is run here.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from kedge import exception
from kedge.core.plane import Plane
from kedge.exception import ImageBuildError, InvalidError
from kedge.images import prune, runtime
from kedge.images.builder import Progress, Request, facts, has_interpreter, planned, timeout_of
from kedge.images.plan import Plan, argument
from kedge.images.store import Store
from kedge.model import protocol as p
from kedge.model.spec import AppSpec, BuiltImage, ImageSpec, SecretRef
from kedge.server.build_volumes import BuildVolumes, Volumes

log = logging.getLogger("kedge.server")

AT_ONCE = 4
"""Builds that run at the same time; others wait for their turn."""
PREPARE_S = 20.0
"""For so long a server waits at its start for what its images need."""
LEAVE_S = 5.0
"""Seconds that a build has to clean up after itself when nobody wants it any more."""
EVENT_LIMIT = 4 * 2**20
"""Bytes of one event."""
UNUSED_S = 600.0
"""For so long an image stays in use for a session that makes no app of it."""
FRESH_S = 2.0
"""For so long what was found on disk is not looked at again."""

Values = Callable[[SecretRef, str], Mapping[str, str]]
Send = Callable[[str, Any], None]


class Build:
    """One process, and who waits for it."""

    def __init__(self, key: str, spec: ImageSpec) -> None:
        self.key = key
        self.spec = spec
        self.waiting: dict[tuple[str, int], None] = {}
        """(session, request)."""
        self.last: Progress | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.task: asyncio.Task[dict[str, Any]] | None = None


class Images:
    """All images of one KEDGE_HOME, for one server.

    Args:
        home: KEDGE_HOME.
        send: Sends a message to a session, at once.
        values: The variables of a secret, in an environment.
        host_apt: Whether Debian packages of images are those of this machine.
        volumes: What steps mount. What they write is committed when the build has ended.
    """

    def __init__(
        self,
        home: Path,
        send: Send,
        values: Values | None = None,
        host_apt: bool = False,
        volumes: Volumes | None = None,
    ) -> None:
        self.store = Store(home)
        self._home = home
        self._send = send
        self._values = values
        self._host_apt = host_apt
        self._volumes = BuildVolumes(volumes) if volumes is not None else None
        self._builds: dict[str, Build] = {}
        self._tasks: dict[asyncio.Task[dict[str, Any]], None] = {}
        """All builds, also those that nobody wants any more and that are cleaning up."""
        self._found: dict[str, tuple[float, BuiltImage]] = {}
        self._held: dict[str, int] = {}
        """Locks that say to other servers that an image is in use here."""
        self._given: dict[tuple[str, str], float] = {}
        """By session and image: when it was given that image, of which it has not made an app yet."""
        self._turns = asyncio.Semaphore(AT_ONCE)
        self.used: Callable[[], Iterable[str]] | None = None
        """The images of all apps of this server."""
        self.answers: dict[type, Callable[[Any, str], Any]] = {p.ImageRequested: self._requested}
        """For `Office.attend`."""

    # ------------------------------------------------------------ what is there

    def find(self, image: str) -> BuiltImage | None:
        """What containers of an image are made of; None where it is not there, or not whole."""
        now = time.monotonic()
        at, known = self._found.get(image, (-1e9, None))
        if known is not None and now - at < FRESH_S:
            return known
        kept = self.store.image(image)
        if kept is None or not has_interpreter(kept.image) or not all(map(os.path.exists, _parts(kept.image))):
            self._found.pop(image, None)
            return None
        found = kept.image
        if found.python:
            there = runtime.find(self.store, found.python_version)
            if not there:
                return None
            found = msgspec.structs.replace(found, runtime=there)
        self._hold(image)
        self._found[image] = now, found
        return found

    def list(self, used: Iterable[str] = ()) -> list[dict[str, Any]]:
        """All images with what people ask about them. `used`: those that apps of this server have."""
        return prune.listed(self.store, set(used))

    def log(self, image: str) -> str:
        """What the steps of an image have said."""
        return prune.log_of(self.store, image)

    def prune(self, used: Iterable[str], *, cache: bool = False) -> dict[str, Any]:
        """Removes what no image needs that is in use, here or by another server. Blocks: call it in a thread."""
        return prune.prune(self.store, set(used), cache=cache)

    def brought(self, app: AppSpec, session: str) -> None:
        """This session has made an app of images that it was given: they are in use for as long as that app is."""
        for spec in app.functions:
            self._given.pop((session, spec.image.id), None)

    def tidy(self) -> None:
        """Something that had images is gone: those that nobody has now are in use no longer."""
        if self.used is not None and self._held:
            since = time.monotonic() - UNUSED_S
            self._given = {key: at for key, at in self._given.items() if at > since}
            self.release({*self.used(), *(image for _, image in self._given)})

    def release(self, used: Collection[str]) -> None:
        """From now on only these are in use here."""
        for image in [image for image in self._held if image not in used]:
            os.close(self._held.pop(image))
            self._found.pop(image, None)

    def _hold(self, image: str) -> None:
        if image not in self._held:
            descriptor = self.store.open_turn(image)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:  # it is being removed at this moment
                os.close(descriptor)
            else:
                self._held[image] = descriptor

    async def open(self) -> None:
        """What containers of the images here need besides: another version of kedge makes it anew. Where that takes
        long, it goes on by itself, and its images are not there until then."""
        try:
            await asyncio.to_thread(prune.sweep, self.store)
        except OSError as error:  # what is left over takes room, and is in nobody's way
            log.warning("what builds have left behind cannot be removed: %s", error)
        if missing := self._versions_without_runtime():
            request = Request(home=str(self._home), image=ImageSpec(), runtimes=missing, timeout=timeout_of(os.environ))
            build = self._builds["runtimes"] = Build("runtimes", request.image)
            build.task = self._begin(build, request)
            await asyncio.wait([build.task], timeout=PREPARE_S)

    def _versions_without_runtime(self) -> dict[str, str]:
        missing: dict[str, str] = {}
        for built in self.store.images():
            image = built.image
            if image.python and has_interpreter(image) and not runtime.find(self.store, image.python_version):
                missing[image.python_version] = os.path.realpath(image.python)
        return missing

    # ------------------------------------------------------------ requests

    def _requested(self, message: p.ImageRequested, session: str) -> Any:
        """A value where it is there, else a coroutine."""
        spec = message.image
        if not spec.steps:
            raise InvalidError("an image without steps needs no build: its containers run as their caller does")
        forced = message.force or message.ignore_cache
        found = planned(self.store, spec, forced, self._host_apt)
        if not forced and not any(argument(step.step, "force_build", False) is True for step in found.steps):
            if self.find(found.image) is not None:
                return self._published(message, session, {"id": found.image, "cached": True, "seconds": 0.0})
            key = found.image
        else:
            key = "forced " + planned_key(found, message)
        self.tidy()
        values = self._secrets(spec)
        return self._wait(key, spec, message, session, values)

    async def _wait(
        self, key: str, spec: ImageSpec, message: p.ImageRequested, session: str, values: dict[str, dict[str, str]]
    ) -> dict[str, Any]:
        build = self._builds.get(key)
        if build is None:
            build = self._builds[key] = Build(key, spec)
            request = Request(
                home=str(self._home),
                image=spec,
                force=message.force,
                ignore_cache=message.ignore_cache,
                secrets=values,
                timeout=timeout_of(os.environ),
                host_apt=self._host_apt,
            )
            build.task = self._begin(build, request)
        elif build.last is not None:
            self._tell((session, message.request), msgspec.structs.replace(build.last, state="waiting"))
        assert build.task is not None
        me = (session, message.request)
        build.waiting[me] = None
        try:
            return self._published(message, session, await asyncio.shield(build.task))
        finally:
            self._leave(build, me)

    def _published(self, message: p.ImageRequested, session: str, answer: dict[str, Any]) -> dict[str, Any]:
        self._given[session, answer["id"]] = time.monotonic()
        if message.publish:
            self.store.publish(message.publish, answer["id"])
        return answer

    def departed(self, session: str) -> None:
        """The session has gone: nobody there waits any more. For `Office.departures`."""
        for build in list(self._builds.values()):
            for waiting in [waiting for waiting in build.waiting if waiting[0] == session]:
                self._leave(build, waiting)
        if given := [key for key in self._given if key[0] == session]:
            for key in given:
                del self._given[key]
            self.tidy()

    def _leave(self, build: Build, waiting: tuple[str, int]) -> None:
        build.waiting.pop(waiting, None)
        if not build.waiting and build.task is not None and not build.task.done():
            self._builds.pop(build.key, None)  # who comes now begins anew
            build.task.cancel()

    async def close(self) -> None:
        """Ends all builds."""
        tasks = list(self._tasks)
        for build in self._builds.values():
            if build.task is not None:
                build.task.cancel()
        self._builds.clear()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.release(())

    def _secrets(self, spec: ImageSpec) -> dict[str, dict[str, str]]:
        """The values of the secrets of each step."""
        found: dict[str, dict[str, str]] = {}
        for index, step in enumerate(spec.steps):
            for name in ("secrets", "secret"):
                given = argument(step, name) or []
                for item in given if isinstance(given, list) else [given]:
                    ref = _reference(item, step.kind)
                    if self._values is None:
                        raise InvalidError(f"Image.{step.kind}: this server keeps no secrets")
                    found.setdefault(str(index), {}).update(self._values(ref, ref.environment or "main"))
        return found

    # ------------------------------------------------------------ builds

    def _begin(self, build: Build, request: Request) -> asyncio.Task[dict[str, Any]]:
        task = asyncio.get_running_loop().create_task(self._run(build, request))
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    async def _run(self, build: Build, request: Request) -> dict[str, Any]:
        try:
            if self._turns.locked():
                self._progress(build, Progress(state="waiting", text="other images are being built"))
            async with self._turns:
                return await self._with_volumes(build, request)
        finally:
            if self._builds.get(build.key) is build:
                del self._builds[build.key]

    async def _with_volumes(self, build: Build, request: Request) -> dict[str, Any]:
        if self._volumes is None:
            return await self._process(build, request)
        async with self._volumes.mounted(build.spec) as seen:
            return await self._process(build, msgspec.structs.replace(request, volumes=seen))

    async def _process(self, build: Build, request: Request) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "kedge.images",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=EVENT_LIMIT,
            start_new_session=True,
        )
        build.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            last = Progress(state="")
            async for line in process.stdout:
                last = msgspec.json.decode(line, type=Progress)
                if last.state not in ("built", "failed"):
                    self._progress(build, last)
            await process.wait()
        finally:
            await _ended(process)
        if request.runtimes:
            if last.state != "built":
                log.error("containers of Python %s cannot start: %s", ", ".join(request.runtimes), last.text)
            return {}
        if last.state == "built":
            self._found.pop(last.image, None)
            if self.find(last.image) is None:
                raise ImageBuildError("the image was removed while it was built; build it again")
            return {"id": last.image, "cached": last.cached, "seconds": last.seconds}
        kind = getattr(exception, last.error, ImageBuildError)
        if last.state == "failed":
            raise kind(last.text) if issubclass(kind, exception.Error) else ImageBuildError(last.text)
        raise ImageBuildError(f"the process that built the image has ended without a word ({_how(process)}); try again")

    def _progress(self, build: Build, progress: Progress) -> None:
        build.last = progress
        for waiting in list(build.waiting):
            self._tell(waiting, progress)

    def _tell(self, waiting: tuple[str, int], progress: Progress) -> None:
        session, request = waiting
        self._send(session, p.ImageProgressed(request, **facts(progress)))


async def _ended(process: asyncio.subprocess.Process) -> None:
    """However it came to this: afterwards there is no such process."""
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(asyncio.shield(process.wait()), LEAVE_S)
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def images_of(plane: Plane) -> set[str]:
    """Ids of images that apps of a plane are made of."""
    return {spec.image.id for app in plane.apps.values() for spec in app.spec.functions if spec.image.id}


def planned_key(found: Plan, message: p.ImageRequested) -> str:
    """What forced builds have in common that may be one."""
    steps = msgspec.json.encode([step.step for step in found.steps]).decode()  # ids depend on salts
    return f"{message.force} {message.ignore_cache} {steps}"


def _reference(item: Any, kind: str) -> SecretRef:
    try:
        return msgspec.convert(item, SecretRef)
    except msgspec.ValidationError:
        raise InvalidError(f"Image.{kind}: {item!r} is no reference to a secret") from None


def _parts(image: BuiltImage) -> list[str]:
    """What an image cannot do without."""
    every = (image.packages, *image.package_layers, *image.layers, *image.visible)
    return [path for path in every if path]


def _how(process: asyncio.subprocess.Process) -> str:
    return f"exit code {process.returncode}"
