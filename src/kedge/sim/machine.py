"""The machines: an engine that makes containers exist, and containers whose user code is drawn instead of run.

What user code does is written in the input's payload (`work`): for how long it runs, and how it ends. A container runs
the real `Session`; around it, it may fail to start, crash at any moment, lose its last words, or refuse to leave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kedge.container.session import Cancel, Exit, Session, Start
from kedge.model import protocol as p
from kedge.model.ids import input_id
from kedge.model.payload import FAILURE, SUCCESS, ErrorInfo, Payload, Result
from kedge.sim.client import SimClient
from kedge.sim.link import Link

if TYPE_CHECKING:
    from kedge.model.spec import FunctionSpec
    from kedge.sim.client import SimCall
    from kedge.sim.world import World

OK = "ok"
FAIL = "fail"
"""Raises, always."""
FLAKY = "flaky"
"""Raises in as many attempts as the third field says."""
STUBBORN = "stubborn"
"""Ignores that it was cancelled."""
FROZEN = "frozen"
"""Runs for its seconds whatever it is told, and its container does not notice when its time is over."""
DEAF = "deaf"
"""The same, and nothing else in its container moves: no message is heard, no other input ends."""
POISON = "poison"
"""Kills its container."""
NEST = "nest"
"""Calls the pool of the third field once and waits for it."""
REPORT_S = 1.0
"""How long after its time an input is reported that has not ended."""
WAKES_UP_S = 0.001
"""How long code takes to notice that it was cancelled."""


def work(kind: str = OK, seconds: float = 0.01, detail: str | int = "") -> Payload:
    """An input of which the simulated user code runs for `seconds` and ends as `kind` says."""
    return Payload(data=f"{kind}|{seconds!r}|{detail}".encode())


class Run:
    """One attempt as user code sees it."""

    __slots__ = ("cancelled", "child", "disowned", "dispatch", "done", "ended", "kind", "slot", "started_at")

    def __init__(self, dispatch: p.Dispatch, kind: str, slot: list[Run], now: float) -> None:
        self.dispatch = dispatch
        self.kind = kind
        self.slot = slot
        """Those that share its slot, itself among them: more than one for a batch."""
        slot.append(self)
        self.done = False
        """Its part of the work is: the code ends when all of its slot is done."""
        self.started_at = now
        self.cancelled = False
        self.disowned = False
        """The plane has ordered its cancellation: another attempt may start."""
        self.ended = False
        self.child: SimCall | None = None


class SimEngine:
    def __init__(self, world: World) -> None:
        self.containers: dict[str, SimContainer] = {}
        """Processes that exist, or are about to."""
        self.up: Link = Link(world, self._to_plane)
        self._down: Link = Link(world, self._from_plane)
        self._world = world

    def order(self, message: Any) -> None:
        if isinstance(message, p.StartContainer):
            function = self._world.plane.pools[message.pool].spec
            container = SimContainer(self._world, message, function)
            self.containers[message.container] = container
            self._down.send(container.launch)
        else:
            self._down.send(lambda: self._kill(message))

    def _from_plane(self, frame: list[Callable[[], None]]) -> None:
        for order in frame:
            order()

    def _to_plane(self, frame: list[Any]) -> None:
        for message in frame:
            self._world.feed(message)

    def _kill(self, message: p.KillContainer) -> None:
        container = self.containers.get(message.container)
        if container is not None:
            if message.grace_s:
                self._world.after(message.grace_s, container.killed)
            else:
                container.killed()

    def lose(self, node: str) -> None:
        for container in [c for c in self.containers.values() if c.node == node]:
            container.die("the machine is gone", said=False)

    def lose_supervisor(self) -> None:
        """What holds the containers dies, and they with it: no fault of theirs."""
        for container in list(self.containers.values()):
            container.die("the supervisor died", blameless=True)

    def die(self) -> None:
        """The server is gone, and its containers with it."""
        self.up.cut = self._down.cut = True
        for container in list(self.containers.values()):
            container.die("the server is gone", said=False)


class SimContainer:
    def __init__(self, world: World, order: p.StartContainer, function: FunctionSpec) -> None:
        self.id = order.container
        self.pool = order.pool
        self.node = order.node
        self.devices = order.devices
        self.function = function
        self._timeouts = {method.name: method.timeout for method in function.methods}
        self.session = Session(function.concurrency.max_inputs)
        self.runs: dict[int, Run] = {}
        self.taken = 0
        """Slots."""
        self.alive = True
        self.ready = False
        self.leaving = False
        self.client: SimClient | None = None
        """The SDK inside the container, once its code has called something."""
        self.up: Link = Link(world, self._to_plane)
        self.down: Link = Link(world, self._receive)
        self.postponed: list[tuple[Callable[..., None], Any]] = []
        """What happens when no deaf code runs any more."""
        self._connected = False
        self._flushing = False
        self._world = world
        self._engine = world.engine

    # ------------------------------------------------------------ it comes up

    def launch(self) -> None:
        world, conditions = self._world, self._world.conditions
        if not self.alive:
            return
        started = world.draw(conditions.start)
        if world.chance(conditions.never_starts):
            world.after(started, lambda _: self.die("the process could not be made"))
            return
        world.after(started, self._started)

    def _started(self, _: object) -> None:
        if not self.alive:
            return
        world, conditions = self._world, self._world.conditions
        self._engine.up.send(p.ContainerStarted(self.id, 1))
        if world.chance(conditions.connects_early):
            self._connect()
        imports = world.draw(conditions.imports)
        if world.chance(conditions.crashes_starting):
            world.after(imports, lambda _: self.die("", exit_code=1))
        elif world.chance(conditions.fails_starting):
            world.after(imports, self._fail)
        elif not world.chance(conditions.hangs_starting):
            world.after(imports, self._become_ready)

    def _connect(self) -> None:
        if not self._connected:
            self._connected = True
            self._world.peers[self.id] = self.down.send

    def _become_ready(self, _: object) -> None:
        if not self.alive or self.leaving:
            return
        self._connect()
        self.ready = True
        self.up.send(p.ContainerReady([], 0.1))
        world = self._world
        if world.conditions.crash_rate:
            world.after(world.random.expovariate(world.conditions.crash_rate), self.crash)
        if world.conditions.leave_rate:
            world.after(world.random.expovariate(world.conditions.leave_rate), self.ask_to_leave)

        if world.conditions.wish_rate:
            world.after(world.random.expovariate(world.conditions.wish_rate), self._wish)

    def _wish(self, _: object = None) -> None:
        """Its code changes how many inputs it takes at once."""
        if self.alive:
            self._act(self.session.receive(p.SlotsChanged(self._world.random.choice((1, 2, 5, 50)))))
            self._say()

    def ask_to_leave(self, _: object = None) -> None:
        """Its code says that it wants no more inputs."""
        if self.alive:
            self._act(self.session.receive(p.ContainerLeaving("stop_fetching_inputs")))
            self._say()

    def _fail(self, _: object) -> None:
        if self.alive:
            self._connect()
            self.up.send(p.ContainerFailed(ErrorInfo("ImportError", "no module named nothing")))
            self._leave()

    # ------------------------------------------------------------ it works

    def _is_postponed(self, action: Callable[..., None], argument: Any) -> bool:
        deaf = any(run.kind == DEAF for run in self.runs.values())
        if deaf:
            self.postponed.append((action, argument))
        return deaf

    def _receive(self, frame: list[Any]) -> None:
        if not self.alive or self._is_postponed(self._receive, frame):
            return
        for message in frame:
            self._act(self.session.receive(message))
        self._say()

    def _act(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self._start(action.members or (action.dispatch,))
            elif isinstance(action, Cancel):
                for run in self.runs[action.lease].slot:
                    self._cancel(run)
            elif isinstance(action, Exit):
                self._leave()

    def _start(self, inputs: tuple[p.Dispatch, ...]) -> None:
        """Code begins that works on all of these, for as long as the longest takes."""
        self.taken += 1
        works = [dispatch.payload.data.decode().split("|") for dispatch in inputs]
        seconds = max(float(seconds) for _, seconds, _ in works)
        slot: list[Run] = []
        for dispatch, (kind, _, detail) in zip(inputs, works, strict=True):
            run = self.runs[dispatch.lease] = Run(dispatch, kind, slot, self._world.now)
            self._world.checks.started(self, run)
            self._run(run, seconds, detail)

    def _run(self, run: Run, seconds: float, detail: str) -> None:
        world, dispatch = self._world, run.dispatch
        if run.kind == NEST:
            run.child = self._sdk().call(detail, [work(OK, seconds)], parent=input_id(dispatch.call, dispatch.index))
            run.child.on_over = lambda: self._end(run)
        else:
            world.after(seconds, self._end, run)
            timeout = dispatch.timeout or self._timeouts.get(dispatch.method) or self.function.timeout
            if seconds > timeout and run.kind not in (FROZEN, DEAF):
                world.after(timeout, self._overrun, run)

    def _overrun(self, run: Run) -> None:
        """The runtime ends an input whose time is over; of code that goes on it tells the plane."""
        if self.alive and not run.ended and not self._is_postponed(self._overrun, run):
            self._act(self.session.receive(p.InputsCancelled([run.dispatch.lease], "timeout")))
            self._world.after(REPORT_S, self._report, run)

    def _report(self, run: Run) -> None:
        if self.alive and not run.ended and not self._is_postponed(self._report, run):
            self.up.send(p.InputsOverran([run.dispatch.lease]))

    def _sdk(self) -> SimClient:
        if self.client is None:
            self.client = SimClient(self._world)
        return self.client

    def _cancel(self, run: Run) -> None:
        run.cancelled = True
        if run.child is not None and self.client is not None:
            self.client.cancel(run.child)
        if run.kind not in (STUBBORN, FROZEN, DEAF):
            self._world.after(WAKES_UP_S, self._end, run)

    def _end(self, run: Run) -> None:
        if not self.alive or run.done or (run.kind != DEAF and self._is_postponed(self._end, run)):
            return
        if run.kind == POISON:
            self.crash()
            return
        run.done = True
        if not all(other.done for other in run.slot):
            return
        self.taken -= 1
        for other in run.slot:
            other.ended = True
            del self.runs[other.dispatch.lease]
            self._world.checks.ended(self, other)
        first, seconds = run.slot[0].dispatch, self._world.now - run.started_at
        if first.batch:
            actions = self.session.batch_finished(first.lease, [self._result(other) for other in run.slot], seconds)
        else:
            actions = self.session.finished(first.lease, self._result(run), seconds)
        self._act(actions)
        self._say()
        postponed, self.postponed = self.postponed, []
        for action, argument in postponed:
            action(argument)

    def _result(self, run: Run) -> Result:
        detail = run.dispatch.payload.data.decode().split("|")[2]
        if run.kind == FAIL or (run.kind == FLAKY and run.dispatch.attempt < int(detail)):
            return Result(FAILURE, error=ErrorInfo("ValueError", "drawn"))
        return Result(SUCCESS, Payload(data=f"{run.dispatch.call}:{run.dispatch.index}".encode()))

    def _say(self) -> None:
        """Sends what the session owes, at once or together with what comes a little later."""
        self._world.checks.session(self)
        if not self.session.dirty or self._flushing or not self.alive:
            return
        if self._world.conditions.coalesce:
            self._flushing = True
            self._world.after(self._world.random.random() * self._world.conditions.coalesce, self._flush)
        else:
            self._flush()

    def _flush(self, _: object = None) -> None:
        self._flushing = False
        if self.alive:
            for message in self.session.outgoing():
                self.up.send(message)

    def _to_plane(self, frame: list[Any]) -> None:
        for message in frame:
            self._world.feed(message, self.id)

    # ------------------------------------------------------------ it goes

    def _leave(self) -> None:
        if self.leaving:
            return
        self.leaving = True
        self._flush()
        world = self._world
        if not world.chance(world.conditions.hangs_exiting):
            world.after(world.draw(world.conditions.exit_hooks), lambda _: self.die("", exit_code=0))

    def killed(self, _: object = None) -> None:
        self.die("killed by kedge", signal=9)

    def crash(self, _: object = None) -> None:
        """The process ends under whatever it runs."""
        world = self._world
        if not self.alive:
            return
        if world.chance(world.conditions.frames_lost):
            self.up.cut = True
        self.die("", signal=9, out_of_memory=world.chance(world.conditions.out_of_memory))

    def die(
        self,
        reason: str,
        exit_code: int | None = None,
        signal: int | None = None,
        out_of_memory: bool = False,
        said: bool = True,
        blameless: bool = False,
    ) -> None:
        if not self.alive:
            return
        self.alive = self.ready = False
        self.postponed.clear()
        world = self._world
        for run in self.runs.values():
            run.ended = True
            world.checks.ended(self, run)
        self.runs.clear()
        if self._connected:
            del world.peers[self.id]
        self._engine.containers.pop(self.id, None)
        if self.client is not None:
            self.client.leave()
        if said:
            self._engine.up.send(
                p.ContainerLost(self.id, reason, exit_code, signal, out_of_memory, blameless=blameless)
            )
            self._hang_up()
        else:
            self.up.cut = True

    def _hang_up(self) -> None:
        """The shell sees the end of the connection, after what was said on it."""
        if not self._connected:
            return
        gone = p.ContainerDisconnected(self.id, "end of stream")
        if self.up.cut:
            world = self._world
            world.after(world.latency(), lambda _: world.feed(gone))
        else:
            self.up.send(gone)
            self.up.closed = True
