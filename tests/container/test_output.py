"""The streams of a container and their pipe, held in the hand: what goes in as prints comes out as records."""

from __future__ import annotations

import contextvars
import fcntl
import gc
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kedge.container import output
from kedge.container.output import Outlet, Stream
from kedge.sdk.context import InputContext, enter_input
from kedge.wire.records import DATA_LIMIT, DROPPED, RECORD_LIMIT, STDERR, STDOUT, Reader, Record


class Pipe:
    """An outlet whose pipe the test reads."""

    def __init__(self) -> None:
        self.outlet = Outlet()
        self.descriptor, writer = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(writer, False)
        self.outlet.open(writer)
        self.reader = Reader()

    def records(self) -> list[Record]:
        """What has come since the last time."""
        found: list[Record] = []
        try:
            while data := os.read(self.descriptor, 1 << 20):
                found += self.reader.feed(data)
        except BlockingIOError:
            pass
        return found

    def said(self) -> list[tuple[str, bytes]]:
        """By which call, and what: one pair a record."""
        return [(record.origin.call, record.data) for record in self.records()]

    def fill(self) -> None:
        """Nothing fits into the pipe any more."""
        with pytest.raises(BlockingIOError):
            while True:
                os.write(self.outlet.descriptor, b"\0" * RECORD_LIMIT)

    def empty(self) -> int:
        """Throws away what is in it."""
        size = 0
        try:
            while data := os.read(self.descriptor, 1 << 20):
                size += len(data)
        except BlockingIOError:
            pass
        return size


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    for descriptor in (pipe.descriptor, pipe.outlet.descriptor):
        if descriptor >= 0:
            os.close(descriptor)


def in_input(lease: int, work: Callable[..., Any], *args: Any, **options: Any) -> InputContext:
    """Runs `work` as the input of the call `fc-<lease>`."""
    current = InputContext(f"fc-{lease}", lease, lease=lease, **options)

    def run() -> None:
        enter_input(current)
        work(*args)

    contextvars.Context().run(run)
    return current


def say(stream: Stream, *values: object, **options: Any) -> None:
    print(*values, file=stream, **options)


# ---------------------------------------------------------------- lines and who wrote them


def test_a_line_is_one_record_with_its_input(pipe: Pipe) -> None:
    before = time.time()
    in_input(7, say, pipe.outlet.stdout, "one", 2)
    in_input(8, say, pipe.outlet.stderr, "three")
    first, second = pipe.records()
    assert (first.kind, first.data, first.origin.call, first.origin.index) == (STDOUT, b"one 2\n", "fc-7", 7)
    assert (second.kind, second.data, second.origin.call) == (STDERR, b"three\n", "fc-8")
    assert before <= first.at <= second.at <= time.time()


def test_an_input_is_announced_once_with_all_that_it_is(pipe: Pipe) -> None:
    current = in_input(7, say, pipe.outlet.stdout, "x", attempt=2, method="guess", members=(("fc-7", 7), ("fc-9", 1)))
    first = os.read(pipe.descriptor, 1 << 20)
    [record] = pipe.reader.feed(first)
    assert (record.origin.attempt, record.origin.method) == (2, "guess")
    assert record.origin.members == (("fc-7", 7), ("fc-9", 1))
    contextvars.Context().run(lambda: (enter_input(current), say(pipe.outlet.stdout, "x")))
    assert len(os.read(pipe.descriptor, 1 << 20)) < len(first)


def test_an_input_that_the_reader_has_forgotten_is_announced_again(pipe: Pipe) -> None:
    old = in_input(1, say, pipe.outlet.stdout, "early")
    seen = pipe.said()
    for lease in range(2, Reader.MEMORY + 10):
        in_input(lease, say, pipe.outlet.stdout, "x")
        if lease % 100 == 0:
            seen += pipe.said()
    contextvars.Context().run(lambda: (enter_input(old), say(pipe.outlet.stdout, "late")))
    seen += pipe.said()
    assert (seen[0], seen[-1]) == (("fc-1", b"early\n"), ("fc-1", b"late\n"))
    assert len(seen) == Reader.MEMORY + 10


