"""The blocking connection of a client, shared by all threads of the process and served by none of its own.

Of all threads that wait, one leads: it reads the socket, hands out what arrives for the others too, and passes the lead
on when its own answer has come. A call thus costs one send and one receive, and wakes nobody.

A connection that breaks while something is unfinished is made again for up to 20 seconds (a server restarts), and the
unfinished is sent again under the same ids.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kedge import exception
from kedge.model.payload import ErrorInfo
from kedge.model.protocol import (
    CLIENT,
    CallCancelled,
    CallRequested,
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
from kedge.sdk.serializer import PYTHON, to_exception
from kedge.wire.codec import FrameError
from kedge.wire.transport import BlockingConnection, ConnectionLost, split_tcp

if TYPE_CHECKING:
    from kedge.sdk.client import Client

RECONNECT_S = 20.0
"""How long a lost server is waited for: a restart takes less, and nobody likes to wait longer for an error."""
HANDSHAKE_S = 10.0
FIRST_RETRY_S = 0.02
LONGEST_RETRY_S = 0.25
"""A server is back within half a second, and an attempt costs nothing."""


def heard(message: Any) -> None:
    """Messages that no call waits for: notices, for whoever shows output."""
    if isinstance(message, Notice):
        sink = output.current()
        if sink is not None:
            sink.notice(message.text, message.level)


def hello(client: Client) -> Hello:
    """In a container it says which one, with the proof of that: some things are granted to that one only."""
    here = context.container()
    if here is not None and here.token and here.address == client.address:
        return Hello(CLIENT, here.container, here.token, python=PYTHON, process=os.getpid())
    return Hello(CLIENT, "", client.token, python=PYTHON, process=os.getpid())


def welcomed(message: Any, client: Client) -> Welcome:
    if isinstance(message, Welcome):
        return message
    reason = message.reason if isinstance(message, Refused) else f"it answered with {type(message).__name__}"
    if client.token_of and "token" in reason:
        reason += f"; the token is {client.token_of}"
    raise exception.AuthError(f"the kedge server at {client.address} refuses this connection: {reason}")


def greet(client: Client) -> Welcome:
    """What the server says to a new connection, which is closed again."""
    try:
        connection = BlockingConnection.connect(client.address, ToClient, HANDSHAKE_S, client.tls_ca)
        try:
            connection.send([hello(client)])
            messages = connection.receive(HANDSHAKE_S)
        finally:
            connection.close()
    except (OSError, ConnectionLost) as error:
        raise exception.ConnectionError(f"no kedge server answers at {client.address}: {error}") from error
    return welcomed(messages[0] if messages else None, client)


def no_answer(client: Client, error: Exception) -> exception.ConnectionError:
    text = f"no kedge server answers at {client.address}: {error}"
    if isinstance(error, ConnectionLost) and client.address.startswith("tcp://") and not client.tls_ca:
        text += "; where it has TLS, write tcps://, and name its certificates with KEDGE_TLS_CA or tls_ca"
    return exception.ConnectionError(text)


def blobs_of(welcome: Welcome, address: str) -> BlobStore | None:
    """Payload files are for processes of one machine: over TCP everything travels in frames."""
    return BlobStore(welcome.home) if welcome.home and not split_tcp(address)[1] else None


class Link:
    """The blocking connection of a client. Safe for any number of threads."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.registry = Registry(heard)
        # Reentrant: a signal handler may call while its own thread holds it.
        self._mutex = threading.RLock()
        self._leader: int | None = None
        """The thread that reads the socket."""
        self._bells: deque[Any] = deque()
        self._closed = False
        self._lost_at: float | None = None
        self.welcome = Welcome("")
        """What the server said about itself when the connection was made last."""
        try:
            self._connection = self._open()
        except (OSError, ConnectionLost) as error:
            raise no_answer(client, error) from error

    @property
    def blobs(self) -> BlobStore | None:
        """Where values too large for a frame go; None where frames must carry everything."""
        return self.registry.blobs

    def send(self, messages: list[Any]) -> None:
        """Sends one frame. Where the server is gone nothing happens: whoever waits sends the unfinished again."""
        if not messages:
            return
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
            if not self._take_turn(pending, deadline):
                return pending.ready
        return True

    def request(
        self,
        make: Callable[[int], Any],
        timeout: float | None = None,
        explain: Callable[[ErrorInfo], Exception] = to_exception,
    ) -> Any:
        number = self.registry.next_request()
        pending = Request(make(number), explain)
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
        self.registry.abandon(call)
        if not self._closed:
            self.send([CallCancelled(call)])

    def wake(self, pending: Pending) -> None:
        """Something else than a message made `pending` ready: whoever waits for it looks at it again."""
        pending.notify()
        with self._mutex:
            reading = self._leader is not None and pending.bell is None
        if reading:
            self._call_back()

    def nudge(self) -> None:
        """Lets every waiting thread run for a moment, so that an exception set for it from outside is raised."""
        with self._mutex:
            for bell in self._bells:
                _ring(bell)
        self._call_back()

    def _call_back(self) -> None:
        """Makes the server say something, which is what a thread that reads the socket wakes up from."""
        self.send([CallRequested(0, "")])

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.send([SessionClosed("the program has ended")])
        self._connection.close()
        self.registry.fail(_closed_here)

    # ------------------------------------------------------------ who reads the socket

    def _take_turn(self, pending: Pending, deadline: float | None) -> bool:
        """Reads the socket, or sleeps while another thread does; False when time is over.

        An exception may hit anywhere in here (Ctrl-C, the cancellation of an input), so what was taken is given back in
        one place. A signal handler that calls while its own thread reads goes on reading in that thread's stead.
        """
        me = threading.get_ident()
        outer: int | None = None
        leads = False
        bell: Any = None
        try:
            with self._mutex:
                outer = self._leader
                if outer is None or outer == me:
                    self._leader = me
                    leads = True
                else:
                    bell = threading.Lock()
                    bell.acquire()
                    pending.bell = functools.partial(_ring, bell)
                    self._bells.append(bell)
            return self._read(pending, deadline) if leads else _sleep(pending, bell, deadline)
        finally:
            with self._mutex:
                if bell is not None:
                    pending.bell = None
                    self._bells.remove(bell)
                if leads and outer is None:
                    self._leader = None
                if self._leader is None:
                    self._pass_on()
            if leads and outer is not None:
                # What the interrupted read waits for may have come to us.
                self._call_back()

    def _read(self, pending: Pending, deadline: float | None) -> bool:
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

    def _pass_on(self) -> None:
        """The lead is free: wakes one who may take it."""
        if self._bells:
            _ring(self._bells[0])

    # ------------------------------------------------------------ making the connection

    def _open(self) -> BlockingConnection:
        client = self._client
        connection = BlockingConnection.connect(client.address, ToClient, HANDSHAKE_S, client.tls_ca)
        try:
            connection.send([hello(client)])
            messages = connection.receive(HANDSHAKE_S)
            if not messages:
                raise ConnectionLost(f"no answer within {HANDSHAKE_S:g} s")
            welcome = welcomed(messages[0], client)
        except BaseException:
            connection.close()
            raise
        self.welcome = welcome
        self.registry.blobs = blobs_of(welcome, client.address)
        self.registry.dispatch(messages[1:])
        return connection

    def _reconnect(self, reason: str, deadline: float | None) -> None:
        """Makes the connection anew and sends the unfinished again, or fails all that waits."""
        self._connection.close()
        now = time.monotonic()
        self._lost_at = self._lost_at or now
        give_up = self._lost_at + RECONNECT_S  # who comes after that has one try, and does not wait as long again
        delay, tried = FIRST_RETRY_S, False
        while True:
            if self._closed:  # by another thread, and the server was quicker than that one
                self.registry.fail(_closed_here)
                return
            hopeless = self._client.lost()
            if hopeless or (tried and time.monotonic() > give_up):
                waited = hopeless or f"it could not be reached again for {RECONNECT_S:g} s"
                text = f"the kedge server at {self._client.address} was lost ({reason}): {waited}"
                self.registry.fail(functools.partial(exception.ConnectionError, text))
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
                reason = f"{reason}; {error}" if delay == FIRST_RETRY_S else reason
            tried = True
            time.sleep(delay)
            delay = min(delay * 2, LONGEST_RETRY_S)


def _sleep(pending: Pending, bell: Any, deadline: float | None) -> bool:
    """Until the leader has something for us, or the lead is free."""
    if pending.ready:
        return True
    if deadline is None:
        bell.acquire()
        return True
    remaining = deadline - time.monotonic()
    return remaining > 0 and bool(bell.acquire(timeout=min(remaining, threading.TIMEOUT_MAX)))


def _ring(bell: Any) -> None:
    try:
        bell.release()
    except RuntimeError:
        pass  # it has been rung already


def _closed_here() -> exception.ClientClosed:
    return exception.ClientClosed("the connection to the kedge server was closed")
