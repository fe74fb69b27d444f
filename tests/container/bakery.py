"""Batched user code for containers under test: it takes lists, and gives a list."""

from __future__ import annotations

import asyncio
import os
import threading

import shop
from shop import allowed, async_barrier, barrier, counted, note

import kedge
from kedge.sdk import context

app = kedge.App("bakery")
in_batches = kedge.batched(max_batch_size=1000, wait_ms=10)


@app.function()
@in_batches
def square(xs):
    return [x * x for x in xs]


@app.function()
@in_batches
async def square_async(xs):
    await asyncio.sleep(0)
    return [x * x for x in xs]


@app.function()
@in_batches
def awaited(xs):
    """A plain function that returns a coroutine."""
    return square_async.get_raw_f()(xs)


@app.function()
@in_batches
def facts(xs):
    """What user code sees of its batch: the same for each member."""
    current = context.current_input()
    main = threading.current_thread() is threading.main_thread()
    return [(len(xs), kedge.current_input_id(), current.lease, current.members, main)] * len(xs)


@app.function()
@in_batches
def bake(flour, *, degrees):
    note(f"{len(flour)} at {degrees}")
    return list(zip(flour, degrees, strict=True))


@app.function()
@in_batches
def wrapped(*args, **kwargs):
    """As behind a decorator that hides what it decorates."""
    note(sorted([len(args), *kwargs], key=str))
    return list(zip(*args, *kwargs.values(), strict=True))


@app.function()
@in_batches
def wrong(kinds):
    values = {
        "none": None,
        "tuple": tuple(kinds),
        "short": [1],
        "long": [1] * 9,
        "number": 7,
        "generator": (kind for kind in kinds),
    }
    if kinds[0] == "raise":
        raise ValueError("the oven is cold")
    if kinds[0] == "exit":
        raise SystemExit(3)
    if kinds[0] == "locks":
        return [threading.Lock() if kind == "lock" else kind for kind in kinds]
    return values[kinds[0]]


@app.function()
@in_batches
async def wrong_async(kinds):
    return wrong.get_raw_f()(kinds)


@app.function()
@in_batches
def meet(parties):
    """Comes back only when so many batches are here at once: how many were."""
    with counted():
        barrier(parties[0]).wait(30)
        return [shop.peak] * len(parties)


@app.function()
@in_batches
async def meet_async(parties):
    with counted():
        await async_barrier(parties[0]).wait()
        return [shop.peak] * len(parties)


@app.function()
@in_batches
def wait(names):
    """Ends when the test says so; notes how it was interrupted."""
    note(f"begin {' '.join(names)}")
    try:
        allowed(names[0])
    except BaseException as error:
        note(f"{type(error).__name__} {' '.join(names)}")
        raise
    return [name.upper() for name in names]


@app.function()
@in_batches
async def wait_async(names):
    note(f"begin {' '.join(names)}")
    try:
        while True:
            await asyncio.sleep(0.005)
            if os.path.exists(f"{os.environ['JOURNAL']}.{names[0]}"):
                return [name.upper() for name in names]
    except BaseException as error:
        note(f"{type(error).__name__} {' '.join(names)}")
        raise


@app.cls()
class Oven:
    degrees: int = kedge.parameter(default=200)

    @in_batches
    def bake(self, loaves):
        return [f"{loaf} at {self.degrees}" for loaf in loaves]
