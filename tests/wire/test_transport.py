"""Two ends of one connection, of either kind, over every socket there is."""

from __future__ import annotations

import asyncio
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedge.model import protocol as p
from kedge.model.payload import Payload
from kedge.wire import codec, transport
from kedge.wire.codec import FrameError, encode
from kedge.wire.transport import AsyncConnection, BlockingConnection, ConnectionLost, listen, split_tcp
from tests.wire.loops import on_loop, on_loops, until

BYE = p.SessionClosed("bye")
ECHO_LIMIT_S = 30.0


class End:
    """One asyncio end that keeps what happens to it."""

    def __init__(self, union: Any, reply: Callable[[Any], list[Any]] = lambda message: [], **options: Any) -> None:
        self.messages: list[Any] = []
        self.frames: list[list[Any]] = []
        """What came at once."""
        self.reason: str | None = None
        self._reply = reply
        self.connection = AsyncConnection(union, self._heard, self._closed, **options)

    def _heard(self, connection: AsyncConnection, messages: list[Any]) -> None:
        self.frames.append(messages)
        self.messages += messages
        for message in messages:
            for answer in self._reply(message):
                connection.send(answer)

    def _closed(self, connection: AsyncConnection, reason: str) -> None:
        self.reason = reason

    async def serve(self, sock: socket.socket) -> End:
        await asyncio.get_running_loop().create_connection(lambda: self.connection, sock=sock)
        return self

    async def closed(self) -> str:
        await until(lambda: self.reason is not None)
        assert self.reason is not None
        return self.reason


async def pair(
    reply: Callable[[Any], list[Any]] = lambda message: [], **options: Any
) -> tuple[End, BlockingConnection]:
    ours, theirs = socket.socketpair()
    return await End(p.FromClient, reply, **options).serve(ours), BlockingConnection(theirs, p.ToClient)


def echo(message: Any) -> list[Any]:
    return [p.Reply(message.request, message.call)]


# ---------------------------------------------------------------- both ways


@on_loops
async def test_blocking_and_asyncio_ends_understand_each_other() -> None:
    end, peer = await pair(echo)
    sent = [p.CallRequested(i, "fc-1") for i in range(3)]
    peer.send(sent)
    assert await asyncio.to_thread(peer.receive, ECHO_LIMIT_S) == [p.Reply(i, "fc-1") for i in range(3)]
    assert end.messages == sent
    peer.close()
    assert await end.closed() == "closed by the peer"


@on_loops
async def test_two_asyncio_ends_over_tcp_and_over_a_path(tmp_path: Path) -> None:
    for address in ("tcp://127.0.0.1:0", str(tmp_path / "plane.sock")):
        end = End(p.FromClient, echo)
        server = await listen(address, lambda end=end: end.connection)
        client = End(p.ToClient)
        loop = asyncio.get_running_loop()
        if address.startswith("tcp"):
            port = server.sockets[0].getsockname()[1]
            await loop.create_connection(lambda client=client: client.connection, "127.0.0.1", port)
        else:
            await loop.create_unix_connection(lambda client=client: client.connection, address)
            assert stat.S_IMODE((tmp_path / "plane.sock").stat().st_mode) == 0o600
        client.connection.send(p.CallRequested(7, "fc-1"))
        await until(lambda client=client: client.messages)
        assert client.messages == [p.Reply(7, "fc-1")]
        client.connection.close("enough")
        assert await client.closed() == "enough"
        assert await end.closed() == "closed by the peer"
        server.close()


@on_loop
async def test_a_blocking_client_connects_to_either_address(tmp_path: Path) -> None:
    path = str(tmp_path / "plane.sock")
    ends = [End(p.FromClient, echo), End(p.FromClient, echo)]
    one = await listen("tcp://127.0.0.1:0", lambda: ends[0].connection)
    two = await listen(path, lambda: ends[1].connection)
    for address in (f"tcp://127.0.0.1:{one.sockets[0].getsockname()[1]}", path):
        peer = await asyncio.to_thread(BlockingConnection.connect, address, p.ToClient)
        peer.send([p.CallRequested(1, "fc-1")])
        assert await asyncio.to_thread(peer.receive, ECHO_LIMIT_S) == [p.Reply(1, "fc-1")]
        peer.close()
    for end, server in zip(ends, (one, two), strict=True):
        assert await end.closed()
        server.close()


@on_loop
async def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "plane.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    end = End(p.FromClient, echo)
    server = await listen(path, lambda: end.connection)
    peer = await asyncio.to_thread(BlockingConnection.connect, path, p.ToClient)
    peer.close()
    assert await end.closed()
    server.close()


def test_where_nobody_listens_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        BlockingConnection.connect(str(tmp_path / "nobody"), p.ToClient)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(OSError):
            BlockingConnection.connect(f"tcp://127.0.0.1:{taken.getsockname()[1]}", p.ToClient)


