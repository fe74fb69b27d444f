"""User code that asks its own container for something, and holds on until the test lets it go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import warnings

from shop import allowed, note

import kedge
from kedge.exception import ExecutionError
from kedge.experimental import get_local_input_concurrency, set_local_input_concurrency, stop_fetching_inputs
from kedge.sdk.dual import Dual

app = kedge.App("levers")


inside = 0
counting = threading.Lock()


def on_main():
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def begun(name):
    """Gives how many inputs are here with this one."""
    global inside
    with counting:
        inside += 1
        together = inside
    note(f"begin {name}")
    try:
        yield together
    finally:
        with counting:
            inside -= 1


async def allowed_async(name):
    while not os.path.exists(f"{os.environ['JOURNAL']}.{name}"):
        await asyncio.sleep(0.005)


@app.function()
def hold(name):
    with begun(name) as together:
        allowed(name)
    return on_main(), together


@app.function()
async def hold_async(name):
    with begun(name) as together:
        await allowed_async(name)
    return on_main(), together


@app.function()
def set_and_hold(number, name):
    """What the container took before and after, and how many were inside."""
    before = get_local_input_concurrency()
    if number:
        set_local_input_concurrency(number)
    after = get_local_input_concurrency()
    with begun(name) as together:
        allowed(name)
    return before, after, together


@app.function()
async def set_and_hold_async(number, name):
    before = get_local_input_concurrency()
    if number:
        set_local_input_concurrency(number)
    after = get_local_input_concurrency()
    with begun(name) as together:
        await allowed_async(name)
    return before, after, together


@app.function()
def set_when_allowed(number, name):
    note(f"begin {name}")
    allowed(name)
    if number:
        set_local_input_concurrency(number)
        note(f"set {number}")
        allowed(f"{name} again")
    return get_local_input_concurrency()


@app.function()
def stop_and_hold(name):
    stop_fetching_inputs()
    stop_fetching_inputs()
    note(f"begin {name}")
    allowed(name)
    return name


@app.function()
async def stop_and_hold_async(name):
    stop_fetching_inputs()
    note(f"begin {name}")
    await allowed_async(name)
    return name


@app.function()
def set_elsewhere(number):
    """From a thread that belongs to no input."""
    thread = threading.Thread(target=set_local_input_concurrency, args=(number,))
    thread.start()
    thread.join()
    return get_local_input_concurrency()


@app.function()
def ask_in_a_child():
    child = os.fork()
    if not child:
        try:
            stop_fetching_inputs()
        except ExecutionError as error:
            note(error)
        os._exit(0)
    os.waitpid(child, 0)
    return get_local_input_concurrency()


@app.function()
def pester(number):
    """Asks all the time while it is interrupted."""
    try:
        note(f"begin {number}")
        while True:
            set_local_input_concurrency(1)
            set_local_input_concurrency(2)
    finally:
        note(f"end {number}")


@app.cls()
class Hooked:
    @kedge.enter()
    def load(self):
        try:
            set_local_input_concurrency(2)
        except ExecutionError as error:
            note(error)

    @kedge.method()
    def hold(self, name):
        with begun(name) as together:
            allowed(name)
        return on_main(), together

    @kedge.method()
    async def hold_async(self, name):
        with begun(name) as together:
            await allowed_async(name)
        return on_main(), together

    @kedge.exit()
    def leave(self):
        stop_fetching_inputs()
        note(f"left with {get_local_input_concurrency()}")


class Harbour:
    """Has a call in two forms, as handles do."""

    name = "harbour"

    def _wait(self, name):
        note(f"blocks {name}")
        allowed(name)

    async def _wait_async(self, name):
        await allowed_async(name)

    wait = Dual(_wait, _wait_async)


@app.function()
async def block_by_call(name):
    note(f"begin {name}")
    with warnings.catch_warnings():  # many libraries do this, and Python then warns once more
        warnings.simplefilter("always")
        warnings.showwarning = lambda text, kind, file, line, *_: note(
            f"{kind.__name__} {os.path.basename(file)}:{line} {text}"
        )
        Harbour().wait(name)
    return name


@app.function()
def block_in_loop_of_its_own(name):
    """In the thread of a slot: nobody else is held up."""

    async def wait():
        warnings.simplefilter("ignore")
        Harbour().wait(name)

    asyncio.run(wait())
    return name
