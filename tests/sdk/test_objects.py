"""`Dict` and `Queue` as programs use them, against a real server, in blocking and in async code."""

from __future__ import annotations

import asyncio
import pickle
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kedge
from kedge.exception import AlreadyExistsError, InvalidError, NotFoundError, SerializationError
from kedge.sdk import client as client_module
from kedge.sdk.client import Client
from kedge.sdk.named import new_token
from tests.cli.live import Live
from tests.wire.loops import on_loops, until

BIG = 300 * 1024


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    monkeypatch.delenv("KEDGE_ENVIRONMENT", raising=False)
    monkeypatch.setenv("KEDGE_CONFIG", str(tmp_path / "none.toml"))
    with Live(tmp_path / "home") as live:
        client = Client.connect(live.shell.path)
        client_module.use(client)
        yield live
        client.close()


@pytest.fixture
def d(live: Live) -> kedge.Dict:
    return kedge.Dict.from_name("d", create_if_missing=True)


@pytest.fixture
def q(live: Live) -> kedge.Queue:
    return kedge.Queue.from_name("q", create_if_missing=True)


# ---------------------------------------------------------------- dicts


def test_a_dict_is_used_like_one(d: kedge.Dict) -> None:
    d["a"] = {"x": [1, 2]}
    d[("b", 1)] = None
    assert (d["a"], d.get("a"), d[("b", 1)], d.get("c"), d.get("c", 7)) == ({"x": [1, 2]}, {"x": [1, 2]}, None, None, 7)
    assert ("a" in d, "c" in d, d.contains(("b", 1)), d.len()) == (True, False, True, 2)
    with pytest.raises(KeyError, match="'c'"):
        d["c"]
    del d["a"]
    with pytest.raises(KeyError):
        del d["a"]
    assert d.pop(("b", 1), 5) is None
    assert d.pop(("b", 1), 5) == 5
    with pytest.raises(KeyError):
        d.pop("a")


def test_the_first_one_wins_where_that_is_asked_for(d: kedge.Dict) -> None:
    assert d.put("a", 1) is True
    assert d.put("a", 2, skip_if_exists=True) is False
    assert d.put("b", 3, skip_if_exists=True) is True
    assert (d["a"], d["b"]) == (1, 3)


def test_all_of_a_dict(d: kedge.Dict) -> None:
    d.update({i: i * i for i in range(2500)}, name="squares")
    assert list(d.keys()) == [*range(2500), "name"]
    assert list(d.values())[:3] == [0, 1, 4]
    assert dict(d.items())["name"] == "squares"
    d.clear()
    assert (d.len(), list(d.items())) == (0, [])
    with pytest.raises(TypeError, match=r"write .keys\(\), .values\(\) or .items\(\)"):
        iter(d)


def test_values_of_any_size(d: kedge.Dict, live: Live) -> None:
    d["big"] = b"x" * BIG
    assert d["big"] == d.get("big") == b"x" * BIG
    d.update({i: bytes([i]) * BIG for i in range(5)})
    assert [value[0] for key, value in d.items() if key != "big"] == [0, 1, 2, 3, 4]
    assert d.pop("big") == b"x" * BIG
    blobs = Path(live.shell.directory) / "blobs"
    assert list(blobs.iterdir()) == []
    with pytest.raises(SerializationError, match=r"the value of 'lock' in <kedge.Dict d>"):
        d["lock"] = threading.Lock()


def test_keys_are_plain_values_and_equal_ones_meet(d: kedge.Dict) -> None:
    one, other = "ab" * 10, "".join(["ab"] * 10)
    d[(one, one)] = 1
    assert d[(one, other)] == 1  # a pickle with a memo would tell them apart
    for key in (1, True, 1.0, "1", b"1", None):
        d[key] = type(key).__name__
    assert [d[key] for key in (1, True, 1.0)] == ["int", "bool", "float"]
    for bad in ([1], frozenset({1}), ("a", object())):
        with pytest.raises(InvalidError, match=r"cannot be a key of a kedge.Dict: .* values have no single pickle"):
            d.get(bad)


# ---------------------------------------------------------------- queues


def test_first_in_first_out(q: kedge.Queue) -> None:
    q.put(1)
    q.put_many([{"two": 2}, None])
    assert (q.len(), list(q.iterate()), q.len()) == (3, [1, {"two": 2}, None], 3)
    assert [q.get(), q.get(), q.get()] == [1, {"two": 2}, None]
    assert q.get(block=False) is None
    assert q.get_many(5, block=False) == []
    with pytest.raises(queue.Empty):
        q.get(timeout=0.01)
    with pytest.raises(queue.Empty):
        q.get_many(3, timeout=0)


