"""The connections of this process to the plane.

Blocking code shares one connection and no thread serves it: of all threads that wait, one leads. It reads the socket,
hands out what arrives for the others too, and passes the lead on when its own answer has come. A call thus costs one
send and one receive, and wakes nobody.

Each event loop has a connection of its own, closed with the loop.

A connection that breaks while something is unfinished is made again for up to 20 seconds (a server restarts), and the
unfinished is sent again under the same ids. A forked child starts with no connection at all.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

from kedge import exception
from kedge.model.ids import CALL
from kedge.model.protocol import (
    CLIENT,
    AppCreated,
    CallCancelled,
    Hello,
    Notice,
    Refused,
    SessionClosed,
    ToClient,
    Welcome,
)
from kedge.sdk import context, output
from kedge.sdk.blobs import BlobStore
from kedge.sdk.calls import Pending, Registry, Request
from kedge.sdk.serializer import PYTHON
from kedge.wire.codec import FrameError
from kedge.wire.transport import AsyncConnection, BlockingConnection, ConnectionLost, split_tcp

RECONNECT_S = 20.0
"""How long a lost server is waited for: a restart takes less, and nobody likes to wait longer for an error."""
HANDSHAKE_S = 10.0
_FIRST_RETRY_S = 0.02
_LONGEST_RETRY_S = 1.0


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


def _heard(message: Any) -> None:
    """Messages that no call waits for: notices, for whoever shows output."""
    if isinstance(message, Notice):
        sink = output.current()
        if sink is not None:
            sink.notice(message.text, message.level)


def _hello(token: str) -> Hello:
    return Hello(CLIENT, "", token, python=PYTHON, process=os.getpid())


def _welcomed(message: Any, address: str) -> Welcome:
    if isinstance(message, Welcome):
        return message
    reason = message.reason if isinstance(message, Refused) else f"it answered with {type(message).__name__}"
    raise exception.AuthError(f"the kedge server at {address} refuses this connection: {reason}")


def _blobs_of(welcome: Welcome, address: str) -> BlobStore | None:
    """Payload files are for processes of one machine: over TCP everything travels in frames."""
    return BlobStore(welcome.home) if welcome.home and not split_tcp(address)[1] else None


class Client:
    """How this process reaches one plane.

    Args:
        address: Path of a Unix socket, or `tcp://host:port`.
        token: What a server behind TCP asks for.

    Example:
        client = Client.connect("/home/me/.kedge/server.sock")
        client.request(lambda number: StatisticsRequested(number))
        client.close()
    """

    def __init__(self, address: str, token: str = "") -> None:
        self.address = address
        self.token = token
        self.apps: dict[str, AppCreated] = {}
        """Apps that live as long as this process: announced again after a reconnect."""
        self.lost: Callable[[], str] = lambda: ""
        """Says why no reconnect can help (the private server has ended); empty where one may."""
        self._mutex = threading.Lock()
        self._link: Link | None = None
        self._links: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncLink] = weakref.WeakKeyDictionary()

    @classmethod
    def connect(cls, address: str, token: str = "") -> Client:
        """A client whose blocking connection is up; ConnectionError or AuthError where that fails."""
        client = cls(address, token)
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


def _make_default() -> Client:
    container = context.container()
    if container is not None:
        return Client(container.address)
    from kedge.sdk import server_process

    found = server_process.find()
    if found is None:
        raise exception.ConnectionError(
            "no app is running in this process, and no kedge server on this machine; wrap the calls in "
            "`with app.run():`, start the program with `kedge run`, or start a server with `kedge server`"
        )
    return Client(found.address, found.token)


def _forked() -> None:
    # The sockets belong to the parent: to close them here would be silent, to use them would mix two streams.
    _inherited.extend(_current)
    _current.clear()
    new_call_id.renew()


_inherited: list[Client] = []
"""The parent's clients, kept from the garbage collector of the child, which would complain about open sockets."""
os.register_at_fork(after_in_child=_forked)


