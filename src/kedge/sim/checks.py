"""What must always hold, and what must come about once faults have stopped.

These checks keep books of their own: of processes, of user code that runs, of leases, of results as callers see them.
They ask the plane only for what nobody else can know, such as whether an input waits. `Plane.check` recounts the
plane's own indices beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from kedge.core.containers import READY, STARTING
from kedge.core.devices import need
from kedge.core.pool import Pool
from kedge.model import protocol as p
from kedge.model.gpus import counted, matches
from kedge.model.payload import SUCCESS, Result

if TYPE_CHECKING:
    from kedge.core.outbox import Command
    from kedge.model.spec import FunctionSpec, Resources
    from kedge.sim.client import SimCall, SimClient
    from kedge.sim.machine import Run, SimContainer
    from kedge.sim.world import World

SPIN = 1000
"""Wake-ups without time passing, or an event between them, that are surely a loop."""
REST_S = 100.0
"""Seconds of rest in which wake-ups are counted."""


class Violation(AssertionError):
    """A rule that was broken: which one, and how."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


class Held:
    """What a container takes of a node, from its order to its loss."""

    __slots__ = ("cpu", "devices", "memory", "node", "pool", "vram")

    def __init__(
        self, pool: str, node: str, cpu: float, memory: int, devices: list[int], vram: tuple[int, ...]
    ) -> None:
        self.vram = list(vram)
        """MiB of each device, by declaration or measurement; empty where it has them whole."""
        self.pool = pool
        self.node = node
        self.cpu = cpu
        self.memory = memory
        self.devices = devices


