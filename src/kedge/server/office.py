"""Answers to people who look after a server: what is deployed, what runs where, who may come in.

Whatever decides over inputs and containers is the plane's; here it is read, together with what only the shell knows.
What needs the disk is answered later, by a task; everything else at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import psutil

from kedge._version import __version__
from kedge.exception import Error, InvalidError, NotFoundError, ResourceExhaustedError
from kedge.model import protocol as p
from kedge.model.payload import ErrorInfo
from kedge.server import protection
from kedge.server.codeshelf import CodeShelf
from kedge.server.driver import Driver
from kedge.server.history import calls_over, versions_of, with_past
from kedge.server.inventory import STOPPED, Facts, Inventory
from kedge.server.launches import Launches
from kedge.server.store import Store
from kedge.server.tokens import KINDS, Tokens
from kedge.server.treeshelf import TreeShelf
from kedge.server.writer import StoreError

log = logging.getLogger("kedge.server")

SWEEP_S = 3600.0
MAX_UNANSWERED = 256
"""Questions that may wait for the disk at the same time; more are a program that asks in a loop."""


class Office:
    """Everything that sessions may ask about the server itself.

    Args:
        driver: Whose plane it is.
        launches: What containers are started with.
        store: Where durable calls are that are over.
        tokens: Who may come in.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        driver: Driver,
        launches: Launches,
        store: Store,
        tokens: Tokens,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.tokens = tokens
        self.about: Facts = {"address": "", "tcp": "", "web": "", "web_domain": "", "private": False}
        """What is known of this server from outside: where it listens, and whose it is."""
        self.runs: Callable[[str], Facts] = lambda function: {}
        """When a function (by its id) runs by its schedule: {"next", "last", "missed"}."""
        self.shelf = CodeShelf(store.directory / "code")
        self.trees = TreeShelf(store.directory / "files")
        self.snapshots: Path | None = None
        """Where programs of this machine put their code."""
        self.files: Path | None = None
        """Where they put what their images read."""
        self.inventory = Inventory(
            driver.plane, launches, lambda: self.about["web"], lambda function: self.runs(function)
        )
        self.failures = 0
        """Questions on which this room failed."""
        self.departures: list[Callable[[str], None]] = []
        """Who else wants to know that a session has gone."""
        self._driver = driver
        self._store = store
        self._clock = clock
        self._began = asyncio.get_running_loop().time()
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self.sweep)
        self.answers: dict[type, Callable[[Any, str], Any]] = {
            p.AppsRequested: self._apps,
            p.ContainersRequested: self._containers,
            p.FunctionsRequested: self._functions,
            p.CallsRequested: self._calls,
            p.TokensChanged: self._tokens,
            p.ServerRequested: self._server,
            p.CodeUploaded: self._code,
            **self.trees.answers,
        }

    def attend(self, answers: dict[type, Callable[[Any, str], Any]]) -> None:
        """Further kinds of questions, and who answers them: `(message, session)` → value, or a coroutine of one."""
        self.answers |= answers

    def answer(self, message: Any, session: str) -> None:
        """Answers one request of a session, now or later."""
        try:
            value = self.answers[type(message)](message, session)
        except Exception as error:
            self._refuse(session, message, error)
            return
        if value is NOTHING_YET:
            return
        if not asyncio.iscoroutine(value):
            self._driver.send(session, p.Reply(message.request, value))
        elif len(self._tasks) >= MAX_UNANSWERED:
            value.close()
            self._refuse(session, message, ResourceExhaustedError("the server is asked too much at once; try again"))
        else:
            self._start(self._later(value, message, session))

    def session_closed(self, session: str) -> None:
        """Nobody waits for what it has begun."""
        self.shelf.forget(session)
        self.trees.session_closed(session)
        for forget in self.departures:
            forget(session)

    def close(self) -> None:
        self._sweeper.cancel()
        for task in self._tasks:
            task.cancel()

    def sweep(self) -> None:
        """Removes uploaded code that no app has any more; from now on every hour."""
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self.sweep)
        specs = [app.spec for app in self._driver.plane.apps.values()]
        ours = not self.about["private"]
        self._start(self.shelf.sweep({spec.code.root for spec in specs}, self.snapshots, ours))
        mounted = {files.root for spec in specs for function in spec.functions for files in function.image.mounts}
        self._start(self.trees.sweep(mounted, self.files, ours))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("work beside questions failed", exc_info=error)

    async def _later(self, value: Coroutine[Any, Any, Any], message: Any, session: str) -> None:
        try:
            answer = await value
        except Exception as error:
            self._refuse(session, message, error)
        else:
            self._driver.send(session, p.Reply(message.request, answer))
        self._driver.flush_all()

    def _refuse(self, session: str, message: Any, error: Exception) -> None:
        if isinstance(error, Error):
            info = ErrorInfo(type(error).__name__, str(error))
        elif isinstance(error, StoreError):
            info = ErrorInfo("ServiceError", str(error))
        else:
            name = type(message).__name__
            self.failures += 1
            log.error("%s of %s could not be answered", name, session, exc_info=error)
            info = ErrorInfo("InternalError", f"the kedge server failed on {name}; its log says where")
        self._driver.send(session, p.Reply(message.request, None, info))

    # ------------------------------------------------------------ what there is

    async def _apps(self, message: p.AppsRequested, session: str) -> list[Facts]:
        environment, name, register = message.environment, message.name, self._store.register
        if not message.history:
            return await with_past(register, self.inventory.apps(environment, name), environment, name)
        there = self.inventory.versions(environment, name)
        versions = await versions_of(register, environment, name, there)
        if versions is None:
            where = f" in the environment {environment!r}" if environment else ""
            raise NotFoundError(f"no app {name!r} is or was deployed{where}")
        return versions

    def _containers(self, message: p.ContainersRequested, session: str) -> list[Facts]:
        return self.inventory.containers(self._now(), message.app, message.container, message.secrets)

    def _functions(self, message: p.FunctionsRequested, session: str) -> list[Facts]:
        return self.inventory.functions(message.environment, message.app, message.function, message.secrets)

    async def _calls(self, message: p.CallsRequested, session: str) -> list[Facts]:
        function, limit = message.function, message.limit
        found = self.inventory.calls(function, limit, self._now(), self._clock())
        if len(found) < limit:
            known = {facts["call"] for facts in found}
            pools, path = self.inventory.pools_of(function), self._store.writer.path
            # What the plane has let go of may still be on its way to the disk.
            await self._store.writer.ask(lambda tx: None)
            found += await asyncio.to_thread(calls_over, path, pools, known, limit - len(found))
        return found

    # ------------------------------------------------------------ who may come in

    async def _tokens(self, message: p.TokensChanged, session: str) -> Any:
        if message.kind not in ("", *KINDS):
            raise InvalidError(f"kind={message.kind!r} is not known; write one of {', '.join(KINDS)}")
        if message.action == "list":
            return self.tokens.list(message.kind)
        if message.action == "create":
            return await self.tokens.create(message.kind or "api", message.name)
        if message.action == "delete":
            return await self.tokens.delete(message.id)
        raise InvalidError(f"action={message.action!r} is not known; write create, list or delete")

    # ------------------------------------------------------------ code

    def _code(self, message: p.CodeUploaded, session: str) -> Any:
        upload = self.shelf.take(message, session)
        return NOTHING_YET if upload is None else self._keep(upload)

    async def _keep(self, upload: Any) -> Facts:
        return {"root": await self.shelf.keep(upload)}

    # ------------------------------------------------------------ the server itself

    async def _server(self, message: p.ServerRequested, session: str) -> Facts:
        # The first who asks may have to wait until isolation has been tried out.
        kept = await asyncio.to_thread(protection.facts, self.inventory.launches.outfitter)
        plane, up = self._driver.plane, self._now() - self._began
        pools = list(plane.pools.values())
        states = [app["state"] for app in self.inventory.apps() if app["state"] != STOPPED]
        of_containers = [container.state for container in plane.containers.values()]
        return {
            **self.about,
            "home": str(self._store.directory),
            "version": __version__,
            "python": platform.python_version(),
            "process": os.getpid(),
            "started_at": self._clock() - up,
            "up_s": up,
            "memory_bytes": psutil.Process().memory_info().rss,
            "machines": [_machine(node) for node in plane.scheduler.nodes.values()],
            "disk": self._disk(),
            **kept,
            "apps": {state: states.count(state) for state in dict.fromkeys(states)},
            "deployments": {id: app.spec.deployment for id, app in plane.apps.items() if app.spec.deployment},
            "containers": {state: of_containers.count(state) for state in dict.fromkeys(of_containers)},
            "inputs": {
                "running": sum(pool.in_flight for pool in pools),
                "queued": sum(pool.backlog + pool.queue.delayed for pool in pools),
            },
            "calls": len(plane.calls.by_id),
            "sessions": sum(address[:3] == "se-" and address[3:].isdecimal() for address in self._driver.links),
            "labels": len(plane.routes.by_label),
            "failures": self._driver.failures + self.failures,
            "dropped": dict(plane.dropped),
        }

    def _disk(self) -> Facts:
        try:
            found = shutil.disk_usage(self._store.directory)
        except OSError as error:
            return {"error": str(error)}
        return {"free_bytes": found.free, "total_bytes": found.total}

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


NOTHING_YET = object()
"""The answer to a message that is not answered, since more follows."""


def _machine(node: Any) -> Facts:
    return {
        "name": node.name,
        "cpu": node.cpu,
        "cpu_used": round(node.cpu_used, 6),
        "memory": node.memory,
        "memory_used": node.memory_used,
        "containers": node.containers,
        "gpus": _kinds(node.devices),
        "devices": [
            {
                "index": slab.device.index,
                "name": slab.device.name,
                "product": slab.device.product,
                "memory": slab.device.memory,
                "memory_used": slab.vram,
                "whole": bool(slab.whole),
                "containers": slab.whole + slab.sharers,
                "declared": not slab.device.uuid,
            }
            for slab in node.devices
        ],
    }


def _kinds(devices: Iterable[Any]) -> Facts:
    """How many there are of each name, and how many are in use."""
    kinds: Facts = {}
    for slab in devices:
        kind = kinds.setdefault(slab.device.name, {"count": 0, "used": 0})
        kind["count"] += 1
        kind["used"] += not slab.unused
    return kinds
