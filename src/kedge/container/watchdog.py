"""Watches the event loop. A blocked one makes every asynchronous input of the container wait, and nobody hears why.

The loop is pinged four times a second while tasks are awaited, and as soon as nothing moves any more. A ping that is
not answered is a blocked loop: the I/O thread reads in its place. One that lasts is counted, and reported on stderr
with the line that blocks and the input whose line that is: once for each blockage and place, and rarely enough to be no
nuisance. With one slot there is nobody who waits, and nothing to report.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Any

from kedge.container.executor import Executor
from kedge.sdk.context import InputContext, enter_input, get_input
from kedge.sdk.tracebacks import user_frames

PING_S = 0.25
BLOCKED_S = 0.5
"""What lasts longer is reported. Callers have noticed by then; a first import, a collection of garbage or a machine
with too much to do rarely take as long."""
REPORT_EVERY_S = 10.0
MOST_PLACES = 100
"""Different places that are reported in the life of a container."""
SHOWN_FRAMES = 20

_SERVE = Executor.serve.__code__


class LoopWatch:
    """Belongs to the I/O thread; only `_answer` runs on the loop."""

    def __init__(self, executor: Executor) -> None:
        self.lag = 0.0
        """The longest that a ping took since this was reset."""
        self.blocks = 0
        """How often the loop was blocked for long since this was reset."""
        self._executor = executor
        self._main_thread = threading.get_ident()
        self._ping = 0
        """The number of the ping that is on its way; 0: none is."""
        self._pings = 0
        self._sent = 0.0
        self._moved = True
        """Whether something moved since the last ping."""
        self._awaited = False
        """The I/O thread waits for the answer."""
        self._counted = False
        self._places: set[tuple[str, str]] = set()
        self._quiet_until = 0.0

    @property
    def due(self) -> float | None:
        """When the ping that is on its way will mean a blockage."""
        return self._sent + BLOCKED_S if self._ping and not self._counted else None

    def look(self, moved: bool, now: float) -> bool:
        """Whether the last ping is still on its way; where none is, the next one goes when it is time."""
        if self._ping:
            self.lag = max(self.lag, now - self._sent)
            if not self._counted and now - self._sent >= BLOCKED_S:
                self._counted = True
                self.blocks += 1
                self._report(now)
            self._awaited = True
            return True
        self._moved = self._moved or moved
        if now - self._sent >= PING_S or (self._moved and not moved):
            assert self._executor.loop is not None
            self._moved = self._awaited = self._counted = False
            self._pings += 1
            self._ping, self._sent = self._pings, now
            self._executor.loop.call_soon_threadsafe(self._answer, self._ping)
        return False

    def forget(self) -> None:
        """The loop does not run: the main thread has other work, and no task waits."""
        self._ping = 0

    def _answer(self, number: int) -> None:
        if number == self._ping:
            self._ping = 0
            took = time.perf_counter() - self._sent
            self.lag = max(self.lag, took)
            if took >= BLOCKED_S and not self._counted:
                self.blocks += 1  # what held Python's lock as well: nobody could look
            if self._awaited:
                self._executor.outbox.nudge()

    # ------------------------------------------------------------ who blocks it

    def _report(self, now: float) -> None:
        executor = self._executor
        if executor.session.max_inputs == 1 or now < self._quiet_until or len(self._places) >= MOST_PLACES:
            return
        frame = sys._current_frames().get(self._main_thread)
        stack = _stack(frame)
        if not stack:
            return
        place = stack[-1].filename, stack[-1].name
        if place in self._places:
            return
        self._places.add(place)
        self._quiet_until = now + REPORT_EVERY_S
        current = self._blocker()
        text = self._text(current, stack, now - self._sent)
        # On a thread of its own: whatever stands for stderr now may wait for the main thread.
        threading.Thread(target=_say, args=(current, text), name="kedge watchdog", daemon=True).start()

    def _blocker(self) -> InputContext | None:
        """The input whose task, or whose task's task, runs; None where that cannot be told."""
        task: Any = asyncio.current_task(self._executor.loop)
        jobs = [job for job in self._executor.inflight.jobs() if job.task is not None]
        own = [job for job in jobs if job.task is task]
        if own or len(jobs) == 1:
            return (own or jobs)[0].context
        if hasattr(task, "get_context"):  # Python 3.12
            current: InputContext | None = task.get_context().run(get_input)
            return current
        return None

    def _text(self, current: InputContext | None, stack: traceback.StackSummary, seconds: float) -> str:
        name = next((job.entry.name for job in self._executor.inflight.jobs() if job.context is current), "")
        who = f"{name} (input {current.id})" if current is not None and name else f"{stack[0].name}()"
        return (
            f"kedge: the event loop has been blocked for {seconds:.1f} s by {who}: every other input of this container "
            "waits. Use `await asyncio.to_thread(...)` for the call that blocks, or make the function a plain def\n"
            + "".join(stack.format())
        )


def _stack(frame: FrameType | None) -> traceback.StackSummary:
    """The user's part of a stack that has `Executor.serve` in it, outermost frame first."""
    above: list[tuple[FrameType, int]] = []
    for caller, line in traceback.walk_stack(frame):
        if caller.f_code is _SERVE:
            break
        above.append((caller, line))
    summary = traceback.StackSummary.extract(iter(reversed(above)))
    return traceback.StackSummary.from_list(user_frames(summary)[-SHOWN_FRAMES:])


def _say(current: InputContext | None, text: str) -> None:
    def write() -> None:
        if current is not None:
            enter_input(current)
        print(text, end="", file=sys.stderr, flush=True)

    try:
        contextvars.Context().run(write)
    except Exception:
        pass  # stderr is the user's to close or to replace
