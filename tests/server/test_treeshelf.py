"""Files of images that clients send: complete and as their names say, or not there at all; never outside."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from kedge.model import protocol as p
from kedge.server import treeshelf
from kedge.server.codeshelf import LIFETIME_S
from kedge.wire import trees
from kedge.wire.trees import Entry, Trees, digest_of, refusal
from tests.server.shell import Peer, running
from tests.wire.loops import on_loop, until

CONTENTS = {"data/a.bin": b"\x00\xff" * 50, "run.sh": b"#!/bin/sh\n", "empty": b""}


def entry(path: str, content: bytes) -> Entry:
    return Entry(path, hashlib.sha256(content).hexdigest(), len(content), path.endswith(".sh"))


ENTRIES = [entry(path, content) for path, content in CONTENTS.items()]


async def offer(peer: Peer, entries: list[Entry], digest: str = "") -> p.Reply:
    listed = [(one.path, one.hash, one.size, one.executable) for one in entries]
    return await peer.ask(lambda n: p.FilesOffered(n, digest or digest_of(entries), listed))


async def send(peer: Peer, content: bytes, offset: int, until: int, one: Entry) -> p.Reply:
    data, last = content[offset:until], until >= len(content)
    return await peer.ask(lambda n: p.FilesSent(n, one.hash, one.executable, offset, data, last))


async def send_all(peer: Peer, size: int = 30) -> None:
    for one in ENTRIES:
        content = CONTENTS[one.path]
        for offset in range(0, max(len(content), 1), size):
            assert (await send(peer, content, offset, offset + size, one)).error is None


def on_disk(root: str) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


@on_loop
async def test_contents_come_in_parts_and_the_tree_is_there_when_all_are(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        asked = await offer(peer, ENTRIES)
        assert sorted(asked.value["missing"]) == sorted(one.object for one in ENTRIES)
        assert (await offer(peer, [], digest_of(ENTRIES))).value == {"missing": []}, "asked only"
        assert on_disk((await offer(peer, [])).value["root"]) == {}
        await send_all(peer)
        root = (await offer(peer, ENTRIES)).value["root"]
        assert root == str(tmp_path / "files" / "trees" / digest_of(ENTRIES))
        assert on_disk(root) == CONTENTS
        assert (await offer(peer, [], digest_of(ENTRIES))).value == {"root": root}
        assert os.access(f"{root}/run.sh", os.X_OK)
        assert not os.stat(f"{root}/data/a.bin").st_mode & 0o111
        assert os.stat(tmp_path / "files" / "trees").st_mode & 0o077 == 0
        # What is there is not asked for again, also in another tree.
        renamed = [Entry("other", ENTRIES[0].hash, ENTRIES[0].size)]
        assert "root" in (await offer(peer, renamed)).value


@on_loop
async def test_a_part_that_comes_twice_or_on_another_connection_is_told_where_it_goes_on(tmp_path: Path) -> None:
    content, one = CONTENTS["data/a.bin"], ENTRIES[0]
    async with running(tmp_path) as shell:
        peer, other = await shell.client(), await shell.client()
        assert (await send(peer, content, 0, 30, one)).value == {"size": 30}
        assert (await send(peer, content, 0, 30, one)).value == {"size": 30}
        assert (await send(other, content, 30, 60, one)).value == {"size": 0}
        assert (await send(peer, content, 30, 100, one)).value == {"size": 100}
        assert (await send(other, content, 60, 100, one)).value == {"size": 100}, "somebody else was quicker"
        assert (await offer(peer, [one])).value["root"]


@on_loop
async def test_what_a_session_began_goes_with_it(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        await send(peer, CONTENTS["data/a.bin"], 0, 30, ENTRIES[0])
        objects = tmp_path / "files" / "objects"
        assert len(list(objects.iterdir())) == 1
        peer.connection.close()
        await until(lambda: not list(objects.iterdir()))


@on_loop
async def test_what_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    one = ENTRIES[0]
    async with running(tmp_path) as shell:
        peer = await shell.client()
        reply = await send(peer, b"x" * one.size, 0, one.size, one)
        assert reply.error is not None
        assert reply.error.message == "a file of an image has changed while it was sent; start again"
        assert list((tmp_path / "files" / "objects").iterdir()) == []
        reply = await offer(peer, ENTRIES, "0" * 32)
        assert reply.error is not None
        assert f"have the digest {digest_of(ENTRIES)}, not {'0' * 32}" in reply.error.message


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "a//b", "run.sh/x"])
@on_loop
async def test_no_path_leads_out_of_the_directory(tmp_path: Path, path: str) -> None:
    (tmp_path / "home").mkdir()
    async with running(tmp_path / "home") as shell:
        peer = await shell.client()
        await send_all(peer)
        reply = await offer(peer, [*ENTRIES, entry(path, CONTENTS["empty"])])
        assert reply.error is not None
        assert reply.error.message.startswith("the files of an image are refused: ")
        assert [found.name for found in tmp_path.iterdir()] == ["home"]
        assert not (tmp_path / "home" / "files" / "trees").exists()


@on_loop
async def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        monkeypatch.setattr(treeshelf, "SIZE_LIMIT", 50)
        reply = await send(peer, CONTENTS["data/a.bin"], 0, 60, ENTRIES[0])
        assert reply.error is not None
        assert "a file of an image has more than" in reply.error.message
    monkeypatch.setattr(trees, "ENTRY_LIMIT", 2)
    assert refusal(ENTRIES) == "more than 2 files"
    monkeypatch.setattr(trees, "SIZE_LIMIT", 10)
    assert refusal(ENTRIES[:2]) == "more than 0 GiB"


@on_loop
async def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    async with running(tmp_path) as shell:
        peer = await shell.client()
        monkeypatch.setattr("tempfile.mkstemp", full)
        reply = await send(peer, CONTENTS["run.sh"], 0, 100, ENTRIES[1])
        assert reply.error is not None
        assert reply.error.message.startswith("the server cannot keep files of an image in ")
        assert "No space left on device" in reply.error.message


@on_loop
async def test_what_no_app_uses_goes_after_a_while(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        await send_all(peer)
        used, unused = (await offer(peer, ENTRIES[:2])).value["root"], (await offer(peer, ENTRIES[1:])).value["root"]
        shelf = shell.office.trees
        now = os.stat(used).st_mtime
        Trees(str(tmp_path / "files")).sweep([os.path.basename(used)], LIFETIME_S, now + 60.0)
        assert os.path.isdir(unused), "somebody may be about to use it"
        await shelf.sweep([used], None)
        shelf.trees.sweep([os.path.basename(used)], -1.0, now + 2.0)
        assert on_disk(used) == {path: CONTENTS[path] for path in ("data/a.bin", "run.sh")}
        assert not os.path.exists(unused)
