"""`Cls`, the handle of a class, and `Obj`, the handle of one instance of it.

An instance is a set of parameters: each set has its own pool of containers, and in each container one object, which all
inputs share. `Obj` gives the methods as `Function` handles. Its plain object exists here only where something local
is asked of it: `.local()` on a method (enter hooks run once before), or an attribute (they do not).
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import structs

from kedge.exception import ExecutionError, InvalidError
from kedge.model.payload import Payload
from kedge.model.spec import FunctionSpec, MethodSpec
from kedge.model.variants import defaults_of
from kedge.sdk import context, options, parameters
from kedge.sdk.decorators import batching_of, concurrency_of
from kedge.sdk.dual import Dual, loop_is_running
from kedge.sdk.function import Function, LateFunction
from kedge.sdk.handle import load_code, rebatched
from kedge.sdk.late import BLANK, CLASS, Deferred, Late, by_name, restore
from kedge.sdk.partial import partials_of
from kedge.sdk.service import PARAMETERS_ATTRIBUTE, hooks_of, make_instance
from kedge.sdk.target import NO_LIMITS, Limits
from kedge.sdk.usage import keywords_only, nearest, old_spelling

if TYPE_CHECKING:
    from typing import Unpack

    from kedge.sdk.app import App


_FACTS = frozenset(("app", "spec", "_declared", "_limits", "_user"))
"""What a class that was found by name has not before it is asked for."""


class Cls(Late):
    """The handle of a class in an app. Made by `@app.cls()`; calling it gives a handle of an instance.

    Example:
        model = Model(name="small")
        model.generate.remote("Hello")
        Model.with_options(gpu="H100")(name="large").generate.remote("Hello")
    """

    _kedge_handle = "class"

    def __init__(
        self,
        app: App,
        spec: FunctionSpec,
        user: type | None,
        *,
        declared: FunctionSpec | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self.app = app
        self.spec = spec
        self._declared = declared or spec
        self._limits = limits
        """What calls of its methods bring along."""
        self._user = user
        if user is not None:
            self.__name__ = user.__name__
            self.__qualname__ = user.__qualname__
            self.__doc__ = user.__doc__
            self.__module__ = user.__module__
            self.__wrapped__ = user

    def adopt(self, user: type) -> None:
        """Takes a class that came by value as its own: the handle came with it."""
        self._user = user

    @property
    def name(self) -> str:
        return self.spec.name if self._deferred is None else self._deferred.name

    def _check_running(self) -> None:
        self.app.require_id(self.name)

    def get_user_code(self) -> type:
        """The user's plain class; ExecutionError where it is not in this process."""
        if self._user is None and self.spec.serialized is not None:
            self._user = load_code(self.spec)
        if self._user is None:
            raise ExecutionError(
                f"the code of {self.name} is not in this process; its methods can be called with .remote()"
            )
        return self._user

    def __call__(self, *args: Any, **values: Any) -> Obj:
        if args:
            names = ", ".join(f"{spec.name}=…" for spec in self.spec.parameters)
            raise InvalidError(f"{self.name} takes its parameters by name only; write {self.name}({names})")
        if self._deferred is not None:
            return Obj(self, values)
        bound = parameters.bind(self.name, self.spec.parameters, values)
        return Obj(self, bound)

    def __getattr__(self, name: str) -> Any:
        if self._deferred is not None and (name in _FACTS or not name.startswith("_")):
            return getattr(self._hydrate(), name)
        user = vars(self).get("_user")
        if user is not None:
            return getattr(user, name)
        methods = [m.name for m in self.spec.methods] if "spec" in vars(self) else []
        if name in methods:
            raise AttributeError(f"{self.name}.{name} needs an instance: write {self.name}(…).{name}.remote(…)")
        raise AttributeError(f"class {self.__dict__.get('spec') and self.name} has no attribute {name!r}")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        # class Better(Model): inherits from the user's class, and needs an @app.cls() of its own.
        return (self.get_user_code(),)

    def __instancecheck__(self, instance: object) -> bool:
        return self._deferred is None and self._user is not None and isinstance(instance, self._user)

    def __subclasscheck__(self, subclass: type) -> bool:
        return self._deferred is None and self._user is not None and issubclass(subclass, self._user)

    def __repr__(self) -> str:
        return f"<kedge.Cls {self.name}>"

    def __reduce__(self) -> Any:
        if self._deferred is not None:
            return restore, (type(self), self._deferred)
        declared = structs.replace(self._declared, serialized=None)
        return _restore, (self.app, self.app.complete(self.spec), declared, self._limits)

    # ------------------------------------------------------------ variants

    @keywords_only("Model.with_options(gpu='H100')", name="with_options", accepts=options.VARIANT_KEYWORDS, bound=True)
    def with_options(self, **changes: Unpack[options.VariantOptions]) -> Cls:
        """The same class with other settings; see `Function.with_options`.

        Example:
            Model.with_options(timeout=5)(name="small").generate.remote("Hello")
        """
        if self._deferred is not None:
            options.vary("with_options", BLANK, NO_LIMITS, changes)  # refused where it is written
            return self._then("with_options", changes)
        spec, limits = options.vary("with_options", self.spec, self._limits, changes)
        return self._variant(spec, limits)

    @keywords_only("Model.with_concurrency(max_inputs=10)", name="with_concurrency", bound=True)
    def with_concurrency(self, *, max_inputs: int, target_inputs: int | None = None) -> Cls:
        """The same class with other input concurrency; see `kedge.concurrent`."""
        settings = concurrency_of("with_concurrency", max_inputs, target_inputs)
        if self._deferred is not None:
            return self._then("with_concurrency", {"max_inputs": max_inputs, "target_inputs": target_inputs})
        return self._variant(structs.replace(self.spec, concurrency=settings))

    @keywords_only("Model.with_batching(max_batch_size=8, wait_ms=100)", name="with_batching", bound=True)
    def with_batching(self, *, max_batch_size: int, wait_ms: int) -> Cls:
        """The same class with other batches of its batched method."""
        settings = batching_of("with_batching", max_batch_size, wait_ms)
        if self._deferred is not None:
            return self._then("with_batching", {"max_batch_size": max_batch_size, "wait_ms": wait_ms})
        return self._variant(rebatched(self.spec, settings))

    def _variant(self, spec: FunctionSpec, limits: Limits | None = None) -> Cls:
        limits = self._limits if limits is None else limits
        return Cls(self.app, spec, self._user, declared=self._declared, limits=limits)

    @staticmethod
    def from_name(
        app_name: str, name: str, *, version: int | None = None, environment_name: str | None = None, client: Any = None
    ) -> Cls:
        """The handle of a class of a deployed app; see `Function.from_name`.

        Example:
            Model = kedge.Cls.from_name("llm", "Model")
            Model(size="large").generate.remote("Hello")
        """
        return Cls._of(Deferred(by_name("Cls", CLASS, app_name, name, version, environment_name)))

    @staticmethod
    def lookup(app_name: str, name: str, *, environment_name: str | None = None, client: Any = None) -> Cls:
        """The old spelling of `from_name`, which asks at once."""
        old_spelling("Cls.lookup(…)", f"kedge.Cls.from_name({app_name!r}, {name!r})")
        return Cls.from_name(app_name, name, environment_name=environment_name)._hydrate()

    # ------------------------------------------------------------ for partials and objects

    def function(
        self, method: str, values: Mapping[str, Any], *, obj: Obj | None = None, instance: Any = None
    ) -> Function[..., Any, Any]:
        """The handle of a method of the instance with these parameters."""
        raw = None if self._user is None else partials_of(self._user)[method].raw
        return Function(
            self.app,
            self._spec_here(instance),
            raw,
            declared=self._declared,
            method=method,
            parameters=self.payload_of(values),
            obj=obj,
            instance=instance,
            limits=self._limits,
        )

    def method_of_instance(self, instance: object, method: str) -> Function[..., Any, Any]:
        """`self.method` inside of the class: remote calls go to the pool that the object lives in."""
        values = vars(instance).get(PARAMETERS_ATTRIBUTE, {}) if hasattr(instance, "__dict__") else {}
        return self.function(method, values, instance=instance)

    def _spec_here(self, instance: Any) -> FunctionSpec:
        """The spec of the container for its own object: it may be a variant's."""
        here = context.container()
        if instance is None or here is None or here.function is None or here.function.name != self.name:
            return self.spec
        return structs.replace(here.function, module=self.spec.module)

    def payload_of(self, values: Mapping[str, Any]) -> Payload | None:
        """The parameters as they travel; None where all are defaults: that is the pool that the app declared."""
        if values == defaults_of(self.spec.parameters):
            return None
        return parameters.encode(self.name, values)


