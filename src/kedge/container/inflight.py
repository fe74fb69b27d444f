"""What runs in a container, or is about to: every job by its lease, and what else of the plane's messages is for it.

The executor's lock guards all of it.
"""

from __future__ import annotations

from kedge.container.entries import Entry
from kedge.container.exchange import Exchange
from kedge.container.job import Job
from kedge.container.members import Members
from kedge.container.outbox import Outbox
from kedge.container.stream import Stream
from kedge.model.protocol import STREAM_WINDOW, Dispatch, StreamCredited, WebCredited, WebReceived
from kedge.model.web import WEB

CHANNELLED = frozenset((StreamCredited, WebReceived, WebCredited))
"""Messages for the code of one job, of which the session sees nothing."""


class InFlight:
    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._jobs: dict[int, Job] = {}
        self._streams: dict[tuple[str, int], Stream] = {}
        self._exchanges: dict[str, Exchange] = {}
        """By call: a request is the only input of its own."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __getitem__(self, lease: int) -> Job:
        return self._jobs[lease]

    def jobs(self) -> list[Job]:
        return list(self._jobs.values())

    def find(self, lease: int) -> Job | None:
        return self._jobs.get(lease)

    def open(self, dispatch: Dispatch, members: tuple[Dispatch, ...], entry: Entry) -> Job:
        """A job for an input or a batch that has a slot now."""
        stream = batch = exchange = None
        if members or entry.parameters is not None:
            batch = Members(members or (dispatch,))
        elif dispatch.payload.format == WEB:
            exchange = self._exchanges[dispatch.call] = Exchange(self._outbox, dispatch.call)
        elif dispatch.stream:
            stream = Stream(self._outbox, dispatch.call, dispatch.index, STREAM_WINDOW)
            self._streams[dispatch.call, dispatch.index] = stream
        job = self._jobs[dispatch.lease] = Job(dispatch, entry, stream, batch, exchange)
        return job

    def close(self, job: Job) -> None:
        """Its code has ended."""
        dispatch = job.dispatch
        del self._jobs[dispatch.lease]
        if job.exchange is not None:
            job.exchange.close()  # tasks that its code has left behind may still wait for something
            self._outbox.hungry.discard(job.exchange)
            self._exchanges.pop(dispatch.call, None)
        elif job.stream is not None:
            del self._streams[dispatch.call, dispatch.index]

    def hear(self, message: StreamCredited | WebReceived | WebCredited) -> None:
        """Something that a job has waited for. What comes after its end is dropped."""
        if type(message) is StreamCredited:
            stream = self._streams.get((message.call, message.index))
            if stream is not None:
                stream.credit(message.values)
            return
        exchange = self._exchanges.get(message.call)
        if exchange is None:
            return
        if type(message) is WebReceived:
            exchange.hear(message.events)
        elif type(message) is WebCredited:
            exchange.credit(message.size)

    def describe(self) -> str:
        """`3 inputs of square() have`, for a sentence."""
        jobs = self.jobs()
        if not jobs:
            return "code beside all inputs has"
        names = ", ".join(dict.fromkeys(job.entry.name for job in jobs))
        count = sum(len(job.leases) for job in jobs)
        return f"{count} input{'s' * (count != 1)} of {names} {'has' if count == 1 else 'have'}"
