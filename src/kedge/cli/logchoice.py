"""What the words of `kedge logs` mean: which chunks, and which of their lines. Says what there is instead of nothing.

`--follow` may ask for what has not been written yet: there, what cannot be found is taken as it stands.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Sequence

import click
from msgspec import Struct
from msgspec.structs import replace

from kedge.cli.choice import matching
from kedge.cli.loglines import Filter
from kedge.cli.moments import moment
from kedge.cli.progress import seconds
from kedge.exception import NotFoundError
from kedge.model.ids import APP, CALL, CONTAINER, INPUT, input_id, parse_input_id
from kedge.sdk.usage import nearest
from kedge.server.logreader import NAMES_SHOWN, LogReader, Selection

STREAMS = {"stdout": 1, "stderr": 2}


class Silent(NotFoundError):
    """No app of this name has written anything: there may be one nevertheless."""


class Options(Struct, frozen=True, kw_only=True):
    """The words of the command line."""

    app: str = ""
    input: str = ""
    call: str = ""
    function: str = ""
    container: str = ""
    since: str = ""
    until: str = ""
    grep: str = ""
    stream: str | None = None
    tail: int | None = None
    follow: bool = False
    timestamps: bool = False
    json: bool = False

    @property
    def filters(self) -> bool:
        """Whether they say what is wanted, so that all of it is."""
        given = self.input, self.call, self.function, self.container, self.since, self.until, self.grep
        return any(given)

    @property
    def anywhere(self) -> bool:
        """What they name has an id of its own, so no app need be known."""
        return bool(self.input or self.call or self.container)


def filter_of(options: Options, now: datetime.datetime) -> Filter:
    """What the options say of lines. click.UsageError names the one that makes no sense."""
    if options.follow and options.until:
        raise click.UsageError("--follow shows what comes and --until what was: give one of them.")
    pattern = None
    if options.grep:
        try:
            pattern = re.compile(options.grep)
        except re.error as error:
            raise click.UsageError(
                f"--grep is {options.grep!r}, which is no regular expression: {error}. A backslash before one of "
                r"\.[]{}()*+?^$| takes it as it is."
            ) from None
    since, until = (_moment(name, getattr(options, name), now) for name in ("since", "until"))
    if since is not None and until is not None and since > until:
        raise click.UsageError(f"--since {options.since} is later than --until {options.until}.")
    return Filter(stream=STREAMS[options.stream] if options.stream else 0, since=since, until=until, pattern=pattern)


def _moment(name: str, text: str, now: datetime.datetime) -> float | None:
    try:
        return moment(text, now) if text else None
    except ValueError as error:
        raise click.UsageError(f"--{name}: {error}.") from None


def selection_of(reader: LogReader, options: Options, filter: Filter) -> tuple[Selection, Filter]:
    """Which chunks the options mean, and the filter with the method that they name. NotFoundError, or click.UsageError
    for an id of another kind."""
    app, name = _app(reader, options)
    function, method = _function(reader, options, Selection(app=app, name=name))
    call, index = _input(reader, options)
    selection = Selection(
        app=app,
        name=name,
        call=call,
        index=index,
        function=function,
        container=_container(reader, options),
        since=filter.since,
        until=filter.until,
    )
    return selection, replace(filter, method=method)


def _app(reader: LogReader, options: Options) -> tuple[str, str]:
    """An id, or a name, or neither."""
    if not options.app:
        latest = [] if options.anywhere else reader.apps()
        return (latest[0].id if latest else "", "")
    found = reader.apps(options.app)
    if not found and options.app.startswith(f"{APP}-"):
        ids = matching(options.app, [app.id for app in reader.apps()])
        if len(ids) > 1:
            raise NotFoundError(f"more than one app {options.app!r} has written: {_some(ids)}; write the whole id")
        if ids:
            return ids[0], ""
    if not found and not options.follow:
        now = time.time()
        by_name: dict[str, str] = {}
        for app in reader.apps():
            by_name.setdefault(app.name, f"{app.name} (last {app.id}, {seconds(max(0.0, now - app.last))} ago)")
        guess = nearest(options.app, by_name)
        raise Silent(
            f"no app {options.app!r} has written anything that is kept.{guess} There are: {_some([*by_name.values()])}"
        )
    by_id = any(app.id == options.app for app in found) or (not found and options.app.startswith(f"{APP}-"))
    return (options.app, "") if by_id else ("", options.app)


def _function(reader: LogReader, options: Options, of_app: Selection) -> tuple[str, str]:
    """A function or class, and the method where `Class.method` names one."""
    if not options.function:
        return "", ""
    known = reader.functions(of_app)
    if options.function in known:
        return options.function, ""
    owner, _, method = options.function.rpartition(".")
    if owner in known or (owner and options.follow):
        return owner, method
    if options.follow:
        return options.function, ""
    where = f"of the app {options.app} " if options.app else ""
    if of_app.app and not options.app:
        where = f"of {reader.apps(of_app.app)[0].name}, the app that wrote last, "
    raise NotFoundError(
        f"no function {options.function!r} {where}has written anything that is kept; there are: {_some(known)}. "
        f"Another app: kedge logs APP --function {options.function}"
    )


def _input(reader: LogReader, options: Options) -> tuple[str, int]:
    """A call, and an input of it or -1."""
    if options.input:
        call, index = _parsed_input(reader, options)
    elif options.call:
        call, index = _call(reader, options.call, options.follow), -1
    else:
        return "", -1
    if options.follow or reader.find(Selection(call=call, index=index)):
        return call, index
    if index < 0:
        raise NotFoundError(f"the call {call} has written nothing that is kept; {_calls(reader)}")
    others = reader.inputs(call)
    there = f"of its call, inputs {others[0]} to {others[-1]} have written" if others else _calls(reader)
    raise NotFoundError(f"the input {input_id(call, index)} has written nothing that is kept; {there}")


def _parsed_input(reader: LogReader, options: Options) -> tuple[str, int]:
    text = options.input
    call, _, number = text.rpartition("-")
    if text.startswith(f"{INPUT}-"):
        try:
            return parse_input_id(text)
        except ValueError as error:
            raise click.UsageError(f"--input: {error}.") from None
    if not call or not number.isdecimal() or text.startswith(f"{CALL}-"):
        raise click.UsageError(
            f"--input is {text!r}; write an id such as in-0123abcd-7, or what lines of the log show: abcd-7. "
            "--call takes a call, with all its inputs."
        )
    return _call(reader, call, options.follow), int(number)


def _call(reader: LogReader, text: str, follow: bool) -> str:
    if text.startswith((f"{INPUT}-", f"{CONTAINER}-")):
        raise click.UsageError(f"--call is {text!r}; the id of a call begins with {CALL}-.")
    if text.startswith(f"{CALL}-"):
        return text
    found = (_ENDS_SHORT.fullmatch(text) and reader.calls(_ending(text))) or reader.calls(text)
    return _only(found, f"call whose id ends with {text!r}", _calls(reader))


def _container(reader: LogReader, options: Options) -> str:
    text = options.container
    if not text:
        return ""
    if options.follow and text.startswith(f"{CONTAINER}-"):
        return text
    return _only(reader.containers(text), f"container {text!r}", f"there are: {_some(reader.containers(''))}")


def _only(found: Sequence[str], what: str, there: str) -> str:
    if not found:
        raise NotFoundError(f"no {what} has written anything that is kept; {there}")
    if len(found) > 1:
        raise NotFoundError(f"more than one {what} has written: {_some(found)}; write the whole id")
    return found[0]


def _calls(reader: LogReader) -> str:
    return f"calls that have: {_some(reader.calls(''))}"


# ---------------------------------------------------------------- ids, short enough for each line

_RANDOM = 15
"""Characters of a call's id up to its counter: `fc-` and twelve that its process has drawn."""
_SHORT = 4
_ENDS_SHORT = re.compile(r"[0-9a-f]{4}(\.[0-9a-f]{1,8})?")


def short_call(call: str) -> str:
    """Four characters of the process that made the call, and its number where it was not the first.

    >>> short_call("fc-0123456789ab00000000"), short_call("fc-0123456789ab0000001f")
    ('89ab', '89ab.1f')
    """
    number = call[_RANDOM:].lstrip("0")
    return call[_RANDOM - _SHORT : _RANDOM] + (f".{number}" if number else "")


def _ending(short: str) -> str:
    process, _, number = short.partition(".")
    return process + number.zfill(8)


def short_container(container: str) -> str:
    return container[-_SHORT:]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return (shown + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else "")) or "none"
