"""What `kedge image` does. Images are files of this machine: only building asks a server."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import click

from kedge.cli import failures, interrupt, tables
from kedge.cli.confirm import confirmed
from kedge.cli.deploy import default_name, load_app
from kedge.cli.display import Display, display_for
from kedge.cli.progress import plural, seconds
from kedge.cli.reference import ImportFailed, Reference
from kedge.cli.tables import Column, Facts
from kedge.exception import Error, NotFoundError
from kedge.images import prune as pruning
from kedge.images.builder import RUNTIMES
from kedge.images.store import Store
from kedge.sdk import config, image_builds, output, runner, server_process
from kedge.sdk.app import App
from kedge.sdk.runner import Session
from kedge.server.register import stored_images

OK, FAILED, NOT_STARTED = 0, 1, 2
NOTHING = "No image is built. `kedge image build app.py` builds those of an app, and so do run, serve and deploy."

LIST = (
    Column("id", lambda image: image["id"]),
    Column("name", lambda image: ", ".join(image["names"]) or tables.NONE),
    Column("python", lambda image: image["python"] or tables.NONE),
    Column("packages", lambda image: tables.count(image["packages"]), right=True),
    Column("size", lambda image: tables.size(image["size_bytes"]), right=True),
    Column("built", lambda image: tables.when(image["built_at"])),
    Column("used", lambda image: tables.yes(image["used"])),
    Column("steps", lambda image: " → ".join(image["steps"])),
)


def store() -> Store:
    return Store(Path(server_process.home()))


def show_list(as_json: bool) -> None:
    images = store()
    tables.show(pruning.listed(images, used_by_servers(images)), LIST, as_json=as_json, empty=NOTHING)


def used_by_servers(images: Store) -> set[str]:
    """Those that deployed apps have, also while the machine's server is stopped, and those on which a server has a
    lock: apps of it have them."""
    found = stored_images(Path(server_process.home()) / "server" / "state.db")
    for built in images.images():
        path = images.turns / built.image.id
        try:
            with open(path, "rb") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            continue
        except BlockingIOError:
            found.add(built.image.id)
    return found


# ---------------------------------------------------------------- building


def build(text: str, is_module: bool, environment: str | None, force: bool, alias_modal: bool) -> int:
    """Builds the images of an app; gives the exit code. click.UsageError where that cannot be done as written."""
    with interrupt.handled() as interrupts:
        try:
            reference = Reference(text, is_module, "kedge image build")
            app = load_app(reference, alias_modal)
            name = app.name or default_name(reference)
            display = display_for(name)
            interrupts.on_second = display.abandon
            if force:
                os.environ[f"KEDGE_{image_builds.FORCE}"] = "1"
            return _build(app, name, config.environment(environment), display)
        except ImportFailed as failed:
            failures.print_import_failure(failed, "nothing was built")
            return NOT_STARTED
        except KeyboardInterrupt:
            click.echo("Stopped: what was built to the end stays, the rest is gone.", err=True)
            return interrupt.EXIT_CODE


def _build(app: App, name: str, environment: str, display: Display) -> int:
    began = time.monotonic()
    try:
        with display.shown(), output.show_on(display):
            found = images_of(app, name, environment)
    except Error as error:
        click.echo(f"Error: {error}", err=True)
        return FAILED
    if not found:
        click.echo(f"{name} has no image: its functions run as this program does.", err=True)
        return OK
    for id, functions in found.items():
        print(f"{id}  {', '.join(functions)}")
    what = "The image is" if len(found) == 1 else f"{len(found)} images are"
    click.echo(f"{what} there after {seconds(time.monotonic() - began)}.", err=True)
    return OK


def images_of(app: App, name: str, environment: str) -> dict[str, list[str]]:
    """The ids of an app's images, each with the functions that use it; all of them are built when this returns."""
    parcel = runner.pack(app, name, environment)
    session = Session.join(machine=True)
    try:
        spec = image_builds.built(session.client, session.address(parcel, ephemeral=False))
    finally:
        session.leave()
    found: dict[str, list[str]] = {}
    for function in spec.functions:
        if function.image.id:
            found.setdefault(function.image.id, []).append(function.name)
    return found


# ---------------------------------------------------------------- looking, removing


def show_logs(name: str | None) -> None:
    images = store()
    if name is None:
        print(_latest(images).read_text("utf-8", "replace"), end="")
        return
    text = pruning.log_of(images, images.named().get(name, name))
    print(text, end="" if text.endswith("\n") else "\n")


def _latest(images: Store) -> Path:
    logs = images.logs.glob("*.log") if images.logs.is_dir() else ()
    steps = (path for path in logs if path.stem != RUNTIMES)
    found = sorted(steps, key=lambda path: -path.stat().st_mtime)
    if not found:
        raise NotFoundError("no image was built on this machine, so there are no logs")
    return found[0]


def prune(everything: bool, yes: bool, as_json: bool) -> int:
    images = store()
    used = used_by_servers(images)
    named = set(images.named().values())
    unused: list[Facts] = [one for one in pruning.listed(images, used) if not one["used"] and one["id"] not in named]
    question = f"Remove {plural(len(unused), 'image')} that no running or deployed app has?"
    if unused and not confirmed(question, yes):
        click.echo("Nothing was removed.", err=True)
        return 1
    done = pruning.prune(images, used, cache=everything)
    if as_json:
        tables.print_json(done)
        return 0
    freed = tables.size(done["freed_bytes"])
    print(f"Removed {plural(done['images'], 'image')}, freed {freed}; {plural(done['kept'], 'image')} kept.")
    return 0
