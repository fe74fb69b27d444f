"""What containers are started with, and which imports fork servers should hold for them.

Every launch has a token of its own: the connection that shows it is that container's. Imports are learned from
containers that have come up, so that the next fork server of the same app loads them once for all.
"""

from __future__ import annotations

import secrets
from hmac import compare_digest

from msgspec.structs import replace

from kedge.model.payload import Payload
from kedge.model.protocol import StartContainer
from kedge.model.spec import AppSpec, EnvironmentSpec, FunctionSpec, Launch
from kedge.server.chunks import Place
from kedge.server.outfit import Outfitter
from kedge.server.payloads import Payloads
from kedge.server.store import Store

MAX_PRELOAD = 64
"""Modules a fork server is asked to hold: the dearest ones are a handful, and every further one costs memory."""


class Launches:
    def __init__(self, address: str, home: str, store: Store, outfitter: Outfitter) -> None:
        self._address = address
        self._home = home
        self._store = store
        self.outfitter = outfitter
        self._launches: dict[str, tuple[Launch, str]] = {}
        """What each container was started with, and the app that its output belongs to."""

    def make(self, order: StartContainer, spec: FunctionSpec, parameters: Payload | None, app: AppSpec) -> Launch:
        """What a container is started with. Error where something that it needs is not there."""
        devices = tuple(order.devices)
        footing = self.outfitter.footing(app, spec)
        plain = self.outfitter.environment(app, spec, footing)
        environment = plain
        hidden = self.outfitter.secrets(app, spec)
        if hidden:
            variables = dict(plain.variables) | hidden
            environment = replace(plain, variables=tuple(sorted(variables.items())))
        learned = self._store.register.imports(_import_key(app.name, environment, spec))
        launch = Launch(
            container=order.container,
            token=secrets.token_hex(16),
            address=self._address,
            pool=order.pool,
            app=app.app,
            app_name=app.name,
            environment_name=app.environment_name,
            function=spec,
            parameters=parameters,
            code=app.code,
            environment=environment,
            preload=tuple(dict.fromkeys([*spec.preload, *learned]))[:MAX_PRELOAD],
            devices=devices,
            device_variables=tuple(sorted(self.outfitter.device_variables(spec, devices).items())),
            home=self._home,
            isolation=self.outfitter.isolation(app, spec, footing, order.container, devices),
        )
        # What only the container itself needs is not kept, and secrets least of all.
        kept = replace(launch, function=replace(spec, serialized=None), parameters=None, environment=plain)
        self._launches[order.container] = kept, app.deployment or app.app
        return launch

    def objection(self, app: AppSpec) -> Exception | None:
        """Why containers of this app could not start here."""
        return self.outfitter.objection(app)

    def proves(self, container: str, token: str) -> bool:
        """Whether `token` is what this container was started with. Takes the same time for every wrong one."""
        launch = self._launch(container)
        return compare_digest((launch.token if launch else "-" * 32).encode(), token.encode()) and launch is not None

    def place(self, container: str) -> Place | None:
        """Whose container it is; None where there is none. All versions of a deployed app count as one."""
        launch, app = self._launches.get(container, (None, ""))
        if launch is None:
            return None
        return Place(container, app, launch.app_name, launch.function.name, launch.pool)

    def rung(self, container: str) -> str:
        """How a container is kept apart; empty where there is none."""
        launch = self._launch(container)
        return launch.isolation.rung if launch is not None else ""

    def learn(self, container: str, imports: list[str]) -> None:
        launch = self._launch(container)
        if launch is not None and imports:
            key = _import_key(launch.app_name, launch.environment, launch.function)
            self._store.register.learn_imports(key, imports, MAX_PRELOAD)

    def forget(self, container: str) -> None:
        self._launches.pop(container, None)
        self.payloads.ended(container)

    @property
    def payloads(self) -> Payloads:
        return self.outfitter.payloads

    def _launch(self, container: str) -> Launch | None:
        return self._launches.get(container, (None, ""))[0]


def _import_key(app_name: str, environment: EnvironmentSpec, spec: FunctionSpec) -> str:
    return f"{app_name}\n{environment.python}\n{spec.module}"
