"""TLS for blocking connections: encryption beside the socket, so that one thread may read while others send.

OpenSSL's own sockets do not allow that: a reader that waits would hold up every sender. Here bytes are encrypted and
decrypted in memory, which never waits, and the socket carries what comes of it.
"""

from __future__ import annotations

import socket
import ssl
import threading

READ_SIZE = 64 * 1024
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNEXPECTED_MESSAGE")


def context_for(ca: str) -> ssl.SSLContext:
    """Checks the server's certificate, and that it is for the host that was asked for, against the certificates in the
    file `ca`, or those that this system trusts where it is empty. OSError where that is none."""
    try:
        return ssl.create_default_context(cafile=ca or None)
    except ssl.SSLError as error:
        raise OSError(f"{ca} holds no certificates (PEM): {error.reason or error}") from error
    except FileNotFoundError:
        raise OSError(f"there is no file {ca} with the certificates of the server") from None


class TlsSocket:
    """A connected socket under TLS, with the few methods that a connection uses. The handshake is done when this
    returns; OSError where it fails."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._socket = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        # Reentrant: a signal handler may send while its own thread decrypts.
        self._state = threading.RLock()
        self._order = threading.RLock()
        """Bytes reach the socket in the order in which they were encrypted."""
        self._said_goodbye = False
        self._shake_hands()

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._socket.sendall(self._outgoing.read())
                self._feed(self._socket.recv(READ_SIZE))
            except ssl.SSLError as error:
                if isinstance(error, ssl.SSLEOFError):
                    raise OSError("it closed the connection instead of speaking TLS; does it have it?") from None
                self._socket.sendall(self._outgoing.read())  # why: the server may log it
                if error.reason in _NO_TLS:
                    raise OSError(f"it does not speak TLS ({error.reason}); write tcp://, without tls_ca") from None
                raise
        self._socket.sendall(self._outgoing.read())

    def _feed(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def setblocking(self, blocking: bool) -> None:
        self._socket.setblocking(blocking)

    def fileno(self) -> int:
        return self._socket.fileno()

    def sendall(self, data: bytes) -> None:
        with self._order:
            with self._state:
                self._tls.write(data)
                encrypted = self._outgoing.read()
            self._socket.sendall(encrypted)

    def recv(self, size: int) -> bytes | None:
        """All that has come: nothing stays behind that no poll of the socket would tell of. Empty at the end, None
        where what has come makes no whole record yet, or is none of the peer's words."""
        data = self._socket.recv(size)
        with self._state:
            self._feed(data)
            plain = self._decrypted()
        if self._outgoing.pending:
            with self._order:
                with self._state:
                    answer = self._outgoing.read()
                self._socket.sendall(answer)
        return plain if plain or not data or self._said_goodbye else None

    def _decrypted(self) -> bytes:
        parts = []
        try:
            while part := self._tls.read(READ_SIZE):
                parts.append(part)
            self._said_goodbye = True  # though its socket may stay open for a while
        except ssl.SSLZeroReturnError:
            self._said_goodbye = True
        except (ssl.SSLWantReadError, ssl.SSLEOFError):
            pass
        return b"".join(parts)

    def shutdown(self, how: int) -> None:
        self._socket.shutdown(how)

    def close(self) -> None:
        self._socket.close()
