"""A hundred inputs in one container: one is cancelled, one runs out of time, and the other 98 notice nothing.

    kedge run examples/cancel_one.py
    kedge run examples/cancel_one.py --files 20

Each input writes a file piece by piece, as a slow download would, in a thread of its own. What stops one of them is an
exception in that thread, even while it sleeps: `finally` runs and removes what is half done. Caught, it says which it
was: `InputTimeout` is a kind of `InputCancellation`. Its siblings finish, and all of it happens in one process.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import kedge
from kedge.exception import FunctionTimeoutError, InputCancellation, RemoteError

app = kedge.App("cancel-one")

PIECES = 20


@app.function(max_containers=1)
@kedge.concurrent(max_inputs=100)
def download(number: int, directory: str) -> int:
    """Writes one file, and gives the process that wrote it."""
    part = Path(directory, f"{number}.part")
    written = 0
    try:
        with part.open("w") as file:
            while written < PIECES:
                time.sleep(0.1)  # stands for a slow network
                file.write(f"piece {written} of file {number}\n")
                written += 1
        part.rename(part.with_suffix(".txt"))
        return os.getpid()
    except InputCancellation as reason:
        print(f"in the container: file {number} gets {type(reason).__name__} before piece {PIECES}")
        raise
    finally:
        part.unlink(missing_ok=True)


@app.local_entrypoint()
def main(files: int = 100) -> None:
    """Starts all downloads at once, cancels number 13, and gives number 7 too little time."""
    if not 14 <= files <= 100:
        raise SystemExit("--files must be from 14 to 100: numbers 7 and 13 have a part in this")
    with tempfile.TemporaryDirectory() as directory:
        hasty = download.with_options(timeout=1)  # for these calls only; the container is the same
        calls = [(hasty if number == 7 else download).spawn(number, directory) for number in range(files)]
        while not Path(directory, f"{files - 1}.part").exists():
            time.sleep(0.01)
        calls[13].cancel()

        processes = set()
        for number, call in enumerate(calls):
            try:
                processes.add(call.get())
            except (RemoteError, FunctionTimeoutError) as error:
                print(f"file {number}: {type(error).__name__}: {error}")
        left = [path.suffix for path in Path(directory).iterdir()]
        print(f"{left.count('.txt')} files complete, {left.count('.part')} half done, {len(processes)} container")
