"""How failures of the user's code are shown: the frames of their own files, where remote ones are marked as such.

`KEDGE_TRACEBACK=1` shows every frame.
"""

from __future__ import annotations

import re
import sys
import traceback

import click
from rich.text import Text

from kedge.cli import hints
from kedge.cli.reference import ImportFailed
from kedge.exception import Error, RemoteError
from kedge.sdk.tracebacks import REMOTE, describe, everything, folded

_FRAME = re.compile(r'^(?P<indent>[ |]*)File "(?P<file>.*)", line (?P<line>\d+)(?P<rest>.*)$')
_CAUSE = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Warning|Interrupt|Exit|Group|Timeout|Cancellation|Failure)?\b")


def traceback_text(error: BaseException) -> str:
    """The traceback as plain text. Where no code of the user was running: what kedge has to say, or the last line."""
    if everything():
        return "".join(traceback.format_exception(error))
    text, frames = describe(error)
    if not frames and isinstance(error, Error):
        return f"Error: {error}\n"
    if not frames and error.__cause__ is None and not isinstance(error, BaseExceptionGroup):
        return "".join(traceback.format_exception_only(error))
    return folded(text)


def styled(text: str) -> Text:
    """The same for a terminal: files muted, those of containers marked, the exception itself stressed."""
    result = Text()
    awaited = True  # the exception; what follows it are further lines of its message, and what it led to
    for line in text.splitlines(keepends=True):
        frame = _FRAME.match(line.rstrip("\n"))
        if frame is not None:
            remote = frame["file"].startswith(REMOTE)
            result.append(frame["indent"] + 'File "')
            result.append(frame["file"], "magenta" if remote else "cyan")
            result.append(f'", line {frame["line"]}{frame["rest"]}\n', "dim")
        elif line.startswith("Traceback ("):
            result.append(line, "dim")
        elif awaited and line[:1].strip() and _CAUSE.match(line):
            name, colon, message = line.partition(":")
            result.append(name, "bold red").append(colon + message)
            awaited = False
            continue
        else:
            result.append(line)
        awaited = awaited or line.startswith((" ", "Traceback ("))
    return result


def import_failure(failed: ImportFailed, so: str) -> tuple[str, str]:
    """The traceback of code that did not import, and the sentence below it; `so` says what follows from that."""
    cause = failed.__cause__
    assert cause is not None
    how = " called sys.exit()" if isinstance(cause, SystemExit) else " failed"
    return traceback_text(cause), f"Error: importing {failed}{how}, so {so}. {hints.on_import(cause)}".rstrip()


def print_import_failure(failed: ImportFailed, so: str) -> None:
    text, sentence = import_failure(failed, so)
    print_styled(text)
    click.echo(sentence, err=True)


def print_styled(text: str) -> None:
    """A traceback on stderr, in colours where that is a terminal."""
    if sys.stderr.isatty():
        from rich.console import Console

        Console(file=sys.stderr, highlight=False).print(styled(text), end="", soft_wrap=True)
    else:
        click.echo(text, err=True, nl=False)


def remote_cause(error: BaseException) -> str:
    """The traceback of what happened in a container, where that led to an error that a server reports; empty where it
    would only repeat what the error itself says."""
    cause = error.__cause__ if isinstance(error, RemoteError) else None
    if cause is None or (is_bare(cause) and str(cause) in str(error)):
        return ""
    return traceback_text(cause)


def is_bare(error: BaseException) -> bool:
    """Whether kedge says it, and no code of the user was running: its sentence is all that there is to show."""
    if everything():
        return False
    return isinstance(error, Error) and not describe(error)[1]
