"""Where web functions are reached: the port, the addresses that lead there, and the ingress behind it.

The port is taken at once, so that addresses can be told before anything answers there. A machine's server keeps its
port from start to start: the usual one, or where another program has that, one that is remembered in the state
directory. A private server takes any, and loads the ingress only when it has a web function.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kedge.server.settings import HTTP_PORT, Settings, is_loopback

if TYPE_CHECKING:
    from kedge.server.ingress.ingress import Ingress

log = logging.getLogger("kedge.server")

BACKLOG = 1024
"""Connections that may wait to be accepted: a burst of clients, or those that come before the ingress is loaded."""
REMEMBERED = "http-port"
MOST_REMEMBERED = 4
"""Ports that a server has had, of which the first that is free is its own again."""
EVERYWHERE = ("0.0.0.0", "::", "")


class Web:
    """The HTTP side of one server."""

    def __init__(self, settings: Settings, directory: Path, context: ssl.SSLContext | None) -> None:
        self._settings = settings
        self._remembered = directory / REMEMBERED
        self._context = context
        self._socket: socket.socket | None = None
        self._ingress: Ingress | None = None
        self.port = 0
        self.wanted = 0
        """The port that it would have had, where another program has that; 0 where it has what it wanted."""

    def bind(self) -> None:
        """Takes the port. OSError where it cannot be had."""
        settings = self._settings
        if settings.port is not None:
            self._socket = listening(settings.host, settings.port)
        else:
            self._socket = self._usual()
        self.port = self._socket.getsockname()[1]

    def _usual(self) -> socket.socket:
        """At a port that it had before, the first one first; at the usual one in the beginning; else at any. All of
        them are remembered: addresses stay, and a port that was taken for a while is its own again the next time."""
        had = _numbers(self._remembered)
        tried = had or [HTTP_PORT]
        for port in tried:
            try:
                sock = listening(self._settings.host, port)
                break
            except OSError as error:
                log.info("port %d is taken: %s", port, error)
        else:
            sock = listening(self._settings.host, 0)
        port = sock.getsockname()[1]
        self.wanted = tried[0] if port != tried[0] else 0
        _remember(self._remembered, list(dict.fromkeys((*had, port)))[:MOST_REMEMBERED])
        return sock

    def url(self, host: str = "") -> str:
        """Without a slash at the end. `host` is the name of this machine as the client sees it."""
        settings = self._settings
        if settings.public_url:
            return settings.public_url
        if settings.host not in EVERYWHERE:
            host = settings.host
        host = host or "127.0.0.1"
        return f"{self._scheme}://{f'[{host}]' if ':' in host else host}{self._suffix}"

    def domain(self, local: bool = True) -> str:
        """Hosts `LABEL.domain` lead here as well; empty where there are none for this client."""
        settings = self._settings
        if settings.domains:
            return settings.domains[0] + ("" if settings.public_url else self._suffix)
        if local and (is_loopback(settings.host) or settings.host in EVERYWHERE):
            return f"localhost{self._suffix}"
        return ""

    async def open(self, driver: Any, allowed: Any) -> None:
        """Answers from now on. `allowed(id, secret)` says whether a proxy token is good."""
        if self._ingress is not None or self._socket is None:
            return
        from kedge.server.ingress.ingress import Ingress  # it costs time and memory that many a run can do without

        settings = self._settings
        public = urlsplit(settings.public_url).hostname
        domains = (*settings.domains, *([public] if public else []), "localhost")
        ingress = Ingress(driver, allowed=allowed, trust_forwarded=settings.trust_forwarded, domains=domains)
        self._ingress = ingress
        await ingress.listen(ssl=self._context, sock=self._socket)

    async def close(self, grace_s: float) -> None:
        """Takes no more requests; those that are under way have so many seconds."""
        if self._ingress is not None:
            await self._ingress.close(grace_s)

    def release(self) -> None:
        if self._socket is not None:
            self._socket.close()

    @property
    def _scheme(self) -> str:
        return "https" if self._context is not None else "http"

    @property
    def _suffix(self) -> str:
        usual = 443 if self._context is not None else 80
        return "" if self.port == usual else f":{self.port}"


def context_of(settings: Settings) -> ssl.SSLContext | None:
    """The certificate of this server, for everything that it listens for. ValueError where it is none."""
    if not settings.tls:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(
            f"{settings.tls_cert} and {settings.tls_key} are no certificate with its key: {error}"
        ) from None
    return context


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; OSError says where it cannot."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise OSError(f"cannot listen on {host}, port {port}: {getattr(error, 'strerror', None) or error}") from None
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host in EVERYWHERE:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {host}, port {port}: {os.strerror(error.errno or 0)}") from None
    return sock


def _numbers(path: Path) -> list[int]:
    try:
        words = path.read_text().split()
    except (OSError, UnicodeDecodeError):
        return []
    return [int(word) for word in words if word.isdecimal() and 0 < int(word) < 65536]


def _remember(path: Path, ports: list[int]) -> None:
    if _numbers(path) == ports:
        return
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write("".join(f"{port}\n" for port in ports))
    except OSError as error:
        log.warning("the ports %s are not remembered for the next start: %s", ports, error)
