"""How far a map may run ahead, and in which order its results come. Pure.

An input counts from its submission until its result was taken: a slow consumer stops the submission, and a lazy
iterator is read only as far ahead as the window reaches. The window is far larger than a container's slots, so that
the autoscaler sees a backlog, and bounded in bytes as well as in inputs.

Inputs that the server refuses, since too many wait for the function already, are kept and sent again (`retry`);
meanwhile there is no room for new ones.

Two threads may share a window: one submits, the other one receives and takes. Each counter has one writer.
"""

from __future__ import annotations

from collections import deque

from kedge.exception import ResourceExhaustedError
from kedge.model.payload import Payload, Result
from kedge.model.protocol import InputsSubmitted, Output

MAX_INPUTS = 1000
MAX_BYTES = 16 * 1024 * 1024
BLOB_COST = 1024 * 1024
"""Bytes that a value in a file counts at most: it takes disk, not memory, and large ones should run side by side."""
MAX_CHUNK = 250
"""Inputs of one message: a quarter of the window, so that the next one is under way before the window runs dry."""
MAX_CHUNK_BYTES = 4 * 1024 * 1024
"""Bytes of one message, far below the limit of a frame."""
LEAST_RETRY = 32
"""Refused inputs that are sent again at once, or as many as the server works on: about as many as it may let in now,
and no flood where it lets nobody in."""


class MapWindow:
    """What a map has submitted, received and handed out.

    Args:
        ordered: Whether results come in the order of their inputs, or as they arrive.

    Example:
        window = MapWindow(ordered=True)
        window.submit([payload_0, payload_1])
        window.receive([Output(1, result_1)])
        window.take()  # None: the first result is missing
    """

    def __init__(self, ordered: bool = True, max_inputs: int = MAX_INPUTS, max_bytes: int = MAX_BYTES) -> None:
        self._ordered = ordered
        self._max_inputs = max_inputs
        self._max_bytes = max_bytes
        self._outstanding: dict[int, Payload] = {}
        self._results: dict[int, Result] = {}
        self._arrived: deque[Result] = deque()
        self._refused: dict[int, None] = {}
        self._freed = 0
        """Results since inputs were sent again last: each of them has left room for another input."""
        self.retry_after = 0.0
        """Seconds after the last refusal when there may be room again."""
        self.submitted = 0
        self.taken = 0
        self._bytes_in = 0
        self._bytes_out = 0

    @property
    def room(self) -> int:
        """Inputs that may be submitted now. One always may where nothing else is under way, however large it is."""
        if self._refused:
            return 0
        inputs = self._max_inputs - (self.submitted - self.taken)
        if self._bytes_in - self._bytes_out < self._max_bytes:
            return inputs
        return 1 if self.submitted == self.taken else 0

    @property
    def idle(self) -> bool:
        """Whether all results have been taken."""
        return self.submitted == self.taken

    @property
    def unfinished(self) -> bool:
        """Whether results are missing."""
        return bool(self._outstanding)

    @property
    def refused(self) -> bool:
        """Whether inputs wait here because the server did not let them in."""
        return bool(self._refused)

    @property
    def refillable(self) -> bool:
        """Whether there is room enough for a message worth sending, or nothing left to wait for."""
        return self.room >= MAX_CHUNK or (not self._outstanding and self.room > 0)

    def submit(self, payloads: list[Payload]) -> int:
        """Counts consecutive inputs; the index of the first."""
        first = self.submitted
        outstanding = self._outstanding
        for index, payload in enumerate(payloads, first):
            outstanding[index] = payload
            self._bytes_in += cost(payload)
        self.submitted = first + len(payloads)
        return first

    def receive(self, outputs: list[Output]) -> None:
        """Takes in results. One that was here already, or was never asked for, is dropped."""
        outstanding = self._outstanding
        results, arrived, ordered = self._results, self._arrived, self._ordered
        for output in outputs:
            payload = outstanding.pop(output.index, None)
            if payload is None:
                continue
            result = output.result
            if result.error is not None and is_refusal(result):
                outstanding[output.index] = payload
                self._refused[output.index] = None
                self.retry_after = result.error.retry_after
                continue
            if self._refused:
                self._freed += 1
            self._bytes_out += cost(payload) - cost(result.payload)
            if ordered:
                results[output.index] = result
            else:
                arrived.append(result)

    def take(self) -> Result | None:
        """The next result, and room for another input; None where it has not come."""
        if self._ordered:
            result = self._results.pop(self.taken, None)
            if result is None:
                return None
        elif self._arrived:
            result = self._arrived.popleft()
        else:
            return None
        self.taken += 1
        self._bytes_out += cost(result.payload)
        return result

    def leftovers(self) -> list[Payload | None]:
        """Values that were received and not taken, and arguments that were not let in: nobody else has them."""
        results = [*self._results.values(), *self._arrived]
        return [*(result.payload for result in results), *(self._outstanding[index] for index in self._refused)]

    def retry(self, template: InputsSubmitted, due: bool) -> list[InputsSubmitted]:
        """The oldest of the inputs that were not let in, to be sent again: for each result that has come meanwhile one,
        and where it is time (`due`) as many as there may be room for."""
        count = self._freed
        if due:
            count = max(LEAST_RETRY, count, len(self._outstanding) - len(self._refused))
        self._freed = 0
        again = sorted(self._refused)[:count]
        for index in again:
            del self._refused[index]
        return self._messages(template, [(index, self._outstanding[index]) for index in again])

    def resend(self, template: InputsSubmitted) -> list[InputsSubmitted]:
        """The inputs without a result again, for a server that has forgotten them; not those that wait for a retry."""
        outstanding = sorted(self._outstanding.items())
        return self._messages(template, [item for item in outstanding if item[0] not in self._refused])

    def _messages(self, template: InputsSubmitted, inputs: list[tuple[int, Payload]]) -> list[InputsSubmitted]:
        """Messages like `template`: consecutive inputs together."""
        messages: list[InputsSubmitted] = []
        run: list[Payload] = []
        first = next_index = -1
        for index, payload in inputs:
            if run and (index != next_index or len(run) >= MAX_CHUNK):
                messages.append(submission(template, first, run))
                run = []
            if not run:
                first = index
            run.append(payload)
            next_index = index + 1
        if run:
            messages.append(submission(template, first, run))
        return messages


def is_refusal(result: Result) -> bool:
    """Whether the server did not let the input in, since too many wait. An error of user code has a module."""
    error = result.error
    return error is not None and error.type == ResourceExhaustedError.__name__ and not error.module


def submission(template: InputsSubmitted, first: int, payloads: list[Payload]) -> InputsSubmitted:
    """A further message of the call that `template` describes."""
    return InputsSubmitted(
        template.call,
        template.pool,
        first,
        payloads,
        template.method,
        template.durable,
        template.parent,
        template.stream,
        -1,
        template.timeout,
        template.queue_timeout,
    )


def cost(payload: Payload | None) -> int:
    """Bytes that a value counts in the window."""
    if payload is None:
        return 0
    return min(payload.size, BLOB_COST) if payload.blob else len(payload.data)
