"""The app whose inputs do what they should not, beside siblings that do nothing wrong."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import threading
import time
from pathlib import Path

import kedge

app = kedge.App("bad")


def note(path: str, text: object) -> None:
    with Path(path).open("a") as file:
        file.write(f"{text}\n")


class Farewell:
    def __del__(self) -> None:
        print("farewell")


@app.cls(cancellation_grace=0.5, scaledown_window=2, timeout=60)
@kedge.concurrent(max_inputs=8)
class Bad:
    """Each bad method notes that it has begun, and what it sees."""

    # ------------------------------------------------------------ the siblings

    @kedge.method()
    def work(self, gate: str) -> str:
        """Waits until the file exists: which container it was."""
        while not Path(gate).exists():
            time.sleep(0.005)
        print("worked")
        return os.environ["KEDGE_CONTAINER_ID"]

    @kedge.method()
    async def work_async(self, gate: str) -> str:
        while not Path(gate).exists():
            await asyncio.sleep(0.005)
        print("worked")
        return os.environ["KEDGE_CONTAINER_ID"]

    @kedge.method()
    def where(self) -> str:
        return os.environ["KEDGE_CONTAINER_ID"]

    # ------------------------------------------------------------ code that goes on

    @kedge.method()
    def swallow(self, path: str) -> None:
        note(path, os.getpid())
        while True:
            try:
                time.sleep(60)
            except BaseException as error:
                note(path, f"swallows {type(error).__name__}")

    @kedge.method()
    async def swallow_async(self, path: str) -> None:
        note(path, os.getpid())
        while True:
            try:
                await asyncio.sleep(60)
            except BaseException as error:
                note(path, f"swallows {type(error).__name__}")

    @kedge.method()
    def loop_in_c(self, path: str) -> None:
        note(path, os.getpid())
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

    @kedge.method()
    def hold_the_lock(self, path: str) -> None:
        """C code that keeps all Python code of the container from running."""
        note(path, os.getpid())
        sum(range(10**12))

    # ------------------------------------------------------------ code that makes something else of it

    @kedge.method()
    def fail_instead(self, path: str) -> None:
        try:
            note(path, "begins")
            time.sleep(60)
        except BaseException:
            note(path, "fails")
            raise ValueError("while cleaning up") from None

    @kedge.method()
    async def fail_instead_async(self, path: str) -> None:
        try:
            note(path, "begins")
            await asyncio.sleep(60)
        except BaseException:
            note(path, "fails")
            raise ValueError("while cleaning up") from None

    @kedge.method()
    def answer_instead(self, path: str) -> str:
        try:
            note(path, "begins")
            time.sleep(60)
        except BaseException:
            note(path, "answers")
        return "never mind"

    @kedge.method()
    async def answer_instead_async(self, path: str) -> str:
        try:
            note(path, "begins")
            await asyncio.sleep(60)
        except BaseException:
            note(path, "answers")
        return "never mind"

    @kedge.method()
    def say_farewell(self, path: str) -> None:
        _kept = Farewell()
        note(path, "begins")
        time.sleep(60)

    # ------------------------------------------------------------ code that ends itself

    @kedge.method()
    def cancel_itself(self) -> None:
        current = kedge.current_input()
        assert current is not None
        try:
            kedge.FunctionCall.from_id(current.call_id).cancel()
            time.sleep(60)
        except kedge.exception.InputCancellation:
            print("told by itself")
            raise

    @kedge.method()
    async def cancel_itself_async(self) -> None:
        current = kedge.current_input()
        assert current is not None
        try:
            await kedge.FunctionCall.from_id(current.call_id).cancel.aio()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("told by itself")
            raise

    @kedge.method()
    def raise_itself(self, what: str) -> None:
        raise {
            "CancelledError": asyncio.CancelledError,
            "InputCancellation": kedge.exception.InputCancellation,
            "SystemExit": SystemExit,
        }[what]("by hand")

    @kedge.method()
    async def raise_itself_async(self, what: str) -> None:
        raise asyncio.CancelledError("by hand")

    @kedge.method()
    def exit_once(self, path: str) -> str:
        if not Path(path).exists():
            note(path, "exits")
            os._exit(7)
        return "survived"

    # ------------------------------------------------------------ code that leaves something behind

    @kedge.method()
    def leak_threads(self, gate: str) -> str:
        def linger() -> None:
            while not Path(gate).exists():
                time.sleep(0.005)
            print("leaked")

        for _ in range(3):
            threading.Thread(target=linger).start()
        return os.environ["KEDGE_CONTAINER_ID"]

    @kedge.method()
    def close_stdout(self) -> str:
        sys.stdout.close()
        sys.stderr.close()
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        return "closed"


parents = kedge.App("parents")


@parents.function()
@kedge.concurrent(max_inputs=2)
def fork(path: str) -> None:
    child = os.fork()
    if not child:
        time.sleep(3600)
        os._exit(0)
    note(path, child)
    try:
        time.sleep(60)
    except kedge.exception.InputCancellation:
        note(path, "the parent is told")
        raise