class Checks:
    def __init__(self, world: World, every: int = 1) -> None:
        self.every = every
        """The whole is checked after each so many messages."""
        self.peak: dict[str, int] = {}
        """The most inputs that user code of one container of a pool has run at once."""
        self.attempts = 0
        self._world = world
        self._handled = 0
        self._thorough = True
        self._spins = 0
        self._last = -1.0
        self._lease = 0
        self._disowned: set[int] = set()
        self._running: dict[tuple[str, int], list[Run]] = {}
        self._in_flight: dict[str, int] = {}

        self._visible: dict[str, set[tuple[str, int]]] = {}
        self._held: dict[str, Held] = {}
        self._used: dict[str, int] = {}
        """The most GPU memory that was measured of a container of each pool."""

    def fail(self, rule: str, text: str) -> NoReturn:
        raise Violation(rule, text)

    def restarted(self) -> None:
        """Another plane: its leases begin anew, and no container has survived."""
        self._lease = 0
        self._disowned.clear()
        self._held.clear()
        self._used.clear()

    # ------------------------------------------------------------ at every step

    def handled(self, message: Any, commands: list[Command]) -> None:
        self._handled += 1
        kind = type(message)
        if kind is p.ContainerLost:
            self._held.pop(message.container, None)
        elif kind is p.NodeLost:
            self._held = {id: held for id, held in self._held.items() if held.node != message.node}
        elif kind is p.InputsOverran:
            self._given_up(message.leases)
        elif kind is p.VramMeasured:
            self._measured(message)
        elif kind is p.TimePassed and self._last == self._world.now:
            self._spins += 1
            if self._spins > SPIN:
                self.fail("no spinning", f"{self._spins} wake-ups at {self._world.now}")
        else:
            self._spins = 0
            self._last = self._world.now
        self._thorough = self._handled % self.every == 0
        seen = self._lease
        for address, order in commands:
            kind = type(order)
            if kind is p.InputsDispatched:
                seen = max(seen, self._dispatched(address, order))
            elif kind is p.StartContainer:
                self._ordered(order)
            elif kind is p.InputsCancelled:
                self._disown(address, order.leases)
        self._lease = seen
        if self._thorough:
            self.whole()

    def _dispatched(self, address: str, order: p.InputsDispatched) -> int:
        world = self._world
        container = world.plane.containers.get(address)
        leases = [dispatch.lease for dispatch in order.inputs]
        if min(leases) <= self._lease or len(dict.fromkeys(leases)) != len(leases):
            self.fail("leases", f"{address} gets leases that were used before: {leases}, the last was {self._lease}")
        if container is None:
            self.fail("dispatch", f"{address} gets inputs and is gone")
        pool = container.pool
        slots = sum(not dispatch.credited for dispatch in order.inputs)
        if container.state != READY:
            self.fail("dispatch", f"{container} gets {len(leases)} inputs")
        if slots < len(leases) and pool.index.free_slots(pool.maximum):
            self.fail("credits", f"{container} gets credits while slots are free")
        if self._thorough and container.running > pool.target and slots and not (pool.method_limits or container.held):
            for other in pool.index:
                if other.running < pool.target:
                    self.fail("target", f"{container} is above target={pool.target}, while {other} is below")
        return max(leases)

    def _ordered(self, order: p.StartContainer) -> None:
        world = self._world
        pool = world.plane.pools[order.pool]
        spec, nodes = pool.spec, world.nodes
        cap = pool.fleet.settings.max_containers
        active = sum(c.state in (STARTING, READY) for c in pool.fleet.containers.values())
        if cap is not None and active > cap:
            self.fail("max_containers", f"{pool.id} has {active} containers, at most {cap} are allowed")
        others = [held for held in self._held.values() if held.pool == order.pool]
        cpu = min(spec.resources.cpu, max(node.cpu for node in nodes.values()))
        memory = min(spec.resources.memory, max(node.memory for node in nodes.values()))
        vram = world.plane.containers[order.container].placement.vram
        held = self._held[order.container] = Held(order.pool, order.node, cpu, memory, order.devices, vram)
        node = nodes[order.node]
        there = [held for held in self._held.values() if held.node == order.node]
        used = sum(held.cpu for held in there), sum(held.memory for held in there)
        if used[0] > node.cpu + 1e-6 or used[1] > node.memory:
            nested = not others and any(input.call.parent for input in pool.queue)
            if not nested:
                self.fail("capacity", f"{order} brings {order.node} to {used} of {node.cpu} cpu and {node.memory} MiB")
        if order.devices:
            self._gives_devices(order, held, spec.resources, [other for other in there if other is not held])

    def _gives_devices(self, order: p.StartContainer, held: Held, resources: Resources, others: list[Held]) -> None:
        """Whole devices are one container's alone; of shared ones no more is given than there is, by what was declared
        and by what was measured."""
        node = self._world.nodes[order.node]
        known = {device.index: device for device in node.devices or counted(node.gpus)}
        for number, index in enumerate(order.devices):
            device = known.get(index)
            beside = [other for other in others if index in other.devices]
            if device is None or (beside and not (held.vram and all(other.vram for other in beside))):
                self.fail("devices", f"{order} gets device {index} of {list(known)}, which {len(beside)} others have")
            asks = [gpu for gpu in resources.gpus if matches(device.name, gpu.name) and gpu.count == len(order.devices)]
            if not asks:
                self.fail("devices", f"{order} gets a {device.name}, and asks for {resources.gpus}")
            if not held.vram:
                continue
            least = min(need(device, gpu, resources.vram, self._used.get(order.pool, 0)) for gpu in asks)
            taken = sum(other.vram[other.devices.index(index)] for other in beside)
            if held.vram[number] < least or taken + held.vram[number] > device.memory:
                self.fail(
                    "vram", f"{order} gets {held.vram[number]} MiB of {device}, needs {least}, and {taken} are taken"
                )

    def _measured(self, message: p.VramMeasured) -> None:
        for id, used in message.used.items():
            held = self._held.get(id)
            if held is not None and held.vram:
                held.vram = [max(used, each) for each in held.vram]
                self._used[held.pool] = max(used, self._used.get(held.pool, 0))

    def _disown(self, address: str, leases: list[int]) -> None:
        self._disowned.update(leases)
        container = self._world.engine.containers.get(address)
        if container is not None:
            for lease in leases:
                if lease in container.runs:
                    container.runs[lease].disowned = True

    def _given_up(self, leases: list[int]) -> None:
        """Callers of inputs whose code does not end were told so: who asks again gets another attempt."""
        for body in self._world.engine.containers.values():
            known = self._world.plane.containers.get(body.id)
            for lease in leases:
                if lease in body.runs and known is not None and lease in known.leases and known.leases[lease].closed:
                    body.runs[lease].disowned = True

    def started(self, container: SimContainer, run: Run) -> None:
        """User code of an input begins."""
        function, dispatch = container.function, run.dispatch
        self.attempts += 1
        self.peak[container.pool] = max(self.peak.get(container.pool, 0), len(container.runs))
        if container.taken > container.session.max_inputs:
            self.fail("max_inputs", f"{container.id} has {container.taken} slots in use")
        self._limits(container, function, dispatch.method)
        run.disowned = dispatch.lease in self._disowned
        others = self._running.setdefault((dispatch.call, dispatch.index), [])
        if not run.disowned and not all(other.disowned for other in others):
            self.fail("one attempt", f"{dispatch.call}:{dispatch.index} runs twice, now also in {container.id}")
        others.append(run)

    def _limits(self, container: SimContainer, function: FunctionSpec, method: str) -> None:
        pool = container.pool
        self._in_flight[pool] = count = self._in_flight.get(pool, 0) + 1
        if function.concurrency_limit is not None and count > function.concurrency_limit:
            self.fail(
                "concurrency_limit", f"{pool} runs {count} inputs, at most {function.concurrency_limit} are allowed"
            )
        for known in function.methods:
            if known.name == method and known.concurrency_limit is not None:
                at_once = sum(
                    run.dispatch.method == method and run is run.slot[0] for run in container.runs.values()
                )  # a batch is one slot
                if at_once > known.concurrency_limit:
                    self.fail("method limit", f"{container.id} runs {method} {at_once} times at once")

    def ended(self, container: SimContainer, run: Run) -> None:
        """User code of an input has ended, or its process has."""
        self._in_flight[container.pool] -= 1
        key = run.dispatch.call, run.dispatch.index
        self._running[key].remove(run)
        if not self._running[key]:
            del self._running[key]

    def session(self, container: SimContainer) -> None:
        session = container.session
        if session.running != container.taken:
            self.fail("slots", f"{container.id}: {session.running} slots, {container.taken} are in use")

    def delivered(self, client: SimClient, session: str, message: p.OutputsDelivered) -> SimCall:
        """A caller gets results."""
        call = client.calls.get(message.call)
        if call is None:
            self.fail("submitted", f"{session} gets results of {message.call}, which it has not made")
        visible = self._visible.setdefault(session, set())
        for output in message.outputs:
            key = call.id, output.index
            if key in visible and not _is_refusal(output.result):
                self.fail("one result", f"{session} gets {call.id}:{output.index} a second time")
            visible.add(key)
            if output.index >= call.sent:
                self.fail("submitted", f"{session} gets {call.id}:{output.index}, which it has not submitted")
            result = output.result
            if result.status == SUCCESS and (
                result.payload is None or result.payload.data.decode() != f"{call.id}:{output.index}"
            ):
                self.fail("own result", f"{call.id}:{output.index} gets the result of another input: {result}")
        return call

    # ------------------------------------------------------------ the whole

    def whole(self) -> None:
        plane = self._world.plane
        plane.check()
        for pool in plane.pools.values():
            if pool.queue.ready:
                self._work_is_conserved(pool)
        for container in self._world.engine.containers.values():
            self._slots_agree(container)

    def _work_is_conserved(self, pool: Pool) -> None:
        """No input waits while a ready container has a slot for it."""
        least = 1 if pool.batches is None else pool.batches.size
        if pool.queue.ready < least or (pool.limit is not None and pool.limit - pool.in_flight < least):
            return
        for container in pool.index:
            if container.running < pool.maximum:
                for call in pool.queue.calls():
                    method = call.method if pool.batches is None else pool.batches.method
                    cap = pool.method_limits.get(method)
                    if cap is None or container.methods.get(method, 0) < cap:
                        self.fail("work conservation", f"{call} waits, while {container} has a free slot")

    def _slots_agree(self, body: SimContainer) -> None:
        """With nothing on its way between them, the plane and the container count alike."""
        quiet = not (body.up.flying or body.down.flying or body.session.dirty or body.postponed)
        container = self._world.plane.containers.get(body.id)
        if body.ready and quiet and container is not None:
            there = body.session.running, body.session.waiting
            if (container.running, len(container.credits)) != there:
                self.fail("slots agree", f"{container}, but the container has {there[0]} running, {there[1]} waiting")

    # ------------------------------------------------------------ after healing

    def rest(self) -> None:
        """All calls are over: containers leave, nothing is left behind, and nothing wakes up without need."""
        world = self._world
        windows = [pool.fleet.settings.scaledown_window for pool in world.plane.pools.values()]
        starts = [pool.spec.startup_timeout or pool.spec.timeout for pool in world.plane.pools.values()]
        bound = 2 * max(windows, default=0.0) + max(starts, default=0.0) + 200.0
        if not world.run(world.now + bound, self._at_rest):
            self.fail("rest", f"{bound:g} s after the last result: {self._unrest()}")
        self.whole()
        for call in world.plane.calls.by_id.values():
            if call.open or not call.durable:
                self.fail("no waiting call", f"{call} is left")
        if self._running:
            self.fail("no slot is lost", f"user code still runs: {list(self._running)}")
        world.run(world.now + max(windows, default=0.0) + 60.0)
        before = world.time_passed
        world.run(world.now + REST_S)
        watched = sum(
            1 + REST_S / max(0.01, p.fleet.settings.scaledown_window) * p.fleet.ready
            for p in world.plane.pools.values()
        )
        if world.time_passed - before > 20 + 2 * watched:
            self.fail("no spinning", f"{world.time_passed - before} wake-ups in {REST_S:g} s of rest")
        if not self._at_rest():
            self.fail("rest", f"it did not last: {self._unrest()}")

    def _at_rest(self) -> bool:
        world = self._world
        return len(world.engine.containers) == len(world.plane.containers) and not self._unrest()

    def _unrest(self) -> list[str]:
        found = []
        for pool in self._world.plane.pools.values():
            fleet = pool.fleet
            if pool.running or pool.credited or len(pool.queue):
                found.append(f"{pool.id}: {pool.running} run, {pool.credited} are credited, {len(pool.queue)} wait")
            elif pool.index.free_slots(pool.maximum) != fleet.ready * pool.maximum and not _own_slots(pool):
                found.append(f"{pool.id}: {pool.index.free_slots(pool.maximum)} slots in {fleet.ready} containers")
            elif self._has_no_room(pool):
                continue
            elif fleet.starting or not fleet.ready == len(fleet.containers) == fleet.settings.min_containers:
                found.append(
                    f"{pool.id}: {list(fleet.containers.values())}, min_containers={fleet.settings.min_containers}"
                )
        return found

    def _has_no_room(self, pool: Pool) -> bool:
        """Whether the machines are full of containers that others must keep, or nothing of the kind is there."""
        fleet = pool.fleet
        if fleet.ready >= fleet.settings.min_containers or fleet.starting:
            return False
        plane = self._world.plane
        if plane.scheduler.would_place(pool.spec.resources, [], plane.vram.peak(pool)):
            return False
        return not any(other.fleet.spare for other in plane.pools.values() if other.index.size)


def _is_refusal(result: Result) -> bool:
    """The input never came to be: sent twice, it may be refused twice."""
    return result.error is not None and result.error.type == "ResourceExhaustedError"


def _own_slots(pool: Pool) -> bool:
    """Whether a container has said how many inputs it takes."""
    return any(container.slots for container in pool.fleet.containers.values())
