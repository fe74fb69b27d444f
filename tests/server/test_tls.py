"""A server with TLS and programs that use it from elsewhere: blocking and asyncio code, waits that others end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kedge import exception
from kedge.model import protocol as p
from kedge.sdk.calls import Pending
from kedge.sdk.client import Client
from tests.server.shell import TOKEN, Shell, running
from tests.wire.loops import LIMIT_S, on_loop, until
from tests.wire.test_tls import CA, server_context


async def listening(shell: Shell) -> str:
    shell.rpc.web = lambda host: (f"https://{host or 'here'}:1", "")
    address = await shell.rpc.listen("tcp://127.0.0.1:0", server_context())
    assert address.startswith("tcps://127.0.0.1:")
    return address


@on_loop
async def test_programs_use_a_server_under_tls_with_its_token(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        address = await listening(shell)
        client = await asyncio.to_thread(Client.connect, address, TOKEN, CA)
        try:
            facts = await asyncio.to_thread(client.request, p.StatisticsRequested)
            assert facts["apps"] == 0
            assert (await client.request_async(p.StatisticsRequested))["apps"] == 0
            assert client.link().welcome.web == "https://127.0.0.1:1"
        finally:
            await asyncio.to_thread(client.close)


@on_loop
async def test_a_thread_that_waits_is_woken_by_a_nudge_and_by_other_threads(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        client = await asyncio.to_thread(Client.connect, await listening(shell), TOKEN, CA)
        link = client.link()
        taken: list[list[object]] = []
        original = link.registry.dispatch
        link.registry.dispatch = lambda messages: (taken.append(messages), original(messages))[1]  # type: ignore
        never = link.registry.calls["fc-1"] = Pending()  # nobody answers that
        waiting = asyncio.create_task(asyncio.to_thread(link.wait, never, LIMIT_S))
        await until(lambda: link._leader is not None)
        before = len(taken)
        client.nudge()
        await until(lambda: len(taken) > before)
        answers = await asyncio.gather(*(asyncio.to_thread(client.request, p.StatisticsRequested) for _ in range(8)))
        assert [answer["apps"] for answer in answers] == [0] * 8
        await asyncio.to_thread(client.close)
        assert await waiting
        assert isinstance(never.failure, exception.ClientClosed)


@on_loop
async def test_those_who_do_not_fit_hear_why(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        address = await listening(shell)
        plain = address.replace("tcps://", "tcp://")
        with pytest.raises(
            exception.ConnectionError, match="where it has TLS, write tcps://, and name its certificates"
        ):
            await asyncio.to_thread(Client.connect, plain, TOKEN)
        with pytest.raises(exception.ConnectionError, match="certificate verify failed"):
            await asyncio.to_thread(Client.connect, address, TOKEN)
        with pytest.raises(exception.AuthError, match="wrong token"):
            await asyncio.to_thread(Client.connect, address, "wrong", CA)
        with pytest.raises(exception.ConnectionError, match="certificate verify failed"):
            await Client(address, TOKEN).request_async(p.StatisticsRequested)


@on_loop
async def test_a_handshake_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running(tmp_path, hello_timeout=0.05) as shell:
        address = await listening(shell)
        with pytest.raises(exception.ConnectionError):
            await asyncio.to_thread(Client.connect, address.replace("tcps://", "tcp://"), TOKEN)
        await until(lambda: not shell.rpc._open and not shell.rpc._strangers)
