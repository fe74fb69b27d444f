"""The beginning and the end of an ingress."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest

from kedge.model.web import BodySent, ResponseStarted
from tests.server.ingress.hall import Turn, hall, hello
from tests.wire.loops import on_loop, on_loops, until
from tests.wire.test_tls import CA, server_context


@on_loops
async def test_it_listens_where_it_is_told() -> None:
    async with hall(hello) as here:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        address = await here.ingress.listen(sock=sock)
        assert address == sock.getsockname()
        for there in (here.address, address):
            here.address = there
            assert (await here.get()).status == 200
        with pytest.raises(OSError):
            await here.ingress.listen("127.0.0.1", address[1])


@on_loops
async def test_the_end_lets_run_what_runs_and_refuses_what_comes() -> None:
    go_on = asyncio.Event()

    async def slow(turn: Turn) -> None:
        await go_on.wait()
        turn.answer(b"done")

    async with hall(slow) as here:
        idle, busy = await here.client(), await here.client()
        busy.ask()
        await here.turn()
        end = asyncio.get_running_loop().create_task(here.ingress.close(10.0))
        assert await idle.gone() == b"", "a connection without a request is closed"
        busy.ask()
        with pytest.raises(OSError):
            await here.client()
        go_on.set()
        answer = await busy.answer()
        assert (answer.body, answer.headers["connection"]) == (b"done", "close")
        assert await busy.gone() == b""
        busy.close()
        await end
        assert len(here.turns) == 1


@on_loop
async def test_the_end_of_the_grace_ends_everything() -> None:
    async def half(turn: Turn) -> None:
        if turn.request.path.endswith("half"):
            turn.say(ResponseStarted(200), BodySent(b"part"))
        await asyncio.Event().wait()

    async with hall(half) as here:
        waiting, begun, sending = [await here.client() for _ in range(3)]
        waiting.ask()
        begun.ask("/web/half")
        sending.send("POST /web/ HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        await begun.head()
        assert await begun.chunk() == b"part"
        await until(lambda: len(here.turns) == 2)
        end = asyncio.get_running_loop().create_task(here.ingress.close())
        answer = await waiting.answer()
        assert (answer.status, answer.text) == (503, "this kedge server is stopping; try again in a moment\n")
        assert answer.headers["retry-after"] == "2"
        assert b"0\r\n\r\n" not in await begun.gone()
        assert await sending.gone() == b""
        for client in here.clients:
            client.close()
        await end
        await here.idle()
        assert all(turn.cancelled for turn in here.turns)


@on_loop
async def test_while_the_server_ends_nothing_new_begins() -> None:
    async with hall(hello) as here:
        client = await here.client()
        client.ask()
        await client.answer()
        here.driver.ending = True
        client.ask()
        assert (await client.answer()).status == 503
        here.driver.ending = False


@on_loop
async def test_the_clock_stands_still_while_nobody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedge.server.ingress.ingress.SWEEP_S", 0.001)
    async with hall(hello) as here:
        client = await here.client()
        client.ask()
        first = (await client.answer()).headers["date"]
        assert first
        await until(lambda: here.ingress._timer is not None)
        client.close()
        await until(lambda: here.ingress._timer is None)
        here.ingress.now = 0.0
        assert (await here.get()).status == 200
        assert here.ingress.now > 0.0


@on_loops
async def test_over_tls() -> None:
    async with hall(hello) as here:
        address = await here.ingress.listen(ssl=server_context())
        trusting = ssl.create_default_context(cafile=CA)
        reader, writer = await asyncio.open_connection(*address, ssl=trusting, server_hostname="localhost")
        writer.write(b"GET /web/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\nhello")
        writer.close()
        await writer.wait_closed()
        assert here.turns[0].request.scheme == "https"
