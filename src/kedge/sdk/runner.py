"""Running and deploying an app: find or start a server, ship the code, create the app, and end it all in order.

`kedge run` and `with app.run():` attach to the machine's server where one runs. Otherwise they start a private one,
which ends with this process. Apps that run at the same time share one connection and one server. What stays when the
program ends (`deploy`, `detach`) goes to the machine's server, which is started where none runs, or to the one that the
profile in use names.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from kedge.exception import (
    ClientClosed,
    ConnectionError,
    Error,
    ExecutionError,
    InvalidError,
    NotFoundError,
    RemoteError,
)
from kedge.model.ids import APP, deployment_id
from kedge.model.payload import INIT_FAILURE, ErrorInfo
from kedge.model.protocol import ROLLING, STRATEGIES, AppCreated, AppDeployed, AppStopped, FunctionRequested
from kedge.model.spec import AppSpec, FunctionSpec
from kedge.sdk import client as client_module
from kedge.sdk import (
    config,
    context,
    image_builds,
    output,
    secret,
    serializer,
    server_process,
    shipping,
    snapshot,
    validation,
    volume_mounts,
)
from kedge.sdk.client import Client
from kedge.sdk.output_feed import OutputFeed
from kedge.sdk.server_process import Early, ServerProcess

if TYPE_CHECKING:
    from kedge.sdk.app import App

log = logging.getLogger("kedge")

STOP_S = 40.0
"""Seconds in which an app must have stopped: its containers have 10 for their exit hooks."""


class RunningApp:
    """An app on a server. `close` ends it, unless it was detached."""

    def __init__(self, app: App, app_id: str, session: Session, feed: OutputFeed | None, detach: bool) -> None:
        self.app = app
        self.app_id = app_id
        self.client = session.client
        self._session = session
        self._feed = feed
        self._detach = detach
        self._closed = False
        self._process = os.getpid()

    def close(self) -> None:
        """Stops the app: what waits or runs is cancelled, exit hooks run, output is shown to its end.

        A server that is gone already is no error here. In a forked child nothing happens: the app is its parent's.
        """
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        try:
            if self._feed is not None:
                self._feed.count()
            if not self._detach:
                self.client.apps.pop(self.app_id, None)
                self.client.request(lambda number: AppStopped(self.app_id, number, "its program has ended"), STOP_S)
        except Error as error:
            log.warning("the app %s could not be stopped in order: %s", self.app_id, error)
        finally:
            self.app.stopped()
            try:
                if self._feed is not None:
                    self._feed.close()
            finally:
                self._session.leave()

    async def close_async(self) -> None:
        """`close` for event loops."""
        await asyncio.to_thread(self.close)


def run_app(
    app: App, *, detach: bool = False, name: str | None = None, environment_name: str | None = None
) -> RunningApp:
    """Creates the app on a server: when this returns, its functions can be called.

    Args:
        app: What was declared.
        detach: The app goes on without this process, on the machine's server.
        name: Another name for this run.
        environment_name: Whose names its code looks up.

    Raises ConnectionError where no server can be reached or started, and what the declarations get refused for.
    """
    environment = config.environment(environment_name)
    parcel = pack(app, name or app.name or snapshot.program_name(), environment)
    session = Session.join(machine=detach)
    feed = None
    try:
        spec = session.with_secrets(session.address(parcel, ephemeral=not detach))
        sink = output.current()
        if sink is not None:
            feed = OutputFeed(session.client, spec.app, sink)
        spec = image_builds.built(session.client, spec)
        created = AppCreated(session.client.link().registry.next_request(), spec)
        answer = session.client.request(lambda number: AppCreated(number, spec))
        if sink is not None:
            _say_addresses(session.client, answer.get("labels", {}))
            for note in answer.get("notes", ()):
                _say(note)
        if not detach:
            session.client.apps[spec.app] = created
    except BaseException:
        if feed is not None:
            feed.close()
        session.leave()
        raise
    app.started(spec.app)
    return RunningApp(app, spec.app, session, feed, detach)


async def run_app_async(
    app: App, *, detach: bool = False, name: str | None = None, environment_name: str | None = None
) -> RunningApp:
    """`run_app` for event loops."""
    return await asyncio.to_thread(run_app, app, detach=detach, name=name, environment_name=environment_name)


# ---------------------------------------------------------------- deploying


class Deployed(Struct, frozen=True, kw_only=True):
    """A version that serves."""

    app: str
    """Id of the deployment."""
    name: str
    environment: str
    version: int
    labels: dict[str, str]
    """By name of function or Class.method: where it answers requests."""
    web: str = ""
    """In front of the labels: `http://127.0.0.1:5334`."""
    web_domain: str = ""
    """Behind them: `localhost:5334`."""
    unproved: tuple[str, ...] = ()
    """Functions for which there was no room, so that nobody knows whether they start."""
    notes: tuple[str, ...] = ()
    """What else its owner should know."""
    functions: tuple[FunctionSpec, ...] = ()
    server: str = ""
    """Address of the server that it is on."""


def deploy_app(
    app: App,
    *,
    name: str | None = None,
    environment_name: str | None = None,
    tag: str = "",
    strategy: str = ROLLING,
) -> Deployed:
    """Makes the app the current version of its deployment; see `App.deploy`. Notices say how it goes."""
    if context.container() is not None:
        raise ExecutionError(
            f"{app} is deployed or runs already: this is one of its containers, which imports the file. Put "
            "app.deploy() under `if __name__ == '__main__':`"
        )
    if app.runs:
        raise ExecutionError(f"{app} runs; leave its `with app.run():` before you deploy it")
    chosen = name or app.name
    if chosen is None:
        raise InvalidError("a deployed app is found by its name: write kedge.App('NAME'), or app.deploy(name='NAME')")
    validation.name("deploy: name", chosen)
    if strategy not in STRATEGIES:
        raise InvalidError(f"deploy: strategy is one of {', '.join(STRATEGIES)}, not {strategy!r}")
    if tag:
        validation.name("deploy: tag", tag)
    parcel = pack(app, chosen, config.environment(environment_name))
    session = Session.join(machine=True)
    feed = None
    try:
        spec = structs.replace(session.with_secrets(session.address(parcel, ephemeral=False)), tag=tag)
        spec = image_builds.built(session.client, spec)
        sink = output.current()
        if sink is not None and sink.progress_interval:  # who shows progress sees how the version comes up
            deployment = deployment_id(spec.environment_name, spec.name)
            feed = OutputFeed(session.client, deployment, sink, counted=spec.app)
        deployed = session.deploy(spec, strategy)
    finally:
        if feed is not None:
            feed.close()
        session.leave()
    app.deployed(deployed.app, deployed.version)
    return deployed


def stop_app(app: App) -> None:
    """Ends the app where it runs or is deployed."""
    id = app.app_id
    if id is None:
        raise ExecutionError(f"{app} neither runs nor is deployed; kedge.App.lookup({app.name!r}) finds a deployed app")
    Client.current().request(lambda number: AppStopped(id, number, "stopped by App.stop()"), STOP_S)
    if app.runs:
        app.stopped()


def find_app(name: str, environment_name: str | None = None, create: bool = False) -> App:
    """The handle of a deployed app; see `App.lookup`."""
    from kedge.sdk.app import App
    from kedge.sdk.late import not_found

    validation.name("App.lookup: name", name)
    environment = config.environment(environment_name)
    app = App(name)
    try:
        found = Client.current().request(lambda n: FunctionRequested(n, app=name, environment=environment))
    except NotFoundError as error:
        if not create:
            raise not_found(error, name) from None
        deploy_app(app, environment_name=environment)
    else:
        app.deployed(found["app"], found["version"])
    return app


# ---------------------------------------------------------------- what is sent


def pack(app: App, name: str, environment: str) -> AppSpec:
    """An app as it was declared, with its code as it lies in our state directory."""
    specs = app.function_specs()
    code = snapshot.take(specs, server_process.home(), app.include_source)
    if code.main:
        serializer.ship_main()
    functions = image_builds.bound(specs, code, server_process.home(), environment)
    around = snapshot.environment()
    return AppSpec(
        app=f"{APP}-{secrets.token_hex(8)}",
        name=name,
        functions=functions,
        code=code,
        environment=structs.replace(around, variables=secret.without(around.variables, functions)),
        environment_name=environment,
        isolation=app.isolation,
    )


def _say(text: str) -> None:
    log.info(text)
    sink = output.current()
    if sink is not None:
        sink.notice(text)


def not_deployed(error: ErrorInfo) -> Exception:
    """Why a version does not serve, as the server says it; what a container raised is its cause."""
    raised = serializer.to_exception(error, INIT_FAILURE)
    if isinstance(raised, Error) and error.payload is None:
        return raised
    refused = RemoteError(error.message)
    refused.__cause__ = raised
    return refused


def _say_addresses(client: Client, labels: dict[str, str]) -> None:
    """Where the web functions of a run answer."""
    web = client.greeting(client.link().welcome).web if labels else ""
    for name, label in labels.items() if web else ():
        _say(f"{name} answers at {web}/{label}/")


class Session:
    """A client, with the server behind it where that is ours, shared by the apps that run at the same time."""

    _mutex = threading.Lock()
    _open: list[Session] = []

    def __init__(self, client: Client, server: ServerProcess | None) -> None:
        self.client = client
        self._server = server
        self._users = 1

    @classmethod
    def join(cls, machine: bool) -> Session:
        """The session in use, or a new one. `machine`: a private server will not do."""
        with cls._mutex:
            for session in reversed(cls._open):
                if not (machine and session._server is not None):
                    session._users += 1
                    return session
            session = cls._start(machine)
            cls._open.append(session)
            client_module.use(session.client)
            return session

    def leave(self) -> None:
        """The last one closes the connection, and lets a private server go."""
        with self._mutex:
            self._users -= 1
            if self._users:
                return
            self._open.remove(self)
        try:
            self.client.close()
        finally:
            if self._server is not None:
                self._server.close()

    @property
    def private(self) -> bool:
        """Whether the server is this program's own."""
        return self._server is not None

    def address(self, parcel: AppSpec, *, ephemeral: bool) -> AppSpec:
        """What was packed, for this server: with code and files that it finds, and an environment that there is."""
        code = shipping.at_server(self.client, parcel.code, private=self.private)
        return structs.replace(
            parcel,
            functions=image_builds.at_server(self.client, parcel.functions, parcel.code, code),
            code=code,
            environment=shipping.environment(self.client, parcel.environment),
            ephemeral=ephemeral,
        )

    def with_secrets(self, spec: AppSpec) -> AppSpec:
        """The spec with the ids that secrets of this process have at the server: it gets their values here. Its volumes
        are there from now on."""
        volume_mounts.provide(self.client, spec)
        return structs.replace(spec, functions=secret.bind_specs(spec.functions, secret.keeper(self.client)))

    def deploy(self, spec: AppSpec, strategy: str = ROLLING) -> Deployed:
        """Sends a new version and waits until it serves. Raises why it does not."""
        client = self.client
        answer = client.link().request(lambda number: AppDeployed(number, spec, strategy), None, not_deployed)
        labels: dict[str, str] = answer["labels"]
        welcome = client.greeting(client.link().welcome) if labels else client.link().welcome
        return Deployed(
            app=answer["app"],
            name=spec.name,
            environment=spec.environment_name,
            version=answer["version"],
            labels=labels,
            web=welcome.web,
            web_domain=welcome.web_domain,
            unproved=tuple(answer.get("unproved", ())),
            notes=tuple(answer.get("notes", ())),
            functions=spec.functions,
            server=client.address,
        )

    @classmethod
    def _start(cls, machine: bool) -> Session:
        found = _connected()
        if found is not None:
            return cls(found, None)
        try:
            server = (None if machine else Early.take()) or ServerProcess(private=not machine)
        except ConnectionError:
            found = _connected() if machine else None
            if found is None:
                raise
            return cls(found, None)  # somebody else has just started it
        try:
            client = Client.connect(server.address.address, server.address.token)
        except BaseException:
            server.close()
            raise
        if machine:
            _say("started the server of this machine; it stays, and `kedge server stop` ends it")
            for note in server.facts.get("notes", ()):
                _say(note)
            return cls(client, None)
        client.lost = server.gone
        return cls(client, server)


def _connected() -> Client | None:
    """A connection to the server in use; None where the machine's does not run."""
    found = server_process.find()
    if found is None:
        return None
    try:
        return Client.connect(found.address, found.token, found.tls_ca, found.token_of)
    except (ConnectionError, ClientClosed) as error:
        if found.named:
            raise ConnectionError(f"{error} ({found.named} names it)") from error
        return None
