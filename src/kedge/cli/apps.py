"""`kedge app`: what is deployed, and what else runs."""

from __future__ import annotations

from typing import Any

import click

from kedge.cli.logoptions import log_options, show_logs
from kedge.cli.outcome import finish, not_empty

STOP_S = 60.0
"""Seconds until an app must have stopped: containers have 30 for what they run and for their exit hooks."""
DEPLOY_S = 3600.0
"""Seconds that a version may take to come up: as long as its own `startup_timeout` lets it, and no longer than this."""

ENVIRONMENT = click.option(
    "-e", "--env", "environment", metavar="NAME", callback=not_empty, help="Environment of the app (default: main)."
)
JSON = click.option("--json", "as_json", is_flag=True, help="All that is known, as JSON.")
YES = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


@click.group("app")
def app() -> None:
    """Apps: what is deployed, its versions, what else runs.

    \b
        kedge app list
        kedge app history chat
        kedge app rollback chat
        kedge app stop chat
    """


@app.command("list")
@JSON
@click.option("-e", "--env", "environment", metavar="NAME", callback=not_empty, help="Only those of this environment.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that have stopped.")
def app_list(as_json: bool, environment: str | None, everything: bool) -> None:
    """List the apps of the server.

    An app is deployed, or it runs for as long as a program (served, ephemeral) or until it is stopped (detached).

    \b
        kedge app list
        kedge app list --json | jq -r '.[].name'
    """
    from kedge.cli import appviews

    finish(lambda: appviews.show_list(environment, as_json, everything))


@app.command("info")
@JSON
@ENVIRONMENT
@click.argument("name", metavar="APP", callback=not_empty)
def app_info(name: str, environment: str | None, as_json: bool) -> None:
    """Show one app: its version, addresses and functions.

    APP is its name or its id, which may be shortened.

    \b
        kedge app info chat
    """
    from kedge.cli import appviews

    finish(lambda: appviews.show_info(name, environment, as_json))


@app.command("history")
@JSON
@ENVIRONMENT
@click.argument("name", metavar="APP", callback=not_empty)
def app_history(name: str, environment: str | None, as_json: bool) -> None:
    """List the versions of a deployed app, newest first.

    \b
        kedge app history chat
    """
    from kedge.cli import appviews

    finish(lambda: appviews.show_history(name, environment, as_json))


@app.command("rollback")
@ENVIRONMENT
@click.option(
    "--strategy",
    type=click.Choice(["rolling", "recreate"]),
    default="rolling",
    show_default=True,
    help="rolling: the current version serves until the other one is up. recreate: it gives way first.",
)
@click.argument("name", metavar="APP", callback=not_empty)
@click.argument("version", metavar="[VERSION]", required=False, callback=not_empty)
def app_rollback(name: str, version: str | None, strategy: str, environment: str | None) -> None:
    """Bring an earlier version of a deployed app back, as a new version.

    VERSION is a number that `kedge app history` shows; without it, the one before the current version.

    \b
        kedge app rollback chat
        kedge app rollback chat 3
    """
    from kedge.cli import appviews

    finish(lambda: appviews.roll_back(name, version, strategy, environment))


@app.command("stop")
@ENVIRONMENT
@YES
@click.argument("name", metavar="APP", callback=not_empty)
def app_stop(name: str, yes: bool, environment: str | None) -> None:
    """End an app: what waits or runs is cancelled, its addresses answer no more.

    APP is its name or its id, which may be shortened. For a deployed app you are asked first, unless --yes is given;
    where there is no terminal to ask on, --yes is necessary. What only runs (`kedge run --detach`) is stopped at once.

    \b
        kedge app stop chat
        kedge app stop ap-0123abcd
    """
    from kedge.cli import appviews

    finish(lambda: appviews.stop(name, yes, environment))


@app.command("logs")
@ENVIRONMENT
@log_options("app")
@click.argument("name", metavar="APP", callback=not_empty)
def app_logs(name: str, environment: str | None, **words: Any) -> None:
    """Show what the containers of an app have printed, of all its versions.

    The options are those of `kedge logs`.

    \b
        kedge app logs chat --since 1h --grep error
        kedge app logs chat -f
    """

    def show() -> int:
        from kedge.cli import appviews

        return show_logs({**words, "app": appviews.id_for_logs(name, environment)})

    finish(show)
