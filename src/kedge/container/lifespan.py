"""The lifespan of an ASGI app: it starts before the first request and ends after the last one.

An app that raises before it has said anything does not know of this part of ASGI, and is served without.
"""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

from kedge.container.asgi import App, Message
from kedge.container.output import say
from kedge.exception import ExecutionError
from kedge.sdk.tracebacks import add_note, describe, has_user_frame

LAST_WORDS_S = 1.0
"""How long an app that has failed to start may take to raise what it failed by."""
SHUTDOWN_S = 10.0
"""How long the end of an app may take: the exit hooks come after it, and have the rest of the time that a container
gets to leave."""


class Lifespan:
    """`start` and `stop` run on the user's loop; the app's own task lives from one to the other."""

    def __init__(self, name: str, app: App) -> None:
        self.state: dict[str, Any] = {}
        """What the app keeps for its requests."""
        self._name = name
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._asked = False
        """The app has taken `lifespan.startup`."""
        self._started = asyncio.Event()
        self._leaving = asyncio.Event()
        self._refusal: str | None = None
        """What the app says of why it could not start."""

    async def start(self) -> None:
        """Comes back when the app is ready. Raises what the app failed by."""
        self._task = asyncio.create_task(self._run())
        await self._until(self._started)
        if self._refusal is not None:
            await asyncio.wait([self._task], timeout=LAST_WORDS_S)
            raise self._failure()
        if self._task.done() and not self._started.is_set():
            self._mention(self._task)

    async def stop(self) -> None:
        """Lets the app end. What it raises is printed."""
        if self._task is None or self._task.done():
            return
        self._leaving.set()
        await asyncio.wait([self._task], timeout=SHUTDOWN_S)
        if not self._task.done():
            say(f"the app of {self._name} did not end its lifespan within {SHUTDOWN_S:g} s")
            self._task.cancel()
            return
        error = None if self._task.cancelled() else self._task.exception()
        if error is not None:
            say(f"the app of {self._name} failed at the end of its lifespan\n{_traceback(error)}")

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        await self._app(scope, self._receive, self._send)

    async def _until(self, event: asyncio.Event) -> None:
        assert self._task is not None
        waiting = asyncio.ensure_future(event.wait())
        await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self._leaving.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete" and not self._leaving.is_set():
            self._started.set()
        elif kind == "lifespan.startup.failed" and not self._started.is_set():
            self._refusal = str(message.get("message", ""))
            self._started.set()
        elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed") and self._leaving.is_set():
            if kind == "lifespan.shutdown.failed" and message.get("message"):
                say(f"the app of {self._name} failed at the end of its lifespan: {message['message']}")
        else:
            raise RuntimeError(f"{kind!r} was sent during the lifespan of the app, where nothing of that kind belongs")

    def _failure(self) -> BaseException:
        assert self._task is not None
        error = self._task.exception() if self._task.done() and not self._task.cancelled() else None
        if error is None:
            return ExecutionError(f"the app of {self._name} refused to start: {self._refusal or 'it gave no reason'}")
        add_note(error, f"raised while the app of {self._name} started (lifespan.startup)")
        return error

    def _mention(self, task: asyncio.Task[None]) -> None:
        """The app knows of no lifespan. It may be a surprise where it has begun to listen."""
        error = None if task.cancelled() else task.exception()
        if error is not None and self._asked:
            say(
                f"the app of {self._name} is served without a lifespan, since it raised "
                f"{type(error).__name__} on 'lifespan.startup': {error!s:.500}"
            )


def _traceback(error: BaseException) -> str:
    """The user's frames; the last line alone where there are none."""
    text, frames = describe(error)
    if not has_user_frame(frame[0] for frame in frames):
        text = "".join(traceback.format_exception_only(error))
    return text.rstrip()
