"""Dicts as sessions see them: bytes by bytes, all or nothing, and files for what is large."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from kedge.model import protocol as p
from kedge.model.payload import Payload
from kedge.sdk.blobs import BlobStore
from kedge.server import dicts
from tests.server.shell import Peer, running
from tests.wire.loops import on_loop, until

_tokens = itertools.count()


async def made(peer: Peer, name: str = "d") -> str:
    reply = await peer.ask(lambda n: p.ObjectsRequested(n, "dict", "find", name, create=True))
    return str(reply.value["id"])


async def change(peer: Peer, id: str, *, token: str = "", **what: Any) -> Any:
    token = token or f"t-{next(_tokens)}"
    reply = await peer.ask(lambda n: p.EntriesChanged(n, id, token, **what))
    assert reply.error is None, reply.error
    return reply.value


async def put(peer: Peer, id: str, *, only_missing: bool = False, **values: str) -> Any:
    entries = [(key.encode(), Payload(data=value.encode())) for key, value in values.items()]
    return await change(peer, id, entries=entries, only_missing=only_missing)


async def read(peer: Peer, id: str, what: str, *keys: str, after: int = 0) -> Any:
    reply = await peer.ask(lambda n: p.EntriesRequested(n, id, what, [key.encode() for key in keys], after))
    assert reply.error is None, reply.error
    return reply.value


async def values(peer: Peer, id: str, *keys: str) -> list[Any]:
    return [one if one is None else one[1].decode() for one in await read(peer, id, "values", *keys)]


@on_loop
async def test_entries_are_put_read_and_removed(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer, other = await shell.client(), await shell.client()
        id = await made(peer)
        assert await put(peer, id, a="1", b="2") == 2
        assert await put(other, id, b="3", c="4", only_missing=True) == 1
        assert await values(other, id, "a", "b", "c", "d") == ["1", "2", "4", None]
        assert await read(peer, id, "has", "a", "d") == [True, False]
        assert await read(peer, id, "count") == 3
        taken = await change(peer, id, keys=[b"a", b"d"])
        assert [taken[0][1], taken[1]] == [b"1", None]
        assert await read(peer, id, "count") == 2
        await change(peer, id, clear=True)
        assert await read(peer, id, "count") == 0


@on_loop
async def test_a_page_has_an_end_and_goes_on_behind_it(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        id = await made(peer)
        entries = [(f"k{i:04}".encode(), Payload()) for i in range(dicts.PAGE_ROWS + 5)]
        await change(peer, id, entries=entries)
        first = await read(peer, id, "page")
        rest = await read(peer, id, "page", after=first["after"])
        assert (len(first["entries"]), len(rest["entries"]), rest["after"]) == (dicts.PAGE_ROWS, 5, None)
        assert [key for key, _ in first["entries"] + rest["entries"]] == [
            f"k{i:04}".encode() for i in range(dicts.PAGE_ROWS + 5)
        ]
        keys = await read(peer, id, "keys")
        assert {value for _, value in keys["entries"]} == {None}


@on_loop
async def test_entries_survive_the_server_and_a_change_that_is_sent_again_is_done_once(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        id = await made(peer)
        await put(peer, id, a="1", b="2")
        taken = await change(peer, id, keys=[b"a"], token="pop")
        won = await change(peer, id, entries=[(b"c", Payload(data=b"3"))], only_missing=True, token="first")
    async with running(tmp_path) as shell:
        peer = await shell.client()
        assert await made(peer) == id
        assert await values(peer, id, "a", "b", "c") == [None, "2", "3"]
        assert await change(peer, id, keys=[b"a"], token="pop") == taken
        assert (
            await change(peer, id, entries=[(b"c", Payload(data=b"4"))], only_missing=True, token="first") == won == 1
        )
        assert await values(peer, id, "c") == ["3"]


def files(home: Path, name: str) -> list[str]:
    return os.listdir(home / name) if (home / name).is_dir() else []


@on_loop
async def test_the_file_of_a_large_value_belongs_to_its_entry(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer, store = await shell.client(), BlobStore(str(tmp_path))
        id = await made(peer)

        def large(content: bytes) -> Payload:
            name, size = store.write([content])
            return Payload(blob=name, size=size)

        await change(peer, id, entries=[(b"a", large(b"first"))])
        assert (len(files(tmp_path, "objects")), files(tmp_path, "blobs")) == (1, [])
        one, two = [(await read(peer, id, "values", "a"))[0] for _ in range(2)]
        assert one[2] != two[2]  # each reader has a name of its own for it
        await change(peer, id, entries=[(b"a", large(b"second"))])
        assert [bytes(store.read(name[2], consume=True)[0]) for name in (one, two)] == [b"first", b"first"]
        await until(lambda: len(files(tmp_path, "objects")) == 1)
        assert await change(peer, id, entries=[(b"a", large(b"third"))], only_missing=True) == 0
        taken = (await change(peer, id, keys=[b"a"]))[0]
        assert bytes(store.read(taken[2], consume=True)[0]) == b"second"
        await until(lambda: not files(tmp_path, "objects"))
        assert files(tmp_path, "blobs") == []


@on_loop
async def test_files_go_with_their_dict_and_what_a_crash_left_behind_is_removed(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer, store = await shell.client(), BlobStore(str(tmp_path))
        kept, dropped = await made(peer), await made(peer, "other")
        for id in (kept, dropped):
            name, size = store.write([b"large"])
            await change(peer, id, entries=[(b"a", Payload(blob=name, size=size))])
        assert (await peer.ask(lambda n: p.ObjectsRequested(n, "dict", "delete", "other"))).error is None
        await until(lambda: len(files(tmp_path, "objects")) == 1)
    (tmp_path / "objects" / "left").write_bytes(b"by a crash")
    async with running(tmp_path) as shell:
        assert len(files(tmp_path, "objects")) == 1
        (found,) = await read(await shell.client(), kept, "values", "a")
        assert bytes(store.read(found[2])[0]) == b"large"


@on_loop
async def test_limits_and_lies(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        id = await made(peer)
        (tmp_path / "blobs" / "adirectory").mkdir(parents=True)
        (tmp_path / "blobs" / "alink").symlink_to("/etc/passwd")
        for entry, text in (
            ((b"k" * (dicts.MAX_KEY + 1), Payload()), "a key of 4097 bytes is too large for a dict; at most 4096"),
            ((b"k", Payload(blob="a", size=dicts.MAX_VALUE + 1)), "too large for a dict; at most 104857600"),
            ((b"k", Payload(blob="nothere", size=9)), "the file of a value (9 bytes) is gone; put it again"),
            ((b"k", Payload(blob="adirectory", size=9)), "the file of a value (9 bytes) is gone; put it again"),
            ((b"k", Payload(blob="alink", size=9)), "the file of a value (9 bytes) is gone; put it again"),
        ):
            entries = [(b"a", Payload()), entry]
            reply = await peer.ask(lambda n, entries=entries: p.EntriesChanged(n, id, f"t-{n}", entries))  # type: ignore[misc]
            assert reply.error is not None
            assert text in reply.error.message
        assert await read(peer, id, "count") == 0  # all or nothing
        reply = await peer.ask(lambda n: p.EntriesRequested(n, "di-other", "count"))
        assert reply.error is not None
        assert reply.error.message.startswith("this dict is not there any more")
        path = p.EntriesChanged(1, id, "t", [(b"a", Payload(blob="../../etc/passwd", size=9))])
        peer.say(path)
        assert "blob is '../../etc/passwd'; it must match" in await peer.refused()
