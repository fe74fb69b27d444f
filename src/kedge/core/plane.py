"""The control plane as one reducer: `handle(message, now, sender)` gives the commands that follow.

Pure: the result depends on the constructor's arguments and the sequence of (message, now, sender), and on nothing
else. It reads no clock, opens nothing, logs nothing and draws no randomness. What a peer did wrong is counted under a
name and dropped; what this side did wrong is an assertion. Nothing here iterates a set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kedge.core.agenda import Agenda
from kedge.core.audit import audit
from kedge.core.calls import CANCELLED, Calls, Input
from kedge.core.containers import DRAINING, READY, STARTING, Container
from kedge.core.deployments import Deployments
from kedge.core.desk import Desk
from kedge.core.fleet import LAST_MOMENT_S
from kedge.core.lookup import Lookup
from kedge.core.outbox import ENGINE, Command, Outbox
from kedge.core.pool import Pool
from kedge.core.registry import Registry
from kedge.core.room import Rooms
from kedge.core.routes import Routes
from kedge.core.scheduler import Scheduler
from kedge.core.vram import Vram
from kedge.model import protocol as p
from kedge.model.ids import CONTAINER, IdFactory
from kedge.model.payload import TERMINATED, ErrorInfo, Result


class Plane:
    def __init__(self, ids: IdFactory) -> None:
        self.outbox = Outbox()
        self.agenda = Agenda()
        self.scheduler = Scheduler()
        self.rooms = Rooms(self)
        self.vram = Vram(self)
        self.calls = Calls(self.outbox)
        self.routes = Routes()
        self.registry = Registry(self)
        self.deployments = Deployments(self)
        self.lookup = Lookup(self)
        self.apps = self.registry.apps
        self.pools = self.registry.pools
        self.containers: dict[str, Container] = {}
        self.dropped: dict[str, int] = {}
        """Stale, repeated or misplaced messages, counted under a name."""
        self._ids = ids
        self._lease = 0
        self._touched: dict[Pool, None] = {}
        desk = Desk(self)
        self._handlers: dict[type, Callable[[Any, float, str], None]] = {
            p.AppCreated: self.registry.app_created,
            p.AppDeployed: self.deployments.deployed,
            p.AppRolledBack: self.deployments.rolled_back,
            p.AppStopped: self.registry.app_stopped,
            p.DeploymentChanged: self.deployments.changed,
            p.FunctionRequested: self.lookup.function_requested,
            p.VariantBound: self.registry.variant_bound,
            p.ContainerStopRequested: self._container_stop_requested,
            p.InputsSubmitted: self._inputs_submitted,
            p.CallClosed: self._call_closed,
            p.CallCancelled: self._call_cancelled,
            p.OutputsRequested: desk.outputs_requested,
            p.OutputsForgotten: desk.outputs_forgotten,
            p.StatisticsRequested: desk.statistics_requested,
            p.AutoscalerUpdated: desk.autoscaler_updated,
            p.ConcurrencyUpdated: desk.concurrency_updated,
            p.CallRequested: desk.call_requested,
            p.SessionClosed: self._session_closed,
            p.CallRestored: self._call_restored,
            p.ContainerStarted: self._container_started,
            p.ContainerReady: self._container_ready,
            p.ContainerFailed: self._container_failed,
            p.ContainerDisconnected: self._container_disconnected,
            p.ContainerLost: self._container_lost,
            p.InputsFinished: self._inputs_finished,
            p.InputsStarted: self._inputs_started,
            p.InputsReturned: self._inputs_returned,
            p.InputsOverran: self._inputs_overran,
            p.SlotsChanged: self._slots_changed,
            p.ContainerLeaving: self._container_leaving,
            p.Heartbeat: self._heartbeat,
            p.NodeJoined: self._node_joined,
            p.VramMeasured: self.vram.measured,
            p.NodeLost: self._node_lost,
            p.TimePassed: self._time_passed,
        }

    # ------------------------------------------------------------ the surface

    def handle(self, message: Any, now: float, sender: str = "") -> list[Command]:
        """What follows from one message of `sender` (a session or container id) at `now` (seconds, never going
        back)."""
        self.agenda.run(now)
        self._handlers[type(message)](message, now, sender)
        touched, deployments = self._touched, self.deployments
        while touched or deployments.news:
            for pool in list(touched):
                del touched[pool]
                pool.dispatch(now)
                pool.fleet.review(now)
            if deployments.news:
                deployments.settle()
        self.rooms.seek()
        return self.outbox.take()

    def next_deadline(self) -> float | None:
        """When to send TimePassed if nothing else happens."""
        return self.agenda.next

    def statistics(self) -> dict[str, Any]:
        return {
            "apps": len(self.apps),
            "containers": len(self.containers),
            "calls": len(self.calls.by_id),
            "pools": [pool.statistics() for pool in self.pools.values()],
            "dropped": dict(self.dropped),
        }

    def check(self) -> None:
        """Recounts every index; AssertionError names what is wrong."""
        audit(self)

    def story(self, id: str) -> str:
        """What is known about an input's call, a container or a pool, in one line: for errors and for people."""
        if id in self.pools:
            return str(self.pools[id].statistics())
        known = self.calls.by_id.get(id) or self.containers.get(id)
        return repr(known) if known else f"{id} is not known (any more)"

    # ------------------------------------------------------------ what pools and fleets need

    def new_lease(self, input: Input) -> int:
        self._lease += 1
        input.lease = self._lease
        return self._lease

    def new_container_id(self) -> str:
        return self._ids(CONTAINER)

    def touch(self, pool: Pool) -> None:
        """Something about the pool has changed: dispatch and review it before this `handle` ends."""
        self._touched[pool] = None

    def drop(self, what: str) -> None:
        self.dropped[what] = self.dropped.get(what, 0) + 1

    # ------------------------------------------------------------ inputs

    def _inputs_submitted(self, message: p.InputsSubmitted, now: float, sender: str) -> None:
        pool = self.registry.find(message.pool)
        if isinstance(pool, ErrorInfo):
            pool = self._begun_in(message) or pool
        if isinstance(pool, ErrorInfo):
            self.calls.refuse(sender, message.call, pool)
            if message.durable:
                # They are on disk already: whoever asks for them later hears the same.
                for index in range(message.first, message.first + len(message.payloads)):
                    self.outbox.record(message.call, index, Result(TERMINATED, error=pool))
            return
        cancelled = self.calls.was_cancelled(message.call)
        call = self.calls.open(
            message.call, pool, sender, message.method, message.durable, message.stream, message.parent
        )
        if call.pool is not pool:
            pool = self._begun_in(message) or pool
        if call.pool is not pool or call.durable is not message.durable:
            self.drop("inputs that do not fit their call")
            return
        call.timeout, call.queue_timeout = message.timeout, message.queue_timeout
        inputs = self.calls.submit(call, message.first, message.payloads, now)
        if message.total >= 0:
            self.calls.total(call, message.total)
        if cancelled:
            for input in inputs:
                self.calls.close(input, CANCELLED)
        else:
            pool.submit(inputs, now, restored=message.durable and not sender)
            self._touched[pool] = None
        if message.durable and sender:
            self.outbox.send(sender, p.InputsAccepted(message.call, message.first, len(message.payloads)))

    def _begun_in(self, message: p.InputsSubmitted) -> Pool | None:
        """Where its call has begun: a call stays in one version of a deployed app, whichever is current meanwhile."""
        call = self.calls.by_id.get(message.call)
        app = self.apps.get(call.pool.app) if call is not None else None
        if call is None or app is None or app.stopped:
            return None
        return call.pool if self.registry.own_id(message.pool, app) == call.pool.id else None

    def _call_closed(self, message: p.CallClosed, now: float, sender: str) -> None:
        call = self.calls.by_id.get(message.call)
        if call is not None:
            self.calls.total(call, message.total)

    def _call_cancelled(self, message: p.CallCancelled, now: float, sender: str) -> None:
        call = self.calls.by_id.get(message.call)
        if message.request:
            self.outbox.send(sender, p.Reply(message.request))
        if message.indices is None:
            self.calls.remember_cancelled(message.call)
        if call is None:
            return
        pool = call.pool
        if message.indices is None:
            running = pool.cancel_call(call)
        else:
            running = pool.cancel([call.open[i] for i in message.indices if i in call.open])
        if message.terminate_containers:
            for container in running:
                container.doomed = True
                pool.fleet.kill(container)
        self.touch(pool)

    def _inputs_finished(self, message: p.InputsFinished, now: float, sender: str) -> None:
        container = self._known(sender, "inputs finished")
        if container is None:
            return
        pool = container.pool
        pool.finish(container, message.inputs, now)
        if message.started:
            pool.started(container, message.started)
        self._touched[pool] = None

    def _inputs_started(self, message: p.InputsStarted, now: float, sender: str) -> None:
        container = self._known(sender, "inputs started")
        if container is not None:
            container.pool.started(container, message.leases)

    def _inputs_returned(self, message: p.InputsReturned, now: float, sender: str) -> None:
        container = self._known(sender, "inputs returned")
        if container is not None:
            container.pool.returned(container, message.leases)
            self.touch(container.pool)

    def _inputs_overran(self, message: p.InputsOverran, now: float, sender: str) -> None:
        container = self._known(sender, "inputs overran")
        if container is not None:
            container.pool.overdue.overran(container, message.leases, now)

    def _slots_changed(self, message: p.SlotsChanged, now: float, sender: str) -> None:
        container = self._known(sender, "slots changed")
        if container is not None:
            container.pool.slots.change(container, message.inputs)
            self.touch(container.pool)

    def _container_leaving(self, message: p.ContainerLeaving, now: float, sender: str) -> None:
        container = self._known(sender, "leave asked")
        if container is not None:
            container.pool.fleet.retire(container, message.reason or "it asked to leave")
            self.touch(container.pool)

    def _known(self, sender: str, what: str) -> Container | None:
        container = self.containers.get(sender)
        if container is None:
            self.drop(f"{what} by a container that is gone")
        return container

    def _call_restored(self, message: p.CallRestored, now: float, sender: str) -> None:
        """A durable call out of the store: its open inputs follow as InputsSubmitted."""
        pool = self.registry.find(message.pool)
        if not isinstance(pool, ErrorInfo):
            call = self.calls.open(message.call, pool, "", message.method, True, False, "")
            total = message.total if message.total >= 0 else None
            self.calls.restore(call, dict(message.done), total)

    # ------------------------------------------------------------ sessions

    def _session_closed(self, message: p.SessionClosed, now: float, sender: str) -> None:
        """The caller is gone: what only it waited for is cancelled, its apps end."""
        for call in [c for c in self.calls.by_id.values() if c.session == sender]:
            call.session = ""
            call.pool.cancel_call(call)
            self.calls.by_id.pop(call.id, None)
            self.touch(call.pool)
        for call in self.calls.by_id.values():
            if call.waiters:
                call.waiters = [w for w in call.waiters if w.session != sender]
        self.deployments.session_closed(sender)
        for app in [a for a in self.apps.values() if a.session == sender]:
            app.session = ""
            self.registry.stop(app, "the program that ran it has ended")

    # ------------------------------------------------------------ containers and machines

    def _container_stop_requested(self, message: p.ContainerStopRequested, now: float, sender: str) -> None:
        """Somebody wants the container to go; where its pool needs one, another takes its place."""
        container = self.containers.get(message.container)
        if container is None:
            error = ErrorInfo("NotFoundError", f"there is no container {message.container} (any more)")
            self.outbox.send(sender, p.Reply(message.request, None, error))
            return
        fleet = container.pool.fleet
        if message.graceful and container.state == READY:
            fleet.retire(container, "stopped by its owner")
        elif not (message.graceful and container.state == DRAINING):
            container.doomed = True
            fleet.kill(container)
        self.touch(container.pool)
        self.outbox.send(sender, p.Reply(message.request, {"container": container.id}))

    def _container_started(self, message: p.ContainerStarted, now: float, sender: str) -> None:
        container = self.containers.get(message.container)
        if container is not None:
            container.process = message.process

    def _container_ready(self, message: p.ContainerReady, now: float, sender: str) -> None:
        container = self._known(sender, "ready said")
        if container is not None:
            container.pool.fleet.became_ready(container, now)
            self.touch(container.pool)

    def _container_failed(self, message: p.ContainerFailed, now: float, sender: str) -> None:
        container = self._known(sender, "failure said")
        if container is not None:
            container.pool.fleet.failed(container, message.error)
            self.touch(container.pool)

    def _container_disconnected(self, message: p.ContainerDisconnected, now: float, sender: str) -> None:
        """Its connection is gone: it can neither be given inputs nor tell of them, so its process must go too."""
        container = self.containers.get(message.container)
        if container is not None and container.state == STARTING:
            self.outbox.send(ENGINE, p.KillContainer(container.id, LAST_MOMENT_S))
        elif container is not None:
            container.pool.fleet.kill(container, LAST_MOMENT_S)

    def _container_lost(self, message: p.ContainerLost, now: float, sender: str) -> None:
        container = self.containers.get(message.container)
        if container is None:
            self.drop("lost a container that is gone")
        else:
            self._lost(container, message, False)

    def _lost(self, container: Container, message: p.ContainerLost, machine_too: bool) -> None:
        pool = container.pool
        pool.fleet.gone(container, message, machine_too)
        self.rooms.free()
        app = self.apps[pool.app]
        if app.stopped:
            self.registry.forget_if_over(app)
        for waiting in self.rooms.freed():
            self.touch(waiting)
        if not app.stopped:
            self.touch(pool)

    def _heartbeat(self, message: p.Heartbeat, now: float, sender: str) -> None:
        container = self.containers.get(sender)
        if container is not None:
            container.heard_at = now
            container.pool.loop_blocks += message.loop_blocks

    def _node_joined(self, message: p.NodeJoined, now: float, sender: str) -> None:
        self.scheduler.join(message.node, message.cpu, message.memory, message.gpus, message.devices)
        self._touched.update(dict.fromkeys(self.pools.values()))

    def _node_lost(self, message: p.NodeLost, now: float, sender: str) -> None:
        for container in [c for c in self.containers.values() if c.placement.node == message.node]:
            self._lost(container, p.ContainerLost(container.id, f"the machine {message.node} is gone"), True)
        self.scheduler.leave(message.node)

    def _time_passed(self, message: p.TimePassed, now: float, sender: str) -> None:
        """The agenda has already run."""
