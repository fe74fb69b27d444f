"""Bodies in both directions: at the pace of who reads them, and never all of them in memory."""

from __future__ import annotations

import asyncio

import pytest

from kedge.model.spec import AutoscalerSettings
from kedge.model.web import WEB_CREDIT, WEB_WINDOW, BodyReceived, BodySent, ResponseStarted
from kedge.server.ingress.http import Connection
from kedge.server.ingress.reader import SHORT
from tests.server.ingress.hall import Hall, Turn, echo, forever, hall, hello, web
from tests.server.ingress.wire import Wire
from tests.wire.loops import on_loop, on_loops, until

BLOCK = b"x" * 64 * 1024


async def settled(here: Hall) -> None:
    """Until whatever is under way between client and code has come to rest."""
    sizes: list[object] = []
    while len(sizes) < 20 or sizes[-20:] != sizes[-1:] * 20:
        await asyncio.sleep(0.001)
        sizes.append([len(turn.events) for turn in here.turns])


# ---------------------------------------------------------------- up


@on_loops
async def test_a_short_body_comes_with_its_request() -> None:
    async with hall(echo) as here:
        client = await here.client()
        body = b"b" * SHORT
        client.send(f"POST /web/ HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n", body[:100])
        await until(lambda: here.ingress.connections)
        await settled(here)
        assert not here.exchanges, "a slow client takes no slot while it sends"
        client.send(body[100:])
        assert (await client.answer()).body == body
        turn = await here.turn()
        assert (len(turn.request.body), turn.request.more_body, turn.events) == (SHORT, False, [])


@on_loops
async def test_a_long_body_follows_its_request() -> None:
    body = bytes(range(256)) * 5000
    async with hall(echo) as here:
        client = await here.client()
        client.send(f"POST /web/ HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n")
        turn = await here.turn()
        assert turn.request.more_body
        client.send(body)
        assert (await client.answer()).body == body
        client.ask()
        assert (await client.answer()).body == b""
        await here.idle()


