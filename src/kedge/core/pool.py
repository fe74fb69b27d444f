"""The queue and the slots of one variant of a function: what waits, what runs where, what becomes of it.

Late binding: an input meets a container only when a slot is free. The exception are credits: while every slot is
taken and inputs are shorter than the round trip, a few are granted ahead and wait inside the container. A slot is
held until user code has really ended, whatever has been told to the caller meanwhile. How many containers there are
is `fleet`'s business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.core.apps import method_limits
from kedge.core.calls import CANCELLED, Call, Calls, Input
from kedge.core.containers import GONE, READY, Container, how_it_ended
from kedge.core.fleet import Fleet
from kedge.core.outbox import Outbox
from kedge.core.overdue import Overdue
from kedge.core.queue import InputQueue
from kedge.core.router import LoadIndex
from kedge.model.payload import FAILURE, INTERNAL_FAILURE, TIMEOUT, ErrorInfo, Payload, Result
from kedge.model.protocol import ContainerLost, Dispatch, Finished, InputsCancelled, InputsRecalled
from kedge.model.spec import FunctionSpec

if TYPE_CHECKING:
    from kedge.core.plane import Plane

MAX_LOSSES = 4
"""The infrastructure budget: an input is given up when this many containers were lost under it. High enough to survive
bad luck, low enough that a poison input does not destroy a machine."""
CREDIT_SERVICE_S = 0.005
"""Inputs longer than this hide the round trip by themselves."""
CREDIT_WINDOW_S = 0.002
"""Seconds of work a container may hold ahead: some tens of round trips, so that frames carry many inputs, and yet so
little that calling it back is never urgent."""
MAX_CREDITS = 256
"""Credits of one container at most: what 2 ms of empty functions come to."""
STALL_S = 0.01
"""A container that holds credits and reports nothing for this long has met a long input: its credits are called
back."""
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
        self.queue = InputQueue()
        self.index: LoadIndex[Container] = LoadIndex()
        self.running = 0
        """Slots taken over all containers."""
        self.credited = 0
        self.hungry: dict[Container, None] = {}
        """Full containers whose credit window is at most half used."""
        self.service_s: float | None = None
        self.finished = 0
        self.failed = 0
        self.submitted = 0
        self._outbox: Outbox = plane.outbox
        self._calls: Calls = plane.calls
        self._agenda = plane.agenda
        self._plane = plane
        self.fleet = Fleet(self, plane)
        self._overdue = Overdue(self, plane)

    # ------------------------------------------------------------ inputs come

    def submit(self, inputs: list[Input]) -> None:
        self.submitted += len(inputs)
        append = self.queue.append
        for input in inputs:
            append(input)

    def dispatch(self, now: float) -> None:
        """Grants slots while there are inputs and slots, then credits."""
        queue = self.queue
        if not queue.ready:
            return
        pick, target, maximum, limit = self.index.pick, self.target, self.maximum, self.limit
        if self.method_limits:
            self._dispatch_by_method()
            return
        while queue.ready and (limit is None or self.running < limit):
            container = pick(target, maximum)
            if container is None:
                break
            self._grant(container, queue.pop())
        if queue.ready and self.hungry:
            self._give_credits(now)

    def _dispatch_by_method(self) -> None:
        """Where methods have limits of their own, a call whose method is full everywhere is passed over."""
        full: dict[str, None] = {}
        """Methods that no container has a slot for: slots are only taken here, so they stay full."""
        while self.queue.ready and (self.limit is None or self.running < self.limit):
            for call in self.queue.turns():
                if call.method in full:
                    continue
                container = self._pick_for(call.method)
                if container is not None:
                    self._grant(container, self.queue.pop_from(call))
                    break
                full[call.method] = None
                if len(full) == len(self.spec.methods):
                    return
            else:
                return

    def _pick_for(self, method: str) -> Container | None:
        cap = self.method_limits.get(method)
        if cap is None:
            return self.index.pick(self.target, self.maximum)
        return self.index.pick_where(self.target, self.maximum, lambda c: c.methods.get(method, 0) < cap)

    def _grant(self, container: Container, input: Input) -> None:
        lease = self._plane.new_lease(input)
        input.container = container
        container.leases[lease] = input
        self.running += 1
        input.granted_at = self._agenda.now
        if not self._overdue.watching:
            self._overdue.watch()
        call = input.call
        if self.method_limits:
            container.methods[call.method] = container.methods.get(call.method, 0) + 1
        self._outbox.dispatch(
            container.id,
            Dispatch(lease, call.id, input.index, call.method, input.payload, input.attempts, False, call.stream),
        )
        load = container.load + 1
        if self.spec.single_use_containers:
            container.used = True
            self.index.remove(container)
            container.load = load
        else:
            self.index.move(container, load)
            if load >= self.maximum:
                self.hungry[container] = None

    # ------------------------------------------------------------ credits

    def _window(self) -> int:
        """How many inputs one container may hold ahead."""
        service_s = self.service_s
        if service_s is None or service_s > CREDIT_SERVICE_S or self.limit is not None:
            return 0
        return min(MAX_CREDITS, int(CREDIT_WINDOW_S * self.maximum / max(service_s, 1e-7)))

    def _give_credits(self, now: float) -> None:
        window = self._window()
        if not window:
            return
        again: list[Container] = []
        while self.hungry and self.queue.ready:
            container = next(iter(self.hungry))
            share = -(-self.queue.ready // len(self.hungry))
            del self.hungry[container]
            if container.recalled or not container.indexed:
                continue
            if not self._fill(container, min(window - len(container.credits), share), now):
                again.append(container)
                break
            if len(container.credits) * 2 <= window:
                again.append(container)
        for container in again:
            self.hungry[container] = None

    def _fill(self, container: Container, credits: int, now: float) -> bool:
        """Grants inputs ahead; False where the next one must not be."""
        for _ in range(credits):
            input = self.queue.pop()
            if input.losses or input.call.stream:
                # A suspect runs in a slot of its own, known to have started: never among credits.
                self.queue.put_back(input)
                return False
            self._credit(container, input)
            if not container.stall_watched:
                container.stall_watched = True
                self._agenda.at(now + STALL_S, lambda at: self._look_for_stall(container, at))
        return True

    def _credit(self, container: Container, input: Input) -> None:
        lease = self._plane.new_lease(input)
        input.container = container
        input.credited = True
        container.leases[lease] = container.credits[lease] = input
        self.credited += 1
        call = input.call
        self._outbox.dispatch(
            container.id,
            Dispatch(lease, call.id, input.index, call.method, input.payload, input.attempts, True, call.stream),
        )

    def _look_for_stall(self, container: Container, now: float) -> None:
        container.stall_watched = False
        if not container.credits or container.state == GONE or container.recalled:
            return
        due = container.finished_at + STALL_S
        if now < due:
            container.stall_watched = True
            self._agenda.at(due, lambda at: self._look_for_stall(container, at))
            return
        container.recalled = True
        self._outbox.send(container.id, InputsRecalled(list(container.credits)))

    def returned(self, container: Container, leases: list[int]) -> None:
        """Credited inputs that had not started come back, in front of the queue and in their old order."""
        for lease in reversed(leases):
            input = container.leases.get(lease)
            if input is None:
                self._plane.drop("returned a lease that is over")
                continue
            self._release(container, input)
            if not input.closed:
                self.queue.put_back(input)
        self._weigh(container)
        if container.idle:
            self.fleet.rested(container, self._agenda.now)

    def started(self, container: Container, leases: list[int]) -> None:
        """Credited inputs took a slot of the container; the core mostly knows already, since it counts the same way."""
        for lease in leases:
            input = container.credits.get(lease)
            if input is not None:
                self._promote(container, lease, input)

    def _promote(self, container: Container, lease: int, input: Input) -> None:
        del container.credits[lease]
        input.credited = False
        input.granted_at = self._agenda.now
        self.credited -= 1
        self.running += 1
        self._weigh(container)

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
            if container.credits and not input.credited:
                # Its slot goes to the oldest credit: the container has started that one in the same moment.
                first = next(iter(container.credits))
                self._promote(container, first, container.credits[first])
            self._release(container, input)
            if not input.closed:
                service_s = item.run_s if service_s is None else service_s + SMOOTHING * (item.run_s - service_s)
                self._conclude(input, item.result, now)
        self.service_s = service_s
        self._weigh(container)
        if container.used and container.idle:
            self.fleet.retire(container, "single_use_containers=True: it has had its input")
        elif container.idle:
            self.fleet.rested(container, now)
        if container.quarantined:
            self.bury(container)

    def bury(self, container: Container) -> None:
        """Kills a quarantined container as soon as nobody waits for anything that it runs."""
        if container.quarantined and all(input.closed for input in container.leases.values()):
            self.fleet.kill(container)

    def _conclude(self, input: Input, result: Result, now: float) -> None:
        """One attempt has ended: again, or over."""
        policy = self.spec.retries
        if result.status in (FAILURE, TIMEOUT):
            if input.attempts < policy.max_retries and not input.call.stream:
                delay = min(policy.initial_delay * policy.backoff_coefficient**input.attempts, policy.max_delay)
                input.attempts += 1
                self.queue.delay(input, now + delay)
                self._agenda.at(now + delay, self._wake)
                return
            self.failed += 1
        self.finished += 1
        self._calls.close(input, result)

    def _wake(self, now: float) -> None:
        self.queue.wake(now)
        self._plane.touch(self)

    def _release(self, container: Container, input: Input) -> None:
        """The lease is over, and with it the slot or the credit."""
        lease = input.lease
        del container.leases[lease]
        if input.credited:
            del container.credits[lease]
            input.credited = False
            self.credited -= 1
        else:
            self.running -= 1
            if self.method_limits:
                container.methods[input.call.method] -= 1
        input.lease = 0
        input.container = None

    def _weigh(self, container: Container) -> None:
        """Brings the index up to date with the slots that are taken."""
        if container.indexed:
            running = container.running
            if running != container.load:
                self.index.move(container, running)
            if running < self.maximum:
                self.hungry.pop(container, None)
            elif len(container.credits) * 2 <= self._window():
                self.hungry[container] = None

    # ------------------------------------------------------------ inputs are cancelled

    def cancel(self, inputs: list[Input], result: Result = CANCELLED, reason: str = "cancelled") -> list[Container]:
        """Closes inputs at once; those that run are told, and hold their slot until they have ended. Gives the
        containers that run some of them."""
        told: dict[Container, list[int]] = {}
        for input in inputs:
            if input.closed:
                continue
            if input.container is not None:
                told.setdefault(input.container, []).append(input.lease)
            else:
                self.queue.remove(input)
            self._calls.close(input, result)
        for container, leases in told.items():
            self._outbox.send(container.id, InputsCancelled(leases, reason))
        return list(told)

    def cancel_call(self, call: Call, result: Result = CANCELLED) -> list[Container]:
        """Everything of one call; cheap also for very many queued inputs."""
        for input in self.queue.remove_call(call):
            self._calls.close(input, result)
        return self.cancel(list(call.open.values()), result)

    def fail_queued(self, result: Result) -> None:
        """Gives up everything that waits."""
        waiting = list(self.queue)
        for call in dict.fromkeys(input.call for input in waiting):
            self.queue.remove_call(call)
        for input in waiting:
            self.failed += 1
            self._calls.close(input, result)

    # ------------------------------------------------------------ containers come and go

    def joined(self, container: Container) -> None:
        """The container takes inputs from now on."""
        container.become(READY)
        self.index.add(container, 0)

    def left(self, container: Container) -> None:
        """The container takes nothing more."""
        self.index.remove(container)
        self.hungry.pop(container, None)

    def lost(self, container: Container, message: ContainerLost) -> None:
        """Its inputs run again elsewhere, on the infrastructure budget: also credited ones, since the last of them may
        have been the one that brought it down."""
        self.left(container)
        for input in reversed(list(container.leases.values())):
            self._release(container, input)
            if input.closed:
                continue
            input.losses += 1
            if input.call.stream or input.losses >= MAX_LOSSES:
                self.failed += 1
                self._calls.close(input, lost_result(input, message))
            else:
                self.queue.put_back(input)

    # ------------------------------------------------------------ what people and checks see

    def statistics(self) -> dict[str, object]:
        """Plain values, as the SDK's `get_current_stats` and the progress display want them."""
        return {
            "pool": self.id,
            "name": self.spec.name,
            "backlog": self.queue.ready + self.credited,
            "delayed": len(self.queue) - self.queue.ready,
            "running": self.running,
            "headroom": self.index.free_slots(self.maximum),
            "submitted": self.submitted,
            "finished": self.finished,
            "failed": self.failed,
            "service_s": self.service_s,
            **self.fleet.statistics(),
        }

    def check(self) -> None:
        containers = self.fleet.containers.values()
        assert self.running == sum(c.running for c in containers)
        assert self.credited == sum(len(c.credits) for c in containers)
        assert self.index.size == sum(c.indexed for c in containers)
        if self.limit is not None:
            assert self.running <= self.limit, f"{self.running} in flight, concurrency_limit={self.limit}"
        for c in containers:
            assert c.running <= self.maximum, f"{c} is above max_inputs={self.maximum}"
            assert c.indexed == (c.state == READY and not c.used)
            assert not c.indexed or c.load == c.running
            assert set(c.credits) <= set(c.leases)
            for lease, input in c.leases.items():
                assert input.lease == lease
                assert input.container is c
                assert input.credited == (lease in c.credits)
            if self.method_limits:
                counted: dict[str, int] = {}
                for lease, input in c.leases.items():
                    if lease not in c.credits:
                        counted[input.call.method] = counted.get(input.call.method, 0) + 1
                assert counted == {m: n for m, n in c.methods.items() if n}
                assert all(counted.get(m, 0) <= cap for m, cap in self.method_limits.items())
        waiting = 0
        for input in self.queue:
            waiting += 1
            assert input.container is None
            assert not input.closed
            assert not input.lease
        assert waiting == len(self.queue)
        self.fleet.check()


def lost_result(input: Input, message: ContainerLost) -> Result:
    """What the caller of an input hears whose containers kept dying."""
    if input.call.stream:
        text = f"the container died in the middle of the stream: {how_it_ended(message)}"
    else:
        text = (
            f"the container died while it ran this input, {input.losses} times, so the input is given up; "
            f"the last time it was {how_it_ended(message)}"
        )
    return Result(INTERNAL_FAILURE, error=ErrorInfo("InternalFailure", text))
