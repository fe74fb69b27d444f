"""Images: finding one that is there, and building one whose packages uv has already. `python -m benchmarks.images`.

Everything happens in a KEDGE_HOME of its own. The first build needs the package index; it is shown, and judged by
nothing. The yardstick of the others is uv alone: an environment with the same packages, not compiled.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import Report, Row
from kedge.images import uvtool
from kedge.images.running import inherited
from kedge.model.protocol import ImageRequested
from kedge.model.spec import ImageSpec, ImageStep
from kedge.server.images import Images

PACKAGES = ("numpy", "fastapi")
ROUNDS = 5
LOOKUPS = 200


def run(report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="kedge-images-") as directory:
        try:
            asyncio.run(_measure(report, Path(directory)))
        finally:
            subprocess.run(["chmod", "-R", "u+w", directory], check=False)


def recipe(*packages: str) -> ImageSpec:
    arguments = (("packages", json.dumps(packages)),)
    return ImageSpec((ImageStep("debian_slim"), ImageStep("pip_install", arguments)))


async def _measure(report: Report, home: Path) -> None:
    images = Images(home, lambda session, message: None)

    async def ask(spec: ImageSpec) -> float:
        began = time.perf_counter()
        answer: Any = images.answers[ImageRequested](ImageRequested(1, spec), "se-1")
        if asyncio.iscoroutine(answer):
            await answer
        return time.perf_counter() - began

    first = await ask(recipe(*PACKAGES))
    report.add(Row(f"image of {' + '.join(PACKAGES)}, the first", f"{first:.2f} s"))
    found = [await ask(recipe(*PACKAGES)) for _ in range(LOOKUPS)]
    fresh = []
    for _ in range(LOOKUPS):  # as a server finds it that has just started
        began = time.perf_counter()
        Images(home, lambda session, message: None).answers[ImageRequested](
            ImageRequested(1, recipe(*PACKAGES)), "se-1"
        )
        fresh.append(time.perf_counter() - began)
    for name, times in (("found again", found), ("found by a new server", fresh)):
        took = statistics.median(times) * 1e3
        report.add(Row(f"image {name}", f"{took:.2f} ms", budget="20 ms", holds=took <= 20))
    built = [await ask(recipe(*PACKAGES, f"idna!=0.{number}")) for number in range(ROUNDS)]
    alone = [_uv_alone(home, number) for number in range(ROUNDS)]
    ours, theirs = statistics.median(built), statistics.median(alone)
    report.add(
        Row(
            f"new image of {' + '.join(PACKAGES)}, warm cache",
            f"{ours:.2f} s",
            f"{theirs:.2f} s uv alone",
            f"{ours / theirs:.1f}",
            "1 s",
            ours <= 1,
        )
    )
    await images.close()


def _uv_alone(home: Path, number: int) -> float:
    """An environment made by uv from the same cache, without asking the index."""
    variables = uvtool.environment(inherited(os.environ), home / "images" / "cache")
    target, began = str(home / f"alone-{number}"), time.perf_counter()
    for words in (["venv", target], ["pip", "install", "--offline", "--python", f"{target}/bin/python", *PACKAGES]):
        subprocess.run([uvtool.program(), *words], env=variables, check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    run(Report())
