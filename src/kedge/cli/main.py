"""The command `kedge`. Commands import what they need when they run, so that help and mistakes are answered at once."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from pathlib import Path
from typing import Any

import click

from kedge._version import __version__
from kedge.cli import (
    apps,
    containers,
    deploying,
    doctor,
    functions,
    images,
    interrupt,
    objects,
    profiles,
    secret,
    servers,
    shell,
    tokens,
    volumes,
)
from kedge.cli.logoptions import log_options, show_logs
from kedge.cli.outcome import finish, not_empty


class Commands(click.Group):
    """Ctrl-C before a command has its own answer to it ends the program, without a word and as shells expect."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(interrupt.EXIT_CODE)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="kedge", message="%(prog)s %(version)s")
def main() -> None:
    """Serverless Python without a cloud: functions in containers that take many inputs at once."""
    open_closed_streams()
    atexit.register(gc.freeze)  # at the end, nobody needs to look for garbage in all that was loaded


def open_closed_streams() -> None:
    """A program may be started without stdin, stdout or stderr (`>&-`). What it would print there goes nowhere, and no
    socket gets the number of such a stream, which child processes would take for one."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
            path: int | str = os.devnull  # somebody else has the number by now
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(nowhere, number)
                os.close(nowhere)
            path = number
        setattr(sys, name, open(path, "w" if number else "r", closefd=isinstance(path, str)))  # noqa: SIM115


@main.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-m", "is_module", is_flag=True, help="REF is a module (package.module), not a file.")
@click.option("-q", "--quiet", is_flag=True, help="Show neither progress nor what containers print.")
@click.option("-d", "--detach", is_flag=True, help="Leave the app running on this machine's server.")
@click.option("-n", "--name", metavar="NAME", help="Name of the app for this run.")
@click.option(
    "-e",
    "--env",
    "environment",
    metavar="NAME",
    callback=not_empty,
    help="Environment that names are looked up in.",
)
@click.option(
    "-w",
    "--write-result",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the returned str or bytes to a file.",
)
@click.option("--timestamps", is_flag=True, help="Begin each line of a container with its time.")
@click.option("--no-alias", is_flag=True, help="Let `import modal` mean the package of that name, not kedge.")
@click.argument("ref", metavar="REF")
@click.argument("arguments", metavar="[ARGUMENTS]...", nargs=-1, type=click.UNPROCESSED)
def run_command(
    is_module: bool,
    quiet: bool,
    detach: bool,
    name: str | None,
    environment: str | None,
    write_result: Path | None,
    timestamps: bool,
    no_alias: bool,
    ref: str,
    arguments: tuple[str, ...],
) -> None:
    """Run a local entrypoint, a function or a method.

    REF is file.py, or file.py::NAME where the file has several things to run; a method is file.py::Class.method.
    Options of this command stand before REF. What follows it goes to the program: its options come from the signature,
    and `kedge run file.py --help` shows them.

    \b
        kedge run examples/quickstart.py
        kedge run script.py::square --x 12
        kedge run -m package.module::main --no-cache
    """
    from kedge.sdk.server_process import Early

    # What is imported here and by the program takes its time while the server starts.
    with contextlib.nullcontext() if detach else Early():
        from kedge.cli import run

        settings = run.Settings(
            is_module=is_module,
            quiet=quiet,
            detach=detach,
            name=name,
            environment=environment,
            write_result=write_result,
            timestamps=timestamps,
            alias_modal=not no_alias,
        )
        sys.exit(run.run(ref, arguments, settings))


@main.command("logs")
@log_options()
@click.argument("app", metavar="[APP]", callback=not_empty, required=False)
def logs_command(**words: Any) -> None:
    """Show what containers have printed, also after their run has ended.

    APP is the id of one run, or the name of an app for all its runs; without it, it is the app that wrote last. Without
    a filter the last 100 lines are shown, with one all that fit.

    \b
        kedge logs
        kedge logs --input in-0123abcd-7
        kedge logs demo --since 1h --grep "error|warning"
        kedge logs -f
    """
    finish(lambda: show_logs(words))


for command in (
    deploying.deploy_command,
    deploying.serve_command,
    servers.server,
    apps.app,
    containers.container,
    functions.function,
    images.image,
    shell.shell,
    doctor.doctor,
    secret.secret,
    objects.dicts,
    objects.queues,
    volumes.volume,
    tokens.token,
    profiles.profile,
    profiles.configuration,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
