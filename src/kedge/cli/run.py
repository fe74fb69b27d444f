"""`kedge run`: imports the file, makes options of the chosen signature, runs it inside its app, shows what happens.

Exit codes: 0 done; 1 the program's code failed; 2 it could not be started as written; 130 Ctrl-C; and whatever the
program gave to `sys.exit`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import pprint
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from msgspec import Struct

from kedge.cli import failures, hints, interrupt, values
from kedge.cli.display import STOPPING, Display, display_for
from kedge.cli.reference import ImportFailed, Reference, Runnable, choose
from kedge.exception import Error
from kedge.model.protocol import StatisticsRequested
from kedge.model.variants import defaults_of
from kedge.sdk import alias, output
from kedge.sdk.client import Client

OK, FAILED, NOT_STARTED = 0, 1, 2
LAST_STATISTICS_S = 2.0
"""Seconds that the numbers of the last line are worth waiting for."""


class Settings(Struct, frozen=True, kw_only=True):
    """The options of `kedge run` itself."""

    quiet: bool = False
    detach: bool = False
    is_module: bool = False
    timestamps: bool = False
    alias_modal: bool = True
    name: str | None = None
    environment: str | None = None
    write_result: Path | None = None


def run(text: str, arguments: Sequence[str], settings: Settings) -> int:
    """Runs what `text` refers to; gives the exit code. click.UsageError where that cannot be done as written."""
    with interrupt.handled() as interrupts:
        try:
            if settings.alias_modal:
                alias.install()
            reference = Reference(text, settings.is_module)
            runnable = choose(reference, reference.load())
            prefix = "kedge run -m" if settings.is_module else "kedge run"
            refuse_unrunnable(runnable, f"{'-m ' if settings.is_module else ''}{reference.source}")
            command = make_command(runnable, lambda call: execute(runnable, call, settings, interrupts))
            return int(command.main(list(arguments), f"{prefix} {text}", standalone_mode=False) or OK)
        except ImportFailed as failed:
            failures.print_import_failure(failed, "nothing was run")
            return NOT_STARTED
        except KeyboardInterrupt:
            return interrupt.EXIT_CODE


# ---------------------------------------------------------------- from a signature to a call


class Call(Struct, frozen=True):
    """What the command line says: arguments of the function, and parameters of its class."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    parameters: dict[str, Any] = {}


