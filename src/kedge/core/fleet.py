"""The containers of one pool: how many there should be, where they go, when they leave.

Driven by events: whatever changes the demand ends in `review`. A container is counted from the moment it is ordered.
Only idle containers are retired; running inputs are never moved or killed to save a container.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from kedge.core.autoscaler import Decision, Observation, decide
from kedge.core.backoff import Backoff
from kedge.core.containers import DRAINING, GONE, READY, STARTING, Container, crash_error, start_error
from kedge.core.outbox import ENGINE
from kedge.core.scheduler import Placement, Unplaceable
from kedge.model.payload import INIT_FAILURE, ErrorInfo, Result
from kedge.model.protocol import ConcurrencyChanged, ContainerDrained, ContainerLost, KillContainer, StartContainer

if TYPE_CHECKING:
    from kedge.core.plane import Plane
    from kedge.core.pool import Pool
    from kedge.model.spec import AutoscalerSettings

STARTUP_GUESS_S = 0.2
"""Expected start of a container before one has been seen: about one fresh interpreter."""
MAX_CRASHES = 3
"""Containers that may die in a row before becoming ready, until those who wait are told: so many, and more than are
still coming up."""
MIN_WINDOW_S = 0.01
"""An idle container is not looked at more often than this, whatever its scaledown_window."""
LAST_MOMENT_S = 1.0
"""Seconds for a process whose connection is gone: most likely it is dying, and its own end says why, a kill not."""
EXIT_GRACE_S = 30.0
"""Seconds for exit hooks, and for code that is being cancelled, before the process is killed."""
DISMISSAL_GRACE_S = 5.0
"""The same where the code has had its time already: its container's own 3 s, and two for the hooks."""