@on_loop
async def test_a_body_that_comes_at_once_is_passed_on_in_parts() -> None:
    async with hall(echo) as here:
        wire, connection = Wire(), Connection(here.ingress)
        wire.protocol = connection
        connection.connection_made(wire)
        connection.data_received(b"POST /web/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 600_000)
        turn = await here.turn()
        await until(lambda: sum(len(event.data) for event in turn.events) == 600_000)
        connection.data_received(b"x" * 400_000)
        await until(lambda: wire.written.endswith(b"x" * 1_000_000))
        assert all(len(event.data) <= WEB_WINDOW for event in turn.events)
        wire.lose()


@on_loop
async def test_a_body_that_breaks_off_far_behind_what_was_read_is_noticed() -> None:
    async with hall(echo) as here:
        wire, connection = Wire(), Connection(here.ingress)
        wire.protocol = connection
        connection.connection_made(wire)
        body = b"%x\r\n%b\r\n" % (900_000, b"x" * 900_000)
        head = b"POST /web/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.data_received(head + body + b"nonsense\r\n")
        await until(lambda: wire.written.startswith(b"HTTP/1.1 400 "))
        wire.lose()
        await here.idle()


@on_loops
async def test_a_chunked_body_is_passed_on_as_it_comes() -> None:
    async with hall(echo) as here:
        client = await here.client()
        client.send("POST /web/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        turn = await here.turn()
        for piece in (b"one", b"two"):
            seen = len(turn.events)
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await until(lambda seen=seen: len(turn.events) > seen)
            assert turn.events[-1] == BodyReceived(piece, True)
        client.send("0\r\nX-Trailer: ignored\r\n\r\n")
        assert (await client.answer()).body == b"onetwo"
        assert turn.events[-1] == BodyReceived(b"", False)
        client.ask()
        assert (await client.answer()).status == 200


@on_loop
async def test_tiny_chunks_are_passed_on_together_and_leave_others_their_turn() -> None:
    async def code(turn: Turn) -> None:
        turn.answer(b"%d" % len(await turn.body()))

    wire = Wire()
    async with hall(code) as here:
        wire.protocol = connection = Connection(here.ingress)
        connection.connection_made(wire)
        connection.data_received(b"POST /web/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        turn = await here.turn()
        connection.data_received(b"1\r\nx\r\n" * 30_000 + b"0\r\n\r\n")
        assert 0 < sum(len(event.data) for event in turn.events) < 5_000
        await until(lambda: wire.written.endswith(b"30000"))
        assert len(turn.events) < 200
        assert not wire.paused
        wire.lose()
        await here.idle()


@on_loop
async def test_a_chunked_body_that_has_come_whole_is_short() -> None:
    async with hall(echo) as here:
        client = await here.client()
        client.send("POST /web/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        assert (await client.answer()).body == b"abc"
        assert not here.turns[0].request.more_body


@on_loops
async def test_a_client_is_left_unread_while_the_code_does_not_read() -> None:
    go_on = asyncio.Event()

    async def wait(turn: Turn) -> None:
        await go_on.wait()
        turn.answer(b"%d" % len(await turn.body()))

    async with hall(wait) as here:
        client = await here.client()
        total = 40 * len(BLOCK)
        client.send(f"POST /web/ HTTP/1.1\r\nHost: a\r\nContent-Length: {total}\r\n\r\n", BLOCK * 40)
        turn = await here.turn()
        await until(lambda: turn.events)
        await settled(here)
        assert sum(len(event.data) for event in turn.events) <= WEB_WINDOW
        (connection,) = here.ingress.connections
        assert connection.unread
        assert connection._current is not None
        assert connection._current.waiting <= 512 * 1024
        go_on.set()
        assert (await client.answer()).body == b"%d" % total
        await here.idle()


@on_loop
async def test_a_body_waits_for_its_request_to_have_a_container() -> None:
    async with hall(echo) as here:
        here.starting = False
        client = await here.client()
        body = BLOCK * 4
        client.send(f"POST /web/ HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n", body)
        await until(lambda: here.launches)
        here.come_up(here.launches[0])
        assert (await client.answer()).body == body
        await here.idle()


@on_loop
async def test_a_client_that_leaves_in_the_middle_of_its_body_cancels() -> None:
    async with hall(echo) as here:
        client = await here.client()
        client.send("POST /web/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n", BLOCK)
        turn = await here.turn()
        await until(lambda: turn.events)
        client.vanish()
        await here.idle()
        assert turn.cancelled


@on_loop
async def test_a_client_that_hangs_up_while_it_is_not_read_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedge.server.ingress.ingress.SWEEP_S", 0.005)
    async with hall(forever) as here:
        client = await here.client()
        client.send("POST /web/ HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n", BLOCK * 30)
        await here.turn()
        (connection,) = here.ingress.connections
        await until(lambda: connection.unread)
        client.close()
        await here.idle()
        assert here.turns[0].cancelled


@on_loop
async def test_a_body_that_breaks_off_is_refused_and_its_code_cancelled() -> None:
    async with hall(echo) as here:
        client = await here.client()
        client.send("POST /web/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        turn = await here.turn()
        client.send("nonsense\r\n")
        answer = await client.answer()
        assert answer.status == 400
        assert await client.gone() == b""
        await here.idle()
        assert turn.cancelled


@on_loops
async def test_an_answer_before_the_end_of_the_body_can_be_read() -> None:
    """The client goes on sending: it must not find the connection reset under its answer."""

    async def refuse(turn: Turn) -> None:
        turn.answer(b"too large", 413)

    async with hall(refuse) as here:
        client = await here.client()
        client.send("POST /web/ HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n", BLOCK * 100)
        answer = await client.answer()
        assert (answer.status, answer.body, answer.headers["connection"]) == (413, b"too large", "close")
        assert await client.gone() == b""


@on_loop
async def test_a_refusal_comes_before_the_body_as_well() -> None:
    async with hall(echo) as here:
        client = await here.client()
        client.send("POST /nobody/ HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n", BLOCK * 10)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (404, "close")
        assert not here.turns


@pytest.mark.parametrize("size", [5, SHORT + 1])
@on_loop
async def test_100_continue_comes_when_the_body_is_wanted(size: int) -> None:
    async with hall(echo, web(slots=1, autoscaler=AutoscalerSettings(max_containers=1))) as here:
        client = await here.client()
        head = f"HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {size}\r\n\r\n"
        client.send(f"POST /web/ {head}")
        assert await client.line() == "HTTP/1.1 100 Continue"
        assert await client.line() == ""
        client.send(b"x" * size)
        assert len((await client.answer()).body) == size
        assert all(name != b"expect" for name, _ in here.turns[0].request.headers)
        client.send(f"POST /nobody/ {head}")
        assert (await client.answer()).status == 404, "and it is not asked for in vain"


@on_loop
async def test_100_continue_is_not_said_while_a_long_body_would_wait() -> None:
    async with hall(forever, web(slots=1, autoscaler=AutoscalerSettings(max_containers=1))) as here:
        (await here.client()).ask()
        first = await here.turn()
        client = await here.client()
        client.send("POST /web/ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 100000\r\n\r\n")
        await until(lambda: here.exchanges == 2)
        await settled(here)
        assert not client.reader._buffer  # type: ignore[attr-defined]
        here.script = echo
        next(iter(first.container.tasks.values())).cancel()
        assert await client.line() == "HTTP/1.1 100 Continue"


# ---------------------------------------------------------------- down


@on_loops
async def test_a_stream_is_written_piece_by_piece() -> None:
    steps = [asyncio.Event() for _ in range(3)]

    async def events(turn: Turn) -> None:
        turn.say(ResponseStarted(200, [(b"content-type", b"text/event-stream")]))
        for number, step in enumerate(steps):
            await step.wait()
            turn.say(BodySent(b"data: %d\n\n" % number))
        turn.say(BodySent(b"", False))

    async with hall(events) as here:
        client = await here.client()
        client.ask()
        assert (await client.head()).headers["content-type"] == "text/event-stream"
        for number, step in enumerate(steps):
            step.set()
            assert await client.chunk() == b"data: %d\n\n" % number
        assert await client.chunk() == b""
        await here.idle()


@on_loops
async def test_code_gets_no_credit_while_its_client_does_not_read() -> None:
    sent = 0

    async def flood(turn: Turn) -> None:
        nonlocal sent

        def room() -> bool:
            return sent * len(BLOCK) - turn.credit <= WEB_WINDOW - len(BLOCK)

        turn.say(ResponseStarted(200))
        while sent < 1000:
            await until(room)
            turn.say(BodySent(BLOCK))
            sent += 1
        turn.say(BodySent(b"", False))

    async with hall(flood) as here:
        client = await here.client()
        client.ask()
        await client.head()
        turn = await here.turn()
        previous = -1
        while previous != sent:
            previous = sent
            await asyncio.sleep(0.05)
        (connection,) = here.ingress.connections
        assert sent < 500, "the kernel holds a few MB, and we hold no more than a window"
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() <= WEB_WINDOW + 2 * len(BLOCK)
        read = 0
        while chunk := await client.chunk():
            read += len(chunk)
        assert read == 1000 * len(BLOCK)
        assert turn.credit >= read - WEB_WINDOW
        await here.idle()


@on_loop
async def test_small_pieces_are_credited_together() -> None:
    async def drip(turn: Turn) -> None:
        turn.say(ResponseStarted(200))
        for _ in range(1 + WEB_CREDIT // 1000):
            assert turn.credit == 0
            turn.say(BodySent(b"x" * 1000))
        await until(lambda: turn.credit >= WEB_CREDIT)
        turn.say(BodySent(b"", False))

    async with hall(drip) as here:
        assert len((await here.get()).body) >= WEB_CREDIT


@on_loop
async def test_a_client_that_leaves_a_stream_cancels_it() -> None:
    async def endless(turn: Turn) -> None:
        turn.say(ResponseStarted(200))
        while True:
            turn.say(BodySent(b"tick"))
            await asyncio.sleep(0.001)

    async with hall(endless) as here:
        client = await here.client()
        client.ask()
        await client.head()
        await client.chunk()
        client.vanish()
        await here.idle()
        assert here.turns[0].cancelled


@on_loop
async def test_both_directions_at_once() -> None:
    async def relay(turn: Turn) -> None:
        turn.say(ResponseStarted(200))
        more = turn.request.more_body
        while more:
            event = await turn.hear()
            more = event.more
            if event.data:
                turn.say(BodySent(event.data))
        turn.say(BodySent(b"", False))

    async with hall(relay) as here:
        client = await here.client()
        client.send("POST /web/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert (await client.head()).headers["connection"] == "close"
        for piece in (b"a", b"bb", b"ccc"):
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            assert await client.chunk() == piece
        client.send("0\r\n\r\n")
        assert await client.chunk() == b""
        assert await client.gone() == b""
        await here.idle()


@on_loop
async def test_a_pipelined_request_waits_behind_a_client_that_does_not_read() -> None:
    async def large(turn: Turn) -> None:
        turn.answer(BLOCK * 100)

    async with hall(large) as here:
        client = await here.client()
        for _ in range(20):
            client.ask()
        await until(lambda: here.turns)
        await settled(here)
        previous = -1
        while previous != len(here.turns):
            previous = len(here.turns)
            await asyncio.sleep(0.05)
        assert len(here.turns) < 10
        for _ in range(20):
            assert len((await client.answer()).body) == 100 * len(BLOCK)


@on_loop
async def test_hello_needs_no_credit() -> None:
    async with hall(hello) as here:
        await here.get()
        assert here.turns[0].credit == 0
