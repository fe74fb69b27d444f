"""The user's file, imported in a process of its own: what `kedge serve` does at each change.

The process ends with a `Parcel` on a pipe: the app as it was declared, or why there is none, and the files that were
imported on the way. So each import is a fresh one, and the program that serves never runs the user's code.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import IO

import msgspec
from msgspec import Struct

from kedge.model.spec import AppSpec

STOP_S = 2.0
"""Seconds that an import has to end after it was told to; then it is killed."""


class Order(Struct, frozen=True, kw_only=True):
    """What to import, and as what to declare it."""

    ref: str
    is_module: bool = False
    alias_modal: bool = True
    name: str | None = None
    environment: str = ""


class Parcel(Struct, frozen=True, kw_only=True):
    """What came of an import."""

    app: AppSpec | None = None
    secrets: dict[str, dict[str, str]] = {}
    """Values of the app's secrets that were read there, by the ids in its specs."""
    traceback: str = ""
    """Of the code that failed, as it is shown; empty where none did."""
    error: str = ""
    """Why there is no app, in a sentence."""
    misused: bool = False
    """It cannot be imported as the command was written: there is no such file, module or app."""
    sources: tuple[str, ...] = ()
    """Files of the project that were imported, also before it failed."""
    packages: tuple[str, ...] = ()
    """Directories of packages, all of whose modules are shipped."""


class Import:
    """One import under way.

    Args:
        order: What to import.
        over: Called with the parcel, on a thread of its own; not after `stop`.
        say: Gets what the code prints, in whole lines; None leaves it to the streams of this process.
    """

    def __init__(self, order: Order, over: Callable[[Parcel], None], say: Callable[[str], None]) -> None:
        self._over = over
        self._stopped = False
        reader, writer = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, _PLACE, str(writer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(writer,),
                process_group=0,  # Ctrl-C in the terminal is for the program that serves
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            stdin.write(msgspec.msgpack.encode(order))
        self._threads = [
            threading.Thread(target=self._read, args=(reader,), name="kedge-import", daemon=True),
            threading.Thread(target=self._listen, args=(self._process.stdout, say), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends it; `over` is not called any more."""
        self._stopped = True
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()

    def _read(self, reader: int) -> None:
        with open(reader, "rb") as file:
            data = file.read()
        code = self._process.wait()
        self._threads[1].join(STOP_S)  # first what it printed, then what came of it
        if self._stopped:
            return
        try:
            parcel = msgspec.msgpack.decode(data, type=Parcel)
        except msgspec.DecodeError:
            parcel = Parcel(error=f"the process that imported it has ended with exit code {code}")
        self._over(parcel)

    @staticmethod
    def _listen(stream: IO[bytes], say: Callable[[str], None]) -> None:
        with stream:
            for line in stream:
                say(line.decode("utf-8", "replace"))


_PLACE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PROGRAM = "import sys; sys.path.append(sys.argv.pop(1)); from kedge.cli import importing; importing.main()"
"""Behind everything else: the code has the path that it would have without us."""


# ---------------------------------------------------------------- in the process of the import


def main() -> None:
    """Reads an Order from standard input, writes the Parcel to the descriptor that the command line names."""
    descriptor = int(sys.argv.pop(1))
    os.set_inheritable(descriptor, False)
    order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Order)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    sys.argv = ["kedge", "serve", order.ref]
    parcel = imported(order)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with open(descriptor, "wb") as file:
        file.write(msgspec.msgpack.encode(parcel))
    # Threads that the code has left behind do not keep it.
    os._exit(0)


def imported(order: Order) -> Parcel:
    """Imports what the order names. Whatever the code raises becomes a part of the parcel."""
    import click

    from kedge.cli import failures
    from kedge.cli.deploy import default_name, load_app
    from kedge.cli.reference import ImportFailed, Reference
    from kedge.sdk import runner
    from kedge.sdk.secret import values_in

    before = frozenset(sys.modules)
    app: AppSpec | None = None
    secrets: dict[str, dict[str, str]] = {}
    trace = error = ""
    misused = False
    raised: BaseException | None = None
    try:
        reference = Reference(order.ref, order.is_module, "kedge serve")
        found = load_app(reference, order.alias_modal)
        app = runner.pack(found, order.name or found.name or default_name(reference), order.environment)
        secrets = values_in(app.functions)
    except ImportFailed as failed:
        raised = failed.__cause__
        trace, error = failures.import_failure(failed, "there is nothing new to serve")
    except click.UsageError as wrong:
        error, misused = f"Error: {wrong.format_message()}", True
    except BaseException as failure:
        raised = failure
        if failures.is_bare(failure):
            error = f"{order.ref} cannot be served as it is: {failure}"
        else:
            trace, error = failures.traceback_text(failure), f"{order.ref} cannot be served as it is."
    sources, packages = sources_of(set(sys.modules) - before, order)
    return Parcel(
        app=app,
        secrets=secrets,
        traceback=trace,
        error=error.removeprefix("Error: "),
        misused=misused,
        sources=tuple(sorted({*sources, *_files_of(raised)})),
        packages=tuple(packages),
    )


def sources_of(modules: Iterable[str], order: Order) -> tuple[list[str], list[str]]:
    """Files of the project among what was imported, and directories of its packages: neither what is installed, nor
    what belongs to Python or kedge."""
    files: set[str] = set()
    packages: set[str] = set()
    if not order.is_module:
        files.add(os.path.realpath(order.ref.partition("::")[0]))
    for name in modules:
        module = sys.modules.get(name)
        path = getattr(module, "__file__", None)
        if not path or not _is_ours(path):
            continue
        files.add(os.path.realpath(path))
        if os.path.basename(path) == "__init__.py" and "." not in name:
            packages.add(os.path.dirname(os.path.realpath(path)))
    return sorted(files), sorted(packages)


def _files_of(error: BaseException | None) -> set[str]:
    """Files that an exception leads through: a module that failed is no module any more."""
    found: set[str] = set()
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        found |= {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
        if isinstance(error, SyntaxError) and error.filename:
            found.add(error.filename)
        error = error.__cause__ or error.__context__
    return {os.path.realpath(path) for path in found if os.path.isfile(path) and _is_ours(path)}


_NOT_OURS = tuple(
    os.path.realpath(place) + os.sep
    for place in (
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        os.path.join(_PLACE, "kedge"),
        sys.prefix,
    )
    if place
)


def _is_ours(path: str) -> bool:
    """Whether a file is the user's own, to be edited."""
    real = os.path.realpath(path)
    return real.endswith(".py") and not real.startswith(_NOT_OURS) and f"{os.sep}site-packages{os.sep}" not in real