class Fleet:
    def __init__(self, pool: Pool, plane: Plane) -> None:
        self.pool = pool
        self.settings = pool.spec.autoscaler
        self.containers: dict[str, Container] = {}
        self.starting = 0
        self.ready = 0
        self.started = 0
        """Containers ordered since the pool exists."""
        self.startup_s = STARTUP_GUESS_S
        self.waiting_for_room = ""
        self.stopped = False
        self._plane = plane
        self._backoff = Backoff()
        self._over_since: float | None = None
        self._over_finished = 0
        self._sample: tuple[float, int] | None = None
        """When the review after `_over_since` looked, and what had finished by then."""
        self._review_planned = False
        self._starts_watched = False
        self._excess = 0
        """Containers above a maximum that was lowered under them."""
        self._leavers: dict[Container, None] = {}
        """Those that drain and still run something."""
        self._last = Decision(0, "nothing has been asked for")

    # ------------------------------------------------------------ how many

    def review(self, now: float) -> None:
        """Orders containers where there are too few."""
        pool, suspects = self.pool, self.pool.suspects
        held, wanted = (suspects.held, suspects.wanted) if suspects.concern else (0, 0)
        running = self._running() if self._leavers or suspects.concern else pool.running
        backlog, withheld = pool.backlog, pool.slots.withheld
        demand = running + backlog
        have, ready = self.ready + self.starting, self.ready - held
        if demand <= ready * pool.target - withheld and not wanted:
            self._over_since = self._sample = None
            least = self._floor(demand, held) if self.settings.buffer_containers else self.settings.min_containers
            if have >= least and (not pool.method_limits or not pool.queue.ready):
                if self.waiting_for_room:
                    self._needs_no_room()
                return
        elif self._over_since is None:
            self._over_since, self._over_finished = now, pool.finished
        if self.stopped:
            return
        over_s = 0.0 if self._over_since is None else now - self._over_since
        seen = Observation(
            backlog,
            running,
            ready,
            self.starting,
            pool.target,
            pool.maximum,
            None if pool.spec.single_use_containers else pool.service_s,  # what is used up drains nothing
            self.startup_s,
            over_s,
            self._slots(pool.finished - self._over_finished),
            None if pool.limit is None else self._slots(pool.limit),
            self._method_need(),
            withheld,
            held,
            wanted,
        )
        decision = self._last = decide(seen, self.settings)
        if decision.desired > have:
            self._start(decision.desired - have, now)
        else:
            self._needs_no_room()
        if decision.review_s is not None and not self._review_planned:
            self._review_planned = True
            self._plane.agenda.at(now + decision.review_s, self._review_again)

    def _slots(self, inputs: int) -> int:
        return inputs if self.pool.batches is None else self.pool.batches.slots(inputs)

    def _running(self) -> int:
        """Slots taken in containers that take inputs. What runs in one that drains needs no other, and what runs in one
        that is held is counted with the suspects."""
        running = self.pool.running
        for container in self._others():
            running -= container.running
        return running

    def _others(self) -> Collection[Container]:
        """Containers that run something and take no inputs of those that wait in the queue."""
        if self.pool.suspects.concern:
            return [*self._leavers, *self.pool.suspects.containers]
        return self._leavers

    def _review_again(self, now: float) -> None:
        self._review_planned = False
        if self._over_since is not None:
            # What is measured is the last second or two, not all the time since it began.
            if self._sample is not None:
                self._over_since, self._over_finished = self._sample
            self._sample = now, self.pool.finished
        self._plane.touch(self.pool)

    def _method_need(self) -> int:
        """Containers that the busiest limited method asks for."""
        pool = self.pool
        need = 0
        for method, cap in pool.method_limits.items():
            count = pool.methods.get(method, 0) - sum(c.methods.get(method, 0) for c in self._others())
            count += pool.backlog if pool.batches is not None else pool.queue.waiting(method)
            if pool.limit is not None:
                count = min(count, self._slots(pool.limit))
            need = max(need, -(-count // cap))
        return need

    # ------------------------------------------------------------ containers come

    def _start(self, count: int, now: float) -> None:
        if now < self._backoff.until:
            return
        peak = self._plane.vram.peak(self.pool)
        scheduler, resources = self._plane.scheduler, self.pool.spec.resources
        for _ in range(count):
            place = scheduler.place(resources, peak=peak)
            if isinstance(place, Unplaceable) and self._is_waited_for():
                place = scheduler.place(resources, overcommit=True, peak=peak)
            if isinstance(place, Unplaceable):
                self._no_room(place)
                return
            self._order(place, now)
        self._needs_no_room()

    def _is_waited_for(self) -> bool:
        """Whether code that holds a slot elsewhere waits for this pool, which has nothing to run it: without a
        container beyond what the machine has room for, neither would ever move."""
        if self.containers:
            return False
        queue = self.pool.queue
        return bool(queue.parents) or any(input.call.parent for input in queue.suspects)

    def _order(self, place: Placement, now: float) -> None:
        plane = self._plane
        self.started += 1
        container = Container(plane.new_container_id(), self.started, self.pool, place, now)
        self.containers[container.id] = plane.containers[container.id] = container
        self.starting += 1
        plane.outbox.send(ENGINE, StartContainer(container.id, self.pool.id, place.node, list(place.devices)))
        if not self._starts_watched:
            self._watch_starts(now + self._startup_timeout)

    @property
    def _startup_timeout(self) -> float:
        return self.pool.spec.startup_timeout or self.pool.spec.timeout

    def _watch_starts(self, when: float) -> None:
        self._starts_watched = True
        self._plane.agenda.at(when, self._look_for_late_starts)

    def _no_room(self, place: Unplaceable) -> None:
        if place.lasting:
            self._plane.rooms.refuse(self.pool, place.reason)
            if not self._plane.deployments.failed(self.pool, ErrorInfo("ExecutionError", place.reason)):
                self.pool.fail_queued(Result(INIT_FAILURE, error=ErrorInfo("ExecutionError", place.reason)))
            return
        if not self.waiting_for_room and self.pool.suspects.concern:
            self._plane.touch(self.pool)  # where there can be no other container, suspects share theirs
        self.waiting_for_room = place.reason
        self._plane.deployments.no_room(self.pool)
        self._plane.rooms.wait(self.pool)

    def _needs_no_room(self) -> None:
        if self.waiting_for_room:
            self.waiting_for_room = ""
            self._plane.rooms.wait_no_more(self.pool)

    def _look_for_late_starts(self, now: float) -> None:
        """One deadline at a time, the earliest: containers are in the order in which they were asked for."""
        self._starts_watched = False
        limit = self._startup_timeout
        text = (
            f"the container was not ready {limit:g} s after its start (startup_timeout): import and @enter took longer"
        )
        for container in list(self.containers.values()):
            if container.state != STARTING:
                continue
            if now < container.requested_at + limit:
                self._watch_starts(container.requested_at + limit)
                return
            self.failed(container, ErrorInfo("FunctionTimeoutError", text))
            self._plane.outbox.send(ENGINE, KillContainer(container.id))

    def became_ready(self, container: Container, now: float) -> None:
        if container.state == DRAINING:
            # It was no longer wanted while it came up, and could not hear that.
            self._plane.outbox.send(container.id, ContainerDrained("it is not needed any more", cancel=True))
            return
        if container.state != STARTING:
            self._plane.drop("ready a container that was not starting")
            return
        self.starting -= 1
        self.ready += 1
        self._backoff.succeeded()
        took = now - container.requested_at
        self.startup_s = took if self.started == 1 else self.startup_s + 0.3 * (took - self.startup_s)
        self._plane.deployments.came_up(self.pool)
        self.pool.joined(container)
        if self.pool.spec.concurrency is not container.concurrency:
            self._plane.outbox.send(container.id, ConcurrencyChanged(self.pool.spec.concurrency))
        self.rested(container, now)

    def failed(self, container: Container, error: ErrorInfo) -> None:
        """The user's code did not come up. Everybody who waits hears why, unless other containers serve them, or
        more are still coming up than have failed in a row."""
        if container.state != STARTING:
            self._plane.drop("failed a container that was not starting")
            return
        self._leave(container, DRAINING)
        self._plane.outbox.send(ENGINE, KillContainer(container.id, EXIT_GRACE_S))
        tried = self._plane.deployments.failed(self.pool, error)
        self._count_failure()
        if not (tried or self.ready) and self._backoff.failures > self.starting:
            self.pool.fail_queued(Result(INIT_FAILURE, error=error))

    def _count_failure(self) -> None:
        self._backoff.failed(self._plane.agenda.now)
        self._plane.agenda.at(self._backoff.until, lambda at: self._plane.touch(self.pool))

    # ------------------------------------------------------------ containers leave

    def rested(self, container: Container, now: float) -> None:
        """It has nothing to do: from now on its time runs."""
        container.idle_since = now
        if container.state != READY:
            if container.state == DRAINING:
                self._leavers.pop(container, None)
                self._let_go(container)
            return
        if self._above_maximum and self.spare:
            self.retire(container, f"max_containers={self.settings.max_containers}")
            return
        if not container.idle_look_at:
            self._watch(container, now + self._window)
        if self._plane.rooms.wanted:
            self._plane.rooms.offer(container)

    def _look_if_idle(self, container: Container, planned: float, now: float) -> None:
        if container.state != READY or container.idle_look_at != planned:
            return
        container.idle_look_at = 0.0
        window = self._window
        left = container.idle_since + window - now
        if not container.idle:
            return
        if left > 1e-9:
            self._watch(container, now + left)
        elif self.spare:
            self.retire(container, f"idle for scaledown_window={window:g} s")
        else:
            self._watch(container, now + window)

    @property
    def _window(self) -> float:
        return max(self.settings.scaledown_window, MIN_WINDOW_S)

    @property
    def _above_maximum(self) -> bool:
        cap = self.settings.max_containers
        return cap is not None and self.ready + self.starting > cap

    @property
    def complete(self) -> bool:
        """Whether there can be no more containers: as many as may be, or no room for another."""
        most = self.settings.max_containers
        return bool(self.waiting_for_room) or (most is not None and self.ready + self.starting >= most)

    @property
    def spare(self) -> bool:
        return self.surplus > 0

    @property
    def surplus(self) -> int:
        """How many more containers there are than must be kept."""
        return self.ready + self.starting - self._floor(self._running() + self.pool.backlog, self.pool.suspects.held)

    def _floor(self, demand: int, held: int) -> int:
        """Containers to keep for so many inputs: the buffer comes on top of those that hold them."""
        settings = self.settings
        least = settings.min_containers
        if settings.buffer_containers and (demand or held):
            if self.pool.limit is not None:
                demand = min(demand, self._slots(self.pool.limit))
            least = max(least, held + -(-demand // self.pool.target) + settings.buffer_containers)
        return least if settings.max_containers is None else min(least, settings.max_containers)

    def retire(self, container: Container, reason: str) -> None:
        """Asks a container to finish what it runs and leave."""
        if container.state == STARTING:
            # By its own wish, before it could do anything: the next one may do the same.
            self._leave(container, DRAINING)
            self._let_go(container)
            self._count_failure()
            return
        if container.state != READY:
            return
        self._leave(container, DRAINING)
        self._plane.outbox.send(container.id, ContainerDrained(reason))
        if container.idle:
            self._let_go(container)

    def quarantine(self, container: Container) -> None:
        """The container holds what cannot be ended: nothing new goes there, and another takes its place."""
        container.quarantined = True
        self.retire(container, "it holds code that does not end")

    def dismiss(self, container: Container) -> None:
        """Nobody waits for what it runs: it cancels that, runs its exit hooks, and is killed if it does not."""
        if not container.doomed:
            container.doomed = True
            self._plane.outbox.send(container.id, ContainerDrained("it holds code that does not end", cancel=True))
            self._let_go(container, DISMISSAL_GRACE_S)

    def stop(self, reason: str) -> None:
        """The app is over: every container cancels what it runs, and leaves."""
        self.stopped = True
        for container in list(self.containers.values()):
            if container.state in (READY, STARTING):
                self._leave(container, DRAINING)
            self._plane.outbox.send(container.id, ContainerDrained(reason, cancel=True))
            self.kill(container, EXIT_GRACE_S if container.process else 0.0)

    def kill(self, container: Container, grace_s: float = 0.0) -> None:
        if container.state in (READY, STARTING):
            self._leave(container, DRAINING)
        container.dismissed = True
        self._plane.outbox.send(ENGINE, KillContainer(container.id, grace_s))

    def _let_go(self, container: Container, grace_s: float = EXIT_GRACE_S) -> None:
        """It is about to leave by itself, and is killed if it does not. Said once."""
        if not container.dismissed:
            self.kill(container, grace_s)

    def gone(self, container: Container, message: ContainerLost, machine_too: bool = False) -> None:
        """The process has ended: by itself, or with its machine, which is no fault of the user's code."""
        if container.state == GONE:
            return
        starting = container.state == STARTING
        blameless = machine_too or message.blameless or container.doomed
        self._leave(container, GONE)
        self.pool.suspects.lost(container, message, blameless, starting)
        del self.containers[container.id]
        del self._plane.containers[container.id]
        self._plane.scheduler.release(container.placement)
        if starting and not blameless:
            tried = self._plane.deployments.failed(self.pool, start_error(message))
            self._count_failure()
            times = self._backoff.failures
            if not (tried or self.ready) and times >= max(MAX_CRASHES, self.starting + 1):
                self.pool.fail_queued(Result(INIT_FAILURE, error=crash_error(message, times)))

    def _leave(self, container: Container, state: str) -> None:
        self.pool.left(container)
        if container.state == STARTING:
            self.starting -= 1
        elif container.state == READY:
            self.ready -= 1
        container.become(state)
        if state == DRAINING:
            self._plane.rooms.leaving[container] = None
            if not container.idle:
                self._leavers[container] = None
        else:
            self._plane.rooms.leaving.pop(container, None)
            self._leavers.pop(container, None)
        if self._excess:
            self._excess = max(0, self.ready + self.starting - (self.settings.max_containers or 0))

    def change_settings(self, settings: AutoscalerSettings, now: float) -> None:
        """From now on these hold: containers are looked at again, and those above the maximum leave when idle."""
        self.settings = settings
        self._excess = 0
        if self._above_maximum:
            self._excess = self.ready + self.starting - (settings.max_containers or 0)
        for container in [c for c in self.containers.values() if c.state == READY]:
            if container.idle and self._above_maximum and self.spare:
                self.retire(container, f"max_containers={settings.max_containers}")
            else:
                self._watch(container, (container.idle_since if container.idle else now) + self._window)

    def _watch(self, container: Container, when: float) -> None:
        """Looks at the container then, and not when it was planned before."""
        container.idle_look_at = when
        self._plane.agenda.at(when, lambda at: self._look_if_idle(container, when, at))

    # ------------------------------------------------------------ what people and checks see

    def statistics(self) -> dict[str, object]:
        return {
            "containers": self.ready,
            "starting": self.starting,
            "started": self.started,
            "waiting_for_room": self.waiting_for_room,
            "startup_s": self.startup_s,
            "desired": self._last.desired,
            "reason": self._last.reason,
        }

    def check(self) -> None:
        states = [c.state for c in self.containers.values()]
        assert self.starting == states.count(STARTING)
        assert self.ready == states.count(READY)
        assert GONE not in states
        cap = self.settings.max_containers
        have = self.ready + self.starting
        assert cap is None or have <= cap + self._excess, f"{have} containers of at most {cap}"
