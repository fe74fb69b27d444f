"""The only owner of a Plane: gives it every message with the time, and carries out what it orders.

Commands are addressed messages. A session's or container's go to its connection; the engine's and the store's are
method calls. What a message causes leaves in one frame per connection, right after it was handled. What must be on disk
before the plane hears of it waits in the journal, and whatever the same session says next waits behind it.

A failure inside the plane is a bug, and never the end of the server: it is logged with its traceback, whoever sent the
message hears of it (a client's request is answered with InternalError; what has no answer, and a container, loses its
connection), and everything else goes on. What the plane had ordered before it failed is carried out.

Once `ending` is set the plane hears nothing more: what runs is as good as lost, exactly as if the server had been
killed. So there is one way to come back from both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from kedge.core.outbox import ENGINE, STORE
from kedge.core.plane import Plane
from kedge.engines.base import Engine
from kedge.exception import Error
from kedge.model import protocol as p
from kedge.model.payload import ErrorInfo
from kedge.model.spec import AppSpec
from kedge.server.archive import Archive
from kedge.server.journal import Journal
from kedge.server.launches import Launches
from kedge.server.link import Link
from kedge.server.logs import OutputLog
from kedge.server.remarks import Remarks
from kedge.server.store import Store

log = logging.getLogger("kedge.server")

MAX_PORTION = 128
"""Values of one message: 128 of 256 KiB are half a frame."""
OUTPUT_BACKLOG = 4 * 1024 * 1024
"""Bytes that may wait for a session that shows output and does not read. What containers print meanwhile is not sent to
it; the log book has it."""


class Driver:
    """Joins plane, engine, store and connections on one event loop."""

    def __init__(self, plane: Plane, engine: Engine, store: Store, launches: Launches, output: OutputLog) -> None:
        self.plane = plane
        self.links: dict[str, Link] = {}
        """Connections by address: sessions and containers, and the ingress, which is a session of its own."""
        self.idle = asyncio.Event()
        """Set while no container exists."""
        self.idle.set()
        self.ending = False
        self.failures = 0
        """Messages on which the plane failed."""
        self.archive = Archive(store, self.links, launches.payloads)
        self.web: Callable[[p.WebSent | p.WebCredited], None] = _nobody
        """The ingress: gets what containers say about requests of its."""
        self.routed: Callable[[], None] = _nothing
        """Called when there may be new labels."""
        self.brought: Callable[[AppSpec, str], None] = _unnoticed
        """Told of each app that a session has sent, and which session that was."""
        self.over: Callable[[], None] = _nothing
        """Called when the last container of an app that has stopped is gone, and with it the app."""
        self.gone: Callable[[str], None] = _forgotten
        """Told of each container that is gone, once nothing of it is left."""
        self.remounted: Callable[[p.VolumeAnswered], None] = _nobody
        """Told what became of a volume that a living container was to see anew."""
        self.awaited: dict[str, Callable[[], None]] = {}
        """What the ingress wants to do once a call of its has a container."""
        self._engine = engine
        self._store = store
        self._launches = launches
        self._trays = launches.payloads.trays
        self._output = output
        output.book.on_trouble = self._log_trouble
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._dirty: dict[Link, None] = {}
        self._containers: dict[str, None] = {}
        """Those that the engine was asked for and has not reported lost."""
        self._unshown: dict[str, int] = {}
        """Bytes of output that a session has missed since it stopped reading."""
        self.journal = Journal(plane, store, self._handle, self.send, self.links)
        self._remarks = Remarks(plane, launches, output)
        self._store_commands: dict[type, Callable[[Any], None]] = {
            p.OutputsWanted: self.archive.deliver,
            p.CallWanted: self.archive.describe,
            p.PayloadReleased: store.release,
            p.Remarked: self._remarks.remark,
            p.DeploymentChanged: self.journal.deployment_changed,
            p.AppOver: lambda message: self.over(),
        }
        self._afterwards: dict[type, Callable[[Any, str], None]] = {
            p.AppStopped: self.journal.apps_stopped,
            p.SessionClosed: self.journal.session_closed,
            p.AppCreated: self._app_brought,
            p.AppDeployed: self._app_brought,
            p.ContainerReady: self._container_ready,
        }

    # ------------------------------------------------------------ messages come in

    def submit(self, message: Any, sender: str = "") -> None:
        """One message of a session, a container (`sender`), the engine or the shell itself."""
        if not self.journal.takes(message, sender):
            self._handle(message, sender)

    def _handle(self, message: Any, sender: str = "") -> None:
        if self.ending:
            return
        try:
            commands = self.plane.handle(message, self._loop.time(), sender)
        except Exception as error:
            self._failed(message, sender, error)
            commands = self.plane.outbox.take()
        recorded: dict[str, list[tuple[str, p.OutputsDelivered]]] = {}
        for address, order in commands:
            kind = type(order)
            if address == ENGINE:
                self._order(order)
            elif kind is p.OutputsRecorded:
                self._record(order, recorded.setdefault(order.call, []))
            elif address == STORE:
                self._store_commands[kind](order)
            elif recorded and kind is p.OutputsDelivered and order.call in recorded:
                recorded[order.call].append((address, order))
            else:
                self.send(address, order)
                if self.awaited and kind is p.InputsDispatched:
                    self._tell_ingress(order)
        afterwards = self._afterwards.get(type(message))
        if afterwards is not None:
            afterwards(message, sender)
        due = self.plane.next_deadline()
        if due is not None and (self._timer is None or due < self._timer_at):
            self._arm(due)

    def _app_brought(self, message: p.AppCreated | p.AppDeployed, sender: str) -> None:
        self.brought(message.app, sender)
        self.routed()

    def _container_ready(self, message: p.ContainerReady, sender: str) -> None:
        self._launches.learn(sender, message.imports)
        self.routed()  # it may have been what a new version was waiting for

    def _record(self, message: p.OutputsRecorded, waiting: list[tuple[str, p.OutputsDelivered]]) -> None:
        """Results of a durable call go to the disk first, then to who waits: nobody sees one that a crash can undo."""

        def deliver() -> None:
            for session, outputs in waiting:
                self.send(session, outputs, kept=True)
            self.flush_all()

        self._store.record(message, deliver)
        self._remarks.recorded(message)

    def _failed(self, message: Any, sender: str, error: Exception) -> None:
        """The plane has failed on one message. Its contents may be private, so only its name is logged."""
        name = type(message).__name__
        self.failures += 1
        log.error("the plane failed on %s of %s", name, sender or "the server itself", exc_info=error)
        text = f"the kedge server failed on {name} ({type(error).__name__}: {error}); its log says where"
        info = ErrorInfo("InternalError", text)
        link = self.links.get(sender)
        if link is None:
            return
        request = getattr(message, "request", 0)
        if isinstance(message, p.InputsSubmitted | p.OutputsRequested):
            link.send(p.CallRefused(message.call, info, request))
        elif request:
            link.send(p.Reply(request, None, info))
        else:
            link.send(p.Refused(text))
            link.close(text)

    def restore(self, message: Any) -> None:
        """Something that the store remembers from before a restart: it is not stored again."""
        self._handle(message)

    def report(self, fact: Any) -> None:
        """What the engine has to say."""
        kind = type(fact)
        if kind is p.OutputCaptured:
            self._show(self._output.write(fact))
        elif kind is p.ForkServerReported:
            log.log(logging.INFO if fact.safe else logging.WARNING, "fork server %s: %s", fact.key, fact.reason or "up")
        elif kind is p.VolumeAnswered:
            self.remounted(fact)
        else:
            self._handle(fact)
            if kind is p.ContainerLost:
                self._launches.forget(fact.container)
                self.gone(fact.container)
                self._show(self._output.close(fact.container))
                self._containers.pop(fact.container, None)
                if not self._containers:
                    self.idle.set()

    # ------------------------------------------------------------ orders go out

    def send(self, address: str, message: Any, kept: bool = False) -> None:
        """To a connection, with the files that the message names; `kept` as in `Tray.give`."""
        link = self.links.get(address)
        if link is not None:
            if (tray := self._trays.get(address)) is not None:
                tray.give(message, kept)
            self._dirty[link] = None
            for portion in portions(message):
                link.send(portion)

    def flush_all(self) -> None:
        """Writes what has been sent since the last time, one frame per connection."""
        links, self._dirty = self._dirty, {}
        for link in links:
            link.flush()

    def _order(self, order: p.StartContainer | p.KillContainer) -> None:
        if isinstance(order, p.KillContainer):
            self._engine.kill(order.container, order.grace_s)
            return
        self.idle.clear()
        self._containers[order.container] = None
        try:
            pool = self.plane.pools[order.pool]
            launch = self._launches.make(order, pool.spec, pool.parameters, self.plane.apps[pool.app].spec)
            self._engine.start(launch)
        except Exception as error:
            if isinstance(error, Error):  # something that it needs is gone, and says so
                reason = str(error)
            else:
                reason = f"the engine failed: {error}"
                log.exception("the container %s could not be started", order.container)
            # Later: the plane must first have said all that it has to say.
            self._loop.call_soon(self.report, p.ContainerLost(order.container, reason))

    # ------------------------------------------------------------ time, and the end of it

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_at(due, self._time_passed)

    def _time_passed(self) -> None:
        self._timer = None
        self._handle(p.TimePassed())

    async def end(self, reason: str, grace_s: float) -> None:
        """Lets every container run its exit hooks for at most `grace_s` seconds. The plane hears nothing of it."""
        self.ending = True
        if self._timer is not None:
            self._timer.cancel()
        self.archive.close()
        for container in self._containers:
            self.send(container, p.ContainerDrained(reason, cancel=True))
            self._engine.kill(container, grace_s if container in self.links else 0.0)
        self.flush_all()
        try:
            await asyncio.wait_for(self.idle.wait(), grace_s + 1.0)
        except TimeoutError:
            log.warning("%d containers did not end within %g s", len(self._containers), grace_s)

    # ------------------------------------------------------------ what passes by the plane

    def relay_values(self, message: p.StreamValues, container: str) -> None:
        """Values of a generator on their way to its caller."""
        call = self.plane.calls.by_id.get(message.call)
        input = call.open.get(message.index) if call is not None else None
        if call is None or input is None or input.container is None or input.container.id != container:
            self.plane.drop("values of a stream that is over")
            return
        self.send(call.session, message)

    def relay_credit(self, message: p.StreamCredited, session: str) -> None:
        call = self.plane.calls.by_id.get(message.call)
        input = call.open.get(message.index) if call is not None and call.session == session else None
        if input is not None and input.container is not None:
            self.send(input.container.id, message)

    def relay_web(self, message: p.WebSent | p.WebCredited, container: str) -> None:
        """What the code of a web request answers, on its way to the ingress."""
        call = self.plane.calls.by_id.get(message.call)
        input = call.open.get(0) if call is not None else None
        if input is None or input.container is None or input.container.id != container:
            self.plane.drop("answers to a request that is over")
            return
        self.web(message)

    def relay_request(self, message: p.WebReceived | p.WebCredited) -> bool:
        """What the ingress has for the code of a web request. False where no container has that request."""
        call = self.plane.calls.by_id.get(message.call)
        input = call.open.get(0) if call is not None else None
        if input is None or input.container is None:
            return False
        self.send(input.container.id, message)
        return True

    def _tell_ingress(self, order: p.InputsDispatched) -> None:
        for dispatch in order.inputs:
            tell = self.awaited.pop(dispatch.call, None)
            if tell is not None:
                tell()

    def subscribe(self, app: str, session: str) -> None:
        self._output.subscribe(app, session)
        if self._output.book.trouble:
            self.send(session, p.Notice(app, self._output.book.trouble, "warning"))
        else:
            self._output.book.check()

    def _log_trouble(self, text: str) -> None:
        """What is shown now cannot be looked up later: who watches should know. Called from the thread of the book."""

        def tell() -> None:
            for session in self._output.all_watchers():
                self.send(session, p.Notice("", text, "warning"))
            self.flush_all()

        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(tell)

    def unsubscribe(self, session: str) -> None:
        self._output.unsubscribe(session)
        self._unshown.pop(session, None)

    def _show(self, messages: list[p.OutputCaptured]) -> None:
        """Output on its way to the sessions that watch its app."""
        for message in messages:
            for session in self._output.watchers(message.app):
                link = self.links.get(session)
                if link is None:
                    continue
                if link.unread > OUTPUT_BACKLOG:
                    self._unshown[session] = self._unshown.get(session, 0) + len(message.data)
                    continue
                unshown = self._unshown.pop(session, 0)
                if unshown:
                    text = f"{unshown:,} bytes of output were not sent, since they were not read fast enough"
                    self.send(session, p.Notice(message.app, f"{text}; see `kedge logs {message.app}`", "warning"))
                self.send(session, message)


def _nobody(message: Any) -> None:
    """Where there is no ingress."""


def _forgotten(container: str) -> None:
    """Where nothing is kept for containers."""


def _unnoticed(app: AppSpec, session: str) -> None:
    """Where nobody wants to know which apps there are."""


def _nothing() -> None:
    """Where nobody asks."""


def portions(message: Any) -> Sequence[Any]:
    """The message itself, or several of its kind where it carries so many values that they might not fit a frame."""
    kind = type(message)
    if kind is p.OutputsDelivered and len(message.outputs) > MAX_PORTION:
        parts = batched(message.outputs)
        return [p.OutputsDelivered(message.call, part, message.request) for part in parts]
    if kind is p.InputsDispatched and len(message.inputs) > MAX_PORTION:
        return [p.InputsDispatched(part) for part in batched(message.inputs)]
    return (message,)


def batched(values: list[Any]) -> list[list[Any]]:
    return [values[i : i + MAX_PORTION] for i in range(0, len(values), MAX_PORTION)]
