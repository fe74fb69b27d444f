"""How this process reaches a plane: which one, and by which connections.

Blocking code shares one connection (`link`), each event loop has one of its own (`async_link`), made on first use. A
forked child starts with none, and with call ids of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import threading
import weakref
from collections.abc import Callable
from typing import Any

from kedge import exception
from kedge.model.ids import CALL
from kedge.model.protocol import AppCreated, Welcome
from kedge.sdk import context
from kedge.sdk.async_link import AsyncLink
from kedge.sdk.link import Link, greet


class _CallIds:
    """`fc-` and 20 characters: 12 random ones for the process, then a counter. Unique, and made in no time."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self._prefix = f"{CALL}-{secrets.token_hex(6)}"
        self._count = itertools.count().__next__

    def __call__(self) -> str:
        return f"{self._prefix}{self._count():08x}"


new_call_id = _CallIds()


class Client:
    """How this process reaches one plane.

    Args:
        address: Path of a Unix socket, or `tcp://host:port`.
        token: What a server behind TCP asks for.
        tls_ca: A file of certificates that the server's is checked against. With `tcps://`, the default is what this
            machine trusts.
        token_of: Where the token comes from, for the error where it is refused.

    Example:
        client = Client.connect("/run/kedge/plane.sock")
        client.request(lambda number: StatisticsRequested(number))
        client.close()
    """

    def __init__(self, address: str, token: str = "", tls_ca: str = "", token_of: str = "") -> None:
        self.address = address
        self.token = token
        self.tls_ca = tls_ca
        self.token_of = token_of
        self.apps: dict[str, AppCreated] = {}
        """Apps that live as long as this process: announced again after a reconnect."""
        self.lost: Callable[[], str] = lambda: ""
        """Says why no reconnect can help (the private server has ended); empty where one may."""
        self._mutex = threading.Lock()
        self._link: Link | None = None
        self._links: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncLink] = weakref.WeakKeyDictionary()

    @classmethod
    def connect(cls, address: str, token: str = "", tls_ca: str = "", token_of: str = "") -> Client:
        """A client whose blocking connection is up; ConnectionError or AuthError where that fails."""
        client = cls(address, token, tls_ca, token_of)
        client.link()
        return client

    @classmethod
    def current(cls) -> Client:
        """The client that calls of this process use: its container's, its running app's, or the machine's server."""
        client = _current[-1] if _current else None
        if client is None:
            client = _make_default()
            _current.append(client)
        return client

    def link(self) -> Link:
        """The blocking connection, made on first use."""
        link = self._link
        if link is None:
            with self._mutex:
                if self._link is None:
                    self._link = Link(self)
                link = self._link
        return link

    async def async_link(self) -> AsyncLink:
        """The connection of the running event loop, made on first use."""
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is None or link.closed:
            link = self._links[loop] = AsyncLink(self)
        if not link.opened:
            await link.open()
        return link

    def request(self, make: Callable[[int], Any], timeout: float | None = None) -> Any:
        """Asks and waits for the answer: `make` gets the number of the request and gives the message."""
        return self.link().request(make, timeout)

    async def request_async(self, make: Callable[[int], Any]) -> Any:
        link = await self.async_link()
        return await link.request(make)

    def web(self) -> str:
        """Where the server answers HTTP requests: `http://127.0.0.1:5334`. ExecutionError where it does not."""
        return self._answering(self.greeting(self.link().welcome))

    async def web_async(self) -> str:
        """`web` for event loops."""
        link = await self.async_link()
        greeting = link.welcome if link.welcome.web else await asyncio.to_thread(self.greeting, link.welcome)
        return self._answering(greeting)

    def greeting(self, last: Welcome) -> Welcome:
        """What the server says about itself, with its address for requests: where it had none when the connection was
        made, it is asked again."""
        return last if last.web else greet(self)

    def _answering(self, greeting: Welcome) -> str:
        if not greeting.web:
            raise exception.ExecutionError(
                f"the kedge server at {self.address} answers no HTTP requests; start it with an address for them "
                "(`kedge server start --help`)"
            )
        return greeting.web

    def nudge(self) -> None:
        """See the function of this name."""
        if self._link is not None:
            self._link.nudge()

    def close(self) -> None:
        """Says goodbye on all connections. What still waits gets ClientClosed."""
        while self in _current:
            _current.remove(self)
        if self._link is not None:
            self._link.close()
        for loop, link in list(self._links.items()):
            if loop.is_closed():
                continue
            try:
                running = asyncio.get_running_loop() is loop
            except RuntimeError:
                running = False
            if running or not loop.is_running():
                link.close()
            else:
                loop.call_soon_threadsafe(link.close)


_current: list[Client] = []
"""The last one counts: an app that runs inside another's `with` comes before it."""


def use(client: Client) -> None:
    """From now on calls go through `client`, until it is closed."""
    _current.append(client)


def running() -> Client | None:
    """The client in use, if any: nothing is connected for the question."""
    return _current[-1] if _current else None


def nudge() -> None:
    """Lets every thread of this process that waits for a call run for a moment.

    For the runtime of containers: an exception that it sets for a thread is raised once that thread runs.
    """
    for client in _current:
        client.nudge()


def _make_default() -> Client:
    container = context.container()
    if container is not None:
        return Client(container.address)
    from kedge.sdk import server_process

    found = server_process.find()
    if found is None:
        raise exception.ConnectionError(
            "no app is running in this process, and no kedge server on this machine; wrap the calls in "
            "`with app.run():`, start the program with `kedge run`, or start a server with `kedge server start`"
        )
    return Client(found.address, found.token, found.tls_ca, found.token_of)


def _forked() -> None:
    # The sockets belong to the parent: to close them here would be silent, to use them would mix two streams.
    _inherited.extend(_current)
    _current.clear()
    new_call_id.renew()


_inherited: list[Client] = []
"""The parent's clients, kept from the garbage collector of the child, which would complain about open sockets."""
os.register_at_fork(after_in_child=_forked)
