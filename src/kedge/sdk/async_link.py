"""The connection of one event loop to the plane. Everything here happens on that loop.

It is made on first use and closed when the loop shuts down. Broken connections are made again as in `link`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from kedge import exception
from kedge.model.protocol import CallCancelled, SessionClosed, ToClient, Welcome
from kedge.sdk.blobs import BlobStore
from kedge.sdk.calls import Pending, Registry, Request
from kedge.sdk.link import (
    FIRST_RETRY_S,
    HANDSHAKE_S,
    LONGEST_RETRY_S,
    RECONNECT_S,
    blobs_of,
    heard,
    hello,
    no_answer,
    welcomed,
)
from kedge.wire.transport import AsyncConnection, ConnectionLost, is_tls, split_tcp

if TYPE_CHECKING:
    from kedge.sdk.client import Client


class AsyncLink:
    """The connection of one event loop. Everything here happens on that loop."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.registry = Registry(heard)
        self.welcome = Welcome("")
        """What the server said about itself when the connection was made last."""
        self.opened = False
        self.closed = False
        self._opening = asyncio.Lock()
        self._connection: AsyncConnection | None = None
        self._first: asyncio.Future[Any] | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._guard: AsyncGenerator[None, None] | None = None

    async def open(self) -> None:
        async with self._opening:
            if self.opened:
                return
            try:
                self._connection = await self._connect()
            except (OSError, ConnectionLost) as error:
                raise no_answer(self._client, error) from error
            self.opened = True
            self._guard = _until_the_loop_ends(self)
            await anext(self._guard)

    @property
    def blobs(self) -> BlobStore | None:
        """Where values too large for a frame go; None where frames must carry everything."""
        return self.registry.blobs

    def send(self, messages: list[Any]) -> None:
        """Queues messages; all of one iteration of the loop leave in one frame."""
        connection = self._connection
        if connection is not None:
            for message in messages:
                connection.send(message)

    async def wait(self, pending: Pending, timeout: float | None = None) -> None:
        """Until `pending.ready`, or for `timeout` seconds."""
        loop = asyncio.get_running_loop()
        while not pending.ready:
            future = loop.create_future()
            pending.bell = lambda future=future: None if future.done() else future.set_result(None)
            timer = None if timeout is None else loop.call_later(timeout, pending.bell)
            try:
                if not pending.ready:
                    await future
            finally:
                pending.bell = None
                if timer is not None:
                    timer.cancel()
            if timer is not None:
                return

    def wake(self, pending: Pending) -> None:
        """Something else than a message made `pending` ready."""
        pending.notify()

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
        self.registry.abandon(call)
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
        first = self._first = loop.create_future()

        def make() -> AsyncConnection:
            return AsyncConnection(ToClient, self._received, self._lost)

        host, port = split_tcp(self._client.address)
        if port:
            _, connection = await loop.create_connection(make, host, port, ssl=_encryption(self._client))
        else:
            _, connection = await loop.create_unix_connection(make, self._client.address)
        try:
            connection.send(hello(self._client))
            await asyncio.wait([first], timeout=HANDSHAKE_S)
            if not first.done():
                raise ConnectionLost(f"no answer within {HANDSHAKE_S:g} s")
            welcome = welcomed(first.result(), self._client)
        except BaseException:
            first.cancel()
            connection.close("refused")
            raise
        self.welcome = welcome
        self.registry.blobs = blobs_of(welcome, self._client.address)
        return connection

    def _received(self, connection: AsyncConnection, messages: list[Any]) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_result(messages[0])
            messages = messages[1:]
        self.registry.dispatch(messages)

    def _lost(self, connection: AsyncConnection, reason: str) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_exception(ConnectionLost(reason))
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
        delay = FIRST_RETRY_S
        while not (hopeless := self._client.lost()) and time.monotonic() < give_up:
            try:
                connection = await self._connect()
            except (OSError, ConnectionLost, exception.AuthError):
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_RETRY_S)
                continue
            self._connection = connection
            self.send([*self.registry.variants_again(), *self.registry.resend()])
            return
        self.closed = True
        waited = hopeless or f"it could not be reached again for {RECONNECT_S:g} s"
        text = f"the kedge server at {self._client.address} was lost ({reason}): {waited}"
        self.registry.fail(lambda: exception.ConnectionError(text))


def _encryption(client: Client) -> Any:
    if not (client.tls_ca or is_tls(client.address)):
        return None
    from kedge.wire import tls

    return tls.context_for(client.tls_ca)


async def _until_the_loop_ends(link: AsyncLink) -> AsyncGenerator[None, None]:
    """Closes the link in `loop.shutdown_asyncgens()`, which `asyncio.run` calls: loops have no other farewell."""
    try:
        yield
    finally:
        link.close()
