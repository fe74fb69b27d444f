"""Deployed apps: which version is current, and how one takes the place of another.

Every version is an app of its own. A deployment has an id that stands for whichever version is current: calls that use
it, and labels, go to that one. So a new version takes over in one moment, between two messages, and the one before it
finishes what it has. Nothing is moved.

A new version is tried first: one container of each function must come up, or at least find no room at the moment. Where
one fails, the version that serves goes on. With `recreate`, and where both listen on the same port, the new version
takes over at once, so that it can have what the old one holds, and gives way again if it fails; what waits for it
meanwhile goes back as well.

What a served app (`kedge serve`) has is the same, for as long as its session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from kedge.core.apps import App, unkept
from kedge.core.lookup import version_to_restore
from kedge.core.outbox import STORE
from kedge.core.versions import Candidate, Deployment
from kedge.model import protocol as p
from kedge.model.ids import deployment_id
from kedge.model.payload import ErrorInfo

if TYPE_CHECKING:
    from kedge.core.plane import Plane
    from kedge.core.pool import Pool

ROOM_PATIENCE_S = 3.0
"""Seconds in which room must be found for a container that is to be tried. Idle ones leave at once for it."""
HANDOVER_S = 600.0
"""Seconds for which a version that takes over at once waits for what the one before has to finish."""
KEPT_VERSIONS = 20
"""Versions that can be rolled back to, or called by their number. Each costs what its declarations take."""


class Deployments:
    def __init__(self, plane: Plane) -> None:
        self.by_id: dict[str, Deployment] = {}
        self.tried: dict[str, Deployment] = {}
        """By the app of its candidate."""
        self._plane = plane
        self.news: dict[Deployment, None] = {}
        """Something is known about its candidate that was not before."""

    def current(self, id: str) -> App | None:
        """The current version of a deployment."""
        deployment = self.by_id.get(id)
        return deployment.current if deployment is not None else None

    def versions(self, id: str) -> list[App]:
        """All versions that are there, the newest first."""
        deployment = self.by_id.get(id)
        if deployment is None:
            return []
        return list(dict.fromkeys(deployment.versions[n] for n in sorted(deployment.versions, reverse=True)))

    # ------------------------------------------------------------ a version is tried

    def deployed(self, message: p.AppDeployed, now: float, sender: str) -> None:
        spec = message.app
        id = spec.deployment or deployment_id(spec.environment_name, spec.name, spec.ephemeral)
        deployment = self.by_id.get(id)
        if deployment is not None and self._is_known(deployment, message, sender):
            return
        error = self._refusal(message, deployment, sender)
        if error is None:
            spec = replace(spec, deployment=id)
            error = self._plane.routes.collision(spec)
        if error is not None:
            self._plane.outbox.send(sender, p.Reply(message.request, None, error))
            return
        if deployment is None:
            deployment = Deployment(id, spec.environment_name, spec.name, "")
        if spec.ephemeral:
            deployment.session = sender  # also where the app has come back after a restart, and belonged to nobody
        number = self._next_number(deployment)
        self.by_id[id] = deployment  # also where nothing was left of it without the candidate before this one
        app = self._plane.registry.add(replace(spec, version=number), sender if spec.ephemeral else "")
        self._try(deployment, app, message.strategy, sender, message.request, 0)

    def _is_known(self, deployment: Deployment, message: p.AppDeployed, sender: str) -> bool:
        """The same deploy a second time, since its connection was lost: it is answered, and not made again."""
        app, candidate = self._plane.apps.get(message.app.app), deployment.candidate
        if app is None or app.spec.ephemeral:
            return False
        if candidate is not None and candidate.app is app:
            candidate.session, candidate.request = sender, message.request
            return True
        if deployment.current is not app:
            return False
        value = self._facts(deployment, deployment.number, 0, [])
        if candidate is not None:
            self._plane.outbox.send(sender, p.Reply(message.request, value))
        else:
            self._record(deployment, sender, message.request, value)
        return True

    def _refusal(self, message: p.AppDeployed, deployment: Deployment | None, sender: str) -> ErrorInfo | None:
        spec = message.app
        if message.strategy not in p.STRATEGIES:
            text = f"strategy={message.strategy!r} is not known; write one of {', '.join(p.STRATEGIES)}"
            return ErrorInfo("InvalidError", text)
        if spec.app in self._plane.apps:
            return ErrorInfo("ConflictError", f"the app {spec.app} is there already; each version has an id of its own")
        if deployment is not None and deployment.stop_requests:
            return ErrorInfo("ConflictError", f"{spec.name} is being stopped; deploy it again when it has stopped")
        if deployment is not None and deployment.session not in ("", sender):
            text = f"{spec.name} is served already by another program; stop that one, or choose another name (--name)"
            return ErrorInfo("ConflictError", text)
        return None

    def rolled_back(self, message: p.AppRolledBack, now: float, sender: str) -> None:
        deployment = self.by_id.get(deployment_id(message.environment, message.name))
        number, error = version_to_restore(message, deployment, self.by_id.values())
        if error or deployment is None:
            self._plane.outbox.send(sender, p.Reply(message.request, None, ErrorInfo("NotFoundError", error)))
            return
        app = deployment.versions[number]
        collision = self._plane.routes.collision(app.spec)
        if collision is not None:
            self._plane.outbox.send(sender, p.Reply(message.request, None, collision))
            return
        number = self._next_number(deployment)
        self._try(deployment, app, message.strategy, sender, message.request, app.spec.version)

    def _next_number(self, deployment: Deployment) -> int:
        if deployment.candidate is not None:
            self._abandon(deployment, ErrorInfo("ConflictError", "another deploy has taken the place of this one"))
        deployment.last += 1
        return deployment.last

    def _try(self, deployment: Deployment, app: App, strategy: str, sender: str, request: int, origin: int) -> None:
        current = deployment.current
        first = strategy == p.RECREATE or (current is not None and bool(current.ports & app.ports))
        began = self._plane.agenda.now
        candidate = deployment.candidate = Candidate(app, sender, request, origin, current if first else None, began)
        self.tried[app.spec.app] = deployment
        self._revive(app)
        if first:
            self._point_to(deployment, app)
        for id, function in app.functions.items():
            if all(parameter.default is not None for parameter in function.parameters):
                pool = self._plane.registry.pool(app, id, function, None)
                candidate.awaited[pool] = None
        for pool in list(candidate.awaited):
            if pool.fleet.ready:
                self.came_up(pool)
            else:
                settings = pool.fleet.settings
                pool.fleet.settings = replace(settings, min_containers=max(1, settings.min_containers))
                self._plane.touch(pool)
        self.news[deployment] = None

    # ------------------------------------------------------------ what becomes of it

    def came_up(self, pool: Pool) -> None:
        """A container of this pool is ready."""
        deployment = self.tried.get(pool.app)
        if deployment is not None and deployment.candidate is not None:
            if deployment.candidate.awaited.pop(pool, pool) is None:
                pool.fleet.settings = pool.spec.autoscaler  # it may leave for another that is to be tried
                self._say(deployment.candidate, f"{pool.spec.name} is up after {pool.fleet.startup_s:.2g} s")
            self.news[deployment] = None

    def failed(self, pool: Pool, error: ErrorInfo) -> bool:
        """A container of this pool cannot come up. True where that ends a trial, so that who waits is served by the
        version before."""
        deployment = self.tried.get(pool.app)
        if deployment is None or deployment.candidate is None or pool not in deployment.candidate.awaited:
            return False
        text = f"{pool.spec.name} cannot start: {error.message}"
        deployment.candidate.error = deployment.candidate.error or replace(error, message=text)
        self.news[deployment] = None
        return True

    def no_room(self, pool: Pool) -> None:
        """There is no place for a container of this pool. Idle ones of others may leave for it, those that come up only
        to be tried, and those of a version that has given way, when they have finished what they have."""
        if pool.app in self.tried:
            self._plane.agenda.at(self._plane.agenda.now + ROOM_PATIENCE_S, lambda now: self._not_tried(pool, now))

    def _not_tried(self, pool: Pool, now: float) -> None:
        deployment = self.tried.get(pool.app)
        candidate = deployment.candidate if deployment is not None else None
        if deployment is None or candidate is None or pool not in candidate.awaited or pool.fleet.containers:
            return
        before = candidate.before
        if before is not None and now < candidate.began + HANDOVER_S and before.has_containers:
            if not candidate.waits:
                candidate.waits = True
                self._say(candidate, f"{pool.spec.name} waits until the version before has finished what it has")
            self.no_room(pool)
            return
        del candidate.awaited[pool]
        candidate.unproved.append(pool.spec.name)
        self._say(candidate, f"{pool.spec.name} could not be tried: {pool.fleet.waiting_for_room}")
        self.news[deployment] = None

    def settle(self) -> None:
        """Ends trials whose outcome is known."""
        news, self.news = self.news, {}
        for deployment in news:
            candidate = deployment.candidate
            if candidate is None:
                continue
            if candidate.error is not None:
                self._abandon(deployment, candidate.error)
            elif not candidate.awaited:
                self._accept(deployment, candidate)

    def _accept(self, deployment: Deployment, candidate: Candidate) -> None:
        app = candidate.app
        collision = self._plane.routes.collision(app.spec)  # there was time for others to take its labels
        if collision is not None:
            self._abandon(deployment, collision)
            return
        self._end_trial(deployment)
        before = candidate.before or deployment.current
        deployment.versions[deployment.last] = app
        deployment.origin = candidate.origin
        self._point_to(deployment, app)
        if before is not None and before is not app and not before.stopped:
            self._retire(before)
        self._forget_old(deployment)
        value = self._facts(deployment, deployment.last, candidate.origin, candidate.unproved)
        if app.spec.ephemeral:
            self._plane.outbox.send(candidate.session, p.Reply(candidate.request, value))
        else:
            self._record(deployment, candidate.session, candidate.request, value)

    def _facts(self, deployment: Deployment, version: int, origin: int, unproved: list[str]) -> dict[str, Any]:
        """What whoever deployed it hears."""
        labels = self._plane.routes.of_app(deployment.id)
        return {
            "app": deployment.id,
            "version": version,
            "origin_version": origin,
            "labels": labels,
            "unproved": unproved,
            "notes": self._plane.registry.notes(deployment.current.spec) if deployment.current is not None else [],
        }

    def _abandon(self, deployment: Deployment, error: ErrorInfo) -> None:
        """The version that was there before goes on, or serves again."""
        candidate = deployment.candidate
        assert candidate is not None
        self._end_trial(deployment)
        deployment.last -= 1
        if candidate.before is not None and not candidate.before.stopped:
            self._revive(candidate.before)
            self._point_to(deployment, candidate.before)
            self._plane.registry.hand_back(candidate.app, deployment.id)
        elif deployment.current is candidate.app:
            deployment.current = None
            self._plane.registry.forget_current()
            self._plane.routes.release(deployment.id)
        if candidate.origin:
            self._retire(candidate.app)
        else:
            self._plane.registry.stop(candidate.app, "it could not be deployed")
        if deployment.current is not None:
            text = f"{error.message}. Version {deployment.number} of {deployment.name} goes on serving"
            error = replace(error, message=text)
        self._plane.outbox.send(candidate.session, p.Reply(candidate.request, None, error))

    def _end_trial(self, deployment: Deployment) -> None:
        candidate = deployment.candidate
        assert candidate is not None
        deployment.candidate = None
        del self.tried[candidate.app.spec.app]
        self._revive(candidate.app)

    def _point_to(self, deployment: Deployment, app: App) -> None:
        """From now on calls by name and label go to this version."""
        before = deployment.current
        deployment.current = app
        self._plane.registry.forget_current()
        self._plane.routes.claim(app.spec)
        if before is not None and before is not app and deployment.candidate is not None:
            self._retire(before)  # it makes room for the one that is being tried

    def _revive(self, app: App) -> None:
        """Its functions keep as many containers as they declare."""
        app.retired = False
        for pool in app.pools.values():
            pool.fleet.change_settings(pool.spec.autoscaler, self._plane.agenda.now)
            self._plane.touch(pool)

    def _retire(self, app: App) -> None:
        """It finishes what it has; what is idle leaves."""
        app.retired = True
        for pool in app.pools.values():
            settings = replace(unkept(pool.fleet.settings), scaledown_window=0.0)
            pool.fleet.change_settings(settings, self._plane.agenda.now)
            self._plane.touch(pool)

    def _forget_old(self, deployment: Deployment) -> None:
        """Versions beyond those that are kept are over when they have finished what they have."""
        for number in sorted(deployment.versions)[:-KEPT_VERSIONS]:
            app = deployment.versions[number]
            there = list(deployment.versions.values()).count(app)
            busy = any(pool.fleet.containers or len(pool.queue) for pool in app.pools.values())
            if there > 1:
                del deployment.versions[number]
            elif not busy and app is not deployment.current:
                self._plane.registry.hand_on(app)
                self._plane.registry.stop(app, "newer versions have taken its place")

    def _say(self, candidate: Candidate, text: str) -> None:
        self._plane.outbox.send(candidate.session, p.Notice(candidate.app.spec.app, text, "deploy"))

    def _record(self, deployment: Deployment, session: str = "", request: int = 0, value: Any = None) -> None:
        app = deployment.current.spec.app if deployment.current is not None else ""
        changed = p.DeploymentChanged(
            deployment.id,
            deployment.environment,
            deployment.name,
            app,
            deployment.last,
            deployment.origin,
            session,
            request,
            value,
        )
        self._plane.outbox.send(STORE, changed)

    # ------------------------------------------------------------ the end

    def stop(self, message: p.AppStopped, sender: str) -> bool:
        """Stops a deployment by its id, or that of its current version. False where it is none."""
        deployment, tried = self.by_id.get(message.app), self.tried.get(message.app)
        if deployment is None:
            app = self._plane.apps.get(message.app)
            if tried is not None and tried.current is not app:
                self._abandon(tried, ErrorInfo("ConflictError", f"it has been stopped meanwhile: {message.reason}"))
            deployment = self.by_id.get(app.spec.deployment) if app is not None else None
            if deployment is None or app is None or deployment.current is not app:
                return False
        there = self._apps_of(deployment)
        if not there:
            return False
        if message.request:
            deployment.stop_requests.append((sender, message.request))
        self._stop(deployment, there, message.reason)
        return True

    def session_closed(self, session: str) -> None:
        """A deploy that nobody waits for is given up; what the session serves ends."""
        for deployment in list(self.by_id.values()):
            if deployment.session == session and session:
                self._stop(deployment, self._apps_of(deployment), "the program that served it has ended")
            elif deployment.candidate is not None and deployment.candidate.session == session:
                self._abandon(deployment, ErrorInfo("ConflictError", "whoever deployed it has gone"))

    def _apps_of(self, deployment: Deployment) -> list[App]:
        """All its versions, and the one that is being tried."""
        candidate = [deployment.candidate.app] if deployment.candidate is not None else []
        return list(dict.fromkeys([*self.versions(deployment.id), *candidate]))

    def _stop(self, deployment: Deployment, apps: list[App], reason: str) -> None:
        if deployment.candidate is not None:
            candidate, deployment.candidate = deployment.candidate, None
            deployment.last -= 1
            del self.tried[candidate.app.spec.app]
            error = ErrorInfo("ConflictError", f"{deployment.name} has been stopped meanwhile: {reason}")
            self._plane.outbox.send(candidate.session, p.Reply(candidate.request, None, error))
        current = deployment.current
        # What is served is never on disk, and neither is a first version that is still being tried.
        on_disk = current is not None and bool(deployment.versions) and not current.spec.ephemeral
        deployment.current = None
        self._plane.registry.forget_current()
        self._plane.routes.release(deployment.id)
        for app in apps:
            self._plane.registry.stop(app, reason)
        if on_disk:
            self._record(deployment)

    def forget(self, app: App) -> None:
        """The app of a version is over."""
        deployment = self.by_id.get(app.spec.deployment)
        if deployment is None:
            return
        for number in [n for n, version in deployment.versions.items() if version is app]:
            del deployment.versions[number]
        if deployment.current is None and deployment.candidate is None and not deployment.versions:
            for session, request in deployment.stop_requests:
                if app.spec.ephemeral or not deployment.last:
                    self._plane.outbox.send(session, p.Reply(request, {"app": deployment.id}))
                else:  # once it is on disk that it has stopped
                    self._record(deployment, session, request, {"app": deployment.id})
            deployment.stop_requests = []
            if app.spec.ephemeral:
                del self.by_id[deployment.id]

    # ------------------------------------------------------------ after a restart

    def restore(self, app: App) -> None:
        """A version out of the store. Which one is current follows as DeploymentChanged."""
        spec = app.spec
        app.retired = True
        session = app.session
        deployment = self.by_id.setdefault(
            spec.deployment, Deployment(spec.deployment, spec.environment_name, spec.name, session)
        )
        deployment.versions[spec.version] = app
        deployment.last = max(deployment.last, spec.version)

    def reclaim(self, app: App, session: str) -> None:
        """The program that serves it is back on another connection."""
        deployment = self.by_id.get(app.spec.deployment)
        if deployment is not None and app.spec.ephemeral:
            deployment.session = session

    def changed(self, message: p.DeploymentChanged, now: float, sender: str) -> None:
        """What the store remembers of a deployment."""
        deployment = self.by_id.setdefault(
            message.deployment, Deployment(message.deployment, message.environment, message.name, "")
        )
        deployment.last = max(deployment.last, message.version)
        for number, id in message.versions.items():
            if id in self._plane.apps:
                deployment.versions[number] = self._plane.apps[id]
        app = self._plane.apps.get(message.app)
        if app is not None:
            deployment.versions[message.version] = app
            deployment.origin = message.origin_version
            deployment.current = app
            self._plane.routes.claim(app.spec)
            app.retired = False
            self._plane.registry.open_pools(app)

    def check(self) -> None:
        for id, deployment in self.by_id.items():
            assert deployment.id == id
            if deployment.current is not None:
                assert self._plane.apps[deployment.current.spec.app] is deployment.current
                assert not deployment.current.stopped
            for app in deployment.versions.values():
                assert self._plane.apps[app.spec.app] is app
            if deployment.candidate is not None:
                assert self.tried[deployment.candidate.app.spec.app] is deployment
        assert len(self.tried) == sum(d.candidate is not None for d in self.by_id.values())
