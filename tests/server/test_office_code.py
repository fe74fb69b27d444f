"""Code that clients upload: complete and as its digest says, or not there at all; never outside of its directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kedge.model import protocol as p
from kedge.model.payload import ErrorInfo
from kedge.model.spec import CodeSpec
from kedge.server import codeshelf
from kedge.wire.source import digest_of, objection
from tests.server.shell import Peer, app, running
from tests.wire.loops import on_loop, until

FILES = [("pkg/__init__.py", b"x = 1\n"), ("pkg/deep/data.txt", b"\x00\xff"), ("pkg/empty.py", b"")]
DIGEST = digest_of(FILES)


async def upload(peer: Peer, files: list[tuple[str, bytes]], digest: str = "", parts: int = 1) -> p.Reply:
    digest = digest or digest_of(files)
    size = -(-len(files) // parts)
    pieces = [files[at : at + size] for at in range(0, len(files), size)]
    peer.say(*(p.CodeUploaded(0, digest, piece) for piece in pieces[:-1]))
    return await peer.ask(lambda n: p.CodeUploaded(n, digest, pieces[-1], last=True))


def on_disk(root: str) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


@on_loop
async def test_code_comes_in_parts_and_is_there_when_it_is_complete(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        asked = await peer.ask(lambda n: p.CodeUploaded(n, DIGEST, [], last=True))
        assert asked.value == {"root": ""}
        reply = await upload(peer, FILES, parts=3)
        root = str(tmp_path / "code" / DIGEST)
        assert reply.value == {"root": root}
        assert on_disk(root) == dict(FILES)
        asked = await peer.ask(lambda n: p.CodeUploaded(n, DIGEST, [], last=True))
        assert asked.value == {"root": root}
        assert os.stat(tmp_path / "code").st_mode & 0o077 == 0


@on_loop
async def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        await upload(peer, FILES)
        path = tmp_path / "code" / DIGEST / "pkg" / "empty.py"
        path.write_bytes(b"marked")
        assert (await upload(peer, FILES)).error is None
        assert path.read_bytes() == b"marked"
        assert [entry.name for entry in (tmp_path / "code").iterdir()] == [DIGEST]


@on_loop
async def test_what_a_session_began_to_send_goes_with_it(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer, other = await shell.client(), await shell.client()
        peer.say(p.CodeUploaded(0, DIGEST, FILES[:2]))
        await until(lambda: shell.office.shelf.pending)
        # Parts of one session are not completed by another.
        reply = await other.ask(lambda n: p.CodeUploaded(n, DIGEST, FILES[2:], last=True))
        assert reply.error is not None
        assert "the code that arrived has the digest" in reply.error.message
        peer.connection.close()
        await until(lambda: not shell.office.shelf.pending)
        assert not (tmp_path / "code" / DIGEST).exists()


@on_loop
async def test_another_digest_begins_anew(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client(p.CodeUploaded(0, "0" * 32, [("junk.py", b"junk")]))
        reply = await upload(peer, FILES)
        assert on_disk(reply.value["root"]) == dict(FILES)


@on_loop
async def test_what_is_not_what_its_digest_says_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        reply = await upload(peer, FILES, digest="0" * 32)
        assert reply.error == ErrorInfo(
            "InvalidError",
            f"the code that arrived has the digest {DIGEST}, not {'0' * 32}: it was changed on its way, or while it "
            "was read; send it again",
        )
        assert not (tmp_path / "code").exists()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../x.py", "the path '../x.py' leads out of the snapshot; write it relative to the directory of the package"),
        ("a/../../x.py", "the path 'a/../../x.py' leads out of the snapshot"),
        ("/etc/passwd", "the path '/etc/passwd' leads out of the snapshot"),
        ("", "'' is no path of a file; write names joined by '/'"),
        ("a//b.py", "'a//b.py' is no path of a file"),
        ("./a.py", "'./a.py' is no path of a file"),
        ("a/", "'a/' is no path of a file"),
        ("a\0b.py", r"'a\x00b.py' is no path of a file"),
        ("ok.py", "the path 'ok.py' comes twice"),
        ("ok.py/x.py", "the path 'ok.py' is a file and a directory at once"),
        ("x" * 1025, "has 1025 characters; at most 1024 are allowed"),
    ],
)
@on_loop
async def test_no_path_leads_out_of_the_directory(tmp_path: Path, path: str, reason: str) -> None:
    files = [("ok.py", b"1"), (path, b"2")]
    assert reason in objection([name for name, _ in files])
    if len(path) > 1024:
        return  # that one does not come through the door
    (tmp_path / "home").mkdir()
    async with running(tmp_path / "home") as shell:
        peer = await shell.client()
        reply = await upload(peer, files)
        assert reply.error is not None
        assert reply.error.message.startswith("the code is refused: ")
        assert reason in reply.error.message
        assert not (tmp_path / "home" / "code").exists()
        assert [entry.name for entry in tmp_path.iterdir()] == ["home"]


@on_loop
async def test_too_much_is_refused_with_the_last_part_and_held_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codeshelf, "TOTAL_LIMIT", 100)
    monkeypatch.setattr(codeshelf, "FILE_LIMIT", 3)
    async with running(tmp_path) as shell:
        peer = await shell.client()
        for files in ([("a.py", b"x" * 60), ("b.py", b"x" * 60)], [(f"{n}.py", b"") for n in range(4)]):
            reply = await upload(peer, files, parts=2)
            assert reply.error is not None
            assert reply.error.type == "InvalidError"
            assert reply.error.message.startswith("the code is too large: more than 3 files or")
            assert not shell.office.shelf.pending


@on_loop
async def test_all_sessions_together_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codeshelf, "MOST_AT_ONCE", 100)
    async with running(tmp_path) as shell:
        first, second = await shell.client(), await shell.client()
        first.say(p.CodeUploaded(0, "0" * 32, [("a.py", b"x" * 60)]))
        await until(lambda: shell.office.shelf.pending == 60)
        reply = await upload(second, [("b.py", b"x" * 60)])
        assert reply.error == ErrorInfo(
            "ResourceExhaustedError", "too much code is being uploaded at the same time; try again in a moment"
        )
        first.connection.close()
        await until(lambda: not shell.office.shelf.pending)
        assert (await upload(second, [("b.py", b"x" * 60)])).error is None


@on_loop
async def test_a_disk_that_refuses_it_is_said_and_nothing_half_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    async with running(tmp_path) as shell:
        peer = await shell.client()
        monkeypatch.setattr("kedge.wire.source.os.rename", full)
        reply = await upload(peer, FILES)
        monkeypatch.undo()
        assert reply.error is not None
        assert (reply.error.type, "No space left on device" in reply.error.message) == ("ServiceError", True)
        assert list((tmp_path / "code").iterdir()) == []
        assert (await upload(peer, FILES)).value["root"]


@on_loop
async def test_code_that_nobody_has_or_asks_for_is_removed_after_a_while(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        roots = []
        for number in range(3):
            reply = await upload(peer, [("script.py", b"%d" % number)])
            roots.append(Path(reply.value["root"]))
            os.utime(roots[-1], times=(0, 0))
        draft = tmp_path / "code" / ".new-1"
        draft.mkdir()
        os.utime(draft, times=(0, 0))
        used, asked, forgotten = roots
        spec = replace(app(), code=CodeSpec(root=str(used), module="script"))
        assert (await peer.ask(lambda n: p.AppCreated(n, spec))).error is None
        assert (await peer.ask(lambda n: p.CodeUploaded(n, asked.name, [], last=True))).value == {"root": str(asked)}
        shell.office.sweep()
        await until(lambda: not forgotten.exists() and not draft.exists())
        await until(lambda: not shell.office._tasks)
        assert used.exists()
        assert asked.exists()


@on_loop
async def test_what_programs_of_this_machine_have_stored_is_removed_by_the_machines_server_alone(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    for name in ("server", "code"):
        (home / name).mkdir(parents=True)
    (tmp_path / "other").symlink_to(home)

    def stored(name: str) -> Path:
        path = home / "code" / name
        path.mkdir()
        os.utime(path, times=(0, 0))
        return path

    async with running(home / "server") as shell:
        used, old, draft, foreign = (stored(name) for name in ("a" * 32, "b" * 32, ".new-x", "my-project"))
        new = stored("c" * 32)
        os.utime(new)
        # Its program knows the state directory by another path.
        spec = replace(app(), code=CodeSpec(root=str(tmp_path / "other" / "code" / used.name), module="script"))
        assert (await (await shell.client()).ask(lambda n: p.AppCreated(n, spec))).error is None
        shell.office.snapshots = home / "code"
        shell.office.about["private"] = True
        shell.office.sweep()
        await until(lambda: not shell.office._tasks)
        assert used.stat().st_mtime > 0  # other servers see that it is in use
        assert old.exists()
        os.utime(used, times=(0, 0))
        shell.office.about["private"] = False
        shell.office.sweep()
        await until(lambda: not shell.office._tasks)
        assert [path.exists() for path in (used, old, draft, foreign, new)] == [True, False, False, True, True]
