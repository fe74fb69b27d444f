"""`kedge serve`: an app that answers while its files are edited.

This program holds the session that the served app lives in, and sends a version of it for each change; a fresh process
imports the file (`importing`), another thread looks for changes (`watching`). What happens comes as events on one
queue, and the main thread acts on them in turn. A newer change always wins: it ends an import that is under way, and
the server drops a version that is still being tried.

Exit codes: 0 after Ctrl-C or --timeout; 1 where no change of a file could make it served, or with --no-reload, where it
cannot be; 2 where it could not be tried as written.
"""

from __future__ import annotations

import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import click
from msgspec import Struct, structs

from kedge.cli import created, failures, interrupt
from kedge.cli.display import STOPPING, Display, display_for
from kedge.cli.importing import Import, Order, Parcel
from kedge.cli.reference import Reference
from kedge.cli.watching import State, Watched
from kedge.exception import (
    AuthError,
    ClientClosed,
    ConflictError,
    ConnectionError,
    Error,
    PermissionDeniedError,
    VersionError,
)
from kedge.model.ids import APP, deployment_id
from kedge.model.protocol import AppStopped
from kedge.model.spec import AppSpec
from kedge.sdk import config, image_builds, output, validation
from kedge.sdk.calls import Pending
from kedge.sdk.output_feed import OutputFeed
from kedge.sdk.runner import STOP_S, Deployed, Session
from kedge.sdk.secret import adopt

OK, FAILED, NOT_STARTED = 0, 1, 2
AGAIN_S = 1.0
"""Seconds until another try where the server still thinks that our lost connection serves the app."""
TRIES_AGAIN = 20
NOT_OF_THE_FILE = (ConflictError, AuthError, PermissionDeniedError, VersionError, ConnectionError, ClientClosed)
"""Refusals of a first version that no change of a file can cure, such as a name that another program serves."""


class Settings(Struct, frozen=True, kw_only=True):
    """The options of `kedge serve`."""

    name: str | None = None
    environment: str | None = None
    timeout: float | None = None
    reload: bool = True
    is_module: bool = False
    alias_modal: bool = True
    timestamps: bool = False


def serve(text: str, settings: Settings) -> int:
    """Serves what `text` refers to, until Ctrl-C; gives the exit code."""
    Reference(text, settings.is_module, "kedge serve")  # misspelled ones are refused here
    if settings.name is not None:
        validation.name("--name", settings.name)
    with interrupt.handled() as interrupts:
        display = display_for(text, timestamps=settings.timestamps)
        interrupts.on_first = lambda: display.interrupted(STOPPING)
        interrupts.on_second = display.abandon
        with display.shown(), output.show_on(display):
            serving = Serving(text, settings, display)
            try:
                code = serving.run()
            except KeyboardInterrupt:
                code = OK
            finally:
                serving.close()
        if code != NOT_STARTED:
            display.finish("Stopped" if code == OK else "Failed")
        return code


