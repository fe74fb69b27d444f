"""Volumes in containers: which tree each of them sees, and when what it has written is committed.

* A container sees the tree that was current when it started, and its own changes on top, until it reloads.
* A commit takes what a container has changed since its last one to the newest tree: by `Volume.commit()`, every few
  seconds for who writes, and when a container has ended, however it did.
* A reload commits first, so that nothing of its own is lost, and then shows the newest tree.
* What containers of a server had written that was killed is committed by the next server of this KEDGE_HOME.

Whatever waits for the disk is done by two threads of its own, never by the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kedge.exception import ClientClosed, Error, ExecutionError, InvalidError, NotFoundError, VolumeBusyError
from kedge.model.protocol import VolumeAnswered
from kedge.model.spec import VolumeMount, VolumeRef
from kedge.server.volume_store import Store, View, Volume, disk
from kedge.server.volume_trees import discard
from kedge.server.volume_uppers import LeftOut
from kedge.server.volume_views import Mounted, Views

log = logging.getLogger("kedge.server.volumes")

PERIOD_S = 5.0
"""How often what a container writes is committed by itself…"""
SHARE = 20
"""…or less often, so that this takes a twentieth of the time at most."""
RETRY_S = 60.0
"""After a commit that failed."""

BUSY = "busy"
"""How the engine's answer begins where files of a volume are open."""

Remount = Callable[[str, VolumeMount, int], None]
"""Shows a container another version of a volume, and answers by the number with `VolumeAnswered`."""


