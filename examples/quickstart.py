"""Thousands of calls of a service that takes its time: one container works on up to 50 of them at once.

    kedge run examples/quickstart.py

The inputs are the docstrings of Python's standard library. For each of them a small HTTP service, which this program
starts on localhost, is asked for the number of words; it answers after 50 ms. While a call waits, its container can
work on others: that is what `@kedge.concurrent` says. The table at the end compares with one call per container.
"""

from __future__ import annotations

import ast
import asyncio
import http.client
import os
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import kedge

app = kedge.App("quickstart")

CONTAINERS = 4
SERVICE_SECONDS = 0.05


# ---------------------------------------------------------------- what runs in containers


class Meter:
    """Counts how many inputs this container works on at the same time."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.lock = threading.Lock()

    def __enter__(self) -> Meter:
        with self.lock:
            self.now += 1
            self.peak = max(self.peak, self.now)
        return self

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.now -= 1


meter = Meter()
"""Each container imports this module by itself, so each has a meter of its own."""


def ask_service(port: int, text: str) -> tuple[int, int, int]:
    """Words of the text, this container's process, and its peak of inputs at once."""
    with meter:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/words", text.encode())
        words = int(connection.getresponse().read())
        connection.close()
        return words, os.getpid(), meter.peak


@app.function(max_containers=CONTAINERS)
@kedge.concurrent(max_inputs=50, target_inputs=40)
def count_words(port: int, text: str) -> tuple[int, int, int]:
    return ask_service(port, text)


@app.function(max_containers=CONTAINERS)
def count_words_one_by_one(port: int, text: str) -> tuple[int, int, int]:
    return ask_service(port, text)


# ---------------------------------------------------------------- what runs here


def docstrings() -> Iterator[str]:
    """Every docstring in the source of the standard library. Nothing is imported, only read."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.relative_to(library).parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text:
                    yield text


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One HTTP request: the number of words in its body, after 50 ms."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
        text = await reader.readexactly(length)
        await asyncio.sleep(SERVICE_SECONDS)
        body = str(len(text.split())).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the caller has gone
    finally:
        writer.close()


@contextmanager
def service() -> Iterator[int]:
    """The service on a thread of its own; gives its port."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def measure(function: Callable[..., Iterator[tuple[int, int, int]]], port: int, texts: list[str]) -> tuple[int, str]:
    """Runs all texts; the number of words, and a row of the table."""
    begin = time.perf_counter()
    words, peaks = 0, {}
    for count, container, peak in function([port] * len(texts), texts, order_outputs=False):
        words += count
        peaks[container] = max(peak, peaks.get(container, 0))
    seconds = time.perf_counter() - begin
    row = f"{len(texts):>8,}{len(peaks):>12}{max(peaks.values()):>24}{seconds:>11.1f} s{len(texts) / seconds:>13,.0f}"
    return words, row


@app.local_entrypoint()
def main(texts: int = 4000, sample: int = 200) -> None:
    """Counts the words in the docstrings of the standard library.

    Options: the number of texts, and how many of them are also sent one by one.
    """
    found = [text for text, _ in zip(docstrings(), range(texts), strict=False)]
    with service() as port:
        words, many = measure(count_words.map, port, found)
        _, single = measure(count_words_one_by_one.map, port, found[:sample])
    assert words == sum(len(text.encode().split()) for text in found), "every word is counted exactly once"
    print(f"{len(found):,} docstrings with {words:,} words\n")
    print(f"{'':<28}{'inputs':>8}{'containers':>12}{'at once per container':>24}{'wall time':>13}{'per second':>13}")
    print(f"{'@concurrent(max_inputs=50)':<28}{many}")
    print(f"{'one input per container':<28}{single}")
