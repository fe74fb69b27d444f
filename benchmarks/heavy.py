"""A function whose module imports something heavy: torch where it is installed, else NumPy."""

from __future__ import annotations

import importlib.util

import kedge

if importlib.util.find_spec("torch"):
    import torch as heavy
else:
    import numpy as heavy

HEAVY = f"{heavy.__name__} {heavy.__version__}"
heavy_app = kedge.App("benchmarks-heavy")


@heavy_app.function(scaledown_window=1)
def cold_heavy(value: int) -> int:
    return int(heavy.ones(3)[0]) * value
