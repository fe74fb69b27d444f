"""Connections under TLS: the same as without, for blocking and asyncio ends, and clear words where they do not meet."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kedge.model import protocol as p
from kedge.model.payload import Payload
from kedge.wire.tls import TlsSocket, context_for
from kedge.wire.transport import BlockingConnection, ConnectionLost, is_tcp, is_tls, listen, split_tcp
from tests.wire.loops import on_loop, on_loops, until
from tests.wire.test_transport import ECHO_LIMIT_S, End, echo

CERTIFICATES = Path(__file__).with_name("certificates")
CA = str(CERTIFICATES / "ca.pem")


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "server.pem", CERTIFICATES / "server.key")
    return context


@asynccontextmanager
async def serving(
    reply: Any = echo, context: ssl.SSLContext | None = None, union: Any = p.FromClient
) -> AsyncGenerator[tuple[str, list[End]], None]:
    """An address without its scheme, and the ends of those who connect."""
    ends: list[End] = []

    def make() -> Any:
        ends.append(End(union, reply))
        return ends[-1].connection

    server = await listen("tcps://127.0.0.1:0", make, context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", ends
    finally:
        server.close()
        for end in ends:
            if end.connection.connected:
                end.connection.abort("the test is over")
                await end.closed()


@on_loops
async def test_a_blocking_client_is_understood_and_answered() -> None:
    async with serving(context=server_context()) as (address, ends):
        for url in (f"tcps://{address}", f"tcp://{address}"):
            peer = await asyncio.to_thread(BlockingConnection.connect, url, p.ToClient, 10.0, CA)
            peer.send([p.CallRequested(7, "fc-1")])
            assert await asyncio.to_thread(peer.receive, ECHO_LIMIT_S) == [p.Reply(7, "fc-1")]
            assert ends[-1].connection.reached_at == "127.0.0.1"
            peer.close()
            assert await ends[-1].closed()


@on_loops
async def test_an_asyncio_client_is_understood_and_answered() -> None:
    async with serving(context=server_context()) as (address, _):
        client, (host, port) = End(p.ToClient), split_tcp(f"tcps://{address}")
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: client.connection, host, port, ssl=context_for(CA))
        for number in range(200):
            client.connection.send(p.CallRequested(number, "x" * 10_000))
        await until(lambda: len(client.messages) == 200)
        client.connection.close("enough")
        assert await client.closed() == "enough"


@on_loop
async def test_large_frames_pass_both_ways_in_many_records() -> None:
    async with serving(lambda message: [p.Reply(1, message.payloads)], server_context()) as (address, _):
        peer = await asyncio.to_thread(BlockingConnection.connect, f"tcps://{address}", p.ToClient, 10.0, CA)
        data = bytes(range(256)) * 40_000
        message = p.InputsSubmitted("fc-1", "fu-1", 0, [Payload(data=data), Payload(data=data[::-1])])
        await asyncio.to_thread(peer.send, [message])
        (reply,) = await asyncio.to_thread(peer.receive, ECHO_LIMIT_S)
        assert reply.value[0][1] == data
        assert reply.value[1][1] == data[::-1]
        peer.close()


@on_loop
async def test_threads_may_send_while_another_waits_for_what_comes() -> None:
    async with serving(context=server_context()) as (address, _):
        peer = await asyncio.to_thread(BlockingConnection.connect, f"tcps://{address}", p.ToClient, 10.0, CA)
        got: list[p.Reply] = []

        def read() -> None:
            while len(got) < 800:
                got.extend(peer.receive(ECHO_LIMIT_S))

        def send(thread: int) -> None:
            for number in range(200):
                peer.send([p.CallRequested(thread * 1000 + number, "x" * (number * 100))])

        reader = threading.Thread(target=read)
        senders = [threading.Thread(target=send, args=(i,)) for i in range(4)]
        for thread in (reader, *senders):
            thread.start()
        await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in (reader, *senders)))
        assert sorted(reply.request for reply in got) == sorted(t * 1000 + n for t in range(4) for n in range(200))
        peer.close()


@on_loop
async def test_a_wait_ends_when_its_time_is_over_also_after_words_of_tls_itself() -> None:
    """A server sends session tickets after the handshake: bytes that are no message."""
    async with serving(lambda message: [], server_context()) as (address, ends):
        peer = await asyncio.to_thread(BlockingConnection.connect, f"tcps://{address}", p.ToClient, 10.0, CA)
        await until(lambda: ends)
        began = time.monotonic()
        assert await asyncio.to_thread(peer.receive, 0.05) == []
        assert await asyncio.to_thread(peer.receive, 0.0) == []
        assert time.monotonic() - began < ECHO_LIMIT_S
        waiting = asyncio.create_task(asyncio.to_thread(peer.receive, None))
        ends[0].connection.close("done")
        with pytest.raises(ConnectionLost, match="the peer closed the connection"):
            await waiting
        peer.close()


@on_loop
async def test_closing_wakes_who_waits() -> None:
    async with serving(context=server_context()) as (address, _):
        peer = await asyncio.to_thread(BlockingConnection.connect, f"tcps://{address}", p.ToClient, 10.0, CA)
        waiting = asyncio.create_task(asyncio.to_thread(peer.receive, None))
        await asyncio.sleep(0)
        peer.close()
        with pytest.raises(ConnectionLost):
            await waiting


# ---------------------------------------------------------------- those who do not meet


async def refusal(address: str, ca: str = CA) -> str:
    with pytest.raises(OSError) as error:
        await asyncio.to_thread(BlockingConnection.connect, address, p.ToClient, 10.0, ca)
    return str(error.value)


@on_loop
async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    async with serving(context=server_context()) as (address, _):
        assert "certificate verify failed" in await refusal(f"tcps://{address}", "")
        other = tmp_path / "other.pem"
        other.write_text("nothing")
        assert f"{other} holds no certificates (PEM)" in await refusal(f"tcps://{address}", str(other))
        missing = str(tmp_path / "missing.pem")
        assert await refusal(f"tcps://{address}", missing) == (
            f"there is no file {missing} with the certificates of the server"
        )


@on_loop
async def test_a_certificate_for_another_host_is_refused() -> None:
    async with serving(context=server_context()) as (address, _):
        host, port = split_tcp(f"tcps://{address}")
        with socket.create_connection((host, port)) as sock, pytest.raises(ssl.SSLCertVerificationError) as error:
            await asyncio.to_thread(TlsSocket, sock, context_for(CA), "gpu-box.example.org")
        assert "gpu-box.example.org" in str(error.value)


@on_loop
async def test_a_server_without_tls_is_named_as_such() -> None:
    async with serving() as (address, ends):
        assert "instead of speaking TLS" in await refusal(f"tcps://{address}")
        assert "not a kedge frame: it speaks TLS" in await ends[0].closed()


def test_addresses_say_whether_they_are_encrypted() -> None:
    assert (is_tcp("tcps://a:1"), is_tls("tcps://a:1"), is_tls("tcp://a:1"), is_tcp("/a")) == (True, True, False, False)
    with pytest.raises(ValueError, match=r"'tcps://a' is no address to listen or connect to; write tcp://HOST:PORT"):
        split_tcp("tcps://a")
