"""`kedge deploy`: imports the file, makes it the current version of its app, and says where it answers.

Exit codes: 0 it serves; 1 it does not, and what was there before goes on; 2 it could not be tried as written.
"""

from __future__ import annotations

import inspect
import time

import click
from msgspec import Struct
from rich.text import Text

from kedge.cli import created, failures, hints, interrupt
from kedge.cli.display import Display, display_for
from kedge.cli.reference import ImportFailed, Reference, choose_app
from kedge.cli.starting import Starting
from kedge.exception import Error, InvalidError
from kedge.model.protocol import ROLLING
from kedge.model.spec import MAIN_ENVIRONMENT
from kedge.sdk import alias, output, runner, server_process, validation
from kedge.sdk.app import App
from kedge.sdk.client import Client
from kedge.sdk.output_feed import OutputFeed

OK, FAILED, NOT_STARTED = 0, 1, 2


class Settings(Struct, frozen=True, kw_only=True):
    """The options of `kedge deploy`."""

    name: str | None = None
    tag: str = ""
    strategy: str = ROLLING
    environment: str | None = None
    is_module: bool = False
    alias_modal: bool = True
    stream_logs: bool = False
    timestamps: bool = False


def deploy(text: str, settings: Settings) -> int:
    """Deploys what `text` refers to; gives the exit code. click.UsageError where that cannot be done as written."""
    with interrupt.handled() as interrupts:
        try:
            reference = Reference(text, settings.is_module, "kedge deploy")
            app = load_app(reference, settings.alias_modal)
            name = settings.name or app.name or default_name(reference)
            display = display_for(name, timestamps=settings.timestamps)
            interrupts.on_second = display.abandon
            return _deploy(app, name, settings, display)
        except ImportFailed as failed:
            failures.print_import_failure(failed, "nothing was deployed")
            return NOT_STARTED
        except KeyboardInterrupt:
            click.echo("Stopped: nothing was deployed, and what was there before goes on.", err=True)
            return interrupt.EXIT_CODE


def load_app(reference: Reference, alias_modal: bool) -> App:
    """Imports the file and finds its app."""
    if alias_modal:
        alias.install()
    return choose_app(reference, reference.load())


def default_name(reference: Reference) -> str:
    """What an app is called that has no name: as its file. click.UsageError where that cannot be."""
    name = reference.source.rpartition(".")[2] if reference.is_module else inspect.getmodulename(reference.source)
    try:
        return validation.name("the name", name)
    except InvalidError:
        raise click.UsageError(f"{name!r} cannot be the name of an app; give it one: --name.") from None


def _deploy(app: App, name: str, settings: Settings, display: Display) -> int:
    began = time.monotonic()
    try:
        with display.shown(), output.show_on(Starting(display)):
            deployed = runner.deploy_app(
                app,
                name=name,
                environment_name=settings.environment,
                tag=settings.tag,
                strategy=settings.strategy,
            )
    except Error as error:
        failures.print_styled(failures.remote_cause(error))
        click.echo(f"Error: {name} was not deployed: {error}", err=True)
        if hint := hints.on_failure(error.__cause__, app):
            click.echo(f"kedge: {hint}", err=True)
        return FAILED
    took = time.monotonic() - began
    where = "" if deployed.environment == MAIN_ENVIRONMENT else f" in the environment {deployed.environment}"
    title = f"{name}{where}, version {deployed.version}{f' ({settings.tag})' if settings.tag else ''}"
    created.show(created.tree(title, deployed.functions, deployed.labels, deployed.web, deployed.web_domain))
    for unproved in deployed.unproved:
        click.echo(f"kedge: there is no room for {unproved} at the moment: nobody knows whether it starts", err=True)
    for note in deployed.notes:
        click.echo(f"kedge: {note}", err=True)
    environment = f" -e {deployed.environment}" if where else ""
    remote = server_process.elsewhere() is not None
    there = ", where the server runs," if remote else ""
    created.show(
        Text.assemble(
            ("Deployed", "green"),
            (f" in {took:.2f} s. `kedge app logs {name}{environment}`{there} shows what it prints.", "dim"),
        )
    )
    return _follow(deployed, settings) if settings.stream_logs else OK


def _follow(deployed: runner.Deployed, settings: Settings) -> int:
    """Shows what its containers print, until Ctrl-C."""
    display = display_for(deployed.name, timestamps=settings.timestamps)
    with display.shown():
        feed = OutputFeed(Client.current(), deployed.app, display)
        try:
            feed.wait()
            display.notice("the server is gone; the app is there again when it is", "warning")
            return FAILED
        except KeyboardInterrupt:
            return OK
        finally:
            feed.close()
