"""Deploys, rollbacks, stops, sessions that end and containers that fail, in any order: the indices stay right, nothing
leads to what is gone, and whoever asked gets one answer."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from kedge.core.outbox import STORE
from kedge.model import protocol as p
from kedge.model.ids import deployment_id, function_id, pool_id
from kedge.model.payload import ErrorInfo, Payload
from kedge.model.spec import AppSpec, AutoscalerSettings, FunctionSpec, MethodSpec, Resources, Variant, WebSpec
from tests.core.conftest import Bench, app, function

NAMES = ("a", "b")
DEPLOYMENTS = tuple(deployment_id("main", name, served) for name in NAMES for served in (False, True))
STEPS = 80


class Story:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.bench = Bench()
        self.sessions = [f"se-{number}" for number in range(4)]
        self.made = 0
        """Sessions, versions and requests so far."""
        self.unanswered: dict[int, tuple[str, Any]] = {}
        self._heard = 0

    def number(self) -> int:
        self.made += 1
        return self.made

    # ------------------------------------------------------------ what happens

    def ask(self, message: Any) -> None:
        session = self.random.choice(self.sessions)
        self.unanswered[message.request] = session, message
        self.bench.send(message, session)

    def deploy(self) -> None:
        strategy = self.random.choice(p.STRATEGIES)
        self.ask(p.AppDeployed(self.number(), self.spec(self.random.random() < 0.35), strategy))

    def run(self) -> None:
        self.ask(p.AppCreated(self.number(), self.spec(True)))

    def roll_back(self) -> None:
        version = self.random.choice((None, 1, 2, 3))
        name, strategy = self.random.choice(NAMES), self.random.choice(p.STRATEGIES)
        self.ask(p.AppRolledBack(self.number(), name, version=version, strategy=strategy))

    def stop(self) -> None:
        self.ask(p.AppStopped(self.random.choice((*DEPLOYMENTS, *self.bench.plane.apps)), self.number()))

    def say_again(self) -> None:
        """A connection was lost, and its client has made another one."""
        deploys = [m for _, m in self.unanswered.values() if isinstance(m, p.AppDeployed) and not m.app.ephemeral]
        if deploys:
            self.ask(self.random.choice(deploys))

    def leave(self) -> None:
        session = self.random.choice(self.sessions)
        self.sessions.remove(session)
        self.sessions.append(f"se-{self.number() + 100}")
        self.bench.send(p.SessionClosed(), session)
        self.unanswered = {n: asked for n, asked in self.unanswered.items() if asked[0] != session}

    def call(self) -> None:
        session = self.random.choice(self.sessions)
        id = self.random.choice((*DEPLOYMENTS, *self.bench.plane.apps))
        pool = function_id(id, self.random.choice("fgh"))
        if self.random.random() < 0.3:
            variant = Variant(function=pool, variant="v", parameters=Payload(data=b"x"), spec=function(pool[-1]))
            self.bench.send(p.VariantBound(variant), session)
            pool = pool_id(pool, "v")
        self.bench.submit(1, f"fc-{self.made}", pool, self.random.randint(0, 3), session=session)

    def container(self) -> None:
        """Something becomes of one container."""
        containers = list(self.bench.plane.containers.values())
        if not containers:
            return
        container = self.random.choice(containers)
        if self.random.random() < 0.1:
            self.bench.lose(container.id, signal=9)
        elif container.state == "starting" and self.random.random() < 0.2:
            self.bench.send(p.ContainerFailed(ErrorInfo("ImportError", "no module named torch")), container.id)
        else:
            self.go_on(container)

    def go_on(self, container: Any) -> None:
        if container.state == "starting":
            self.bench.ready(container.id)
        elif self.bench.leases[container.id]:
            self.bench.finish(container.id)
        elif container.state == "draining":
            self.bench.lose(container.id, exit_code=0)

    def time(self) -> None:
        self.bench.wait(self.random.choice((1.0, 1.0, 10.0, 400.0)))

    def spec(self, ephemeral: bool) -> AppSpec:
        functions = [self.function(name) for name in self.random.sample("fgh", self.random.randint(0, 3))]
        spec = app(*functions, id=f"ap-{self.number()}", ephemeral=ephemeral)
        return replace(spec, name=self.random.choice(NAMES))

    def function(self, name: str) -> FunctionSpec:
        choice = self.random.choice
        web = WebSpec(
            kind="asgi_app",
            label=choice(("x", "y", None)),
            custom_domains=choice(((), ("d.org",))),
            port=choice((None, 8000)),
        )
        return function(
            name,
            methods=choice(((MethodSpec(),), (MethodSpec(web=web),))),
            resources=Resources(cpu=choice((1.0, 30.0, 64.0))),
            autoscaler=AutoscalerSettings(min_containers=choice((0, 0, 2)), scaledown_window=choice((0.0, 60.0))),
        )

    # ------------------------------------------------------------ what must be true

    def step(self) -> None:
        weights = {
            self.container: 8, self.deploy: 4, self.call: 4, self.time: 2, self.roll_back: 1, self.stop: 1,
            self.leave: 1, self.run: 1, self.say_again: 1,
        }  # fmt: skip
        self.random.choices(list(weights), list(weights.values()))[0]()
        self.hear()
        self.check()

    def hear(self) -> None:
        fresh, self._heard = self.bench.commands[self._heard :], len(self.bench.commands)
        for address, order in fresh:
            if isinstance(order, p.Reply) or (address == STORE and isinstance(order, p.DeploymentChanged)):
                self.unanswered.pop(order.request, None)

    def check(self) -> None:
        """Beside what `Plane.check` looks at."""
        plane = self.bench.plane
        for one in plane.deployments.by_id.values():
            if one.current is not None:
                tried = one.candidate.app if one.candidate is not None else None
                assert one.current is tried or one.current in one.versions.values()
            if one.candidate is not None:
                assert plane.apps[one.candidate.app.spec.app] is one.candidate.app
                assert not one.candidate.app.stopped
            if one.current is None:
                assert plane.routes.of_app(one.id) == {}
        for route in plane.routes.by_label.values():
            assert route.app in plane.apps or route.app in plane.deployments.by_id
        for version in plane.apps.values():
            if version.spec.deployment and not version.stopped:
                assert version.spec.deployment in plane.deployments.by_id

    def come_to_rest(self) -> None:
        for _ in range(100):
            for container in list(self.bench.plane.containers.values()):
                if container.id in self.bench.plane.containers:
                    self.go_on(container)
            self.bench.wait(20.0)
            self.hear()
            if not self.unanswered:
                return


@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_things(seed: int) -> None:
    story = Story(seed)
    for _ in range(STEPS):
        story.step()
    story.come_to_rest()
    story.check()
    assert story.unanswered == {}
