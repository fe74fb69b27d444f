"""Packages for images of tests: the smallest torch that there is, and whether everything can be had at all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kedge.images import uvtool
from kedge.images.running import inherited

RESOLVING_S = 60.0
PYTORCH = "download.pytorch.org"


def with_torch(directory: Path, *packages: str) -> dict[str, str]:
    """Variables of a server whose images get a torch without CUDA, which is a tenth of the other one. Skips the test
    where the packages cannot be had."""
    variables = _without_cuda(directory)
    require(directory, *packages, **variables)
    return variables


def require(directory: Path, *packages: str, **variables: str) -> None:
    """Skips the test where the packages cannot be had."""
    machine = {**inherited(os.environ), **variables}
    done = subprocess.run(
        [uvtool.program(), "pip", "install", "--dry-run", "--python", sys.executable, "--target", directory, *packages],
        env=uvtool.environment(machine, directory / "cache", machine),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RESOLVING_S,
    )
    if done.returncode:
        pytest.skip(f"{', '.join(packages)} cannot be had here: {done.stderr.strip()}")


def _without_cuda(directory: Path) -> dict[str, str]:
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    for place in os.environ.get("PIP_FIND_LINKS", "").split():
        for wheel in sorted(Path(place).glob(f"torch-*+cpu-{tag}-*.whl"), reverse=True):
            constraints = directory / "constraints.txt"
            constraints.write_text(f"torch=={wheel.name.split('-')[1]}\n")
            return {"UV_CONSTRAINT": str(constraints)}
    try:
        socket.getaddrinfo(PYTORCH, 443)
    except OSError as error:
        pytest.skip(f"no torch without CUDA: PIP_FIND_LINKS has none for {tag}, and {PYTORCH} is not there: {error}")
    return {"UV_TORCH_BACKEND": "cpu"}
