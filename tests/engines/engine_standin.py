"""Stands in for `kedge.container.main`: a container whose life is the Python source in its launch."""

from __future__ import annotations

from kedge.model.spec import Launch


def run(launch: Launch) -> None:
    """Runs the source with `launch` in reach. What it raises or prints is the container's."""
    assert launch.function.serialized is not None
    exec(launch.function.serialized.data.decode(), {"launch": launch, "__name__": "container"})