@pytest.mark.parametrize("address", ["tcp://", "tcp://host", "tcp://:80", "tcp://host:http", "tcp://host:70000"])
def test_an_address_that_is_none_says_how_to_write_one(address: str) -> None:
    with pytest.raises(ValueError, match=r"is no address to listen or connect to; write tcp://HOST:PORT"):
        split_tcp(address)


# ---------------------------------------------------------------- frames and batches


@on_loops
async def test_what_is_sent_while_messages_are_handled_leaves_in_one_frame() -> None:
    end, peer = await pair(echo)
    peer.send([p.CallRequested(i, "fc-1") for i in range(100)])
    replies = await asyncio.to_thread(peer.receive, ECHO_LIMIT_S)
    assert len(replies) == 100
    for i in range(50):
        end.connection.send(p.Reply(i))
    assert len(await asyncio.to_thread(peer.receive, ECHO_LIMIT_S)) == 50
    peer.close()
    await end.closed()


@on_loop
async def test_what_is_too_much_for_one_frame_arrives_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_FRAME", 1000)
    end, peer = await pair(echo)
    call = "fc-" + "x" * 100
    peer.send([p.CallRequested(i, call) for i in range(30)])
    await until(lambda: len(end.messages) == 30)
    assert len(end.frames) >= 1
    received: list[Any] = []
    while len(received) < 30:
        received += await asyncio.to_thread(peer.receive, ECHO_LIMIT_S)
    assert received == [p.Reply(i, call) for i in range(30)]
    peer.close()
    await end.closed()


@on_loop
async def test_a_message_that_fits_no_frame_ends_an_asyncio_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    end, peer = await pair()
    monkeypatch.setattr(codec, "MAX_FRAME", 100)
    end.connection.send(p.Reply(1, "x" * 200))
    assert "was about to be sent; the limit is 100" in await end.closed()
    with pytest.raises(ConnectionLost, match="the peer closed the connection"):
        await asyncio.to_thread(peer.receive, ECHO_LIMIT_S)
    peer.close()


@on_loop
async def test_a_message_that_fits_no_frame_is_refused_by_a_blocking_one_which_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end, peer = await pair()
    monkeypatch.setattr(codec, "MAX_FRAME", 100)
    with pytest.raises(FrameError, match="the limit is 100"):
        peer.send([BYE, p.SessionClosed("x" * 200)])
    peer.send([BYE])
    await until(lambda: end.messages)
    assert end.messages == [BYE]
    peer.close()
    await end.closed()


@on_loop
async def test_many_threads_may_send_and_every_frame_arrives_whole() -> None:
    end, peer = await pair()

    def send(thread: int) -> None:
        for i in range(50):
            peer.send([p.InputsSubmitted(f"fc-{thread}", "fu-1", i, [Payload(data=bytes(20_000))])])

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    await until(lambda: len(end.messages) == 400)
    for thread in threads:
        thread.join()
    for number in range(8):
        assert [m.first for m in end.messages if m.call == f"fc-{number}"] == list(range(50))
    peer.close()
    await end.closed()


# ---------------------------------------------------------------- ends


def test_receive_gives_nothing_when_time_is_over_even_if_bytes_trickle() -> None:
    ours, theirs = socket.socketpair()
    peer = BlockingConnection(ours, p.ToClient)
    assert peer.receive(0) == []
    frame = encode([p.Reply(1)])
    theirs.sendall(frame[:5])
    assert peer.receive(0.01) == []
    theirs.sendall(frame[5:])
    assert peer.receive(ECHO_LIMIT_S) == [p.Reply(1)]
    peer.close()
    theirs.close()


def test_the_end_of_the_stream_says_whether_it_was_in_the_middle_of_a_frame() -> None:
    for sent, reason in (
        (b"", "the peer closed the connection$"),
        (encode([BYE])[:9], "after 9 bytes of an unfinished"),
    ):
        ours, theirs = socket.socketpair()
        peer = BlockingConnection(ours, p.ToClient)
        theirs.sendall(sent)
        theirs.close()
        with pytest.raises(ConnectionLost, match=reason):
            peer.receive(ECHO_LIMIT_S)
        peer.close()


def test_good_frames_before_garbage_are_received_first() -> None:
    ours, theirs = socket.socketpair()
    peer = BlockingConnection(ours, p.ToClient)
    theirs.sendall(encode([p.Reply(1)]) + b"garbage")
    assert peer.receive(ECHO_LIMIT_S) == [p.Reply(1)]
    with pytest.raises(ConnectionLost, match="not a kedge frame"):
        peer.receive(ECHO_LIMIT_S)
    peer.close()
    theirs.close()


def test_sending_to_a_peer_that_is_gone_is_connection_lost() -> None:
    ours, theirs = socket.socketpair()
    peer = BlockingConnection(ours, p.ToClient)
    theirs.close()
    with pytest.raises(ConnectionLost):
        peer.send([BYE])
    peer.close()


