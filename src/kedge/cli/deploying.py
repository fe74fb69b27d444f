"""The commands `kedge deploy` and `kedge serve`: their words. What they do is in `deploy` and `serve`."""

from __future__ import annotations

import sys
from typing import Any

import click

from kedge.cli.outcome import clean, not_empty


@click.command("deploy")
@click.option("-m", "is_module", is_flag=True, help="REF is a module (package.module), not a file.")
@click.option("-n", "--name", metavar="NAME", callback=not_empty, help="Name to deploy it under, instead of its own.")
@click.option("--tag", metavar="TEXT", default="", help="A name for this version, such as its commit.")
@click.option(
    "--strategy",
    type=click.Choice(["rolling", "recreate"]),
    default="rolling",
    help="rolling: old containers finish while new ones take what comes. recreate: the old ones go first.",
)
@click.option("-e", "--env", "environment", metavar="NAME", callback=not_empty, help="Environment to deploy it in.")
@click.option("--stream-logs", is_flag=True, help="Go on with what its containers print, until Ctrl-C.")
@click.option("--timestamps", is_flag=True, help="Begin each line of a container with its time.")
@click.option("--no-alias", is_flag=True, help="Let `import modal` mean the package of that name, not kedge.")
@click.argument("ref", metavar="REF")
def deploy_command(ref: str, no_alias: bool, **words: Any) -> None:
    """Let an app live on: its web functions answer and its functions can be called by name, until `kedge app stop`.

    REF is file.py, or file.py::app where the file has several apps. The machine's server is started where none runs.

    \b
        kedge deploy examples/quickstart.py
        kedge deploy app.py --tag v1.2
        kedge deploy -m package.module --name other
    """
    from kedge.cli import deploy

    settings = deploy.Settings(alias_modal=not no_alias, **words)
    sys.exit(clean(lambda: deploy.deploy(ref, settings)))


@click.command("serve")
@click.option("-m", "is_module", is_flag=True, help="REF is a module (package.module), not a file.")
@click.option("-n", "--name", metavar="NAME", callback=not_empty, help="Name of the app, instead of its own.")
@click.option("-e", "--env", "environment", metavar="NAME", callback=not_empty, help="Environment to serve it in.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True), help="End after so long.")
@click.option("--no-reload", is_flag=True, help="Do not watch the files of the app.")
@click.option("--timestamps", is_flag=True, help="Begin each line of a container with its time.")
@click.option("--no-alias", is_flag=True, help="Let `import modal` mean the package of that name, not kedge.")
@click.argument("ref", metavar="REF")
def serve_command(ref: str, no_alias: bool, no_reload: bool, **words: Any) -> None:
    """Let an app answer while you edit it, until Ctrl-C.

    When a file of the app changes, it is imported anew and takes the place of the one that answers: addresses stay,
    and no request is lost. What does not import or does not start is shown, and the version before goes on.

    \b
        kedge serve app.py
        kedge serve -m package.module --timeout 60
    """
    from kedge.cli import serve

    settings = serve.Settings(alias_modal=not no_alias, reload=not no_reload, **words)
    sys.exit(clean(lambda: serve.serve(ref, settings)))
