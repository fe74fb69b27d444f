"""Runs user code: takes what the plane sends, gives each input its place, lets what comes of it go.

Where user code runs:

* A sync input runs on the main thread as long as `max_inputs` is 1, else on a slot thread. Where it is raised live,
  that changes once: threads run what comes from then on, also when it is lowered again.
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

from kedge.container.errands import TaskShelter
from kedge.container.guard import Guard, MainGuard
from kedge.container.inflight import CHANNELLED, InFlight
from kedge.container.job import Job
from kedge.container.jobs import CANCELLED, Runner
from kedge.container.outbox import Outbox
from kedge.container.session import Action, Cancel, Session, Start
from kedge.container.slots import SlotThreads
from kedge.container.wake import Wake
from kedge.exception import ExecutionError
from kedge.model.payload import FAILURE, Result
from kedge.model.protocol import ConcurrencyChanged, ContainerLeaving, Dispatch, Refused, SlotsChanged
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
        self._shelter = TaskShelter()
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
        self.hurried = False
        """An input has come whose own timeout is shorter than all others: deadlines must be looked at now."""
        self.wishes: deque[SlotsChanged | ContainerLeaving] = deque()
        """What user code wants of its container, until the next holder of `lock` takes it."""
        self.resized: Callable[[int], object] = bool
        """Hears of another number of inputs."""
        self.runner: Runner
        self._main_thread = threading.get_ident()
        self._main_takes_sync = False
        self._main_taken = False
        self._main_jobs: deque[Job] = deque()
        self._main_wake = Wake()
        self._loop_jobs: deque[tuple[Job, bool]] = deque()
        """Tasks to start (True) and to cancel."""
        self._slots = SlotThreads(self._run_in_slot, lambda: self.die(CRASHED))
        self.inflight = InFlight(self.outbox)
        self._threads_told = False
        """A thread was interrupted that may wait for a call of its own."""
        self._is_fork = False

    @property
    def awaits(self) -> bool:
        """Whether the loop runs, so that inputs may be awaited on it."""
        return self.loop is not None and not self.busy

    # ------------------------------------------------------------ the main thread

    def open(self, runner: Runner, loop: asyncio.AbstractEventLoop | None) -> None:
        """User code is there: inputs may come. `loop` is the user's; None where nothing is async."""
        self.runner = runner
        self.loop = self.outbox.loop = loop
        self.guard.install()
        with self.lock:  # the number may change meanwhile
            self._main_takes_sync = self.session.max_inputs == 1
            if runner.has_sync and not self._main_takes_sync:
                self.reader = IO
            else:
                self.reader = MAIN if loop is None else LOOP

    def serve(self) -> None:
        """Runs until the container is to leave."""
        self._set_busy(False)
        if self.loop is not None and self.reader == LOOP:
            self.loop.add_reader(self.connection.fileno(), self._loop_reads)
            # uvloop makes it non-blocking: then a frame that the socket has no room for would be an error.
            os.set_blocking(self.connection.fileno(), True)
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
        if self.loop is not None:
            self.loop.remove_reader(self.connection.fileno())

    def _run_main_jobs(self) -> None:
        if not self._main_jobs:
            return
        self._set_busy(True)
        while self._main_jobs:
            job = self._main_jobs.popleft()
            result, run_s = self.runner.run(job, self.guard)
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
            if self._main_jobs or self.leaving or self.reader != MAIN:
                return
            if self._main_wake.wait_with(self.connection.fileno()):
                self._read(None)

    def _loop_reads(self) -> None:
        if self.reader == LOOP:
            self.read()
        elif self.loop is not None:
            self.loop.remove_reader(self.connection.fileno())

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
            acted = bool(self.wishes) and self._take_wishes()
            for message in messages:
                if type(message) in CHANNELLED:
                    self.inflight.hear(message)
                elif type(message) is Refused:
                    print(f"kedge: the server refused this container: {message.reason}", file=sys.stderr)
                else:
                    actions = self.session.receive(message)
                    if type(message) is ConcurrencyChanged:
                        self._use_threads()
                        self.resized(self.session.max_inputs)
                    if actions:
                        acted = True
                        self._apply(actions, "")
        if acted:
            self._hand_out()
            if self.reader == LOOP:
                self.outbox.nudge()

    def wish(self, message: SlotsChanged | ContainerLeaving) -> None:
        """User code wants something of its container, on any thread. It takes no lock: it may be interrupted anywhere.
        Whatever the session decides from now on, it decides with this."""
        if self._is_fork:
            raise ExecutionError("kedge.experimental can be asked by the container itself, not by a child it forked")
        self.wishes.append(message)
        self.outbox.nudge()

    def take_wishes(self) -> None:
        """Does what user code wants, where nothing else happens. No activity: it may want something all the time."""
        with self.lock:
            acted = self._take_wishes()
        if acted:
            self._hand_out()

    def _take_wishes(self) -> bool:
        """Under the lock: passes them on. Whether something follows from it here."""
        acted = False
        for _ in range(len(self.wishes)):  # not those that come meanwhile, or it might never end
            actions = self.session.receive(self.wishes.popleft())
            self._apply(actions, "")
            acted = acted or bool(actions)
        return acted

    def _use_threads(self) -> None:
        """More than one slot: from now on threads run sync code, and the I/O thread reads for them."""
        if self._main_takes_sync and self.session.max_inputs > 1 and self.reader and self.runner.has_sync:
            self._main_takes_sync = False
            self.reader = IO
            self.outbox.nudge()

    def _apply(self, actions: list[Action], ender: str) -> Job | None:
        """Gives every input its place, under the lock. `ender` is the place that just became free: a slot thread gets
        its next job back."""
        own: Job | None = None
        if ender == MAIN:
            self._main_taken = False
        for action in actions:
            if type(action) is Start:
                job = self._job(action.dispatch, action.members)
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
                self._cancel(self.inflight[action.lease], action.reason)
            else:
                self._leave()
        if ender == IO and own is None:
            self._slots.rest()
        return own

    def _job(self, dispatch: Dispatch, members: tuple[Dispatch, ...]) -> Job:
        job = self.inflight.open(dispatch, members, self.runner.entry(dispatch.method))
        if job.timeout < self.runner.shortest_timeout:
            self.hurried = True
            self.outbox.nudge()
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
                self.runner.start_task(self.loop, self._run_task(job))
            else:
                job.cancel_task()
        if (self._main_jobs or self.leaving) and self.loop.is_running() and not self.served:
            self.loop.stop()

    # ------------------------------------------------------------ user code runs

    async def _run_task(self, job: Job) -> None:
        assert self.loop is not None
        # Only from here on can it be cancelled: a task cancelled before its first step would never get here.
        job.task = asyncio.current_task()
        job.context.shelter = self._shelter
        result, run_s = (CANCELLED, 0.0) if job.reason else await self.runner.run_async(job, self.loop)
        self.finish(job, result, run_s)
        self.outbox.ended()

    def _run_in_slot(self, job: Job, guard: Guard) -> Job | None:
        result, run_s = self.runner.run(job, guard)
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
            self.inflight.close(job)
            if self.wishes:
                self._take_wishes()
            if job.members is None:
                self.outbox.weigh(result)
                actions = self.session.finished(lease, result, run_s)
            else:
                actions = self._batch_finished(lease, job.dispatch.batch, job.results(result), run_s)
            own = self._apply(actions, ender)
        if self._loop_jobs or self._slots.lacking or self.leaving:
            self._hand_out()
        return own

    def _batch_finished(self, lease: int, batch: int, results: list[Result], run_s: float) -> list[Action]:
        for result in results:
            self.outbox.weigh(result)
        if batch:
            return self.session.batch_finished(lease, results, run_s)
        # A lone input of a batched function: a batch for its code, an input of its own for the plane.
        return self.session.finished(lease, results[0], run_s)

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
            for job in self.inflight.jobs():
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