def test_close_wakes_a_thread_that_receives() -> None:
    ours, theirs = socket.socketpair()
    peer = BlockingConnection(ours, p.ToClient)
    heard: list[str] = []

    def receive() -> None:
        try:
            peer.receive()
        except ConnectionLost as error:
            heard.append(str(error))

    thread = threading.Thread(target=receive)
    thread.start()
    peer.close()
    thread.join(ECHO_LIMIT_S)
    assert not thread.is_alive()
    assert len(heard) == 1
    theirs.close()


@on_loops
async def test_the_last_words_are_sent_before_closing() -> None:
    end, peer = await pair()
    end.connection.send(p.Refused("go away"))
    end.connection.close("unwanted")
    assert await asyncio.to_thread(peer.receive, ECHO_LIMIT_S) == [p.Refused("go away")]
    with pytest.raises(ConnectionLost):
        await asyncio.to_thread(peer.receive, ECHO_LIMIT_S)
    assert await end.closed() == "unwanted"
    peer.close()


@on_loops
async def test_garbage_closes_with_its_reason_after_the_good_frames() -> None:
    end, peer = await pair()
    peer._socket.sendall(encode([BYE]) + b"garbage")
    assert "not a kedge frame" in await end.closed()
    assert end.messages == [BYE]
    peer.close()


@on_loop
async def test_an_unfinished_frame_is_mentioned_at_the_end() -> None:
    end, peer = await pair()
    peer._socket.sendall(encode([BYE])[:9])
    peer.close()
    assert await end.closed() == "9 bytes of an unfinished frame were dropped"


@on_loop
async def test_sending_after_the_end_is_dropped_and_keeps_nothing() -> None:
    end, peer = await pair()
    peer.close()
    await end.closed()
    for _ in range(10):
        end.connection.send(BYE)
    end.connection.flush()
    assert end.connection.closed
    assert end.connection._outgoing == []


# ---------------------------------------------------------------- a peer that does not read


@on_loops
async def test_a_peer_that_does_not_read_is_cut_off_once_too_much_waits_for_it() -> None:
    end, peer = await pair(max_unread=1_000_000)
    while not end.connection.closed:
        end.connection.send(p.Reply(1, "x" * 100_000))
        end.connection.flush()
        assert end.connection.unread < 1_200_000
        await asyncio.sleep(0)
    assert "the peer does not read" in await end.closed()
    peer.close()


@on_loops
async def test_writable_tells_a_sender_when_the_peer_has_read() -> None:
    end, peer = await pair()
    while end.connection.writable.is_set():
        end.connection.send(p.Reply(1, "x" * 100_000))
        end.connection.flush()
    assert end.connection.unread > 0
    reading = asyncio.create_task(asyncio.to_thread(drain, peer))
    await end.connection.writable.wait()
    assert end.connection.unread < 100_000
    end.connection.close()
    await end.closed()
    assert await reading > 0
    peer.close()


def drain(peer: BlockingConnection) -> int:
    count = 0
    try:
        while True:
            count += len(peer.receive())
    except ConnectionLost:
        return count


@on_loops
async def test_a_peer_that_does_not_read_its_last_words_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "CLOSE_PATIENCE_S", 0.01)
    end, peer = await pair()
    while end.connection.writable.is_set():
        end.connection.send(p.Reply(1, "x" * 100_000))
        end.connection.flush()
    end.connection.close("enough")
    assert await end.closed() == "enough"
    peer.close()


@on_loops
async def test_reading_can_be_paused() -> None:
    end, peer = await pair()
    end.connection.pause_reading(True)
    end.connection.pause_reading(True)
    peer.send([BYE])
    for _ in range(20):
        await asyncio.sleep(0)
    assert end.messages == []
    end.connection.pause_reading(False)
    await until(lambda: end.messages)
    peer.close()
    await end.closed()


def test_a_send_from_within_a_send_of_the_same_thread_comes_after_it() -> None:
    """A signal handler, or a finalizer that the garbage collector runs, may send while its own thread is sending."""
    left, right = socket.socketpair()
    with left, right:
        sender = BlockingConnection(left, p.FromClient)

        class Interrupted:
            """A socket whose thread says something else in the middle of a frame."""

            def sendall(self, frame: bytes) -> None:
                left.sendall(frame[:5])
                if not nested:
                    nested.append(True)
                    sender.send([p.CallClosed("fc-nested", 1)])
                left.sendall(frame[5:])

        nested: list[bool] = []
        sender._socket = Interrupted()  # type: ignore[assignment]
        sender.send([p.CallClosed("fc-first", 1)])
        receiver = BlockingConnection(right, p.FromClient)
        received = receiver.receive(5)
        while len(received) < 2:
            received += receiver.receive(5)
        assert [message.call for message in received] == ["fc-first", "fc-nested"]
