"""A program that calls by name while everything is killed around it: `python -m benchmarks.soak_callers KIND …`.

Each call is one line of its file: what became of it, and how long that took. It has nothing of the app's code.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kedge

THREADS = 3


def main(kind: str, name: str, file: str, stop: str, directory: str) -> None:
    with Path(file).open("a", buffering=1) as out:
        lock = threading.Lock()

        def note(**facts: Any) -> None:
            with lock:
                out.write(json.dumps(facts) + "\n")

        threads = [
            threading.Thread(target=call, args=(kind, f"{name}-{n}", Path(stop), directory, note))
            for n in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def call(kind: str, name: str, stop: Path, directory: str, note: Any) -> None:
    count = 0
    while not stop.exists():
        count += 1
        token, began = f"{name}-{count}", time.monotonic()
        note(token=token, state="asked")
        try:
            facts = {"call": spawn(directory, token)} if kind == "spawn" else CALLS[kind](count)
            note(token=token, state="answered", seconds=time.monotonic() - began, **facts)
        except kedge.exception.Error as error:
            text = f"{type(error).__name__}: {error}"
            note(token=token, state="failed", seconds=time.monotonic() - began, error=text)
            time.sleep(0.2)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            note(token=token, state="wrong", seconds=time.monotonic() - began, error=text)
            time.sleep(0.2)


def function(name: str) -> kedge.Function[..., Any, Any]:
    return kedge.Function.from_name("soak", name)


def remote(count: int) -> dict[str, Any]:
    assert function("double").remote(count) == 2 * count
    return {}


def map_many(count: int) -> dict[str, Any]:
    assert list(function("double").map(range(count, count + 30))) == [2 * n for n in range(count, count + 30)]
    return {}


def generator(count: int) -> dict[str, Any]:
    assert list(function("count").remote_gen(count)) == list(range(count, count + 20))
    return {}


def spawn(directory: str, token: str) -> str:
    id = function("keep").spawn(directory, token).object_id
    time.sleep(0.1)
    return id


CALLS: dict[str, Callable[[int], dict[str, Any]]] = {"remote": remote, "map": map_many, "generator": generator}

if __name__ == "__main__":
    faulthandler.enable()
    main(*sys.argv[1:])
