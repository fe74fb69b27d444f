"""Running an app: find or start a server, ship the code, create the app, and end it all in order.

`kedge run` and `with app.run():` attach to the machine's server where one runs. Otherwise they start a private one,
which ends with this process. Apps that run at the same time share one connection and one server.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
from typing import TYPE_CHECKING

from kedge.exception import ClientClosed, ConnectionError, Error
from kedge.model.ids import APP
from kedge.model.protocol import AppCreated, AppStopped
from kedge.model.spec import AppSpec, FunctionSpec
from kedge.sdk import client as client_module
from kedge.sdk import output, serializer, server_process, snapshot
from kedge.sdk.client import Client
from kedge.sdk.output_feed import OutputFeed
from kedge.sdk.server_process import ServerProcess

if TYPE_CHECKING:
    from kedge.sdk.app import App

log = logging.getLogger("kedge")

STOP_S = 40.0
"""Seconds in which an app must have stopped: its containers have 10 for their exit hooks."""


class RunningApp:
    """An app on a server. `close` ends it, unless it was detached."""

    def __init__(self, app: App, app_id: str, session: _Session, feed: OutputFeed | None, detach: bool) -> None:
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


def run_app(app: App, *, detach: bool = False, name: str | None = None) -> RunningApp:
    """Creates the app on a server: when this returns, its functions can be called.

    Args:
        app: What was declared.
        detach: The app goes on without this process, on the machine's server.
        name: Another name for this run.

    Raises ConnectionError where no server can be reached or started, and what the declarations get refused for.
    """
    specs = app.function_specs()
    code = snapshot.take(specs, server_process.home(), app.include_source)
    if code.main:
        serializer.ship_main()
    app_id = f"{APP}-{secrets.token_hex(8)}"
    spec = AppSpec(
        app=app_id,
        name=name or app.name or snapshot.program_name(),
        functions=specs,
        code=code,
        environment=snapshot.environment(),
        ephemeral=not detach,
    )
    session = _Session.join(machine=detach)
    feed = None
    try:
        sink = output.current()
        if sink is not None:
            feed = OutputFeed(session.client, app_id, sink)
        _say_that_images_are_not_built(specs)
        created = AppCreated(session.client.link().registry.next_request(), spec)
        session.client.request(lambda number: AppCreated(number, spec))
        if not detach:
            session.client.apps[app_id] = created
    except BaseException:
        if feed is not None:
            feed.close()
        session.leave()
        raise
    app.started(app_id)
    return RunningApp(app, app_id, session, feed, detach)


async def run_app_async(app: App, *, detach: bool = False, name: str | None = None) -> RunningApp:
    """`run_app` for event loops."""
    return await asyncio.to_thread(run_app, app, detach=detach, name=name)


def _say_that_images_are_not_built(specs: tuple[FunctionSpec, ...]) -> None:
    names = [spec.name for spec in specs if spec.image.steps]
    if not names:
        return
    text = (
        f"images are not built yet: {', '.join(names)} run in the environment of this program, with the packages that "
        "are installed here"
    )
    log.info(text)
    sink = output.current()
    if sink is not None:
        sink.notice(text)


class _Session:
    """A client, with the server behind it where that is ours, shared by the apps that run at the same time."""

    _mutex = threading.Lock()
    _open: list[_Session] = []

    def __init__(self, client: Client, server: ServerProcess | None) -> None:
        self.client = client
        self._server = server
        self._users = 1

    @classmethod
    def join(cls, machine: bool) -> _Session:
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

    @classmethod
    def _start(cls, machine: bool) -> _Session:
        found = server_process.find()
        if found is not None:
            try:
                return cls(Client.connect(found.address, found.token), None)
            except (ConnectionError, ClientClosed):
                if found.address == os.environ.get("KEDGE_SERVER"):
                    raise
        server = ServerProcess(private=not machine)
        try:
            client = Client.connect(server.address.address, server.address.token)
        except BaseException:
            server.close()
            raise
        if machine:
            return cls(client, None)
        client.lost = server.gone
        return cls(client, server)
