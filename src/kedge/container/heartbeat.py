"""The I/O thread: keeps the container in touch with the plane whatever user code does.

It must cost nothing per input and nothing at rest. So nobody hands it work; it looks:

* While inputs come and go it looks every 2 ms, which needs no wake-up from the busy side. If nothing moved since the
  last look and the main thread is in user code, that input is a long one: from now on this thread reads the socket,
  until somebody nudges it.
* It sends what was left behind by code that ended just before a long input began.
* While tasks are awaited it looks four times a second and pings the loop (see `watchdog`). An unanswered ping is a
  blocked loop, for which it reads; how long the loop took is reported with the heartbeat.
* With slot threads it is the reader all the time. With nothing running it sleeps until it is nudged.
* Every 5 s with something running it sends a heartbeat.
* It is awake when an input's time is over, and ends a stop that takes too long (see `deadlines`).

It also ends the process when the plane is gone, after a moment in which cancelled code may clean up.
"""

from __future__ import annotations

import _thread
import time
import traceback

from kedge.container.deadlines import Deadlines
from kedge.container.executor import CRASHED, IO, Executor
from kedge.container.wake import Wake
from kedge.container.watchdog import PING_S, LoopWatch
from kedge.model.protocol import ContainerDrained, Heartbeat

clock = time.perf_counter

TICK_S = 0.002
"""How long a result may wait behind a long input, and how long a long input goes unread."""
QUIET_TICKS = 20
"""Looks without a change before it sleeps: waking up costs the next input more than a few looks."""
HEARTBEAT_S = 5.0
ORPHAN_GRACE_S = 0.5
"""For `finally` blocks of code whose plane is gone."""


class IoThread:
    """No thread of `threading`, which would show it to user code, and count it."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._deadlines = Deadlines(executor)
        self._wake = Wake()
        self._looking = False
        """It looks again within TICK_S by itself."""
        self._seen = -1
        self._quiet = 0
        self._due: float | None = None
        """When the next heartbeat goes; None while nothing runs."""
        self._watch = LoopWatch(executor)

    def nudge(self) -> None:
        """Something happened: look again soon. Nearly free where it is looking anyway."""
        if not self._looking:
            self._wake.set()

    def start(self) -> None:
        _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        self._executor.outbox.nudge = self.nudge
        try:
            while not self._executor.lost:
                self._look()
            self._end_orphan()
        except BaseException:
            traceback.print_exc()
            self._executor.die(CRASHED)

    def _look(self) -> None:
        executor, now = self._executor, clock()
        moved = executor.activity != self._seen
        self._seen = executor.activity
        if executor.interrupted:
            executor.interrupted = False
            executor.receive([ContainerDrained("stopped by a signal", cancel=True)])
        if executor.wishes:
            executor.take_wishes()
        if executor.outbox.dirty and executor.outbox.due:
            executor.outbox.flush()
        running = len(executor.inflight) > 0
        unanswered = self._watch_loop(running, moved, now)
        self._beat(running, now)
        deadline = self._deadlines.enforce(running, now)
        stuck = executor.busy and (not moved or bool(executor.outbox.hungry))
        blocked = unanswered and not moved
        self._quiet = 0 if moved else self._quiet + 1
        reads = executor.reader == IO or stuck or blocked
        if executor.outbox.dirty or not (reads or self._quiet > QUIET_TICKS):
            timeout: float | None = TICK_S
        elif running and executor.awaits and not blocked:
            timeout = PING_S
        else:
            timeout = None
        for due in (self._due, self._watch.due):
            if due is not None and (deadline is None or due < deadline):
                deadline = due
        self._rest(timeout, reads, deadline)

    def _rest(self, timeout: float | None, reads: bool, deadline: float | None) -> None:
        executor = self._executor
        self._looking = timeout == TICK_S
        if deadline is not None:
            left = max(deadline - clock(), 0.0)
            timeout = left if timeout is None else min(timeout, left)
        # Whoever changes something does so first and then looks at _looking; here it is the other way round.
        if not self._looking:
            outbox = executor.outbox
            if executor.activity != self._seen or executor.interrupted or executor.lost:
                return
            if outbox.dirty or (outbox.hungry and not reads):
                return
            if executor.wishes:
                timeout = 0.0
        if not reads:
            self._wake.wait(timeout)
        elif self._wake.wait_with(executor.connection.fileno(), timeout):
            executor.read()

    def _beat(self, running: bool, now: float) -> None:
        if not running:
            self._due = None
        elif self._due is None:
            self._due = now + HEARTBEAT_S
        elif now >= self._due or self._watch.blocks:
            self._due = now + HEARTBEAT_S
            watch = self._watch
            self._executor.outbox.send([Heartbeat(len(self._executor.inflight), watch.lag, watch.blocks)])
            watch.lag, watch.blocks = 0.0, 0

    def _watch_loop(self, running: bool, moved: bool, now: float) -> bool:
        if self._executor.awaits:
            return running and self._watch.look(moved, now)
        self._watch.forget()
        return False

    def _end_orphan(self) -> None:
        deadline = clock() + ORPHAN_GRACE_S
        while len(self._executor.inflight) and clock() < deadline:
            time.sleep(0.005)
        self._executor.die(1)
