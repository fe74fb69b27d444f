"""The inputs of one pool that wait: fair between calls, first come first served inside a call.

Calls take turns, so a map of 100,000 inputs delays a single call by one input and not by all of them. Inputs that come
back (a recalled credit) go to the front of their call. Inputs that wait for a retry delay are not ready. Nor are
suspects, which were in a container that was lost: they have a lane of their own (see `suspects`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kedge.core.calls import Call, Input


class InputQueue:
    def __init__(self) -> None:
        self._turns: deque[Call] = deque()
        self._waiting: dict[Call, deque[Input]] = {}
        self._delayed: list[tuple[float, int, Input]] = []
        self._sequence = 0
        self.ready = 0
        """Inputs that could run now."""
        self.suspects: deque[Input] = deque()
        """Inputs that could run now, but only alone."""

    def __len__(self) -> int:
        return self.ready + len(self.suspects) + len(self._delayed)

    def __iter__(self) -> Iterator[Input]:
        for waiting in self._waiting.values():
            yield from waiting
        yield from self.suspects
        for _, _, input in self._delayed:
            yield input

    def append(self, input: Input) -> None:
        waiting = self._waiting.get(input.call)
        if waiting is None:
            waiting = self._waiting[input.call] = deque()
            self._turns.append(input.call)
        waiting.append(input)
        self.ready += 1

    def put_back(self, input: Input) -> None:
        """To the front: it was further ahead before."""
        waiting = self._waiting.get(input.call)
        if waiting is None:
            waiting = self._waiting[input.call] = deque()
            self._turns.appendleft(input.call)
        waiting.appendleft(input)
        self.ready += 1

    def delay(self, input: Input, until: float) -> None:
        self._sequence += 1
        heappush(self._delayed, (until, self._sequence, input))

    def wake(self, now: float) -> None:
        """Makes ready what has waited long enough."""
        while self._delayed and self._delayed[0][0] <= now:
            self.append(heappop(self._delayed)[2])

    @property
    def next_wake(self) -> float | None:
        return self._delayed[0][0] if self._delayed else None

    def calls(self) -> list[Call]:
        """The calls with ready inputs, in the order of their turns."""
        return list(self._turns)

    def turns(self) -> Iterator[Call]:
        """Like `calls`, for as long as nothing is taken out."""
        return iter(self._turns)

    def waiting(self, call: Call) -> int:
        """Ready inputs of one call."""
        return len(self._waiting.get(call, ()))

    def of(self, call: Call) -> Iterator[Input]:
        """The ready inputs of one call, in their order."""
        return iter(self._waiting.get(call, ()))

    def first(self, call: Call) -> Input:
        """The next input of a call that has ready ones."""
        return self._waiting[call][0]

    def pop(self) -> Input:
        """The next input; the call's next turn comes after everybody else's."""
        call = self._turns[0]
        waiting = self._waiting[call]
        input = waiting.popleft()
        self.ready -= 1
        if not waiting:
            del self._waiting[call]
            self._turns.popleft()
        elif len(self._turns) > 1:
            self._turns.rotate(-1)
        return input

    def pop_from(self, call: Call) -> Input:
        """The next input of one call, out of turn."""
        self._turns.remove(call)
        self._turns.appendleft(call)
        return self.pop()

    def drop_closed(self, call: Call) -> None:
        """Takes out the inputs of a call that have been closed."""
        waiting = self._waiting.get(call)
        if waiting is not None:
            kept = deque(input for input in waiting if not input.closed)
            self.ready -= len(waiting) - len(kept)
            if kept:
                self._waiting[call] = kept
            else:
                del self._waiting[call]
                self._turns.remove(call)
        if self.suspects:
            self.suspects = deque(input for input in self.suspects if not input.closed)
        if self._delayed:
            self._delayed = sorted(entry for entry in self._delayed if not entry[2].closed)

    def remove_call(self, call: Call) -> list[Input]:
        """Takes out every input of a call, and gives them."""
        waiting = self._waiting.pop(call, None)
        gone = list(waiting) if waiting else []
        if waiting is not None:
            self._turns.remove(call)
            self.ready -= len(gone)
        if self.suspects:
            gone += [input for input in self.suspects if input.call is call]
            self.suspects = deque(input for input in self.suspects if input.call is not call)
        late = [entry for entry in self._delayed if entry[2].call is call]
        if late:
            self._delayed = sorted(entry for entry in self._delayed if entry[2].call is not call)
            gone += [entry[2] for entry in late]
        return gone
