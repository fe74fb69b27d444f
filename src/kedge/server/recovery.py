"""How a server comes back: what the store remembers, then a time in which owners may claim what is theirs.

Apps come first, then which of them are current versions of deployed ones, then pools, then durable calls and the inputs
that are still open; those run again. Programs that were connected come back within seconds and announce their apps
again. An ephemeral app that nobody has claimed after `CLAIM_S` is stopped, and a call whose number of inputs nobody has
told is closed with those that are there.
"""

from __future__ import annotations

import asyncio
import logging

from kedge.model import protocol as p
from kedge.server.driver import Driver
from kedge.server.store import Store

log = logging.getLogger("kedge.server")

CLAIM_S = 60.0
"""Clients try for 20 s to reach a lost server; a program that is stopped in a debugger has a little longer."""


class Recovery:
    def __init__(self, driver: Driver, store: Store, claim_s: float = CLAIM_S) -> None:
        self._driver = driver
        self._store = store
        self._claim_s = claim_s
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Gives the plane what has survived. Before the first connection."""
        driver = self._driver
        survivors = await self._store.load()
        names = survivors.names
        for spec in names.apps:
            driver.journal.restored(spec.app)
            driver.restore(p.AppCreated(0, spec))
        for changed in names.deployments:
            driver.restore(changed)
        for variant in names.variants:
            driver.restore(p.VariantBound(variant))
        for call, submissions in survivors.calls:
            driver.restore(call)
            for submission in submissions:
                driver.restore(submission)
        ephemeral = [spec.app for spec in names.apps if spec.ephemeral]
        unclosed = [call.call for call, _ in survivors.calls if call.total < 0]
        if deployed := sum(bool(changed.app) for changed in names.deployments):
            log.info("%d deployed apps are back", deployed)
        if survivors.calls:
            waiting = sum(len(one.payloads) for _, submissions in survivors.calls for one in submissions)
            log.info("%d calls with %d unfinished inputs are back", len(survivors.calls), waiting)
        if ephemeral or unclosed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._claim_s, self.end_unclaimed, ephemeral, unclosed)

    def end_unclaimed(self, apps: list[str], calls: list[str]) -> None:
        for id in calls:
            self._driver.journal.close_call(id)
        for id in apps:
            app = self._driver.plane.apps.get(id)
            if app is not None and not app.session and not app.stopped:
                reason = "its program did not come back after the server had been restarted"
                self._driver.submit(p.AppStopped(id, reason=reason))
        self._driver.flush_all()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
