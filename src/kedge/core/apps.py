"""An app as the core sees it: who owns it, its functions, its pools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from kedge.model.ids import function_id
from kedge.model.spec import AppSpec, Concurrency, FunctionSpec

if TYPE_CHECKING:
    from kedge.core.pool import Pool


class App:
    __slots__ = ("functions", "pools", "session", "spec", "stop_requests", "stopped")

    def __init__(self, spec: AppSpec, session: str) -> None:
        self.spec = spec
        self.session = session
        """Whose end ends the app; empty for an app that stays."""
        self.functions = {function_id(spec.app, f.name): normalised(f) for f in spec.functions}
        self.pools: dict[str, Pool] = {}
        self.stopped = ""
        """Why it has stopped; empty while it runs."""
        self.stop_requests: list[tuple[str, int]] = []


def normalised(spec: FunctionSpec) -> FunctionSpec:
    """Without `@concurrent`, a class whose methods have limits has as many slots as they add up to."""
    if spec.concurrency.declared or all(method.concurrency_limit is None for method in spec.methods):
        return spec
    slots = sum(method_limits(spec).values())
    return replace(spec, concurrency=Concurrency(slots, slots))


def method_limits(spec: FunctionSpec) -> dict[str, int]:
    """Slots per container that each limited method may take."""
    limits = {m.name: m.concurrency_limit for m in spec.methods if m.concurrency_limit is not None}
    if limits and not spec.concurrency.declared:
        return {m.name: m.concurrency_limit or 1 for m in spec.methods}
    return limits
