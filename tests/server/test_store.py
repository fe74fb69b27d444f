"""What is accepted is on disk, in few transactions; what is over is kept seven days; what fails fails alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kedge.model import protocol as p
from kedge.model.payload import Payload, Result
from kedge.model.spec import Variant
from kedge.server import writer as writer_module
from kedge.server.archive import no_such_call
from kedge.server.register import Names
from kedge.server.store import LIFETIME_S, Store
from kedge.server.writer import StoreError, Writer
from tests.server.shell import app, spawned
from tests.wire.loops import on_loop, until

DAY = 24 * 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


@contextlib.contextmanager
def opened(directory: Path, clock: Clock | None = None) -> Iterator[Store]:
    store = Store(directory, clock=clock or Clock())
    store.open()
    try:
        yield store
    finally:
        store.close()


async def accepted(store: Store, message: p.InputsSubmitted, known: bool = False) -> p.CallRestored | None:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    store.accept(message, "square", known, lambda restored, error: future.set_result((restored, error)))
    restored, error = await future
    assert not error
    return restored


async def flushed(store: Store) -> None:
    await store.writer.ask(lambda tx: None)


def rows(directory: Path, query: str) -> list[Any]:
    """What another process sees."""
    with contextlib.closing(sqlite3.connect(directory / "state.db")) as database:
        return database.execute(query).fetchall()


def done(call: str, *indices: int, text: str = "r", blob: str = "") -> p.OutputsRecorded:
    return p.OutputsRecorded(
        call, [p.Output(i, Result(payload=Payload(data=text.encode(), blob=blob))) for i in indices]
    )


def found(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


# ---------------------------------------------------------------- accepting


@on_loop
async def test_inputs_are_on_disk_before_anybody_is_told(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        seen: list[Any] = []
        told = asyncio.Event()

        def then(restored: Any, error: str) -> None:
            seen.extend(rows(tmp_path, "SELECT call, position FROM inputs"))
            told.set()

        store.accept(spawned("a", "b", first=3), "square", False, then)
        await told.wait()
        assert seen == [("fc-1", 3), ("fc-1", 4)]
        assert rows(tmp_path, "SELECT call, function, total FROM calls") == [("fc-1", "square", 5)]


@on_loop
async def test_many_that_wait_share_few_transactions(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        await flushed(store)
        before = store.writer.transactions
        told: list[str] = []
        last = asyncio.Event()
        for i in range(500):
            store.accept(spawned("a", call=f"fc-{i}"), "square", False, lambda restored, error: told.append(error))
        store.writer.put(lambda tx: None, lambda value, error: last.set())
        await last.wait()
        assert told == [""] * 500
        assert store.writer.transactions - before < 100
        assert rows(tmp_path, "SELECT count(*) FROM inputs") == [(500,)]


@on_loop
async def test_what_fails_after_a_write_keeps_nobody_from_writing(tmp_path: Path) -> None:
    with opened(tmp_path, Clock()) as store:

        def fail() -> None:
            raise IsADirectoryError("what was to be removed")

        store.writer.put(lambda tx: tx.committed.append(fail))
        assert await asyncio.wait_for(store.writer.ask(lambda tx: 7), 30) == 7


@on_loop
async def test_inputs_that_are_sent_again_are_stored_once(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert await accepted(store, spawned("a", "b")) is None
        assert await accepted(store, spawned("a", "b"), known=True) is None
        store.record(done("fc-1", 0))
        restored = await accepted(store, spawned("a", "b"), known=True)
        assert restored == p.CallRestored("fc-1", spawned().pool, "", 2, [(0, "success")])
        assert rows(tmp_path, "SELECT position FROM inputs") == [(1,)]
        assert (await accepted(store, spawned("c", first=2))) == p.CallRestored(
            "fc-1", spawned().pool, "", 3, [(0, "success")]
        )


# ---------------------------------------------------------------- results


@on_loop
async def test_results_are_read_in_order_and_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedge.server.store.PAGE_BYTES", 100)
    with opened(tmp_path) as store:
        await accepted(store, spawned(*"abcdef"))
        store.record(done("fc-1", 4, 0, 2, text="x" * 60))
        page = await store.page("fc-1", 0, None)
        assert ([o.index for o in page.outputs], page.next) == ([0], 2)
        page = await store.page("fc-1", 2, 4)
        assert ([o.index for o in page.outputs], page.next) == ([2], None)
        assert page.outputs[0].result.payload == Payload(data=b"x" * 60)
        assert (await store.page("fc-9", 0, None)).outputs == []
        assert await store.size("fc-1") == 6
        assert await store.size("fc-9") is None


@on_loop
async def test_of_two_results_the_first_counts(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        await accepted(store, spawned("a"))
        store.record(done("fc-1", 0, text="first"))
        store.record(done("fc-1", 0, text="second"))
        page = await store.page("fc-1", 0, None)
        assert [o.result.payload for o in page.outputs] == [Payload(data=b"first")]


@on_loop
async def test_a_call_is_described_with_what_is_done_and_what_waits(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        await accepted(store, spawned("a", "b", total=-1))
        store.record(done("fc-1", 1))
        description = await store.describe("fc-1")
        assert description is not None
        assert description["status"] == [[0, "queued"], [1, "success"]]
        assert (description["inputs"], description["done"], description["function"]) == (2, 1, "square")
        store.total("fc-1", 5)
        assert (await store.describe("fc-1") or {})["inputs"] == 5
        assert await store.describe("fc-9") is None


# ---------------------------------------------------------------- files


def blob(directory: Path, name: str) -> Path:
    (directory / "blobs").mkdir(exist_ok=True)
    path = directory / "blobs" / name
    path.write_bytes(b"large")
    return path


@on_loop
async def test_argument_files_go_when_they_are_released_and_result_files_when_they_expire(tmp_path: Path) -> None:
    clock = Clock()
    argument, result = blob(tmp_path, "arg1"), blob(tmp_path, "res1")
    with opened(tmp_path, clock) as store:
        message = p.InputsSubmitted("fc-1", "fu-1", 0, [Payload(blob="arg1", size=5)], durable=True, total=1)
        await accepted(store, message)
        store.record(done("fc-1", 0, blob="res1"))
        store.release(p.PayloadReleased(["arg1", "../state.db"]))
        await flushed(store)
        assert (argument.exists(), result.exists(), (tmp_path / "state.db").exists()) == (False, True, True)
        clock.now += LIFETIME_S + 1
        store.sweep()
        await flushed(store)
        assert not result.exists()
        assert rows(tmp_path, "SELECT (SELECT count(*) FROM calls) + (SELECT count(*) FROM results)") == [(0,)]
        assert await store.size("fc-1") is None


@on_loop
async def test_files_that_nobody_refers_to_go_after_seven_days(tmp_path: Path) -> None:
    clock = Clock()
    orphan, young, argument = (blob(tmp_path, name) for name in ("orphan", "young", "arg1"))
    for path in (orphan, argument):
        os.utime(path, (clock.now, clock.now))
    os.utime(young, (clock.now + LIFETIME_S, clock.now + LIFETIME_S))
    loop = tmp_path / "blobs" / "loop"
    loop.symlink_to("loop")
    with opened(tmp_path, clock) as store:
        await accepted(store, p.InputsSubmitted("fc-1", "fu-1", 0, [Payload(blob="arg1", size=5)], durable=True))
        clock.now += LIFETIME_S + 1
        store.sweep()
        await flushed(store)
        assert (orphan.exists(), young.exists(), argument.exists()) == (False, True, True)


# ---------------------------------------------------------------- expiry


@on_loop
async def test_calls_expire_seven_days_after_their_last_result_and_never_while_inputs_wait(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock) as store:
        for call in ("fc-1", "fc-2", "fc-3"):
            await accepted(store, spawned("a", "b", call=call))
        store.record(done("fc-1", 0, 1))
        store.record(done("fc-2", 0))
        store.record(done("fc-3", 0))
        await flushed(store)
        clock.now += 5 * DAY
        store.record(done("fc-3", 1))
        await flushed(store)
        clock.now += 3 * DAY
        store.sweep()
        assert [await store.size(call) for call in ("fc-1", "fc-2", "fc-3")] == [None, 2, 2]
        clock.now += 5 * DAY
        store.sweep()
        assert [await store.size(call) for call in ("fc-1", "fc-2", "fc-3")] == [None, 2, None]


@on_loop
async def test_results_are_kept_for_as_long_as_the_server_was_told(tmp_path: Path) -> None:
    clock = Clock()
    store = Store(tmp_path, clock=clock, lifetime_s=60.0)
    store.open()
    try:
        await accepted(store, spawned("a"))
        store.record(done("fc-1", 0))
        await flushed(store)
        clock.now += 59
        store.sweep()
        assert await store.size("fc-1") == 1
        clock.now += 2
        store.sweep()
        assert await store.size("fc-1") is None
    finally:
        store.close()
    assert no_such_call("fc-1", 60.0).endswith("its results have expired 60 s after the last of them")
    assert no_such_call("fc-1", LIFETIME_S).endswith("its results have expired 7 days after the last of them")


@on_loop
async def test_what_expired_while_no_server_ran_is_gone_at_the_next_start(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock) as store:
        await accepted(store, spawned("a"))
        store.record(done("fc-1", 0))
        await flushed(store)
    clock.now += LIFETIME_S + 1
    with opened(tmp_path, clock) as store:
        assert await store.size("fc-1") is None


# ---------------------------------------------------------------- restart


@on_loop
async def test_everything_that_is_not_over_is_loaded_again(tmp_path: Path) -> None:
    variant = Variant(function="fu-1-square", variant="9f", parameters=Payload(data=b"p"), spec=app().functions[0])
    with opened(tmp_path) as store:
        store.register.save_app(app("ap-1"))
        store.register.save_app(app("ap-2"))
        store.register.save_variant("fu-1-square@9f", "ap-1", variant)
        store.register.save_variant("fu-2-square@9f", "ap-2", variant)
        store.register.forget_app("ap-2")
        store.register.learn_imports("key", ["numpy", "torch"], 3)
        store.register.learn_imports("key", ["torch", "scipy", "pandas"], 3)
        await accepted(store, spawned(*"abcdef", method="m", parent="in-1-0"))
        store.record(done("fc-1", 2, 5))
        await accepted(store, spawned("a", call="fc-over"))
        store.record(done("fc-over", 0))
        await accepted(store, spawned("a", call="fc-unclosed", total=-1))
        store.record(done("fc-unclosed", 0))
        await accepted(store, spawned("a", call="fc-incomplete", total=2))
        store.record(done("fc-incomplete", 0))
    with opened(tmp_path) as store:
        names, calls = await store.load()
        assert names == Names([app("ap-1")], [], [variant])
        assert store.register.imports("key") == ["numpy", "torch", "scipy"]
        by_id = {restored.call: (restored, submissions) for restored, submissions in calls}
        assert sorted(by_id) == ["fc-1", "fc-incomplete", "fc-unclosed"]
        restored, submissions = by_id["fc-1"]
        assert restored == p.CallRestored("fc-1", spawned().pool, "m", 6, [(2, "success"), (5, "success")])
        assert [(s.first, [x.data for x in s.payloads]) for s in submissions] == [(0, [b"a", b"b"]), (3, [b"d", b"e"])]
        assert all(s.durable and s.parent == "in-1-0" and s.method == "m" for s in submissions)
        assert by_id["fc-unclosed"] == (p.CallRestored("fc-unclosed", spawned().pool, "", -1, [(0, "success")]), [])


@on_loop
async def test_a_call_keeps_the_limits_that_it_brought_along(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        await accepted(store, spawned("a", "b", timeout=5.0, queue_timeout=2.5))
        await accepted(store, spawned("a", call="fc-plain"))
    with opened(tmp_path) as store:
        survivors = await store.load()
        limits = {s.call: (s.timeout, s.queue_timeout) for _, submissions in survivors.calls for s in submissions}
        assert limits == {"fc-1": (5.0, 2.5), "fc-plain": (0.0, 0.0)}


FORMAT_1 = """
CREATE TABLE calls (
    call TEXT PRIMARY KEY, pool TEXT NOT NULL, method TEXT NOT NULL, parent TEXT NOT NULL, total INTEGER NOT NULL,
    function TEXT NOT NULL, changed REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE inputs (
    call TEXT NOT NULL, position INTEGER NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (call, position)
) WITHOUT ROWID;
INSERT INTO calls VALUES ('fc-old', 'fu-1-square', 'm', 'in-1-0', 2, 'square', 1000000000.0);
PRAGMA user_version = 1;
"""


@on_loop
async def test_the_state_of_an_older_kedge_is_taken_over(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as database:
        database.executescript(FORMAT_1)
        payload = msgspec.msgpack.encode(Payload(data=b"a"))
        database.execute("INSERT INTO inputs VALUES ('fc-old', 0, ?)", (payload,))
        database.commit()
    for _ in range(2):  # also by those who find it as the first one has left it
        with opened(tmp_path) as store:
            ((restored, (submission,)),) = (await store.load()).calls
            assert restored == p.CallRestored("fc-old", "fu-1-square", "m", 2, [])
            assert (submission.parent, submission.timeout, submission.queue_timeout) == ("in-1-0", 0.0, 0.0)
    with opened(tmp_path) as store:
        await accepted(store, spawned("b", timeout=3.0))
        assert [s.timeout for _, submissions in (await store.load()).calls for s in submissions] == [3.0, 0.0]
    assert rows(tmp_path, "PRAGMA user_version") == [(3,)]


@on_loop
async def test_the_state_of_a_newer_kedge_is_refused(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(
        StoreError, match=r"was written by a newer kedge \(format 7, this one knows 3\): use that version"
    ):
        Store(tmp_path).open()


@on_loop
async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"something else" * 100)
    with pytest.raises(StoreError, match=r"state\.db cannot be used: file is not a database"):
        Store(tmp_path).open()
    with pytest.raises(StoreError, match="cannot be used"):
        Store(tmp_path / "nowhere").open()


@on_loop
async def test_state_is_private_to_its_user(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch(mode=0o644)
    with opened(tmp_path) as store:
        await accepted(store, spawned("a"))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in found(tmp_path)}
        assert modes == dict.fromkeys(["state.db", "state.db-shm", "state.db-wal"], 0o600)


# ---------------------------------------------------------------- failures


@on_loop
async def test_a_job_that_fails_does_not_take_the_others_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as store:
        told: dict[str, str] = {}
        last = asyncio.Event()
        for call, first in (("fc-1", 0), ("fc-bad", 2**63), ("fc-2", 0)):
            message = p.InputsSubmitted(call, "fu-1", first, [Payload()], durable=True)
            store.accept(message, "square", False, lambda restored, error, call=call: told.update({call: error}))
        store.writer.put(lambda tx: tx.execute("nonsense"))
        store.writer.put(lambda tx: None, lambda value, error: last.set())
        await last.wait()
        assert told["fc-1"] == told["fc-2"] == ""
        assert "the server cannot write" in told["fc-bad"]
        assert rows(tmp_path, "SELECT call FROM inputs ORDER BY call") == [("fc-1",), ("fc-2",)]
        assert rows(tmp_path, "SELECT call FROM calls ORDER BY call") == [("fc-1",), ("fc-2",)]
        assert "a job failed" in caplog.text


@on_loop
async def test_one_who_is_told_and_fails_does_not_keep_it_from_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as store:
        last = asyncio.Event()
        store.writer.put(lambda tx: None, lambda value, error: 1 / 0)
        store.writer.put(lambda tx: None, lambda value, error: last.set())
        await last.wait()
        assert "what waited for the disk failed" in caplog.text


class Disk:
    """A database whose disk is full while `full` is set."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self.full = False
        self.refused = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def execute(self, statement: str, *arguments: Any) -> Any:
        if self.full and statement.startswith(("INSERT", "UPDATE", "DELETE")):
            self._loop.call_soon_threadsafe(self.refused.set)
            raise sqlite3.OperationalError("database or disk is full")
        return self._database.execute(statement, *arguments)

    def executemany(self, statement: str, values: Any) -> Any:
        return [self.execute(statement, value) for value in values]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


@on_loop
async def test_results_that_the_disk_refuses_are_written_as_soon_as_it_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer_module, "RETRY_S", 0.01)
    disks: list[Disk] = []
    original = Writer.connect

    def connect(self: Writer) -> Any:
        disks.append(Disk(original(self)))
        return disks[-1]

    monkeypatch.setattr(Writer, "connect", connect)
    with opened(tmp_path) as store:
        await accepted(store, spawned("a"))
        disk = disks[-1]
        disk.full = True
        store.record(done("fc-1", 0))
        refusal: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        store.accept(spawned("b", call="fc-2"), "square", False, lambda restored, error: refusal.set_result(error))
        assert (await refusal).endswith("database or disk is full")
        await disk.refused.wait()
        assert (await store.page("fc-1", 0, None)).outputs == []
        disk.full = False
        await until(lambda: rows(tmp_path, "SELECT count(*) FROM results") == [(1,)])
        assert len((await store.page("fc-1", 0, None)).outputs) == 1
        await flushed(store)
    assert "what must not be lost is written again until it works" in caplog.text
    assert "can be written again" in caplog.text


@on_loop
async def test_what_the_disk_refuses_to_the_end_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as store:
        await accepted(store, spawned("x"))
        pages = await store.writer.ask(lambda tx: tx.execute("PRAGMA page_count").fetchone()[0])
        await store.writer.ask(lambda tx: tx.execute(f"PRAGMA max_page_count = {pages}").fetchall())
        store.record(done("fc-1", 0, text="x" * 100_000))
        await flushed(store)
    assert "1 writes were lost, since the disk refused them to the end" in caplog.text


@on_loop
async def test_closing_writes_what_is_queued(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for i in range(2500):
            store.accept(spawned("a", call=f"fc-{i}"), "square", False, lambda restored, error: None)
    assert rows(tmp_path, "SELECT count(*) FROM inputs") == [(2500,)]
