"""Answers for durable calls out of the store: what is recorded, page by page, at the pace at which the session reads.

The plane knows a durable call only until it has all its results. Whoever asks later is answered from here, and hears
why where there is nothing to wait for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

from kedge.model import protocol as p
from kedge.model.payload import ErrorInfo
from kedge.server.link import Link
from kedge.server.payloads import Payloads
from kedge.server.store import Store
from kedge.server.writer import StoreError

log = logging.getLogger("kedge.server")


class Archive:
    def __init__(self, store: Store, links: Mapping[str, Link], payloads: Payloads) -> None:
        self._store = store
        self._links = links
        self._payloads = payloads
        self._tasks: dict[asyncio.Task[None], None] = {}

    def deliver(self, wanted: p.OutputsWanted) -> None:
        """Sends the results that are wanted, then CallRefused for what will never be there."""
        self._start(self._deliver(wanted))

    def describe(self, wanted: p.CallWanted) -> None:
        """Answers a CallRequested."""
        self._start(self._describe(wanted))

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _start(self, answer: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(answer)
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an answer out of the store failed", exc_info=error)

    async def _deliver(self, wanted: p.OutputsWanted) -> None:
        try:
            error = await (self._chosen(wanted, wanted.indices) if wanted.indices is not None else self._all(wanted))
        except StoreError as failure:
            error = ErrorInfo("ServiceError", str(failure))
        if error is not None:
            self._send(wanted.session, p.CallRefused(wanted.call, error, wanted.request))

    async def _chosen(self, wanted: p.OutputsWanted, indices: list[int]) -> ErrorInfo | None:
        """These results, which the plane knows to be recorded."""
        missing = dict.fromkeys(indices)
        if missing and not await self._pages(wanted, min(missing), max(missing) + 1, missing):
            return None
        return not_readable(wanted.call, min(missing)) if missing else None

    async def _all(self, wanted: p.OutputsWanted) -> ErrorInfo | None:
        """A whole range of a call that the plane does not know."""
        size = await self._store.size(wanted.call)
        if size is None:
            return ErrorInfo("OutputExpiredError", no_such_call(wanted.call, self._store.lifetime_s))
        end = size if wanted.end is None else min(wanted.end, size)
        missing = dict.fromkeys(range(wanted.start, end))
        if missing and not await self._pages(wanted, wanted.start, end, missing):
            return None
        if missing:
            return not_readable(wanted.call, min(missing))
        if wanted.start >= size or (wanted.end or 0) > size:
            absent = max(wanted.start, size)
            text = f"the call {wanted.call} has {size} inputs, numbered from 0: there is no input {absent}"
            return ErrorInfo("NotFoundError", text)
        return None

    async def _pages(self, wanted: p.OutputsWanted, start: int, end: int, missing: dict[int, None]) -> bool:
        """Sends those of `missing` that are recorded, and takes them out of it. False where nobody listens any more."""
        position: int | None = start
        while position is not None:
            link = self._links.get(wanted.session)
            if link is None:
                return False
            await link.writable.wait()
            page = await self._store.page(wanted.call, position, end)
            outputs = [output for output in page.outputs if output.index in missing]
            for output in outputs:
                del missing[output.index]
            if outputs:
                message = p.OutputsDelivered(wanted.call, outputs, wanted.request)
                self._payloads.give(wanted.session, message, kept=True)
                link.send(message)
            position = page.next
        return True

    async def _describe(self, wanted: p.CallWanted) -> None:
        try:
            known = await self._store.describe(wanted.call)
        except StoreError as failure:
            reply = p.Reply(wanted.request, None, ErrorInfo("ServiceError", str(failure)))
        else:
            text = no_such_call(wanted.call, self._store.lifetime_s)
            reply = p.Reply(wanted.request, known, ErrorInfo("NotFoundError", text) if known is None else None)
        self._send(wanted.session, reply)

    def _send(self, session: str, message: Any) -> None:
        link = self._links.get(session)
        if link is not None:
            link.send(message)


def no_such_call(call: str, lifetime_s: float) -> str:
    days = lifetime_s / 86400
    kept = f"{days:.3g} days" if days >= 1 else f"{lifetime_s:g} s"
    return f"there is no call {call}: it never was, or its results have expired {kept} after the last of them"


def not_readable(call: str, index: int) -> ErrorInfo:
    text = f"the result of input {index} of {call} is not on the server's disk, or not yet: its log says why"
    return ErrorInfo("ServiceError", text)
