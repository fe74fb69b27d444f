"""`Dict`: keys and values that all containers and programs of a server share.

Values are pickled (see `serializer`). Keys are compared by their pickles, so they are plain values: strings, bytes,
numbers, and tuples of these. `1`, `1.0` and `True` are three keys."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Iterator, Mapping
from io import BytesIO
from typing import Any, ClassVar

from kedge.exception import InvalidError
from kedge.model.payload import Payload
from kedge.model.protocol import EntriesChanged, EntriesRequested
from kedge.sdk import serializer
from kedge.sdk.batches import batches
from kedge.sdk.dual import Dual
from kedge.sdk.named import (
    AT_ONCE,
    BYTES_AT_ONCE,
    Manager,
    Named,
    Place,
    Question,
    current_client,
    deletion,
    new_token,
    question,
)

_MISSING: Any = object()
_PLAIN = (str, bytes, int, float, bool, complex, type(None))

Entries = list[tuple[bytes, Payload]]


class Dict(Named):
    """A dict that lives at the server.

    Every operation is one request, and has an `.aio` form for async code. Two changes of one key do not mix, and the
    last one counts; `put(…, skip_if_exists=True)` says who was first.

    Example:
        results = kedge.Dict.from_name("results", create_if_missing=True)

        @app.function()
        def work(name: str) -> None:
            results[name] = len(name)

        @app.local_entrypoint()
        def main():
            work.remote("Ada")
            print(results["Ada"], "Bob" in results)
    """

    kind: ClassVar[str] = "dict"
    objects: ClassVar[Manager[Dict]]
    """Makes, lists and deletes those that have a name."""

    # ------------------------------------------------------------ one key

    def _describe_get(self, at: Place, key: Any, default: Any = None) -> Question[Any]:
        """The value of a key; `default` where it has none."""
        keys = [_key(key)]

        def read(found: Any) -> Any:
            return default if found[0] is None else _value(Payload(*found[0]), at, self, key)

        return Question(lambda number: EntriesRequested(number, at.id, "values", keys), read)

    def _describe_contains(self, at: Place, key: Any) -> Question[bool]:
        """Whether it has a key."""
        keys = [_key(key)]
        return Question(lambda number: EntriesRequested(number, at.id, "has", keys), lambda found: bool(found[0]))

    def _describe_put(self, at: Place, key: Any, value: Any, *, skip_if_exists: bool = False) -> Question[bool]:
        """Sets the value of a key. With `skip_if_exists` a value that is there stays, and the answer is False."""
        entries = [(_key(key), serializer.to_payload(value, at.blobs, f"the value of {key!r} in {self!r}"))]
        token = new_token()
        return Question(lambda number: EntriesChanged(number, at.id, token, entries, only_missing=skip_if_exists), bool)

    def _describe_pop(self, at: Place, key: Any, default: Any = _MISSING) -> Question[Any]:
        """Removes a key and gives its value. Without it: `default`, or KeyError where none is given."""
        keys, token = [_key(key)], new_token()

        def read(found: Any) -> Any:
            if found[0] is None and default is _MISSING:
                raise KeyError(key)
            return default if found[0] is None else _value(Payload(*found[0]), at, self, key)

        return Question(lambda number: EntriesChanged(number, at.id, token, keys=keys), read)

    get = question(_describe_get)
    contains = question(_describe_contains)
    put = question(_describe_put)
    pop = question(_describe_pop)

    def __getitem__(self, key: Any) -> Any:
        found = self.get(key, _MISSING)
        if found is _MISSING:
            raise KeyError(key)
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        self.put(key, value)

    def __delitem__(self, key: Any) -> None:
        self.pop(key)

    def __contains__(self, key: Any) -> bool:
        return self.contains(key)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(f"{self!r} is not iterated by itself; write .keys(), .values() or .items()")

    # ------------------------------------------------------------ all of it

    def _describe_len(self, at: Place) -> Question[int]:
        """The number of keys."""
        return Question(lambda number: EntriesRequested(number, at.id, "count"), int)

    def _describe_clear(self, at: Place) -> Question[None]:
        """Removes everything."""
        token = new_token()
        return Question(lambda number: EntriesChanged(number, at.id, token, clear=True), lambda _: None)

    def _describe_write(self, at: Place, entries: Entries) -> Question[None]:
        token = new_token()
        return Question(lambda number: EntriesChanged(number, at.id, token, entries), lambda _: None)

    def _describe_page(self, at: Place, what: str, after: int) -> Question[tuple[list[Any], int | None]]:
        def read(page: Any) -> Any:
            entries = [(pickle.loads(key), value) for key, value in page["entries"]]
            if what == "page":
                entries = [(key, _value(Payload(*value), at, self, key)) for key, value in entries]
            return entries, page["after"]

        return Question(lambda number: EntriesRequested(number, at.id, what, after=after), read)

    len = question(_describe_len)
    clear = question(_describe_clear)
    _write = question(_describe_write)
    _page = question(_describe_page)

    def _update(self, other: Mapping[Any, Any] | None = None, /, **kwargs: Any) -> None:
        """Sets the values of many keys."""
        blobs = current_client().link().blobs
        for entries in self._chunks({**(other or {}), **kwargs}, blobs):
            self._write(entries)

    async def _update_async(self, other: Mapping[Any, Any] | None = None, /, **kwargs: Any) -> None:
        blobs = (await current_client().async_link()).blobs
        for entries in self._chunks({**(other or {}), **kwargs}, blobs):
            await self._write.aio(entries)

    def _chunks(self, values: Mapping[Any, Any], blobs: Any) -> Iterator[Entries]:
        entries = (
            (_key(key), serializer.to_payload(value, blobs, f"the value of {key!r} in {self!r}"))
            for key, value in values.items()
        )
        return batches(entries, lambda entry: len(entry[1].data), AT_ONCE, BYTES_AT_ONCE)

    def _items(self) -> Iterator[tuple[Any, Any]]:
        """Its keys and values, in the order in which the keys came. What is put meanwhile may be among them."""
        yield from self._all("page")

    def _keys(self) -> Iterator[Any]:
        """Its keys, in the order in which they came."""
        for key, _ in self._all("keys"):
            yield key

    def _values(self) -> Iterator[Any]:
        """Its values, in the order in which their keys came."""
        for _, value in self._all("page"):
            yield value

    async def _items_async(self) -> AsyncIterator[tuple[Any, Any]]:
        async for entry in self._all_async("page"):
            yield entry

    async def _keys_async(self) -> AsyncIterator[Any]:
        async for key, _ in self._all_async("keys"):
            yield key

    async def _values_async(self) -> AsyncIterator[Any]:
        async for _, value in self._all_async("page"):
            yield value

    def _all(self, what: str) -> Iterator[Any]:
        after: int | None = 0
        while after is not None:
            entries, after = self._page(what, after)
            yield from entries

    async def _all_async(self, what: str) -> AsyncIterator[Any]:
        after: int | None = 0
        while after is not None:
            entries, after = await self._page.aio(what, after)
            for entry in entries:
                yield entry

    update = Dual(_update, _update_async)
    items = Dual(_items, _items_async)
    keys = Dual(_keys, _keys_async)
    values = Dual(_values, _values_async)


Dict.objects = Manager(Dict)
Dict.delete = deletion(Dict)  # type: ignore[attr-defined]


def _key(key: Any) -> bytes:
    """The one pickle of a key: without a memo, equal values give equal bytes."""
    _check_key(key, key)
    with BytesIO() as file:
        pickler = pickle.Pickler(file, 5)
        pickler.fast = True
        pickler.dump(key)
        return file.getvalue()


def _check_key(part: Any, key: Any) -> None:
    if type(part) is tuple:
        for one in part:
            _check_key(one, key)
    elif type(part) not in _PLAIN:
        raise InvalidError(
            f"{key!r} cannot be a key of a kedge.Dict: {type(part).__name__} values have no single pickle to compare; "
            "use strings, bytes, numbers, None, or tuples of these"
        )


def _value(payload: Payload, at: Place, owner: Dict, key: Any) -> Any:
    return serializer.from_payload(payload, at.blobs, consume=True, what=f"the value of {key!r} in {owner!r}")
