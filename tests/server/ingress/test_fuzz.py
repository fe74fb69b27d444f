"""Whatever clients and code send each other: the ingress never raises, never hangs, and keeps nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from kedge.model.payload import FAILURE, INTERNAL_FAILURE, SUCCESS, TIMEOUT, Result
from kedge.model.web import BodySent, MessageSent, ResponseStarted, SocketAccepted, SocketClosed
from kedge.server.ingress.http import Connection
from tests.server.ingress.hall import Hall, Turn, web
from tests.server.ingress.test_reader import CHUNKED, post
from tests.server.ingress.test_websockets import SHAKE
from tests.server.ingress.wire import Wire
from tests.wire.loops import LIMIT_S, factories, until

FUZZ = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")


def in_hall(test: Callable[[Hall, Wire, Connection], Awaitable[None]], script: Any, slow: bool = False) -> None:
    """Runs `test` with a connection; afterwards nothing may have failed, and nothing be left."""

    async def run() -> None:
        problems: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        hall = Hall(script)
        hall.add(web(), web("chat"))
        wire, connection = Wire(slow), Connection(hall.ingress)
        wire.protocol = connection
        connection.connection_made(wire)
        await test(hall, wire, connection)
        wire.lose()
        await until(lambda: not hall.ingress.connections)
        for container in list(hall.containers.values()):
            container.die()
        await hall.idle()
        await hall.ingress.close()
        assert not problems

    with asyncio.Runner(loop_factory=factories()[-1]) as runner:
        runner.run(asyncio.wait_for(run(), LIMIT_S))


def at_rest(wire: Wire, connection: Connection) -> bool:
    """Whether it is the client's turn."""
    reader = connection._reader
    if wire.lost or connection.is_shut or connection._socket is not None:
        return True
    if connection.choked:
        return True
    if connection._current is not None:
        return not connection._current.complete and not reader.stuck
    return not reader.stuck and (not reader.requests or not reader.requests[0].complete)


async def answer(turn: Turn) -> None:
    if turn.request.kind == "websocket":
        turn.say(SocketAccepted())
        while hasattr(event := await turn.hear(), "data"):
            turn.say(MessageSent(event.data, event.text))
    else:
        turn.answer(await turn.body())


GET = b"GET /web/ HTTP/1.1\r\nHost: a\r\n\r\n"
UPGRADE = b"GET /chat/ HTTP/1.1\r\nHost: a\r\n" + "".join(f"{line}\r\n" for line in SHAKE).encode() + b"\r\n"
WELL = [
    GET,
    UPGRADE,
    post(b"body", b"/web/"),
    post(b"x" * 70_000, b"/web/"),
    post(b"x" * 900_000, b"/web/"),
    CHUNKED.replace(b"/b", b"/web/"),
]
WELL += [b"3\r\nabc\r\n", b"0\r\n\r\n", b"GET /nobody/ HTTP/1.1\r\nHost: a\r\n\r\n", b"HEAD /web HTTP/1.0\r\n\r\n"]
WELL += [Frame(Opcode.TEXT, b"hi").serialize(mask=True), Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True)]
WELL += [b"POST /web/ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n", b"body", b"\r\n"]
WELL += [b"PUT /web/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nbody"]


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """Something that was well said, with a few bytes that are not what they were."""
    data = bytearray(draw(st.sampled_from(WELL)))
    for _ in range(draw(st.integers(1, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@st.composite
def cut(draw: st.DrawFn) -> bytes:
    data = draw(st.sampled_from(WELL))
    return data[draw(st.integers(0, len(data))) :]


BYTES = st.lists(st.sampled_from(WELL) | mangled() | cut() | st.binary(max_size=40), min_size=1, max_size=6)


@FUZZ
@given(pieces=BYTES, slow=st.booleans(), patient=st.booleans())
def test_any_bytes_of_a_client(pieces: list[bytes], slow: bool, patient: bool) -> None:
    async def test(hall: Hall, wire: Wire, connection: Connection) -> None:
        for piece in pieces:
            if not wire.lost and not wire.paused:
                connection.data_received(piece)
            await asyncio.sleep(0)
            if slow and connection.choked and not wire.lost:
                connection.resume_writing()
        if patient:
            if slow:
                await until(lambda: at_rest(wire, connection), lambda: _read_on(wire, connection))
            else:
                await until(lambda: at_rest(wire, connection))
        assert not wire.written or wire.written.startswith(b"HTTP/1.1 ")

    in_hall(test, answer, slow)


async def _read_on(wire: Wire, connection: Connection) -> None:
    await asyncio.sleep(0.001)
    if connection.choked and not wire.lost:
        connection.resume_writing()


HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"content-length", b"connection", b"x", b"set-cookie"]) | st.binary(max_size=5),
        st.sampled_from([b"3", b"close", b"a"]) | st.binary(max_size=5),
    ),
    max_size=3,
)
SAID = st.lists(
    st.builds(ResponseStarted, st.sampled_from([200, 204, 404, 99]) | st.integers(-5, 1100), HEADERS)
    | st.builds(BodySent, st.binary(max_size=5), st.booleans())
    | st.builds(SocketAccepted, st.none() | st.text(max_size=3), HEADERS)
    | st.builds(MessageSent, st.binary(max_size=5), st.booleans())
    | st.builds(SocketClosed, st.sampled_from([1000, 1005, 4000]) | st.integers(-1, 70_000), st.text(max_size=50)),
    max_size=4,
)
ENDS = st.sampled_from([SUCCESS, FAILURE, TIMEOUT, INTERNAL_FAILURE, "die", "wait"])


@FUZZ
@given(pieces=st.lists(st.sampled_from(WELL), min_size=1, max_size=4), said=st.lists(SAID, max_size=3), end=ENDS)
def test_any_answer_of_the_code(pieces: list[bytes], said: list[Any], end: str) -> None:
    async def script(turn: Turn) -> Result:
        for events in said:
            turn.say(*events)
            await asyncio.sleep(0)
        if end == "die":
            turn.container.die()
        if end in ("die", "wait"):
            await asyncio.Event().wait()
        return Result(end)

    async def test(hall: Hall, wire: Wire, connection: Connection) -> None:
        for piece in pieces:
            if not wire.lost and not wire.paused:
                connection.data_received(piece)
            await asyncio.sleep(0)
        if end != "wait":
            await until(lambda: at_rest(wire, connection))
        assert b"\nset-cookie:" not in wire.written.replace(b"\r\nset-cookie:", b"")

    in_hall(test, script)


@FUZZ
@given(frames=st.lists(st.binary(max_size=200), max_size=5))
def test_any_frames_of_a_websocket(frames: list[bytes]) -> None:
    async def test(hall: Hall, wire: Wire, connection: Connection) -> None:
        connection.data_received(UPGRADE)
        await until(lambda: b"101 Switching" in wire.written)
        for data in frames:
            if not wire.lost:
                connection.data_received(data)
            await asyncio.sleep(0)

    in_hall(test, answer)
