"""Every app that is known, and which pool an id means: one of an app itself, or of what is deployed at the moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.core.apps import App, normalised, rebased, unkept, with_code_of
from kedge.core.outbox import STORE
from kedge.core.pool import Pool
from kedge.model import protocol as p
from kedge.model.ids import app_of, pool_id
from kedge.model.payload import TERMINATED, ErrorInfo, Payload, Result
from kedge.model.spec import AppSpec, FunctionSpec

if TYPE_CHECKING:
    from kedge.core.plane import Plane


class Registry:
    def __init__(self, plane: Plane) -> None:
        self.apps: dict[str, App] = {}
        self.pools: dict[str, Pool] = {}
        self._plane = plane
        self._current: dict[str, str] = {}
        """Pool of the current version by the id that stands for it, as far as it has been asked for."""

    # ------------------------------------------------------------ apps come and go

    def app_created(self, message: p.AppCreated, now: float, sender: str) -> None:
        plane, spec = self._plane, message.app
        app = self.apps.get(spec.app)
        if app is None:
            error = plane.routes.collision(spec) if sender else None
            if error is not None:
                plane.outbox.send(sender, p.Reply(message.request, None, error))
                return
            app = self.add(spec, sender if spec.ephemeral else "")
            if spec.deployment:  # as the store remembers it: what is current follows
                plane.deployments.restore(app)
            else:
                plane.routes.claim(spec)
                self.open_pools(app)
        elif spec.ephemeral and not app.stopped:
            # Its program is back on another connection, or was missed since the server began.
            app.session = sender
            plane.deployments.reclaim(app, sender)
        if sender:
            labels = plane.routes.of_app(spec.deployment or spec.app)
            value = {"app": spec.app, "labels": labels, "notes": self.notes(spec)}
            plane.outbox.send(sender, p.Reply(message.request, value))

    def notes(self, spec: AppSpec) -> list[str]:
        """What whoever brings it should know."""
        return list(filter(None, map(self._plane.scheduler.too_large, spec.functions)))

    def add(self, spec: AppSpec, session: str) -> App:
        app = self.apps[spec.app] = App(spec, session)
        return app

    def open_pools(self, app: App) -> None:
        """Functions that keep containers get them without being called."""
        for id, function in app.functions.items():
            if function.autoscaler.min_containers and not function.parameters:
                self._plane.touch(self.pool(app, id, function, None))

    def app_stopped(self, message: p.AppStopped, now: float, sender: str) -> None:
        plane = self._plane
        if plane.deployments.stop(message, sender):
            return
        app = self.apps.get(message.app)
        if app is None:
            plane.outbox.send(sender, p.Reply(message.request, {"app": message.app, "known": False}))
            return
        if message.request:
            app.stop_requests.append((sender, message.request))
        self.stop(app, message.reason)

    def stop(self, app: App, reason: str) -> None:
        if not app.stopped:
            app.stopped = reason
            plane = self._plane
            if not app.spec.deployment:
                plane.routes.release(app.spec.app)
            why = ErrorInfo("ExecutionError", f"the app {app.spec.name} has stopped: {reason}")
            gone = Result(TERMINATED, error=why)
            for call in [call for call in plane.calls.by_id.values() if call.pool.app == app.spec.app]:
                call.pool.cancel_call(call, gone)
                plane.calls.total(call, call.submitted)
            for pool in app.pools.values():
                plane.rooms.wait_no_more(pool)
                pool.fleet.stop(reason)
        self.forget_if_over(app)

    def forget_if_over(self, app: App) -> None:
        """The app is over when its last container has gone: only then is the machine as it was."""
        if not app.stopped or any(pool.fleet.containers for pool in app.pools.values()):
            return
        plane = self._plane
        for id in app.pools:
            del self.pools[id]
        for call in [c for c in plane.calls.by_id.values() if c.pool.app == app.spec.app]:
            del plane.calls.by_id[call.id]
        del self.apps[app.spec.app]
        for session, request in app.stop_requests:
            plane.outbox.send(session, p.Reply(request, {"app": app.spec.app}))
        plane.deployments.forget(app)
        plane.outbox.send(STORE, p.AppOver(app.spec.app))

    # ------------------------------------------------------------ which pool

    def variant_bound(self, message: p.VariantBound, now: float, sender: str) -> None:
        variant = message.variant
        app = self.app_with(variant.function)
        if app is None or app.stopped:
            return
        id = pool_id(self.own_id(variant.function, app), variant.variant)
        if id in self.pools:
            return
        spec = variant.spec
        if variant.function not in app.functions:
            # Made from the declaration of some version, and this one may be another.
            spec = self._renewed(app, variant.function, spec)
        # Whoever may call a function may choose its options, and not what code it is.
        spec = with_code_of(app.functions[self.own_id(variant.function.partition("@")[0], app)], spec)
        pool = self.pool(app, id, normalised(spec), variant.parameters)
        if variant.parameters is None:
            self._plane.touch(pool)

    def _renewed(self, app: App, function: str, spec: FunctionSpec) -> FunctionSpec:
        """The options of a variant on top of what the current version declares."""
        base = app.declared(spec.name)
        bases = [v.declared(spec.name) for v in self._plane.deployments.versions(app_of(function))]
        known = [old for old in bases if old is not None]
        return spec if base is None or not known else rebased(spec, known, base)

    def pool(self, app: App, id: str, spec: FunctionSpec, parameters: Payload | None) -> Pool:
        pool = self.pools.get(id)
        if pool is None:
            pool = self.pools[id] = app.pools[id] = Pool(id, app.spec.app, spec, parameters, self._plane)
            if app.retired:
                pool.fleet.settings = unkept(pool.fleet.settings)
        return pool

    def app_with(self, function: str) -> App | None:
        """The app that has this function or pool: by its own id, or by that of its deployment."""
        id = app_of(function)
        app = self.apps.get(id) or self._plane.deployments.current(id)
        return app if app is not None and self.own_id(function.partition("@")[0], app) in app.functions else None

    @staticmethod
    def own_id(function: str, app: App) -> str:
        """The id of a function or pool under the id of its app, where it may be that of the deployment."""
        return function.replace(app.spec.deployment[3:], app.spec.app[3:], 1) if app.spec.deployment else function

    def forget_current(self) -> None:
        """Another version is current somewhere."""
        self._current.clear()

    def find(self, id: str) -> Pool | ErrorInfo:
        """The pool of an id, made if its function is known."""
        pool = self.pools.get(id) or self.pools.get(self._current.get(id, ""))
        if pool is not None:
            app = self.apps[pool.app]
            return ErrorInfo("ExecutionError", _stopped(app)) if app.stopped else pool
        app_id = app_of(id)
        found = self.apps.get(app_id) or self._plane.deployments.current(app_id)
        function = id.partition("@")[0]
        if found is None or self.own_id(function, found) not in found.functions:
            return ErrorInfo("NotFoundError", self._plane.lookup.why_not(id, found))
        if found.stopped:
            return ErrorInfo("ExecutionError", _stopped(found))
        own = self.own_id(id, found)
        pool = self.pools.get(own)
        if pool is None and own in found.functions:
            pool = self.pool(found, own, found.functions[own], None)
        elif pool is None:
            pool = self._variant_of_another_version(own, id, found)
            if pool is None:
                return ErrorInfo("NotFoundError", self._plane.lookup.why_not(id, None))
        if own != id:
            self._current[id] = own
        return pool

    def _variant_of_another_version(self, own: str, id: str, app: App) -> Pool | None:
        """Parameters or options that were announced to a version before this one hold for this one as well."""
        for version in self._plane.deployments.versions(app_of(id)):
            known = version.pools.get(self.own_id(id, version))
            if known is not None:
                spec = self._renewed(app, id, known.spec)
                return self.pool(app, own, normalised(spec), known.parameters)
        return None

    def hand_back(self, app: App, deployment: str) -> None:
        """What waits for a version that cannot start goes to the one that is current again: none of it has begun."""
        now = self._plane.agenda.now
        for pool in app.pools.values():
            heir = self.find(pool.id.replace(app.spec.app[3:], deployment[3:], 1)) if len(pool.queue) else None
            if heir is None or isinstance(heir, ErrorInfo):
                continue
            for call in pool.queue.calls():
                inputs = list(call.open.values())
                if all(input.container is None for input in inputs):
                    for input in inputs:
                        pool.queue.withdraw(input)
                    call.pool = heir
                    heir.submit(inputs, now, restored=True)
            self._plane.touch(heir)

    def hand_on(self, app: App) -> None:
        """Parameters and options that only this version knows are known to the current one as well: whoever announced
        them does so once."""
        for own in [own for own in app.pools if "@" in own]:
            self.find(own.replace(app.spec.app[3:], app.spec.deployment[3:], 1))

    def check(self) -> None:
        for id, app in self.apps.items():
            assert app.spec.app == id
            assert all(self.pools[pool] is found for pool, found in app.pools.items())
        assert len(self.pools) == sum(len(app.pools) for app in self.apps.values())
        assert all(own in self.pools for own in self._current.values())


def _stopped(app: App) -> str:
    return f"the app {app.spec.name} has stopped: {app.stopped}"
