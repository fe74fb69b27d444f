"""User code for containers under test. `note` is how it tells a test what happened: lines in the file $JOURNAL."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from time import sleep as sleep_by_name

import kedge

app = kedge.App("shop")
seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")
gates: dict[str, threading.Event] = {}
async_gates: dict[str, asyncio.Event] = {}
imported_on_main = threading.current_thread() is threading.main_thread()
running = 0
peak = 0
counting = threading.Lock()


def note(text: object) -> None:
    journal = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(journal, f"{text}\n".encode())
    os.close(journal)


def allowed(name: str) -> None:
    """Blocks this thread until the test says `plane.allow(name)`."""
    deadline = time.monotonic() + 60
    while not is_allowed(name) and time.monotonic() < deadline:
        time.sleep(0.005)


def is_allowed(name: str) -> bool:
    return os.path.exists(f"{os.environ['JOURNAL']}.{name}")


def gate(name: str) -> threading.Event:
    return gates.setdefault(name, threading.Event())


@contextlib.contextmanager
def counted():
    global running, peak
    with counting:
        running += 1
        peak = max(peak, running)
    try:
        yield
    finally:
        with counting:
            running -= 1


@app.function()
def square(x):
    return x * x


@app.function()
async def square_async(x):
    await asyncio.sleep(0)
    return x * x


@app.function()
def twice(data):
    return data + data


@app.function()
def where(x=None):
    """What an input sees of itself."""
    before = seen.get()
    seen.set(f"set by {kedge.current_input_id()}")
    return {
        "input": kedge.current_input_id(),
        "call": kedge.current_function_call_id(),
        "thread": threading.get_ident(),
        "main": threading.current_thread() is threading.main_thread(),
        "imported on main": imported_on_main,
        "local": kedge.is_local(),
        "before": before,
    }


@app.function()
def snooze(name):
    try:
        note(f"begin {name}")  # inside, since a cancel may come right after it
        time.sleep(60)
    except BaseException as error:
        note(f"{type(error).__name__} {name}")
        raise
    finally:
        note(f"finally {name}")
    return name


@app.function()
def spin(name):
    x = 0
    try:
        note(f"begin {name}")
        while not gate(name).is_set():
            x += 1
    except BaseException as error:
        note(f"{type(error).__name__} {name}")
        raise
    return name


@app.function()
def swallow(name):
    try:
        note(f"begin {name}")
        time.sleep(60)
    except BaseException:
        return "swallowed"


@app.function()
async def snooze_async(name):
    note(f"begin {name}")
    try:
        await asyncio.sleep(60)
    except BaseException as error:
        note(f"{type(error).__name__} {name}")
        raise
    return name


@app.function()
async def block_loop(name):
    note(f"begin {name}")
    allowed(name)
    return name


@app.function()
def meet(parties):
    """Comes back only when `parties` inputs are here at once: how many were, and who."""
    with counted():
        barrier(parties).wait(30)
        return peak, kedge.current_input_id(), threading.get_ident()


@app.function()
async def meet_async(parties):
    with counted():
        await async_barrier(parties).wait()
        return peak, kedge.current_input_id(), threading.get_ident()


@app.function()
async def meet_in_threads(parties):
    """Each input waits in a thread of the loop's."""
    await asyncio.to_thread(barrier(parties).wait, 30)
    return parties


barriers: dict[int, threading.Barrier] = {}
async_barriers: dict[int, asyncio.Barrier] = {}


def barrier(parties):
    return barriers.setdefault(parties, threading.Barrier(parties))


def async_barrier(parties):
    return async_barriers.setdefault(parties, asyncio.Barrier(parties))


@app.function()
def fail(kind):
    def deeper():
        raise ValueError("the oven is cold")

    if kind == "value":
        deeper()
    if kind == "exit":
        sys.exit(3)
    if kind == "interrupt":
        raise KeyboardInterrupt("by hand")
    if kind == "cancelled":
        raise asyncio.CancelledError("by hand")
    if kind == "unpicklable":
        return threading.Lock()
    if kind == "fork":
        process = os.fork()
        if process:
            os.waitpid(process, 0)
        return os.getpid()
    return "fine"


@app.function()
async def fail_async(kind):
    return fail.get_user_code()(kind)


@app.function()
def returns_coroutine(x):
    async def inner():
        await asyncio.sleep(0)
        return x + 1

    return inner()