def test_code_beside_all_inputs_is_nobody(pipe: Pipe) -> None:
    say(pipe.outlet.stdout, "imported")
    in_input(0, say, pipe.outlet.stdout, "an input without a lease is none")
    assert [call for call, _ in pipe.said()] == ["", ""]


def test_what_has_no_newline_waits_apart_by_input_thread_and_stream(pipe: Pipe) -> None:
    stdout, stderr = pipe.outlet.stdout, pipe.outlet.stderr
    inputs = [InputContext(f"fc-{lease}", 0, lease=lease) for lease in (1, 2)]
    contexts = [contextvars.Context() for _ in inputs]
    for context, current in zip(contexts, inputs, strict=True):
        context.run(enter_input, current)

    def in_thread(context: contextvars.Context, *args: Any) -> None:
        thread = threading.Thread(target=context.run, args=(say, *args))
        thread.start()
        thread.join()

    for context, name in zip(contexts, "ab", strict=True):
        context.run(say, stdout, name, end="-")
        context.run(say, stderr, name.upper(), end="-")
        in_thread(context, stdout, f"{name} in another thread")
    assert pipe.said() == [("fc-1", b"a in another thread\n"), ("fc-2", b"b in another thread\n")]
    for context in contexts:
        context.run(say, stdout, "out")
        context.run(say, stderr, "err")
    assert pipe.said() == [("fc-1", b"a-out\n"), ("fc-1", b"A-err\n"), ("fc-2", b"b-out\n"), ("fc-2", b"B-err\n")]


def test_threads_and_forks_are_different_writers(pipe: Pipe) -> None:
    current = InputContext("fc-1", 0, lease=1)
    context = contextvars.Context()
    context.run(enter_input, current)
    thread = threading.Thread(target=context.run, args=(say, pipe.outlet.stdout, "thread"))
    thread.start()
    thread.join()
    context.run(say, pipe.outlet.stdout, "parent")
    context.run(say, pipe.outlet.stdout, "has begun", end=" ")

    def child() -> None:
        process = os.fork()
        if process == 0:
            try:
                pipe.outlet.forked()
                say(pipe.outlet.stdout, "child")
            finally:
                os._exit(0)
        os.waitpid(process, 0)

    context.run(child)
    context.run(say, pipe.outlet.stdout, "and ended")
    records = pipe.records()
    assert [record.data for record in records] == [b"thread\n", b"parent\n", b"child\n", b"has begun and ended\n"]
    assert {record.origin.call for record in records} == {"fc-1"}
    assert len({record.writer for record in records[:3]}) == 3
    assert records[1].writer == records[3].writer


# ---------------------------------------------------------------- parts of lines


def test_a_flush_lets_out_what_there_is(pipe: Pipe) -> None:
    def work() -> None:
        out = pipe.outlet.stdout
        for percent in ("10 %", "20 %"):
            say(out, "\r" + percent, end="", flush=True)
        out.flush()
        say(out, " done", flush=True)
        out.flush()

    current = in_input(1, work)
    assert [data for _, data in pipe.said()] == [b"\r10 %", b"\r20 %", b" done\n"]
    current.voice.end()
    assert pipe.said() == []


def test_the_end_of_an_input_ends_its_lines(pipe: Pipe) -> None:
    def work() -> None:
        say(pipe.outlet.stdout, "begun", end="")
        say(pipe.outlet.stderr, "flushed", end="", flush=True)
        thread = threading.Thread(target=contextvars.copy_context().run, args=(say, pipe.outlet.stdout, "thread"))
        thread.start()
        thread.join()
        pipe.outlet.stdout.write("several\nlines, the last one")

    current = in_input(1, work)
    assert pipe.said() == [("fc-1", b"flushed"), ("fc-1", b"thread\n"), ("fc-1", b"begunseveral\n")]
    current.voice.end()
    assert pipe.said() == [("fc-1", b"lines, the last one\n"), ("fc-1", b"\n")]
    current.voice.end()
    assert pipe.said() == []


def test_so_does_the_end_of_a_thread(pipe: Pipe) -> None:
    def work() -> None:
        say(pipe.outlet.stdout, "begun", end="")
        pipe.outlet.end_thread()

    in_input(1, work)
    assert pipe.said() == [("fc-1", b"begun\n")]


