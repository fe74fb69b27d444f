"""The app whose inputs print, in every way there is."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import kedge

app = kedge.App("printing")
quick = {"scaledown_window": 2}
pool = ThreadPoolExecutor(2)
print("imported")


@app.function(max_containers=1, **quick)
@kedge.concurrent(max_inputs=8)
def say_all(name: str) -> None:
    """One line by every road, each beginning with the name."""
    print(name, end=" ")
    time.sleep(0.01)
    print("print")
    print(f"{name} stderr", file=sys.stderr)
    logging.getLogger("printing").warning("%s logging", name)
    warnings.warn(f"{name} warnings", stacklevel=1)
    thread = threading.Thread(target=print, args=(f"{name} thread",))
    thread.start()
    thread.join()
    pool.submit(print, f"{name} executor").result()
    subprocess.run(["echo", f"{name} child"], check=True)
    print(f"{name} end", end="")


@app.function(max_containers=1, **quick)
@kedge.concurrent(max_inputs=8)
async def say_async(name: str) -> None:
    async def task(number: int) -> None:
        await asyncio.sleep(0.001)
        print(f"{name} task {number}")

    await asyncio.gather(task(1), task(2))
    await asyncio.to_thread(print, f"{name} thread")
    process = await asyncio.create_subprocess_exec("echo", f"{name} child")
    await process.wait()
    print(f"{name} end")


@app.function(**quick)
def say_raw() -> None:
    os.write(1, b"descriptor\n")
    library = ctypes.CDLL(None)
    library.puts(b"library")
    library.fflush(None)
    os.system("echo shell >&2")


@app.function(retries=1, **quick)
def say_attempt() -> None:
    attempt = kedge.current_input().attempt
    print("attempt", attempt)
    if not attempt:
        raise ValueError("once more")


@app.cls(**quick)
class Crier:
    @kedge.enter()
    def rig(self) -> None:
        print("entered")

    @kedge.method()
    def cry(self, text: str) -> None:
        print(text)


@app.function(**quick)
def say_much(lines: int) -> None:
    for number in range(lines):
        print(f"line {number}")


@app.function(**quick)
def say_at_length(size: int) -> None:
    sys.stdout.write("x" * size + "\n")
    sys.stdout.buffer.write(bytes(range(11, 256)) + b"\n")
