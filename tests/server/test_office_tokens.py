"""Tokens: made once, told once, good until they are deleted, and never written where anybody reads."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from kedge.model import protocol as p
from kedge.model.payload import ErrorInfo
from kedge.server import tokens as tokens_module
from tests.server.shell import TOKEN, Peer, Shell, running
from tests.wire.loops import on_loop, until


async def made(peer: Peer, kind: str = "api", name: str = "") -> Any:
    reply = await peer.ask(lambda n: p.TokensChanged(n, "create", kind, name))
    assert reply.error is None, reply.error
    return reply.value


async def comes_in(shell: Shell, address: str, token: str) -> Peer:
    peer = await shell.stranger(address)
    peer.say(p.Hello(p.CLIENT, token=token))
    await peer.hear(p.Welcome)
    return peer


@on_loop
async def test_a_token_lets_a_client_in_until_it_is_deleted(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        address = await shell.rpc.listen("tcp://127.0.0.1:0")
        owner = await shell.client()
        token = await made(owner, name="laptop")
        assert token["id"].startswith("ak-")
        assert token["secret"].startswith("as-")
        guest = await comes_in(shell, address, f"{token['id']}.{token['secret']}")
        other = await comes_in(shell, address, TOKEN)
        reply = await owner.ask(lambda n: p.TokensChanged(n, "list"))
        assert [(one["id"], one["kind"], one["name"]) for one in reply.value] == [(token["id"], "api", "laptop")]
        assert (await owner.ask(lambda n: p.TokensChanged(n, "delete", id=token["id"]))).error is None
        assert await guest.refused() == "the token that it came in with has been deleted"
        peer = await shell.stranger(address)
        peer.say(p.Hello(p.CLIENT, token=f"{token['id']}.{token['secret']}"))
        assert (await peer.refused()).startswith("wrong token")
        assert (await other.ask(lambda n: p.TokensChanged(n, "list"))).value == []


@on_loop
async def test_each_kind_is_good_for_its_own_purpose_only(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        api, proxy = await made(peer), await made(peer, "proxy")
        tokens = shell.tokens
        assert tokens.allowed(proxy["id"], proxy["secret"])
        assert not tokens.allowed(api["id"], api["secret"])
        assert tokens.admits(f"{api['id']}.{api['secret']}")
        assert not tokens.admits(f"{proxy['id']}.{proxy['secret']}")
        reply = await peer.ask(lambda n: p.TokensChanged(n, "list", "proxy"))
        assert [one["id"] for one in reply.value] == [proxy["id"]]


@pytest.mark.parametrize(
    ("id", "secret"), [("", ""), ("wk-unknown", "x"), ("own", ""), ("own", "x"), ("own", "ws-" + "A" * 43)]
)
@on_loop
async def test_a_wrong_id_or_secret_is_not_allowed(tmp_path: Path, id: str, secret: str) -> None:
    async with running(tmp_path) as shell:
        token = await shell.tokens.create("proxy")
        assert not shell.tokens.allowed(token["id"] if id == "own" else id, secret)
        assert not shell.tokens.allowed(token["id"], token["secret"] + "\udcff")
        assert not shell.tokens.allowed(token["id"], token["secret"][:-1])


@on_loop
async def test_an_unknown_id_costs_one_comparison_like_a_known_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as shell:
        token = await shell.tokens.create("proxy")
        compared: list[tuple[int, int]] = []
        compare = tokens_module.compare_digest

        def counted(a: bytes, b: bytes) -> bool:
            compared.append((len(a), len(b)))
            return compare(a, b)

        monkeypatch.setattr(tokens_module, "compare_digest", counted)
        assert not shell.tokens.allowed("wk-unknown", "x")
        assert not shell.tokens.allowed(token["id"], "x")
        assert compared == [(32, 32), (32, 32)]


@on_loop
async def test_tokens_survive_the_server_and_their_secrets_are_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with running(tmp_path) as shell:
        address = await shell.rpc.listen("tcp://127.0.0.1:0")
        owner = await shell.client()
        token, proxy = await made(owner), await made(owner, "proxy", "partner")
        guest = await comes_in(shell, address, f"{token['id']}.{token['secret']}")
        session = guest.messages[0].session
        guest.connection.close()
        await until(lambda: session not in shell.driver.links)
        peer = await shell.stranger(address)
        peer.say(p.Hello(p.CLIENT, token=f"{token['id']}.{proxy['secret']}"))
        await peer.refused()
        assert not shell.tokens.allowed(proxy["id"], token["secret"])
    secrets = [one["secret"].encode() for one in (token, proxy)]
    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        assert not any(secret in file.read_bytes() for secret in secrets), file
    assert not any(secret.decode() in caplog.text for secret in secrets)
    async with running(tmp_path) as shell:
        assert shell.tokens.allowed(proxy["id"], proxy["secret"])
        assert [one["name"] for one in shell.tokens.list()] == ["", "partner"]
        await shell.tokens.delete(proxy["id"])
    async with running(tmp_path) as shell:
        assert not shell.tokens.allowed(proxy["id"], proxy["secret"])
        assert shell.tokens.admits(f"{token['id']}.{token['secret']}")
        assert shell.tokens.admits(TOKEN)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (
            p.TokensChanged(1, "delete", id="ak-1"),
            ErrorInfo("NotFoundError", "there is no token ak-1; `kedge token list` shows those that there are"),
        ),
        (
            p.TokensChanged(1, "renew"),
            ErrorInfo("InvalidError", "action='renew' is not known; write create, list or delete"),
        ),
        (
            p.TokensChanged(1, "create", "root"),
            ErrorInfo("InvalidError", "kind='root' is not known; write one of api, proxy"),
        ),
    ],
)
@on_loop
async def test_what_makes_no_sense_is_said(tmp_path: Path, message: p.TokensChanged, error: ErrorInfo) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client(message)
        assert (await peer.hear(p.Reply)).error == error


@on_loop
async def test_there_is_a_most_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "MAX_TOKENS", 2)
    async with running(tmp_path) as shell:
        peer = await shell.client(*(p.TokensChanged(n, "create") for n in range(1, 5)))
        replies = [await peer.hear(p.Reply, lambda reply, n=n: reply.request == n) for n in range(1, 5)]  # type: ignore[misc]
        assert [reply.error is None for reply in replies] == [True, True, False, False]
        assert replies[3].error is not None
        assert "there are 2 tokens already; delete some first" in replies[3].error.message


@on_loop
async def test_the_database_keeps_what_tells_them_apart_and_no_more(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        token = await shell.tokens.create("api", "laptop")
    database = sqlite3.connect(tmp_path / "state.db")
    try:
        (row,) = database.execute("SELECT id, kind, name, length(digest) FROM tokens").fetchall()
    finally:
        database.close()
    assert row == (token["id"], "api", "laptop", 32)
