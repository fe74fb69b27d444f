"""The HTTP side of the server: one session of the plane that submits the requests of all clients.

One clock and one timer serve every connection: once a second it is looked which of them have had their time. `date` and
`now` are as old as that.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import secrets
import ssl as tls
from collections.abc import Callable
from email.utils import formatdate
from socket import socket
from typing import Any

from kedge.core.routes import Route
from kedge.model import protocol as p
from kedge.model.payload import ErrorInfo, Result
from kedge.model.spec import FunctionSpec
from kedge.server.driver import Driver
from kedge.server.ingress.address import Place, locate
from kedge.server.ingress.exchange import Exchange
from kedge.server.ingress.http import Connection
from kedge.server.ingress.instances import pool_of, variant_of
from kedge.server.ingress.reader import Incoming
from kedge.server.ingress.replies import Refusal, retry_after, server_ends

log = logging.getLogger("kedge.server.ingress")

SESSION = "se-web"
MAX_CONNECTIONS = 10_000
"""A few hundred MB where all of them are busy. The limit on open files may allow fewer."""
MAX_VARIANTS = 4096
"""Pools of one class that addresses may make: they stay as long as their app, and anybody can make up parameters."""
SWEEP_S = 1.0
GOODBYE_S = 10.0
"""Seconds that the code of a WebSocket has to end by itself when the client is gone; then it is cancelled."""
TLS_HANDSHAKE_S = 30.0
BACKLOG = 1024
"""Connections that may wait to be accepted: a burst of clients must not see refusals."""


class Ingress:
    """Answers HTTP with what web functions say.

    Args:
        driver: Where requests go. The ingress becomes one of its links.
        allowed: Whether (key, secret) may call functions with requires_proxy_auth. It takes as long for a wrong secret
            as for a right one.
        trust_forwarded: Whether X-Forwarded-For and -Proto of clients on this machine are believed.
        domains: `LABEL.DOMAIN` leads to the function with that label.
        max_connections: More are refused.
    """

    def __init__(
        self,
        driver: Driver,
        *,
        allowed: Callable[[str, str], bool] = lambda key, secret: False,
        trust_forwarded: bool = False,
        domains: tuple[str, ...] = ("localhost",),
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.driver = driver
        self.trust_forwarded = trust_forwarded
        self.max_connections = min(max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self.connections: dict[Connection, None] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self.closing = False
        self.now = 0.0
        self.date = b""
        self._allowed = allowed
        self._domains = tuple(domain.lower() for domain in domains)
        self._loop = asyncio.get_running_loop()
        self._servers: list[asyncio.Server] = []
        self._session = Session(self._concluded)
        self._exchanges: dict[str, Exchange] = {}
        """By call, from its beginning until its code has ended."""
        self._leaving: dict[Exchange, float] = {}
        """WebSockets whose client is gone, and when their code is cancelled."""
        self._targets: dict[str, Target] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._calls = 0
        self._prefix = f"fc-{secrets.token_hex(4)}"
        driver.links[SESSION] = self._session
        driver.web = self._heard
        self._look_at_clock()

    # ------------------------------------------------------------ its life

    async def listen(
        self, host: str = "127.0.0.1", port: int = 0, ssl: tls.SSLContext | None = None, sock: socket | None = None
    ) -> tuple[str, int]:
        """Listens there, or on a socket that is bound already; gives the address that was really taken."""
        limits: dict[str, Any] = {"backlog": BACKLOG}
        if ssl is not None:
            limits |= {"ssl": ssl, "ssl_handshake_timeout": TLS_HANDSHAKE_S}
        if sock is not None:
            server = await self._loop.create_server(lambda: Connection(self), sock=sock, **limits)
        else:
            server = await self._loop.create_server(lambda: Connection(self), host, port, **limits)
        self._servers.append(server)
        taken = server.sockets[0].getsockname()
        return str(taken[0]), int(taken[1])

    async def close(self, grace_s: float = 0.0) -> None:
        """Takes nothing new; what runs has `grace_s` seconds to end. The rest hears that the server ends: as 503 where
        its response has not begun, else by a broken connection."""
        self.closing = True
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.finish()
        await self._empty_within(grace_s)
        for connection in list(self.connections):
            connection.end()
        self.driver.flush_all()
        await self._empty_within(LAST_WORDS_S)
        for connection in list(self.connections):
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()

    async def _empty_within(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._empty.wait(), seconds)
        except TimeoutError:
            pass

    def joined(self, connection: Connection) -> None:
        self.connections[connection] = None
        self._empty.clear()
        if self._timer is None:
            self._sweep()

    def left(self, connection: Connection) -> None:
        self.connections.pop(connection, None)
        if not self.connections:
            self._empty.set()

    # ------------------------------------------------------------ where requests go

    def locate(self, incoming: Incoming, any_host: bool) -> Place:
        """The function that a request is for; Refusal where there is none, or not for everybody."""
        head = incoming.head
        for_people = head.pages and incoming.method in ("GET", "HEAD")
        place = locate(head.host, incoming.target, self.driver.plane.routes, self._domains, any_host, for_people)
        if place.route.web.requires_proxy_auth and not self._allowed(head.key, head.secret):
            raise Refusal(
                401,
                "this address needs a key: send a proxy token (`kedge token create --proxy`) in the headers Kedge-Key "
                "and Kedge-Secret",
                (b"www-authenticate", b"Kedge"),
            )
        return place

    def pool_of(self, place: Place) -> str:
        """The pool that answers, which is announced first where the address gives parameters; Refusal where these do
        not fit."""
        route = place.route
        target = self._targets.get(route.label)
        if target is None or target.route is not route:
            target = Target(route, self._declared(route))
            known, now = self._targets, self.driver.plane.routes.by_label
            self._targets = {label: old for label, old in known.items() if now.get(label) is old.route}
            self._targets[route.label] = target
        if not target.spec.parameters:
            return route.function
        variant = variant_of(route.function, target.spec, place.query)
        if variant is None:
            return route.function
        pool = pool_of(variant)
        if pool not in target.bound:
            if len(target.bound) >= MAX_VARIANTS:
                text = f"{target.spec.name} has {MAX_VARIANTS} different sets of parameters already"
                raise Refusal(503, text, retry_after(60))
            target.bound[pool] = None
            self.driver.submit(p.VariantBound(variant), SESSION)
        return pool

    def app_name(self, pool: str) -> str:
        """Of the app that a pool belongs to, for people; nothing where it is gone."""
        app = self.driver.plane.registry.app_with(pool)
        return app.spec.name if app is not None else ""

    def _declared(self, route: Route) -> FunctionSpec:
        registry = self.driver.plane.registry
        app = registry.app_with(route.function)
        spec = None
        if app is not None:
            spec = app.declared(app.functions[registry.own_id(route.function, app)].name)
        if spec is None:
            raise Refusal(503, f"{route.name} is not there (any more); deploy or run it again", retry_after(1))
        return spec

    # ------------------------------------------------------------ exchanges

    def new_call(self) -> str:
        self._calls += 1
        return f"{self._prefix}{self._calls:08x}"

    def submit(self, exchange: Exchange) -> None:
        """Refusal where the server ends."""
        driver = self.driver
        if self.closing or driver.ending:
            raise server_ends()
        call = exchange.call
        self._exchanges[call] = exchange
        if exchange.long:
            driver.awaited[call] = exchange.dispatched
        driver.submit(
            p.InputsSubmitted(call, exchange.pool, 0, [exchange.payload], exchange.method, stream=True, total=1),
            SESSION,
        )

    def cancel(self, exchange: Exchange) -> None:
        """Its code is told, or never begins."""
        self._leaving.pop(exchange, None)
        if exchange.call in self._exchanges:
            self.driver.submit(p.CallCancelled(exchange.call), SESSION)
            self.driver.flush_all()

    def say_goodbye(self, exchange: Exchange) -> None:
        """The code of a WebSocket knows that its client is gone: it may end by itself."""
        if exchange.call in self._exchanges:
            self._leaving[exchange] = self.now + GOODBYE_S
            self._keep_looking()

    def _heard(self, message: p.WebSent | p.WebCredited) -> None:
        exchange = self._exchanges.get(message.call)
        if exchange is not None:
            exchange.heard(message)

    def _concluded(self, call: str, result: Result | ErrorInfo) -> None:
        exchange = self._exchanges.pop(call, None)
        if exchange is not None:
            if exchange.long:
                self.driver.awaited.pop(call, None)
            self._leaving.pop(exchange, None)
            if exchange.visitor is not None:
                # Later: the plane is in the middle of what it orders, and the answer may be another request.
                self._loop.call_soon(exchange.ended, result)

    # ------------------------------------------------------------ time

    def _look_at_clock(self) -> None:
        self.now = self._loop.time()
        self.date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"

    def _keep_looking(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        self._look_at_clock()
        now = self.now
        for connection in [one for one in self.connections if one.deadline < now or one.unread]:
            if connection.deadline < now:
                connection.expired()
            elif connection.has_hung_up:
                connection.abort()
        for exchange in [one for one, end in self._leaving.items() if end < now]:
            self.cancel(exchange)
        if self.connections or self._leaving:
            self._keep_looking()


LAST_WORDS_S = 1.0
"""Seconds that clients have to read that the server ends."""


class Target:
    """What is known of the function behind a label."""

    __slots__ = ("bound", "route", "spec")

    def __init__(self, route: Route, spec: FunctionSpec) -> None:
        self.route = route
        self.spec = spec
        self.bound: dict[str, None] = {}
        """Pools of its instances that the plane was told of."""


class Session:
    """The ingress as the driver sees it: a link that hears how calls end."""

    def __init__(self, concluded: Callable[[str, Result | ErrorInfo], None]) -> None:
        self.writable = asyncio.Event()
        self.writable.set()
        self._concluded = concluded

    @property
    def unread(self) -> int:
        return 0

    @property
    def closed(self) -> bool:
        return False

    def send(self, message: Any) -> None:
        kind = type(message)
        if kind is p.OutputsDelivered:
            for output in message.outputs:
                self._concluded(message.call, output.result)
        elif kind is p.CallRefused:
            self._concluded(message.call, message.error)

    def flush(self) -> None:
        pass

    def close(self, reason: str) -> None:
        log.error("the plane failed on what the ingress said: %s", reason)

    def pause_reading(self, paused: bool) -> None:
        pass
