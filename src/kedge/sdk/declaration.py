"""From what a user decorated to a `FunctionSpec`: the checks that need the function or class itself.

A `Declaration` is one use of `@app.function(…)` or `@app.cls(…)`: its keywords are checked and turned into a template
at the decorator's line, and the template is completed by what it decorates.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import structs

from kedge.exception import InvalidError
from kedge.model.spec import Concurrency, FunctionSpec, ImageSpec, MethodSpec, SecretRef, VolumeRef
from kedge.sdk import options as options_module
from kedge.sdk import parameters, validation, web
from kedge.sdk.cls import Cls
from kedge.sdk.function import Function
from kedge.sdk.partial import (
    CLS_ATTRIBUTE,
    CONCURRENCY_ATTRIBUTE,
    Partial,
    describe_place,
    is_in_class,
    partials_of,
)
from kedge.sdk.usage import where
from kedge.sdk.volume_mounts import merged

if TYPE_CHECKING:
    from kedge.sdk.app import App

MAIN = "__main__"


class Declaration:
    """The checked keywords of one decorator.

    Args:
        app: Where the result is registered.
        owner: How users know the decorator, for messages: `app.function`.
        options: Its keywords.
        secrets: The app's, in front of its own.
        volumes: The app's, where it has none of its own at the same path.
        image: The app's image, for functions without one.
        include_source: The app's setting.
    """

    def __init__(
        self,
        app: App,
        owner: str,
        options: Mapping[str, Any],
        image: ImageSpec,
        include_source: bool,
        secrets: tuple[SecretRef, ...] = (),
        volumes: tuple[VolumeRef, ...] = (),
    ) -> None:
        self.app = app
        self.owner = owner
        if "timeout" in options:
            validation.seconds(f"{owner}: timeout", options["timeout"])
        modern, self._old_concurrency = options_module.modernise(owner, options)
        self._name = None if modern.get("name") is None else validation.name(f"{owner}: name", modern["name"])
        self._is_generator = modern.get("is_generator")
        if self._is_generator is not None:
            validation.flag(f"{owner}: is_generator", self._is_generator)
        self._serialized = validation.flag(f"{owner}: serialized", modern.get("serialized", False))
        blank = FunctionSpec(name="", module="", qualname="", image=image, include_source=include_source)
        template = options_module.apply(owner, blank, modern)
        self._template = structs.replace(
            template,
            secrets=(*secrets, *template.secrets),
            volumes=merged(f"{owner}: volumes", volumes, template.volumes),
        )
        options_module.warn_without_effect(owner, self._template)

    # ------------------------------------------------------------ functions

    def function(self, target: Any) -> Function[..., Any, Any]:
        """The handle of a decorated function, registered."""
        if inspect.isclass(target):
            raise TypeError(f"@{self.owner}() is on the class {target.__name__}; write @app.cls() for a class")
        self._refuse_handle(target)
        partial = Partial.of(self.owner, target)
        raw = partial.raw
        if partial.is_hook:
            raise InvalidError(f"{raw.__qualname__} is a hook of a class (@kedge.enter or @kedge.exit), not a function")
        if partial.method or (is_in_class(raw) and next(iter(inspect.signature(raw).parameters), "") == "self"):
            raise InvalidError(
                f"{raw.__qualname__} is a method: put @app.cls() on the class, and @kedge.method() on the method "
                f"instead of @{self.owner}()"
            )
        method = partial.method_spec("")
        if self._is_generator is not None:
            method = structs.replace(method, is_generator=self._is_generator)
        if method.batching is not None and method.is_generator:
            raise InvalidError(
                f"{raw.__qualname__}: is_generator=True and @kedge.batched exclude each other; a batched function "
                f"returns a list with one result per input: remove is_generator="
            )
        spec = self._complete(raw, methods=(method,), concurrency=self._concurrency(raw.__name__, partial.concurrency))
        self._check_retries(spec)
        options_module.check_schedule(self.owner, spec, raw)
        handle: Function[..., Any, Any] = Function(self.app, spec, raw)
        self.app.register(handle, raw, by_value=self._by_value(raw))
        return handle

    # ------------------------------------------------------------ classes

    def cls(self, target: Any) -> Cls:
        """The handle of a decorated class, registered."""
        if not inspect.isclass(target):
            if inspect.isfunction(target) or isinstance(target, Partial):
                name = getattr(target, "__qualname__", target)
                raise TypeError(f"@{self.owner}() is on the function {name}; write @app.function() for a function")
            self._refuse_handle(target)
            raise TypeError(f"@{self.owner}() decorates a class, not {target!r}")
        if CLS_ATTRIBUTE in vars(target):
            raise InvalidError(f"{target.__name__} is a class of an app already; keep one @app.cls()")
        partials = partials_of(target)
        interface = {name: partial for name, partial in partials.items() if partial.is_interface}
        self._check_members(target, partials, interface)
        parameter_specs = parameters.specs_of(target)
        _check_constructor(target)
        methods = tuple(partial.method_spec(name) for name, partial in interface.items())
        declared = vars(target).get(CONCURRENCY_ATTRIBUTE)
        spec = self._complete(
            target,
            is_class=True,
            methods=methods,
            parameters=parameter_specs,
            concurrency=self._concurrency(target.__name__, declared) if declared else self._slots(target, methods),
        )
        self._check_retries(spec)
        handle = Cls(self.app, spec, target)
        self.app.register(handle, target, by_value=self._by_value(target))
        setattr(target, CLS_ATTRIBUTE, handle)
        return handle

    def _check_members(self, user: type, partials: Mapping[str, Partial], interface: Mapping[str, Partial]) -> None:
        for name, value in vars(user).items():
            if getattr(type(value), "_kedge_handle", "") == "function":
                raise InvalidError(
                    f"{user.__name__}.{name} has @app.function(); inside of an @app.cls() class write @kedge.method()"
                )
        for partial in partials.values():
            if partial.concurrency is not None:
                raise InvalidError(
                    f"@kedge.concurrent is on the method {describe_place(partial)}; decorate the class "
                    f"{user.__name__} instead"
                )
            if partial.enter == "snap" and not self._template.enable_memory_snapshot:
                raise InvalidError(
                    f"{describe_place(partial)} has @kedge.enter(snap=True), which needs @{self.owner}"
                    f"(enable_memory_snapshot=True); add it, or drop snap=True"
                )
        batched = [name for name, partial in interface.items() if partial.batching is not None]
        if batched and len(interface) > 1:
            others = ", ".join(name for name in interface if name != batched[0])
            raise InvalidError(
                f"{user.__name__}.{batched[0]} is @kedge.batched, so it must be the only callable method of its class; "
                f"move {others} to another class"
            )
        if not interface:
            raise InvalidError(
                f"{user.__name__} has nothing to call: put @kedge.method() on the methods that callers use"
            )

    def _slots(self, user: type, methods: tuple[MethodSpec, ...]) -> Concurrency:
        """Without @concurrent, limits of methods add up to the slots of a container; a method without one counts 1."""
        if self._old_concurrency is not None:
            return self._old_concurrency
        if all(method.concurrency_limit is None for method in methods):
            return Concurrency()
        slots = sum(method.concurrency_limit or 1 for method in methods)
        return Concurrency(slots, slots)

    # ------------------------------------------------------------ both

    def _concurrency(self, name: str, declared: Concurrency | None) -> Concurrency:
        if declared is not None and self._old_concurrency is not None:
            raise InvalidError(f"{name} has allow_concurrent_inputs= and @kedge.concurrent; keep @kedge.concurrent")
        return declared or self._old_concurrency or Concurrency()

    def _complete(self, target: Any, **fields: Any) -> FunctionSpec:
        name = self._name or target.__name__
        if name == "<lambda>":
            raise InvalidError(f"@{self.owner}() is on a lambda, which has no name; give it name= and serialized=True")
        validation.name(f"{self.owner}: the name", name)
        if "<locals>" in target.__qualname__ and not self._by_value(target):
            outer = target.__qualname__.split(".<locals>", 1)[0]
            raise InvalidError(
                f"{target.__qualname__} is defined inside of {outer}, where containers cannot import it; move it to "
                f"the top level of its module, or write @{self.owner}(serialized=True) to send its code by value"
            )
        from kedge.sdk import serializer  # not at the top, for the time of `import kedge`

        module = MAIN if target.__module__ == serializer.MAIN else target.__module__
        spec = structs.replace(self._template, name=name, module=module, qualname=target.__qualname__, **fields)
        options_module.check_concurrency_limit(self.owner, spec)
        return web.settled(spec)

    def _by_value(self, target: Any) -> bool:
        return self._serialized or is_interactive(target.__module__)

    def _check_retries(self, spec: FunctionSpec) -> None:
        if not spec.retries.max_retries:
            return
        for method in spec.methods:
            name = f"{spec.name}.{method.name}" if method.name else spec.name
            if method.is_generator:
                raise InvalidError(
                    f"{name} is a generator, and retries would repeat values that were already given; remove retries="
                )
            if method.web:
                raise InvalidError(f"{name} is a web function, whose callers retry themselves; remove retries=")

    def _refuse_handle(self, target: Any) -> None:
        if hasattr(type(target), "_kedge_handle"):
            raise InvalidError(f"{target!r} belongs to an app already; keep one @app.function() or @app.cls()")
        return


def _check_constructor(user: type) -> None:
    """A constructor without arguments is fine; others are refused with a pointer to parameter()."""
    constructor: Callable[..., Any] = user.__init__  # type: ignore[misc]
    if constructor is object.__init__:
        return
    try:
        declared = list(inspect.signature(constructor).parameters.values())[1:]
    except (TypeError, ValueError):
        return
    named = [p.name for p in declared if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if named:
        lines = "\n".join(f"    {name}: str = kedge.parameter()" for name in named)
        raise InvalidError(
            f"{user.__name__}.__init__ ({where(constructor)}) takes {', '.join(named)}: callers cannot give "
            f"constructor arguments. Declare them in the class body instead, and do the work in a method with "
            f"@kedge.enter():\n\n{lines}"
        )


def is_interactive(module: str) -> bool:
    """Whether a module is a `__main__` without a file: a notebook, a prompt, code from standard input."""
    if module != MAIN:
        return False
    path = getattr(sys.modules.get(MAIN), "__file__", None)
    return not path or path.startswith("<")  # Python says "<stdin>" there
