"""The parts of the engine that can be held in the hand: loop, pipes, uplink, channel, counters."""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kedge.engines import boot, system, threads, usage
from kedge.engines.channel import Channel, ChannelClosed, ContainerForked, ToForkServer
from kedge.engines.errands import Errands
from kedge.engines.loop import Loop
from kedge.engines.output import READ_SIZE, RECORDS_SIZE, OutputPipes
from kedge.engines.uplink import Uplink
from kedge.model.protocol import RECORDS, FromSupervisor, KillContainer, OutputCaptured, SupervisorStopped
from kedge.wire import removal
from kedge.wire.codec import FrameDecoder, encode
from tests.engines.rig import new_name

ROOT = Path(__file__).parents[2]


def test_timers_run_in_their_order_and_can_be_taken_back() -> None:
    loop = Loop()
    seen: list[str] = []
    loop.later(0.02, loop.stop)
    loop.later(0.01, lambda: seen.append("second"))
    loop.later(0.0, lambda: seen.append("first"))
    loop.later(0.005, lambda: seen.append("never")).cancel()
    loop.run()
    assert seen == ["first", "second"]


def test_no_two_containers_of_tests_have_one_name() -> None:
    """Runtimes and control groups know names for the whole machine, and test processes run beside each other."""
    command = [sys.executable, "-c", "from tests.engines.rig import new_name; print(new_name(), new_name())"]
    elsewhere = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    names = [*elsewhere, new_name(), new_name()]
    assert len(set(names)) == 4
    assert all(name.startswith("ct-") for name in names)


def test_an_action_may_close_what_another_watches() -> None:
    loop = Loop()
    pairs = [socket.socketpair() for _ in range(2)]
    seen: list[int] = []

    def ready(index: int) -> None:
        seen.append(index)
        for near, _ in pairs:
            loop.forget(near.fileno())
        loop.later(0, loop.stop)

    for index, (near, far) in enumerate(pairs):
        loop.watch(near.fileno(), lambda index=index: ready(index))
        far.send(b"x")
    loop.run()
    assert len(seen) == 1
    for end in (end for pair in pairs for end in pair):
        end.close()


def test_paused_pipes_are_left_alone_and_lose_nothing() -> None:
    loop = Loop()
    seen = bytearray()

    def emit(stream: int, data: bytes) -> None:
        assert stream == 1
        seen.extend(data)
        if len(seen) == 10:
            loop.stop()

    pipes = OutputPipes(loop, emit, lambda: loop.stop())
    stdout, stderr, records = pipes.attach()
    pipes.resume()
    pipes.pause()
    os.write(stdout, b"0123456789")
    loop.later(0.005, loop.stop)
    loop.run()
    assert seen == b""
    pipes.resume()
    loop.run()
    assert seen == b"0123456789"
    for descriptor in (stdout, stderr, records):
        os.close(descriptor)
    pipes.close()


def test_draining_reads_the_last_words_and_ends_with_the_last_writer() -> None:
    loop = Loop()
    seen: list[tuple[int, bytes]] = []
    pipes = OutputPipes(loop, lambda stream, data: seen.append((stream, data)), loop.stop)
    stdout, stderr, records = pipes.attach()
    os.write(stdout, b"o" * READ_SIZE)
    os.write(stderr, b"e")
    os.write(records, b"r" * (READ_SIZE - 1))
    os.close(stdout)
    os.close(records)
    pipes.drain()
    assert seen == [(1, b"o" * READ_SIZE), (2, b"e"), (RECORDS, b"r" * (READ_SIZE - 1))]
    assert not pipes.ended
    os.close(stderr)
    loop.run()
    assert pipes.ended


def test_the_pipe_of_records_is_large_and_never_makes_its_writer_wait() -> None:
    loop = Loop()
    pipes = OutputPipes(loop, lambda stream, data: None, loop.stop)
    stdout, stderr, records = pipes.attach()
    assert [os.get_blocking(writer) for writer in (stdout, stderr, records)] == [True, True, False]
    if hasattr(fcntl, "F_GETPIPE_SZ"):
        assert fcntl.fcntl(records, fcntl.F_GETPIPE_SZ) == RECORDS_SIZE
    written = 0
    with pytest.raises(BlockingIOError):
        while True:
            written += os.write(records, bytes(4096))
    assert written >= 64 * 1024
    for descriptor in (stdout, stderr, records):
        os.close(descriptor)
    pipes.close()


def test_no_pipe_is_left_where_there_are_too_few_descriptors() -> None:
    loop = Loop()
    pipes = OutputPipes(loop, lambda stream, data: None, loop.stop)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # what other tests have left behind is not to be closed in between
    before = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_descriptor() + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            pipes.attach()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    pipes.close()
    assert len(os.listdir("/dev/fd")) == before


def next_descriptor() -> int:
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


def test_a_congested_uplink_says_so_keeps_everything_and_recovers() -> None:
    loop = Loop()
    near, far = socket.socketpair()
    congestion: list[bool] = []
    uplink = Uplink(loop, near, lambda messages: None, loop.stop, congestion.append)
    sent = [OutputCaptured("ct-1", 1, bytes([number]) * 60_000) for number in range(120)]
    for message in sent:
        uplink.send(message)
        uplink.flush()
    assert congestion == [True]
    assert uplink.congested
    decoder = FrameDecoder(FromSupervisor)
    got: list[object] = []

    def read() -> None:
        got.extend(decoder.feed(far.recv(1 << 20)))
        if len(got) == len(sent):
            loop.later(0, loop.stop)

    loop.watch(far.fileno(), read)
    loop.run()
    assert got == sent
    assert congestion == [True, False]
    near.close()
    far.close()