class Obj:
    """The handle of one instance: its methods are `Function` handles."""

    _kedge_handle = "instance"

    def __init__(self, cls: Cls, values: Mapping[str, Any]) -> None:
        fields = vars(self)
        fields["_cls"] = cls
        fields["_values"] = dict(values)
        fields["_local"] = None
        fields["_entered"] = False
        fields["_lock"] = threading.RLock()
        fields["_methods"] = {}
        fields["_bound"] = cls._deferred is None
        """Whether the values are checked and complete."""
        if cls._deferred is None:
            cls.payload_of(values)  # too large parameters are refused here, where they are written

    def _bind(self) -> Cls:
        """The class, as far as it has to be known to say what the values mean."""
        fields = vars(self)
        cls: Cls = fields["_cls"]
        if not fields["_bound"]:
            values = parameters.bind(cls.name, cls._hydrate().spec.parameters, fields["_values"])
            cls.payload_of(values)
            fields["_values"], fields["_bound"] = values, True
        return cls

    def __getattr__(self, name: str) -> Any:
        fields = vars(self)
        cls: Cls = fields["_cls"]
        known = fields["_methods"].get(name)
        if known is not None:
            return known
        if cls._deferred is not None:
            return self._method_later(name)
        cls = self._bind()
        if any(method.name == name for method in cls.spec.methods):
            made = fields["_methods"][name] = cls.function(name, fields["_values"], obj=self)
            return made
        if name in fields["_values"]:
            return fields["_values"][name]
        if name.startswith("__"):
            raise AttributeError(name)
        if cls._user is None:
            raise self._no_such(name)
        static = inspect.getattr_static(cls.get_user_code(), name, None)
        if inspect.isfunction(static) and not name.startswith("_"):
            raise AttributeError(
                f"{cls.name}.{name} has no @kedge.method(), so it cannot be called from outside; add the decorator"
            )
        try:
            return getattr(self._plain(), name)
        except AttributeError:
            raise self._no_such(name) from None

    def _method_later(self, name: str) -> Any:
        """A method of a class that was not asked for yet: whether there is one shows when it is used."""
        fields = vars(self)
        if name.startswith("_"):
            raise AttributeError(name)
        if name in fields["_values"]:
            return fields["_values"][name]
        deferred: Deferred = fields["_cls"]._deferred.then("__call__", fields["_values"]).then(name)
        made: Function[..., Any, Any] = LateFunction._of(deferred)
        fields["_methods"][name] = made
        return made

    def _no_such(self, name: str) -> AttributeError:
        cls: Cls = vars(self)["_cls"]
        methods = [method.name for method in cls.spec.methods]
        hint = nearest(name, methods) or f" Its methods are {', '.join(methods) or 'none'}."
        return AttributeError(f"{cls.name} has no method or attribute {name!r}.{hint}")

    def __setattr__(self, name: str, value: object) -> None:
        cls: Cls = vars(self)["_cls"]
        raise AttributeError(
            f"{cls.name}(…).{name} = … would set it on this handle only, not in containers; declare "
            f"`{name} = kedge.parameter()` in the class and give it in the parentheses, or pass it to a method"
        )

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self)["_values"].items())
        return f"<kedge.Obj {vars(self)['_cls'].name}({values})>"

    def __reduce__(self) -> Any:
        return Obj, (vars(self)["_cls"], vars(self)["_values"])

    # ------------------------------------------------------------ local

    def _plain(self) -> Any:
        """The plain object of this process, made on first use."""
        fields = vars(self)
        with fields["_lock"]:
            if fields["_local"] is None:
                fields["_local"] = make_instance(fields["_cls"].get_user_code(), fields["_values"])
            return fields["_local"]

    def call_local(self, method: MethodSpec, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Calls a method on the plain object, after its enter hooks; gives what the plain method gives."""
        plain = self._plain()
        raw: Callable[..., Any] = partials_of(type(plain))[method.name].raw.__get__(plain)
        if method.is_async and not vars(self)["_entered"]:
            return (
                self._async_generator(raw, args, kwargs) if method.is_generator else self._async_call(raw, args, kwargs)
            )
        self._enter()
        return raw(*args, **kwargs)

    async def _async_call(self, raw: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        await self._enter_async()
        return await raw(*args, **kwargs)

    async def _async_generator(self, raw: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        await self._enter_async()
        async for value in raw(*args, **kwargs):
            yield value

    def _enter(self) -> None:
        fields = vars(self)
        with fields["_lock"]:
            if fields["_entered"]:
                return
            for hook in self._hooks():
                if not inspect.iscoroutinefunction(hook):
                    hook()
                    continue
                if loop_is_running():
                    raise ExecutionError(
                        f"{fields['_cls'].name} has the async hook {hook.__name__}, which a sync .local() cannot run "
                        f"while an event loop runs; call an async method with `await ….local()` first"
                    )
                import asyncio  # not at the top: it would double the time of `import kedge`

                asyncio.run(hook())
            fields["_entered"] = True

    async def _enter_async(self) -> None:
        fields = vars(self)
        if fields["_entered"]:
            return
        fields["_entered"] = True
        for hook in self._hooks():
            result = hook()
            if inspect.isawaitable(result):
                await result

    def _hooks(self) -> list[Callable[[], Any]]:
        plain = self._plain()
        return hooks_of(plain, "snap") + hooks_of(plain, "start")

    # ------------------------------------------------------------ the running instance

    def _service(self) -> Function[..., Any, Any]:
        cls = self._bind()
        return Function(
            cls.app, cls.spec, None, declared=cls._declared, parameters=cls.payload_of(vars(self)["_values"])
        )

    def _update_autoscaler(
        self,
        *,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: float | None = None,
    ) -> None:
        """Changes scaling of this parameter set's containers until the app is started anew."""
        self._service().update_autoscaler(
            min_containers=min_containers,
            max_containers=max_containers,
            buffer_containers=buffer_containers,
            scaledown_window=scaledown_window,
        )

    async def _update_autoscaler_async(
        self,
        *,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: float | None = None,
    ) -> None:
        await vars(self)["_cls"]._ready()
        await self._service().update_autoscaler.aio(
            min_containers=min_containers,
            max_containers=max_containers,
            buffer_containers=buffer_containers,
            scaledown_window=scaledown_window,
        )

    def _update_concurrency(self, *, max_inputs: int | None = None, target_inputs: int | None = None) -> None:
        """Changes how many inputs a container of this parameter set takes at once; see `Function.update_concurrency`.

        Example:
            Model(name="small").update_concurrency(max_inputs=20)
        """
        self._service().update_concurrency(max_inputs=max_inputs, target_inputs=target_inputs)

    async def _update_concurrency_async(
        self, *, max_inputs: int | None = None, target_inputs: int | None = None
    ) -> None:
        await vars(self)["_cls"]._ready()
        await self._service().update_concurrency.aio(max_inputs=max_inputs, target_inputs=target_inputs)

    update_autoscaler = Dual(_update_autoscaler, _update_autoscaler_async)
    update_concurrency = Dual(_update_concurrency, _update_concurrency_async)


def _restore(app: App, spec: FunctionSpec, declared: FunctionSpec, limits: Limits) -> Cls:
    return Cls(app, spec, None, declared=declared, limits=limits)
