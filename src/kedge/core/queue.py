"""The inputs of one pool that wait: fair between calls, first come first served inside a call.

Calls take turns, so a map of 100,000 inputs delays a single call by one input and not by all of them. Inputs that come
back (a recalled credit) go to the front of their call. Inputs that wait for a retry delay are not ready. Nor are
suspects, which were in a container that was lost: they have a lane of their own (see `suspects`).

Every step costs the same however many wait. So what is withdrawn from the middle stays where it is, counted and passed
over, until it is half of what is there.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterator
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kedge.core.calls import Call, Input

SLACK = 64
"""Withdrawn entries that may stay beside as many as there are others."""


class Line:
    """The ready inputs of one call."""

    __slots__ = ("call", "gone", "inputs", "turn")

    def __init__(self, call: Call, turn: int) -> None:
        self.call = call
        self.inputs: deque[Input] = deque()
        """The first one is never withdrawn."""
        self.gone = 0
        """Withdrawn ones among them."""
        self.turn = turn
        """Orders lines of different methods; those of one are in order."""

    def withdraw(self, input: Input) -> None:
        inputs = self.inputs
        if inputs[-1] is input:
            inputs.pop()
        elif inputs[0] is input:
            inputs.popleft()
        else:
            self.gone += 1
            if self.gone > SLACK + len(inputs) // 2:
                self.inputs = deque(kept for kept in inputs if not kept.closed)
                self.gone = 0
        self.trim()

    def trim(self) -> None:
        """Brings one to the front that waits."""
        inputs = self.inputs
        while self.gone and inputs[0].closed:
            inputs.popleft()
            self.gone -= 1


class InputQueue:
    def __init__(self, by_method: bool = False) -> None:
        self._by_method = by_method
        """Whether methods are asked for one by one."""
        self._turns: dict[str, deque[Line]] = {} if by_method else {"": deque()}
        """Lines in the order of their turns, by method where that matters. The first one is never empty."""
        self._lines: dict[Call, Line] = {}
        self._counts: dict[str, int] = {}
        """Ready inputs of each method, where that matters."""
        self._empty = 0
        """Lines among the turns that were emptied by withdrawals."""
        self._turn = 0
        """Lines that came to the end, or to the front: the latter count down."""
        self._front = 0
        self._delayed: list[tuple[float, int, Input]] = []
        self._late: dict[Input, None] = {}
        """Those of the delayed that were not withdrawn."""
        self._sequence = 0
        self.ready = 0
        """Inputs that could run now."""
        self.parents: dict[str, int] = {}
        """Inputs that made some of these calls, and may hold a slot until they have their results: how many each."""
        self.suspects: OrderedDict[Input, None] = OrderedDict()
        """Inputs that could run now, but only alone."""
        self.aside = 0
        """Inputs that wait and are not ready: delayed ones and suspects."""

    def __len__(self) -> int:
        return self.ready + self.aside

    def __iter__(self) -> Iterator[Input]:
        for call in self._lines:
            yield from self.of(call)
        yield from self.suspects
        yield from self._late

    @property
    def delayed(self) -> int:
        """Inputs that wait for their next attempt."""
        return len(self._late)

    # ------------------------------------------------------------ in

    def append(self, input: Input) -> None:
        line = self._lines.get(input.call)
        if line is None:
            line = self._open(input.call, last=True)
        line.inputs.append(input)
        self.ready += 1
        if self._by_method:
            self._counts[input.call.method] += 1

    def put_back(self, input: Input) -> None:
        """To the front: it was further ahead before."""
        line = self._lines.get(input.call)
        if line is None:
            line = self._open(input.call, last=False)
        line.inputs.appendleft(input)
        self.ready += 1
        if self._by_method:
            self._counts[input.call.method] += 1

    def suspect(self, input: Input) -> None:
        """To the front of those that run alone."""
        self.suspects[input] = None
        self.suspects.move_to_end(input, last=False)
        self.aside += 1

    def delay(self, input: Input, until: float) -> None:
        self._sequence += 1
        self._late[input] = None
        self.aside += 1
        heappush(self._delayed, (until, self._sequence, input))

    def wake(self, now: float) -> None:
        """Makes ready what has waited long enough."""
        while self._delayed and self._delayed[0][0] <= now:
            input = heappop(self._delayed)[2]
            if input in self._late:
                del self._late[input]
                self.aside -= 1
                self.append(input)

    # ------------------------------------------------------------ out

    def pop(self, method: str = "") -> Input:
        """The next input; the call's next turn comes after everybody else's."""
        turns = self._turns[method]
        line = turns[0]
        inputs = line.inputs
        input = inputs.popleft()
        self.ready -= 1
        if self._by_method:
            self._counts[method] -= 1
        if line.gone:
            line.trim()
        if not inputs:
            turns.popleft()
            self._close(line)
        elif len(turns) > 1:
            turns.rotate(-1)
            self._turn = line.turn = self._turn + 1
        if self._empty:
            self._trim(turns)
        return input

    def withdraw(self, input: Input) -> None:
        """Takes out one that was closed while it waited."""
        if input in self.suspects:
            self.pop_suspect(input)
        elif input in self._late:
            del self._late[input]
            self.aside -= 1
            if len(self._delayed) > SLACK + 2 * len(self._late):
                self._delayed = [entry for entry in self._delayed if entry[2] in self._late]
                heapify(self._delayed)
        else:
            call = input.call
            line = self._lines[call]
            line.withdraw(input)
            self.ready -= 1
            if self._by_method:
                self._counts[call.method] -= 1
            if not line.inputs:
                self._empty += 1
                self._close(line)
                self._trim(self._turns[call.method if self._by_method else ""])

    def pop_suspect(self, suspect: Input) -> None:
        """One of those that run alone has got its place."""
        del self.suspects[suspect]
        self.aside -= 1

    # ------------------------------------------------------------ who is next

    def calls(self) -> list[Call]:
        """The calls with ready inputs."""
        return list(self._lines)

    def of(self, call: Call) -> Iterator[Input]:
        """The ready inputs of one call, in their order."""
        line = self._lines.get(call)
        return iter(()) if line is None else (input for input in line.inputs if not input.closed)

    def first(self) -> Input:
        """The one that `pop` gives next."""
        return self._turns[""][0].inputs[0]

    def next_method(self, without: Collection[str]) -> str | None:
        """The method whose call has its turn next; only where methods are asked for one by one."""
        best: str | None = None
        least = 0
        for method, turns in self._turns.items():
            if turns and method not in without and (best is None or turns[0].turn < least):
                best, least = method, turns[0].turn
        return best

    def waiting(self, method: str) -> int:
        """Ready inputs of a method; only where methods are asked for one by one."""
        return self._counts.get(method, 0)

    @property
    def next_wake(self) -> float | None:
        return self._delayed[0][0] if self._late else None

    # ------------------------------------------------------------ inside

    def _open(self, call: Call, last: bool) -> Line:
        method = call.method if self._by_method else ""
        turns = self._turns.get(method)
        if turns is None:
            turns = self._turns[method] = deque()
            self._counts[method] = 0
        if last:
            self._turn += 1
            line = Line(call, self._turn)
            turns.append(line)
        else:
            self._front -= 1
            line = Line(call, self._front)
            turns.appendleft(line)
        self._lines[call] = line
        if call.parent:
            self.parents[call.parent] = self.parents.get(call.parent, 0) + 1
        return line

    def _close(self, line: Line) -> None:
        del self._lines[line.call]
        parent = line.call.parent
        if parent:
            self.parents[parent] -= 1
            if not self.parents[parent]:
                del self.parents[parent]

    def _trim(self, turns: deque[Line]) -> None:
        """Brings a line to the front that has inputs."""
        while turns and not turns[0].inputs:
            turns.popleft()
            self._empty -= 1
        if self._empty > SLACK + len(self._lines):
            self._empty = 0
            for method, all_lines in self._turns.items():
                self._turns[method] = deque(line for line in all_lines if line.inputs)
