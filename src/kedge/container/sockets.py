"""Waits for sockets that an interruption can end, for functions with `interrupt_sockets=True`.

Nothing wakes a slot thread that waits for a socket except the end of that socket. So the one that it waits for at this
very moment is shut down in both directions; others, such as idle connections of a pool, stay as they are. The exception
is raised at that line, not whatever the socket says of its end. What shares the socket, another thread or a forked
child, sees it end as well: that is why somebody has to ask for this.

It stands on the methods of `socket.socket` and `ssl.SSLSocket`, and with them on all that is made of these: `makefile`,
`http.client`, `urllib`, requests, most database drivers written in Python. Not on waits without a socket's method:
`select`, `getaddrinfo`, drivers written in C. On the main thread a signal ends them all.
"""

from __future__ import annotations

import functools
import socket
import sys
from collections.abc import Callable
from typing import Any

from kedge.container.guard import checkpoint
from kedge.container.waits import Bell, listening_bell

_OWN = "kedge.wire.transport"
"""The connections of the SDK are shared by all inputs, and are woken in a way of their own (`Link.nudge`)."""
_WAITS = (
    *("accept", "connect", "connect_ex", "recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"),
    *("send", "sendall", "sendmsg", "sendto", "sendfile"),
)
_TLS_WAITS = ("do_handshake", "read", "send", "unwrap", "write")
"""Those in which it waits by itself; its other methods come down to these, or to the plain ones."""


def install() -> None:
    """Replaces the waits of this process. Goes before user code is imported, which may take methods by name."""
    _replace(socket.socket, _WAITS)
    try:
        import ssl
    except ImportError:
        return  # a Python without TLS
    _replace(ssl.SSLSocket, _TLS_WAITS)


def _replace(kind: type[socket.socket], names: tuple[str, ...]) -> None:
    for name in names:
        if hasattr(kind, name):
            setattr(kind, name, _wakeable(getattr(kind, name)))


def _wakeable(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wait(self: socket.socket, *args: Any, **kwargs: Any) -> Any:
        bell = listening_bell()
        if bell is None or self.gettimeout() == 0 or sys._getframe(1).f_globals.get("__name__") == _OWN:
            return method(self, *args, **kwargs)
        return _listen(bell, self, method, args, kwargs)

    return wait


def _listen(bell: Bell, sock: socket.socket, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    outer, bell.socket = bell.socket, functools.partial(_end, sock)
    try:
        if not bell.listening:
            checkpoint()  # rung before there was something to end: the exception comes here
        value = method(sock, *args, **kwargs)
        checkpoint()  # before anybody makes something of the end of the socket, which may be our doing
        return value
    except Exception:
        checkpoint()
        raise
    finally:
        bell.socket = outer


def _end(sock: socket.socket) -> None:
    try:
        # Not its own method: that of a TLS socket would take away what the waiting thread is in the middle of.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass  # it was not connected, which wakes as well, or has been closed
