"""The functions whose cold starts are measured: the same two on every rung of the isolation ladder, with images."""

from __future__ import annotations

import socket
import time

import kedge
from kedge.model.spec import RUNGS


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
bare_image = kedge.Image.debian_slim()
torch_image = bare_image.pip_install(f"torch=={TORCH}" if TORCH else "torch")

with torch_image.imports():
    import torch


def cold(value: int) -> int:
    return value


def cold_torch(value: int) -> int:
    return int(torch.ones(3)[0]) * value


def answer(until: float) -> tuple[str, float]:
    """Who answers and when: a tensor is made. Stays until `until`, so that each input needs a container of its own."""
    assert int(torch.ones(3)[0]) == 1
    now = time.time()
    time.sleep(max(0.0, until - now))
    return socket.gethostname(), now


apps = {rung: kedge.App(f"benchmarks-{rung}", isolation=rung) for rung in RUNGS}
bare = {rung: app.function(image=bare_image, scaledown_window=1)(cold) for rung, app in apps.items()}
torch_app = kedge.App("benchmarks-torch", isolation="namespace", image=torch_image)
with_torch = torch_app.function(scaledown_window=1)(cold_torch)
many = torch_app.function(scaledown_window=1, cpu=0.01)(answer)