class Volumes:
    """Args:
    directory: `<KEDGE_HOME>/volumes`.
    durable: Whether a commit is on disk before it counts.
    """

    def __init__(self, directory: Path, durable: bool = True, clock: Callable[[], float] = time.time) -> None:
        self.store = Store(directory, durable, clock)
        self.remount: Remount = self._cannot
        self.period = PERIOD_S
        self._clock = clock
        self._views = Views(self.store)
        self._mounted: dict[str, list[Mounted]] = {}
        """By container."""
        self._owed: list[Mounted] = []
        """Of containers that are gone, whose changes could not be committed."""
        self._ending: dict[asyncio.Task[None], str] = {}
        """Last commits that are going on, and of which volume."""
        self._doomed: dict[str, None] = {}
        """Volumes to be deleted as soon as no container has them."""
        self._threads = ThreadPoolExecutor(2, "kedge-volumes")
        # Whoever commits need not wait for that.
        self.store.dispose = lambda directory: self._threads.submit(discard, directory)
        self._watcher: asyncio.Task[None] | None = None
        self._requests = 0
        self._remounts: dict[int, tuple[str, asyncio.Future[str]]] = {}
        """Which containers are being shown another version, by the number of the request."""

    async def open(self) -> None:
        """Goes on where a server that was killed has stopped: what its containers had written is committed, beside
        everything else."""
        if self.store.directory.is_dir():
            self.store.lease.open()
            self._begin(self._recover(), "")

    async def close(self) -> None:
        """Commits what is left. All containers are gone."""
        for container in list(self._mounted):
            self.ended(container)
        if self._watcher is not None:
            self._watcher.cancel()
        while self._ending:
            await asyncio.wait(self._ending)
        await self._run(self._end)
        self._threads.shutdown()

    def _end(self) -> None:
        for id in self._doomed:
            discard(str(self.store.directory / id))
        self.store.lease.close()

    # ------------------------------------------------------------ containers come and go

    def resolve(self, ref: VolumeRef, environment: str) -> Volume:
        """The volume that is meant in an app of this environment."""
        if ref.id:
            return self.store.get(ref.id)
        try:
            return self.store.find(ref.name, ref.environment or environment)
        except NotFoundError:
            if not ref.create:
                raise
        return self.store.create(ref.name, ref.environment or environment)

    def mount(self, ref: VolumeRef, environment: str, container: str, number: int) -> VolumeMount:
        """What the container `container` is to see at `ref.target`; `number` counts its volumes. What it writes lies
        with the volume, so that it outlives the container."""
        volume = self.resolve(ref, environment)
        mounted = self._views.make(volume.id, container, number, ref.target, ref.sub_path, ref.read_only)
        mounted.due = asyncio.get_running_loop().time() + self.period
        self._mounted.setdefault(container, []).append(mounted)
        if mounted.upper is not None and self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(self._watch())
        return mounted.mount

    def ended(self, container: str) -> None:
        """The container's process is gone: what it has written last is committed."""
        for request in [number for number, (asked, _) in self._remounts.items() if asked == container]:
            self.answered(VolumeAnswered(request, "the container has ended"))
        for mounted in self._mounted.pop(container, ()):
            self._begin(self._finish(mounted), mounted.view.volume)

    async def _finish(self, mounted: Mounted, final: bool = True) -> None:
        volume = mounted.view.volume
        async with mounted.turn:
            try:
                left_out = await self._committed(mounted, final=final)
            except NotFoundError:  # it has been deleted
                left_out = []
            except Exception as error:
                log.error(
                    "what %s has written to the volume %s could not be committed, and is tried again: %s",
                    mounted.view.container,
                    volume,
                    error,
                )
                mounted.due = asyncio.get_running_loop().time() + RETRY_S
                self._owed.append(mounted)
                return
            for path, why in left_out[:10]:
                log.warning("%s: %r is not kept in the volume %s: %s", mounted.view.container, path, volume, why)
            self._views.let_go(mounted.view)
            await self._run(self._forget, mounted.view)
        if volume in self._doomed:
            await self.delete_later(volume)

    def _forget(self, view: View) -> None:
        self.store.forget(view)
        try:
            with self.store.turn(view.volume):
                self.store.prune(view.volume)
        except NotFoundError:
            pass

    def containers(self, volume: str) -> list[str]:
        """Those of this server that have a volume."""
        return [name for name, all in self._mounted.items() if any(one.view.volume == volume for one in all)]

    # ------------------------------------------------------------ commits

    async def commit(self, container: str, volume: str) -> list[LeftOut]:
        """What a container has written so far is to be seen by others. Gives what could not be taken along."""
        found = self._of(container, volume)
        writable = [mounted for mounted in found if mounted.upper is not None]
        if not writable:
            raise InvalidError(
                f"the volume at {found[0].mount.target} is mounted read-only: there is nothing to commit"
            )
        left_out: list[LeftOut] = []
        for mounted in writable:
            async with mounted.turn:
                left_out += await self._committed(mounted)
        return left_out

    async def reload(self, container: str, volume: str) -> list[LeftOut]:
        """Shows a container what others have committed; its own changes are committed first."""
        left_out: list[LeftOut] = []
        for mounted in self._of(container, volume):
            async with mounted.turn:
                left_out += await self._committed(mounted)
                if mounted.seen != await self._run(self.store.current, volume):
                    await self._renew(container, mounted)
        return left_out

    async def _renew(self, container: str, mounted: Mounted) -> None:
        """Another tree below, and a new place for what it writes. What it has written to the old one until the very
        last moment is committed as well."""
        old, target = mounted.view, mounted.mount.target
        fresh = self._views.make(old.volume, container, old.number, target, old.sub_path, mounted.upper is None)
        error = await self._remounted(container, fresh.mount)
        if error:
            self._views.let_go(fresh.view)
            await self._run(self.store.forget, fresh.view)
        if mounted not in self._mounted.get(container, ()):
            if not error:  # it may have written to the new place already
                self._begin(self._finish(fresh), old.volume)
            raise ClientClosed(f"the container {container} ends")
        if error.startswith(BUSY):
            raise VolumeBusyError(
                f"the volume at {target} cannot be reloaded while files of it are open, or a directory of it is the "
                f"current one: close them first, and os.chdir elsewhere ({error.partition(': ')[2] or error})"
            )
        if error:
            raise ExecutionError(f"the volume at {target} could not be reloaded: {error}")
        late = Mounted(old, mounted.mount, mounted.upper)
        mounted.view, mounted.mount, mounted.upper, mounted.seen = fresh.view, fresh.mount, fresh.upper, fresh.seen
        # Before anything that it writes to the new place. A file that is open there still is copied, not linked.
        await self._finish(late, final=False)

    async def _remounted(self, container: str, mount: VolumeMount) -> str:
        """Has the engine show it; gives why that could not be done."""
        self._requests += 1
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._remounts[self._requests] = container, future
        self.remount(container, mount, self._requests)
        return await future

    def answered(self, message: VolumeAnswered) -> None:
        """The engine has done what it was asked to, or says why not."""
        _, future = self._remounts.pop(message.request, (None, None))
        if future is not None and not future.done():
            future.set_result(message.error)

    def _cannot(self, container: str, mount: VolumeMount, request: int) -> None:
        self.answered(VolumeAnswered(request, "the engine of this server cannot"))

    def _of(self, container: str, volume: str) -> list[Mounted]:
        found = [mounted for mounted in self._mounted.get(container, ()) if mounted.view.volume == volume]
        if not found:
            raise ExecutionError(
                "this container does not have this volume mounted; give it to its function: "
                "@app.function(volumes={'/data': volume})"
            )
        return found

    async def _committed(self, mounted: Mounted, now: float | None = None, final: bool = False) -> list[LeftOut]:
        """Commits in its turn, which lasts until the thread is done, also where nobody waits for it any more."""
        work = asyncio.ensure_future(self._run(self._commit, mounted, now, final))
        try:
            found: list[LeftOut] = await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise
        return found

    def _commit(self, mounted: Mounted, now: float | None, final: bool) -> list[LeftOut]:
        """In a thread. With `now`, what is just being written waits."""
        upper, volume = mounted.upper, mounted.view.volume
        if upper is None:
            return []
        drafts: list[str] = []

        def staging() -> str:
            if not drafts:
                drafts.append(self.store.draft(volume))
            return drafts[0]

        try:
            with disk(f"the volume {volume} cannot be changed"):
                collected = upper.collect(staging, now=now, final=final)
            if not collected.empty:
                tree = self.store.change(volume, lambda current: collected.changes)
                if mounted.seen == tree - 1:
                    mounted.seen = tree
            upper.taken(collected)
        finally:
            for draft in drafts:
                discard(draft)
        return upper.left_out

    async def _watch(self) -> None:
        """Commits by itself what containers write, one after the other."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.period / 5)
            for mounted in [one for all in self._mounted.values() for one in all if one.upper is not None]:
                if loop.time() < mounted.due or mounted.turn.locked():
                    continue
                async with mounted.turn:
                    if mounted in self._mounted.get(mounted.view.container, ()):
                        await self._commit_by_itself(mounted)
            owed = [one for one in self._owed if loop.time() >= one.due]
            for mounted in owed:
                self._owed.remove(mounted)
                self._begin(self._finish(mounted), mounted.view.volume)

    async def _commit_by_itself(self, mounted: Mounted) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._committed(mounted, self._clock())
        except Exception as error:
            if not mounted.failed:
                log.warning("the volume %s could not be committed: %s", mounted.view.volume, error)
            mounted.failed = True
            mounted.due = loop.time() + RETRY_S
        else:
            mounted.failed = False
            mounted.due = loop.time() + max(self.period, SHARE * (loop.time() - began))

    # ------------------------------------------------------------ what is left over

    async def _recover(self) -> None:
        for view in await self._run(self.store.left_over):
            try:
                mine = await self._run(self.store.adopt, view)
            except OSError as error:
                log.error("what %s has left in the volume %s cannot be read: %s", view.container, view.volume, error)
                continue
            if mine is None:
                continue
            log.info("committing what %s has left in the volume %s", mine.container, mine.volume)
            # Its last processes may be dying just now, so its files are copied.
            await self._finish(self._views.again(mine), final=False)
        await self._run(self.store.sweep)

    async def settled(self, volume: str) -> None:
        """Waits for the last commits of containers that have ended already."""
        waiting = [task for task, one in self._ending.items() if one == volume]
        if waiting:
            await asyncio.wait(waiting)

    async def delete_later(self, volume: str) -> None:
        """Deletes a volume once no container has it any more."""
        self._doomed[volume] = None
        if not self.containers(volume):
            try:
                await self._run(self.store.delete, volume)
            except NotFoundError:
                pass
            except Error:
                return  # the last commit of a container is still going on
            self._doomed.pop(volume, None)

    def _begin(self, work: Coroutine[Any, Any, None], volume: str) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._ending[task] = volume
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._ending[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("work on volumes failed", exc_info=error)

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
