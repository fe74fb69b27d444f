"""WebSockets: handshake, messages in both directions, and every way to end, with a client of our own and a real one."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from kedge.model.payload import TIMEOUT, Result
from kedge.model.spec import AutoscalerSettings
from kedge.model.web import (
    WEB_WINDOW,
    BodySent,
    Disconnected,
    MessageReceived,
    MessageSent,
    ResponseStarted,
    SocketAccepted,
    SocketClosed,
)
from kedge.server.ingress import ingress, websocket
from kedge.server.ingress.http import Connection
from tests.server.ingress.hall import Answer, Client, Hall, Turn, forever, hall, hello, web
from tests.server.ingress.wire import Wire
from tests.wire.loops import on_loop, on_loops, until

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
SHAKE = ("Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13")


async def echo(turn: Turn) -> None:
    """Sends back whatever comes, until the client leaves."""
    turn.say(SocketAccepted())
    while isinstance(event := await turn.hear(), MessageReceived):
        turn.say(MessageSent(event.data, event.text))


def url(here: Hall, path: str = "/web/") -> str:
    return f"ws://{here.address[0]}:{here.address[1]}{path}"


async def opened(here: Hall, *lines: str) -> Client:
    """A client whose handshake was accepted, and that writes frames as bytes."""
    client = await here.client()
    client.ask("/web/", *SHAKE, *lines)
    answer = await client.head()
    assert answer.status == 101
    return client


def frame(opcode: Opcode, data: bytes = b"", fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(Opcode.CLOSE, code.to_bytes(2, "big") + reason)


async def heard(client: Client) -> tuple[Opcode, bytes]:
    """The next frame of the server."""
    head = await client.reader.readexactly(2)
    size = head[1]
    if size > 125:
        size = int.from_bytes(await client.reader.readexactly(2 if size == 126 else 8), "big")
    return Opcode(head[0] & 15), await client.reader.readexactly(size)


async def refused(here: Hall, *lines: str) -> Answer:
    client = await here.client()
    client.ask("/web/", *lines)
    answer = await client.answer()
    assert await client.gone() == b""
    return answer


# ---------------------------------------------------------------- handshake


@on_loops
async def test_the_code_accepts_and_the_handshake_is_answered() -> None:
    async def accept(turn: Turn) -> None:
        turn.say(SocketAccepted("chat", [(b"x-mine", b"1"), (b"Upgrade", b"x"), (b"Sec-WebSocket-Accept", b"x")]))

    async with hall(accept) as here:
        client = await here.client()
        client.ask("/web/a?b", *SHAKE, "Sec-WebSocket-Protocol: chat, talk", "X-Mine: 2")
        answer = await client.head()
        names = [name for name, _ in answer.all_headers]
        assert answer.status == 101
        assert names == [
            "upgrade",
            "connection",
            "sec-websocket-accept",
            "x-mine",
            "sec-websocket-protocol",
            "date",
            "server",
        ]
        assert answer.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert answer.headers["sec-websocket-protocol"] == "chat"
        request = (await here.turn()).request
        assert (request.kind, request.scheme, request.path, request.query) == ("websocket", "ws", "/web/a", b"b")
        assert request.subprotocols == ["chat", "talk"]
        assert (b"x-mine", b"2") in request.headers


@pytest.mark.parametrize(
    ("lines", "status", "text"),
    [
        (SHAKE[:3], 426, "this server speaks version 13 of WebSocket\n"),
        ((*SHAKE[:3], "Sec-WebSocket-Version: 8"), 426, "this server speaks version 13 of WebSocket\n"),
        (
            (*SHAKE[:2], SHAKE[3]),
            400,
            "Sec-WebSocket-Key must be there once, and be 16 bytes in base64\n",
        ),
        (
            (*SHAKE[:2], SHAKE[3], "Sec-WebSocket-Key: short"),
            400,
            "Sec-WebSocket-Key must be there once, and be 16 bytes in base64\n",
        ),
        ((*SHAKE, "Content-Length: 1"), 400, "the handshake of a WebSocket has no body\n"),
    ],
)
def test_what_is_no_handshake_is_refused(lines: tuple[str, ...], status: int, text: str) -> None:
    @on_loop
    async def test() -> None:
        async with hall(echo) as here:
            answer = await refused(here, *lines)
            assert (answer.status, answer.text) == (status, text)
            assert answer.headers.get("sec-websocket-version") == ("13" if status == 426 else None)
            assert not here.turns

    test()


@on_loop
async def test_an_upgrade_without_a_connection_header_is_a_request() -> None:
    async with hall(hello) as here:
        assert (await here.get("/web/", "Upgrade: websocket")).body == b"hello"


@on_loop
async def test_a_handshake_may_follow_a_request() -> None:
    async def either(turn: Turn) -> None:
        await (echo(turn) if turn.request.kind == "websocket" else hello(turn))

    async with hall(either) as here:
        client = await here.client()
        client.ask("/web/")
        client.ask("/web/", *SHAKE)
        client.send(frame(Opcode.TEXT, b"early"))
        assert (await client.answer()).body == b"hello"
        assert (await client.head()).status == 101
        assert await heard(client) == (Opcode.TEXT, b"early")


@pytest.mark.parametrize(
    ("events", "status", "body"),
    [
        ([SocketClosed(1000)], 403, b"the WebSocket was refused\n"),
        ([ResponseStarted(418, [(b"x", b"y")]), BodySent(b"tea"), BodySent(b"pot", False)], 418, b"teapot"),
        ([], 500, b"web ended without a response; its log says more: kedge app logs demo\n"),
        ([MessageSent(b"x")], 500, b"the function sent what is no answer to a WebSocket; its log says more\n"),
        (
            [SocketAccepted("a\r\nb")],
            500,
            b"the function sent what is no answer to a WebSocket; its log says more\n",
        ),
    ],
)
def test_the_code_may_refuse(events: list[Any], status: int, body: bytes) -> None:
    async def refuse(turn: Turn) -> None:
        turn.say(*events)

    @on_loop
    async def test() -> None:
        async with hall(refuse) as here:
            answer = await refused(here, *SHAKE)
            assert (answer.status, answer.body) == (status, body)
            await here.idle()

    test()


@on_loop
async def test_a_client_that_leaves_before_the_answer_is_forgotten() -> None:
    async with hall(forever, web(slots=1, autoscaler=AutoscalerSettings(max_containers=1))) as here:
        running = await here.client()
        running.ask("/web/")
        await here.turn()
        waiting = await here.client()
        waiting.ask("/web/", *SHAKE)
        await until(lambda: here.exchanges == 2)
        waiting.vanish()
        await until(lambda: here.exchanges == 1)
        assert len(here.turns) == 1


# ---------------------------------------------------------------- messages


@on_loops
async def test_messages_of_every_kind_and_size_go_both_ways() -> None:
    async with hall(echo) as here, connect(url(here), max_size=None) as client:
        messages = ["", "text ü", b"", b"\x00\xff", "x" * 200, b"y" * 70_000, "z" * 1_500_000, b"w" * (16 * 2**20)]
        for message in messages:
            await client.send(message)
            assert await client.recv() == message
        await asyncio.gather(*(client.send(f"{n}") for n in range(100)))
        assert [await client.recv() for _ in range(100)] == [f"{n}" for n in range(100)]
    await asyncio.sleep(0)


@on_loop
async def test_fragments_become_one_message_with_control_frames_between_them() -> None:
    async with hall(echo) as here:
        client = await opened(here)
        ü = "ü".encode()
        client.send(frame(Opcode.TEXT, b"a" + ü[:1], fin=False), frame(Opcode.PING, b"p"))
        client.send(frame(Opcode.CONT, ü[1:], fin=False), frame(Opcode.CONT, b""))
        assert await heard(client) == (Opcode.PONG, b"p")
        assert await heard(client) == (Opcode.TEXT, b"a" + ü)
        assert here.turns[0].events == [MessageReceived(b"a" + ü, True)]


@on_loop
async def test_extensions_are_not_negotiated() -> None:
    async with hall(echo) as here, connect(url(here), compression="deflate") as client:
        assert not client.protocol.extensions


@on_loops
async def test_a_client_is_left_unread_while_the_code_does_not_read() -> None:
    go_on = asyncio.Event()

    async def wait(turn: Turn) -> None:
        turn.say(SocketAccepted())
        await go_on.wait()
        count = 0
        while isinstance(await turn.hear(), MessageReceived):
            count += 1
            if count == 200:
                turn.say(MessageSent(b"all"))

    async with hall(wait) as here, connect(url(here)) as client:
        send = asyncio.gather(*(client.send(b"x" * 50_000) for _ in range(200)))
        turn = await here.turn()
        (connection,) = here.ingress.connections
        await until(lambda: connection.unread)
        assert sum(len(event.data) for event in turn.events) <= WEB_WINDOW
        go_on.set()
        await send
        assert await client.recv() == b"all"


@on_loop
async def test_the_code_gets_no_credit_while_its_client_does_not_read() -> None:
    sent = 0

    async def flood(turn: Turn) -> None:
        nonlocal sent

        def room() -> bool:
            return sent * 50_000 - turn.credit < WEB_WINDOW - 50_000

        turn.say(SocketAccepted())
        while sent < 1000:
            await until(room)
            turn.say(MessageSent(b"x" * 50_000))
            sent += 1

    async with hall(flood) as here:
        client = await opened(here)
        previous = -1
        while previous != sent:
            previous = sent
            await asyncio.sleep(0.05)
        assert sent < 500
        for _ in range(1000):
            assert len((await heard(client))[1]) == 50_000
        await here.idle()
        assert here.turns[0].credit >= 1000 * 50_000 - WEB_WINDOW


@on_loop
async def test_who_pings_and_does_not_read_takes_no_memory_with_pongs() -> None:
    wire = Wire()
    wire.slow = True
    async with hall(echo) as here:
        wire.protocol = connection = Connection(here.ingress)
        connection.connection_made(wire)
        connection.data_received("\r\n".join(("GET /web/ HTTP/1.1", "Host: a", *SHAKE, "", "")).encode())
        await until(lambda: b" 101 " in wire.written)
        before = len(wire.written)
        for number in range(1000):
            connection.data_received(frame(Opcode.PING, b"%d" % number))
        assert len(wire.written) == before
        connection.resume_writing()
        assert bytes(wire.written[before:]) == Frame(Opcode.PONG, b"999").serialize(mask=False)
        wire.lose()
        await here.idle()


@on_loop
async def test_a_client_that_sends_many_frames_at_once_leaves_the_others_their_turn() -> None:
    wire = Wire()
    async with hall(echo) as here:
        wire.protocol = connection = Connection(here.ingress)
        connection.connection_made(wire)
        connection.data_received("\r\n".join(("GET /web/ HTTP/1.1", "Host: a", *SHAKE, "", "")).encode())
        await until(lambda: b" 101 " in wire.written)
        pong = Frame(Opcode.PONG, b"").serialize(mask=False)
        connection.data_received(frame(Opcode.PING) * 20_000 + frame(Opcode.TEXT, b"last"))
        assert 0 < wire.written.count(pong) < 2_000
        assert wire.paused
        connection.data_received(frame(Opcode.TEXT, b"and this"))  # what TLS had in hand already
        await until(lambda: wire.written.endswith(b"and this"))
        assert wire.written.count(pong) == 20_000
        assert wire.written.find(b"last") < wire.written.find(b"and this")
        assert not wire.paused
        wire.lose()
        await here.idle()


@on_loop
async def test_tiny_fragments_take_no_more_memory_than_their_message() -> None:
    async with hall(echo) as here:
        client = await opened(here)
        (connection,) = here.ingress.connections
        assert connection._socket is not None
        client.writer.write(frame(Opcode.BINARY, fin=False) + frame(Opcode.CONT, fin=False) * 20_000)
        client.writer.write(frame(Opcode.CONT, b"ab", fin=False) * 20_000)
        await until(lambda: len(connection._socket._message) == 40_000)
        assert sys.getsizeof(connection._socket._message) < 100_000
        client.writer.write(frame(Opcode.CONT, b"!"))
        assert await heard(client) == (Opcode.BINARY, b"ab" * 20_000 + b"!")


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (close(1000, b"bye"), 1000, "bye"),
        (close(4321), 4321, ""),
        (frame(Opcode.CLOSE), 1005, ""),
        (None, 1006, ""),
    ],
    ids=["code and reason", "code", "nothing", "vanished"],
)
def test_the_code_hears_how_the_client_left(data: bytes | None, code: int, reason: str) -> None:
    @on_loop
    async def test() -> None:
        async with hall(echo) as here:
            client = await opened(here)
            if data is None:
                client.vanish()
            else:
                client.send(data)
                assert (await heard(client))[0] is Opcode.CLOSE
                assert await client.gone() == b""
            turn = await here.turn()
            await until(lambda: turn.events)
            assert turn.events == [Disconnected(code, reason)]
            client.close()
            await here.idle()
            assert not turn.cancelled

    test()


BAD = {
    "no text": (frame(Opcode.TEXT, b"\xff"), 1007),
    "reserved opcode": (b"\x83\x80\x00\x00\x00\x00", 1002),
    "no mask": (b"\x81\x01a", 1002),
    "end of nothing": (frame(Opcode.CONT, b"x"), 1002),
    "reserved bit": (b"\xc1\x81\x00\x00\x00\x00a", 1002),
    "fragment of a ping": (b"\x09\x80\x00\x00\x00\x00", 1002),
    "too large": (b"\x82\xff" + (2**40).to_bytes(8, "big") + b"\x00\x00\x00\x00", 1009),
    "too large in parts": (
        frame(Opcode.BINARY, b"x" * 9_000_000, fin=False) + frame(Opcode.CONT, b"x" * 9_000_000),
        1009,
    ),
    "half a code": (frame(Opcode.CLOSE, b"\x03"), 1002),
    "code that is none": (close(1005), 1002),
}


@pytest.mark.parametrize(("data", "code"), BAD.values(), ids=BAD)
def test_what_is_no_websocket_ends_it(data: bytes, code: int) -> None:
    @on_loop
    async def test() -> None:
        async with hall(echo) as here:
            client = await opened(here)
            client.send(frame(Opcode.TEXT, b"good"))
            assert await heard(client) == (Opcode.TEXT, b"good")
            client.send(data)
            opcode, said = await heard(client)
            assert (opcode, int.from_bytes(said[:2], "big")) == (Opcode.CLOSE, code)
            assert await client.gone() == b""
            turn = await here.turn()
            await until(lambda: len(turn.events) > 1)
            assert turn.events[-1].code == code
            client.close()
            await here.idle()

    test()


@on_loops
async def test_the_code_closes_with_its_own_code_and_reason() -> None:
    async def leave(turn: Turn) -> None:
        turn.say(SocketAccepted(), MessageSent(b"last", True), SocketClosed(4001, "ü" * 100))

    async with hall(leave) as here, connect(url(here)) as client:
        assert await client.recv() == "last"
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "ü" * 61)
        await here.idle()
        assert not here.turns[0].events


@pytest.mark.parametrize(
    ("end", "code"),
    [("return", 1000), ("raise", 1011), ("timeout", 1011), ("die", 1011), ("nonsense", 1011), ("bad code", 1011)],
)
def test_a_socket_whose_code_ends_is_closed(end: str, code: int) -> None:
    async def leave(turn: Turn) -> Result | None:
        turn.say(SocketAccepted())
        if end == "raise":
            raise ValueError
        if end == "timeout":
            return Result(TIMEOUT)
        if end == "die":
            turn.container.die()
            await asyncio.Event().wait()
        if end == "nonsense":
            turn.say(BodySent(b"x"))
        if end == "bad code":
            turn.say(SocketClosed(1006))
        return None

    @on_loop
    async def test() -> None:
        async with hall(leave) as here:
            client = await opened(here)
            opcode, said = await heard(client)
            assert (opcode, int.from_bytes(said[:2], "big")) == (Opcode.CLOSE, code)
            client.send(frame(Opcode.CLOSE, said))
            assert await client.gone() == b""
            client.close()
            await here.idle()

    test()


@on_loop
async def test_code_that_does_not_end_with_its_client_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "SWEEP_S", 0.005)
    monkeypatch.setattr(ingress, "GOODBYE_S", 0.03)

    async def deaf(turn: Turn) -> None:
        turn.say(SocketAccepted())
        await asyncio.Event().wait()

    async with hall(deaf) as here:
        client = await opened(here)
        client.vanish()
        turn = await here.turn()
        await until(lambda: turn.events)
        assert not turn.cancelled
        await until(lambda: turn.cancelled)
        assert turn.events == [Disconnected(1006)]
        await here.idle()


@on_loop
async def test_a_client_that_is_in_the_middle_of_something_can_close_as_well() -> None:
    async def leave(turn: Turn) -> None:
        turn.say(SocketAccepted())
        await turn.hear()
        turn.say(SocketClosed())

    async with hall(leave) as here:
        client = await opened(here)
        client.send(frame(Opcode.TEXT, b"first"))
        assert (await heard(client))[0] is Opcode.CLOSE
        client.send(*[frame(Opcode.BINARY, b"x" * 50_000) for _ in range(100)], close(1000))
        assert await client.gone() == b""
        client.close()
        await here.idle()


@on_loop
async def test_code_that_closes_without_reading_leaves_no_client_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CLOSE_S", 1000.0)

    async def deaf(turn: Turn) -> None:
        turn.say(SocketAccepted())
        await until(lambda: all(connection.unread for connection in here.ingress.connections))
        turn.say(SocketClosed(1000))

    async with hall(deaf) as here:
        client = await opened(here)
        client.send(frame(Opcode.BINARY, b"x" * 50_000) * 20)
        assert (await heard(client))[0] is Opcode.CLOSE
        client.send(close(1000))
        assert await asyncio.wait_for(client.gone(), 10) == b""
        await here.idle()


@on_loop
async def test_a_refusal_goes_at_the_pace_of_the_client() -> None:
    sent = 0

    async def refuse(turn: Turn) -> None:
        nonlocal sent

        def room() -> bool:
            return sent * 50_000 - turn.credit < WEB_WINDOW - 50_000

        turn.say(ResponseStarted(403))
        while sent < 1000:
            await until(room)
            turn.say(BodySent(b"x" * 50_000))
            sent += 1
        turn.say(BodySent(b"", False))

    async with hall(refuse) as here:
        client = await here.client()
        client.ask("/web/", *SHAKE)
        previous = -1
        while previous != sent:
            previous = sent
            await asyncio.sleep(0.05)
        assert sent < 500
        assert len((await client.answer()).body) == 1000 * 50_000


@on_loop
async def test_who_does_not_answer_a_close_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "SWEEP_S", 0.005)
    monkeypatch.setattr(websocket, "CLOSE_S", 0.03)

    async def leave(turn: Turn) -> None:
        turn.say(SocketAccepted(), SocketClosed())

    async with hall(leave) as here:
        client = await opened(here)
        assert (await heard(client))[0] is Opcode.CLOSE
        await until(lambda: not here.ingress.connections)


@on_loop
async def test_who_is_silent_is_asked_and_then_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "SWEEP_S", 0.005)
    monkeypatch.setattr(websocket, "PING_S", 0.03)
    monkeypatch.setattr(websocket, "PONG_S", 0.03)
    async with hall(echo) as here:
        client = await opened(here)
        for _ in range(3):
            assert await heard(client) == (Opcode.PING, b"")
            client.send(frame(Opcode.PONG))
        assert await heard(client) == (Opcode.PING, b"")
        await until(lambda: not here.ingress.connections)
        turn = await here.turn()
        await until(lambda: turn.events)
        assert turn.events == [Disconnected(1006)]


@on_loop
async def test_the_end_of_the_server_is_said() -> None:
    async with hall(echo) as here:
        async with connect(url(here)) as client:
            await client.send("x")
            await client.recv()
            await here.ingress.close()
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1001, "the server is stopping")
        with pytest.raises(OSError):
            await connect(url(here))


@on_loop
async def test_a_real_client_hears_why_it_was_refused() -> None:
    async with hall(hello) as here:
        with pytest.raises(InvalidStatus) as caught:
            await connect(url(here, "/nobody/"))
        assert caught.value.response.status_code == 404