@pytest.mark.parametrize("newline", ["", "\n"])
def test_a_long_line_goes_out_in_pieces(pipe: Pipe, newline: str) -> None:
    text = "x" * (10 * DATA_LIMIT + 17) + newline
    current = in_input(1, pipe.outlet.stdout.write, text)
    current.voice.end()
    found = pipe.records()
    assert b"".join(record.data for record in found).decode() == text.rstrip("\n") + "\n"
    assert len(found) == 11


def test_many_small_parts_of_a_line_do_not_pile_up(pipe: Pipe) -> None:
    def work() -> None:
        for _ in range(5_000):
            say(pipe.outlet.stdout, "xyz", end="")

    current = in_input(1, work)
    assert max(len(tail) for tail in current.voice.tails[STDOUT].values()) < DATA_LIMIT
    current.voice.end()
    assert b"".join(data for _, data in pipe.said()) == b"xyz" * 5_000 + b"\n"


def test_many_lines_at_once_are_cut_between_lines(pipe: Pipe) -> None:
    text = "".join(f"line {number}\n" for number in range(2_000))
    in_input(1, pipe.outlet.stdout.write, text)
    found = [data for _, data in pipe.said()]
    assert b"".join(found).decode() == text
    assert all(data.endswith(b"\n") for data in found)
    assert len(found) < 10


# ---------------------------------------------------------------- what programs do to their streams


def test_bytes_of_every_kind_pass(pipe: Pipe) -> None:
    garbage = bytes(range(256)) * 40

    def work() -> None:
        binary = pipe.outlet.stdout.buffer
        assert binary.write(garbage) == len(garbage)
        assert binary.write(bytearray(b"array")) == 5
        assert binary.write(memoryview(b"view")) == 4
        assert binary.write(b"") == 0
        binary.writelines([b"a", b"b\n"])
        binary.flush()

    current = in_input(1, work)
    current.voice.end()
    assert b"".join(data for _, data in pipe.said()) == garbage + b"arrayviewab\n"
    with pytest.raises(TypeError, match="bytes-like"):
        pipe.outlet.stdout.buffer.write("text")  # type: ignore[arg-type]


def test_text_that_has_no_utf_8_is_printed_all_the_same(pipe: Pipe) -> None:
    in_input(1, say, pipe.outlet.stdout, "grüße \udcff \ud800")
    assert [data for _, data in pipe.said()] == ["grüße \\udcff \\ud800\n".encode()]


def test_they_are_what_programs_expect_of_them(pipe: Pipe) -> None:
    for stream, number, name in ((pipe.outlet.stdout, 1, "<stdout>"), (pipe.outlet.stderr, 2, "<stderr>")):
        assert isinstance(stream, io.TextIOWrapper)
        assert isinstance(stream.buffer, io.BufferedIOBase)
        assert (stream.fileno(), stream.buffer.fileno(), stream.name, stream.mode) == (number, number, name, "w")
        assert (stream.isatty(), stream.encoding, stream.errors) == (False, "utf-8", "backslashreplace")
        assert (stream.writable(), stream.readable(), stream.seekable()) == (True, False, False)
        assert stream.buffer.raw is stream.buffer  # type: ignore[attr-defined]
        with pytest.raises(io.UnsupportedOperation):
            stream.read()


def test_nobody_closes_them(pipe: Pipe) -> None:
    out = pipe.outlet.stdout

    def work() -> None:
        say(out, "before", end="")
        out.close()
        out.buffer.close()
        with out:
            say(out, " and after")

    in_input(1, work)
    assert not out.closed
    in_input(2, say, out, "a sibling")
    assert pipe.said() == [("fc-1", b"before"), ("fc-1", b" and after\n"), ("fc-2", b"a sibling\n")]


def test_who_detaches_or_wraps_one_leaves_it_to_the_others(pipe: Pipe) -> None:
    out = pipe.outlet.stdout

    def work() -> None:
        mine = io.TextIOWrapper(out.detach(), encoding="latin-1", line_buffering=True)
        print("grüße", file=mine)
        del mine
        gc.collect()

    in_input(1, work)
    in_input(2, say, out, "grüße")
    assert pipe.said() == [("fc-1", "grüße\n".encode("latin-1")), ("fc-2", "grüße\n".encode())]


