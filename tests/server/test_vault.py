"""Secrets: encrypted where they lie, given to containers, and shown to nobody."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kedge.exception import InvalidError, NotFoundError
from kedge.model import protocol as p
from kedge.model.spec import SecretRef
from kedge.server.vault import KEY_FILE, MAX_BYTES, UNUSED_S, Vault
from tests.server.fake_engine import FakeEngine, hold
from tests.server.shell import Peer, Shell, app, inputs, running
from tests.wire.loops import on_loop, until

VALUE = "val-of-nobodys-business"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def change(peer: Peer, action: str, name: str = "", values: dict[str, str] | None = None, **rest: Any) -> Any:
    reply = await peer.ask(lambda n: p.SecretsChanged(n, action, name, values=values or {}, **rest))
    assert reply.error is None, reply.error
    return reply.value


async def refused(peer: Peer, action: str, name: str = "", values: dict[str, str] | None = None, **rest: Any) -> str:
    reply = await peer.ask(lambda n: p.SecretsChanged(n, action, name, values=values or {}, **rest))
    assert reply.error is not None
    assert VALUE not in str(reply)
    return f"{reply.error.type}: {reply.error.message}"


def everything_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


@on_loop
async def test_a_secret_is_kept_encrypted_and_comes_back_after_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        made = await change(await shell.client(), "create", "openai", {"KEY": VALUE, "ORG": "us"})
        assert made["keys"] == ["KEY", "ORG"]
        assert VALUE not in str(made)
        assert shell.vault.values(SecretRef(name="openai"), "main") == {"KEY": VALUE, "ORG": "us"}
        await shell.on_disk()
        assert VALUE.encode() not in everything_in(tmp_path)
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    async with running(tmp_path) as shell:
        assert shell.vault.values(SecretRef(name="openai"), "main")["KEY"] == VALUE


@on_loop
async def test_a_name_is_taken_once_unless_it_is_replaced_or_changed(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer, ref = await shell.client(), SecretRef(name="a")
        await change(peer, "create", "a", {"X": "1", "Y": "1"})
        assert await refused(peer, "create", "a", {"X": "2"}) == (
            "AlreadyExistsError: there is a secret 'a' in the environment 'main' already; --force replaces it"
        )
        await change(peer, "create_missing", "a", {"X": "2"})
        assert shell.vault.values(ref, "main") == {"X": "1", "Y": "1"}
        await change(peer, "update", "a", {"Y": "2"})
        assert shell.vault.values(ref, "main") == {"X": "1", "Y": "2"}
        await change(peer, "replace", "a", {"Z": "3"})
        assert shell.vault.values(ref, "main") == {"Z": "3"}
        await change(peer, "delete", "a")
        assert (await refused(peer, "delete", "a")).startswith("NotFoundError: there is no secret 'a'")
        assert (await refused(peer, "update", "a")).startswith("NotFoundError: there is no secret 'a'")


@on_loop
async def test_environments_are_apart(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        await change(peer, "create", "a", {"X": "main"})
        await change(peer, "create", "a", {"X": "staging"}, environment="staging")
        await change(peer, "create", "b", {"X": "b"}, environment="staging")
        values = shell.vault.values
        assert values(SecretRef(name="a"), "staging") == {"X": "staging"}
        assert values(SecretRef(name="a", environment="staging"), "main") == {"X": "staging"}
        assert [one["name"] for one in await change(peer, "list", environment="staging")] == ["a", "b"]
        with pytest.raises(NotFoundError, match=r"no secret 'b' in the environment 'main'; there are a. It is in"):
            values(SecretRef(name="b"), "main")


@on_loop
async def test_required_keys_are_named_and_values_are_not(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        await change(peer, "create", "a", {"X": VALUE})
        wanted = SecretRef(name="a", required_keys=("X", "Y", "Z"))
        with pytest.raises(
            InvalidError, match=r"the secret 'a' .* has no Y, Z, which required_keys asks for; it has X"
        ):
            shell.vault.values(wanted, "main")
        assert "has no Y, which required_keys asks for; it has X." in await refused(
            peer, "info", "a", required_keys=("X", "Y")
        )
        assert (await change(peer, "info", "a", required_keys=("X",)))["keys"] == ["X"]


@on_loop
async def test_bad_secrets_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        wrong = await refused(peer, "create", "a b", {"X": "1"})
        assert "a secret cannot be called 'a b': its name has letters, digits, '.', '-' and '_', 64 at most" in wrong
        assert "'A=B' cannot be a variable" in await refused(peer, "create", "a", {"A=B": VALUE})
        assert "'A' cannot be a variable" in await refused(peer, "create", "a", {"A": VALUE + "\0"})
        assert f"at most {MAX_BYTES} are allowed" in await refused(peer, "create", "a", {"A": "x" * MAX_BYTES})
        assert "action='steal' is not known" in await refused(peer, "steal", "a")
        assert await change(peer, "list") == []


@on_loop
async def test_values_without_a_name_meet_in_one_id_that_says_nothing_of_them(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    async with running(tmp_path / "one") as shell, running(tmp_path / "two") as other:
        peer, again, elsewhere = await shell.client(), await shell.client(), await other.client()
        first = await change(peer, "keep", values={"X": VALUE})
        assert await change(again, "keep", values={"X": VALUE}) == first
        assert await change(again, "keep", values={"X": "another"}) != first
        assert await change(elsewhere, "keep", values={"X": VALUE}) != first  # each server has a key of its own
        assert shell.vault.values(SecretRef(id=first["id"]), "main") == {"X": VALUE}
        assert await change(peer, "list") == []


@on_loop
async def test_values_without_a_name_go_with_the_apps_that_have_them(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, clock=clock) as shell:
        peer = await shell.client()
        kept = [(await change(peer, "keep", values={"X": x}))["id"] for x in "ab"]
        peer.say(p.AppCreated(1, app(ephemeral=False, secrets=(SecretRef(id=kept[0]),))))
        await peer.hear(p.Reply, lambda reply: reply.request == 1)
        clock.now += 2 * UNUSED_S
        await shell.vault.sweep()  # their session is there: it may start another app with them
        assert all(shell.vault.values(SecretRef(id=id), "main") for id in kept)
        peer.connection.close("over")
        await until(lambda: len(shell.driver.links) == 0)
        await shell.vault.sweep()
        assert shell.vault.values(SecretRef(id=kept[1]), "main") == {"X": "b"}  # a moment ago it was in use
        clock.now += 2 * UNUSED_S
        await shell.vault.sweep()
        assert shell.vault.values(SecretRef(id=kept[0]), "main") == {"X": "a"}
        with pytest.raises(NotFoundError, match="run or deploy the app again, or keep them by name"):
            shell.vault.values(SecretRef(id=kept[1]), "main")
    async with running(tmp_path, clock=clock) as shell:
        assert shell.vault.values(SecretRef(id=kept[0]), "main") == {"X": "a"}
        clock.now += 2 * UNUSED_S
        await shell.vault.sweep()
        assert shell.vault.values(SecretRef(id=kept[0]), "main") == {"X": "a"}


@on_loop
async def test_another_key_is_said_and_nothing_else_breaks(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        await change(await shell.client(), "create", "a", {"X": VALUE})
    (tmp_path / KEY_FILE).unlink()
    async with running(tmp_path) as shell:
        peer = await shell.client()
        await change(peer, "create", "b", {"X": "1"})
        with pytest.raises(
            InvalidError, match=r"'a' was encrypted with another key than the one in .*secrets.key; bring"
        ):
            shell.vault.values(SecretRef(name="a"), "main")
        assert [(one["name"], one["keys"]) for one in await change(peer, "list")] == [("a", []), ("b", ["X"])]
        await change(peer, "replace", "a", {"X": "new"})
        assert shell.vault.values(SecretRef(name="a"), "main") == {"X": "new"}


async def started(shell: Shell, peer: Peer) -> Any:
    peer.say(inputs("a"))
    await until(lambda: shell.engine.containers and shell.engine.only.held)
    return shell.engine.only.launch


@on_loop
async def test_a_container_gets_the_variables_and_who_looks_at_it_does_not(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        peer = await shell.client()
        await change(peer, "create", "first", {"X": "old", "Y": VALUE})
        await change(peer, "create", "second", {"X": VALUE})
        spec = app(secrets=(SecretRef(name="first"), SecretRef(name="second")))
        peer.say(p.AppCreated(1, spec))
        launch = await started(shell, peer)
        assert dict(launch.environment.variables) == {"X": VALUE, "Y": VALUE}  # the later one wins
        for ask in (
            lambda n: p.ContainersRequested(n, container=launch.container),
            lambda n: p.FunctionsRequested(n, function="fu-1-square"),
            lambda n: p.FunctionRequested(n, "fu-1-square"),
            lambda n: p.AppsRequested(n),
            lambda n: p.ServerRequested(n),
        ):
            reply = await peer.ask(ask)
            assert reply.error is None
            assert VALUE not in str(reply.value)
        asked = await peer.ask(lambda n: p.ContainersRequested(n, container=launch.container, secrets=True))
        assert asked.value[0]["launch"]["secrets"] == {"X": VALUE, "Y": VALUE}


@on_loop
async def test_an_app_without_its_secrets_does_not_start(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        missing = app(secrets=(SecretRef(name="openai"),))
        reply = await peer.ask(lambda n: p.AppCreated(n, missing))
        assert reply.error is not None
        assert reply.error.message.startswith("there is no secret 'openai' in the environment 'main'; there are none.")
        await change(peer, "create", "openai", {"X": VALUE})
        wanted = replace(missing.functions[0], secrets=(SecretRef(name="openai", required_keys=("KEY",)),))
        reply = await peer.ask(lambda n: p.AppDeployed(n, replace(missing, ephemeral=False, functions=(wanted,))))
        assert reply.error is not None
        assert "has no KEY, which required_keys asks for; it has X" in reply.error.message
        assert (await peer.ask(lambda n: p.AppCreated(n, missing))).error is None


def test_a_message_does_not_show_what_it_carries() -> None:
    message = p.SecretsChanged(1, "create", "openai", "main", {"KEY": VALUE})
    assert VALUE not in repr(message) + str(message) + f"{message}" + repr([message])


@on_loop
async def test_two_at_once_make_one_key(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peers = [await shell.client() for _ in range(8)]
        await asyncio.gather(*(change(peer, "create", f"s{i}", {"X": str(i)}) for i, peer in enumerate(peers)))
        for i in range(8):
            assert shell.vault.values(SecretRef(name=f"s{i}"), "main") == {"X": str(i)}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(KEY_FILE)] == [KEY_FILE]


@on_loop
async def test_a_programs_own_server_knows_the_named_ones_of_the_machines_server(tmp_path: Path) -> None:
    machine, own = tmp_path / "a machine", tmp_path / "own"
    machine.mkdir()
    own.mkdir()
    async with running(machine) as shell:
        await change(await shell.client(), "create", "openai", {"KEY": VALUE})
        kept = (await change(await shell.client(), "keep", values={"X": "1"}))["id"]
    shell = Shell(own)
    shell.store.open()
    vault = Vault(shell.store.writer, own)
    vault.lender = machine
    await vault.open()
    assert vault.values(SecretRef(name="openai"), "main") == {"KEY": VALUE}
    with pytest.raises(NotFoundError):
        vault.values(SecretRef(id=kept), "main")
    vault.lender = tmp_path / "nothing"
    await vault.open()
    vault.close()
    assert await shell.store.writer.ask(lambda tx: tx.execute("SELECT count(*) FROM secrets").fetchone()) == (0,)
    shell.store.close()
    assert VALUE.encode() not in everything_in(tmp_path)
