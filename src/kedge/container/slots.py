"""Threads for sync inputs: one per slot in use, made on demand, used again, never keeping the process alive."""

from __future__ import annotations

import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable

from kedge.container.guard import Guard, ThreadGuard
from kedge.container.job import Job


class SlotThreads:
    """`place` and `rest` go under the executor's lock; `start` outside of it, since a new thread takes its time."""

    def __init__(self, work: Callable[[Job, Guard], Job | None], crash: Callable[[], None]) -> None:
        """`work` runs a job and gives the next one for its thread; where there is none, it has called `rest`. It never
        raises: should it all the same, a slot is lost, and `crash` is called."""
        self._work = work
        self._crash = crash
        self._handed: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._resting = 0
        self._unstarted: deque[Job] = deque()

    @property
    def lacking(self) -> bool:
        """Whether `start` has something to do."""
        return bool(self._unstarted)

    def place(self, job: Job) -> None:
        """Gives the job to a thread that rests, or to one that `start` will make."""
        if self._resting:
            self._resting -= 1
            self._handed.put(job)
        else:
            self._unstarted.append(job)

    def rest(self) -> None:
        """The calling thread is free, and will take the next job that is placed."""
        self._resting += 1

    def start(self, failed: Callable[[Job, RuntimeError], None]) -> None:
        """Makes the threads that `place` found missing; `failed` gets a job whose thread the machine refuses."""
        while self._unstarted:
            job = self._unstarted.popleft()
            try:
                threading.Thread(target=self._live, args=(job,), name="kedge slot", daemon=True).start()
            except RuntimeError as error:
                failed(job, error)

    def _live(self, first: Job) -> None:
        guard = ThreadGuard()
        job: Job | None = first
        try:
            while True:
                job = self._work(job or self._handed.get(), guard)
        except BaseException:
            traceback.print_exc()
            self._crash()
