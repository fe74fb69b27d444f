"""Passes requests and WebSockets on to a server of the user's own: an ASGI app like any other.

Bytes go through as they are: nothing is decompressed, no redirect is followed, no cookie kept. The server sees the path
without the label and the Host of the client, and in X-Forwarded-* what it would see otherwise; where it redirects to a
path of its own, the label is put in front of that again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from kedge.container.asgi import INTERNAL_ERROR, MAX_MESSAGE, Message, Receive, Send
from kedge.container.exchange import ClientGone
from kedge.container.output import say
from kedge.container.upstream import CONNECT_S, Upstream
from kedge.exception import ExecutionError

if TYPE_CHECKING:
    import aiohttp

KEEPALIVE_S = 2.0
"""How long an idle connection is used again: servers close theirs after five seconds or more, so that none is closed
just when a request goes out on it."""
MAX_HEADER = 64 * 1024
"""Bytes of one header of an answer."""
TOO_BIG = 1009

Headers = list[tuple[bytes, bytes]]

_CONNECTION = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade expect".split()
)
"""Headers about one connection."""
_OURS = frozenset((b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-prefix"))


class Proxy:
    """The app of a `web_server` with a port."""

    def __init__(self, upstream: Upstream, leave: Callable[[str], object]) -> None:
        """`leave` asks for another container in the place of this one. ExecutionError where aiohttp is missing."""
        try:
            import aiohttp  # noqa: F401
        except ImportError as error:
            raise ExecutionError(
                f"@kedge.web_server({upstream.port}) needs aiohttp where containers run, and that cannot be imported "
                f"({error}); install it there, or add it to the image: kedge.Image.debian_slim().pip_install('aiohttp')"
            ) from None
        self.upstream = upstream
        self._leave = leave
        self._gone = False
        """The server is, and that has been said."""
        self._session: aiohttp.ClientSession

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._pass_request(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._pass_socket(scope, receive, send)
        else:
            await self._live(receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        import aiohttp

        await receive()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S * 5),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
        )
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._session.close()
        await send({"type": "lifespan.shutdown.complete"})

    # ------------------------------------------------------------ requests

    async def _pass_request(self, scope: Message, receive: Receive, send: Send) -> None:
        import aiohttp

        first = await receive()
        body = _rest(first, receive) if first["more_body"] else first["body"] or None
        begun = False
        try:
            async with self._session.request(
                scope["method"], self._url(scope), headers=_text(forwarded(scope)), data=body, allow_redirects=False
            ) as response:
                begun = True
                headers = answered(response.raw_headers, scope)
                await send({"type": "http.response.start", "status": response.status, "headers": headers})
                left, more = response.content_length, True
                async for data in response.content.iter_any():
                    left = None if left is None else left - len(data)
                    more = left != 0
                    await send({"type": "http.response.body", "body": data, "more_body": more})
                if more:
                    await send({"type": "http.response.body"})
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, ClientGone):
                raise
            if begun:
                raise ExecutionError(f"the server on port {self.upstream.port} broke its answer off: {error}") from None
            await self._report(error)
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 502, "headers": headers})
            await send({"type": "http.response.body", "body": b"the server behind this address does not answer\n"})

    async def _report(self, error: Exception) -> None:
        """The server has not answered: where it is gone, so should this container be."""
        port = self.upstream.port
        if await asyncio.to_thread(self.upstream.accepts):
            say(f"the server on port {port} has not answered: {error}")
            return
        if self._gone:
            return
        self._gone = True
        text = f"the server on port {port} is gone{self.upstream.obituary()}"
        say(f"{text}. Another container takes the place of this one")
        self._leave(text)

    def _url(self, scope: Message) -> Any:
        from yarl import URL

        path, prefix = scope["raw_path"].decode("latin-1"), scope["root_path"]
        path = (path[len(prefix) :] if prefix and path.startswith(prefix) else path) or "/"
        query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
        host = f"[{self.upstream.host}]" if ":" in self.upstream.host else self.upstream.host
        return URL(f"http://{host}:{self.upstream.port}{path}{query}", encoded=True)

    # ------------------------------------------------------------ WebSockets

    async def _pass_socket(self, scope: Message, receive: Receive, send: Send) -> None:
        import aiohttp

        await receive()
        headers = [header for header in forwarded(scope) if not header[0].startswith(b"sec-websocket-")]
        try:
            server = await self._session.ws_connect(
                self._url(scope),
                protocols=scope["subprotocols"],
                headers=_text(headers),
                compress=0,
                max_msg_size=0,
                autoclose=False,
            )
        except aiohttp.WSServerHandshakeError as error:
            await send({"type": "websocket.http.response.start", "status": max(error.status, 400)})
            await send({"type": "websocket.http.response.body", "body": b""})
            return
        except (aiohttp.ClientError, OSError) as error:
            await self._report(error)
            await send({"type": "websocket.http.response.start", "status": 502})
            await send({"type": "websocket.http.response.body"})
            return
        async with server:
            await send({"type": "websocket.accept", "subprotocol": server.protocol})
            ways = [asyncio.ensure_future(_to_server(receive, server)), asyncio.ensure_future(_to_client(server, send))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
            for outcome in await asyncio.gather(*ways, return_exceptions=True):
                if isinstance(outcome, Exception) and not isinstance(outcome, ClientGone):
                    raise outcome


async def _to_server(receive: Receive, server: aiohttp.ClientWebSocketResponse) -> None:
    while True:
        message = await receive()
        if message["type"] != "websocket.receive":
            await server.close(code=_sendable(message["code"]), message=message["reason"].encode())
            return
        if message.get("text") is not None:
            await server.send_str(message["text"])
        else:
            await server.send_bytes(message["bytes"])


async def _to_client(server: aiohttp.ClientWebSocketResponse, send: Send) -> None:
    from aiohttp import WSMsgType

    while True:
        message = await server.receive()
        if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            if len(message.data) > MAX_MESSAGE:
                await send({"type": "websocket.close", "code": TOO_BIG})
                return
            await send({"type": "websocket.send", "text" if message.type == WSMsgType.TEXT else "bytes": message.data})
        elif message.type == WSMsgType.CLOSE:
            await send({"type": "websocket.close", "code": _sendable(message.data), "reason": message.extra or ""})
            return
        else:  # the connection has ended without a word
            await send({"type": "websocket.close", "code": INTERNAL_ERROR})
            return


def _sendable(code: int | None) -> int:
    """A code that may stand in a close frame: some only say that there was none."""
    if code in (None, 0, 1005):
        return 1000
    return 1001 if code in (1004, 1006, 1015) else int(code or 1000)


async def _rest(first: Message, receive: Receive) -> AsyncIterator[bytes]:
    message = first
    while message["type"] == "http.request":
        if message["body"]:
            yield message["body"]
        if not message["more_body"]:
            return
        message = await receive()
    raise ClientGone("the client is gone, and its body is not complete")


# ---------------------------------------------------------------- headers


def forwarded(scope: Message) -> Headers:
    """What the server gets to see: the client's headers, and where they came from."""
    headers: Headers = []
    chain: list[bytes] = []
    host = b""
    for name, value in scope["headers"]:
        if name == b"x-forwarded-for":
            chain.append(value)
        elif name == b"host":
            host = value
        if name not in _CONNECTION and name not in _OURS:
            headers.append((name, value))
    if scope["client"] is not None:
        chain.append(scope["client"][0].encode())
    if chain:
        headers.append((b"x-forwarded-for", b", ".join(chain)))
    secure = scope["scheme"] in ("https", "wss")
    headers.append((b"x-forwarded-proto", b"https" if secure else b"http"))
    if host:
        headers.append((b"x-forwarded-host", host))
    if scope["root_path"]:
        headers.append((b"x-forwarded-prefix", scope["root_path"].encode()))
    return headers


def answered(raw: Any, scope: Message) -> Headers:
    """What the client gets to see of the headers that the server has answered with."""
    named = {
        token.strip().lower() for name, value in raw if name.lower() == b"connection" for token in value.split(b",")
    }
    dropped = _CONNECTION | named
    headers = [(name.lower(), value) for name, value in raw]
    return [
        (name, _relocated(value, scope) if name == b"location" else value)
        for name, value in headers
        if name not in dropped
    ]


def _relocated(location: bytes, scope: Message) -> bytes:
    """A redirect to a path of the server's own, with the label in front of it."""
    prefix = scope["root_path"].encode()
    if not prefix:
        return location
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    for origin in (b"", b"http://" + host, b"https://" + host):
        path = location[len(origin) :]
        if location.startswith(origin) and path.startswith(b"/") and not path.startswith(b"//"):
            return location if (path + b"/").startswith(prefix + b"/") else origin + prefix + path
    return location


def _text(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in headers]
