"""Async code on both sides: tasks on one event loop in the container, `.aio` and `spawn` at the caller.

    kedge run examples/async_calls.py

An `async def` function with `@kedge.concurrent` works on all its inputs on one loop, without threads. Every call has an
`.aio` form, so an async caller waits for many things at once. `spawn` starts a call and gives back a handle for later.
"""

from __future__ import annotations

import asyncio

import kedge

app = kedge.App("async-calls")

at_once = 0
peak = 0


@app.function(max_containers=1)
@kedge.concurrent(max_inputs=20)
async def wait_and_double(number: int) -> tuple[int, int]:
    """Twice the number, and how many inputs the container has worked on at once so far."""
    global at_once, peak
    at_once += 1
    peak = max(peak, at_once)
    await asyncio.sleep(0.2)
    at_once -= 1
    return 2 * number, peak


@app.local_entrypoint()
async def main() -> None:
    """Waits for calls one at a time, together, as a map, and later."""
    doubled, _ = await wait_and_double.remote.aio(21)
    print(f"one call: {doubled}")

    together = await asyncio.gather(*(wait_and_double.remote.aio(number) for number in range(20)))
    print(f"gather: {sum(value for value, _ in together)}, at most {max(most for _, most in together)} at once")

    total = 0
    async for value, _ in wait_and_double.map.aio(range(40)):
        total += value
    print(f"map: {total}")

    handle = await wait_and_double.spawn.aio(50)
    print("spawned: a handle now, the result later")
    value, _ = await handle.get.aio()
    print(f"result: {value}")
