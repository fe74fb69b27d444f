"""What child processes print belongs to the input that started them.

A child that would inherit stdout or stderr gets a pipe of its input instead, through `subprocess` and through asyncio's
`create_subprocess_exec`. One thread reads all these pipes, until the last process that holds them has closed them: a
child may outlive its input, and a grandchild both. When a wait for a child returns, what it had printed is out.

Not covered: `os.system`, `os.fork` with `exec`, `posix_spawn`, processes that `multiprocessing` starts afresh, and
whatever is started beside all inputs. They have stdout and stderr of the container, as C code has.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import itertools
import os
import select
import subprocess
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from kedge.container.output import Outlet, Stream, Tap, Voice
from kedge.container.wake import Wake
from kedge.sdk.context import get_input
from kedge.wire.records import STDERR, STDOUT

READ_SIZE = 64 * 1024
_MOST_READS = 16
"""Of one pipe when a child has ended: others that hold it may write for ever."""
_SETTLE_S = 0.2
"""How long a wait for a child may take longer because of its output."""
_CHILDREN = 1 << 44
"""Where their numbers begin: beyond those of threads, which are addresses, in pages."""

_children: Children | None = None


def install(outlet: Outlet) -> None:
    """Changes `subprocess` and asyncio in this process. Goes before user code is imported."""
    global _children
    _children = Children(outlet)
    os.register_at_fork(after_in_child=_children.forked)
    _replace_in_popen(_children)
    _replace_in_asyncio(_children)


def finish() -> None:
    """The container ends: lets out what children have printed."""
    if _children is not None:
        _children.settle(None)


class Pipe:
    """One stream of one child."""

    __slots__ = ("begun", "ended", "reader", "stream", "voice", "writer")

    def __init__(self, reader: int, stream: int, voice: Voice, writer: int) -> None:
        self.reader = reader
        self.stream = stream
        self.voice = voice
        self.writer = writer
        self.begun: bytes | None = None
        """As `Outlet.put` says."""
        self.ended = False


class Children:
    """All pipes of this process, and the thread that reads them."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._numbers = itertools.count(_CHILDREN)
        self._open: dict[int, Pipe] = {}
        """By descriptor. Only the thread changes it."""
        self._new: deque[Pipe] = deque()
        self._asked: deque[tuple[Any, Iterable[Pipe] | None]] = deque()
        self._unstarted = threading.Lock()
        self._wake: Wake | None = None

    def forked(self) -> None:
        """In a child that user code forked: the pipes are its parent's."""
        for pipe in (*self._open.values(), *self._new):
            pipe.ended = True
            os.close(pipe.reader)
        self.__init__(self._outlet)  # type: ignore[misc]

    # ------------------------------------------------------------ on any thread

    @contextlib.contextmanager
    def lend(self, options: dict[str, Any]) -> Iterator[list[Pipe]]:
        """Gives the child that is made meanwhile pipes of the current input, in place of what it would inherit."""
        ends: dict[int, int] = {}
        pipes: list[Pipe] = []
        try:
            for stream, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
                target = _inherited(options.get(name), stream)
                if target:
                    if target not in ends:
                        pipe, ends[target] = self._pipe(target)
                        pipes.append(pipe)
                    options[name] = ends[target]
        except (OSError, RuntimeError):
            pass  # no more descriptors or threads: it inherits what there is
        try:
            yield pipes
        finally:
            for end in ends.values():
                os.close(end)

    def settle(self, pipes: Iterable[Pipe] | None) -> None:
        """Lets out what was written to these pipes, or to all. For when their child has ended."""
        if self._wake is None or (pipes is not None and all(pipe.ended for pipe in pipes)):
            return
        done = threading.Lock()  # released by the thread: an interruption of this one leaves nothing locked
        done.acquire()
        self._asked.append((done, pipes))
        self._wake.set()
        done.acquire(timeout=_SETTLE_S)

    def settle_for(self, process: Any) -> None:
        pipes = process.__dict__.pop("_kedge_pipes", None)
        if pipes:
            self.settle(pipes)

    def _pipe(self, stream: int) -> tuple[Pipe, int]:
        if self._unstarted.acquire(blocking=False):
            try:
                self._wake = Wake()
                thread = threading.Thread(target=self._run, args=(self._wake,), name="kedge output", daemon=True)
                contextvars.Context().run(thread.start)  # it belongs to no input
            except BaseException:
                self._unstarted.release()
                raise
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        number = self._outlet.writer(next(self._numbers) << 12)
        pipe = Pipe(reader, stream, self._outlet.voice(), number)
        self._new.append(pipe)
        if self._wake is not None:
            self._wake.set()
        return pipe, writer

    # ------------------------------------------------------------ on the thread

    def _run(self, wake: Wake) -> None:
        poll = select.poll()
        poll.register(wake.fileno(), select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                pipe = self._open.get(descriptor)
                if pipe is None:
                    wake.clear()
                else:
                    self._read(pipe, poll)
            self._take_in(poll)
            while self._asked:
                done, pipes = self._asked.popleft()
                self._take_in(poll)  # each was new before anybody asked for it
                for pipe in list(self._open.values()) if pipes is None else pipes:
                    for _ in range(_MOST_READS):
                        if pipe.ended or not self._read(pipe, poll):
                            break
                done.release()

    def _take_in(self, poll: select.poll) -> None:
        while self._new:
            pipe = self._new.popleft()
            self._open[pipe.reader] = pipe
            poll.register(pipe.reader, select.POLLIN)

    def _read(self, pipe: Pipe, poll: select.poll) -> bool:
        """Lets one portion out; whether there was one."""
        try:
            data = os.read(pipe.reader, READ_SIZE)
        except BlockingIOError:
            return False
        if not data:
            poll.unregister(pipe.reader)
            del self._open[pipe.reader]
            os.close(pipe.reader)
            pipe.ended = True
        begun, pipe.begun = pipe.begun, None
        data = (begun or b"") + data if data else b"\n" if begun is not None else b""
        if data:
            try:
                pipe.begun = self._outlet.put(pipe.voice, pipe.stream, pipe.writer, data)
            except OSError:
                pass  # neither the container's pipe nor its descriptor is there any more
        return not pipe.ended


def _inherited(value: Any, stream: int) -> int:
    """The stream of the container that a child would get for this value of `stdout` or `stderr`; 0 for none."""
    if value is None:
        return stream
    return value.fileno() if isinstance(value, Stream | Tap) else 0


_FIRST = ("args", "bufsize", "executable", "stdin", "stdout", "stderr")


def _replace_in_popen(children: Children) -> None:
    popen: Any = subprocess.Popen
    init, wait, poll = popen.__init__, popen.wait, popen.poll

    @functools.wraps(init)
    def init_in_input(self: Any, *args: Any, **options: Any) -> None:
        if get_input() is None or len(args) > len(_FIRST):
            init(self, *args, **options)
            return
        options = dict(zip(_FIRST, args, strict=False)) | options
        with children.lend(options) as pipes:
            init(self, **options)
        self._kedge_pipes = pipes

    @functools.wraps(wait)
    def wait_and_settle(self: Any, timeout: float | None = None) -> Any:
        code = wait(self, timeout)
        children.settle_for(self)
        return code

    @functools.wraps(poll)
    def poll_and_settle(self: Any) -> Any:
        code = poll(self)
        if code is not None:
            children.settle_for(self)
        return code

    popen.__init__, popen.wait, popen.poll = init_in_input, wait_and_settle, poll_and_settle


def _replace_in_asyncio(children: Children) -> None:
    module: Any = asyncio.subprocess

    def replaced(create: Any) -> Any:
        @functools.wraps(create)
        async def create_in_input(*args: Any, **options: Any) -> Any:
            if get_input() is None:
                return await create(*args, **options)
            with children.lend(options) as pipes:
                process = await create(*args, **options)
            process._kedge_pipes = pipes
            return process

        return create_in_input

    wait = module.Process.wait

    @functools.wraps(wait)
    async def wait_and_settle(self: Any) -> Any:
        code = await wait(self)
        children.settle_for(self)
        return code

    module.Process.wait = wait_and_settle
    for name in ("create_subprocess_exec", "create_subprocess_shell"):
        setattr(module, name, replaced(getattr(module, name)))
        setattr(asyncio, name, getattr(module, name))
