"""Whether this process may fork. A fork copies one thread and every lock: what other threads held stays locked for
ever, and sockets, event loops and device contexts are shared with every child.

Asked after each module that a fork server loads, so that the culprit has a name. In doubt the answer is no: a fresh
process is slower and always right.
"""

from __future__ import annotations

import os
import select
import sys
from typing import Any

from kedge.engines import system

_STUBBORN = ("jax", "tensorflow")
"""Libraries that say themselves that their state does not survive a fork, even before it shows in threads."""
_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/")
_SHARED = ("socket:", "pipe:", "anon_inode:")
_PATIENCE = 20
"""How often, 10 ms apart, a thread is given time to end: `Thread.join` returns a moment before it is gone."""


def objection(own: set[int]) -> str:
    """Why this process must not fork, or an empty string. `own` are the descriptors that the fork server needs."""
    return _stubborn() or _cuda() or _descriptors(own) or _processes() or _threads()


def _stubborn() -> str:
    loaded = [name for name in _STUBBORN if name in sys.modules]
    return f"{loaded[0]} does not survive a fork" if loaded else ""


def _cuda() -> str:
    cuda: Any = sys.modules.get("torch.cuda")
    return "CUDA is initialised" if cuda is not None and cuda.is_initialized() else ""


def _descriptors(own: set[int]) -> str:
    for number in _list("/proc/self/fd"):
        if number in own:
            continue
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # the descriptor of this very listing
            continue
        if target.startswith(_SHARED):
            return f"it left {target} open"
        if target.startswith(_DEVICES):
            return f"it opened the device {target}"
    return ""


def _processes() -> str:
    children = system.children()
    return f"it started a process ({children[0]})" if children else ""


def _threads() -> str:
    for _ in range(_PATIENCE):
        others = [thread for thread in _list("/proc/self/task") if thread != os.getpid()]
        if not others:
            return ""
        select.select((), (), (), 0.01)
    return f"it started {len(others)} thread{'s' if len(others) > 1 else ''}"


def _list(directory: str) -> list[int]:
    try:
        return [int(name) for name in os.listdir(directory)]
    except OSError:
        return []
