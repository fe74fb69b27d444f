"""Handles by name: nothing is asked until one is used, and then once.

A `Lookup` is the question, shared by all handles that were made of it; a `Deferred` adds what was done to the handle
since (`with_options(…)`, the parameters of a class, a method), to be done again on the real one. A `Late` handle that
has such a `Deferred` becomes real when one of its facts is looked at, or by `hydrate()`; async code is asked to wait,
and never blocked.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from kedge.exception import InvalidError, NotFoundError
from kedge.model.spec import FunctionSpec
from kedge.sdk import config, validation
from kedge.sdk.dual import Dual
from kedge.sdk.usage import nearest

if TYPE_CHECKING:
    from typing import Self

    from kedge.model.protocol import FunctionRequested

FUNCTION, CLASS = "function", "class"
BLANK = FunctionSpec(name="", module="", qualname="")
"""To check options on, where those of the handle are not known yet."""


class Found(Struct, frozen=True):
    """What the server knows of a function or class."""

    app: str
    """The id to call it under."""
    name: str
    """Of its app."""
    environment: str
    version: int
    spec: FunctionSpec | None


class Lookup:
    """One question to the server, and its answer once that was given.

    Args:
        kind: Whether a function or a class is looked for.
        app, name, environment, version: Where it is.
        id: Of the function, instead of names.
    """

    def __init__(
        self, kind: str, app: str, name: str, environment: str, version: int | None = None, id: str = ""
    ) -> None:
        self.kind = kind
        self.app = app
        self.name = name
        self.environment = environment
        self.version = version
        self.id = id
        self._found: Any = None

    def handle(self) -> Any:
        """The real handle. NotFoundError where there is no such thing."""
        if self._found is None:
            from kedge.sdk.client import Client

            client = Client.current()
            try:
                self._found = _found(client.request(self._request))
            except NotFoundError as error:
                if not self._names_method:
                    raise self._not_found(error) from None
                self._found = _found(client.request(self._request_class))
        return self._made()

    async def handle_async(self) -> Any:
        if self._found is None:
            from kedge.sdk.client import Client

            client = Client.current()
            try:
                self._found = _found(await client.request_async(self._request))
            except NotFoundError as error:
                if not self._names_method:
                    raise self._not_found(error) from None
                self._found = _found(await client.request_async(self._request_class))
        return self._made()

    @property
    def title(self) -> str:
        return self.id or f"{self.app}/{self.name}"

    @property
    def _names_method(self) -> bool:
        """`Model.generate`: names of functions may have points too, so that is asked second."""
        return self.kind == FUNCTION and "." in self.name.strip(".") and not self.id

    def _request(self, number: int) -> FunctionRequested:
        return self._message(number, self.name)

    def _request_class(self, number: int) -> FunctionRequested:
        return self._message(number, self.name.rpartition(".")[0])

    def _message(self, number: int, name: str) -> FunctionRequested:
        from kedge.model.protocol import FunctionRequested

        if self.id:
            return FunctionRequested(number, self.id)
        return FunctionRequested(number, "", self.app, name, self.environment, self.version)

    def _not_found(self, error: NotFoundError) -> NotFoundError:
        return not_found(error, self.name if repr(self.name) in str(error) else self.app)

    def _made(self) -> Any:
        from kedge.sdk.app import App
        from kedge.sdk.cls import Cls
        from kedge.sdk.function import Function

        found: Found = self._found
        spec = found.spec
        assert spec is not None
        app = App(found.name)
        app.deployed(found.app, found.version)
        if not spec.is_class:
            if self.kind == CLASS:
                raise InvalidError(
                    f"{spec.name} is a function, not a class; write kedge.Function.from_name({found.name!r}, "
                    f"{spec.name!r})"
                )
            function: Function[..., Any, Any] = Function(app, spec, None)
            return function
        cls = Cls(app, spec, None)
        if self.kind == CLASS:
            return cls
        method = self.name.rpartition(".")[2]
        if self.name == spec.name or self.id:
            raise InvalidError(
                f"{spec.name} is a class, not a function; write kedge.Cls.from_name({found.name!r}, "
                f"{spec.name!r})(…).{spec.methods[0].name}"
            )
        return getattr(cls(), method)

    def __reduce__(self) -> Any:
        return Lookup, (self.kind, self.app, self.name, self.environment, self.version, self.id)


def not_found(error: NotFoundError, wanted: str) -> NotFoundError:
    """The server says what there is; this adds what was probably meant."""
    listed = re.search(r"(?:it has|deployed there:) (.+?)(?:\. [A-Z].*)?$", str(error))
    hint = nearest(wanted, listed[1].split(", ")) if listed else ""
    return NotFoundError(f"{str(error).removesuffix('.')}.{hint}" if hint else str(error))


def by_name(
    owner: str, kind: str, app_name: str, name: str, version: int | None, environment_name: str | None
) -> Lookup:
    """The checked words of `Function.from_name` or `Cls.from_name`."""
    validation.name(f"{owner}.from_name: app_name", app_name)
    validation.name(f"{owner}.from_name: name", name)
    if version is not None:
        validation.whole_number(f"{owner}.from_name: version", version, least=1)
    return Lookup(kind, app_name, name, config.environment(environment_name), version)


def _found(value: dict[str, Any]) -> Found:
    spec = msgspec.convert(value["spec"], FunctionSpec) if value.get("spec") is not None else None
    return Found(value["app"], value["name"], value["environment"], value["version"], spec)


class Deferred(Struct, frozen=True):
    """A handle that is still to be made: who is asked for it, and what was done to it meanwhile."""

    lookup: Lookup
    steps: tuple[tuple[str, Mapping[str, Any] | None], ...] = ()
    """(attribute, keyword arguments of calling it; None: it is not called)."""

    def then(self, attribute: str, arguments: Mapping[str, Any] | None = None) -> Deferred:
        return Deferred(self.lookup, (*self.steps, (attribute, arguments)))

    def make(self, handle: Any) -> Any:
        """The real handle out of the one that was found."""
        for attribute, arguments in self.steps:
            try:
                handle = getattr(handle, attribute)
            except AttributeError as error:
                raise NotFoundError(str(error)) from None
            if arguments is not None:
                handle = handle(**arguments)
        return handle

    @property
    def name(self) -> str:
        """For people: `Model.generate`."""
        attributes = [attribute for attribute, arguments in self.steps if arguments is None]
        return ".".join([self.lookup.name or self.lookup.id, *attributes])


class Late:
    """Base of handles that may have to be asked for."""

    _deferred: Deferred | None = None

    @classmethod
    def _of(cls, deferred: Deferred) -> Self:
        """A handle that is made when it is needed."""
        handle = cls.__new__(cls)
        handle._deferred = deferred
        return handle

    def _then(self, attribute: str, arguments: Mapping[str, Any]) -> Self:
        """What calling that on the real handle gives."""
        assert self._deferred is not None
        return self._of(self._deferred.then(attribute, arguments))

    def _hydrate(self) -> Self:
        """Asks for the handle, where that was not done yet, and gives it back.

        By itself that happens when it is used first. NotFoundError where there is no such thing, ExecutionError where
        its app is not running.
        """
        deferred = self._deferred
        if deferred is not None:
            self._become(deferred.make(deferred.lookup.handle()))
        else:
            self._check_running()
        return self

    async def _hydrate_async(self) -> Self:
        deferred = self._deferred
        if deferred is not None:
            self._become(deferred.make(await deferred.lookup.handle_async()))
        else:
            self._check_running()
        return self

    hydrate = Dual(_hydrate, _hydrate_async)

    async def _ready(self) -> None:
        """Asks for the handle where that was not done yet: before anything that would ask by blocking."""
        if self._deferred is not None:
            await self._hydrate_async()

    def _become(self, real: Late) -> None:
        vars(self).update(vars(real))
        self._deferred = None  # last: another thread may look

    def _check_running(self) -> None:
        """ExecutionError where it is not."""
        raise NotImplementedError

    async def _values_later(self, make: Callable[[], AsyncIterator[Any]]) -> AsyncIterator[Any]:
        """What `make` gives, once the handle is there."""
        await self._hydrate_async()
        values: Any = make()
        async with aclosing(values):
            async for value in values:
                yield value


def restore(kind: type[Late], deferred: Deferred) -> Late:
    return kind._of(deferred)
