"""The command `kedge`. Commands import what they need when they run, so that help and mistakes are answered at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kedge._version import __version__
from kedge.cli import interrupt


class Commands(click.Group):
    """Ctrl-C before a command has its own answer to it ends the program, without a word and as shells expect."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(interrupt.EXIT_CODE)


def not_empty(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """An empty text is nearly always a variable of a script that was not set, and would select everything."""
    if value == "":
        raise click.BadParameter("it is empty; leave the option out, or give it something to look for.")
    return value


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="kedge", message="%(prog)s %(version)s")
def main() -> None:
    """Serverless Python without a cloud: functions in containers that take many inputs at once."""
    open_closed_streams()


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
    from kedge.cli import run

    settings = run.Settings(
        is_module=is_module,
        quiet=quiet,
        detach=detach,
        name=name,
        write_result=write_result,
        timestamps=timestamps,
        alias_modal=not no_alias,
    )
    sys.exit(run.run(ref, arguments, settings))


@main.command("logs")
@click.option(
    "--input", callback=not_empty, metavar="ID", help="Lines of this input: in-…, or its end as lines show it."
)
@click.option("--call", callback=not_empty, metavar="ID", help="Lines of all inputs of this call.")
@click.option("--function", callback=not_empty, metavar="NAME", help="Lines of this function, class or Class.method.")
@click.option("--container", callback=not_empty, metavar="ID", help="Lines of this container.")
@click.option(
    "--since", callback=not_empty, metavar="WHEN", help="Not before this: 10m, 2h, 1d, 14:30, 2026-01-31T14:30."
)
@click.option("--until", callback=not_empty, metavar="WHEN", help="Not after this.")
@click.option("--grep", metavar="REGEX", help="Lines in which this regular expression is found.")
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Lines of this stream.")
@click.option("-n", "--tail", metavar="N", type=click.IntRange(min=0), help="At most the last N lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now, until Ctrl-C.")
@click.option("--timestamps", is_flag=True, help="Begin each line with its local time.")
@click.option("--json", is_flag=True, help="One JSON object per line, with all that is known of it.")
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
    from kedge.cli import logs
    from kedge.cli.logchoice import Options

    given = {name: word for name, word in words.items() if word is not None}
    sys.exit(_clean(lambda: logs.show(Options(**given))))


@main.group("server")
def server_group() -> None:
    """The machine's server, which outlives the programs that use it."""


@server_group.command("start")
def server_start() -> None:
    """Start it, unless it runs."""
    from kedge.cli import server

    sys.exit(_clean(server.start))


@server_group.command("status")
def server_status() -> None:
    """Say what runs on it."""
    from kedge.cli import server

    sys.exit(_clean(server.status))


@server_group.command("stop")
def server_stop() -> None:
    """End it, and everything that runs on it."""
    from kedge.cli import server

    sys.exit(_clean(server.stop))


@main.group("app")
def app_group() -> None:
    """Apps that were left running by `kedge run --detach`."""


@app_group.command("stop")
@click.argument("app")
def app_stop(app: str) -> None:
    """End an app by its id: what waits or runs is cancelled."""
    from kedge.cli import server

    sys.exit(_clean(lambda: server.stop_app(app)))


def _clean(command: Callable[[], int]) -> int:
    """The exit code of a command; an error of kedge is one line, not a traceback."""
    from kedge.exception import Error

    try:
        return command()
    except Error as error:
        click.echo(f"Error: {error}", err=True)
        return 1


if __name__ == "__main__":
    main()
