"""Stands in for `kedge.container.main`: a container whose life is the Python source in its launch."""

from __future__ import annotations

import sys

from kedge.model.spec import Launch

held: list[str] | None = None
"""What a fork server held when it was prepared."""


def prepare() -> None:
    global held
    held = [name for name in sys.modules if name.startswith("held_")]


def run(launch: Launch, records: int) -> None:
    """Runs the source with `launch` and `records` in reach. What it raises or prints is the container's."""
    assert launch.function.serialized is not None
    exec(launch.function.serialized.data.decode(), {"launch": launch, "records": records, "__name__": "container"})
