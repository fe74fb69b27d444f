"""`kedge container`: what runs, where, and a way into it."""

from __future__ import annotations

from typing import Any

import click

from kedge.cli.apps import JSON
from kedge.cli.logoptions import log_options, show_logs
from kedge.cli.outcome import finish, not_empty

ID = click.argument("container", metavar="CONTAINER", callback=not_empty)


@click.group("container")
def container() -> None:
    """Containers: what runs, and a way into it.

    CONTAINER is an id (ct-…), its beginning, or its end as lines of the log show it.

    \b
        kedge container list
        kedge container logs ct-0123
        kedge container exec ct-0123 -- python -c "import torch; print(torch.__version__)"
        kedge container stop ct-0123
    """


@container.command("list")
@JSON
@click.option("--app", metavar="APP", callback=not_empty, help="Only those of this app, by name or id.")
def container_list(app: str | None, as_json: bool) -> None:
    """List containers.

    \b
        kedge container list --app chat
    """
    from kedge.cli import containerviews

    finish(lambda: containerviews.show_list(app, as_json))


@container.command("stop")
@click.option("--force", is_flag=True, help="End it at once; what runs in it runs again elsewhere.")
@ID
def container_stop(container: str, force: bool) -> None:
    """End a container. It takes nothing new, finishes what it runs, and leaves; another takes its place when needed.

    \b
        kedge container stop ct-0123
        kedge container stop --force ct-0123
    """
    from kedge.cli import containerviews

    finish(lambda: containerviews.stop(container, force))


@container.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@ID
@click.argument("command", metavar="-- COMMAND...", nargs=-1, type=click.UNPROCESSED, required=True)
def container_exec(container: str, command: tuple[str, ...]) -> None:
    """Run a command as the code of a container runs: with its Python, its variables, its directory, its devices.

    It is a process beside the container, on this machine. Its exit code is the one of this command.

    \b
        kedge container exec ct-0123 -- python -m pip list
        kedge container exec ct-0123 -- bash
    """
    from kedge.cli import containerviews

    finish(lambda: containerviews.execute(container, command))


@container.command("logs")
@log_options("container")
@ID
def container_logs(container: str, **words: Any) -> None:
    """Show what a container has printed, also after its end.

    The options are those of `kedge logs`.

    \b
        kedge container logs ct-0123 --grep error
    """
    finish(lambda: show_logs({**words, "container": container}))