@pytest.mark.parametrize("garbage", [b"", b"GET / HTTP/1.1\r\n\r\n", b"kdg\x01\x04\x00\x00\x00oops"])
def test_an_uplink_closes_at_the_end_and_on_garbage(garbage: bytes) -> None:
    loop = Loop()
    near, far = socket.socketpair()
    heard: list[object] = []
    Uplink(loop, near, heard.extend, loop.stop, lambda congested: None)
    far.send(encode([KillContainer("ct-1"), SupervisorStopped()]) + garbage)
    far.shutdown(socket.SHUT_WR)
    loop.run()
    assert heard in ([KillContainer("ct-1"), SupervisorStopped()], [])
    near.close()
    far.close()


def test_descriptors_travel_with_their_messages() -> None:
    near, far = socket.socketpair()
    sender, receiver = Channel(near, ToForkServer), Channel(far, ToForkServer)
    for number in range(5):
        read, write = os.pipe()
        os.write(write, b"%d" % number)
        sender.send(ContainerForked(f"ct-{number}"), (read, write))
        os.close(read)
        os.close(write)
    sender.close()
    seen: list[tuple[str, bytes]] = []
    while len(seen) < 5:
        for message in receiver.receive():
            read, write = receiver.take(2)
            seen.append((message.container, os.read(read, 10)))
            assert not os.get_inheritable(read)
            os.close(read)
            os.close(write)
    with pytest.raises(ChannelClosed, match="the other side has closed"):
        receiver.receive()
    assert seen == [(f"ct-{number}", b"%d" % number) for number in range(5)]
    receiver.close()


def test_descriptors_that_cannot_be_opened_are_missed_by_their_own_message_only() -> None:
    ours, theirs = socket.socketpair()
    near, far = Channel(ours, ToForkServer), Channel(theirs, ToForkServer)
    reader, writer = os.pipe()
    near.send(ContainerForked("a"), (reader, reader))
    near.send(ContainerForked("b"), (writer,))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(reader)
    try:
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))  # one of the two
        assert far.receive() == [ContainerForked("a")]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert far.descriptors == ()
    assert far.receive() == [ContainerForked("b")]
    with pytest.raises(OSError, match="Too many open files"):
        far.take(2)
    [copy] = far.take(1)
    assert os.path.sameopenfile(copy, writer)
    for descriptor in (reader, writer, copy):
        os.close(descriptor)
    near.close()
    far.close()


def test_an_errand_for_which_there_is_no_descriptor_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe", none_left)
    answers: list[str] = []
    Errands(Loop()).send(lambda: "", answers.append)
    assert answers == ["no process can be made: [Errno 24] Too many open files"]


def test_memory_kills_explain_one_death_each(tmp_path: Path) -> None:
    counter = tmp_path / "memory.events"

    def set_count(count: int) -> None:
        counter.write_text(f"low 0\noom 9\noom_kill {count}\noom_group_kill 0\n")

    set_count(3)
    kills = system.MemoryKills(str(counter))
    assert not kills.claim()
    set_count(5)
    assert [kills.claim() for _ in range(3)] == [True, True, False]
    counter.unlink()
    assert not kills.claim()


def test_a_counter_of_memory_kills_is_found_where_linux_has_one() -> None:
    if not Path("/proc/vmstat").exists():
        pytest.skip("no /proc/vmstat")
    assert "oom_kill " in Path(system.MemoryKills().path).read_text()


def test_the_users_thread_counts_win_in_containers_and_not_in_fork_servers() -> None:
    user = {"OMP_NUM_THREADS": "8", "HOME": "/home/ann"}
    assert threads.sized(user, 0.125) == {
        "OMP_NUM_THREADS": "8",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "NUMEXPR_NUM_THREADS": "1",
        "HOME": "/home/ann",
    }
    assert threads.single(user) == {**dict.fromkeys(threads.VARIABLES, "1"), "HOME": "/home/ann"}


def test_the_runtime_comes_last_on_the_path() -> None:
    assert boot.completed(["/a", "/b"], ["/b", "/kedge"]) == ["/a", "/b", "/kedge"]


def test_only_library_directories_are_kept() -> None:
    standard = os.path.dirname(os.__file__)
    mine = ["", "/home/ann/app", standard, f"{standard}/lib-dynload", "/opt/x/site-packages", "/usr/dist-packages"]
    assert boot.library_entries(mine) == mine[2:]


# ---------------------------------------------------------------- disk


def test_bytes_on_disk_are_counted_once_and_however_deep_they_lie(tmp_path: Path) -> None:
    (tmp_path / "side" / "more").mkdir(parents=True)
    (tmp_path / "side" / "more" / "file").write_bytes(b"x" * 200_000)
    os.link(tmp_path / "side" / "more" / "file", tmp_path / "again")
    (tmp_path / "out").symlink_to("/usr")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):  # twice what a path can say
        os.mkdir("d" * 250, dir_fd=here)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    with open(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here), "wb") as file:
        file.write(b"x" * 1_000_000)
    os.close(here)
    assert 1_200_000 <= usage.on_disk(str(tmp_path)) < 1_200_000 + 40 * 8192
    assert usage.on_disk(str(tmp_path / "nothing")) == 0
    removal.remove(str(tmp_path / ("d" * 250)))  # what made this directory cannot
