"""`kedge function`: functions of the apps on a server, their settings, numbers and calls."""

from __future__ import annotations

import click

from kedge.cli.apps import JSON
from kedge.cli.outcome import finish, not_empty

ENVIRONMENT = click.option(
    "-e", "--env", "environment", metavar="NAME", callback=not_empty, help="Only functions of this environment."
)
CALLS = 20


@click.group("function")
def function() -> None:
    """Functions: their settings, numbers and calls.

    A function is written APP.NAME or APP::NAME; NAME alone is enough where only one app has it.

    \b
        kedge function list
        kedge function info chat.Server
        kedge function stats
        kedge function calls chat::summarize
    """


@function.command("list")
@JSON
@ENVIRONMENT
@click.option("--app", metavar="APP", callback=not_empty, help="Only those of this app, by name or id.")
def function_list(app: str | None, environment: str | None, as_json: bool) -> None:
    """List functions and classes.

    \b
        kedge function list --app chat
    """
    from kedge.cli import functionviews

    finish(lambda: functionviews.show_list(app, environment, as_json))


@function.command("info")
@JSON
@ENVIRONMENT
@click.argument("name", metavar="APP[.NAME]", callback=not_empty)
def function_info(name: str, environment: str | None, as_json: bool) -> None:
    """Show settings, addresses, schedule, and the pools of a function; or of all functions of an app.

    \b
        kedge function info chat.Server
        kedge function info chat --json
    """
    from kedge.cli import functionviews

    finish(lambda: functionviews.show_info(name, environment, as_json))


@function.command("stats")
@JSON
@ENVIRONMENT
@click.argument("name", metavar="[APP[.NAME]]", required=False, callback=not_empty)
def function_stats(name: str | None, environment: str | None, as_json: bool) -> None:
    """Show live numbers, a line for each variant: parameters and options give a function several.

    \b
        waiting   inputs without a slot            headroom  free slots of containers that are up
        wait      of inputs for their slot         run       of inputs, in user code
        bursts    inputs that got a slot above target_inputs

    \b
        kedge function stats chat.Server
        watch -n 1 kedge function stats
    """
    from kedge.cli import functionviews

    finish(lambda: functionviews.show_stats(name, environment, as_json))


@function.command("calls")
@JSON
@ENVIRONMENT
@click.option("-n", "--limit", metavar="N", type=click.IntRange(1, 10_000), default=CALLS, show_default=True)
@click.argument("name", metavar="APP.NAME", callback=not_empty)
def function_calls(name: str, limit: int, environment: str | None, as_json: bool) -> None:
    """List recent calls, newest first.

    These are all calls that are not over, and spawned ones (`.spawn`) until their results expire. Results of `.remote`
    and `.map` are not kept, so those calls are gone when they are over; `kedge logs --function NAME` has what they
    printed.

    \b
        kedge function calls chat.summarize
        kedge function calls chat.summarize -n 1000 --json
    """
    from kedge.cli import functionviews

    finish(lambda: functionviews.show_calls(name, limit, environment, as_json))