class EntrypointCommand(click.Command):
    """A command made of a signature. Everything on its line belongs to the program."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name not in _OWN_OPTIONS:
                raise
            raise click.UsageError(
                f"{self.name} has no option {error.option_name}. Options of kedge run itself stand before the file: "
                f"kedge run {error.option_name} {(ctx.info_name or '').removeprefix('kedge run ')}",
                ctx,
            ) from None
        except click.UsageError:
            word = next((word for word in words if not word.startswith("-")), None)
            if word is None or words[0].startswith("-") or not self.params:
                raise
            raise click.UsageError(
                f"{word!r} stands alone; arguments are given by name: {self.params[0].opts[0]} {word}", ctx
            ) from None


_SHORT_OPTIONS = ("-q", "-d", "-m", "-w", "-n", "-e")
_LONG_OPTIONS = ("--quiet", "--detach", "--write-result", "--timestamps", "--no-alias", "--name", "--env")
_OWN_OPTIONS = frozenset((*_SHORT_OPTIONS, *_LONG_OPTIONS))


def make_command(runnable: Runnable, execute: Callable[[Call], int]) -> click.Command:
    """The command line of one runnable. Its result is the exit code."""
    code = runnable.code
    help_text = inspect.getdoc(code)
    if values.takes_raw_arguments(code) and runnable.kind != "method":
        raw = click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)
        return EntrypointCommand(
            runnable.name,
            params=[raw],
            help=help_text,
            callback=lambda arguments: execute(Call(args=tuple(arguments))),
            context_settings={
                "ignore_unknown_options": True,
                "allow_interspersed_args": False,
                "help_option_names": [],
            },
        )
    of_class: list[click.Option] = []
    if runnable.kind == "method":
        specs = runnable.handle.spec.parameters
        of_class = values.options_of_class(specs, defaults_of(specs))
    own = values.options_of(runnable.name, code, skip=1 if runnable.kind == "method" else 0)
    both = {option.name for option in of_class} & {option.name for option in own}
    if both:
        raise click.UsageError(
            f"{runnable.name} and its class both have a parameter {min(map(str, both))!r}, so an option cannot tell "
            f"which one it means; rename one, or call it from an @app.local_entrypoint()."
        )
    class_names = [option.name for option in of_class]

    def callback(**given: Any) -> int:
        parameters = {str(name): given.pop(str(name)) for name in class_names}
        # Binding by position, since a parameter may be positional-only.
        by_position = [
            parameter.name
            for parameter in inspect.signature(code).parameters.values()
            if parameter.kind is parameter.POSITIONAL_ONLY and parameter.name in given
        ]
        return execute(Call(tuple(given.pop(name) for name in by_position), given, parameters))

    return EntrypointCommand(runnable.name, params=[*of_class, *own], callback=callback, help=help_text)


def refuse_unrunnable(runnable: Runnable, source: str) -> None:
    """click.UsageError for what has no single call, with what to write instead."""
    name = runnable.name
    if runnable.web is not None:
        raise click.UsageError(
            f"{name} answers HTTP requests (@kedge.{runnable.web}), so there is no call of it to run. To let it answer "
            f"while you edit it: `kedge serve {source}`; to let it live on: `kedge deploy {source}`."
        )
    if runnable.is_generator:
        raise click.UsageError(
            f"{name} is a generator, and kedge run prints one result. Read its values in a local entrypoint:\n\n"
            f"    @app.local_entrypoint()\n    def main():\n        for value in {name}.remote_gen():\n"
            f"            print(value)\n"
        )


# ---------------------------------------------------------------- running


def execute(runnable: Runnable, call: Call, settings: Settings, interrupts: interrupt.Interrupts) -> int:
    """Runs it inside its app, with a display. Failures of the program are shown and become an exit code."""
    name = settings.name or runnable.app.name or runnable.code.__module__.rpartition(".")[2]
    display = display_for(name, quiet=settings.quiet, timestamps=settings.timestamps)
    stopping = "Leaving; the app goes on (Ctrl-C again to leave at once)" if settings.detach else STOPPING
    interrupts.on_first = lambda: display.interrupted(stopping)
    interrupts.on_second = display.abandon
    failure: BaseException | None = None
    result: Any = None
    try:
        with display.shown(), output.show_on(display), _running(runnable, name, settings):
            try:
                if runnable.kind == "function" and runnable.handle.spec.schedule is not None:
                    display.notice(f"{runnable.name} runs once now; its schedule counts when the app is deployed")
                if settings.detach:
                    display.notice(f"the app {runnable.app.app_id} stays when this ends; `kedge app stop` ends it")
                result = _call(runnable, call)
            finally:
                _last_statistics(runnable, display)
    except BaseException as error:
        failure = error
    if isinstance(failure, KeyboardInterrupt) and interrupts.count:
        display.finish("Stopped")
        return interrupt.EXIT_CODE
    if isinstance(failure, SystemExit):
        display.finish("Done" if not failure.code else "Failed")
        return _exit_code(failure, display)
    if failure is not None:
        display.error(failures.styled(failures.traceback_text(failure)))
        if hint := hints.on_failure(failure, runnable.app):
            display.notice(hint)
        display.finish("Failed")
        return FAILED
    display.finish("Done")
    return _hand_over(result, runnable, settings)


def _running(runnable: Runnable, name: str, settings: Settings) -> Any:
    return runnable.app.run(name=name, detach=settings.detach, environment_name=settings.environment)


def _call(runnable: Runnable, call: Call) -> Any:
    if runnable.kind == "entrypoint":
        result = runnable.handle.raw(*call.args, **call.kwargs)
        return asyncio.run(result) if inspect.iscoroutine(result) else result
    handle = runnable.handle
    if runnable.kind == "method":
        handle = getattr(handle(**call.parameters), runnable.method)
    return handle.remote(*call.args, **call.kwargs)


def _last_statistics(runnable: Runnable, display: Display) -> None:
    """The numbers of the sentence at the end: after the last input, and before the app is gone."""
    if not display.progress_interval:
        return
    app_id = runnable.app.app_id or ""
    with contextlib.suppress(Error, OSError):
        display.progress(Client.current().request(lambda n: StatisticsRequested(n, app=app_id), LAST_STATISTICS_S))


def _exit_code(failure: SystemExit, display: Display) -> int:
    code = failure.code
    if code is None or isinstance(code, int):
        return code or OK
    click.echo(str(code), err=True)
    return FAILED


def _hand_over(result: Any, runnable: Runnable, settings: Settings) -> int:
    """Writes the result where it was asked for, or prints what a function gave back."""
    target = settings.write_result
    if target is None:
        if runnable.kind != "entrypoint" and result is not None:
            click.echo(result if isinstance(result, str) else pprint.pformat(result, width=100, sort_dicts=False))
        return OK
    if isinstance(result, str):
        target.write_text(result)
    elif isinstance(result, (bytes, bytearray, memoryview)):
        target.write_bytes(result)
    else:
        click.echo(
            f"Error: --write-result writes str or bytes, and {runnable.name} gave {type(result).__name__}; return for "
            f"example json.dumps(…).",
            err=True,
        )
        return FAILED
    return OK
