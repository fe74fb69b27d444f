"""`Handle`: what a callable of an app is, without the ways to call it.

A handle is a value: an app (or the id of a running one), a spec, a method, perhaps an instance's parameters and changed
options. It holds no connection; what it is aimed at is one `Target`. It works wherever its app runs: in the caller's
process, and in every container of the app, where its module is imported anew; a pickled one carries the id of the
running app.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
from msgspec import structs

from kedge.exception import ExecutionError, InvalidError
from kedge.model import ids
from kedge.model.payload import Payload
from kedge.model.protocol import FunctionRequested
from kedge.model.spec import FunctionSpec, MethodSpec, SecretRef, Variant
from kedge.model.variants import variant_digest
from kedge.sdk import context, secret
from kedge.sdk.late import Late, restore
from kedge.sdk.target import NO_LIMITS, Limits, Target

if TYPE_CHECKING:
    from kedge.sdk.app import App
    from kedge.sdk.cls import Obj


class Handle(Late):
    """The base of `Function`.

    Args:
        app: Where it was registered.
        spec: Its settings, with changed options in them.
        raw: The user's plain function, where it is in this process.
        declared: The spec as the app registered it; default: `spec`.
        method: Name of the method, for a class.
        parameters: Of the instance, unless all are defaults.
        obj: The instance's handle, for `.local`.
        instance: The plain object, inside of the code of its class.
        limits: What its calls bring along.
    """

    _kedge_handle = "function"

    def __init__(
        self,
        app: App,
        spec: FunctionSpec,
        raw: Callable[..., Any] | None,
        *,
        declared: FunctionSpec | None = None,
        method: str = "",
        parameters: Payload | None = None,
        obj: Obj | None = None,
        instance: Any = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self.app = app
        self.spec = spec
        self._declared = declared or spec
        """The spec as its app registered it: `spec` differs from it where options were changed."""
        self._raw = raw
        self._method = next((m for m in spec.methods if m.name == method), MethodSpec(name=method))
        self._parameters = parameters
        self._obj = obj
        self._instance = instance
        """The plain object whose method this is, inside the code of its class."""
        self._limits = limits
        self._target: Target | None = None
        if raw is not None:
            self.__name__ = getattr(raw, "__name__", spec.name)
            self.__doc__ = raw.__doc__
            self.__module__ = raw.__module__
            self.__wrapped__ = raw

    # ------------------------------------------------------------ what it is

    @property
    def name(self) -> str:
        """The name within its app: `square`, or `Model.generate` for a method."""
        if self._deferred is not None:
            return self._deferred.name
        return f"{self.spec.name}.{self._method.name}" if self._method.name else self.spec.name

    @property
    def is_generator(self) -> bool:
        return self._method.is_generator

    @property
    def object_id(self) -> str:
        """The id of the function in its running app; ExecutionError where it is not running."""
        return ids.function_id(self.app.require_id(self.name), self.spec.name)

    def get_user_code(self) -> Callable[..., Any]:
        """The user's plain function; ExecutionError where it is not in this process."""
        if self._raw is None and self.spec.serialized is not None and not self._method.name:
            self._raw = load_code(self.spec)
        if self._raw is None:
            raise ExecutionError(f"the code of {self.name} is not in this process; it can be called with .remote()")
        return self._raw

    def _check_running(self) -> None:
        self.app.require_id(self.name)

    def target(self) -> Target:
        """What a call of this handle is aimed at; ExecutionError where its app is not running."""
        app_id = self.app.require_id(self.name)
        target = self._target
        if target is None or target.app != app_id:
            target = self._target = self._make_target(app_id)
        return target

    def _make_target(self, app_id: str) -> Target:
        function = ids.function_id(app_id, self.spec.name)
        changed = self._with_own_secrets()
        digest = variant_digest(self._declared, changed, self._parameters)
        variant = None
        if digest:
            spec = self._with_declared_secrets(function, self.app.complete(changed))
            variant = Variant(function=function, variant=digest, parameters=self._parameters, spec=spec)
        return Target(
            app=app_id,
            pool=ids.pool_id(function, digest),
            method=self._method.name,
            variant=variant,
            is_generator=self._method.is_generator,
            name=self.name,
            timeout=self._limits.timeout,
            queue_timeout=self._limits.queue_timeout,
        )

    def _with_own_secrets(self) -> FunctionSpec:
        """Its spec, where secrets of this process were given to this handle: with the ids that they have at the server,
        which are the same for equal values."""
        if self.spec.secrets == self._declared.secrets or not any(map(secret.is_declared, self.spec.secrets)):
            return self.spec
        from kedge.sdk.client import Client

        return secret.bind_specs((self.spec,), secret.keeper(Client.current()))[0]

    def _with_declared_secrets(self, function: str, spec: FunctionSpec) -> FunctionSpec:
        """The spec of a variant that has the secrets of the declaration: perhaps only the process that started the app
        has had their values, and the server knows their ids."""
        if not any(map(secret.is_declared, spec.secrets)):
            return spec
        from kedge.sdk.client import Client

        found = Client.current().request(lambda number: FunctionRequested(number, function))
        there = msgspec.convert(found["spec"]["secrets"], tuple[SecretRef, ...])
        return structs.replace(spec, secrets=there)

    def __repr__(self) -> str:
        return f"<kedge.Function {self.name}>"

    def __reduce__(self) -> Any:
        if self._deferred is not None:
            return restore, (type(self), self._deferred)
        return _restore, (type(self), *self._pickled())

    def _pickled(self) -> tuple[Any, ...]:
        declared = structs.replace(self._declared, serialized=None)
        spec = self._with_own_secrets() if self.app.app_id is not None else self.spec
        return self.app, self.app.complete(spec), declared, self._method.name, self._parameters, self._limits

    if not TYPE_CHECKING:  # for type checkers a handle cannot be called

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if self._instance is not None:
                # self.other(x) inside of the class: an ordinary method call.
                return self.get_user_code().__get__(self._instance)(*args, **kwargs)
            call = ".remote_gen" if self.is_generator else ".remote"
            raise TypeError(
                f"{self.name} is a kedge function and is not called directly: write {self.name}{call}(…) to run it in "
                f"a container, or {self.name}.local(…) to run it here"
            )

    # ------------------------------------------------------------ targets by kind of call

    def callable_target(self, how: str) -> Target:
        """The target of a call that gives one result."""
        if self._method.web is not None:
            self._refuse_web(how)
        if self._method.is_generator:
            raise InvalidError(
                f"{self.name} is a generator: .{how}(…) cannot be used; write `for value in {self.name}.remote_gen(…)`"
            )
        return self.target()

    def generator_target(self) -> Target:
        if self._method.web is not None:
            self._refuse_web("remote_gen")
        if not self._method.is_generator:
            raise InvalidError(f"{self.name} is not a generator; write {self.name}.remote(…)")
        return self.target()

    def _refuse_web(self, how: str) -> NoReturn:
        assert self._method.web is not None
        raise InvalidError(
            f"{self.name} is a web function (@kedge.{self._method.web.kind}): .{how}(…) cannot call it. It answers "
            f"requests at the address that {self.name}.get_web_url() gives; .local(…) works"
        )


def load_code(spec: FunctionSpec) -> Any:
    """The user's function or class of a spec that carries it by value."""
    from kedge.sdk import serializer

    assert spec.serialized is not None
    return serializer.from_payload(spec.serialized, None, what=f"the code of {spec.name}")


def rebatched(spec: FunctionSpec, settings: Any) -> FunctionSpec:
    """`spec` with other batch settings on its batched method; InvalidError where it has none."""
    if not any(method.batching for method in spec.methods):
        raise InvalidError(f"{spec.name} takes no batches; add @kedge.batched(max_batch_size=…, wait_ms=…) to it")
    methods = tuple(structs.replace(m, batching=settings) if m.batching else m for m in spec.methods)
    return structs.replace(spec, methods=methods)


def _restore(
    kind: type[Handle],
    app: App,
    spec: FunctionSpec,
    declared: FunctionSpec,
    method: str,
    parameters: Payload | None,
    limits: Limits,
) -> Handle:
    here = context.container()
    if spec.serialized is None and here is not None and here.function is not None and here.function.name == spec.name:
        spec = structs.replace(spec, serialized=here.function.serialized)
    return kind(app, spec, None, declared=declared, method=method, parameters=parameters, limits=limits)
