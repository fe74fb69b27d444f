"""`Function`: the ways to call a handle, each also as `.aio`, and the variants made of it.

`handle` says what a handle is, `sdk.invocation` does the calling; it is imported on first use, so that programs which
only declare need no sockets.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from msgspec import structs

from kedge.exception import InvalidError
from kedge.model.spec import FunctionSpec
from kedge.sdk import options, validation
from kedge.sdk.decorators import batching_of, concurrency_of
from kedge.sdk.dual import Dual
from kedge.sdk.handle import rebatched
from kedge.sdk.late import BLANK, FUNCTION, Deferred, Late, Lookup, by_name
from kedge.sdk.live import Live
from kedge.sdk.target import NO_LIMITS, Limits
from kedge.sdk.usage import keywords_only, old_spelling

P = ParamSpec("P")
R = TypeVar("R")
if TYPE_CHECKING:
    from typing import Unpack

    from typing_extensions import TypeVar as TypeVarWithDefault

    from kedge.sdk.function_call import FunctionCall

    L = TypeVarWithDefault("L", default=Any)
else:
    L = TypeVar("L")


class Function(Live, Generic[P, R, L]):
    """The handle of a function in an app. Made by `@app.function()`, or by a method of an `@app.cls()` instance.

    Type parameters: the user's parameters, what a call gives (for a generator: each value), and what the plain
    function returns (`.local`). Every call also has an `.aio` form for async code.

    Example:
        square.remote(3)
        await square.remote.aio(3)
        list(square.map(range(10)))
    """

    if not TYPE_CHECKING:
        # Function[P, R] is written in annotations too; the third parameter is for type checkers.
        def __class_getitem__(cls, item: Any) -> Any:
            return GenericAlias(cls, item)

    def get_raw_f(self) -> Callable[P, L]:
        """The user's plain function."""
        return self.get_user_code()

    # ------------------------------------------------------------ calling

    def _remote(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the function in a container and waits for its result; an exception of the function is raised here.

        Raises ExecutionError where the app is not running, FunctionTimeoutError where the input's time limit was hit,
        QueueTimeoutError where it waited too long, and ResourceExhaustedError where too many wait already.
        """
        from kedge.sdk import invocation

        return invocation.call(self.callable_target("remote"), args, kwargs)  # type: ignore[no-any-return]

    async def _remote_async(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        from kedge.sdk import invocation

        if self._deferred is not None:
            await self._hydrate_async()
        return await invocation.call_async(self.callable_target("remote"), args, kwargs)  # type: ignore[no-any-return]

    def _remote_gen(self, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        """Runs a generator in a container and gives its values as they come."""
        from kedge.sdk import invocation

        return invocation.stream(self.generator_target(), args, kwargs)

    def _remote_gen_async(self, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        from kedge.sdk import invocation

        if self._deferred is not None:
            return self._values_later(lambda: self._remote_gen_async(*args, **kwargs))
        return invocation.stream_async(self.generator_target(), args, kwargs)

    def _spawn(self, /, *args: P.args, **kwargs: P.kwargs) -> FunctionCall[R]:
        """Starts a call and returns its handle at once: the call goes on when the caller is gone."""
        from kedge.sdk import invocation

        return invocation.spawn(self.callable_target("spawn"), args, kwargs)

    async def _spawn_async(self, /, *args: P.args, **kwargs: P.kwargs) -> FunctionCall[R]:
        from kedge.sdk import invocation

        if self._deferred is not None:
            await self._hydrate_async()
        return await invocation.spawn_async(self.callable_target("spawn"), args, kwargs)

    remote = Dual(_remote, _remote_async)
    remote_gen = Dual(_remote_gen, _remote_gen_async)
    spawn = Dual(_spawn, _spawn_async)

    def local(self, /, *args: P.args, **kwargs: P.kwargs) -> L:
        """Runs the plain function here: no container. For a method, the object is made and its enter hooks run once."""
        if self._obj is not None:
            return self._obj.call_local(self._method, args, kwargs)  # type: ignore[no-any-return]
        if self._instance is not None:
            return self.get_raw_f().__get__(self._instance)(*args, **kwargs)  # type: ignore[no-any-return]
        return self.get_raw_f()(*args, **kwargs)

    # ------------------------------------------------------------ many inputs

    def _map(
        self,
        *input_iterators: Iterable[Any],
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool | None = None,
    ) -> Iterator[R]:
        """Runs the function once per item and gives the results, lazily: nothing happens until they are read.

        Where `max_queued_inputs` of the function are waiting, the map waits too, and submits the rest later.

        Args:
            input_iterators: One per positional parameter; the shortest one ends the map. They are read only a bounded
                way ahead of the results.
            kwargs: The same keyword arguments for every input.
            order_outputs: False gives results as they come.
            return_exceptions: Gives a failed input's exception as its result instead of raising it.
            wrap_returned_exceptions: An old parameter without effect.
        """
        from kedge.sdk import invocation

        self._check_iterators("map", input_iterators)
        return invocation.map(
            self.callable_target("map"), input_iterators, dict(kwargs), order_outputs, return_exceptions
        )

    def _map_async(
        self,
        *input_iterators: Iterable[Any] | AsyncIterable[Any],
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool | None = None,
    ) -> AsyncIterator[R]:
        from kedge.sdk import invocation

        self._check_iterators("map", input_iterators)
        if self._deferred is not None:
            settings: dict[str, Any] = {"order_outputs": order_outputs, "return_exceptions": return_exceptions}
            return self._values_later(lambda: self._map_async(*input_iterators, kwargs=kwargs, **settings))
        return invocation.map_async(
            self.callable_target("map"), input_iterators, dict(kwargs), order_outputs, return_exceptions
        )

    def _starmap(
        self,
        input_iterator: Iterable[Iterable[Any]],
        *,
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool | None = None,
    ) -> Iterator[R]:
        """Like `map`, for an iterator of argument tuples: `f.starmap([(1, 2), (3, 4)])`."""
        from kedge.sdk import invocation

        self._check_iterators("starmap", (input_iterator,))
        target = self.callable_target("starmap")
        return invocation.map(target, (input_iterator,), dict(kwargs), order_outputs, return_exceptions, star=True)

    def _starmap_async(
        self,
        input_iterator: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        *,
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool | None = None,
    ) -> AsyncIterator[R]:
        from kedge.sdk import invocation

        self._check_iterators("starmap", (input_iterator,))
        if self._deferred is not None:
            settings: dict[str, Any] = {"order_outputs": order_outputs, "return_exceptions": return_exceptions}
            return self._values_later(lambda: self._starmap_async(input_iterator, kwargs=kwargs, **settings))
        target = self.callable_target("starmap")
        return invocation.map_async(
            target, (input_iterator,), dict(kwargs), order_outputs, return_exceptions, star=True
        )

    def _for_each(
        self,
        *input_iterators: Iterable[Any],
        kwargs: Mapping[str, Any] = {},
        ignore_exceptions: bool = False,
    ) -> None:
        """Runs the function once per item, at once, and drops the results."""
        for _ in self._map(*input_iterators, kwargs=kwargs, order_outputs=False, return_exceptions=ignore_exceptions):
            pass

    async def _for_each_async(
        self,
        *input_iterators: Iterable[Any] | AsyncIterable[Any],
        kwargs: Mapping[str, Any] = {},
        ignore_exceptions: bool = False,
    ) -> None:
        async for _ in self._map_async(
            *input_iterators, kwargs=kwargs, order_outputs=False, return_exceptions=ignore_exceptions
        ):
            pass

    def _spawn_map(
        self,
        *input_iterators: Iterable[Any],
        kwargs: Mapping[str, Any] = {},
    ) -> FunctionCall[R]:
        """Starts one call with an input per item and returns its handle: results by `get(index=…)` or `iter()`.

        Unlike `map` it does not wait for others: an input beyond `max_queued_inputs` of the function fails, and whoever
        asks for its result gets ResourceExhaustedError.
        """
        from kedge.sdk import invocation

        self._check_iterators("spawn_map", input_iterators)
        return invocation.spawn_map(self.callable_target("spawn_map"), input_iterators, dict(kwargs))

    async def _spawn_map_async(
        self,
        *input_iterators: Iterable[Any] | AsyncIterable[Any],
        kwargs: Mapping[str, Any] = {},
    ) -> FunctionCall[R]:
        from kedge.sdk import invocation

        self._check_iterators("spawn_map", input_iterators)
        await self._ready()
        return await invocation.spawn_map_async(self.callable_target("spawn_map"), input_iterators, dict(kwargs))

    map = Dual(_map, _map_async)
    starmap = Dual(_starmap, _starmap_async)
    for_each = Dual(_for_each, _for_each_async)
    spawn_map = Dual(_spawn_map, _spawn_map_async)
    experimental_spawn_map = spawn_map

    def _check_iterators(self, how: str, iterators: tuple[Any, ...]) -> None:
        if not iterators:
            raise InvalidError(
                f"{self.name}.{how}() needs an iterator per parameter; write {self.name}.{how}([1, 2, 3])"
            )
        for iterator in iterators:
            if not hasattr(iterator, "__iter__") and not hasattr(iterator, "__aiter__"):
                raise InvalidError(
                    f"{self.name}.{how} takes iterators, not {iterator!r}; write {self.name}.{how}([…]), and values "
                    f"that are the same for all inputs as kwargs={{…}}"
                )

    # ------------------------------------------------------------ variants

    @keywords_only("f.with_options(timeout=600)", name="with_options", accepts=options.VARIANT_KEYWORDS, bound=True)
    def with_options(self, **changes: Unpack[options.VariantOptions]) -> Function[P, R, L]:
        """The same function with other settings; this handle stays as it is.

        Takes cpu, memory, gpu, env, retries, max_containers, buffer_containers, scaledown_window, concurrency_limit,
        region, cloud and routing_region, as `@app.function` does: the variant has containers of its own.

        Also takes timeout and queue_timeout. These travel with each call and change no container, so where nothing
        else is given, the calls share the containers of this handle. They go before what the function or method says.

        Example:
            train.with_options(gpu="H100").remote()
            answer.with_options(timeout=5, queue_timeout=2).remote("now or never")
        """
        if self._deferred is not None:
            options.vary("with_options", BLANK, NO_LIMITS, changes)  # refused where it is written
            return self._then("with_options", changes)
        if any(value is not None for key, value in changes.items() if key not in options.CALL_LIMITS):
            self._refuse_method("with_options")
        spec, limits = options.vary("with_options", self.spec, self._limits, changes)
        return self._variant(spec, limits)

    @keywords_only("f.with_concurrency(max_inputs=10)", name="with_concurrency", bound=True)
    def with_concurrency(self, *, max_inputs: int, target_inputs: int | None = None) -> Function[P, R, L]:
        """A variant with other input concurrency; see `kedge.concurrent`."""
        settings = concurrency_of("with_concurrency", max_inputs, target_inputs)
        if self._deferred is not None:
            return self._then("with_concurrency", {"max_inputs": max_inputs, "target_inputs": target_inputs})
        self._refuse_method("with_concurrency")
        return self._variant(structs.replace(self.spec, concurrency=settings))

    @keywords_only("f.with_batching(max_batch_size=8, wait_ms=100)", name="with_batching", bound=True)
    def with_batching(self, *, max_batch_size: int, wait_ms: int) -> Function[P, R, L]:
        """A variant of a `@batched` function with other batches."""
        settings = batching_of("with_batching", max_batch_size, wait_ms)
        if self._deferred is not None:
            return self._then("with_batching", {"max_batch_size": max_batch_size, "wait_ms": wait_ms})
        self._refuse_method("with_batching")
        return self._variant(rebatched(self.spec, settings))

    def _variant(self, spec: FunctionSpec, limits: Limits | None = None) -> Function[P, R, L]:
        return Function(
            self.app,
            spec,
            self._raw,
            declared=self._declared,
            method=self._method.name,
            parameters=self._parameters,
            obj=self._obj,
            instance=self._instance,
            limits=self._limits if limits is None else limits,
        )

    def _refuse_method(self, how: str) -> None:
        if self._method.name:
            owner = self.spec.name
            raise InvalidError(
                f"{self.name} is a method, and methods share the containers of their class: write "
                f"{owner}.{how}(…)(…).{self._method.name}"
            )

    # ------------------------------------------------------------ by name

    @staticmethod
    def from_name(
        app_name: str, name: str, *, version: int | None = None, environment_name: str | None = None, client: Any = None
    ) -> Function[..., Any, Any]:
        """The handle of a function of a deployed app, also from programs that have nothing of its code.

        Nothing is asked before it is used; then NotFoundError says what there is instead. It goes on to work when the
        app is deployed again: calls go to whichever version is current.

        Args:
            app_name, name: Of the app, and of the function in it.
            version: Calls this version, also after another one has taken its place.
            environment_name: Default: `KEDGE_ENVIRONMENT`, else the profile's, else "main".
            client: Has no meaning in kedge; programs connect by themselves.

        Example:
            square = kedge.Function.from_name("squares", "square")
            square.remote(12)
        """
        return LateFunction._of(Deferred(by_name("Function", FUNCTION, app_name, name, version, environment_name)))

    @staticmethod
    def from_id(function_id: str, *, client: Any = None) -> Function[..., Any, Any]:
        """The handle of a function that runs, by its id (`f.object_id`)."""
        validation.text("Function.from_id: function_id", function_id)
        return LateFunction._of(Deferred(Lookup(FUNCTION, "", "", "", id=function_id)))

    @staticmethod
    def lookup(
        app_name: str, name: str, *, environment_name: str | None = None, client: Any = None
    ) -> Function[..., Any, Any]:
        """The old spelling of `from_name`, which asks at once."""
        old_spelling("Function.lookup(…)", f"kedge.Function.from_name({app_name!r}, {name!r})")
        return Function.from_name(app_name, name, environment_name=environment_name)._hydrate()


class LateFunction(Function[..., Any, Any]):
    """A function that is found by name and was not asked for yet. Then it becomes a plain one: only here is a look at a
    fact that is missing worth what it costs."""

    def __getattr__(self, name: str) -> Any:
        if name in _FACTS:
            return getattr(self._hydrate(), name)
        raise AttributeError(f"{self!r} has no attribute {name!r}")

    def _become(self, real: Late) -> None:
        super()._become(real)
        self.__class__ = Function  # type: ignore[assignment]


_FACTS = frozenset(
    ("app", "spec", "_declared", "_raw", "_method", "_parameters", "_obj", "_instance", "_limits", "_target")
)
"""What it has not before it is asked for."""
