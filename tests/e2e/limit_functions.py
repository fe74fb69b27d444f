"""An app whose functions go beyond what they may use."""

from __future__ import annotations

import kedge

app = kedge.App("limited")


@app.function(memory=(64, 128), max_containers=1, scaledown_window=2)
def eat(mebibytes: int) -> int:
    held = [b"x" * (1 << 20) for _ in range(mebibytes)]
    return len(held)
