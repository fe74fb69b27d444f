"""`kedge shell`: a shell where a function runs."""

from __future__ import annotations

import click

from kedge.cli.apps import ENVIRONMENT
from kedge.cli.outcome import finish, not_empty


@click.command("shell")
@ENVIRONMENT
@click.option("-c", "--cmd", "command", metavar="COMMAND", callback=not_empty, help="Run this and leave.")
@click.option("-m", "is_module", is_flag=True, help="REF is a module (package.module), not a file.")
@click.argument("ref", metavar="[REF]", required=False, callback=not_empty)
def shell(ref: str | None, command: str | None, is_module: bool, environment: str | None) -> None:
    """Open a shell where a function runs.

    It has the Python, the variables and the directory of a function or of a running container. REF is a container
    (ct-…), a function of a file (file.py::NAME), or one that is deployed (APP.NAME). Without it, it is what a function
    without any settings would find. The shell is $SHELL, and runs on this machine. Where the function has an image, it
    runs within a container of it if there is one. A volume is seen only where REF is a container.

    \b
        kedge shell
        kedge shell app.py::train -c "python -V"
        kedge shell chat.Server
        kedge shell ct-0123
    """
    from kedge.cli import shellviews

    finish(lambda: shellviews.open_shell(ref, command, is_module, environment))
