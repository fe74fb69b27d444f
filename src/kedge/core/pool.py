"""The queue and the slots of one variant of a function: what waits, what runs where, what becomes of it.

Late binding: an input meets a container only when a slot is free; the exception are credits. A slot is held until user
code has really ended, whatever has been told to the caller meanwhile. How many containers there are is `fleet`'s
business; who is granted ahead, alone, or together, and who waits or runs for too long, has rooms beside this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.core.apps import method_limits
from kedge.core.batches import Batches, batching_of
from kedge.core.calls import CANCELLED, NEVER, Call, Calls, Input
from kedge.core.containers import READY, Container
from kedge.core.credits import Credits
from kedge.core.fleet import Fleet
from kedge.core.histogram import Histogram
from kedge.core.outbox import Outbox
from kedge.core.overdue import Overdue
from kedge.core.patience import Patience
from kedge.core.queue import InputQueue
from kedge.core.router import LoadIndex
from kedge.core.slots import Slots
from kedge.core.suspects import Suspects
from kedge.model.payload import FAILURE, SUCCESS, TERMINATED, TIMEOUT, Payload, Result
from kedge.model.protocol import Dispatch, Finished, InputsCancelled
from kedge.model.spec import FunctionSpec

if TYPE_CHECKING:
    from kedge.core.plane import Plane

SMOOTHING = 0.1
"""Weight of a new service time in the mean."""


class Pool:
    def __init__(self, id: str, app: str, spec: FunctionSpec, parameters: Payload | None, plane: Plane) -> None:
        self.id = id
        self.app = app
        self.spec = spec
        self.parameters = parameters
        self.target = spec.concurrency.target_inputs
        self.maximum = spec.concurrency.max_inputs
        self.limit = spec.concurrency_limit
        self.method_limits = method_limits(spec)
        batching = batching_of(spec)
        self.queue = InputQueue(by_method=bool(self.method_limits) and batching is None)
        self.index: LoadIndex[Container] = LoadIndex()
        self.running = 0
        """Slots taken over all containers."""
        self.shared = 0
        """Inputs that run beyond one per slot: the further members of batches."""
        self.methods: dict[str, int] = {}
        """Slots taken per method; kept only where methods have limits."""
        self.service_s: float | None = None
        self.finished = 0
        """Inputs whose code has ended, or will not be waited for, with a result of its own."""
        self.given_up = 0
        """Inputs that failed without an end of their code: they waited for too long, or nothing could run them."""
        self.failed = 0
        self.submitted = 0
        self.refused = 0
        """Inputs that were not let in."""
        self.cancelled = 0
        self.bursts = 0
        """Inputs that got a slot above target."""
        self.waits = Histogram()
        self.runs = Histogram()
        self.loop_blocks = 0
        """How often event loops of its containers were blocked for long."""
        self._outbox: Outbox = plane.outbox
        self._calls: Calls = plane.calls
        self._agenda = plane.agenda
        self._plane = plane
        self.batches = Batches(self, plane, batching) if batching is not None else None
        self.slots = Slots(self, plane)
        self.credits = Credits(self, plane)
        self.suspects = Suspects(self, plane)
        self.patience = Patience(self, plane)
        self.fleet = Fleet(self, plane)
        self.overdue = Overdue(self, plane)

    @property
    def credited(self) -> int:
        return self.credits.count

    @property
    def in_flight(self) -> int:
        """Inputs that run."""
        return self.running + self.shared

    @property
    def backlog(self) -> int:
        """Slots that inputs ask for which have none."""
        ready = self.queue.ready if self.batches is None else self.batches.slots(self.queue.ready)
        return ready + self.credits.count

    # ------------------------------------------------------------ inputs come

    def submit(self, inputs: list[Input], now: float, restored: bool = False) -> None:
        """`restored` ones were let in before: by a server that is no more."""
        room, queue, patience = len(inputs), self.queue, self.patience
        if queue.ready + queue.aside + room > patience.bound and not restored:
            room = patience.room(room)
            refusal = patience.refusal() if room < len(inputs) else None
            for input in inputs[room:]:
                assert refusal is not None
                self.refused += 1
                # Its caller may send it again, so its arguments stay; those of a durable one are the store's.
                self._calls.close(input, refusal, release=input.call.durable)
            del inputs[room:]
        self.submitted += room
        for input in inputs:
            queue.append(input)
        if inputs and (inputs[0].call.queue_timeout or patience.allowed_s):
            patience.watch(inputs[0].call, now)

    def dispatch(self, now: float) -> None:
        """Grants slots while there are inputs and slots, then credits."""
        if self.suspects.concern:
            self.suspects.dispatch(now)
        queue = self.queue
        if not queue.ready:
            return
        if self.batches is not None:
            self.batches.dispatch(now)
            return
        if self.method_limits:
            self._dispatch_by_method()
            return
        target, maximum, limit = self.target, self.maximum, self.limit
        while queue.ready and (limit is None or self.running < limit):
            container = self.index.pick(target, maximum)
            if container is None and self.suspects.concern:
                container = self.suspects.refuge()
            if container is None:
                break
            count = 1
            if container.indexed and container.load + 1 < target and not self.spec.single_use_containers:
                # The next ones would go there as well, up to target.
                count = min(queue.ready, (container.slots or target) - container.load, target - container.load)
                if limit is not None:
                    count = min(count, limit - self.running)
            for _ in range(count):
                self.lease(container, queue.pop())
            self.take_slots(container, "", count)
        if queue.ready and self.credits.hungry:
            self.credits.give(now)

    def _dispatch_by_method(self) -> None:
        """Where methods have limits of their own, a call whose method is full everywhere is passed over."""
        full: list[str] = []
        """Methods that no container has a slot for: slots are only taken here, so they stay full."""
        while self.queue.ready and (self.limit is None or self.running < self.limit):
            method = self.queue.next_method(without=full)
            if method is None:
                return
            container = self.pick_for(method)
            if container is None:
                full.append(method)
            else:
                self.grant(container, self.queue.pop(method))

    def pick_for(self, method: str) -> Container | None:
        """The container for the next input of a method."""
        cap = self.method_limits.get(method)
        if cap is None:
            container = self.index.pick(self.target, self.maximum)
        else:
            container = self.index.pick_where(self.target, self.maximum, lambda c: c.methods.get(method, 0) < cap)
        if container is None and self.suspects.concern:
            return self.suspects.refuge(method)
        return container

    def grant(self, container: Container, input: Input) -> None:
        """Gives the input a slot of the container."""
        if self.batches is not None:
            self.batches.grant(container, [input])
            return
        self.lease(container, input)
        self.take_slots(container, input.call.method)

    def lease(self, container: Container, input: Input, batch: int = 0, members: int = 0) -> int:
        """Sends the input to the container. Gives the number of its batch, which is its own lease for the first."""
        lease = self._plane.new_lease(input)
        input.container = container
        container.leases[lease] = input
        now, call = self._agenda.now, input.call
        if input.granted_at == NEVER:
            self.waits.add(now - input.queued_at)
        input.granted_at = now
        if call.timeout or self.overdue.look_at is None:
            self.overdue.granted(input)
        if members and not batch:
            batch = lease
        self._outbox.dispatch(
            container.id,
            Dispatch(
                lease,
                call.id,
                input.index,
                call.method,
                input.payload,
                input.attempts,
                False,
                call.stream,
                call.timeout,
                batch,
                members,
            ),
        )
        return batch

    def take_slots(self, container: Container, method: str, count: int = 1) -> None:
        """More slots of the container are in use: all up to target, or one."""
        self.running += count
        if self.method_limits:
            container.methods[method] = container.methods.get(method, 0) + count
            self.methods[method] = self.methods.get(method, 0) + count
        load = container.load + count
        if load > self.target:
            self.bursts += count
        if self.spec.single_use_containers:
            container.used = True
            self.index.remove(container)
        if not container.indexed:
            container.load = load
            return
        self.index.move(container, load)
        if load >= self.maximum:
            self.credits.hungry[container] = None
        elif load == container.slots:
            self.index.remove(container)

    # ------------------------------------------------------------ inputs end

    def finish(self, container: Container, finished: list[Finished], now: float) -> None:
        container.finished_at = now
        container.recalled = False
        plane, leases, service_s = self._plane, container.leases, self.service_s
        for item in finished:
            input = leases.get(item.lease)
            if input is None:
                plane.drop("finished a lease that is over")
                continue
            if container.credits and not input.credited and container.running <= self.slots.of(container):
                # Its slot goes to the oldest credit: the container has started that one in the same moment.
                self.credits.promote(container, next(iter(container.credits)), now)
            self.release(container, input)
            if not input.closed:
                service_s = item.run_s if service_s is None else service_s + SMOOTHING * (item.run_s - service_s)
                self.runs.add(item.run_s)
                self.conclude(input, item.result, now)
        self.service_s = service_s
        self.weigh(container)
        if container.idle:
            if container.used:
                self.fleet.retire(container, "single_use_containers=True: it has had its input")
            self.fleet.rested(container, now)
        if container.quarantined:
            self.bury(container)

    def bury(self, container: Container) -> None:
        """Dismisses a quarantined container as soon as nobody waits for anything that it runs."""
        leases = container.leases.values()
        if container.quarantined and all(input.closed or input.overran or input.credited for input in leases):
            self.fleet.dismiss(container)

    def conclude(self, input: Input, result: Result, now: float) -> None:
        """One attempt has ended: again, or over."""
        policy = self.spec.retries
        if result.status not in (SUCCESS, TERMINATED):
            if result.status in (FAILURE, TIMEOUT) and input.attempts < policy.max_retries and not input.call.stream:
                delay = min(policy.initial_delay * policy.backoff_coefficient**input.attempts, policy.max_delay)
                input.attempts += 1
                input.overran = False
                input.told_at = NEVER
                self.queue.delay(input, now + delay)
                self._agenda.at(now + delay, self._wake)
                return
            self.failed += 1
        self.finished += 1
        self._calls.close(input, result)

    def _wake(self, now: float) -> None:
        self.queue.wake(now)
        self._plane.touch(self)

    def release(self, container: Container, input: Input) -> None:
        """The lease is over, and with it the slot or the credit."""
        lease = input.lease
        del container.leases[lease]
        if input.credited:
            self.credits.forget(container, input)
        elif input.batch is not None and input.batch.left > 1:
            input.batch.left -= 1
            container.shared -= 1
            self.shared -= 1
        else:
            self.running -= 1
            if self.method_limits:
                method = input.call.method if self.batches is None else self.batches.method
                container.methods[method] -= 1
                self.methods[method] -= 1
            if container.held or container.suspect is not None:
                self.suspects.ended(container, input)
        input.batch = None
        input.lease = 0
        input.container = None

    def returned(self, container: Container, leases: list[int]) -> None:
        """Credited inputs that had not started come back, in front of the queue and in their old order."""
        for lease in reversed(leases):
            input = container.leases.get(lease)
            if input is None:
                self._plane.drop("returned a lease that is over")
                continue
            suspected = container.suspect is input
            self.release(container, input)
            if input.closed:
                continue
            if suspected:
                self.suspects.put_back(input)
            else:
                self.queue.put_back(input)
                self.patience.watch(input.call, input.queued_at)
        self.weigh(container)
        if container.idle:
            self.fleet.rested(container, self._agenda.now)

    def started(self, container: Container, leases: list[int]) -> None:
        """Credited inputs took a slot of the container; the core mostly knows already, since it counts the same way."""
        for lease in leases:
            if lease in container.credits:
                self.credits.promote(container, lease, self._agenda.now)
                # A fact, also where fewer were allowed while it was on its way.
                container.most = max(container.most, container.running)
                self.weigh(container)

    # ------------------------------------------------------------ inputs are cancelled

    def cancel(self, inputs: list[Input], result: Result = CANCELLED, reason: str = "cancelled") -> list[Container]:
        """Closes inputs at once; those that run are told, and hold their slot until they have ended. Gives the
        containers that run some of them."""
        told: dict[Container, list[int]] = {}
        running: dict[Container, None] = {}
        now, unwanted = self._agenda.now, result.status == TERMINATED
        for input in inputs:
            if input.closed:
                continue
            if unwanted:
                self.cancelled += 1
            else:
                self.failed += 1
                self.given_up += 1
            self._calls.close(input, result)
            if input.container is None:
                self.queue.withdraw(input)
                continue
            told.setdefault(input.container, []).append(input.lease)
            if not input.credited:
                running[input.container] = None
            if input.told_at == NEVER:
                input.told_at = now
        for container, leases in told.items():
            self._outbox.send(container.id, InputsCancelled(leases, reason))
        if told:
            self.overdue.told(now)
        return list(running)

    def cancel_call(self, call: Call, result: Result = CANCELLED) -> list[Container]:
        """Everything of one call."""
        return self.cancel(list(call.open.values()), result)

    def fail_queued(self, result: Result) -> None:
        """Gives up everything that waits."""
        self.cancel(list(self.queue), result)

    # ------------------------------------------------------------ containers come, change and go

    def joined(self, container: Container) -> None:
        """The container takes inputs from now on."""
        container.become(READY)
        self.index.add(container, 0)

    def left(self, container: Container) -> None:
        """The container takes nothing more."""
        self.index.remove(container)
        self.credits.hungry.pop(container, None)
        self.suspects.left(container)
        self.slots.left(container)

    def weigh(self, container: Container) -> None:
        """Brings the index up to date with the slots that are taken, and with whether there are any for the router."""
        running, indexed = container.running, container.indexed
        if self._is_open(container, running):
            if not indexed:
                self.index.add(container, running)
            elif running != container.load:
                self.index.move(container, running)
            if running >= self.maximum or self.credits.hungry:
                self.credits.weigh(container, running)
        else:
            if indexed:
                self.index.remove(container)
            container.load = running

    def _is_open(self, container: Container, running: int) -> bool:
        """Whether the router may look at the container."""
        if container.state != READY or container.used or container.held:
            return False
        return not container.slots or running < container.slots

    # ------------------------------------------------------------ what people and checks see

    def statistics(self) -> dict[str, object]:
        """Plain values, as the SDK's `get_current_stats` and the progress display want them."""
        return {
            "pool": self.id,
            "name": self.spec.name,
            "backlog": self.queue.ready + len(self.queue.suspects) + self.credited,
            "delayed": self.queue.delayed,
            "suspects": len(self.queue.suspects),
            "running": self.in_flight,
            "headroom": self.index.free_slots(self.maximum),
            "submitted": self.submitted,
            "refused": self.refused,
            "finished": self.finished + self.given_up,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "service_s": self.service_s,
            "max_inputs": self.maximum,
            "target_inputs": self.target,
            "bursts": self.bursts,
            "wait_p50_s": self.waits.quantile(0.5),
            "wait_p95_s": self.waits.quantile(0.95),
            "run_p50_s": self.runs.quantile(0.5),
            "run_p95_s": self.runs.quantile(0.95),
            "loop_blocks": self.loop_blocks,
            **self.fleet.statistics(),
        }
