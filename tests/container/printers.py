"""User code that prints. What an input does stands in the test that sends it: the source is its argument."""

from __future__ import annotations

import logging
import multiprocessing.pool
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from shop import allowed, note

import kedge

app = kedge.App("shop")
logger = logging.getLogger("printers")
logger.addHandler(logging.StreamHandler())
shared: dict[str, Any] = {}
"""What inputs leave to each other."""

print("imported")


def compiled(source: str) -> Any:
    names: dict[str, Any] = {
        "ProcessPoolExecutor": ProcessPoolExecutor,
        "ThreadPool": multiprocessing.pool.ThreadPool,
        "ThreadPoolExecutor": ThreadPoolExecutor,
        "allowed": allowed,
        "logger": logger,
        "note": note,
        "print_here": print_here,
        "shared": shared,
    }
    body = textwrap.indent(textwrap.dedent(source), "    ")
    exec(f"async def work():\n    import asyncio, os, subprocess, sys, threading, time, kedge\n{body}", names)
    return names["work"]()


@app.function()
def run(source: str) -> Any:
    """Runs code that awaits nothing."""
    try:
        compiled(source).send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it awaits something")


@app.function()
async def run_async(source: str) -> Any:
    return await compiled(source)


def print_here(text: str) -> None:
    """For pools of processes, which find it by its name."""
    print(text, end="")
    print(" in process" if multiprocessing.parent_process() else "")
    sys.stdout.flush()