@app.function()
def count_to(n):
    try:
        for i in range(n):
            note(f"yield {i}")
            yield i
    except BaseException as error:
        note(type(error).__name__)
        raise
    finally:
        note("closed")


@app.function()
async def count_to_async(n):
    try:
        for i in range(n):
            note(f"yield {i}")
            yield i
            await asyncio.sleep(0)
    except BaseException as error:
        note(type(error).__name__)
        raise
    finally:
        note("closed")


@app.function()
def broken_stream(n):
    try:
        yield from range(n)
        yield threading.Lock()
    finally:
        note("closed")


@app.function()
async def broken_stream_async(n):
    try:
        for i in range(n):
            yield i
        yield threading.Lock()
    finally:
        await asyncio.sleep(0)
        note("closed")


@app.function()
def first_then_fast(name):
    if name:
        note(f"begin {name}")
        allowed(name)
    return name


@app.function()
def with_thread():
    threading.Thread(target=time.sleep, args=(60,), daemon=False).start()
    return "started"


# ---------------------------------------------------------------- time and waiting


def nap(name, seconds):
    try:
        note(f"begin {name}")
        time.sleep(seconds)
    except BaseException as error:
        note(f"{type(error).__name__} {name}")
        raise
    return name


async def nap_async(name, seconds):
    try:
        note(f"begin {name}")
        await asyncio.sleep(seconds)
    except BaseException as error:
        note(f"{type(error).__name__} {name} {error}")
        raise
    return name


app.function(name="nap")(nap)
app.function(name="nap_async")(nap_async)


class SlowToLoad:
    def __reduce__(self):
        return load_slowly, ("loaded",)


def load_slowly(value):
    time.sleep(1)
    return value


# Takes its arguments as they come, however long that takes.
app.function(name="name_of")(lambda value: value)

condition = threading.Condition()
locked = threading.Lock()
locked.acquire()


def in_a_child(**streams):
    with subprocess.Popen(["sleep", "60"], **streams) as child:
        note(f"child {child.pid}")
        try:
            child.communicate()
        except BaseException:
            child.kill()
            raise


async def asleep():
    try:
        note("begin coroutine")
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        note("the coroutine too")
        raise


WAITS = {
    "sleep": lambda: time.sleep(60.5),
    "sleep by name": lambda: sleep_by_name(60),
    "event": lambda: threading.Event().wait(),
    "event with a timeout": lambda: threading.Event().wait(60),
    "queue": lambda: queue.Queue().get(),
    "semaphore": lambda: threading.Semaphore(0).acquire(),
    "future": lambda: Future().result(),
    "child": lambda: subprocess.run(["sleep", "60"]),
    "child with a timeout": lambda: subprocess.run(["sleep", "60"], timeout=60),
    "one pipe": lambda: in_a_child(stdout=subprocess.PIPE),
    "two pipes": lambda: in_a_child(stdout=subprocess.PIPE, stderr=subprocess.PIPE),
    "shell": lambda: subprocess.check_output("sleep 60 | cat", shell=True),
    "coroutine": asleep,
}


@app.function()
def wait_for(how):
    if how not in WAITS:
        return how
    if how == "coroutine":
        return asleep()
    try:
        note(f"begin {how}")
        WAITS[how]()
    except BaseException as error:
        note(f"{type(error).__name__} {how}")
        time.sleep(0.001)  # cleaning up may wait
        raise
    return how


@app.function()
def wait_notified(name):
    """Waits for one notification of the shared condition; with an empty name, gives one."""
    with condition:
        if name:
            note(f"begin {name}")
            condition.wait(60)
        else:
            condition.notify(1)
    return name


@app.function()
def sleep_in_a_thread():
    """Its own thread sleeps on when the input is cancelled."""

    def child():
        began = time.monotonic()
        time.sleep(0.2)
        note(f"its thread slept to the end: {time.monotonic() - began >= 0.2}")

    thread = threading.Thread(target=child)
    thread.start()
    note("begin")
    time.sleep(60)


