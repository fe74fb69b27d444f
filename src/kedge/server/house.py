"""All rooms of one server, opened in the order in which they need each other, and closed in the other.

What must survive is on disk all the time, so to close in order only adds that containers run their exit hooks, and that
web requests which are under way get their answers.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from pathlib import Path
from typing import Any

from kedge._version import __version__
from kedge.core.plane import Plane
from kedge.engines.process import ProcessEngine
from kedge.model import protocol as p
from kedge.model.gpus import GpuDevice
from kedge.server import gpus
from kedge.server.directory import StateDirectory
from kedge.server.driver import Driver
from kedge.server.gpumeter import GpuMeter
from kedge.server.gpus import Gpus
from kedge.server.images import Images, images_of
from kedge.server.ladder import Ladder
from kedge.server.launches import Launches
from kedge.server.logs import OutputLog
from kedge.server.objects import Objects
from kedge.server.office import Office
from kedge.server.outfit import Outfitter
from kedge.server.recovery import Recovery
from kedge.server.rpc import Rpc
from kedge.server.schedules import Schedules
from kedge.server.settings import Settings
from kedge.server.store import Store
from kedge.server.tokens import Tokens
from kedge.server.vault import Vault, used_in
from kedge.server.volume_desk import VolumeDesk
from kedge.server.volumes import Volumes
from kedge.server.web import Web, context_of

log = logging.getLogger("kedge.server")

STOP_GRACE_S = 10.0
"""Seconds that containers have for their exit hooks when the server ends."""
WEB_GRACE_S = 5.0
"""Seconds that web requests have for their answers before that."""


class House:
    """Make it within the running loop, with a state directory that is this server's alone, and an engine that may have
    begun."""

    def __init__(self, settings: Settings, directory: StateDirectory, engine: ProcessEngine) -> None:
        self._settings = settings
        self._directory = directory
        self._context = context_of(settings)
        self._web = Web(settings, directory.path, self._context)
        self._gpus = Gpus()
        self._store = Store(directory.path, durable=not settings.private, lifetime_s=settings.result_ttl)
        self._vault = Vault(self._store.writer, directory.path)
        if settings.private:
            self._vault.lender = settings.home / "server"
        self._volumes = Volumes(settings.home / "volumes")
        self._volume_desk = VolumeDesk(self._volumes, lambda session: self._rpc.container_of(session))
        self._ladder = Ladder(str(directory.path))
        self._images = Images(
            settings.home,
            self._send_now,
            self._vault.values,
            settings.host_apt,
            self._volumes,
        )
        self._outfitter = Outfitter(
            directory.path,
            directory.socket,
            _workplace(settings.home),
            str(settings.home),
            images=self._images,
            vault=self._vault,
            volumes=self._volumes,
            devices=self._gpus,
            rungs=self._ladder,
            preferred=settings.isolation,
        )
        launches = Launches(directory.socket, str(directory.path), self._store, self._outfitter)
        self._output = OutputLog(settings.home / "logs" / "logs.db", launches.place)
        self._engine = engine
        engine.report = lambda fact: self._driver.report(fact)
        self._driver = driver = Driver(Plane(_new_id), self._engine, self._store, launches, self._output)
        driver.gone, driver.remounted = self._volumes.ended, self._volumes.answered
        driver.brought, driver.over = self._images.brought, self._images.tidy
        self._volumes.remount = self._engine.remount
        self._meter = GpuMeter(driver.plane, self._gpus, driver.submit)
        self._tokens = Tokens(self._store.writer, directory.token())
        self._office = Office(driver, launches, self._store, self._tokens)
        self._office.snapshots = settings.home / "code"
        self._office.files = settings.home / "files"
        self._vault.used = lambda: used_in(driver.plane)
        self._images.used = lambda: images_of(driver.plane)
        self._objects = Objects(directory.path, not settings.private, driver.send, driver.flush_all)
        self._objects.dicts.place = launches.payloads.place
        self._office.attend(self._images.answers)
        self._office.departures.append(self._images.departed)
        self._office.attend(self._vault.answers)
        self._office.attend(self._volume_desk.answers)
        self._office.departures.append(self._volume_desk.departed)
        self._office.attend(self._objects.answers)
        if settings.private:
            self._objects.tell = self._tell_owner
        self._office.departures += [self._vault.session_closed, self._objects.session_closed]
        self._rpc = Rpc(driver, launches, self._office, str(directory.path))
        self._rpc.web = lambda host: (self._web.url(host), self._web.domain(local=not host))
        self._recovery = Recovery(driver, self._store)
        self._schedules = Schedules(driver.plane, driver.links, driver.submit, self._store.register, self._output.say)
        self._loading: asyncio.Task[None] | None = None

    async def open(self) -> dict[str, Any]:
        """Everything that was there before is back, and connections are accepted. Gives what clients need to know.
        OSError or StoreError where something that this needs cannot be had."""
        settings, driver = self._settings, self._driver
        self._web.bind()
        self._store.open()
        self._outfitter.payloads.sweep()
        await self._tokens.open()
        await self._vault.open()
        await self._images.open()
        await self._objects.open()
        await self._volumes.open()
        await self._engine.open()
        if not settings.private:
            self._ladder.begin()
        found = await self._find_gpus()
        driver.submit(p.NodeJoined("local", settings.cpus, settings.memory, devices=found))
        driver.journal.announce = self._schedules.changed
        await self._recovery.run()
        await self._rpc.listen(self._directory.socket)
        await self._schedules.open()
        addresses = [await self._rpc.listen(address, self._context) for address in settings.listen]
        if settings.private:
            driver.routed = self._open_web
            self._open_web()
        else:
            await self._web.open(driver, self._tokens.allowed)
        self._office.runs = self._schedules.facts
        facts = {
            "address": self._directory.socket,
            "tcp": addresses[0] if addresses else "",
            "web": self._web.url(),
            "web_domain": self._web.domain(),
        }
        self._office.about |= {**facts, "private": settings.private}
        log.info("kedge %s listens at %s and %s", __version__, ", ".join([facts["address"], *addresses]), facts["web"])
        for warning in settings.warnings:
            log.warning(warning)
        return {**facts, "token": self._directory.token(), "notes": [*self._notes(), *settings.warnings]}

    async def close(self) -> None:
        """In order: requests get their answers, containers run their exit hooks."""
        log.info("the server ends")
        self._schedules.close()
        self._meter.close()
        self._recovery.close()
        self._office.close()
        await self._web.close(WEB_GRACE_S)
        self._driver.ending = True
        self._rpc.close()
        await self._driver.end("its server has ended", STOP_GRACE_S)

    async def clear(self) -> None:
        """What must happen however it has ended."""
        if self._loading is not None:
            self._loading.cancel()
        self._web.release()
        self._rpc.close_all()
        await self._engine.close()
        await self._volume_desk.close()
        await self._images.close()  # what builds have written to volumes is committed
        await self._volumes.close()
        self._output.close_all()
        self._vault.close()
        self._objects.close()
        self._store.close()

    def _send_now(self, session: str, message: Any) -> None:
        self._driver.send(session, message)
        self._driver.flush_all()

    async def _find_gpus(self) -> tuple[GpuDevice, ...]:
        """Those that were declared, or else those that are there."""
        devices = self._settings.gpus
        if devices is None:
            found = await asyncio.to_thread(gpus.discover) if gpus.has_driver() else gpus.Found()
            devices = found.devices
            for note in filter(None, (*found.notes, found.error)):
                log.warning(note)
        self._gpus.set(devices)
        self._meter.open()
        return devices

    def _open_web(self) -> None:
        """A private server has got a web function, perhaps its first."""
        if self._loading is None and self._driver.plane.routes.by_label:
            self._loading = asyncio.get_running_loop().create_task(self._web.open(self._driver, self._tokens.allowed))
            self._loading.add_done_callback(_loaded)

    def _tell_owner(self, text: str) -> None:
        """Of a private server: the program that it belongs to was its first client."""
        owner = next((address for address in self._driver.links if address[3:].isdecimal()), "")
        self._driver.send(owner, p.Notice("", text, "warning"))

    def _notes(self) -> list[str]:
        web = self._web
        if self._settings.private or not web.wanted:
            return []
        return [
            f"port {web.wanted} was taken by another program, so HTTP is at {web.url()} and will stay there; choose "
            "another port with --port"
        ]


def _loaded(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("web functions cannot be reached", exc_info=error)


def _new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(8)}"


def _workplace(home: Path) -> str:
    """Where code of other machines runs: what it writes beside itself must not meet what is kedge's own."""
    return str(home / "work")