class Serving:
    """The time in which an app is served. What comes from threads is a function to call on the main one."""

    def __init__(self, text: str, settings: Settings, display: Display) -> None:
        self._text = text
        self._settings = settings
        self._display = display
        self._order = Order(
            ref=text,
            is_module=settings.is_module,
            alias_modal=settings.alias_modal,
            name=settings.name,
            environment=config.environment(settings.environment),
        )
        self._events: queue.SimpleQueue[Callable[[], int | None]] = queue.SimpleQueue()
        self._number = 0
        """Of the newest change: what concerns an older one is of no interest any more."""
        self._changed_at = 0.0
        self._import: Import | None = None
        self._watched = Watched()
        self._before: State = {}
        self._watch_over = threading.Event()
        self._connection: Connection | None = None
        self._serves: AppSpec | None = None
        """What is served."""
        self._labels: dict[str, str] = {}
        """Where it answers, as far as that was shown."""
        self._tries = 0

    def run(self) -> int:
        """Serves until the time is over. The exit code."""
        limit = self._settings.timeout
        deadline = None if limit is None else time.monotonic() + limit
        self._changed()
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return OK
            try:
                event = self._events.get(timeout=left)
            except queue.Empty:
                continue
            code = event()
            if code is not None:
                return code

    def close(self) -> None:
        """Ends the app, and all that was begun."""
        self._watch_over.set()
        if self._import is not None:
            self._import.stop()
        if self._connection is not None:
            self._connection.close()

    # ------------------------------------------------------------ what happens

    def _changed(self) -> None:
        """There is something new to import."""
        self._number += 1
        number = self._number
        self._changed_at = time.monotonic()
        if self._import is not None:
            self._import.stop()
        self._import = Import(
            self._order, lambda parcel: self._events.put(lambda: self._imported(number, parcel)), _print_on
        )

    def _imported(self, number: int, parcel: Parcel) -> int | None:
        if number != self._number:
            return None
        self._import = None
        if self._settings.reload:
            self._watch(parcel)
        if parcel.app is None:
            return self._not_imported(parcel)
        adopt(parcel.secrets)
        self._send(number, parcel.app)
        return None

    def _not_imported(self, parcel: Parcel) -> int | None:
        first = self._connection is None
        if parcel.misused and first:
            click.echo(f"Error: {parcel.error}", err=True)
            return NOT_STARTED
        self._display.error(failures.styled(f"{parcel.traceback}Error: {parcel.error}"))
        return self._goes_on()

    def _goes_on(self) -> int | None:
        """Something did not work: what is served goes on, and the next change may repair it."""
        if not self._settings.reload:
            return FAILED
        if self._serves is None:
            self._display.notice("nothing is served yet; waiting for a change", "warning")
        else:
            self._display.notice("the version before goes on serving; waiting for a change", "warning")
        return None

    def _send(self, number: int, app: AppSpec) -> None:
        """Has the server try a version, and hears of it later."""
        if self._connection is not None and self._connection.name != app.name:
            self._connection.close()
            self._connection = None
        if self._connection is None:
            self._connection = Connection(app, self._display, self._events, self._lost, self._is_back)
        connection = self._connection

        def wait() -> None:
            try:
                deployed = connection.deploy(app)
            except Exception as error:
                failure = error
                self._events.put(lambda: self._refused(number, app, failure))
            else:
                self._events.put(lambda: self._accepted(number, app, deployed))

        threading.Thread(target=wait, name="kedge-deploy", daemon=True).start()

    def _accepted(self, number: int, app: AppSpec, deployed: Deployed) -> None:
        first, self._serves, self._tries = self._serves is None, app, 0
        if number != self._number:
            return
        took = f"{time.monotonic() - self._changed_at:.2f} s"
        for unproved in deployed.unproved:
            self._display.notice(f"there is no room for {unproved} at the moment: nobody knows whether it starts")
        for note in deployed.notes if first else ():
            self._display.notice(note)
        before, self._labels = self._labels, dict(deployed.labels)
        if not first:
            self._display.notice(f"{app.name} is replaced, {took} after the change")
            for name, label in deployed.labels.items():
                if before.get(name) != label:
                    self._display.notice(f"{name} answers at {deployed.web}/{label}/")
            return
        title = f"{deployed.name}, served until Ctrl-C"
        created.show(created.tree(title, app.functions, deployed.labels, deployed.web, deployed.web_domain))
        if any(function.schedule is not None for function in app.functions):
            self._display.notice("schedules run only when the app is deployed (`kedge deploy`)")
        watching = "; it is replaced when its files change" if self._settings.reload else ""
        self._display.notice(f"{app.name} is served after {took}{watching}")

    def _refused(self, number: int, app: AppSpec, error: Exception) -> int | None:
        if number != self._number:
            return None
        if isinstance(error, ConflictError) and 0 < self._tries < TRIES_AGAIN:
            # The server has not noticed yet that the connection before this one is gone.
            self._tries += 1
            threading.Timer(AGAIN_S, lambda: self._events.put(lambda: self._again(number, app))).start()
            return None
        if not isinstance(error, Error):
            raise error
        self._display.error(failures.styled(f"{failures.remote_cause(error)}Error: {error}"))
        if isinstance(error, NOT_OF_THE_FILE) and (self._serves is None or self._tries):
            return FAILED
        return self._goes_on()

    # ------------------------------------------------------------ a server that goes away

    def _is_back(self) -> None:
        """The connection was lost, the app with it, and another one is there: everything once more."""
        if self._serves is not None:
            self._tries = 1
            self._again(self._number, self._serves)

    def _again(self, number: int, app: AppSpec) -> None:
        if number == self._number:
            self._send(number, structs.replace(app, app=f"{APP}-{secrets.token_hex(8)}"))

    def _lost(self, error: Exception) -> int:
        self._display.error(failures.styled(f"Error: {error}"))
        return FAILED

    # ------------------------------------------------------------ watching

    def _watch(self, parcel: Parcel) -> None:
        """Waits for changes of what was imported; after a failure also of what may have been missed."""
        found = Watched(parcel.sources, parcel.packages)
        self._watched = found if parcel.app is not None else self._watched.extended(found, loosely=True)
        self._look(self._watched.since(self._before))

    def _look(self, before: State) -> None:
        """From now on a thread waits until the files do not look like that any more."""
        self._watch_over.set()
        over, watched = threading.Event(), self._watched
        self._watch_over = over

        def look() -> None:
            state = watched.wait(before, over)
            if state is not None:
                self._events.put(lambda: self._seen(over, state))

        threading.Thread(target=look, name="kedge-watch", daemon=True).start()

    def _seen(self, over: threading.Event, state: State) -> None:
        if over.is_set():
            return
        self._before = state
        self._display.notice("files have changed")
        self._changed()
        self._look(state)


