"""What inputs call: the function or the methods of a service, and the apps of its web functions, resolved once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from kedge.container.asgi import AsgiApp
from kedge.container.members import Parameters
from kedge.container.wsgi import WsgiApp
from kedge.exception import ExecutionError
from kedge.sdk.service import Service

WebApp = AsgiApp | WsgiApp


class Entry(Struct, frozen=True):
    """One callable of the service, resolved once."""

    function: Callable[..., Any]
    is_async: bool
    is_generator: bool
    name: str
    """How it is shown to people: `square()`, `Model.predict()`."""
    arguments: str
    """How an error names the arguments, and below the result."""
    result: str
    timeout: float
    """Seconds that one input may run."""
    overrun: str
    """What is said of an input that ran longer."""
    parameters: Parameters | None = None
    """Where it takes batches."""
    web: WebApp | None = None
    """Where it answers requests instead of calls."""


def entry_of(service: Service, name: str, web: WebApp | None) -> Entry:
    """The entry of a method; `web` is the app that answers for it, where it is a web function."""
    spec, method = service.spec, service.method(name)
    shown = f"{spec.name}.{name}()" if name else f"{spec.name}()"
    timeout, owner = (spec.timeout, f"{spec.name}()" if not name else spec.name)
    if method.timeout is not None:
        timeout, owner = method.timeout, shown
    return Entry(
        service.callable_for(name),
        method.is_async if web is None else web.is_async,
        method.is_generator,
        shown,
        f"an argument of {shown}",
        f"a value yielded by {shown}" if method.is_generator else f"the result of {shown}",
        timeout,
        f"the input ran longer than timeout={timeout:.10g} s of {owner}",
        Parameters(shown, service.callable_for(name)) if method.batching is not None else None,
        web,
    )


def missing(service: Service, method: str) -> Entry:
    """Stands for a method that there is not: fails when it is called."""
    owner = service.spec.name

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ExecutionError(f"the container of {owner} has no method {method!r}; its code differs from the caller's")

    shown = f"{owner}.{method}()"
    parameters = Parameters(shown, fail)
    return Entry(fail, False, False, shown, "the arguments", "the result", service.spec.timeout, "", parameters)