def test_reconfigured_streams_still_keep_nothing_to_themselves(pipe: Pipe) -> None:
    out = pipe.outlet.stdout
    out.reconfigure(encoding="ascii", errors="replace", line_buffering=True, write_through=False)
    in_input(1, say, out, "grüße")
    in_input(2, say, out, "x")
    assert pipe.said() == [("fc-1", b"gr??e\n"), ("fc-2", b"x\n")]


def test_a_print_may_come_in_the_middle_of_another_one(pipe: Pipe) -> None:
    class Loud:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            say(pipe.outlet.stdout, "deleted")

        def __str__(self) -> str:
            gc.collect()
            return "text"

    def work() -> None:
        for number in range(50):
            Loud()
            say(pipe.outlet.stdout, number, Loud())
        gc.collect()

    threshold = gc.get_threshold()
    gc.freeze()  # what the test run holds is of no interest here, nor later
    gc.set_threshold(1)
    try:
        in_input(1, work)
    finally:
        gc.set_threshold(*threshold)
    text = b"".join(data for _, data in pipe.said())
    assert text.count(b"deleted\n") == 100
    assert text.replace(b"deleted\n", b"") == b"".join(b"%d text\n" % number for number in range(50))


def test_a_print_in_a_signal_handler_takes_no_part_of_a_line(pipe: Pipe) -> None:
    def handler(number: int, frame: object) -> None:
        say(pipe.outlet.stdout, "signal")

    def work() -> None:
        for _ in range(200):
            say(pipe.outlet.stdout, "first", "second", "third")
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        in_input(1, work)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sorted({data for _, data in pipe.said()}) == [b"first second third\n", b"signal\n"]


# ---------------------------------------------------------------- a reader that does not read


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PATIENCE_S", 0.01)


def test_lines_that_find_no_room_are_dropped_and_counted(pipe: Pipe, impatient: None) -> None:
    pipe.fill()
    first = in_input(1, lambda: [say(pipe.outlet.stdout, f"line {number}") for number in range(7)])
    in_input(2, say, pipe.outlet.stdout, "x" * 10_000)
    pipe.empty()
    in_input(3, say, pipe.outlet.stdout, "there is room again")
    found = [(record.kind, record.origin.call, record.data.decode()) for record in pipe.records()]
    why = "the output of this container was not read fast enough"
    assert found == [
        (DROPPED, "fc-1", f"7 lines were dropped (49 bytes): {why}"),
        (DROPPED, "fc-2", f"1 line was dropped (10001 bytes): {why}"),
        (STDOUT, "fc-3", "there is room again\n"),
    ]
    first.voice.end()
    in_input(3, say, pipe.outlet.stdout, "nothing is said twice")
    assert pipe.said() == [("fc-3", b"nothing is said twice\n")]


def test_the_end_of_an_input_is_the_last_occasion_to_say_so(pipe: Pipe, impatient: None) -> None:
    pipe.fill()
    current = in_input(1, say, pipe.outlet.stdout, "lost")
    current.voice.end()
    pipe.empty()
    current.voice.end()
    assert [(record.kind, record.origin.call) for record in pipe.records()] == [(DROPPED, "fc-1")]


