"""Values that come while the function still runs: `.remote_gen` gives each one as soon as it is there.

    kedge run examples/generator.py

The container runs ahead of its reader by a bounded number of values only, so an endless generator is no problem: when
the loop here stops, the generator over there is closed. A generator holds its slot to the end.
"""

from __future__ import annotations

from collections.abc import Iterator

import kedge

app = kedge.App("generator")


@app.function()
def collatz(start: int) -> Iterator[int]:
    """The numbers on the way to 1."""
    number = start
    while number != 1:
        yield number
        number = number // 2 if number % 2 == 0 else 3 * number + 1
    yield 1


@app.function()
def squares() -> Iterator[int]:
    """All square numbers, without an end."""
    root = 0
    while True:
        yield root * root
        root += 1


@app.local_entrypoint()
def main(start: int = 27) -> None:
    """Reads one generator to its end, and the first values of one that has none."""
    steps = list(collatz.remote_gen(start))
    print(f"from {start} to 1 in {len(steps) - 1} steps, by way of {max(steps)}")
    first = []
    for square in squares.remote_gen():
        first.append(square)
        if len(first) == 10:
            break
    print("first squares:", *first)
