"""What goes to disk before the plane hears of it, and what follows from that.

Inputs of durable calls, detached apps and new versions of deployed ones wait here until they are on disk; whatever the
same session says meanwhile waits behind them, so that its order is kept. A session that says too much while it waits is
not read any further.

Which version is current the plane decides, and its deployer hears of that once it is on disk as well.

Where a session ends in the middle of a durable call, the call is closed with the inputs that were submitted: nobody
else will say how many it has.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from kedge.core.plane import Plane
from kedge.model import protocol as p
from kedge.model.ids import app_of, pool_id
from kedge.model.payload import ErrorInfo
from kedge.server import timetable
from kedge.server.link import Link
from kedge.server.register import served_id
from kedge.server.store import Store

log = logging.getLogger("kedge.server")

MAX_BEHIND = 256
"""Messages of one session that may wait for an earlier one to be on disk, before it is left unread."""


class Journal:
    def __init__(
        self,
        plane: Plane,
        store: Store,
        handle: Callable[[Any, str], None],
        send: Callable[[str, Any], None],
        links: Mapping[str, Link],
    ) -> None:
        self._plane = plane
        self._store = store
        self._handle = handle
        self._send = send
        self._links = links
        self._behind: dict[str, deque[Any]] = {}
        """Messages of sessions that wait for an earlier one of theirs to be on disk."""
        self._unclosed: dict[str, dict[str, None]] = {}
        """Durable calls whose number of inputs is not known yet, by the session that submits them."""
        self._saved: dict[str, None] = {}
        """Apps that the store has."""
        self.announce: Callable[[p.DeploymentChanged], None] = _nobody
        """Hears which version of a deployment is current, or that it has stopped."""
        self._writers: dict[type, Callable[[Any, str], bool]] = {
            p.InputsSubmitted: self._inputs_submitted,
            p.CallClosed: self._call_closed,
            p.AppCreated: self._app_created,
            p.AppDeployed: self._app_deployed,
            p.VariantBound: self._variant_bound,
        }

    def takes(self, message: Any, sender: str) -> bool:
        """Whether the message waits here, to be handled later. False where the plane may hear of it at once."""
        behind = self._behind.get(sender)
        if behind is not None:
            behind.append(message)
            if len(behind) == MAX_BEHIND:
                self._pause(sender, True)
            return True
        writer = self._writers.get(type(message))
        return writer is not None and writer(message, sender)

    def restored(self, app: str) -> None:
        """The store has this app from before a restart."""
        self._saved[app] = None

    # ------------------------------------------------------------ what waits

    def _inputs_submitted(self, message: p.InputsSubmitted, sender: str) -> bool:
        if not message.durable:
            return False
        if message.total < 0:
            self._unclosed.setdefault(sender, {})[message.call] = None
        else:
            self._is_closed(message.call, sender)

        def accepted(restored: p.CallRestored | None, error: str) -> None:
            if error:
                self._send(sender, p.CallRefused(message.call, ErrorInfo("ServiceError", error)))
            else:
                if restored is not None and message.call not in self._plane.calls.by_id:
                    self._handle(restored, "")
                self._handle(message, sender)
            self._go_on(sender)

        self._behind[sender] = deque()
        known = message.call in self._plane.calls.by_id
        self._store.accept(message, self._function_name(message.pool), known, accepted)
        return True

    def _app_created(self, message: p.AppCreated, sender: str) -> bool:
        spec = message.app
        if spec.app in self._plane.apps:
            return False
        message = replace(message, app=replace(spec, created_at=self._store.clock()))
        self._save(message, sender)
        return True

    def _app_deployed(self, message: p.AppDeployed, sender: str) -> bool:
        spec = message.app
        error = timetable.mistake(spec)
        if error:
            self._send(sender, p.Reply(message.request, None, ErrorInfo("InvalidError", error)))
            return True
        if spec.app in self._plane.apps:
            return False
        message = replace(message, app=replace(spec, deployment=served_id(spec), created_at=self._store.clock()))
        self._save(message, sender)
        return True

    def _save(self, message: p.AppCreated | p.AppDeployed, sender: str) -> None:
        """The plane hears of this app once it is on disk; of an ephemeral one at once: nobody counts on it after a
        crash, except durable inputs, and those are written after it."""
        if message.app.ephemeral:
            self._saved[message.app.app] = None
            self._store.register.save_app(message.app)
            self._handle(message, sender)
            return
        spec = message.app

        def saved(_: Any, error: str) -> None:
            if error:
                self._send(sender, p.Reply(message.request, None, ErrorInfo("ServiceError", error)))
            else:
                self._saved[spec.app] = None  # not before: an app that the plane does not know counts as over
                self._handle(message, sender)
            self._go_on(sender)

        self._behind[sender] = deque()
        self._store.register.save_app(spec, saved)

    def _go_on(self, sender: str) -> None:
        """What has waited behind is submitted, up to the next message that must wait itself."""
        behind = self._behind.pop(sender)
        while behind and sender not in self._behind:
            message = behind.popleft()
            if not self.takes(message, sender):
                self._handle(message, sender)
        if sender in self._behind:
            self._behind[sender].extend(behind)
        if len(self._behind.get(sender, ())) < MAX_BEHIND:
            self._pause(sender, False)
        link = self._links.get(sender)
        if link is not None:
            link.flush()

    def _pause(self, sender: str, paused: bool) -> None:
        link = self._links.get(sender)
        if link is not None:
            link.pause_reading(paused)

    # ------------------------------------------------------------ what is written on the way

    def _call_closed(self, message: p.CallClosed, sender: str) -> bool:
        self._is_closed(message.call, sender)
        call = self._plane.calls.by_id.get(message.call)
        if call is not None and call.durable:
            self._store.total(message.call, message.total)
        return False

    def _variant_bound(self, message: p.VariantBound, sender: str) -> bool:
        variant = message.variant
        pool = pool_id(variant.function, variant.variant)
        app = self._plane.registry.app_with(variant.function)
        if app is not None and pool not in self._plane.pools:
            self._store.register.save_variant(pool, app_of(variant.function), variant)
        return False

    # ------------------------------------------------------------ what follows

    def apps_stopped(self, message: Any, sender: str) -> None:
        """Apps may have stopped: the store forgets them."""
        for id in list(self._saved):
            app = self._plane.apps.get(id)
            if app is None or app.stopped:
                del self._saved[id]
                self._store.register.forget_app(id)

    def deployment_changed(self, message: p.DeploymentChanged) -> None:
        """Another version is current, or none: whoever waits for that hears of it when it is on disk."""
        app = self._plane.apps.get(message.app)

        def written(_: Any, error: str) -> None:
            if not message.session:
                return
            info = None
            if error:
                done, again = f"version {message.version} of {message.name} serves, but", "deploy"
                if not message.app:
                    done, again = f"{message.name} has stopped, but that", "stop it"
                text = (
                    f"{done} is not on disk yet, and a restart of the server would bring the version before "
                    f"it back: {error}. It is written as soon as the disk takes it; {again} again to be sure"
                )
                info = ErrorInfo("ServiceError", text)
            self._send(message.session, p.Reply(message.request, None if error else message.value, info))
            link = self._links.get(message.session)
            if link is not None:
                link.flush()

        if app is not None:
            log.info("%s (%s): version %d serves", message.name, message.deployment, message.version)
        elif not message.request:  # the second time it answers who has stopped it
            log.info("%s (%s) has been stopped", message.name, message.deployment)
        self._store.register.change(message, app.spec if app is not None else None, written)
        self.announce(message)
        self.apps_stopped(message, "")

    def session_closed(self, message: p.SessionClosed, sender: str) -> None:
        self.apps_stopped(message, sender)
        for id in self._unclosed.pop(sender, ()):
            self.close_call(id)

    def close_call(self, id: str) -> None:
        """Whoever submitted the inputs of a call is gone: unless another session goes on, there will be no others."""
        if any(id in calls for calls in self._unclosed.values()):
            return
        call = self._plane.calls.by_id.get(id)
        if call is not None and call.durable and call.total is None:
            self._store.total(id, call.submitted)
            self._handle(p.CallClosed(id, call.submitted), "")

    def _is_closed(self, call: str, sender: str) -> None:
        calls = self._unclosed.get(sender)
        if calls is not None:
            calls.pop(call, None)
            if not calls:
                del self._unclosed[sender]

    def _function_name(self, pool: str) -> str:
        app, function = self._plane.registry.app_with(pool), pool.partition("@")[0]
        return pool if app is None else app.functions[self._plane.registry.own_id(function, app)].name


def _nobody(message: Any) -> None:
    """Where nothing follows from it."""