def test_partitions(q: kedge.Queue) -> None:
    q.put("a", partition="left")
    q.put_many(["b", "c"], partition="right")
    assert (q.len(), q.len(partition="right"), q.len(total=True)) == (0, 2, 3)
    assert q.get(partition="right") == "b"
    q.clear(partition="right")
    assert (q.len(partition="right"), q.len(total=True)) == (0, 1)
    q.clear(all=True)
    assert q.len(total=True) == 0


def test_many_items_in_few_messages(q: kedge.Queue) -> None:
    q.put_many(range(5000))
    assert q.get_many(3500) == list(range(3500))
    assert q.get_many(10_000) == list(range(3500, 5000))
    q.put_many([b"x" * 1_000_000] * 12)
    assert [len(value) for value in q.get_many(12)] == [1_000_000] * 12
    assert q.len() == 0


def test_misuse(q: kedge.Queue) -> None:
    with pytest.raises(InvalidError, match="too large for a queue; at most 1048576 are allowed"):
        q.put(b"x" * 2_000_000)
    with pytest.raises(InvalidError, match="total=True counts all partitions; leave partition= out"):
        q.len(partition="a", total=True)
    with pytest.raises(InvalidError, match="all=True clears all partitions"):
        q.clear(partition="a", all=True)
    with pytest.raises(InvalidError, match="a name of 1 to 64 bytes, not ''"):
        q.get(partition="")
    with pytest.raises(InvalidError, match="n_values must be at least 1"):
        q.get_many(0)
    with pytest.raises(InvalidError, match="timeout is a number of seconds"):
        q.get(timeout=-1)
    with pytest.raises(InvalidError, match="partition_ttl must be more than 0 seconds"):
        q.put(1, partition_ttl=0)
    with pytest.raises(InvalidError, match=r"partition_ttl is at most 31622400 seconds \(a year\), got 1000000000"):
        q.put(1, partition_ttl=10**9)
    with pytest.warns(UserWarning, match="timeout has no effect with block=False"):
        q.get(block=False, timeout=1)


def test_a_full_queue(q: kedge.Queue, live: Live) -> None:
    from kedge.server.lines import Bounds

    live.shell.objects.queues.bounds = Bounds(items=1000)
    with pytest.raises(queue.Full, match=r"<kedge.Queue q> is full after 1000 items"):
        q.put_many(range(2500), timeout=0)
    with pytest.raises(queue.Full):
        q.put(1, block=False)
    done = threading.Thread(target=lambda: q.put_many(range(1000, 2500)))
    done.start()
    assert [value for _ in range(5) for value in q.get_many(500)] == list(range(2500))
    done.join(10)
    assert not done.is_alive()


def test_threads_of_one_process_share_a_connection_and_each_item_goes_to_one(q: kedge.Queue) -> None:
    found: list[int] = []

    def consume() -> None:
        while (item := q.get()) is not None:
            found.append(item)

    threads = [threading.Thread(target=consume) for _ in range(8)]
    for thread in threads:
        thread.start()
    q.put_many(range(500))
    q.put_many([None] * 8)
    for thread in threads:
        thread.join(20)
    assert sorted(found) == list(range(500))
    assert q.len() == 0


def test_an_item_that_cannot_be_loaded_is_removed_with_an_error(q: kedge.Queue) -> None:
    q.put_many([Unloadable(), 1])
    with pytest.raises(kedge.exception.DeserializationError, match=r"With get.. that item is removed"):
        q.get_many(2)
    assert q.len() == 2
    with pytest.raises(kedge.exception.DeserializationError, match=r"an item of <kedge.Queue q> cannot be loaded"):
        q.get()
    assert q.get() == 1


class Unloadable:
    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    raise ValueError("no such thing here")


# ---------------------------------------------------------------- both


@on_loops
async def in_async_code(live: Live) -> None:
    d = kedge.Dict.from_name("async", create_if_missing=True)
    await d.update.aio({"a": 1}, b=2)
    assert await d.put.aio("c", b"x" * BIG)
    assert [await d.get.aio("a"), await d.pop.aio("b"), await d.contains.aio("b"), await d.len.aio()] == [
        1,
        2,
        False,
        2,
    ]
    assert [key async for key in d.keys.aio()] == ["a", "c"]
    assert [value async for value in d.values.aio()] == [1, b"x" * BIG]
    assert [key async for key, _ in d.items.aio()] == ["a", "c"]
    await d.clear.aio()
    async with kedge.Queue.ephemeral() as q:
        waiting = asyncio.create_task(q.get.aio())
        await asyncio.sleep(0)
        await q.put.aio("first")
        assert await waiting == "first"
        await q.put_many.aio(range(1500))
        assert len(await q.get_many.aio(1500)) == 1500
        assert await q.get.aio(block=False) is None
        with pytest.raises(queue.Empty):
            await q.get.aio(timeout=0.01)
        await q.put_many.aio("ab", partition="p")
        assert [value async for value in q.iterate.aio(partition="p")] == ["a", "b"]
        assert await q.len.aio(total=True) == 2
        await q.clear.aio(all=True)
        assert await asyncio.gather(*(q.get.aio() for _ in range(50)), q.put_many.aio(range(50))) == [*range(50), None]
        id = q.object_id
    with pytest.raises(NotFoundError, match="this queue is not there any more"):
        await kedge.Queue.from_id(id).len.aio()


