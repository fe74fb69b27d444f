"""Connections: who is there, what they may say, and where it goes.

The first message must be Hello. A container proves its id with the token of its launch; a client over TCP shows the
server's token, one over the Unix socket has proved by the file's mode that it is the same user. Code in a container
that connects as a client proves which one it is in the same way: only then is it heard in that one's name. What is not
understood (`wire.codec`) or makes no sense (`door`) closes that connection with Refused, with a line in the log, and
nothing else.

A client that does not read its results is still read, since blocking clients send before they read; once too much waits
for it, it is taken for dead (`wire.transport.MAX_UNREAD`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kedge.model import protocol as p
from kedge.model.payload import ErrorInfo
from kedge.server import peers
from kedge.server.door import refusal
from kedge.server.driver import Driver
from kedge.server.launches import Launches
from kedge.server.office import Office
from kedge.server.tokens import id_of
from kedge.wire.codec import MAX_FRAME
from kedge.wire.transport import MAX_UNREAD, AsyncConnection, is_tcp, listen

if TYPE_CHECKING:
    import ssl

log = logging.getLogger("kedge.server.rpc")

HELLO_TIMEOUT_S = 10.0
"""Seconds a connection may stay silent before it has said who it is."""
HELLO_FRAME = 64 * 1024
"""Bytes of a frame from somebody who has not said who it is."""
MAX_STRANGERS = 512
"""Connections that may be silent at the same time: they must not use up the file descriptors."""
MAX_QUOTE = 500
"""Characters of a reason that reach the log: a part of it may be the peer's words."""

FromAnyone = p.FromClient | p.FromContainer


