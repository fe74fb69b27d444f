"""User code that asks whether it is still wanted, holds interruptions back, or does the wrong thing with them."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import ssl
import sys
import threading
import time
import urllib.request

from shop import allowed, is_allowed, note

import kedge

app = kedge.App("protected")


def until_told() -> str:
    """Works on until it is known that nobody wants this any more: why not."""
    deadline = time.monotonic() + 60
    current = kedge.current_input()
    while not current.cancelled and time.monotonic() < deadline:
        time.sleep(0.002)
    return current.cancelled


async def until_told_async() -> str:
    deadline = time.monotonic() + 60
    current = kedge.current_input()
    while not current.cancelled and time.monotonic() < deadline:
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.01)  # whatever is to come for the task has come
    return current.cancelled


def noted(name: str, error: BaseException) -> None:
    context = type(error.__context__).__name__ if error.__context__ else "nothing"
    note(f"{type(error).__name__} {name} in the context of {context}")


# ---------------------------------------------------------------- shields


def hold(name):
    with kedge.shield():
        note(f"begin {name}")
        note(f"kept {name} although {until_told()}")
    note(f"{name} went on")


def hold_nested(name):
    with kedge.shield():
        with kedge.shield():
            note(f"begin {name}")
            until_told()
        note(f"kept {name} although told")
    note(f"{name} went on")


def hold_and_fail(name):
    with kedge.shield():
        note(f"begin {name}")
        until_told()
        raise ValueError("spilt")


def hold_twice(name):
    """The second block comes when it has been told: nothing is left to hold back."""
    try:
        hold(name)
    except BaseException as error:
        noted(name, error)
    with kedge.shield():
        pass
    note(f"{name} has cleaned up")


def hold_later(name):
    """Told before the block begins, in code that nothing wakes."""
    note(f"begin {name}")
    until_told()
    with kedge.shield():
        note(f"{name} went on")


def hold_elsewhere(name):
    """A shield in a thread of the input does nothing for the input."""

    def child():
        with kedge.shield():
            entered.set()
            time.sleep(0.2)
            note("its thread was not interrupted")

    entered = threading.Event()
    thread = threading.Thread(target=child)
    thread.start()
    entered.wait()
    note(f"begin {name}")
    time.sleep(60)


def hold_a_generator(name):
    with kedge.shield():
        note(f"begin {name}")
        yield 1
        until_told()
        yield 2
        note(f"kept {name} although told")
    note(f"{name} went on")
    yield 3


def hold_a_full_stream(name):
    """Nobody takes its values: it stands in a shielded block when it is told."""
    with kedge.shield():
        for i in range(70):
            if i == 64:
                note(f"begin {name}")
            yield i
        note(f"kept {name} although told")
    note(f"{name} went on")


async def hold_async(name):
    async with kedge.shield():
        note(f"begin {name}")
        note(f"kept {name} although {await until_told_async()}")
    note(f"{name} went on")


def hold_in_a_coroutine(name):
    return hold_async(name)


async def hold_plain(name):
    with kedge.shield():
        note(f"begin {name}")
        note(f"kept {name} although {await until_told_async()}")
    note(f"left {name}")
    await asyncio.sleep(0)
    note(f"{name} went on")


async def hold_nested_async(name):
    async with kedge.shield():
        async with kedge.shield():
            note(f"begin {name}")
            await until_told_async()
        await asyncio.sleep(0)
        note(f"kept {name} although told")
    note(f"{name} went on")


async def hold_and_fail_async(name):
    async with kedge.shield():
        note(f"begin {name}")
        await until_told_async()
        raise ValueError("spilt")


async def hold_a_task(name):
    async def child():
        async with kedge.shield():
            note(f"begin {name}")
            await until_told_async()
            note(f"kept {name} although told")

    await asyncio.gather(child(), asyncio.sleep(60))
    note(f"{name} went on")


async def hold_a_generator_async(name):
    async with kedge.shield():
        note(f"begin {name}")
        yield 1
        await until_told_async()
        yield 2
        note(f"kept {name} although told")
    note(f"{name} went on")
    yield 3


async def hold_a_full_stream_async(name):
    try:
        with kedge.shield():
            for i in range(70):
                if i == 64:
                    note(f"begin {name}")
                yield i
            note(f"kept {name} although told")
        yield 70
        note(f"{name} went on")
    finally:
        await asyncio.sleep(0.01)
        note(f"{name} has cleaned up")


async def hold_in_an_executor(name):
    """A shield in a thread of an asynchronous input does nothing for the input."""

    def child():
        with kedge.shield():
            loop.call_soon_threadsafe(entered.set)
            time.sleep(0.2)
            note("its thread was not interrupted")

    loop, entered = asyncio.get_running_loop(), asyncio.Event()
    waiting = asyncio.ensure_future(asyncio.to_thread(child))
    await entered.wait()
    note(f"begin {name}")
    try:
        await asyncio.sleep(60)
    finally:
        await waiting


@app.function()
def tell(how):
    """Runs the function of this name, and notes how it ends."""
    try:
        value = globals()[how](how)
        return tell_of_coroutine(how, value) if asyncio.iscoroutine(value) else value
    except BaseException as error:
        noted(how, error)
        raise


@app.function()
async def tell_async(how):
    await tell_of_coroutine(how, globals()[how](how))


async def tell_of_coroutine(how, coroutine):
    try:
        await coroutine
    except BaseException as error:
        noted(how, error)
        raise


@app.function()
def tell_values(how):
    yield from globals()[how](how)


@app.function()
async def tell_values_async(how):
    values = globals()[how](how)
    try:
        async for value in values:
            yield value
    except BaseException as error:
        await values.athrow(error)
        raise


@app.function()
def hammer(name):
    """Goes in and out of a shielded block until it is told: whether it was in the middle of one."""
    inside = False
    try:
        note(f"begin {name}")
        while True:
            with kedge.shield():
                inside = True
                for _ in range(3):
                    min(1, 2)
                inside = False
    except kedge.exception.InputCancellation:
        note(f"{name} was {'torn' if inside else 'left alone'} inside")
        raise


@app.function()
def facts_of_shields():
    """What a shield is outside of blocks, and when it is used twice."""
    shield = kedge.shield()
    with shield:
        pass
    with shield:
        try:
            with shield:
                return "entered twice"
        except kedge.exception.ExecutionError as error:
            return str(error)


# ---------------------------------------------------------------- sockets


@contextlib.contextmanager
def tcp_pair():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
        server.accept()[0] as theirs,
    ):
        yield ours, theirs


@contextlib.contextmanager
def tls_pair(answer=True):
    """Both ends of a connection that encrypts without certificates, the other end in a thread."""
    theirs_then = queue.Queue()
    with contextlib.ExitStack() as stack:
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
        sides = []
        for kind in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
            side = ssl.SSLContext(kind)
            side.check_hostname = False
            side.verify_mode = ssl.CERT_NONE
            side.maximum_version = ssl.TLSVersion.TLSv1_2
            side.set_ciphers("aNULL:@SECLEVEL=0")
            sides.append(side)
        if answer:
            threading.Thread(target=answer_tls, args=(sides[0], theirs, theirs_then), daemon=True).start()
        ours = stack.enter_context(sides[1].wrap_socket(ours))
        yield ours, stack.enter_context(theirs_then.get())


def answer_tls(side, sock, then):
    with contextlib.suppress(OSError):
        then.put(side.wrap_socket(sock, server_side=True))


def receive(pair, **arguments):
    with pair(**arguments) as (ours, _):
        note("receives")
        ours.recv(10)


def send_until_full(pair):
    with pair() as (ours, _):
        while True:
            ours.sendall(b"x" * 1_000_000)


def read_a_file():
    with tcp_pair() as (ours, _), ours.makefile("rb") as file:
        file.readline()


def accept():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.accept()


def connect_to_a_full_server():
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            other = stack.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(server.getsockname())
        stack.enter_context(socket.socket()).connect(server.getsockname())


def ask_a_silent_server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        urllib.request.urlopen(f"http://127.0.0.1:{server.getsockname()[1]}/")


def receive_a_datagram():
    with socket.socket(type=socket.SOCK_DGRAM) as ours:
        ours.bind(("127.0.0.1", 0))
        ours.recvfrom(10)


def receive_with_a_timeout():
    with tcp_pair() as (ours, _):
        ours.settimeout(60)
        ours.recv(10)


def receive_and_catch():
    """What is raised is the interruption, and not what the socket says of its end."""
    with tcp_pair() as (ours, _):
        try:
            ours.recv_into(bytearray(10))
            note("the end was taken for that of the peer")
        except OSError:
            note("the end was taken for an error")


SOCKET_WAITS = {
    "recv": lambda: receive(tcp_pair),
    "timeout": receive_with_a_timeout,
    "catch": receive_and_catch,
    "file": read_a_file,
    "accept": accept,
    "connect": connect_to_a_full_server,
    "send": lambda: send_until_full(tcp_pair),
    "datagram": receive_a_datagram,
    "http": ask_a_silent_server,
    "handshake": lambda: receive(tls_pair, answer=False),
    "tls read": lambda: receive(tls_pair),
    "tls send": lambda: send_until_full(tls_pair),
}


@app.function()
def wait_for_a_socket(how):
    if how == "names":
        return list(SOCKET_WAITS)
    try:
        note(f"begin {how}")
        SOCKET_WAITS[how]()
        note(f"came back from {how}")
    except BaseException as error:
        noted(how, error)
        raise


@app.function()
def facts_of_sockets():
    """Sockets do what they do elsewhere: data, ends, errors, time limits, and no time at all."""
    found = []
    with tcp_pair() as (ours, theirs):
        theirs.sendall(b"hello")
        found.append(ours.recv(10))
        ours.settimeout(0.01)
        for attempt in (ours.recv, ours.makefile("rb").readline):
            try:
                attempt(10)
            except TimeoutError as error:
                found.append(str(error))
        ours.setblocking(False)
        try:
            ours.recv(10)
        except OSError as error:
            found.append(type(error).__name__)
        theirs.close()
        ours.setblocking(True)
        found.append(ours.recv(10))
    try:
        socket.create_connection(("127.0.0.1", 1))
    except OSError as error:
        found.append(type(error).__name__)
    with tls_pair() as (ours, theirs):
        ours.sendall(b"secret")
        found.append(theirs.recv(6))
    return found


# ---------------------------------------------------------------- too long


@app.function()
def linger(name):
    """Told to end, it takes as long as the test says."""
    try:
        note(f"begin {name}")
        time.sleep(60)
    finally:
        note(f"lingers {name}")
        if name != "short":
            allowed(name)


@app.function()
async def linger_async(name):
    try:
        note(f"begin {name}")
        await asyncio.sleep(60)
    finally:
        note(f"lingers {name}")
        while name != "short" and not is_allowed(name):
            await asyncio.sleep(0.005)


@app.function()
async def block_in(name):
    """Blocks the loop, in a task of its own where the name says so."""
    if name == "nothing":
        return
    note(f"begin {name}")
    await (asyncio.create_task(block(name)) if "task" in name else block(name))


async def block(name):
    allowed(name)


# ---------------------------------------------------------------- code that gets in the way of its interruption


class Farewell:
    def __init__(self, name):
        self.name = name

    def __del__(self):
        note(f"begin {self.name}")
        print("the last words of", self.name, file=sys.stderr)
        until_told()
        time.sleep(60)
        note("its finalizer was not interrupted")


@app.function()
def finalize(name):
    try:
        Farewell(name)
        note(f"{name} went on")
        time.sleep(60)
    except BaseException as error:
        noted(name, error)
        raise


class Held:
    def __del__(self):
        note(f"gone with {kedge.current_input_id()}")


@app.function()
def hold_something(how):
    _kept = Held()
    note(f"begin {how}")
    if how == "fail":
        raise ValueError(how)
    time.sleep(60)


@app.function()
async def hold_something_async(how):
    _kept = Held()
    note(f"begin {how}")
    if how == "fail":
        raise ValueError(how)
    await asyncio.sleep(60)


@app.function()
def start_threads(name):
    try:
        note(f"begin {name}")
        while True:
            threading.Thread(target=min, args=(1, 2)).start()
            for _ in range(50_000):
                pass
    except BaseException as error:
        noted(name, error)
        raise


@app.function()
def fail_on_cancel(name):
    try:
        note(f"begin {name}")
        time.sleep(60)
    except BaseException:
        raise ValueError("while cleaning up") from None


@app.function()
async def fail_on_cancel_async(name):
    try:
        note(f"begin {name}")
        await asyncio.sleep(60)
    except BaseException:
        raise ValueError("while cleaning up") from None


@app.function()
async def shrug(name):
    """Swallows its cancellation and goes on as if nothing had happened."""
    note(f"begin {name}")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(0.01)
    return "done"


@app.function()
def raise_by_itself(what):
    raise {
        "CancelledError": asyncio.CancelledError,
        "InputCancellation": kedge.exception.InputCancellation,
        "InputTimeout": kedge.exception.InputTimeout,
    }[what]("by hand")


@app.function()
async def raise_by_itself_async(what):
    if what == "another task":
        task = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task
    raise_by_itself.local(what)


@app.cls()
class Mixed:
    @kedge.method()
    def sync(self, name):
        try:
            note(f"begin {name}")
            while not is_allowed(name):
                time.sleep(0.002)
        except BaseException as error:
            note(f"{type(error).__name__} {name}")
            raise
        return name

    @kedge.method()
    async def coro(self, name):
        try:
            note(f"begin {name}")
            while not is_allowed(name):
                await asyncio.sleep(0.002)
        except BaseException as error:
            note(f"{type(error).__name__} {name}")
            raise
        return name


# ---------------------------------------------------------------- the input of this code


def facts():
    current = kedge.current_input()
    return {
        "id": current.id,
        "call_id": current.call_id,
        "index": current.index,
        "attempt": current.attempt,
        "method": current.method,
        "ids": current.ids,
        "cancelled": current.cancelled,
        "remaining": current.remaining,
        "same": (current.id, current.call_id) == (kedge.current_input_id(), kedge.current_function_call_id()),
    }


@app.function()
def facts_of_the_input():
    return facts()


@app.function()
async def facts_of_the_input_async():
    return facts()


@app.function()
def work_in_a_thread(name):
    """A thread that nothing interrupts, which asks."""

    def child():
        note(f"begin {name}")
        note(f"its thread knows: {until_told()}")
        ended.set()

    ended = threading.Event()
    threading.Thread(target=child, daemon=True).start()
    while not ended.is_set():
        try:
            ended.wait()
        except kedge.exception.InputCancellation:
            pass
