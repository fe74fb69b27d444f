"""`Service`: the user's function or class as its container runs it.

How a container uses it, in order:

1. import the module (or unpickle `spec.serialized`), then `find_service(module, spec)` or `service_of(obj, spec)`;
2. `service.create(launch.parameters)` once: makes the instance of a class, nothing for a function;
3. call `service.enter_hooks`, one after the other; each may return an awaitable, which the container awaits;
4. for each input `service.callable_for(method)(*args, **kwargs)`: whether it is async or a generator is in
   `service.method(name)`;
5. call `service.exit_hooks` likewise, at the end.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from kedge.exception import ExecutionError
from kedge.model.payload import Payload
from kedge.model.spec import FunctionSpec, MethodSpec
from kedge.sdk import parameters as parameters_module
from kedge.sdk import registry
from kedge.sdk.partial import CLS_ATTRIBUTE, Partial, partials_of

PARAMETERS_ATTRIBUTE = "__kedge_parameters__"
"""On an instance: the parameters it was made with, so that its methods reach the pool it lives in."""


class Service:
    """One function or class, found and ready to serve."""

    def __init__(self, spec: FunctionSpec, user: Callable[..., Any]) -> None:
        self.spec = spec
        self.user = user
        """The user's plain function or class, without any decorator of kedge."""
        self.instance: Any = None
        """The object that all inputs of a class share; None for a function."""
        self._methods = {method.name: method for method in spec.methods}
        self._callables: dict[str, Callable[..., Any]] = {} if spec.is_class else {"": user}

    def create(self, parameters: Payload | Mapping[str, Any] | None = None) -> Any:
        """Makes the instance from parameters (as sent, or as a dict) and binds the methods to it.

        The values are set before a no-argument `__init__` runs, so that it may use them.
        """
        if not self.spec.is_class:
            return None
        assert inspect.isclass(self.user)
        if isinstance(parameters, Payload):
            parameters = parameters_module.decode(parameters)
        values = parameters_module.bind(self.spec.name, self.spec.parameters, parameters or {})
        self.instance = make_instance(self.user, values)
        partials = partials_of(self.user)
        for name in self._methods:
            self._callables[name] = partials[name].raw.__get__(self.instance)
        return self.instance

    def method(self, name: str) -> MethodSpec:
        """What was declared about a method; ExecutionError where there is none of that name."""
        found = self._methods.get(name)
        if found is None:
            known = ", ".join(self._methods) or "none"
            raise ExecutionError(f"{self.spec.name} has no method {name!r}; it has {known}")
        return found

    def callable_for(self, method: str) -> Callable[..., Any]:
        """What to call with an input's arguments: the function, or the method bound to the instance."""
        found = self._callables.get(method)
        if found is None:
            self.method(method)
            raise ExecutionError(f"{self.spec.name} has no instance yet; create() comes before inputs")
        return found

    @property
    def enter_hooks(self) -> list[Callable[[], Any]]:
        """Bound hooks in the order to run them: `snap=True` first, bases before subclasses."""
        return hooks_of(self.instance, "snap") + hooks_of(self.instance, "start")

    @property
    def exit_hooks(self) -> list[Callable[[], Any]]:
        """Bound hooks in the order to run them: subclasses before bases."""
        return hooks_of(self.instance, "exit")


def make_instance(user: type, values: Mapping[str, Any]) -> Any:
    """An object of the user's class: parameters first, then its no-argument `__init__`."""
    make: Any = user.__new__
    instance = make(user)
    for name, value in values.items():
        setattr(instance, name, value)
    if values:
        setattr(instance, PARAMETERS_ATTRIBUTE, dict(values))
    initialise: Any = inspect.getattr_static(user, "__init__")
    if initialise is not object.__init__:
        initialise(instance)
    return instance


def hooks_of(instance: Any, kind: str) -> list[Callable[[], Any]]:
    """The bound `snap`, `start` or `exit` hooks of an object; empty for None."""
    if instance is None:
        return []
    partials = partials_of(type(instance)).values()
    found = [p.raw.__get__(instance) for p in partials if (p.exit if kind == "exit" else p.enter == kind)]
    return found[::-1] if kind == "exit" else found


def find_service(module: ModuleType, spec: FunctionSpec, app_name: str = "") -> Service:
    """The service that importing `module` has declared under `spec.name`.

    `app_name` (of the Launch) decides where two apps of the module have functions of one name. ExecutionError names
    what the module did declare: the usual cause is a declaration inside an `if` that is not taken in containers.
    """
    handle = registry.find(module.__name__, spec.name, app_name)
    if handle is None:
        declared = ", ".join(registry.names_in(module.__name__)) or "nothing"
        raise ExecutionError(
            f"importing {module.__name__} in the container did not register {spec.name!r} (it registered {declared}). "
            f"Declare functions at the top level of the module, and not under conditions that differ in containers, "
            f"such as `if __name__ == '__main__'` or `if kedge.is_local()`"
        )
    return Service(spec, handle.get_user_code())


def service_of(user: Any, spec: FunctionSpec) -> Service:
    """The service of an unpickled `spec.serialized`: the user's plain function or class."""
    if isinstance(user, Partial):
        user = user.raw
    if not callable(user):
        raise ExecutionError(f"the serialized {spec.name} is {type(user).__name__}, neither a function nor a class")
    handle = vars(user).get(CLS_ATTRIBUTE) if inspect.isclass(user) else None
    if handle is not None:
        handle.adopt(user)
    return Service(spec, user)
