"""A program for `test_restart`: spawns calls on the machine's server, says their ids, and waits for its last one."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import kedge

app = kedge.App("shop")


@app.function()
@kedge.concurrent(max_inputs=8)
def bake(name: str, directory: str) -> str:
    """Ends once there is a file `go`, and notes each time that it began."""
    with (Path(directory) / f"{name}.began").open("a") as file:
        file.write("x")
    while name != "fast" and not (Path(directory) / "go").exists():
        time.sleep(0.01)
    return f"{name} is ready"


if __name__ == "__main__":
    directory = sys.argv[1]
    with app.run():
        fast, slow = bake.spawn("fast", directory), bake.spawn("slow", directory)
        print(fast.get(), fast.object_id, slow.object_id, flush=True)
        print(slow.get(), flush=True)
        print(fast.get(), flush=True)
