"""An app as the core sees it: who owns it, its functions, its pools."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from kedge.model.ids import function_id
from kedge.model.spec import AppSpec, AutoscalerSettings, Concurrency, FunctionSpec

if TYPE_CHECKING:
    from kedge.core.pool import Pool


class App:
    __slots__ = ("functions", "pools", "retired", "session", "spec", "stop_requests", "stopped")

    def __init__(self, spec: AppSpec, session: str) -> None:
        self.spec = spec
        self.session = session
        """Whose end ends the app; empty for an app that stays."""
        self.functions = {function_id(spec.app, f.name): normalised(f) for f in spec.functions}
        self.pools: dict[str, Pool] = {}
        self.stopped = ""
        """Why it has stopped; empty while it runs."""
        self.stop_requests: list[tuple[str, int]] = []
        self.retired = False
        """A version that is not current: it finishes what it has, and keeps no container without need."""

    @property
    def ports(self) -> frozenset[int]:
        """On which its functions listen."""
        return frozenset(port for function in self.functions.values() for port in function.resources.ports)

    @property
    def has_containers(self) -> bool:
        return any(pool.fleet.containers for pool in self.pools.values())

    def declared(self, name: str) -> FunctionSpec | None:
        """A function as its code declares it."""
        return next((function for function in self.spec.functions if function.name == name), None)


def normalised(spec: FunctionSpec) -> FunctionSpec:
    """What follows from the methods: without `@concurrent`, the slots that their limits add up to; the ports on which
    web servers listen."""
    ports = tuple(method.web.port for method in spec.methods if method.web is not None and method.web.port is not None)
    if ports:
        spec = replace(spec, resources=replace(spec.resources, ports=ports))
    if spec.concurrency.declared or all(method.concurrency_limit is None for method in spec.methods):
        return spec
    slots = sum(method_limits(spec).values())
    return replace(spec, concurrency=Concurrency(slots, slots))


def rebased(spec: FunctionSpec, bases: Iterable[FunctionSpec], base: FunctionSpec) -> FunctionSpec:
    """The options of `spec` on top of `base`: what differs from the one of `bases` that it most likely comes from."""
    spec = normalised(spec)
    changes = min((_changes(spec, normalised(old)) for old in bases), key=len)
    return replace(normalised(base), **changes)


def with_code_of(base: FunctionSpec, spec: FunctionSpec) -> FunctionSpec:
    """`spec`, for the code and the image of `base`: only that of the declaration is built."""
    return replace(spec, image=base.image, **{name: getattr(base, name) for name in _CODE})


def _changes(spec: FunctionSpec, base: FunctionSpec) -> dict[str, Any]:
    names = [name for name in FunctionSpec.__struct_fields__ if name not in _CODE]
    return {name: getattr(spec, name) for name in names if getattr(spec, name) != getattr(base, name)}


_CODE = ("name", "module", "qualname", "is_class", "parameters", "serialized")
"""What says where the code is, and no option changes."""


def unkept(settings: AutoscalerSettings) -> AutoscalerSettings:
    """No container stays without need."""
    return replace(settings, min_containers=0, buffer_containers=0)


def method_limits(spec: FunctionSpec) -> dict[str, int]:
    """Slots per container that each limited method may take."""
    limits = {m.name: m.concurrency_limit for m in spec.methods if m.concurrency_limit is not None}
    if limits and not spec.concurrency.declared:
        return {m.name: m.concurrency_limit or 1 for m in spec.methods}
    return limits
