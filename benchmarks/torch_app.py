"""The torch app whose containers are measured, in a module of its own, as programs have it."""

from __future__ import annotations

import socket
import time

import kedge


def torch_version() -> str:
    """Of the program that measures, without the name of its build; empty where it has none, and in containers."""
    if not kedge.is_local():
        return ""
    import importlib.metadata

    try:
        return importlib.metadata.version("torch").partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return ""


TORCH = torch_version()
image = kedge.Image.debian_slim().pip_install(f"torch=={TORCH}" if TORCH else "torch")

with image.imports():
    import torch

app = kedge.App("benchmarks-torch", isolation="namespace", image=image)


@app.function(scaledown_window=1)
def cold_torch(value: int) -> int:
    return int(torch.ones(3)[0]) * value


@app.function(scaledown_window=1, cpu=0.01)
def answer(until: float) -> tuple[str, float]:
    """Who answers and when: a tensor is made. Stays until `until`, so that each input needs a container of its own."""
    assert int(torch.ones(3)[0]) == 1
    now = time.time()
    time.sleep(max(0.0, until - now))
    return socket.gethostname(), now
