"""Connections: who is there, what they may say, and where it goes.

The first message must be Hello. A container proves its id with the token of its launch; a client over TCP shows the
server's token, one over the Unix socket has proved by the file's mode that it is the same user. Whatever is not
understood closes that connection, with a line in the log, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from hmac import compare_digest
from typing import Any

from kedge.model import protocol as p
from kedge.server.driver import Driver
from kedge.server.launches import Launches
from kedge.wire.transport import AsyncConnection, listen

log = logging.getLogger("kedge.server.rpc")

HELLO_TIMEOUT_S = 10.0
"""Seconds a connection may stay silent before it has said who it is."""

FromAnyone = p.FromClient | p.FromContainer


class Rpc:
    """Accepts connections for one driver."""

    def __init__(self, driver: Driver, launches: Launches, home: str, token: str) -> None:
        self._driver = driver
        self._launches = launches
        self._home = home
        self._token = token
        self._sessions = 0
        self._servers: list[asyncio.Server] = []
        self._open: dict[AsyncConnection, None] = {}

    async def listen(self, address: str) -> str:
        """Listens there; gives the address that was really taken (a TCP port of 0 becomes a number)."""
        tcp = address.startswith("tcp://")
        server = await listen(address, lambda: self._connection(tcp))
        self._servers.append(server)
        if tcp:
            host, port = server.sockets[0].getsockname()[:2]
            return f"tcp://{host}:{port}"
        return address

    def close(self) -> None:
        for server in self._servers:
            server.close()
        for connection in list(self._open):
            connection.close("the server ends")

    # ------------------------------------------------------------ one connection

    def _connection(self, tcp: bool) -> AsyncConnection:
        connection = AsyncConnection(FromAnyone, self._hello if not tcp else self._hello_tcp, self._closed)
        connection.context = ""
        self._open[connection] = None
        asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, self._expect_hello, connection)
        return connection

    def _expect_hello(self, connection: AsyncConnection) -> None:
        if not connection.context and not connection.closed:
            connection.close(f"said nothing for {HELLO_TIMEOUT_S:g} s")

    def _hello_tcp(self, connection: AsyncConnection, messages: list[Any]) -> None:
        first = messages[0]
        if isinstance(first, p.Hello) and not compare_digest(first.token.encode(), self._token.encode()):
            self._refuse(connection, "wrong token: set KEDGE_TOKEN to the token of the server")
        else:
            self._hello(connection, messages)

    def _hello(self, connection: AsyncConnection, messages: list[Any]) -> None:
        first = messages[0]
        if not isinstance(first, p.Hello):
            self._refuse(connection, f"the first message must be Hello, and was {type(first).__name__}")
        elif first.version != p.PROTOCOL_VERSION:
            self._refuse(
                connection,
                f"protocol version {first.version}, this server speaks {p.PROTOCOL_VERSION}: "
                "use the same version of kedge on both sides",
            )
        elif first.role == p.CONTAINER:
            self._welcome_container(connection, first, messages[1:])
        elif first.role == p.CLIENT:
            self._welcome_client(connection, messages[1:])
        else:
            self._refuse(connection, f"unknown role {first.role!r}")

    def _welcome_client(self, connection: AsyncConnection, rest: list[Any]) -> None:
        self._sessions += 1
        session = f"se-{self._sessions}"
        self._admit(connection, session)
        connection.on_messages = self._from_client
        if rest:
            self._from_client(connection, rest)

    def _welcome_container(self, connection: AsyncConnection, hello: p.Hello, rest: list[Any]) -> None:
        container = self._driver.plane.containers.get(hello.identity)
        if not self._launches.proves(hello.identity, hello.token):
            self._refuse(connection, f"{hello.identity or 'a container'} shows a token that is not its own")
        elif container is None or container.state != "starting":
            self._refuse(connection, "this container is not wanted any more")
        else:
            self._admit(connection, hello.identity)
            connection.on_messages = self._from_container
            if rest:
                self._from_container(connection, rest)

    def _admit(self, connection: AsyncConnection, address: str) -> None:
        connection.context = address
        self._driver.links[address] = connection
        connection.send(p.Welcome(address, server=self._home, home=self._home))

    def _refuse(self, connection: AsyncConnection, reason: str) -> None:
        connection.send(p.Refused(reason))
        connection.close(reason)

    def _from_client(self, connection: AsyncConnection, messages: list[Any]) -> None:
        session, driver = connection.context, self._driver
        for message in messages:
            kind = type(message)
            if kind in CLIENT_MESSAGES:
                driver.submit(message, session)
            elif kind is p.StreamCredited:
                driver.relay_credit(message)
            elif kind is p.OutputSubscribed:
                driver.subscribe(message.app, session)
            else:
                self._refuse(connection, f"a client does not send {kind.__name__}")
                return
        driver.flush_all()

    def _from_container(self, connection: AsyncConnection, messages: list[Any]) -> None:
        container, driver = connection.context, self._driver
        for message in messages:
            kind = type(message)
            if kind in CONTAINER_MESSAGES:
                driver.submit(message, container)
            elif kind is p.StreamValues:
                driver.relay_values(message, container)
            else:
                self._refuse(connection, f"a container does not send {kind.__name__}")
                return
        driver.flush_all()

    def _closed(self, connection: AsyncConnection, reason: str) -> None:
        self._open.pop(connection, None)
        address = connection.context
        if not address:
            log.warning("a connection was closed before it said who it is: %s", reason)
            return
        self._driver.links.pop(address, None)
        if address.startswith("se-"):
            self._driver.unsubscribe(address)
            self._driver.submit(p.SessionClosed(reason), address)
        else:
            if reason != "closed by the peer":
                log.warning("%s: %s", address, reason)
            self._driver.submit(p.ContainerDisconnected(address, reason))
        self._driver.flush_all()


CLIENT_MESSAGES = frozenset(
    (
        p.AppCreated,
        p.AppStopped,
        p.VariantBound,
        p.InputsSubmitted,
        p.CallClosed,
        p.CallCancelled,
        p.OutputsRequested,
        p.OutputsForgotten,
        p.StatisticsRequested,
        p.AutoscalerUpdated,
        p.CallRequested,
        p.SessionClosed,
    )
)
CONTAINER_MESSAGES = frozenset(
    (p.ContainerReady, p.ContainerFailed, p.InputsFinished, p.InputsStarted, p.InputsReturned, p.Heartbeat)
)
