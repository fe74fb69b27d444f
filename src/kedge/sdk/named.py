"""What `Dict` and `Queue` have in common, and some of it `Secret`: they are found by name when they are used first, or
are made for a while.

A handle holds no connection and asks nothing until it is used. In containers it works as in the program that made it,
and as an argument it travels as its name or id."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar

from msgspec import Struct

from kedge.exception import AlreadyExistsError, InvalidError, NotFoundError
from kedge.model.protocol import ObjectsRequested
from kedge.sdk import config, validation
from kedge.sdk.dual import Dual, StaticDual

if TYPE_CHECKING:
    from typing import Self

    from kedge.sdk.blobs import BlobStore
    from kedge.sdk.client import Client

P = ParamSpec("P")
R = TypeVar("R")
N = TypeVar("N", bound="Named")
T = TypeVar("T")

AT_ONCE = 1000
BYTES_AT_ONCE = 8 * 1024 * 1024
"""Of the entries or items that travel in one message."""


class ObjectInfo(Struct, frozen=True):
    name: str | None
    """None for one that is ephemeral."""
    created_at: float
    """Seconds since the epoch."""


class Place(NamedTuple):
    """Where an operation finds its object."""

    id: str
    blobs: BlobStore | None
    """Where large values go; None where frames carry everything."""


class Question(Struct, Generic[R]):
    """One request, and what its answer means."""

    ask: Callable[[int], Any]
    read: Callable[[Any], R]


class Ephemeral(Generic[N]):
    """`with kedge.Queue.ephemeral() as queue:` (or `async with`): the object lives as long as the block, and no longer
    than the program."""

    def __init__(self, kind: type[N], environment: str) -> None:
        self._kind = kind
        self._environment = environment
        self._made: N | None = None

    def _message(self, number: int) -> ObjectsRequested:
        return ObjectsRequested(number, self._kind.kind, "create", environment=self._environment)

    def _over(self, number: int) -> ObjectsRequested:
        assert self._made is not None
        return ObjectsRequested(number, self._kind.kind, "delete", id=self._made._fixed)

    def __enter__(self) -> N:
        self._made = self._kind("", self._environment, id=ask(self._message)["id"])
        return self._made

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            ask(self._over)
        except NotFoundError:
            pass  # somebody has deleted it

    async def __aenter__(self) -> N:
        self._made = self._kind("", self._environment, id=(await ask_async(self._message))["id"])
        return self._made

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            await ask_async(self._over)
        except NotFoundError:
            pass


class Names(Generic[T]):
    """What has a name, listed and deleted: `objects` of every kind.

    Args:
        kind: The class of the handles; it has `from_name`.
    """

    def __init__(self, kind: type[T]) -> None:
        self._kind: Any = kind

    def _request(self, number: int, action: str, name: str, environment: str) -> Any:
        return ObjectsRequested(number, self._kind.kind, action, name, environment)

    def _message(self, action: str, name: str = "", environment_name: str | None = None) -> Callable[[int], Any]:
        if name or action != "list":
            validation.name(f"{self._kind.__name__}.objects.{action}: name", name)
        environment = config.environment(environment_name)
        return lambda number: self._request(number, action, name, environment)

    def _handles(self, found: Any) -> Any:
        return [self._kind.from_name(one["name"], environment_name=one["environment"]) for one in found]

    def _list(self, *, max_objects: int | None = None, environment_name: str | None = None) -> Any:
        """Those of an environment, by name."""
        return self._handles(ask(self._message("list", "", environment_name)))[:max_objects]

    async def _list_async(self, *, max_objects: int | None = None, environment_name: str | None = None) -> Any:
        found = await ask_async(self._message("list", "", environment_name))
        return self._handles(found)[:max_objects]

    def _delete(self, name: str, *, allow_missing: bool = False, environment_name: str | None = None) -> None:
        """Deletes one with all that it holds. NotFoundError where there is none, unless `allow_missing`."""
        try:
            ask(self._message("delete", name, environment_name))
        except NotFoundError:
            if not allow_missing:
                raise

    async def _delete_async(
        self, name: str, *, allow_missing: bool = False, environment_name: str | None = None
    ) -> None:
        try:
            await ask_async(self._message("delete", name, environment_name))
        except NotFoundError:
            if not allow_missing:
                raise

    list = Dual(_list, _list_async)
    delete = Dual(_delete, _delete_async)


class Manager(Names[N]):
    """`kedge.Dict.objects`, `kedge.Queue.objects`: those that have a name."""

    def _create(self, name: str, *, allow_existing: bool = False, environment_name: str | None = None) -> None:
        """Makes one. AlreadyExistsError where the name is taken, unless `allow_existing`."""
        try:
            ask(self._message("create", name, environment_name))
        except AlreadyExistsError:
            if not allow_existing:
                raise

    async def _create_async(
        self, name: str, *, allow_existing: bool = False, environment_name: str | None = None
    ) -> None:
        try:
            await ask_async(self._message("create", name, environment_name))
        except AlreadyExistsError:
            if not allow_existing:
                raise

    create = Dual(_create, _create_async)


class Named:
    """The base of `Dict` and `Queue`. Users make them with `from_name`, `from_id` and `ephemeral`."""

    kind: ClassVar[str] = ""

    def __init__(self, name: str, environment: str | None, create: bool = False, id: str = "") -> None:
        self._name = name
        self._environment = environment
        """None: the one in use when it is looked up."""
        self._create = create
        self._fixed = id
        """Its id, where that is what it was made by."""
        self._found: tuple[Client, str] | None = None
        """Its id at the server that this client is connected to."""

    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        environment_name: str | None = None,
        create_if_missing: bool = False,
        client: Any = None,
    ) -> Self:
        """The one of this name; nothing is asked until it is used. Then NotFoundError says what there is instead.

        Args:
            environment_name: Default: that of the app, in its containers; `KEDGE_ENVIRONMENT`, else the profile's, else
                "main".
            create_if_missing: Make it where there is none.
        """
        validation.name(f"{cls.__name__}.from_name: name", name)
        environment = None if environment_name is None else config.environment(environment_name)
        return cls(name, environment, create_if_missing)

    @classmethod
    def from_id(cls, object_id: str, client: Any = None) -> Self:
        """The one that has this id (`object_id`)."""
        return cls("", None, id=validation.text(f"{cls.__name__}.from_id: object_id", object_id))

    @classmethod
    def lookup(
        cls, name: str, client: Any = None, environment_name: str | None = None, create_if_missing: bool = False
    ) -> Self:
        """The older spelling of `from_name`, looked up at once."""
        found = cls.from_name(name, environment_name=environment_name, create_if_missing=create_if_missing)
        found.hydrate()
        return found

    @classmethod
    def ephemeral(cls, *, environment_name: str | None = None, client: Any = None) -> Ephemeral[Self]:
        """One without a name, for the time of a `with` or `async with` block. It can be passed to functions."""
        return Ephemeral(cls, config.environment(environment_name))

    # ------------------------------------------------------------ which one it is

    @property
    def name(self) -> str | None:
        """Its name; None where it was made by id, or for a while."""
        return self._name or None

    @property
    def object_id(self) -> str:
        """Its id at the server. NotFoundError where there is no such object."""
        return self.id_at(current_client())

    def _request(self, number: int) -> ObjectsRequested:
        return ObjectsRequested(
            number, self.kind, "find", self._name, config.environment(self._environment), self._fixed, self._create
        )

    def id_at(self, client: Client) -> str:
        found = self._found
        if self._fixed:
            return self._fixed
        if found is None or found[0] is not client:
            self._found = found = client, client.request(self._request)["id"]
        return found[1]

    async def id_at_async(self, client: Client) -> str:
        found = self._found
        if self._fixed:
            return self._fixed
        if found is None or found[0] is not client:
            self._found = found = client, (await client.request_async(self._request))["id"]
        return found[1]

    def _hydrate(self) -> Self:
        """Looks it up now. NotFoundError where there is no such object."""
        ask(self._request)
        return self

    async def _hydrate_async(self) -> Self:
        await ask_async(self._request)
        return self

    def _info(self) -> ObjectInfo:
        """Its name, and when it was made."""
        return _info_of(ask(self._request))

    async def _info_async(self) -> ObjectInfo:
        return _info_of(await ask_async(self._request))

    hydrate = Dual(_hydrate, _hydrate_async)
    info = Dual(_info, _info_async)

    def __repr__(self) -> str:
        return f"<kedge.{type(self).__name__} {self._name or self._fixed}>"

    def __reduce__(self) -> Any:
        # Elsewhere another environment may be in use.
        environment = self._environment if self._fixed else config.environment(self._environment)
        return type(self), (self._name, environment, self._create, self._fixed)


def question(
    describe: Callable[Concatenate[Any, Place, P], Question[R]],
) -> Dual[P, R, P, Coroutine[Any, Any, R]]:
    """Both forms of an operation that is one request: `describe(object, place, …)` says which."""

    def blocking(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        client = current_client()
        link = client.link()
        asked = describe(self, Place(self.id_at(client), link.blobs), *args, **kwargs)
        return asked.read(link.request(asked.ask))

    async def asynchronous(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        client = current_client()
        link = await client.async_link()
        asked = describe(self, Place(await self.id_at_async(client), link.blobs), *args, **kwargs)
        return asked.read(await link.request(asked.ask))

    blocking.__doc__ = asynchronous.__doc__ = describe.__doc__
    return Dual(blocking, asynchronous)


def deletion(kind: type[N]) -> StaticDual[..., None, ..., Coroutine[Any, Any, None]]:
    """`Dict.delete(name)`, the older spelling of `Dict.objects.delete(name)`."""
    manager = Manager(kind)
    return StaticDual(manager._delete, manager._delete_async)


def new_token() -> str:
    """Names one change for ever: a server that gets it again knows that it was done."""
    return f"{_process[0]}{next(_numbers):x}"


def wait_of(what: str, block: bool, timeout: Any) -> float | None:
    """How long a server is to wait. None: for ever."""
    if not block:
        return 0.0
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout <= MAX_WAIT_S:
        raise InvalidError(
            f"{what}: timeout is a number of seconds from 0 to {MAX_WAIT_S:.0f}, or None; got {timeout!r}"
        )
    return float(timeout)


MAX_WAIT_S = 366 * 24 * 3600.0
_process = [os.urandom(6).hex()]
_numbers = count()


def _forked() -> None:
    _process[0] = os.urandom(6).hex()


os.register_at_fork(after_in_child=_forked)


def current_client() -> Client:
    from kedge.sdk.client import Client

    return Client.current()


def ask(make: Callable[[int], Any]) -> Any:
    """The answer of the server in use. Whether there is one is found out after arguments have been checked."""
    return current_client().request(make)


def ask_async(make: Callable[[int], Any]) -> Awaitable[Any]:
    return current_client().request_async(make)


def _info_of(facts: Any) -> ObjectInfo:
    return ObjectInfo(facts["name"] or None, facts["created_at"])
