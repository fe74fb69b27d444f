"""Options of a command line, made of a function's signature.

Each parameter becomes `--name-of-it`; its annotation (or the type of its default) says what it takes. What a command
line cannot give is refused when the options are made, with the parameter's name and what can be written instead.
"""

from __future__ import annotations

import collections.abc
import datetime
import enum
import inspect
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

import click

from kedge.model.spec import ParameterSpec
from kedge.sdk.usage import nearest

KINDS = "str, int, float, bool, datetime, Path, an Enum, Literal[…], list[…] of these, or … | None"
_COLLECTIONS: dict[Any, Callable[[Any], Any]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    collections.abc.Sequence: list,
    collections.abc.Iterable: list,
}


if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType


class _Converted(_Type):
    """What a function of the text gives; `ValueError` means that the text is wrong."""

    def __init__(self, name: str, convert: Callable[[str], Any], example: str) -> None:
        self.name = name
        self._convert = convert
        self._example = example

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._convert(value)
        except ValueError:
            self.fail(f"{value!r} is no {self.name}; write for example {self._example}.", parameter, context)


class _OneOf(_Type):
    """A value out of a few: written as the command line shows it, given to the function as it is."""

    name = "choice"

    def __init__(self, members: dict[str, Any]) -> None:
        self._members = members

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(self._members)}]"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if not isinstance(value, str) or (value not in self._members and value in self._members.values()):
            return value
        if value not in self._members:
            near = nearest(value, self._members)
            self.fail(f"{value!r} is not one of {', '.join(self._members)}.{near}", parameter, context)
        return self._members[value]


_PLAIN: dict[Any, Any] = {
    str: click.STRING,
    int: click.INT,
    float: click.FLOAT,
    bool: click.BOOL,
    bytes: _Converted("text", str.encode, "abc"),
    datetime.datetime: _Converted("datetime", datetime.datetime.fromisoformat, "2025-03-28T14:30:00"),
    datetime.date: _Converted("date", datetime.date.fromisoformat, "2025-03-28"),
    Path: _Converted("path", Path, "data/file.txt"),
}


def takes_raw_arguments(function: Callable[..., Any]) -> bool:
    """Whether the function reads the command line itself: its only parameter is `*args`."""
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    return kinds == [inspect.Parameter.VAR_POSITIONAL]


def options_of(name: str, function: Callable[..., Any], skip: int = 0) -> list[click.Option]:
    """The options for a function's parameters without the first `skip`; click.UsageError where one cannot be given."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    hints = _hints(function)
    return [_option(name, parameter, hints.get(parameter.name, parameter.empty)) for parameter in parameters]


def options_of_class(specs: Iterable[ParameterSpec], defaults: dict[str, Any]) -> list[click.Option]:
    """The options for the `parameter()`s of a class."""
    kinds: dict[str, Any] = {"str": str, "int": int, "bool": bool, "bytes": bytes}
    return [
        make_option(spec.name, kinds[spec.type], defaults.get(spec.name, inspect.Parameter.empty)) for spec in specs
    ]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations as types. One that cannot be evaluated, such as a name for type checkers only, stays a string."""
    try:
        return typing.get_type_hints(function)
    except Exception:
        found = inspect.get_annotations(function)
    for name, annotation in found.items():
        if isinstance(annotation, str):
            try:
                found[name] = eval(annotation, function.__globals__)
            except Exception:
                pass
    return found


def _option(name: str, parameter: inspect.Parameter, annotation: Any) -> click.Option:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        star = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
        raise click.UsageError(
            f"{name} has {star}{parameter.name}, which options cannot give; write out its parameters, or take *args "
            f"alone to get the words of the command line as they are"
        )
    try:
        return make_option(parameter.name, annotation, parameter.default)
    except TypeError:
        shown = inspect.formatannotation(annotation)
        raise click.UsageError(
            f"{name}: the parameter {parameter.name} is {shown}, which a command line cannot give. It takes {KINDS}. "
            f"Give it a default and leave it out of the signature, or call {name} from an @app.local_entrypoint()"
        ) from None


def make_option(name: str, annotation: Any, default: Any) -> click.Option:
    """One option; TypeError where no text could stand for a value of this type."""
    flag = "--" + name.replace("_", "-")
    annotation, collect = _plain_type(annotation, default)
    settings: dict[str, Any] = {"required": True}
    if default is not inspect.Parameter.empty:
        settings = {"default": default, "show_default": default not in (None, "")}
        if isinstance(default, enum.Enum):
            settings["show_default"] = default.name
    if collect is not None:
        return _repeated_option([flag, name], annotation, collect, default)
    if annotation is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}", name], **settings)
    return click.Option([flag, name], type=_param_type(annotation), **settings)


def _repeated_option(names: list[str], annotation: Any, collect: Callable[[Any], Any], default: Any) -> click.Option:
    """An option that is given once per item. None given means the default."""
    required = default is inspect.Parameter.empty
    note = "may be repeated"
    if not required and default:
        note += f"; default: {', '.join(map(str, default))}"

    def collected(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        return collect(value) if value or required else default

    return click.Option(
        names, type=_param_type(annotation), multiple=True, required=required, callback=collected, help=f"({note})"
    )


def _plain_type(annotation: Any, default: Any) -> tuple[Any, Callable[[Any], Any] | None]:
    """The type of one value, and what collects several where the parameter takes several."""
    if annotation is inspect.Parameter.empty or annotation is Any:
        annotation = str if default is inspect.Parameter.empty or default is None else type(default)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _plain_type(arguments[0], default)
    if origin in (Union, types.UnionType):
        members = [member for member in arguments if member is not type(None)]
        if len(members) == 1:
            return _plain_type(members[0], default)
        raise TypeError(annotation)
    container = origin or annotation
    if container not in _COLLECTIONS:
        return annotation, None
    items = [argument for argument in arguments if argument is not ...]
    if len(items) > 1:
        raise TypeError(annotation)
    return items[0] if items else str, _COLLECTIONS[container]


def _param_type(annotation: Any) -> Any:
    if typing.get_origin(annotation) is Literal:
        return _OneOf({str(value): value for value in typing.get_args(annotation)})
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _OneOf({member.name: member for member in annotation})
    try:
        return _PLAIN[annotation]
    except KeyError:
        raise TypeError(annotation) from None
