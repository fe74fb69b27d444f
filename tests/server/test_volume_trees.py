"""Trees of volumes: what containers changed is taken over, file by file, and nothing that is interrupted is seen."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.exception import AlreadyExistsError, ConflictError, InvalidError, NotFoundError, ServiceError
from kedge.server import volume_store, volume_trees, volume_uppers
from kedge.server.volume_store import Store, View
from kedge.server.volume_trees import Changes, Put
from kedge.server.volume_uppers import Upper

_libc = ctypes.CDLL(None, use_errno=True)


def can_mount(directory: Path) -> bool:
    """Whether overlays can be made here."""
    if os.geteuid() != 0:
        return False
    parts = [directory / name for name in ("l", "u", "w", "m")]
    for part in parts:
        part.mkdir(parents=True)
    done = mount(parts[3], parts[0], parts[1], parts[2])
    if done:
        _libc.umount2(os.fsencode(parts[3]), 2)
    return done


def mount(target: Path, lower: Path | str, upper: Path, work: Path) -> bool:
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    return bool(_libc.mount(b"overlay", os.fsencode(target), b"overlay", 0, os.fsencode(options)) == 0)


class Writer:
    """A container, as far as a volume knows: it sees a tree, and writes on top of it."""

    def __init__(self, store: Store, volume: str, place: Path) -> None:
        self.store, self.volume = store, volume
        tree, self.pin = store.pin(volume)
        self.lower = store.tree(volume, tree)
        self.top = place / "upper"
        self.root = place / "seen"
        for directory in (self.top, self.root, place / "work"):
            directory.mkdir(parents=True)
        assert mount(self.root, self.lower, self.top, place / "work"), os.strerror(ctypes.get_errno())
        self.upper = Upper(str(self.top), self.lower)

    def commit(self, now: float | None = None) -> int:
        staging = self.store.draft(self.volume)
        collected = self.upper.collect(lambda: staging, now=now)
        try:
            return self.store.change(self.volume, lambda tree: collected.changes)
        finally:
            self.upper.taken(collected)
            volume_trees.discard(staging)

    def end(self) -> None:
        _libc.umount2(os.fsencode(self.root), 2)
        os.close(self.pin)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "volumes", durable=False)
    yield made
    made.lease.close()


@pytest.fixture
def writer(store: Store, tmp_path: Path) -> Iterator[Callable[[str], Writer]]:
    if not can_mount(tmp_path / "probe"):
        pytest.skip("overlays cannot be mounted here")
    numbers = itertools.count()
    made: list[Writer] = []

    def make(volume: str) -> Writer:
        made.append(Writer(store, volume, tmp_path / f"writer-{next(numbers)}"))
        return made[-1]

    yield make
    for one in made:
        one.end()


def content(root: Path | str) -> dict[str, Any]:
    """Everything in a directory: bytes of files, targets of links, None for directories."""
    found: dict[str, Any] = {}
    for here, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(here, name)
            key = os.path.relpath(path, root)
            if os.path.islink(path):
                found[key] = f"-> {os.readlink(path)}"
            else:
                found[key] = None if os.path.isdir(path) else Path(path).read_bytes()
    return found


def now_in(store: Store, volume: str) -> dict[str, Any]:
    return content(store.tree(volume, store.current(volume)))


def put(store: Store, volume: str, files: dict[str, bytes]) -> int:
    """A commit of these files."""
    staging = Path(store.draft(volume))
    puts = []
    for number, (path, data) in enumerate(files.items()):
        (staging / str(number)).write_bytes(data)
        puts.append(Put(path, volume_trees.FILE, str(staging / str(number))))
    try:
        return store.change(volume, lambda tree: Changes([], puts))
    finally:
        volume_trees.discard(str(staging))


# ---------------------------------------------------------------- against a model


def act(chance: random.Random, root: Path) -> None:
    """Something that a program might do to its files."""
    names = [f"{a}{b}" for a in "ab" for b in ("", "/x", "/y", "/x/z")]
    path = root / chance.choice(names)
    kind = chance.randrange(7)
    try:
        if kind <= 2:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(chance.randbytes(chance.randrange(1, 40)))
        elif kind == 3:
            path.mkdir(parents=True, exist_ok=True)
        elif kind == 4:
            path.unlink()
        elif kind == 5:
            subprocess.run(["rm", "-rf", str(path)], check=True)
        else:
            fresh = path.with_name("fresh")
            fresh.write_bytes(chance.randbytes(8))
            fresh.rename(path)
    except OSError:
        return


@pytest.mark.parametrize("seed", range(12))
def test_what_one_writer_does_is_what_the_volume_holds(store: Store, writer: Any, seed: int) -> None:
    """With one writer, the tree after each commit is exactly what the writer sees."""
    chance = random.Random(seed)
    volume = store.create("v", "main").id
    put(store, volume, {"a/x": b"first", "b": b"b", "a/y/deep": b"deep"})
    one = writer(volume)
    for _ in range(15):
        for _ in range(chance.randrange(1, 6)):
            act(chance, one.root)
        one.commit()
        assert now_in(store, volume) == content(one.root)


@pytest.mark.parametrize("seed", range(8))
def test_the_last_writer_of_a_file_wins_and_others_keep_theirs(store: Store, writer: Any, seed: int) -> None:
    """Several writers of plain files, in any order of writes and commits, against a dictionary."""
    chance = random.Random(seed)
    volume = store.create("v", "main").id
    put(store, volume, {f"f{i}": b"base" for i in range(6)})
    model: dict[str, Any] = {f"f{i}": b"base" for i in range(6)}
    writers = [writer(volume) for _ in range(3)]
    pending: list[dict[str, bytes | None]] = [{} for _ in writers]
    there = [set(model) for _ in writers]
    """What each had at its last commit: what comes and goes between two commits was never there."""
    for step in range(80):
        index = chance.randrange(3)
        path = f"f{chance.randrange(8)}"
        seen = writers[index].root / path
        if chance.random() < 0.3:
            writers[index].commit()
            for name, data in pending[index].items():
                model.pop(name, None) if data is None else model.__setitem__(name, data)
            pending[index].clear()
            there[index] = set(os.listdir(writers[index].root))
            assert now_in(store, volume) == model
        elif chance.random() < 0.3 and seen.exists():
            seen.unlink()
            pending[index].pop(path, None)
            if path in there[index]:
                pending[index][path] = None
        else:
            seen.write_bytes(b"%d" % step)
            pending[index][path] = b"%d" % step


# ---------------------------------------------------------------- single rules


def test_an_unchanged_file_is_not_committed_again(store: Store, writer: Any) -> None:
    volume = store.create("v", "main").id
    one, other = writer(volume), writer(volume)
    (one.root / "shared").write_text("one")
    (one.root / "own").write_text("own")
    one.commit()
    (other.root / "shared").write_text("other")
    other.commit()
    (one.root / "own").write_text("changed")
    one.commit()
    assert now_in(store, volume) == {"shared": b"other", "own": b"changed"}


def test_nothing_changed_makes_no_tree(store: Store, writer: Any) -> None:
    volume = store.create("v", "main").id
    one = writer(volume)
    (one.root / "f").write_text("x")
    assert one.commit() == 2
    assert one.commit() == 2


def test_files_that_did_not_change_are_the_same_ones(store: Store, writer: Any) -> None:
    volume = store.create("v", "main").id
    put(store, volume, {"big": b"x" * 100_000, "d/small": b"y"})
    before = os.stat(f"{store.tree(volume, 2)}/big")
    one = writer(volume)
    (one.root / "d" / "small").write_text("z")
    one.commit()
    after = os.stat(f"{store.tree(volume, 3)}/big")
    assert (before.st_ino, before.st_dev) == (after.st_ino, after.st_dev)
    assert os.stat(f"{store.tree(volume, 2)}/d/small").st_ino != os.stat(f"{store.tree(volume, 3)}/d/small").st_ino
    assert content(store.tree(volume, 2))["d/small"] == b"y", "who sees the old tree still sees the old file"


def test_what_others_put_into_a_removed_directory_stays(store: Store, writer: Any) -> None:
    volume = store.create("v", "main").id
    put(store, volume, {"d/old": b"old", "d/sub/old": b"old"})
    one = writer(volume)
    put(store, volume, {"d/new": b"new"})
    subprocess.run(["rm", "-rf", str(one.root / "d")], check=True)
    one.commit()
    assert now_in(store, volume) == {"d": None, "d/new": b"new"}


def test_a_directory_that_was_made_anew_hides_what_was_in_it(store: Store, writer: Any) -> None:
    volume = store.create("v", "main").id
    put(store, volume, {"d/old": b"old", "d/kept": b"old"})
    one = writer(volume)
    subprocess.run(["rm", "-rf", str(one.root / "d")], check=True)
    (one.root / "d").mkdir()
    (one.root / "d" / "kept").write_text("new")
    one.commit()
    assert now_in(store, volume) == {"d": None, "d/kept": b"new"}


def test_links_are_kept_and_never_followed(store: Store, writer: Any, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    volume = store.create("v", "main").id
    put(store, volume, {"d/f": b"f"})
    one, other = writer(volume), writer(volume)
    (one.root / "link").symlink_to(tmp_path / "outside")
    subprocess.run(["rm", "-rf", str(one.root / "d")], check=True)
    (one.root / "d").symlink_to(tmp_path / "outside")
    one.commit()
    (other.root / "d" / "f").write_text("through the link?")
    (other.root / "d" / "secret").write_text("overwritten?")
    other.commit()
    assert (tmp_path / "outside" / "secret").read_text() == "secret"
    assert not (tmp_path / "outside" / "f").exists()
    assert now_in(store, volume)["link"] == f"-> {tmp_path / 'outside'}"
    assert now_in(store, volume)["d/f"] == b"through the link?", "a directory took the place of the link"


def test_modes_and_times_are_kept(store: Store, writer: Any) -> None:
    volume = store.create("v", "main").id
    one = writer(volume)
    script = one.root / "bin" / "run"
    script.parent.mkdir(mode=0o750)
    script.write_text("#!/bin/sh")
    script.chmod(0o4755)
    os.utime(script, (1_000_000_000, 1_000_000_000))
    one.commit()
    facts = os.stat(f"{store.tree(volume, 2)}/bin/run")
    assert stat.S_IMODE(facts.st_mode) == 0o755, "a file of a volume gives nobody other rights"
    assert facts.st_mtime == 1_000_000_000
    assert stat.S_IMODE(os.stat(f"{store.tree(volume, 2)}/bin").st_mode) == 0o750


def test_pipes_and_sockets_are_left_out_and_said(store: Store, writer: Any) -> None:
    volume = store.create("v", "main").id
    one = writer(volume)
    os.mkfifo(one.root / "pipe")
    (one.root / "f").write_text("f")
    one.commit()
    assert now_in(store, volume) == {"f": b"f"}
    assert [(left.path, left.why) for left in one.upper.left_out] == [("pipe", "it is a socket, a pipe or a device")]


def test_names_that_are_no_text_are_left_out_and_said(store: Store, writer: Any) -> None:
    volume = store.create("v", "main").id
    one = writer(volume)
    os.makedirs(os.fsencode(one.root) + b"/d/bad\xff")
    (one.root / "d" / "new\nline").write_text("f")
    one.commit()
    assert now_in(store, volume) == {"d": None, "d/new\nline": b"f"}
    assert one.upper.left_out == [("d/bad\\xff", "its name is not UTF-8")]


def test_holes_stay_holes(store: Store, writer: Any) -> None:
    volume = store.create("v", "main").id
    one = writer(volume)
    with (one.root / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(b"middle")
    one.commit()
    facts = os.stat(f"{store.tree(volume, 2)}/sparse")
    assert facts.st_size == 1 << 30
    assert facts.st_blocks * 512 < 1 << 22


def test_what_is_being_written_waits_in_the_background(store: Store, writer: Any) -> None:
    volume = store.create("v", "main").id
    one = writer(volume)
    (one.root / "f").write_text("young")
    at = os.stat(one.root / "f").st_ctime
    one.commit(now=at + 0.1)
    assert now_in(store, volume) == {}
    one.commit(now=at + 0.2)
    assert now_in(store, volume) == {"f": b"young"}, "a small file waits once only"
    with (one.root / "large").open("wb") as file:
        file.truncate(volume_uppers.SMALL + 1)
    for later in (0.1, 0.2, 0.3):
        one.commit(now=os.stat(one.root / "large").st_ctime + later)
        assert "large" not in now_in(store, volume)
    one.commit(now=os.stat(one.root / "large").st_ctime + volume_uppers.QUIET_S + 0.01)
    assert "large" in now_in(store, volume)


def test_a_file_that_changes_while_it_is_copied_comes_with_the_next_commit(
    store: Store, writer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = store.create("v", "main").id
    one = writer(volume)
    (one.root / "f").write_text("before")
    real = volume_uppers.copy

    def disturbed(source: int, target: str) -> None:
        real(source, target)
        with (one.root / "f").open("a") as file:
            file.write("+")

    monkeypatch.setattr(volume_uppers, "copy", disturbed)
    one.commit(now=os.stat(one.root / "f").st_ctime + 10)
    assert now_in(store, volume) == {}, "in the background it waits"
    one.commit()
    assert now_in(store, volume)["f"].startswith(b"before"), "who asks for it gets what is there"
    monkeypatch.setattr(volume_uppers, "copy", real)
    one.commit()
    assert now_in(store, volume)["f"] == (one.root / "f").read_bytes()


def test_part_of_a_volume_is_committed_to_its_place(store: Store, tmp_path: Path) -> None:
    volume = store.create("v", "main").id
    put(store, volume, {"models/a": b"a", "other": b"o"})
    top = tmp_path / "upper"
    top.mkdir()
    (top / "b").write_text("b")
    upper = Upper(str(top), f"{store.tree(volume, 2)}/models", "models/")
    staging = store.draft(volume)
    collected = upper.collect(lambda: staging)
    store.change(volume, lambda tree: collected.changes)
    assert now_in(store, volume) == {"models": None, "models/a": b"a", "models/b": b"b", "other": b"o"}


# ---------------------------------------------------------------- crashes


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("point", ["clone", "apply", "_switch:before", "_switch:tree", "_switch:after"])
def test_a_crash_leaves_the_last_commit_or_the_new_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    volume = store.create("v", "main").id
    put(store, volume, {"f": b"old", "g": b"old"})
    name, _, when = point.partition(":")
    owner: Any = store if name == "_switch" else volume_store
    real = getattr(owner, name)

    def crash(*arguments: Any) -> None:
        if when == "tree":
            os.rename(arguments[1], store.tree(volume, arguments[2]))
        elif when == "after" or name != "_switch":
            real(*arguments)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crash)
        # What a killed process does not do any more.
        patch.setattr(volume_store, "discard", lambda directory: None)
        with pytest.raises(Crash):
            put(store, volume, {"f": b"new", "h": b"new"})
    expected = {"f": b"new", "g": b"old", "h": b"new"} if when == "after" else {"f": b"old", "g": b"old"}
    store.lease.close()
    after = Store(tmp_path / "volumes", durable=False)
    assert now_in(after, volume) == expected
    put(after, volume, {"next": b"n"})
    assert now_in(after, volume) == {**expected, "next": b"n"}
    assert len(os.listdir(tmp_path / "volumes" / volume / "trees")) == 1
    assert os.listdir(tmp_path / "volumes" / volume / "drafts") == []
    after.lease.close()


def test_a_full_disk_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = store.create("v", "main").id
    put(store, volume, {"f": b"old"})

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(volume_store, "apply", full)
        with pytest.raises(ServiceError, match="the disk is full; it is as it was"):
            put(store, volume, {"f": b"new"})
    assert now_in(store, volume) == {"f": b"old"}
    assert os.listdir(store.directory / volume / "drafts") == []


def test_a_tree_stays_as_long_as_somebody_sees_it(store: Store, tmp_path: Path) -> None:
    volume = store.create("v", "main").id
    put(store, volume, {"f": b"1"})
    number, pin = store.pin(volume)
    other = Store(tmp_path / "volumes", durable=False)
    for data in (b"2", b"3"):
        put(other, volume, {"f": data})
    assert content(store.tree(volume, number)) == {"f": b"1"}
    assert sorted(map(int, os.listdir(store.directory / volume / "trees"))) == [2, 4]
    os.close(pin)
    put(other, volume, {"f": b"4"})
    assert os.listdir(store.directory / volume / "trees") == ["5"]
    other.lease.close()


# ---------------------------------------------------------------- names


def test_names(store: Store) -> None:
    one = store.create("weights", "main")
    with pytest.raises(AlreadyExistsError, match="there is a volume 'weights' in the environment 'main' already"):
        store.create("weights", "main")
    other = store.create("weights", "test")
    assert store.find("weights", "main") == one
    assert store.get(other.id) == other
    with pytest.raises(
        NotFoundError, match=r"no volume 'wights' in the environment 'main'; there are weights. Create it"
    ):
        store.find("wights", "main")
    with pytest.raises(InvalidError, match=r"cannot be called '\.\./x'"):
        store.create("../x", "main")
    store.create("second", "main")
    with pytest.raises(AlreadyExistsError):
        store.rename(one.id, "second")
    assert store.rename(one.id, "third").name == "third"
    assert [(v.environment, v.name) for v in store.all()] == [
        ("main", "second"),
        ("main", "third"),
        ("test", "weights"),
    ]
    store.delete(one.id)
    with pytest.raises(NotFoundError):
        store.get(one.id)
    assert [v.name for v in store.all("main")] == ["second"]


def test_a_volume_that_a_container_has_is_not_deleted(store: Store, tmp_path: Path) -> None:
    volume = store.create("v", "main").id
    store.remember(
        View(
            name="ct-1-0-1", volume=volume, container="ct-1", number=0, server=store.lease.server, directory="", tree=1
        )
    )
    with pytest.raises(ConflictError, match="is mounted by ct-1; stop the apps that use it first"):
        store.delete(volume)


def test_volumes_without_a_name_go_with_their_server(tmp_path: Path) -> None:
    dead, alive = Store(tmp_path, durable=False), Store(tmp_path, durable=False)
    gone, stays, named = dead.create().id, alive.create().id, dead.create("v", "main").id
    dead.lease.close()
    alive.sweep()
    assert {gone, stays, named} & set(os.listdir(tmp_path)) == {stays, named}
    alive.lease.close()


def test_what_was_half_made_is_swept_after_a_while(tmp_path: Path) -> None:
    now = [1000.0]
    store = Store(tmp_path, durable=False, clock=lambda: now[0])
    volume = store.create("v", "main").id
    half = [tmp_path / "vo-1.new", tmp_path / "vo-2.gone", tmp_path / volume / "views" / "ct-1-0-1"]
    for directory in half:
        directory.mkdir()
        os.utime(directory, (1000, 1000))
    store.sweep()
    assert all(directory.exists() for directory in half), "somebody may be at it just now"
    now[0] += volume_store.HALF_MADE_S + 1
    store.sweep()
    assert not any(directory.exists() for directory in half)
    assert store.find("v", "main").id == volume
    store.lease.close()


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize("path", ["../x", "a/../../x", "a\0b", "x" * 300, "/".join("a" * 200), 7, "half \ud800"])
def test_paths_that_are_none(path: Any) -> None:
    with pytest.raises(InvalidError):
        volume_trees.clean(path)


def test_links_are_followed_inside_only(tmp_path: Path) -> None:
    (tmp_path / "t" / "blobs").mkdir(parents=True)
    (tmp_path / "t" / "blobs" / "1").write_text("one")
    (tmp_path / "t" / "snap").mkdir()
    (tmp_path / "t" / "snap" / "f").symlink_to("../blobs/1")
    (tmp_path / "t" / "out").symlink_to("../../etc")
    (tmp_path / "t" / "absolute").symlink_to("/etc")
    (tmp_path / "t" / "loop").symlink_to("loop")
    tree = str(tmp_path / "t")
    assert volume_trees.locate(tree, "snap/f") == f"{tree}/blobs/1"
    for path in ("out/passwd", "absolute/passwd", "loop"):
        with pytest.raises(InvalidError):
            volume_trees.locate(tree, path)
    with pytest.raises(NotFoundError, match="there is no 'nothing' in the volume"):
        volume_trees.locate(tree, "nothing")
    with pytest.raises(InvalidError, match="'out' is a symbolic link in the volume"):
        volume_trees.check_target(tree, "out/passwd")


def test_entries_come_in_pages(tmp_path: Path) -> None:
    for path in ("a/b/c", "a/d", "a-b", "e"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    all = [entry.path for entry in volume_trees.entries(str(tmp_path), "", True)]
    assert all == ["a", "a/b", "a/b/c", "a/d", "a-b", "e"]
    for index, path in enumerate(all):
        assert [one.path for one in volume_trees.entries(str(tmp_path), "", True, path)] == all[index + 1 :]
    assert [one.path for one in volume_trees.entries(str(tmp_path), "a")] == ["a/b", "a/d"]
    assert [one.path for one in volume_trees.entries(str(tmp_path), "/a/d")] == ["a/d"]
    assert [one.path for one in volume_trees.entries(str(tmp_path), "a/*")] == ["a/b", "a/d"]
    assert [one.path for one in volume_trees.entries(str(tmp_path), "**/c")] == ["a/b/c"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["a-b", "a1", "e"]),
        ("a?", ["a1"]),
        ("a[!1]*", ["a-b"]),
        ("[z-a]", []),
        ("[", []),
        ("a1/**", ["a1/b", "a1/b/c", "a1/b/c.txt"]),
        ("**/c*", ["a1/b/c", "a1/b/c.txt"]),
        ("a1/**/**/*.txt", ["a1/b/c.txt"]),
        ("**/e", ["e"]),
        ("*/*/*/*", []),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    for path in ("a1/b/c", "a1/b/c.txt", "a-b", "e"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert [one.path for one in volume_trees.entries(str(tmp_path), pattern)] == expected


def test_no_pattern_takes_for_ever(tmp_path: Path) -> None:
    """It would hold the interpreter, and with it the whole server."""
    deep = tmp_path.joinpath(*["a"] * 60)
    deep.mkdir(parents=True)
    (deep / ("a" * 250)).touch()
    tree = str(tmp_path)
    assert not list(volume_trees.entries(tree, "**/" + "*a" * 100 + "b"))
    assert not list(volume_trees.entries(tree, "**/a/" * 40 + "b"))