@app.function()
def sleep_facts():
    """How time.sleep answers in this thread, where waits can be interrupted, and in a thread of its own."""

    class Clock:
        sleep = time.sleep

    def attempt(*args, **kwargs):
        try:
            return time.sleep(*args, **kwargs)
        except Exception as error:
            return type(error).__name__, "" if kwargs or len(args) != 1 else str(error)

    def facts():
        before = time.monotonic()
        time.sleep(0.05)
        slept = time.monotonic() - before
        odd = [attempt(x) for x in (0, -1, -0.5, "1", None, float("nan"), 0.001, True * 0, 1e300)]
        return [slept >= 0.05, *odd, attempt(), attempt(1, 2), attempt(seconds=1), Clock().sleep(0)]

    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(facts()))
    thread.start()
    thread.join()
    same = pickle.loads(pickle.dumps(time.sleep))
    return facts(), elsewhere[0], same == time.sleep, time.sleep.__name__, bool(time.sleep.__doc__)


@app.function()
def output_of_children():
    """What subprocess gives with each combination of pipes."""
    pipe = subprocess.PIPE
    script = "read x; echo out $x; echo err >&2; exit 3"
    found = []
    for streams in ({}, {"stdout": pipe}, {"stderr": pipe}, {"stdout": pipe, "stderr": pipe}):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        done = subprocess.run(["sh", "-c", script], text=True, **(quiet | streams))
        found.append((done.returncode, done.stdout, done.stderr))
        fed = subprocess.Popen(["sh", "-c", script], text=True, **(quiet | streams | {"stdin": pipe}))
        found.append((*fed.communicate("fed\n"), fed.wait(), fed.returncode))
    return found


@app.cls()
class Stubborn:
    """Ignores what it is told until the test allows it to end."""

    @kedge.method()
    def hold(self, name):
        """No exception reaches this wait in a thread."""
        note(f"begin {name}")
        while True:
            try:
                return locked.acquire()
            except BaseException:
                note(f"ignored {name}")

    @kedge.method()
    async def hold_async(self, name):
        note(f"begin {name}")
        while True:
            try:
                return await asyncio.sleep(60)
            except BaseException:
                note(f"ignored {name}")

    @kedge.method()
    async def block(self, name):
        note(f"begin {name}")
        locked.acquire()

    @kedge.method()
    def tidy(self, name):
        try:
            note(f"begin {name}")
            time.sleep(60)
        finally:
            note(f"tidying {name}")
            allowed(name)
            note(f"tidy {name}")

    @kedge.method()
    def nap(self, name, seconds):
        return nap(name, seconds)

    @kedge.method()
    async def nap_async(self, name, seconds):
        return await nap_async(name, seconds)

    @kedge.exit()
    def close(self):
        note("exit sync")

    @kedge.exit()
    async def close_async(self):
        await asyncio.sleep(0)
        note("exit async")


@app.cls()
class Counter:
    start: int = kedge.parameter(default=0)

    @kedge.enter()
    def open(self):
        note("enter sync")
        self.total = self.start
        self.main = threading.get_ident()

    @kedge.enter()
    async def open_async(self):
        await asyncio.sleep(0)
        self.loop = asyncio.get_running_loop()
        note("enter async")

    @kedge.method()
    def add(self, x):
        note(f"add {x}")
        self.total += x
        return self.total

    @kedge.method()
    async def add_async(self, x):
        await asyncio.sleep(0)
        assert asyncio.get_running_loop() is self.loop
        self.total += x
        return self.total

    @kedge.method()
    def place(self):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return threading.get_ident() == self.main
        return "a loop runs here"

    @kedge.method()
    async def place_async(self):
        return threading.get_ident() == self.main

    @kedge.method()
    def rest(self, name):
        note(f"begin {name}")
        gate(name).wait(60)
        return name

    @kedge.method()
    async def release(self, name):
        gate(name).set()

    @kedge.exit()
    def close(self):
        note("exit sync")

    @kedge.exit()
    async def close_async(self):
        await asyncio.sleep(0)
        note("exit async")


@app.cls()
class Broken:
    @kedge.enter()
    def open(self):
        raise RuntimeError("no fuel")

    @kedge.method()
    def go(self):
        return "never"


@app.cls()
class Paced:
    """Its hooks last until the test allows them to end."""

    @kedge.enter()
    def open(self):
        note("entering")
        allowed("enter")
        note("entered")

    @kedge.method()
    def go(self):
        return "went"

    @kedge.exit()
    def close(self):
        note("leaving")
        allowed("exit")
        note("left")
