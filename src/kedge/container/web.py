"""The web functions of one service: from what was declared to apps that answer requests.

Each function that gives an app is called once per container, after the enter hooks and before the first input. A
`fastapi_endpoint` becomes a FastAPI app of one route, a `web_server` with a port a proxy to it. So there are two kinds
of apps: ASGI, whose requests are tasks on the loop, and WSGI, whose requests are synchronous inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kedge.container.asgi import AsgiApp
from kedge.container.entries import WebApp
from kedge.container.errands import AnyioThreads
from kedge.container.executor import Executor
from kedge.container.lifespan import Lifespan
from kedge.container.loader import UserLoop
from kedge.container.wsgi import WsgiApp
from kedge.exception import ExecutionError
from kedge.model.protocol import ContainerLeaving
from kedge.model.spec import WebSpec
from kedge.sdk.service import Service

if TYPE_CHECKING:
    from kedge.container.proxy import Proxy


class WebApps:
    """`claim` comes before the enter hooks, `open` after them, `close` before the exit hooks."""

    def __init__(self, service: Service, loop: UserLoop, executor: Executor) -> None:
        self._service = service
        self._loop = loop
        self._executor = executor
        self._lifespans: list[Lifespan] = []
        self._has_tasks = any(method.is_async for method in service.spec.methods)
        self._proxies: dict[str, Proxy] = {}
        self._declared = {method.name: method.web for method in service.spec.methods if method.web is not None}

    def claim(self) -> None:
        """Takes the ports of all web servers: an enter hook may be what starts them."""
        for name, web in self._declared.items():
            if web.port is not None:
                from kedge.container.proxy import Proxy
                from kedge.container.upstream import Upstream

                upstream = Upstream(web.port, self._shown(name))
                self._proxies[name] = Proxy(upstream, lambda reason: self._executor.wish(ContainerLeaving(reason)))
                upstream.take_port(web.startup_timeout)

    def open(self) -> dict[str, WebApp]:
        """The apps by method, ready for requests. What user code raises passes through."""
        made = {name: self._make(name, web) for name, web in self._declared.items()}
        executor = self._executor
        if any(web.kind != "wsgi_app" for web in self._declared.values()) or self._has_tasks:
            threads = AnyioThreads(self._loop.get(), executor.inflight.find, executor.session.max_inputs)
            executor.resized = threads.resize
        return {name: self._start(name, app) for name, app in made.items()}

    def close(self) -> None:
        """Lets the apps end, the youngest first."""
        while self._lifespans:
            self._loop.finish(self._lifespans.pop().stop())

    def _make(self, method: str, web: WebSpec) -> Any:
        function, shown = self._service.callable_for(method), self._shown(method)
        if web.kind == "fastapi_endpoint":
            return endpoint(function, shown, web)
        if web.port is None:
            return _checked(self._loop.finish(function()), shown, web.kind)
        proxy = self._proxies[method]
        proxy.upstream.start(lambda: self._loop.finish(function()), web.startup_timeout)
        return proxy

    def _start(self, method: str, app: Any) -> WebApp:
        outbox, session = self._executor.outbox, self._executor.session
        if self._declared[method].kind == "wsgi_app":
            return WsgiApp(app, outbox, lambda: session.max_inputs)
        lifespan = Lifespan(self._shown(method), app)
        self._loop.finish(lifespan.start())
        self._lifespans.append(lifespan)
        return AsgiApp(app, outbox, lifespan.state)

    def _shown(self, method: str) -> str:
        name = self._service.spec.name
        return f"{name}.{method}()" if method else f"{name}()"


def endpoint(function: Callable[..., Any], shown: str, web: WebSpec) -> Any:
    """A FastAPI app whose only route is `/`."""
    try:
        from fastapi import FastAPI
        from fastapi.middleware.cors import CORSMiddleware
    except ImportError as error:
        raise ExecutionError(
            f"{shown} has @kedge.fastapi_endpoint(), and FastAPI cannot be imported where containers run ({error}); "
            f"install fastapi there, or add it to the image: kedge.Image.debian_slim().pip_install('fastapi')"
        ) from None
    app = FastAPI(title=shown.removesuffix("()"), openapi_url="/openapi.json" if web.docs else None)
    app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
    )
    app.add_api_route("/", function, methods=[web.method])
    return app


def _checked(app: Any, shown: str, kind: str) -> Any:
    """The app that a function has given; ExecutionError where it is none, or one of the other kind."""
    if app is None:
        raise ExecutionError(f"{shown} returned None; with @kedge.{kind}() it returns its app: write `return app`")
    if not callable(app):
        raise ExecutionError(f"{shown} returned {app!r:.200}, which is no app: it cannot be called")
    call = app if inspect.isfunction(app) or inspect.ismethod(app) else getattr(app, "__call__", app)  # noqa: B004
    if kind == "wsgi_app" and inspect.iscoroutinefunction(call):
        raise ExecutionError(f"{shown} returned an ASGI app ({app!r:.200}); write @kedge.asgi_app() on it")
    if kind == "asgi_app" and (hasattr(app, "wsgi_app") or _takes_two(app)):
        raise ExecutionError(f"{shown} returned a WSGI app ({app!r:.200}); write @kedge.wsgi_app() on it")
    return app


def _takes_two(app: Any) -> bool:
    """Whether it is a plain function of two parameters, as WSGI has it."""
    return (
        inspect.isfunction(app) and not inspect.iscoroutinefunction(app) and len(inspect.signature(app).parameters) == 2
    )