def test_only_the_first_print_waits_for_a_reader_that_has_stopped(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PATIENCE_S", 0.02)
    waits: list[float] = []
    poll = output.select.poll

    class Counted:
        def __init__(self) -> None:
            self.register = (it := poll()).register
            self.poll = lambda ms: waits.append(ms) or it.poll(ms)

    monkeypatch.setattr(output.select, "poll", Counted)
    pipe.fill()
    in_input(1, lambda: [say(pipe.outlet.stdout, number) for number in range(1_000)])
    assert 0 < sum(waits) <= 40
    assert len(waits) <= 3


def test_a_reader_that_is_only_slow_gets_everything(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("PATIENCE_S", "LONGEST_S"):  # on a busy machine the reader's thread may not run for a while
        monkeypatch.setattr(output, bound, 60.0)
    text = "".join(f"{number:100}\n" for number in range(20_000))
    found: list[Record] = []
    done = threading.Event()

    def read() -> None:
        while not done.wait(0.002):
            found.extend(pipe.records())
        found.extend(pipe.records())

    thread = threading.Thread(target=read)
    thread.start()
    in_input(1, lambda: [say(pipe.outlet.stdout, line) for line in text.splitlines()])
    done.set()
    thread.join()
    assert b"".join(record.data for record in found).decode() == text


def test_what_follows_a_line_that_was_cut_short_is_a_line_of_its_own(pipe: Pipe, impatient: None) -> None:
    room = fcntl.fcntl(pipe.descriptor, fcntl.F_GETPIPE_SZ) if hasattr(fcntl, "F_GETPIPE_SZ") else 65536

    def work() -> None:
        say(pipe.outlet.stdout, "x" * (2 * room))
        seen.append(b"".join(data for _, data in pipe.said()))
        say(pipe.outlet.stdout, "next")

    seen: list[bytes] = []
    in_input(1, work)
    assert 0 < len(seen[0]) < 2 * room
    records = pipe.records()
    assert records[0].kind == DROPPED
    assert records[0].data.startswith(b"1 line was dropped (%d bytes)" % (2 * room + 1 - len(seen[0])))
    assert b"".join(record.data for record in records[1:]) == b"\nnext\n"


def test_an_exception_that_ends_a_wait_leaves_the_streams_in_order(pipe: Pipe) -> None:
    class Interruption(BaseException):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interruption

    def work() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(Interruption):
            while True:
                say(pipe.outlet.stdout, "interrupted")
        pipe.empty()
        say(pipe.outlet.stdout, "goes on")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        pipe.fill()
        in_input(1, work)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    records = pipe.records()
    assert records[0].kind == DROPPED
    assert [record.data for record in records[1:]] == [b"goes on\n"]


# ---------------------------------------------------------------- no pipe


def run_with_descriptors(work: Callable[[], None]) -> tuple[bytes, bytes]:
    """Runs `work` in a child: what came through its descriptors 1 and 2."""
    pipes = [os.pipe() for _ in range(2)]
    process = os.fork()
    if process == 0:
        try:
            for (reader, writer), number in zip(pipes, (1, 2), strict=True):
                os.close(reader)
                os.dup2(writer, number)
            work()
        finally:
            os._exit(0)
    found = []
    for reader, writer in pipes:
        os.close(writer)
        with open(reader, "rb") as file:
            found.append(file.read())
    os.waitpid(process, 0)
    return found[0], found[1]


def test_without_a_pipe_lines_go_to_the_descriptors() -> None:
    outlet = Outlet()

    def work() -> None:
        say(outlet.stdout, "x" * 100_000, end="")
        say(outlet.stdout)
        say(outlet.stdout, "flushed", end="", flush=True)
        say(outlet.stderr, "err")

    assert run_with_descriptors(work) == (b"x" * 100_000 + b"\nflushed", b"err\n")


def test_streams_that_were_taken_before_there_was_a_pipe_write_to_it_later(pipe: Pipe) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def work() -> None:
        output.install()
        handler = logging.StreamHandler()
        handler.emit(logging.makeLogRecord({"msg": "in a fork server"}))
        assert output.install().stderr is sys.stderr is sys.__stderr__ is handler.stream
        output.install().open(writer)
        in_input(1, handler.emit, logging.makeLogRecord({"msg": "in a container"}))
        print("begun", end="")
        output.finish()

    assert run_with_descriptors(work) == (b"", b"in a fork server\n")
    os.close(writer)
    with open(reader, "rb") as file:
        found = Reader().feed(file.read())
    said = [(record.kind, record.origin.call, record.data) for record in found]
    assert said == [(STDERR, "fc-1", b"in a container\n"), (STDOUT, "", b"begun\n")]


def test_a_program_that_closes_all_descriptors_goes_on_printing(pipe: Pipe) -> None:
    def work() -> None:
        say(pipe.outlet.stdout, "before")
        os.closerange(3, pipe.outlet.descriptor + 1)
        with open(os.devnull) as _:
            say(pipe.outlet.stdout, "after")
            say(pipe.outlet.stdout, "and later")

    assert run_with_descriptors(lambda: in_input(1, work) and None) == (b"after\nand later\n", b"")
    assert pipe.said() == [("fc-1", b"before\n")]