def _print_on(line: str) -> None:
    """What the user's code prints while it is imported: above the live lines, where there are any."""
    sys.stdout.write(line)
    sys.stdout.flush()


class Connection:
    """The session that the served app belongs to, with its output, for as long as it is served."""

    def __init__(
        self,
        app: AppSpec,
        display: Display,
        events: queue.SimpleQueue[Callable[[], Any]],
        lost: Callable[[Exception], Any],
        back: Callable[[], Any],
    ) -> None:
        self.name = app.name
        self._app = deployment_id(app.environment_name, app.name, True)
        self._display = display
        self._session = Session.join(machine=False)
        try:
            self._feed = OutputFeed(self._session.client, self._app, display)
        except BaseException:
            self._session.leave()
            raise
        self._watch = _Watch(events, lost, lambda: self._is_back(back))
        link = self._session.client.link()
        link.registry.calls[_WATCH] = self._watch
        threading.Thread(target=link.wait, args=(self._watch,), name="kedge-session", daemon=True).start()

    def deploy(self, app: AppSpec) -> Deployed:
        """Makes this the version that is served. Raises why it cannot."""
        spec = self._session.with_secrets(self._session.address(app, ephemeral=True))
        return self._session.deploy(image_builds.built(self._session.client, spec))

    def close(self) -> None:
        client = self._session.client
        link = client.link()
        link.registry.calls.pop(_WATCH, None)
        self._watch.over = True
        try:
            self._feed.count()
            client.request(lambda number: AppStopped(self._app, number, "it is not served any more"), STOP_S)
        except Error:
            pass  # the server is gone: then the app is, too
        finally:
            link.wake(self._watch)
            self._feed.close()
            self._session.leave()

    def _is_back(self, back: Callable[[], Any]) -> Any:
        self._feed.close()
        self._feed = OutputFeed(self._session.client, self._app, self._display)
        return back()


_WATCH = "serve"


class _Watch(Pending):
    """Hears on the session's connection that it is lost for good, or was made again."""

    __slots__ = ("_back", "_events", "_lost", "over")

    def __init__(
        self,
        events: queue.SimpleQueue[Callable[[], Any]],
        lost: Callable[[Exception], Any],
        back: Callable[[], Any],
    ) -> None:
        super().__init__()
        self._events = events
        self._lost = lost
        self._back = back
        self.over = False

    def fail(self, failure: Exception) -> None:
        if not self.over:
            self._events.put(lambda: self._lost(failure))
        super().fail(failure)

    def resend(self) -> list[Any]:
        self._events.put(self._back)
        return []
