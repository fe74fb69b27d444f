"""Clients that are slow, greedy or hostile: they lose their own connection, and nobody else notices."""

from __future__ import annotations

import asyncio

import pytest

from kedge.server.ingress import http, ingress, line
from kedge.server.ingress.http import Connection
from tests.server.ingress.hall import echo, forever, hall, hello
from tests.server.ingress.wire import Wire
from tests.wire.loops import on_loop, until


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes hundredths."""
    monkeypatch.setattr(ingress, "SWEEP_S", 0.005)
    monkeypatch.setattr(line, "LINGER_S", 0.05)


async def serves(here: object) -> None:
    assert (await here.get()).status == 200  # type: ignore[attr-defined]


@on_loop
async def test_who_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_S", 0.03)
    async with hall(hello) as here:
        client = await here.client()
        assert await client.gone() == b""
        await until(lambda: not here.ingress.connections)
        await serves(here)


@on_loop
async def test_a_head_that_trickles_in_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_S", 0.05)
    async with hall(hello) as here:
        client = await here.client()
        client.send("GET /web/ HTTP/1.1\r\n")

        async def trickle() -> None:
            while True:
                client.send("X: y\r\n")
                await asyncio.sleep(0.01)

        task = asyncio.get_running_loop().create_task(trickle())
        answer = await client.answer()
        task.cancel()
        assert (answer.status, answer.text) == (408, "the request did not come in time\n")
        assert answer.headers["connection"] == "close"
        await until(lambda: not here.ingress.connections)


@on_loop
async def test_a_short_body_that_makes_no_progress_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_S", 0.05)
    async with hall(echo) as here:
        client = await here.client()
        client.send("POST /web/ HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        assert (await client.answer()).status == 408
        assert not here.turns
        await serves(here)


@on_loop
async def test_what_of_a_body_has_come_buys_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_S", 0.02)
    monkeypatch.setattr(http, "BODY_RATE", 1)
    async with hall(echo) as here:
        client = await here.client()
        client.send("POST /web/ HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n", b"x" * 19)
        await until(lambda: here.ingress.connections)
        swept = here.ingress.now
        await until(lambda: here.ingress.now > swept + 0.05)
        client.send(b"x")
        assert (await client.answer()).body == b"x" * 20


@on_loop
async def test_an_idle_connection_is_closed_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "IDLE_S", 0.03)
    async with hall(hello) as here:
        client = await here.client()
        for _ in range(2):
            client.ask()
            assert (await client.answer()).status == 200
        assert await client.gone() == b""


@on_loop
async def test_no_time_is_too_long_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_S", "IDLE_S", "BODY_S"):
        monkeypatch.setattr(http, name, 0.01)
    async with hall(forever) as here:
        client = await here.client()
        client.ask()
        turn = await here.turn()
        swept = here.ingress.now
        await until(lambda: here.ingress.now > swept + 0.1)
        turn.answer(b"at last")
        assert (await client.answer()).body == b"at last"


@on_loop
async def test_who_does_not_read_the_last_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "FLUSH_S", 0.03)

    async def large(turn: object) -> None:
        turn.answer(b"x" * 50_000_000)  # type: ignore[attr-defined]

    async with hall(large) as here:
        client = await here.client()
        client.ask("/web/", "Connection: close")
        await until(lambda: here.turns and not here.exchanges)
        await until(lambda: not here.ingress.connections)


@on_loop
async def test_many_refused_requests_at_once_leave_others_their_turn() -> None:
    wire = Wire()
    async with hall(hello) as here:
        wire.protocol = connection = Connection(here.ingress)
        connection.connection_made(wire)
        connection.data_received(b"GET /nobody/ HTTP/1.1\r\nHost: a\r\n\r\n" * 3_000)
        assert 0 < wire.written.count(b"HTTP/1.1 404") < 100
        assert wire.paused
        await until(lambda: wire.written.count(b"HTTP/1.1 404") == 3_000)
        assert not wire.paused
        wire.lose()
        await here.idle()


@on_loop
async def test_who_goes_on_sending_after_the_last_word_is_cut_off() -> None:
    async with hall(hello) as here:
        client = await here.client()
        client.send("nonsense\r\n\r\n")
        assert (await client.answer()).status == 400
        await until(lambda: not here.ingress.connections)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        (b"POST /web/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /web/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
        (b"GET /web/ HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /web/ HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 300 + b"\r\n", 431),
        (b"GET /web/" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /web/ HTTP/3.0\r\nHost: a\r\n\r\n", 400),
        (b"GET /web/ HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ],
)
def test_what_cannot_be_understood_ends_the_connection(data: bytes, status: int) -> None:
    @on_loop
    async def test() -> None:
        async with hall(hello) as here:
            client = await here.client()
            client.ask()
            client.send(data)
            client.ask()
            assert (await client.answer()).status == 200, "what came before it is answered"
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (status, "close")
            assert await client.gone() == b""
            assert len(here.turns) == 1
            await here.idle()

    test()


@on_loop
async def test_a_smuggled_request_reaches_nobody() -> None:
    async with hall(echo) as here:
        client = await here.client()
        client.send(
            "POST /web/ HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"
            "0\r\n\r\nGET /web/evil HTTP/1.1\r\nHost: a\r\n\r\n"
        )
        assert (await client.answer()).status == 400
        assert await client.gone() == b""
        assert not here.turns
