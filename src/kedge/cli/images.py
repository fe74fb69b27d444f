"""`kedge image`: what is built on this machine, building ahead, what steps have printed, and making room."""

from __future__ import annotations

import click

from kedge.cli.apps import JSON, YES
from kedge.cli.outcome import finish, not_empty


@click.group("image")
def image() -> None:
    """Images: what containers have installed.

    They are built when an app starts that needs them, once, and shared by all apps of this machine.

    \b
        kedge image list
        kedge image build app.py
        kedge image logs im-0123abcd
        kedge image prune
    """


@image.command("list")
@JSON
def image_list(as_json: bool) -> None:
    """List the images that are built on this machine, the latest first.

    The size of an image counts its own files; most of them are shared with other images and with the cache.

    \b
        kedge image list
        kedge image list --json | jq -r '.[].id'
    """
    from kedge.cli import imageviews

    finish(lambda: imageviews.show_list(as_json))


@image.command("build")
@click.option("-m", "is_module", is_flag=True, help="REF is a module (package.module), not a file.")
@click.option("-e", "--env", "environment", metavar="NAME", callback=not_empty, help="Environment of its secrets.")
@click.option("-f", "--force", is_flag=True, help="Build every step anew, with the newest packages that fit.")
@click.option("--no-alias", is_flag=True, help="Let `import modal` mean the package of that name, not kedge.")
@click.argument("ref", metavar="REF")
def image_build(ref: str, is_module: bool, environment: str | None, force: bool, no_alias: bool) -> None:
    """Build the images of an app, without starting it.

    REF is file.py, or file.py::app where the file has several apps. `kedge run`, `serve` and `deploy` do the same by
    themselves. KEDGE_FORCE_BUILD=1 makes them build anew.

    \b
        kedge image build app.py
        kedge image build --force -m package.module
    """
    import sys

    from kedge.cli import imageviews

    sys.exit(imageviews.build(ref, is_module, environment, force, not no_alias))


@image.command("logs")
@click.argument("name", metavar="[IMAGE]", required=False, callback=not_empty)
def image_logs(name: str | None) -> None:
    """Show what the build of an image has printed, step by step.

    IMAGE is its id, which may be shortened, or its name; or the id of a step, as the error of a failed build names it.
    Without it, it is the step that was built last.

    \b
        kedge image logs im-0123abcd
    """
    from kedge.cli import imageviews

    finish(lambda: imageviews.show_logs(name))


@image.command("prune")
@JSON
@click.option("-a", "--all", "everything", is_flag=True, help="Also what was downloaded and no image has any more.")
@YES
def image_prune(as_json: bool, everything: bool, yes: bool) -> None:
    """Remove images that no running or deployed app has, and that have no name.

    What is removed is built again when it is needed, with the same versions of its packages.

    \b
        kedge image prune
        kedge image prune --all --yes
    """
    from kedge.cli import imageviews

    finish(lambda: imageviews.prune(everything, yes, as_json))