def test_in_async_code(live: Live) -> None:
    in_async_code(live)


@on_loops
async def a_cancelled_get(live: Live) -> None:
    async with kedge.Queue.ephemeral() as q:
        task = asyncio.create_task(q.get.aio())
        queues = live.shell.objects.queues
        await until(lambda: queues._waiting == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: queues._waiting == 0)
        await q.put.aio("a")
        assert await q.get.aio(timeout=5) == "a"


def test_a_cancelled_get_takes_nothing(live: Live) -> None:
    a_cancelled_get(live)


def test_what_an_interrupted_get_was_given_comes_back(q: kedge.Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    from kedge.sdk import queues

    q.put_many(["a", "b"])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(queues._Taking, "values", interrupted)
        q.get_many(2)
    assert q.get_many(2, timeout=5) == ["a", "b"]


def test_ephemeral_ones_last_as_long_as_their_block(live: Live) -> None:
    with kedge.Dict.ephemeral() as d, kedge.Queue.ephemeral() as q:
        d["a"] = 1
        q.put(1)
        assert (d["a"], d.name, q.name) == (1, None, None)
        copies = pickle.loads(pickle.dumps((d, q)))
        assert (copies[0]["a"], copies[1].len()) == (1, 1)
        assert [kedge.Dict.objects.list(), kedge.Queue.objects.list()] == [[], []]
    with pytest.raises(NotFoundError, match="this dict is not there any more: it was deleted, or it was ephemeral and"):
        d["a"]
    with pytest.raises(NotFoundError):
        q.get(block=False)


def test_names(live: Live) -> None:
    with pytest.raises(NotFoundError, match="there is no dict 'results' in the environment 'main'; there are none"):
        kedge.Dict.from_name("results")["a"]
    kedge.Dict.objects.create("results")
    with pytest.raises(AlreadyExistsError):
        kedge.Dict.objects.create("results")
    kedge.Dict.objects.create("results", allow_existing=True)
    kedge.Dict.from_name("results")["a"] = 1
    assert kedge.Dict.from_name("results", environment_name="other", create_if_missing=True).len() == 0
    assert [one.name for one in kedge.Dict.objects.list()] == ["results"]
    info = kedge.Dict.from_name("results").info()
    assert (info.name, info.created_at > 0) == ("results", True)
    assert kedge.Dict.from_name("results").hydrate().object_id.startswith("di-")
    kedge.Dict.objects.delete("results")
    kedge.Dict.objects.delete("results", allow_missing=True)
    with pytest.raises(NotFoundError):
        kedge.Dict.objects.delete("results")
    with pytest.raises(InvalidError, match=r"Queue.from_name: name may hold letters"):
        kedge.Queue.from_name("a b")


@pytest.mark.parametrize("kind", [kedge.Dict, kedge.Queue, kedge.Secret])
def test_a_name_that_cannot_be_is_refused_before_a_server_is_looked_for(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "current", lambda: pytest.fail("a server was looked for"))
    with pytest.raises(InvalidError, match=rf"{kind.__name__}.objects.delete: name may hold letters"):
        kind.objects.delete("a b")


def test_a_handle_takes_its_environment_along(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_ENVIRONMENT", "staging")
    here = kedge.Dict.from_name("d", create_if_missing=True)
    here["a"] = 1
    data = pickle.dumps(here)
    monkeypatch.delenv("KEDGE_ENVIRONMENT")
    assert pickle.loads(data)["a"] == 1
    with pytest.raises(NotFoundError):
        kedge.Dict.from_name("d").len()


def test_another_server_is_asked_anew(live: Live, tmp_path: Path) -> None:
    d = kedge.Dict.from_name("d", create_if_missing=True)
    d["a"] = 1
    (tmp_path / "more").mkdir()
    with Live(tmp_path / "more" / "home") as other:
        client = Client.connect(other.shell.path)
        client_module.use(client)
        assert d.len() == 0
        client.close()
    assert d["a"] == 1


def test_tokens_are_never_the_same() -> None:
    assert len({new_token() for _ in range(1000)}) == 1000


def test_blocking_a_loop_is_warned_of(live: Live) -> None:
    d = kedge.Dict.from_name("d", create_if_missing=True)

    async def block() -> None:
        d["a"] = 1

    with pytest.warns(kedge.exception.AsyncUsageWarning, match=r"d.put\(…\) blocks the running event loop") as told:
        asyncio.run(block())
    assert told[0].filename == __file__, "at the line that blocks"
