"""`file.py::name` and `-m package.module::name`: imports the user's module and finds what to run in it.

A file is imported under its stem, with its directory first on `sys.path`, as `python file.py` would have it. The module
stands in `sys.modules` under that name: it is the one that containers get a snapshot of.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from kedge.sdk.usage import nearest

if TYPE_CHECKING:
    from kedge.sdk.app import App

EXAMPLE = """\
    import kedge

    app = kedge.App()

    @app.function()
    def square(x: int) -> int:
        return x * x
"""


class ImportFailed(Exception):
    """The user's module did not import: the cause is its own exception."""


class Reference:
    """What the user wrote, taken apart. `target` is empty where no name was given."""

    def __init__(self, text: str, is_module: bool = False, command: str = "kedge run") -> None:
        self.text = text
        self.command = command
        """What people wrote before it, for advice."""
        self.source, separator, self.target = text.partition("::")
        self.is_module = is_module
        if separator and not self.target:
            raise click.UsageError(f"{text!r} ends with '::'; write {self.source}::NAME, or {self.source} alone.")
        if not self.source:
            raise click.UsageError(f"{text!r} names no file; write file.py::{self.target or 'NAME'}.")

    def place(self, name: str) -> str:
        """How to write the command for another thing in the same file."""
        return f"{self.command}{' -m' if self.is_module else ''} {self.source}::{name}"

    def load(self) -> ModuleType:
        """Imports the module. click.UsageError where it cannot be found, ImportFailed where its own code fails."""
        return self._load_module() if self.is_module else self._load_file()

    def _load_module(self) -> ModuleType:
        if self.source.endswith(".py") or os.sep in self.source:
            raise click.UsageError(f"-m takes the name of a module, such as package.module; {self.source!r} is a file.")
        _first_on_path(os.getcwd())
        try:
            found = importlib.util.find_spec(self.source)
        except ModuleNotFoundError as error:
            # A parent package is missing, or it imports something that is.
            if error.name is not None and f"{self.source}.".startswith(f"{error.name}."):
                found = None
            else:
                raise ImportFailed(self.source) from error
        except BaseException as error:
            raise _failure(self.source, error) from error
        if found is None:
            raise click.UsageError(f"there is no module {self.source!r} in {os.getcwd()} or on Python's path.")
        try:
            return importlib.import_module(self.source)
        except BaseException as error:
            raise _failure(self.source, error) from error

    def _load_file(self) -> ModuleType:
        path = Path(self.source)
        if not path.exists():
            raise click.UsageError(f"there is no file {self.source!r}.{self._advice(path)}")
        if path.is_dir():
            raise click.UsageError(f"{self.source!r} is a directory; name a file in it, or use -m for a package.")
        name = inspect.getmodulename(path.name)
        if not path.name.endswith(".py") or name is None or "." in name:
            raise click.UsageError(f"{self.source!r} is no Python file whose name a module can have (name.py).")
        path = path.resolve()
        known = sys.modules.get(name)
        ours = known is None or getattr(known, "__file__", None) == str(path)
        if not ours or name in sys.stdlib_module_names:
            raise click.UsageError(
                f"{path.name} has the name of the module {name!r}, which Python or kedge imports; rename the file."
            )
        _first_on_path(str(path.parent))
        found = importlib.util.spec_from_file_location(name, path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module
        try:
            found.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            raise _failure(self.source, error) from error
        return module

    def _advice(self, path: Path) -> str:
        if path.with_suffix(".py").exists():
            return f" Did you mean '{path.with_suffix('.py')}'?"
        if path.parent.is_dir():
            near = nearest(path.name, [entry.name for entry in path.parent.glob("*.py")])
            if near:
                return near
        if path.suffix != ".py" and os.sep not in self.source:
            return f" For a module, write: {self.command} -m {self.text}"
        return ""


def _failure(source: str, error: BaseException) -> BaseException:
    """What an exception during the import means. Ctrl-C stays what it is."""
    return error if isinstance(error, (KeyboardInterrupt, GeneratorExit)) else ImportFailed(source)


def _first_on_path(directory: str) -> None:
    if sys.path[:1] != [directory]:
        sys.path.insert(0, directory)


# ---------------------------------------------------------------- what can be run


class Runnable:
    """One thing that `kedge run` can start: a local entrypoint, a function, or a method of a class."""

    def __init__(self, name: str, app: App, handle: Any, kind: str, method: str = "") -> None:
        self.name = name
        self.app = app
        self.handle = handle
        """The LocalEntrypoint, Function or Cls."""
        self.kind = kind
        """`entrypoint`, `function` or `method`."""
        self.method = method

    @property
    def code(self) -> Any:
        """The user's plain function."""
        if self.kind == "method":
            from kedge.sdk.partial import partials_of

            return partials_of(self.handle.get_user_code())[self.method].raw
        return self.handle.raw if self.kind == "entrypoint" else self.handle.get_user_code()

    @property
    def is_generator(self) -> bool:
        return self.kind != "entrypoint" and self._method.is_generator

    @property
    def web(self) -> str | None:
        """The web decorator of a function that answers HTTP requests."""
        return None if self.kind == "entrypoint" or self._method.web is None else self._method.web.kind

    @property
    def _method(self) -> Any:
        return next(method for method in self.handle.spec.methods if method.name == self.method)


def runnables_of(app: App) -> Iterator[Runnable]:
    for name, entrypoint in app.registered_entrypoints.items():
        yield Runnable(name, app, entrypoint, "entrypoint")
    for name, function in app.registered_functions.items():
        yield Runnable(name, app, function, "function")
    for name, cls in app.registered_classes.items():
        for method in cls.spec.methods:
            yield Runnable(f"{name}.{method.name}", app, cls, "method", method.name)


def _apps_of(reference: Reference, module: ModuleType) -> dict[str, App]:
    from kedge.sdk import registry

    apps = registry.apps_in(module)
    if not apps:
        raise click.UsageError(f"{reference.source} has no kedge.App. A file to run looks like this:\n\n{EXAMPLE}")
    return apps


def choose_app(reference: Reference, module: ModuleType) -> App:
    """The app to deploy or serve: the only one, or the one that the reference names. click.UsageError says what there
    is where that does not decide it, and where it has nothing to be called."""
    apps = _apps_of(reference, module)
    unique = list({id(app): app for app in apps.values()}.values())
    named = [variable for variable in apps if variable]
    if reference.target:
        if reference.target not in named:
            there = "".join(f"    {reference.place(variable)}\n" for variable in named) or "    (none)\n"
            raise click.UsageError(
                f"{reference.source} has no app {reference.target!r}.{nearest(reference.target, named)} Name the "
                f"variable that holds one:\n\n{there}"
            )
        app = apps[reference.target]
    elif len(unique) == 1 or "app" in apps:
        app = unique[0] if len(unique) == 1 else apps["app"]
    else:
        there = "".join(f"    {reference.place(variable)}\n" for variable in named)
        raise click.UsageError(f"{reference.source} has several apps; choose one:\n\n{there}")
    if not app.registered_functions and not app.registered_classes:
        raise click.UsageError(
            f"the app of {reference.source} has no functions to serve; add @app.function() to some. Local entrypoints "
            f"are for `kedge run`."
        )
    return app


def choose(reference: Reference, module: ModuleType) -> Runnable:
    """The thing to run; click.UsageError says what there is where the reference does not decide it."""
    apps = _apps_of(reference, module)
    target = reference.target
    variable, _, rest = target.partition(".")
    if variable in apps and variable:
        # file.py::app, and file.py::app.square
        apps, target = {variable: apps[variable]}, rest
    unique = list({id(app): app for app in apps.values()}.values())
    found = [runnable for app in unique for runnable in runnables_of(app)]
    if target:
        return _named(reference, target, found)
    entrypoints = [runnable for runnable in found if runnable.kind == "entrypoint"]
    candidates = entrypoints or [runnable for runnable in found if runnable.web is None] or found
    if not candidates:
        raise click.UsageError(
            f"the app of {reference.source} has nothing to run; add @app.function() or @app.local_entrypoint()."
        )
    if len(candidates) > 1:
        raise click.UsageError(
            f"{reference.source} has several things to run; choose one:\n\n{_list(reference, candidates)}"
        )
    return candidates[0]


def _named(reference: Reference, target: str, found: list[Runnable]) -> Runnable:
    matches = [runnable for runnable in found if runnable.name == target]
    if len({id(match.app) for match in matches}) > 1:
        raise click.UsageError(
            f"several apps of {reference.source} have a {target!r}; write {reference.source}::VARIABLE.{target}, with "
            f"the variable that holds the app."
        )
    if matches:
        return matches[0]
    methods = [runnable for runnable in found if runnable.kind == "method" and runnable.handle.name == target]
    if len(methods) == 1:
        return methods[0]
    if methods:
        raise click.UsageError(f"{target} is a class; choose a method:\n\n{_list(reference, methods)}")
    near = nearest(target, [runnable.name for runnable in found])
    listed = _list(reference, found) if found else "    (nothing)"
    raise click.UsageError(f"{reference.source} has no {target!r} to run.{near} There is:\n\n{listed}")


def _list(reference: Reference, runnables: list[Runnable]) -> str:
    return "\n".join(f"    {reference.place(runnable.name)}" for runnable in runnables)
