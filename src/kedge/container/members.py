"""The inputs of one batch in one call of user code: their arguments become lists, its list becomes their results.

* Arguments are compared as the function's parameters see them: `f(1)` and `f(x=1)` are the same.
* A member that cannot be loaded, or whose arguments do not fit, fails alone; the code gets the others.
* What the code raises fails all that it got, and so does anything else than a list with one result for each of them.
* A result that cannot be sent fails its member alone.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kedge.exception import InvalidError
from kedge.model.payload import Payload, Result
from kedge.model.protocol import Dispatch

Arguments = tuple[Sequence[Any], Mapping[str, Any]]
Shape = tuple[int, frozenset[str]]
"""How many positional arguments there are, and which keywords."""


class Parameters:
    """What a batched function takes."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        self._signature = inspect.signature(function)
        parameters = self._signature.parameters.values()
        usual = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
        self._usual = len(parameters) if usual else -1
        """How many positional arguments need no closer look."""

    def normalise(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
        """The same arguments in the one way in which all members give them. InvalidError where they do not fit."""
        if len(args) == self._usual and not kwargs:
            return args, kwargs
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidError(
                f"{self._name} cannot be called like this: {error}. Its parameters are "
                f"({', '.join(self._signature.parameters)}): give one value for each, and it gets a list of them"
            ) from None
        return bound.args, bound.kwargs

    def misfit(self, shape: Shape, usual: Shape) -> InvalidError:
        return InvalidError(
            f"{self._name} was called with {_shown(shape)}, and the other inputs of its batch with {_shown(usual)}: "
            f"inputs that share a batch must give the same arguments; name the parameters instead of *args or **kwargs"
        )


class Members:
    def __init__(self, dispatches: Sequence[Dispatch]) -> None:
        self.dispatches = dispatches
        self.present: Sequence[int] = range(len(dispatches))
        """Positions of those whose arguments the code gets."""
        self._own: dict[int, Result] = {}

    @property
    def leases(self) -> list[int]:
        return [dispatch.lease for dispatch in self.dispatches]

    @property
    def inputs(self) -> tuple[tuple[str, int], ...]:
        """(call, index) of those that the code gets."""
        return tuple((self.dispatches[position].call, self.dispatches[position].index) for position in self.present)

    def gather(
        self, parameters: Parameters, load: Callable[[Payload], Arguments], failed: Callable[[Exception], Result]
    ) -> tuple[list[list[Any]], dict[str, list[Any]]]:
        """The arguments of all that can be called, one list for each parameter."""
        calls: dict[int, Arguments] = {}
        for position, dispatch in enumerate(self.dispatches):
            try:
                calls[position] = parameters.normalise(*load(dispatch.payload))
            except Exception as error:
                self._own[position] = failed(error)
        shapes = {position: (len(args), frozenset(kwargs)) for position, (args, kwargs) in calls.items()}
        most = Counter(shapes.values()).most_common(1)
        for position, shape in shapes.items():
            if shape != most[0][0]:
                self._own[position] = failed(parameters.misfit(shape, most[0][0]))
                del calls[position]
        self.present = list(calls)
        columns = [list(column) for column in zip(*(args for args, _ in calls.values()), strict=True)]
        names = next(iter(calls.values()))[1] if calls else ()
        return columns, {name: [kwargs[name] for _, kwargs in calls.values()] for name in names}

    def deal(
        self, name: str, value: Any, store: Callable[[Any], Payload], failed: Callable[[Exception], Result]
    ) -> None:
        """Gives each member its item of what the code returned. InvalidError where that is not one for each."""
        count = len(self.present)
        if type(value) is not list or len(value) != count:
            raise InvalidError(
                f"{name} returned {_described(value)} for a batch of {_plural(count, 'input')}; a @kedge.batched "
                f"function returns a list with one result per input, in their order"
            )
        for position, item in zip(self.present, value, strict=True):
            try:
                self._own[position] = Result(payload=store(item))
            except Exception as error:
                self._own[position] = failed(error)

    def results(self, common: Result) -> list[Result]:
        """What became of each: its own result where it has one, else `common`."""
        return [self._own.get(position, common) for position in range(len(self.dispatches))]


def _described(value: Any) -> str:
    if value is None:
        return "nothing"
    kind = type(value).__name__
    try:
        return f"a {kind} of {_plural(len(value), 'item')}"
    except Exception:
        return f"a value of type {kind}"


def _shown(shape: Shape) -> str:
    count, names = shape
    shown = _plural(count, "positional argument")
    return f"{shown} and {', '.join(sorted(names))}" if names else shown


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
