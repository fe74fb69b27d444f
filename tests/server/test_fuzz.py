"""Whatever comes over a socket, the server answers, refuses or closes that connection; it never fails and never stops
serving others."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kedge.model import protocol as p
from kedge.wire.codec import encode
from kedge.wire.transport import AsyncConnection
from tests.server.fake_engine import FakeEngine, hold
from tests.server.shell import POOL, Shell, app, inputs, running
from tests.wire.loops import LIMIT_S, factories, until
from tests.wire.values import messages

NAMES = st.sampled_from(
    [
        *("", "fc-1", "fc-2", "ap-1", POOL, f"{POOL}@v", "square", "m", "success", "failure", "timeout", "a/b", "main"),
        *("demo", "rolling", "recreate", "create", "list", "delete", "api", "proxy", "0" * 32, "asgi_app", "days"),
    ]
)
NUMBERS = st.integers(-1, 8) | st.sampled_from([64, 2**31, 2**63])
TIMES = st.sampled_from([0.0, 0.001, 1.0, 60.0, -1.0, float("nan"), float("inf"), 1e300])


def near(*kinds: type) -> st.SearchStrategy[Any]:
    """Messages that name what exists as often as not, so that they get past the door."""
    return messages(*kinds) | messages(*kinds, text=NAMES, whole=NUMBERS, real=TIMES)


CLIENTS = near(*get_args(p.FromClient))
CONTAINERS = near(*get_args(p.FromContainer))
FUZZ = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A valid frame in which some bytes are not what they were."""
    frame = bytearray(encode(draw(st.lists(CLIENTS, max_size=3))))
    for _ in range(draw(st.integers(1, 5))):
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    return bytes(frame)


junk = st.lists(st.binary(max_size=300) | mangled(), min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")


def on_server(test: Any) -> None:
    """Runs `test(shell)`; afterwards nothing may have failed, and a newcomer must be served."""

    async def run(directory: Path) -> None:
        problems: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        async with running(directory, FakeEngine(hold)) as shell:
            await test(shell)
            client = await shell.client()
            assert (await client.ask(lambda n: p.StatisticsRequested(n))).error is None
            client.connection.close()
            shell.plane.check()
            assert shell.driver.failures == shell.office.failures == 0
        assert not problems

    with tempfile.TemporaryDirectory() as fresh, asyncio.Runner(loop_factory=factories()[-1]) as runner:
        runner.run(asyncio.wait_for(run(Path(fresh)), LIMIT_S))


async def adopt(shell: Shell) -> tuple[AsyncConnection, socket.socket]:
    """A connection of the server over a pair of sockets, and its other end."""
    ours, theirs = socket.socketpair()
    connection = shell.rpc.connection()
    await asyncio.get_running_loop().create_connection(lambda: connection, sock=ours)
    theirs.setblocking(False)
    return connection, theirs


async def throw(shell: Shell, pieces: list[bytes], hello: bool) -> None:
    connection, theirs = await adopt(shell)
    try:
        if hello:
            theirs.sendall(encode([p.Hello(p.CLIENT)]))
            await until(lambda: connection.context)
        for piece in pieces:
            try:
                theirs.sendall(piece)
            except OSError:
                break  # it has been closed already
            await asyncio.sleep(0)
    finally:
        theirs.close()
    await until(lambda: connection.closed and connection not in shell.rpc._open)


@FUZZ
@given(pieces=junk, hello=st.booleans())
def test_any_bytes_close_at_most_their_own_connection(pieces: list[bytes], hello: bool) -> None:
    on_server(lambda shell: throw(shell, pieces, hello))


@FUZZ
@given(said=st.lists(CLIENTS, max_size=6))
def test_any_messages_of_a_client_do_no_harm(said: list[Any]) -> None:
    async def test(shell: Shell) -> None:
        await throw(
            shell, [encode([p.AppCreated(1, app()), inputs("a", total=-1)]), *[encode([m]) for m in said]], True
        )

    on_server(test)


@FUZZ
@given(said=st.lists(CONTAINERS, max_size=6), data=st.data())
def test_any_messages_of_a_container_do_no_harm(said: list[Any], data: st.DataObject) -> None:
    async def test(shell: Shell) -> None:
        client = await shell.client(p.AppCreated(1, app()), inputs("a"), inputs("b", call="fc-2", durable=True))
        await until(lambda: sum(len(c.held) for c in shell.engine.containers.values()) == 2)
        container = next(iter(shell.engine.containers.values()))
        for message in said:
            container.say(message)
        container.finish()
        await client.ask(lambda n: p.StatisticsRequested(n))
        client.connection.close()

    on_server(test)
