"""Who may speak, and what: everything else closes that connection and no other, with a reason and a line in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedge.model import protocol as p
from kedge.model.payload import Payload, Result
from kedge.model.spec import Variant
from kedge.server import rpc as rpc_module
from kedge.wire.codec import MAGIC, encode
from tests.server.fake_engine import FakeEngine, hold
from tests.server.shell import POOL, TOKEN, Peer, Shell, app, inputs, running
from tests.wire.loops import on_loop, on_loops, until


async def still_serves(shell: Shell) -> None:
    """Other clients do not notice."""
    client = await shell.client()
    assert (await client.ask(lambda n: p.StatisticsRequested(n))).error is None
    client.connection.close()


def raw(peer: Peer, data: bytes) -> None:
    transport = peer.connection._transport
    assert transport is not None
    transport.write(data)


# ---------------------------------------------------------------- who is there


@on_loops
async def test_a_client_over_the_socket_is_welcome(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.stranger()
        peer.say(p.Hello(p.CLIENT))
        welcome = await peer.hear(p.Welcome)
        assert welcome == p.Welcome("se-1", server=str(tmp_path), home=str(tmp_path))
        peer.connection.close()
        await until(lambda: not shell.driver.links)


@on_loop
async def test_requests_may_follow_hello_in_the_same_frame(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.stranger()
        raw(peer, encode([p.Hello(p.CLIENT), p.StatisticsRequested(5)]))
        assert (await peer.hear(p.Reply)).request == 5


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (p.StatisticsRequested(1), "the first message must be Hello, and was StatisticsRequested"),
        (
            p.Hello(p.CLIENT, version=99),
            "protocol version 99, this server speaks 1: use the same version of kedge on both sides",
        ),
        (p.Hello("emperor"), "unknown role 'emperor': it must be client or container"),
        (p.Hello(p.CONTAINER, "ct-7", "token"), "'ct-7' shows a token that is not its own"),
        (p.Hello(p.CONTAINER), "'' shows a token that is not its own"),
    ],
    ids=["no hello", "version", "role", "container", "nameless"],
)
@on_loop
async def test_who_does_not_say_hello_properly_is_refused(
    tmp_path: Path, message: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.stranger()
        peer.say(message)
        assert await peer.refused() == reason
        await until(lambda: f"a connection was closed before it said who it is: {reason}" in caplog.text)
        await still_serves(shell)


@on_loop
async def test_over_tcp_the_token_is_needed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path) as shell:
        address = await shell.rpc.listen("tcp://127.0.0.1:0")
        assert address.startswith("tcp://127.0.0.1:")
        for hello in (p.Hello(p.CLIENT), p.Hello(p.CLIENT, token="wröng"), p.Hello(p.CLIENT, token=TOKEN[:-1])):
            peer = await shell.stranger(address)
            peer.say(hello)
            reason = "wrong token: set KEDGE_TOKEN to a token of the server (`kedge token create`)"
            assert await peer.refused() == reason
        peer = await shell.stranger(address)
        peer.say(p.Hello(p.CLIENT, token=TOKEN))
        assert (await peer.hear(p.Welcome)).session == "se-1"
        assert TOKEN not in caplog.text
        assert "wröng" not in caplog.text


@on_loop
async def test_a_container_must_show_its_own_token_once(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        client = await shell.client(p.AppCreated(1, app()), inputs("a"), inputs("b", call="fc-2"))
        await until(lambda: sum(len(c.held) for c in shell.engine.containers.values()) == 2)
        one, two = (container.launch for container in shell.engine.containers.values())
        for identity, token in ((one.container, two.token), (one.container, "x"), ("ct-99", one.token)):
            peer = await shell.stranger()
            peer.say(p.Hello(p.CONTAINER, identity, token))
            assert await peer.refused() == f"{identity!r} shows a token that is not its own"
        again = await shell.stranger()
        again.say(p.Hello(p.CONTAINER, one.container, one.token))
        assert await again.refused() == "this container is not wanted any more"
        for container in list(shell.engine.containers.values()):
            container.finish()
        await client.results("fc-1", 1)
        await client.results("fc-2", 1)


@on_loop
async def test_code_in_a_container_must_show_the_token_of_its_container(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        await shell.client(p.AppCreated(1, app()), inputs("a"))
        await until(lambda: shell.engine.containers and shell.engine.only.held)
        launch = shell.engine.only.launch
        for identity, token in ((launch.container, "x"), (launch.container, ""), ("ct-99", launch.token)):
            peer = await shell.stranger()
            peer.say(p.Hello(p.CLIENT, identity, token))
            assert await peer.refused() == f"{identity!r} shows a token that is not its own"
        inside = await shell.stranger()
        inside.say(p.Hello(p.CLIENT, launch.container, launch.token))
        session = (await inside.hear(p.Welcome)).session
        assert shell.rpc.container_of(session) == launch.container
        inside.connection.close("enough")
        await until(lambda: session not in shell.driver.links)
        assert shell.rpc.container_of(session) == "", "what has gone leaves nothing"


@on_loop
async def test_a_container_that_is_gone_cannot_come_back(tmp_path: Path) -> None:
    engine = FakeEngine(hold)
    engine.mute = True
    async with running(tmp_path, engine) as shell:
        await shell.client(p.AppCreated(1, app()), inputs("a"))
        await until(lambda: engine.containers)
        launch = engine.only.launch
        shell.plane.containers[launch.container].pool.fleet.kill(shell.plane.containers[launch.container])
        late = await shell.stranger()
        late.say(p.Hello(p.CONTAINER, launch.container, launch.token))
        assert await late.refused() == "this container is not wanted any more"


@on_loop
async def test_who_says_nothing_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path, hello_timeout=0.02) as shell:
        silent, slow = await shell.stranger(), await shell.stranger()
        raw(slow, encode([p.Hello(p.CLIENT)])[:-1])
        await until(lambda: silent.reason is not None and slow.reason is not None)
        assert caplog.text.count("said nothing that counts for 0.02 s") == 2
        client = await shell.client()
        await asyncio.sleep(0.05)
        assert (await client.ask(lambda n: p.StatisticsRequested(n))).error is None


@on_loop
async def test_strangers_cannot_use_up_all_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_module, "MAX_STRANGERS", 5)
    async with running(tmp_path) as shell:
        client = await shell.client()
        strangers = [await shell.stranger() for _ in range(12)]
        await until(lambda: sum(peer.reason is not None for peer in strangers) == 7)
        assert [peer.reason is None for peer in strangers] == [False] * 7 + [True] * 5
        assert client.reason is None
        await still_serves(shell)


# ---------------------------------------------------------------- what is not understood


GARBAGE = [
    (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "not a kedge frame: it starts with b'GET '"),
    (b"kdg\x09" + bytes(4), "protocol version 9, expected 1"),
    (MAGIC + (10**6).to_bytes(4, "little"), "a frame of 1000000 bytes, the limit is 65536"),
    (MAGIC + (3).to_bytes(4, "little") + b"abc", "undecodable frame of 3 bytes"),
]


@pytest.mark.parametrize(("data", "reason"), GARBAGE, ids=["http", "version", "size", "body"])
@on_loops
async def test_garbage_from_a_stranger_closes_that_connection(
    tmp_path: Path, data: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.stranger()
        raw(peer, data)
        assert reason in await peer.refused()
        await until(lambda: reason in caplog.text)
        await still_serves(shell)


@on_loop
async def test_garbage_from_a_client_closes_its_session_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        client = await shell.client(p.AppCreated(1, app()), inputs("a"))
        await until(lambda: shell.engine.containers and shell.engine.only.held)
        raw(client, b"kdg\x01\x02\x00\x00\x00\xc1\xc1")
        assert "undecodable frame of 2 bytes" in await client.refused()
        await until(lambda: not shell.engine.containers and not shell.plane.apps)
        assert "se-1: undecodable frame of 2 bytes" in caplog.text
        await still_serves(shell)


@on_loop
async def test_a_client_may_send_large_frames_once_it_is_known(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        client = await shell.client(p.AppCreated(1, app()))
        client.say(p.InputsSubmitted("fc-1", POOL, 0, [Payload(data=bytes(200_000))], total=1))
        assert (await client.results("fc-1", 1))[0].status == "success"


# ---------------------------------------------------------------- what is out of place


@on_loop
async def test_messages_of_the_wrong_role_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        client = await shell.client(p.ContainerReady())
        assert await client.refused() == "a client does not send ContainerReady"
        second = await shell.client(p.Hello(p.CLIENT))
        assert await second.refused() == "a client does not send Hello"
        client = await shell.client(p.AppCreated(1, app()), inputs("a"))
        await until(lambda: shell.engine.containers and shell.engine.only.held)
        before = shell.engine.only
        before.say(p.CallCancelled("fc-1"))
        id = before.launch.container
        await until(lambda: f"{id}: a container does not send CallCancelled" in caplog.text)
        # It is replaced, and the caller gets its result from the next one.
        await until(lambda: shell.engine.containers and shell.engine.only is not before and shell.engine.only.held)
        shell.engine.only.finish()
        await client.results("fc-1", 1)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (inputs("a", first=-5), "InputsSubmitted.first is -5; it must be from 0 to 2147483648"),
        (p.CallClosed("fc-1", 2**60), "CallClosed.total is 1152921504606846976; it must be from 0"),
        (p.CallCancelled("fc-1", indices=[1] * 200_000), "CallCancelled.indices has 200000 entries; at most 100000"),
        (p.AppCreated(1, app("../evil")), "AppCreated.app.app is '../evil'; it must match"),
    ],
    ids=["index", "total", "list", "path"],
)
@on_loop
async def test_absurd_values_are_refused_at_the_door(tmp_path: Path, message: Any, reason: str) -> None:
    async with running(tmp_path) as shell:
        client = await shell.client(p.AppCreated(1, app()))
        client.say(message)
        assert (await client.refused()).startswith(reason)
        assert shell.driver.failures == 0
        await still_serves(shell)


@on_loop
async def test_a_container_that_reports_nonsense_is_replaced(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        client = await shell.client(p.AppCreated(1, app()), inputs("a"))
        await until(lambda: shell.engine.containers and shell.engine.only.held)
        before = shell.engine.only
        before.say(p.InputsFinished([p.Finished(next(iter(before.held)), Result(), float("nan"))]))
        await until(lambda: shell.engine.containers and shell.engine.only is not before and shell.engine.only.held)
        shell.engine.only.finish()
        assert (await client.results("fc-1", 1))[0].status == "success"


UNKNOWN: list[Callable[[], Any]] = [
    lambda: p.AppStopped("ap-9", 1),
    lambda: p.CallClosed("fc-9", 3),
    lambda: p.CallCancelled("fc-9", True, [5, -1]),
    lambda: p.OutputsRequested("fc-9", 0, 3, 1),
    lambda: p.OutputsForgotten("fc-9", 4),
    lambda: p.StreamCredited("fc-9", 2**40, 3),
    lambda: p.StatisticsRequested(1, "fu-9"),
    lambda: p.StatisticsRequested(1, "", "ap-9"),
    lambda: p.AutoscalerUpdated(1, "fu-9", 1, 2, 3, 4.0),
    lambda: p.CallRequested(1, "fc-9"),
    lambda: p.OutputSubscribed("ap-9"),
    lambda: p.VariantBound(Variant(function="fu-9", variant="v", spec=app().functions[0])),
    lambda: inputs(call="fc-8"),
    lambda: inputs(call="fc-7", durable=True),
]


@on_loop
async def test_what_names_nothing_known_does_no_harm(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        client = await shell.client(*(make() for make in UNKNOWN))
        assert (await client.ask(lambda n: p.StatisticsRequested(n))).error is None
        assert shell.driver.failures == 0
        shell.plane.check()


# ---------------------------------------------------------------- who does not read


@on_loop
async def test_a_client_that_does_not_read_is_closed_and_the_others_are_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, max_unread=2_000_000) as shell:
        client = await shell.client(p.AppCreated(1, app()))
        await client.hear(p.Reply)
        client.connection.pause_reading(True)
        sent = 0
        while "se-1" in shell.driver.links:
            link = shell.driver.links["se-1"]
            client.say(inputs("x" * 100_000, call=f"fc-{sent}"))
            sent += 1
            assert link.unread < 2_500_000
            await asyncio.sleep(0)
        client.connection.pause_reading(False)
        await until(lambda: client.reason is not None)
        assert "se-1: the peer does not read" in caplog.text
        await until(lambda: not shell.plane.apps)
        await still_serves(shell)
