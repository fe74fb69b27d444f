"""Web decorators: accepted and checked where they are written. Serving them comes in a later version, and an app that
holds one says so when it starts: never silently nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kedge.exception import InvalidError
from kedge.sdk import validation
from kedge.sdk.partial import Partial, is_in_class
from kedge.sdk.usage import keywords_only, old_spelling

F = TypeVar("F", bound=Callable[..., Any])

_VERBS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")


@keywords_only('@kedge.fastapi_endpoint(method="POST")', name="kedge.fastapi_endpoint")
def fastapi_endpoint(
    *,
    method: str = "GET",
    label: str | None = None,
    custom_domains: Sequence[str] | None = None,
    docs: bool = False,
    requires_proxy_auth: bool = False,
) -> Callable[[F], F]:
    """Makes a function one HTTP route. Declared only: serving comes in a later version.

    Args:
        method: GET, POST, PUT, DELETE, PATCH, HEAD or OPTIONS.
        label: Name in the address.
        custom_domains: Host names that lead to it.
        docs: Whether it has a page of documentation.
        requires_proxy_auth: Whether callers need a key.
    """
    if validation.text("kedge.fastapi_endpoint: method", method).upper() not in _VERBS:
        raise InvalidError(f"kedge.fastapi_endpoint: method is one of {', '.join(_VERBS)}, not {method!r}")
    validation.flag("kedge.fastapi_endpoint: docs", docs)
    _check_label("kedge.fastapi_endpoint", label)
    return _marks("fastapi_endpoint", app_function=False)


@keywords_only("@kedge.asgi_app()", name="kedge.asgi_app")
def asgi_app(
    *, label: str | None = None, custom_domains: Sequence[str] | None = None, requires_proxy_auth: bool = False
) -> Callable[[F], F]:
    """Marks a function that returns an ASGI app, such as a FastAPI. Declared only: serving comes in a later version."""
    _check_label("kedge.asgi_app", label)
    return _marks("asgi_app", app_function=True)


@keywords_only("@kedge.wsgi_app()", name="kedge.wsgi_app")
def wsgi_app(
    *, label: str | None = None, custom_domains: Sequence[str] | None = None, requires_proxy_auth: bool = False
) -> Callable[[F], F]:
    """Marks a function that returns a WSGI app, such as a Flask. Declared only: serving comes in a later version."""
    _check_label("kedge.wsgi_app", label)
    return _marks("wsgi_app", app_function=True)


def web_server(
    port: int | None = None,
    *,
    startup_timeout: float = 5.0,
    label: str | None = None,
    custom_domains: Sequence[str] | None = None,
    requires_proxy_auth: bool = False,
) -> Callable[[F], F]:
    """Marks a function that starts a server on `port`; without a port, one that returns an ASGI app.

    Declared only: serving comes in a later version.
    """
    if callable(port):
        raise InvalidError("@kedge.web_server was used without parentheses; write @kedge.web_server(8000)")
    if port is not None:
        validation.whole_number("kedge.web_server: port", port, least=1, most=65535)
    validation.seconds("kedge.web_server: startup_timeout", startup_timeout)
    _check_label("kedge.web_server", label)
    return _marks("web_server" if port is not None else "asgi_app", app_function=True)


def web_endpoint(*args: Any, **options: Any) -> Callable[[F], F]:
    """The old name of `fastapi_endpoint`."""
    old_spelling("kedge.web_endpoint", "kedge.fastapi_endpoint")
    return fastapi_endpoint(*args, **options)


def _check_label(what: str, label: str | None) -> None:
    if label is not None:
        validation.name(f"{what}: label", label)


def _marks(kind: str, *, app_function: bool) -> Callable[[F], F]:
    def decorate(function: Any) -> Any:
        partial = Partial.of(f"kedge.{kind}", function)
        name = partial.raw.__qualname__
        if partial.web is not None:
            raise InvalidError(f"{name} has @kedge.{partial.web} and @kedge.{kind}; keep one")
        if partial.method:
            raise InvalidError(f"{name} has @kedge.method and @kedge.{kind}; drop @kedge.method")
        if inspect.isgeneratorfunction(partial.raw) or inspect.isasyncgenfunction(partial.raw):
            raise InvalidError(f"{name}: @kedge.{kind} cannot be a generator; return a StreamingResponse instead")
        if app_function:
            _check_app_function(kind, partial)
        partial.web = kind
        partial.refuse_mixed()
        return partial

    return decorate


def _check_app_function(kind: str, partial: Partial) -> None:
    name = partial.raw.__qualname__
    if inspect.iscoroutinefunction(partial.raw):
        raise InvalidError(f"{name}: @kedge.{kind} needs a plain function; write `def`, not `async def`")
    allowed = 1 if is_in_class(partial.raw) else 0
    parameters = inspect.signature(partial.raw).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) > allowed:
        raise InvalidError(
            f"{name}: @kedge.{kind} runs once per container, without arguments; remove {', '.join(needed[allowed:])}"
        )
