"""Runs user code: takes what the plane sends, gives each input its place, lets what comes of it go.

Where user code runs:

* A sync input runs on the main thread where the container started with `max_inputs=1`, else on a slot thread.
* An async input is a task on one loop, which lives on the main thread.

Who reads the socket. Handing an input from thread to thread costs more than most of the rest of its road, so whoever
would run it reads it:

* `MAIN`: all methods sync, `max_inputs=1`. The idle main thread reads, runs what came, back to back, and sends.
* `LOOP`: everything runs on the main thread and something is async. The loop reads.
* `IO`: there are slot threads. The I/O thread reads and hands out; a slot thread that ends an input takes the next.

The I/O thread (`heartbeat`) stands in while user code holds the main thread: it reads, so that cancels and drains
arrive, it sends results that would wait behind a long input, and it says that the container lives. `reading` is held by
whoever reads, from the first byte to the last action.

`lock` guards the session and all bookkeeping. User code never runs under it, nor does a send.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from kedge.container.guard import Guard, MainGuard
from kedge.container.jobs import CANCELLED, Job, Runner
from kedge.container.outbox import Outbox
from kedge.container.session import Action, Cancel, Session, Start
from kedge.container.slots import SlotThreads
from kedge.container.stream import Stream
from kedge.container.wake import Wake
from kedge.model.payload import FAILURE, Result
from kedge.model.protocol import STREAM_WINDOW, Dispatch, Refused, StreamCredited
from kedge.sdk import client
from kedge.sdk.serializer import error_info
from kedge.wire.transport import BlockingConnection, ConnectionLost

MAIN = "main"
LOOP = "loop"
IO = "io"

CRASHED = 70
"""Exit code of a container whose runtime itself raised (EX_SOFTWARE)."""


class Executor:
    """One container at work. Made on the main thread before user code is imported; `open` goes before the first input,
    then `serve` until the container leaves."""

    def __init__(self, connection: BlockingConnection, session: Session, die: Callable[[int], Any]) -> None:
        """`die(code)` ends the process at once; it need not return."""
        self.connection = connection
        self.session = session
        self.die = die
        self.lock = threading.Lock()
        self.reading = threading.Lock()
        self.guard = MainGuard()
        self.outbox = Outbox(connection, session, self.lock, self.abandon)
        self.reader = ""
        """MAIN, LOOP or IO; empty while the container starts."""
        self.busy = True
        """Whether code on the main thread keeps it from reading."""
        self.activity = 0
        """Grows with all that is received and finished: whoever looks twice knows whether something moved."""
        self.leaving = False
        self.served = False
        """The main thread has done with inputs: it runs the exit hooks."""
        self.lost = False
        self.interrupted = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self._runner: Runner
        self._main_thread = threading.get_ident()
        self._main_takes_sync = session.max_inputs == 1
        self._main_taken = False
        self._main_jobs: deque[Job] = deque()
        self._main_wake = Wake()
        self._loop_jobs: deque[tuple[Job, bool]] = deque()
        """Tasks to start (True) and to cancel."""
        self._slots = SlotThreads(self._run_in_slot, lambda: self.die(CRASHED))
        self._jobs: dict[int, Job] = {}
        self._streams: dict[tuple[str, int], Stream] = {}
        self._threads_told = False
        """A thread was interrupted that may wait for a call of its own."""
        self._is_fork = False

    @property
    def at_work(self) -> int:
        """Inputs whose code runs."""
        return len(self._jobs)

    @property
    def shortest_timeout(self) -> float:
        return self._runner.shortest_timeout

    def jobs(self) -> list[Job]:
        """What runs, or is about to."""
        return list(self._jobs.values())

    def describe_jobs(self) -> str:
        """`3 inputs of square() have`, for a sentence."""
        jobs = self.jobs()
        if not jobs:
            return "code beside all inputs has"
        names = ", ".join(dict.fromkeys(job.entry.name for job in jobs))
        return f"{len(jobs)} input{'s' * (len(jobs) != 1)} of {names} {'has' if len(jobs) == 1 else 'have'}"

    @property
    def awaits(self) -> bool:
        """Whether the loop runs, so that inputs may be awaited on it."""
        return self.loop is not None and not self.busy

    # ------------------------------------------------------------ the main thread

    def open(self, runner: Runner, loop: asyncio.AbstractEventLoop | None) -> None:
        """User code is there: inputs may come. `loop` is the user's; None where nothing is async."""
        self._runner = runner
        self.loop = self.outbox.loop = loop
        self.guard.install()
        if self.session.max_inputs > 1 and runner.has_sync:
            self.reader = IO
        else:
            self.reader = MAIN if loop is None else LOOP

    def serve(self) -> None:
        """Runs until the container is to leave."""
        self._set_busy(False)
        if self.loop is not None and self.reader == LOOP:
            self.loop.add_reader(self.connection.fileno(), self.read)
        while True:
            try:
                self._run_main_jobs()
                if self.leaving:
                    break
                self.outbox.flush()
                if self.loop is not None:
                    self.loop.run_forever()
                elif self.reader == MAIN and not self.lost:
                    self._main_reads()
                else:
                    self._main_wake.wait()
            except (KeyboardInterrupt, SystemExit):
                traceback.print_exc()  # of a task that user code left behind: it ends that task, not the container
        self.served = True
        self._set_busy(True)
        if self.loop is not None and self.reader == LOOP:
            self.loop.remove_reader(self.connection.fileno())

    def _run_main_jobs(self) -> None:
        if not self._main_jobs:
            return
        self._set_busy(True)
        while self._main_jobs:
            job = self._main_jobs.popleft()
            result, run_s = self._runner.run(job, self.guard)
            self.finish(job, result, run_s, MAIN)
            if self._main_jobs and self.outbox.due:
                self.outbox.flush()
                self.read()
        self._set_busy(False)

    def _set_busy(self, busy: bool) -> None:
        self.busy = busy
        self.outbox.nudge()

    def _main_reads(self) -> None:
        with self.reading:
            if not self._main_jobs and not self.leaving and self._main_wake.wait_with(self.connection.fileno()):
                self._read(None)

    # ------------------------------------------------------------ in

    def read(self) -> None:
        """Takes what lies in the socket, unless somebody else is at it."""
        if self.reading.acquire(blocking=False):
            try:
                self._read(0)
            finally:
                self.reading.release()

    def _read(self, timeout: float | None) -> None:
        try:
            messages = self.connection.receive(timeout)
        except ConnectionLost:
            self.abandon()
            return
        if messages:
            self.receive(messages)

    def receive(self, messages: list[Any]) -> None:
        """Takes messages of the plane. Called by the holder of `reading`, and by the I/O thread for what it decides by
        itself: for a signal, and when time is over."""
        acted = False
        with self.lock:
            self.activity += 1
            for message in messages:
                if type(message) is StreamCredited:
                    stream = self._streams.get((message.call, message.index))
                    if stream is not None:
                        stream.credit(message.values)
                elif type(message) is Refused:
                    print(f"kedge: the server refused this container: {message.reason}", file=sys.stderr)
                else:
                    actions = self.session.receive(message)
                    if actions:
                        acted = True
                        self._apply(actions, "")
        if acted:
            self._hand_out()
            if self.reader == LOOP:
                self.outbox.nudge()

    def _apply(self, actions: list[Action], ender: str) -> Job | None:
        """Gives every input its place, under the lock. `ender` is the place that just became free: a slot thread gets
        its next job back."""
        own: Job | None = None
        if ender == MAIN:
            self._main_taken = False
        for action in actions:
            if type(action) is Start:
                job = self._job(action.dispatch)
                if job.entry.is_async:
                    self._loop_jobs.append((job, True))
                elif self._main_takes_sync and not self._main_taken:
                    self._main_taken = True
                    self._main_jobs.append(job)
                elif ender == IO and own is None:
                    own = job
                else:
                    self._slots.place(job)
            elif type(action) is Cancel:
                self._cancel(self._jobs[action.lease], action.reason)
            else:
                self._leave()
        if ender == IO and own is None:
            self._slots.rest()
        return own

    def _job(self, dispatch: Dispatch) -> Job:
        stream = None
        if dispatch.stream:
            stream = Stream(self.outbox, dispatch.call, dispatch.index, STREAM_WINDOW)
            self._streams[dispatch.call, dispatch.index] = stream
        job = self._jobs[dispatch.lease] = Job(dispatch, self._runner.entry(dispatch.method), stream)
        return job

    def _cancel(self, job: Job, reason: str) -> None:
        job.cancel(reason)
        if job.entry.is_async:
            self._loop_jobs.append((job, False))
        elif self.reader == IO:
            self._threads_told = True

    def _hand_out(self) -> None:
        """The part of `_apply` that must not happen under the lock."""
        if self._threads_told:
            self._threads_told = False
            client.nudge()
        if self._slots.lacking:
            self._slots.start(self._no_thread)
        if self.loop is None or not (self._loop_jobs or self._main_jobs or self.leaving):
            return
        if threading.get_ident() == self._main_thread:
            self._on_loop()
        else:
            self.loop.call_soon_threadsafe(self._on_loop)

    def _on_loop(self) -> None:
        """On the main thread: starts and cancels tasks; lets go of the loop where the main thread has other work."""
        assert self.loop is not None
        while self._loop_jobs:
            job, start = self._loop_jobs.popleft()
            if start:
                self.loop.create_task(self._run_task(job), context=self._runner.context())
            elif job.task is not None:
                job.task.cancel(*job.words)
        if (self._main_jobs or self.leaving) and self.loop.is_running():
            self.loop.stop()

    # ------------------------------------------------------------ user code runs

    async def _run_task(self, job: Job) -> None:
        assert self.loop is not None
        # Only from here on can it be cancelled: a task cancelled before its first step would never get here.
        job.task = asyncio.current_task()
        result, run_s = (CANCELLED, 0.0) if job.reason else await self._runner.run_async(job, self.loop)
        self.finish(job, result, run_s)
        self.outbox.ended()

    def _run_in_slot(self, job: Job, guard: Guard) -> Job | None:
        result, run_s = self._runner.run(job, guard)
        own = self.finish(job, result, run_s, IO)
        self.outbox.ended()
        return own

    def _no_thread(self, job: Job, error: RuntimeError) -> None:
        self.finish(job, Result(FAILURE, error=error_info(error)), 0.0)

    def finish(self, job: Job, result: Result, run_s: float, ender: str = "") -> Job | None:
        """The code of a job has really ended. `ender`: MAIN or IO for the main or a slot thread, which is free now; a
        slot thread gets its next job."""
        if self._is_fork:
            _leave_child()
        lease = job.dispatch.lease
        with self.lock:
            self.activity += 1
            del self._jobs[lease]
            if job.stream is not None:
                del self._streams[job.dispatch.call, job.dispatch.index]
            self.outbox.weigh(result)
            own = self._apply(self.session.finished(lease, result, run_s), ender)
        if self._loop_jobs or self._slots.lacking or self.leaving:
            self._hand_out()
        return own

    # ------------------------------------------------------------ ends

    def interrupt(self) -> None:
        """A signal asks the container to leave. Safe in a signal handler: the I/O thread does the rest."""
        self.interrupted = True
        self.outbox.nudge()

    def give_up(self) -> None:
        """What still runs does not end: the main thread is to leave without it."""
        with self.lock:
            self._apply(self.session.give_up(), "")
        self._hand_out()

    def abandon(self) -> None:
        """The plane is gone: nothing that runs here is wanted. The I/O thread ends the process."""
        with self.lock:
            if self.lost:
                return
            self.lost = True
            for job in self._jobs.values():
                self._cancel(job, "lost")
        if self.loop is not None and self.reader == LOOP and threading.get_ident() == self._main_thread:
            self.loop.remove_reader(self.connection.fileno())
        self._hand_out()
        self.outbox.nudge()

    def forked(self) -> None:
        """In a child that user code forked: it has no part in the container. For `os.register_at_fork`."""
        self._is_fork = True
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, self.connection.fileno(), inheritable=False)
        os.close(null)

    def _leave(self) -> None:
        self.leaving = True
        if not self.reader:
            self.die(0)
        self._main_wake.set()


def _leave_child() -> NoReturn:
    """A child that user code forked came back out of it: what it would do next is its parent's business."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)
