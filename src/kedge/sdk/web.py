"""Web decorators: functions and methods that answer HTTP requests instead of calls. Checked where they are written.

Every request is one input: it takes a slot from its first byte to the end of its response, and `timeout`, cancellation
and logs work as for other inputs. What serves them is in `kedge.container.web`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msgspec import structs

from kedge.exception import InvalidError
from kedge.model.spec import FunctionSpec, WebSpec
from kedge.sdk import validation
from kedge.sdk.partial import Partial, is_in_class
from kedge.sdk.usage import keywords_only, old_spelling

F = TypeVar("F", bound=Callable[..., Any])

_VERBS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)+")


@keywords_only('@kedge.fastapi_endpoint(method="POST")', name="kedge.fastapi_endpoint")
def fastapi_endpoint(
    *,
    method: str = "GET",
    label: str | None = None,
    custom_domains: Sequence[str] | None = None,
    docs: bool = False,
    requires_proxy_auth: bool = False,
) -> Callable[[F], F]:
    """Makes a function or method one HTTP route. Needs FastAPI where containers run.

    It takes what a FastAPI route takes: query parameters, models as bodies, `Request`, dependencies. Any page may call
    it (CORS). Plain functions run in threads, as many as the container has slots.

    Args:
        method: GET, POST, PUT, DELETE, PATCH, HEAD or OPTIONS.
        label: Its name in the address: `http://HOST:PORT/LABEL/` and `http://LABEL.localhost:PORT`. Default: made from
            the names of app and function.
        custom_domains: Host names that lead to it as well.
        docs: Whether it has a page of documentation, at `/docs`.
        requires_proxy_auth: Only requests that bring a proxy token (`kedge token create --proxy`) get through.

    Example:
        @app.function()
        @kedge.fastapi_endpoint(method="POST")
        def greet(name: str) -> dict[str, str]:
            return {"greeting": f"Hello {name}"}
    """
    owner = "kedge.fastapi_endpoint"
    if validation.text(f"{owner}: method", method).upper() not in _VERBS:
        raise InvalidError(f"{owner}: method is one of {', '.join(_VERBS)}, not {method!r}")
    validation.flag(f"{owner}: docs", docs)
    web = _spec("fastapi_endpoint", label, custom_domains, requires_proxy_auth)
    return _marks(structs.replace(web, method=method.upper(), docs=docs), app_function=False)


@keywords_only("@kedge.asgi_app()", name="kedge.asgi_app")
def asgi_app(
    *, label: str | None = None, custom_domains: Sequence[str] | None = None, requires_proxy_auth: bool = False
) -> Callable[[F], F]:
    """Marks a function that returns an ASGI app, such as a FastAPI or Starlette. It is called once per container, after
    the enter hooks; the app then answers every request of that container, HTTP and WebSockets.

    Requests of one container run at the same time only with `@kedge.concurrent`. Plain `def` handlers run in as many
    threads as there are slots. In `async def` handlers write `await other.remote.aio(…)`.

    Args:
        label, custom_domains, requires_proxy_auth: As for `fastapi_endpoint`.

    Example:
        @app.function()
        @kedge.concurrent(max_inputs=100)
        @kedge.asgi_app()
        def web():
            from fastapi import FastAPI

            site = FastAPI()

            @site.get("/hello/{name}")
            async def hello(name: str):
                return f"Hello {name}"

            return site
    """
    return _marks(_spec("asgi_app", label, custom_domains, requires_proxy_auth), app_function=True)


@keywords_only("@kedge.wsgi_app()", name="kedge.wsgi_app")
def wsgi_app(
    *, label: str | None = None, custom_domains: Sequence[str] | None = None, requires_proxy_auth: bool = False
) -> Callable[[F], F]:
    """Marks a function that returns a WSGI app, such as a Flask or Django. It is called once per container; each
    request then runs in a thread of its own, as many at once as the container has slots.

    Args:
        label, custom_domains, requires_proxy_auth: As for `fastapi_endpoint`.

    Example:
        @app.function()
        @kedge.concurrent(max_inputs=20)
        @kedge.wsgi_app()
        def web():
            from flask import Flask

            site = Flask(__name__)

            @site.get("/hello/<name>")
            def hello(name):
                return f"Hello {name}"

            return site
    """
    return _marks(_spec("wsgi_app", label, custom_domains, requires_proxy_auth), app_function=True)


def web_server(
    port: int | None = None,
    *,
    startup_timeout: float = 5.0,
    label: str | None = None,
    custom_domains: Sequence[str] | None = None,
    requires_proxy_auth: bool = False,
) -> Callable[[F], F]:
    """Marks a function that starts a server of any kind on `port` and returns; requests and WebSockets are passed on to
    it. Without a port, the function returns an ASGI app, as with `asgi_app`.

    The server runs in the background, as a child process or in a thread. It is started once per container, and may
    listen on 127.0.0.1. Containers share the ports of their machine, so there is one container at a time: give it
    slots with `@kedge.concurrent`.

    Args:
        port: Where the server listens.
        startup_timeout: Seconds that it may take to listen once the function has returned.
        label, custom_domains, requires_proxy_auth: As for `fastapi_endpoint`.

    Example:
        @app.function()
        @kedge.concurrent(max_inputs=100)
        @kedge.web_server(8000)
        def files():
            subprocess.Popen(["python", "-m", "http.server", "8000"])
    """
    if callable(port):
        raise InvalidError("@kedge.web_server was used without parentheses; write @kedge.web_server(8000)")
    if port is not None:
        validation.whole_number("kedge.web_server: port", port, least=1, most=65535)
    validation.seconds("kedge.web_server: startup_timeout", startup_timeout)
    kind = "web_server" if port is not None else "asgi_app"
    web = _spec(kind, label, custom_domains, requires_proxy_auth, owner="kedge.web_server")
    return _marks(structs.replace(web, port=port, startup_timeout=float(startup_timeout)), app_function=True)


def web_endpoint(*args: Any, **options: Any) -> Callable[[F], F]:
    """The old name of `fastapi_endpoint`."""
    old_spelling("kedge.web_endpoint", "kedge.fastapi_endpoint")
    return fastapi_endpoint(*args, **options)


def settled(spec: FunctionSpec) -> FunctionSpec:
    """The spec of a function or class with what follows from its web functions."""
    ports: list[int] = []
    for method in spec.methods:
        web = method.web
        if web is not None and method.is_generator:
            shown = f"{spec.name}.{method.name}" if method.name else spec.name
            raise InvalidError(
                f"{shown}: is_generator=True and @kedge.{web.kind} exclude each other; remove the former"
            )
        if web is not None and web.port is not None:
            if web.port in ports:
                raise InvalidError(
                    f"{spec.name} has two methods with @kedge.web_server({web.port}); give them two ports"
                )
            ports.append(web.port)
    scaler = spec.autoscaler
    if not ports or scaler.max_containers is not None:
        return spec
    # Others would only wait for the port.
    return structs.replace(spec, autoscaler=structs.replace(scaler, max_containers=max(1, scaler.min_containers)))


# ---------------------------------------------------------------- checks


def _spec(kind: str, label: Any, custom_domains: Any, requires_proxy_auth: Any, owner: str = "") -> WebSpec:
    owner = owner or f"kedge.{kind}"
    if label is not None and _LABEL.fullmatch(validation.text(f"{owner}: label", label)) is None:
        from kedge.core.routes import label_of  # not at the top, for the time of `import kedge`

        raise InvalidError(
            f"{owner}: label={label!r} cannot stand in a host name (lower-case letters, digits and '-', 63 at most); "
            f"write label={label_of(label)!r}"
        )
    return WebSpec(
        kind=kind,
        label=label,
        requires_proxy_auth=validation.flag(f"{owner}: requires_proxy_auth", requires_proxy_auth),
        custom_domains=_domains(owner, custom_domains),
    )


def _domains(owner: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidError(
            f"{owner}: custom_domains is a list of host names, such as ['shop.example.com'], not {value!r}"
        )
    for domain in value:
        if not isinstance(domain, str) or _HOST.fullmatch(domain.lower()) is None:
            raise InvalidError(
                f"{owner}: custom_domains: {domain!r} is no host name; write it without scheme, port and path, such as "
                f"'shop.example.com'"
            )
    return tuple(domain.lower() for domain in value)


def _marks(web: WebSpec, *, app_function: bool) -> Callable[[F], F]:
    kind = web.kind

    def decorate(function: Any) -> Any:
        partial = Partial.of(f"kedge.{kind}", function)
        name = partial.raw.__qualname__
        if partial.web is not None:
            raise InvalidError(f"{name} has @kedge.{partial.web.kind} and @kedge.{kind}; keep one")
        if partial.method:
            raise InvalidError(f"{name} has @kedge.method and @kedge.{kind}; drop @kedge.method")
        if inspect.isgeneratorfunction(partial.raw) or inspect.isasyncgenfunction(partial.raw):
            raise InvalidError(f"{name}: @kedge.{kind} cannot be a generator; return a StreamingResponse instead")
        if app_function:
            _check_app_function(kind, partial)
        partial.web = web
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