class Link:
    """The blocking connection of a client. Safe for any number of threads."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.registry = Registry(_heard)
        self._mutex = threading.Lock()
        self._led = False
        self._bells: deque[Any] = deque()
        self._closed = False
        self._lost_at: float | None = None
        self.blobs: BlobStore | None = None
        self.session = ""
        try:
            self._connection = self._open()
        except (OSError, ConnectionLost) as error:
            raise exception.ConnectionError(f"no kedge server answers at {client.address}: {error}") from error

    def send(self, messages: list[Any]) -> None:
        """Sends one frame. Where the server is gone nothing happens: whoever waits sends the unfinished again."""
        connection = self._connection
        try:
            connection.send(messages)
        except ConnectionLost:
            pass
        except FrameError as error:
            raise exception.RequestSizeError(f"this is too large for a connection over TCP: {error}") from error
        except BaseException:
            # Interrupted, perhaps in the middle of a frame: nothing sensible can follow it.
            connection.close()
            raise

    def wait(self, pending: Pending, timeout: float | None = None) -> bool:
        """Waits until `pending.ready`; False where that took longer than `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not pending.ready:
            bell: Any = None
            with self._mutex:
                if self._led:
                    bell = threading.Lock()
                    bell.acquire()
                    pending.bell = lambda bell=bell: _ring(bell)  # type: ignore[misc]
                    self._bells.append(bell)
                else:
                    self._led = True
            in_time = self._lead(pending, deadline) if bell is None else self._follow(pending, bell, deadline)
            if not in_time:
                return pending.ready
        return True

    def request(self, make: Callable[[int], Any], timeout: float | None = None) -> Any:
        number = self.registry.next_request()
        pending = Request(make(number))
        self.registry.requests[number] = pending
        try:
            self.send([pending.message])
            if not self.wait(pending, timeout):
                raise exception.TimeoutError(
                    f"the kedge server did not answer {type(pending.message).__name__} in {timeout} s"
                )
        finally:
            del self.registry.requests[number]
        if pending.failure is not None:
            raise pending.failure
        return pending.value

    def cancel(self, call: str) -> None:
        """Nobody waits for the call any more."""
        if not self._closed:
            self.send([CallCancelled(call)])

    def nudge(self) -> None:
        """Lets every waiting thread run for a moment, so that an exception set for it from outside is raised."""
        from kedge.model.protocol import CallRequested

        with self._mutex:
            for bell in self._bells:
                _ring(bell)
        self.send([CallRequested(0, "")])

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.send([SessionClosed("the program has ended")])
        self._connection.close()
        self.registry.fail(lambda: exception.ClientClosed("the connection to the kedge server was closed"))

    # ------------------------------------------------------------ who reads the socket

    def _lead(self, pending: Pending, deadline: float | None) -> bool:
        try:
            while not pending.ready:
                remaining = None
                if deadline is not None:
                    remaining = deadline - time.monotonic()
                    if remaining <= 0:
                        return False
                try:
                    messages = self._connection.receive(remaining)
                except ConnectionLost as error:
                    self._reconnect(str(error), deadline)
                    continue
                self.registry.dispatch(messages)
            return True
        finally:
            with self._mutex:
                self._led = False
                self._pass_on()

    def _follow(self, pending: Pending, bell: Any, deadline: float | None) -> bool:
        """Sleeps until the leader has something for us or the lead is free; False when time is over."""
        try:
            if pending.ready:
                return True
            if deadline is None:
                bell.acquire()
                return True
            remaining = deadline - time.monotonic()
            return remaining > 0 and bool(bell.acquire(timeout=min(remaining, threading.TIMEOUT_MAX)))
        finally:
            with self._mutex:
                pending.bell = None
                self._bells.remove(bell)
                if not self._led:
                    self._pass_on()

    def _pass_on(self) -> None:
        """The lead is free: wakes one who may take it."""
        if self._bells:
            _ring(self._bells[0])

    # ------------------------------------------------------------ making the connection

    def _open(self) -> BlockingConnection:
        client = self._client
        connection = BlockingConnection.connect(client.address, ToClient, HANDSHAKE_S)
        try:
            connection.send([_hello(client.token)])
            messages = connection.receive(HANDSHAKE_S)
            if not messages:
                raise ConnectionLost(f"no answer within {HANDSHAKE_S:g} s")
            welcome = _welcomed(messages[0], client.address)
        except BaseException:
            connection.close()
            raise
        self.session = welcome.session
        self.blobs = _blobs_of(welcome, client.address)
        self.registry.dispatch(messages[1:])
        return connection

    def _reconnect(self, reason: str, deadline: float | None) -> None:
        """Makes the connection anew and sends the unfinished again, or fails all that waits."""
        self._connection.close()
        now = time.monotonic()
        self._lost_at = self._lost_at or now
        give_up = self._lost_at + RECONNECT_S
        delay = _FIRST_RETRY_S
        while True:
            hopeless = "the connection was closed" if self._closed else self._client.lost()
            if hopeless or time.monotonic() > give_up:
                self._lost_at = None
                waited = hopeless or f"it could not be reached again for {RECONNECT_S:g} s"
                text = f"the kedge server at {self._client.address} was lost ({reason}): {waited}"
                self.registry.fail(lambda: exception.ConnectionError(text))
                return
            if deadline is not None and time.monotonic() >= deadline:
                return
            try:
                connection = self._open()
                # Apps and pools first: once the new connection is in place, other threads send inputs on it.
                connection.send([*self._client.apps.values(), *self.registry.variants_again()])
                self._connection = connection
                self._lost_at = None
                connection.send(self.registry.resend())
                return
            except (OSError, ConnectionLost, exception.AuthError) as error:
                reason = f"{reason}; {error}" if delay == _FIRST_RETRY_S else reason
            time.sleep(delay)
            delay = min(delay * 2, _LONGEST_RETRY_S)


def _ring(bell: Any) -> None:
    try:
        bell.release()
    except RuntimeError:
        pass  # it has been rung already


class AsyncLink:
    """The connection of one event loop. Everything here happens on that loop."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.registry = Registry(_heard)
        self.blobs: BlobStore | None = None
        self.session = ""
        self.opened = False
        self.closed = False
        self._opening = asyncio.Lock()
        self._connection: AsyncConnection | None = None
        self._welcome: asyncio.Future[Any] | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._guard: AsyncGenerator[None, None] | None = None

    async def open(self) -> None:
        async with self._opening:
            if self.opened:
                return
            try:
                self._connection = await self._connect()
            except (OSError, ConnectionLost) as error:
                raise exception.ConnectionError(f"no kedge server answers at {self._client.address}: {error}") from error
            self.opened = True
            self._guard = _until_the_loop_ends(self)
            await anext(self._guard)

    def send(self, messages: list[Any]) -> None:
        """Queues messages; all of one iteration of the loop leave in one frame."""
        connection = self._connection
        if connection is not None:
            for message in messages:
                connection.send(message)

    async def writable(self) -> None:
        """Waits while the server does not keep up with what we send."""
        if self._connection is not None:
            await self._connection.writable.wait()

    async def wait(self, pending: Pending) -> None:
        while not pending.ready:
            future = asyncio.get_running_loop().create_future()
            pending.bell = lambda future=future: None if future.done() else future.set_result(None)  # type: ignore[misc]
            try:
                if not pending.ready:
                    await future
            finally:
                pending.bell = None

    async def request(self, make: Callable[[int], Any]) -> Any:
        number = self.registry.next_request()
        pending = Request(make(number))
        self.registry.requests[number] = pending
        try:
            self.send([pending.message])
            await self.wait(pending)
        finally:
            del self.registry.requests[number]
        if pending.failure is not None:
            raise pending.failure
        return pending.value

    def cancel(self, call: str) -> None:
        if not self.closed:
            self.send([CallCancelled(call)])

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        if self._connection is not None:
            self._connection.send(SessionClosed("the program has ended"))
            self._connection.close("closed by this process")
        self.registry.fail(lambda: exception.ClientClosed("the connection to the kedge server was closed"))

    # ------------------------------------------------------------ making the connection

    async def _connect(self) -> AsyncConnection:
        loop = asyncio.get_running_loop()
        self._welcome = loop.create_future()

        def make() -> AsyncConnection:
            return AsyncConnection(ToClient, self._received, self._lost)

        host, port = split_tcp(self._client.address)
        if port:
            _, connection = await loop.create_connection(make, host, port)
        else:
            _, connection = await loop.create_unix_connection(make, self._client.address)
        try:
            connection.send(_hello(self._client.token))
            async with asyncio.timeout(HANDSHAKE_S):
                welcome = _welcomed(await self._welcome, self._client.address)
        except TimeoutError:
            connection.close("no answer")
            raise ConnectionLost(f"no answer within {HANDSHAKE_S:g} s") from None
        except BaseException:
            connection.close("refused")
            raise
        self.session = welcome.session
        self.blobs = _blobs_of(welcome, self._client.address)
        return connection

    def _received(self, connection: AsyncConnection, messages: list[Any]) -> None:
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_result(messages[0])
            messages = messages[1:]
        self.registry.dispatch(messages)

    def _lost(self, connection: AsyncConnection, reason: str) -> None:
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_exception(ConnectionLost(reason))
        if self.closed or connection is not self._connection:
            return
        self._connection = None
        if self.registry.busy:
            self._reconnecting = asyncio.ensure_future(self._reconnect(reason))
        else:
            # Nothing is unfinished: the next call makes a connection.
            self.closed = True

    async def _reconnect(self, reason: str) -> None:
        give_up = time.monotonic() + RECONNECT_S
        delay = _FIRST_RETRY_S
        while not (hopeless := self._client.lost()) and time.monotonic() < give_up:
            try:
                connection = await self._connect()
            except (OSError, ConnectionLost, exception.AuthError):
                await asyncio.sleep(delay)
                delay = min(delay * 2, _LONGEST_RETRY_S)
                continue
            self._connection = connection
            self.send([*self.registry.variants_again(), *self.registry.resend()])
            return
        self.closed = True
        waited = hopeless or f"it could not be reached again for {RECONNECT_S:g} s"
        text = f"the kedge server at {self._client.address} was lost ({reason}): {waited}"
        self.registry.fail(lambda: exception.ConnectionError(text))


async def _until_the_loop_ends(link: AsyncLink) -> AsyncGenerator[None, None]:
    """Closes the link in `loop.shutdown_asyncgens()`, which `asyncio.run` calls: loops have no other farewell."""
    try:
        yield
    finally:
        link.close()
