"""Queues as sessions see them: waiting, room, and what comes of items whose taker has gone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from kedge.model import protocol as p
from kedge.model.payload import Payload
from kedge.server import objects, queues
from kedge.server.lines import Bounds
from tests.server.shell import Peer, Shell, running
from tests.wire.loops import on_loop, until

_numbers = itertools.count(1000)


async def queue(peer: Peer, name: str = "jobs") -> str:
    reply = await peer.ask(lambda n: p.ObjectsRequested(n, "queue", "find", name, create=True))
    assert reply.error is None, reply.error
    return str(reply.value["id"])


def payloads(*values: str) -> list[Payload]:
    return [Payload(data=value.encode()) for value in values]


async def put(peer: Peer, id: str, *values: str, wait: float | None = 0.0, partition: str = "") -> Any:
    token = f"put-{next(_numbers)}"
    reply = await peer.ask(lambda n: p.ItemsPut(n, id, token, partition, payloads(*values), 60.0, wait))
    assert reply.error is None, reply.error
    return reply.value


def ask(peer: Peer, id: str, count: int = 1, wait: float | None = None) -> tuple[int, str]:
    """A taker that waits: number of its request, and its token."""
    number = next(_numbers)
    peer.say(p.ItemsWanted(number, id, f"take-{number}", "", count, wait))
    return number, f"take-{number}"


async def got(peer: Peer, number: int) -> list[str]:
    reply = await peer.hear(p.Reply, lambda reply: reply.request == number)
    assert reply.error is None, reply.error
    return [item[1].decode() for item in reply.value]


async def take(peer: Peer, id: str, count: int = 1, keep: bool = True) -> list[str]:
    number, token = ask(peer, id, count, 0.0)
    found = await got(peer, number)
    if found and keep:
        peer.say(p.ItemsSettled(id, token, True))
    return found


async def length(peer: Peer, id: str, every: bool = False) -> int:
    return int((await peer.ask(lambda n: p.ItemsRequested(n, id, "count", every=every))).value)


async def waits(shell: Shell, count: int) -> None:
    await until(lambda: sum(len(line.all()) for line in shell.objects.queues._lines.values()) == count)
    await until(lambda: not any(line.looking for line in shell.objects.queues._lines.values()))


@on_loop
async def test_many_consumers_get_each_item_once_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peers = [await shell.client() for _ in range(20)]
        id = await queue(peers[0])
        asked = []
        for count, peer in enumerate(peers, 1):
            asked.append(ask(peer, id))
            await waits(shell, count)
        await put(await shell.client(), id, *map(str, range(20)))
        assert [await got(peer, number) for peer, (number, _) in zip(peers, asked, strict=True)] == [
            [str(i)] for i in range(20)
        ]


@on_loop
async def test_a_wait_ends_with_its_time(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        id = await queue(peer)
        number, _ = ask(peer, id, wait=0.02)
        assert await got(peer, number) == []
        assert await take(peer, id) == []
        assert shell.objects.queues._lines == {}
        assert shell.objects.queues._waiting == 0


@on_loop
async def test_who_is_far_behind_hears_when_its_time_is_over_too(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        id = await queue(peer)
        for _ in range(300):
            ask(peer, id)
        number, _ = ask(peer, id, wait=0.0)
        assert await got(peer, number) == []


@on_loop
async def test_a_consumer_that_goes_while_it_waits_takes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer, leaving = await shell.client(), await shell.client()
        id = await queue(peer)
        ask(leaving, id)
        await waits(shell, 1)
        leaving.connection.abort("gone")
        await waits(shell, 0)
        await put(peer, id, "a")
        assert await take(peer, id) == ["a"]


@on_loop
async def test_what_had_not_arrived_when_its_consumer_died_goes_to_the_next_and_comes_first(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer, dying = await shell.client(), await shell.client()
        id = await queue(peer)
        await put(peer, id, "a", "b")
        assert await take(dying, id, keep=False) == ["a"]
        number, _ = ask(peer, id)
        assert await got(peer, number) == ["b"]
        waiting, _ = ask(peer, id)
        await waits(shell, 1)
        dying.connection.abort("died")
        assert await got(peer, waiting) == ["a"]


@on_loop
async def test_a_consumer_that_gives_up_gets_nothing_and_loses_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        id = await queue(peer)
        _, token = ask(peer, id)
        await waits(shell, 1)
        peer.say(p.ItemsSettled(id, token, False))
        await waits(shell, 0)
        await put(peer, id, "a")
        assert await take(peer, id, keep=False) == ["a"]  # answered, and then it is not wanted
        peer.say(p.ItemsSettled(id, f"take-{next(_numbers) - 1}", False))
        assert await take(peer, id) == ["a"]
        assert await take(peer, id) == []


@on_loop
async def test_a_full_partition_makes_producers_wait(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        shell.objects.queues.bounds = Bounds(items=2)
        peer, producer = await shell.client(), await shell.client()
        id = await queue(peer)
        assert await put(peer, id, "a", "b") is True
        assert await put(peer, id, "c") is False
        assert await put(peer, id, "c", wait=0.02) is False
        number = next(_numbers)
        producer.say(p.ItemsPut(number, id, f"put-{number}", "", payloads("d"), 60.0, None))
        await waits(shell, 1)
        assert await take(peer, id) == ["a"]
        assert (await producer.hear(p.Reply, lambda reply: reply.request == number)).value is True
        assert await put(peer, id, "e") is False
        assert await put(peer, id, "e", partition="other") is True
        assert await length(peer, id) == 2
        assert await length(peer, id, every=True) == 3


@on_loop
async def test_clearing_makes_room(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        shell.objects.queues.bounds = Bounds(items=1)
        peer, producer = await shell.client(), await shell.client()
        id = await queue(peer)
        await put(peer, id, "a")
        number = next(_numbers)
        producer.say(p.ItemsPut(number, id, f"put-{number}", "", payloads("b"), 60.0, None))
        await waits(shell, 1)
        assert (await peer.ask(lambda n: p.ItemsRequested(n, id, "clear"))).value == 1
        assert (await producer.hear(p.Reply, lambda reply: reply.request == number)).value is True
        assert await take(peer, id) == ["b"]


@on_loop
async def test_items_survive_the_server_and_what_was_on_its_way_can_be_asked_for_again(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        id = await queue(peer)
        await put(peer, id, "a", "b", "c", "d")
        assert await take(peer, id) == ["a"]
        number, token = ask(peer, id, wait=0.0)
        lost_number, _ = ask(peer, id, wait=0.0)
        assert (await got(peer, number), await got(peer, lost_number)) == (["b"], ["c"])
    async with running(tmp_path) as shell:
        peer = await shell.client()
        assert await queue(peer) == id
        peer.say(p.ItemsWanted(1, id, token, "", 1, None))
        assert await got(peer, 1) == ["b"]
        peer.say(p.ItemsSettled(id, token, True))
        assert await take(peer, id) == ["d"]
        assert await take(peer, id) == []
        shell.objects.queues.end_unclaimed()  # a minute is over
        number, _ = ask(peer, id)
        assert await got(peer, number) == ["c"]


@on_loop
async def test_ephemeral_ones_end_with_their_session_and_who_waits_hears_so(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        owner, other = await shell.client(), await shell.client()
        id = (await owner.ask(lambda n: p.ObjectsRequested(n, "queue", "create"))).value["id"]
        await put(owner, id, "a")
        assert await take(other, id) == ["a"]
        number, _ = ask(other, id)
        await waits(shell, 1)
        owner.connection.abort("gone")
        reply = await other.hear(p.Reply, lambda reply: reply.request == number)
        assert reply.error is not None
        assert reply.error.message.startswith("this queue is not there any more: it was deleted, or it was ephemeral")
        assert shell.objects.queues._waiting == 0
    async with running(tmp_path) as shell:
        found = await (await shell.client()).ask(lambda n: p.ObjectsRequested(n, "queue", "find", id=id))
        assert found.error is not None


@on_loop
async def test_ephemeral_ones_do_not_outlive_a_server_that_was_killed(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        owner = await shell.client()
        id = (await owner.ask(lambda n: p.ObjectsRequested(n, "queue", "create"))).value["id"]
        await put(owner, id, "a")
    async with running(tmp_path) as shell:

        def rows(tx: Any) -> list[int]:
            return [tx.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("objects", "items", "partitions")]

        assert await shell.objects._desk.writer.ask(rows) == [0, 0, 0]


@on_loop
async def test_names_are_found_made_listed_and_deleted(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        missing = await peer.ask(lambda n: p.ObjectsRequested(n, "queue", "find", "jobs"))
        assert missing.error is not None
        assert missing.error.message == (
            "there is no queue 'jobs' in the environment 'main'; there are none. Write create_if_missing=True, or make "
            "it with `kedge queue create jobs`"
        )
        id = await queue(peer)
        assert await queue(await shell.client()) == id
        taken = await peer.ask(lambda n: p.ObjectsRequested(n, "queue", "create", "jobs"))
        assert taken.error is not None
        assert taken.error.type == "AlreadyExistsError"
        there = await peer.ask(lambda n: p.ObjectsRequested(n, "queue", "create", "jobs", "staging"))
        assert there.error is None
        await put(peer, id, "a", "b")
        listed = (await peer.ask(lambda n: p.ObjectsRequested(n, "queue", "list"))).value
        assert [(one["name"], one["size"]) for one in listed] == [("jobs", 2)]
        missing = await peer.ask(lambda n: p.ObjectsRequested(n, "queue", "find", "job"))
        assert missing.error is not None
        assert "there are jobs." in missing.error.message
        assert (await peer.ask(lambda n: p.ObjectsRequested(n, "queue", "delete", "jobs"))).error is None
        reply = await peer.ask(lambda n: p.ItemsPut(n, id, "t", "", payloads("a"), 60.0, 0.0))
        assert reply.error is not None
        assert reply.error.type == "NotFoundError"
        assert await queue(peer) != id


@on_loop
async def test_limits(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        id = await queue(peer)
        large = [Payload(data=b"x" * (queues.MAX_ITEM + 1))]
        reply = await peer.ask(lambda n: p.ItemsPut(n, id, "t", "", large, 60.0, 0.0))
        assert reply.error is not None
        assert (
            "too large for a queue; at most 1048576 are allowed: put the value into a kedge.Dict" in reply.error.message
        )
        reply = await peer.ask(lambda n: p.ObjectsRequested(n, "queue", "create", "a b"))
        assert reply.error is not None
        assert "its name has letters" in reply.error.message
        reply = await peer.ask(lambda n: p.ObjectsRequested(n, "stack", "create", "a"))
        assert reply.error is not None
        assert "kind='stack' is not known; it is one of dict, queue" in reply.error.message


@on_loop
async def test_a_put_is_not_done_twice_when_a_client_sends_it_again_after_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer = await shell.client()
        id = await queue(peer)
        message = p.ItemsPut(1, id, "the token", "", payloads("a"), 60.0, None)
        peer.say(message)
        await peer.hear(p.Reply, lambda reply: reply.request == 1)
    async with running(tmp_path) as shell:
        peer = await shell.client()
        peer.say(message)
        assert (await peer.hear(p.Reply, lambda reply: reply.request == 1)).value is True
        assert await length(peer, id) == 1


@on_loop
async def test_what_waits_for_room_is_bounded_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "MAX_UNWRITTEN", 1000)
    async with running(tmp_path) as shell:
        shell.objects.queues.bounds = Bounds(items=1)
        peer = await shell.client()
        id = await queue(peer)
        await put(peer, id, "a")
        number = next(_numbers)
        peer.say(p.ItemsPut(number, id, "waits", "", payloads("x" * 900), 60.0, None))
        await waits(shell, 1)
        reply = await peer.ask(lambda n: p.ItemsPut(n, id, "too much", "", payloads("x" * 900), 60.0, None))
        assert reply.error is not None
        assert reply.error.type == "ResourceExhaustedError"
        assert "bytes of values that are not on its disk yet" in reply.error.message
        assert await take(peer, id) == ["a"]
        assert (await peer.hear(p.Reply, lambda reply: reply.request == number)).value is True
        assert shell.objects.queues._desk.unwritten == 0


@on_loop
async def test_a_server_takes_so_many_who_wait_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "MAX_WAITING", 2)
    async with running(tmp_path) as shell:
        peer = await shell.client()
        id = await queue(peer)
        for _ in range(2):
            ask(peer, id)
        await waits(shell, 2)
        reply = await peer.ask(lambda n: p.ItemsWanted(n, id, "one more", "", 1, None))
        assert reply.error is not None
        assert reply.error.message == "2 requests wait at queues already; try again later"


@on_loop
async def test_a_session_with_thousands_of_waits_goes_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer, leaving = await shell.client(), await shell.client()
        id = await queue(peer)
        for number in range(3000):
            leaving.connection.send(p.ItemsWanted(number, id, f"many-{number}", "", 1, 60.0))
        leaving.connection.flush()
        await until(lambda: shell.objects.queues._waiting == 3000)
        leaving.connection.abort("gone")
        await until(lambda: shell.objects.queues._waiting == 0)
        await put(peer, id, "a")
        assert await take(peer, id) == ["a"]
        assert shell.objects.queues._lines == {}


@on_loop
async def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        peer, writer = await shell.client(), shell.objects._desk.writer
        id = await queue(peer)
        await put(peer, id, "a")
        pages = await writer.ask(lambda tx: tx.execute("PRAGMA page_count").fetchone()[0])
        await writer.ask(lambda tx: tx.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        large = payloads("x" * 500_000)
        reply = await peer.ask(lambda n: p.ItemsPut(n, id, "large", "", large, 60.0, None))
        assert reply.error is not None
        assert reply.error.type == "ServiceError"
        assert "the server cannot write" in reply.error.message
        assert "full" in reply.error.message
        assert shell.objects.queues._waiting == shell.objects.queues._desk.unwritten == 0
        assert await length(peer, id) == 1
        await writer.ask(lambda tx: tx.execute("PRAGMA max_page_count = 1000000").fetchone())
        reply = await peer.ask(lambda n: p.ItemsPut(n, id, "large", "", large, 60.0, None))
        assert reply.value is True
        assert await length(peer, id) == 2


@on_loop
async def test_a_server_that_does_not_stay_says_what_that_means(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        told: list[str] = []
        shell.objects.tell = told.append
        peer = await shell.client()
        await queue(peer)
        await queue(peer)
        await peer.ask(lambda n: p.ObjectsRequested(n, "queue", "create"))
        assert told == [
            "the queue jobs is kept by this program's own server, and ends with it; `kedge server start` starts one "
            "that stays"
        ]