class Rpc:
    """Accepts connections for one driver."""

    def __init__(
        self,
        driver: Driver,
        launches: Launches,
        office: Office,
        home: str,
        hello_timeout: float = HELLO_TIMEOUT_S,
        max_unread: int = MAX_UNREAD,
    ) -> None:
        self._driver = driver
        self._launches = launches
        self._payloads = launches.payloads
        self._office = office
        self._home = home
        self._hello_timeout = hello_timeout
        self._max_unread = max_unread
        self._sessions = 0
        self._servers: list[asyncio.Server] = []
        self._open: dict[AsyncConnection, None] = {}
        self._strangers: dict[AsyncConnection, asyncio.TimerHandle] = {}
        self._shown: dict[AsyncConnection, str] = {}
        """Ids of the tokens that clients over TCP have come in with."""
        self._within: dict[str, str] = {}
        """The containers whose code sessions are."""
        self.web: Callable[[str], tuple[str, str]] = lambda host: ("", "")
        """Where the ingress answers: its address and domain for clients that know this machine by this name, which is
        empty for those on it."""
        office.tokens.deleted = self._token_deleted

    async def listen(self, address: str, context: ssl.SSLContext | None = None) -> str:
        """Listens there, over TCP under TLS where there is a `context`. Gives the address that was really taken: a TCP
        port of 0 becomes a number."""
        tcp = is_tcp(address)
        server = await listen(address, lambda: self.connection(tcp), context)
        self._servers.append(server)
        if tcp:
            host, port = server.sockets[0].getsockname()[:2]
            scheme = "tcp" if context is None else "tcps"
            return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        return address

    def connection(self, tcp: bool = False) -> AsyncConnection:
        """What serves one more connection: a protocol for asyncio."""
        connection = AsyncConnection(
            FromAnyone, self._hello_tcp if tcp else self._hello, self._closed, self._max_unread
        )
        connection.context = ""
        connection.on_garbage = self._refuse
        connection.decoder.limit = HELLO_FRAME
        self._open[connection] = None
        timer = asyncio.get_running_loop().call_later(self._hello_timeout, self._too_silent, connection)
        self._strangers[connection] = timer
        if len(self._strangers) > MAX_STRANGERS:
            self._too_silent(next(iter(self._strangers)))
        return connection

    def close(self, reason: str = "the server ends") -> None:
        """Takes no more connections, and closes those of clients. Containers are told by the driver."""
        for server in self._servers:
            server.close()
        for connection in list(self._open):
            if connection.context not in self._driver.plane.containers:
                connection.close(reason)

    def close_all(self) -> None:
        for connection in list(self._open):
            connection.abort("the server ends")

    def container_of(self, session: str) -> str:
        """The container whose code a session is, as it has proved; empty where it is none's."""
        return self._within.get(session, "")

    # ------------------------------------------------------------ who is there

    def _too_silent(self, connection: AsyncConnection) -> None:
        if self._strangers.pop(connection, None) is not None:
            if not connection.connected:
                del self._open[connection]  # its handshake has failed, and nobody says so
            connection.abort(f"said nothing that counts for {self._hello_timeout:g} s, or came when too many did")

    def _hello_tcp(self, connection: AsyncConnection, messages: list[Any]) -> None:
        first = messages[0] if messages else None
        if isinstance(first, p.Hello) and not self._office.tokens.admits(first.token):
            self._refuse(connection, "wrong token: set KEDGE_TOKEN to a token of the server (`kedge token create`)")
            return
        if isinstance(first, p.Hello):
            self._shown[connection] = id_of(first.token)
        self._hello(connection, messages)

    def _token_deleted(self, id: str) -> None:
        for connection in [one for one, shown in self._shown.items() if shown == id]:
            self._refuse(connection, "the token that it came in with has been deleted")

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
            self._welcome_client(connection, first, messages[1:])
        else:
            self._refuse(connection, f"unknown role {first.role[:MAX_QUOTE]!r}: it must be client or container")

    def _welcome_client(self, connection: AsyncConnection, hello: p.Hello, rest: list[Any]) -> None:
        if hello.identity and not self._launches.proves(hello.identity, hello.token):
            self._refuse(connection, f"{hello.identity[:60]!r} shows a token that is not its own")
            return
        self._sessions += 1
        session = f"se-{self._sessions}"
        if hello.identity:
            self._within[session] = hello.identity
        apart = peers.is_inside(peers.process_of(connection.peer_socket))
        files = self._payloads.admit(session, hello.identity, apart)
        self._admit(connection, session, self._from_inside if apart else self._from_client, rest, files)

    def _welcome_container(self, connection: AsyncConnection, hello: p.Hello, rest: list[Any]) -> None:
        container = self._driver.plane.containers.get(hello.identity)
        if not self._launches.proves(hello.identity, hello.token):
            self._refuse(connection, f"{hello.identity[:60]!r} shows a token that is not its own")
        elif container is None or container.state != "starting" or hello.identity in self._driver.links:
            self._refuse(connection, "this container is not wanted any more")
        else:
            self._payloads.admit(hello.identity, hello.identity, apart=True)
            self._admit(connection, hello.identity, self._from_container, rest)

    def _admit(
        self, connection: AsyncConnection, address: str, next_state: Any, rest: list[Any], files: bool = True
    ) -> None:
        """`files`: large values may go past the connection, as files of this machine."""
        self._strangers.pop(connection).cancel()
        connection.context = address
        connection.decoder.limit = MAX_FRAME
        connection.on_messages = next_state
        self._driver.links[address] = connection
        web, domain = self.web(connection.reached_at)
        home = self._home if files else ""
        connection.send(p.Welcome(address, server=self._home, home=home, web=web, web_domain=domain))
        if rest:
            next_state(connection, rest)

    def _refuse(self, connection: AsyncConnection, reason: str) -> None:
        if not connection.closed:
            connection.send(p.Refused(reason[:MAX_QUOTE]))
            connection.close(reason[:MAX_QUOTE])

    # ------------------------------------------------------------ what they say

    def _from_client(self, connection: AsyncConnection, messages: list[Any]) -> None:
        session, driver = connection.context, self._driver
        tray = self._payloads.trays.get(session)
        for message in messages:
            kind = type(message)
            if reason := refusal(message) or (tray.take(message) if tray is not None else ""):
                self._refuse(connection, reason)
                break
            if (kind is p.AppCreated or kind is p.AppDeployed) and (error := self._launches.objection(message.app)):
                driver.send(session, p.Reply(message.request, None, ErrorInfo(type(error).__name__, str(error))))
            elif kind in CLIENT_MESSAGES:
                driver.submit(message, session)
            elif kind is p.StreamCredited:
                driver.relay_credit(message, session)
            elif kind is p.OutputSubscribed:
                driver.subscribe(message.app, session)
            elif kind in self._office.answers:
                self._office.answer(message, session)
            else:
                self._refuse(connection, f"a client does not send {kind.__name__}")
                break
        driver.flush_all()

    def _from_inside(self, connection: AsyncConnection, messages: list[Any]) -> None:
        """From code that runs in a container, and is kept apart."""
        granted: list[Any] = []
        container = self.container_of(connection.context)
        for message in messages:
            if reason := peers.refusal(message, container, self._launches.place):
                if request := getattr(message, "request", 0):
                    error = ErrorInfo("PermissionDeniedError", reason)
                    self._driver.send(connection.context, p.Reply(request, None, error))
            else:
                granted.append(message)
        self._from_client(connection, granted)

    def _from_container(self, connection: AsyncConnection, messages: list[Any]) -> None:
        container, driver = connection.context, self._driver
        tray = self._payloads.trays.get(container)
        for message in messages:
            kind = type(message)
            if reason := refusal(message) or (tray.take(message) if tray is not None else ""):
                self._refuse(connection, reason)
                break
            if kind in CONTAINER_MESSAGES:
                driver.submit(message, container)
            elif kind is p.StreamValues:
                driver.relay_values(message, container)
            elif kind is p.WebSent or kind is p.WebCredited:
                driver.relay_web(message, container)
            else:
                self._refuse(connection, f"a container does not send {kind.__name__}")
                break
        driver.flush_all()

    def _closed(self, connection: AsyncConnection, reason: str) -> None:
        self._open.pop(connection, None)
        self._shown.pop(connection, None)
        timer = self._strangers.pop(connection, None)
        if timer is not None:
            timer.cancel()
        address = connection.context
        if not address:
            log.warning("a connection was closed before it said who it is: %s", reason)
            return
        if reason != "closed by the peer" and not self._driver.ending:
            log.warning("%s: %s", address, reason)
        del self._driver.links[address]
        self._payloads.depart(address)
        if address.startswith("se-"):
            self._within.pop(address, None)
            self._driver.unsubscribe(address)
            self._office.session_closed(address)
            self._driver.submit(p.SessionClosed(reason), address)
        else:
            self._driver.submit(p.ContainerDisconnected(address, reason))
        self._driver.flush_all()


CLIENT_MESSAGES = frozenset(
    (
        p.AppCreated,
        p.AppDeployed,
        p.AppRolledBack,
        p.AppStopped,
        p.FunctionRequested,
        p.ContainerStopRequested,
        p.VariantBound,
        p.InputsSubmitted,
        p.CallClosed,
        p.CallCancelled,
        p.OutputsRequested,
        p.OutputsForgotten,
        p.StatisticsRequested,
        p.AutoscalerUpdated,
        p.ConcurrencyUpdated,
        p.CallRequested,
        p.SessionClosed,
    )
)
CONTAINER_MESSAGES = frozenset(
    (
        p.ContainerReady,
        p.ContainerFailed,
        p.InputsFinished,
        p.InputsStarted,
        p.InputsReturned,
        p.InputsOverran,
        p.SlotsChanged,
        p.ContainerLeaving,
        p.Heartbeat,
    )
)
