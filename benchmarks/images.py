"""Images: finding one that is there, and building one whose packages uv has already. `python -m benchmarks.images`.

Builds happen in a KEDGE_HOME of their own. The first one needs the package index; it is shown, and judged by nothing.
The yardsticks of the others have warm caches as well: uv alone, whose environment is not compiled, and pip.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import kedge
from benchmarks.functions import app as plain_app
from benchmarks.functions import echo
from benchmarks.report import Report, Row, stopwatch
from kedge.images import uvtool
from kedge.images.running import inherited
from kedge.model.protocol import ImageRequested
from kedge.model.spec import ImageSpec, ImageStep
from kedge.server.images import Images

PACKAGES = ("numpy", "fastapi")
ROUNDS = 5
LOOKUPS = 200


app = kedge.App("benchmarks-images")
other_app = kedge.App("benchmarks-no-image")
image = kedge.Image.debian_slim().env({"BENCHMARKS": "yes"}).add_local_python_source("benchmarks")


def function(value: int) -> int:
    return value


app.function(image=image)(function)
other_app.function()(function)


def run(report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="kedge-images-") as directory:
        try:
            asyncio.run(_measure(report, Path(directory)))
        finally:
            subprocess.run(["chmod", "-R", "u+w", directory], check=False)
    start_of_an_app(report)


def start_of_an_app(report: Report) -> None:
    """On a server that is there: files are bound, the image is found, the app is created and ends."""

    def once(which: kedge.App) -> float:
        with stopwatch() as seconds, which.run():
            pass
        return seconds[0] * 1000

    with plain_app.run():
        echo.remote(1)
        once(app)
        pairs = [(once(app), once(other_app)) for _ in range(20)]
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    more = statistics.median(mine - other for mine, other in pairs)
    report.add(
        Row(
            "start and end of an app whose image is there",
            f"{ours:.1f} ms",
            f"{theirs:.1f} ms without image",
            f"+{more:.1f} ms",
            "≤ +20 ms",
            more <= 20,
        )
    )


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
        report.add(Row(f"image {name}", f"{took:.2f} ms", budget="≤ 20 ms", holds=took <= 20))
    built = [await ask(recipe(*PACKAGES, f"idna!=0.{number}")) for number in range(ROUNDS)]
    alone = [_uv_alone(home, number) for number in range(ROUNDS)]
    ours, theirs = statistics.median(built), statistics.median(alone)
    report.add(
        Row(
            f"new image of {' + '.join(PACKAGES)}, warm cache",
            f"{ours:.2f} s",
            f"{theirs:.2f} s uv alone",
            f"{ours / theirs:.1f} ×",
            "≤ 1 s",
            ours <= 1,
        )
    )
    by_pip = _by_pip(home)
    report.add(Row("the same by pip", f"{by_pip:.1f} s", f"{ours:.2f} s image", f"{by_pip / ours:.0f} ×"))
    whole, own = _sizes(home / "images" / "layers")
    report.add(Row("disk of one image more", f"{own:.1f} MB", f"{whole:.0f} MB all its files", f"1/{whole / own:.0f}"))
    await images.close()


def _uv_alone(home: Path, number: int) -> float:
    """An environment made by uv from the same cache, without asking the index."""
    variables = uvtool.environment(inherited(os.environ), home / "images" / "cache")
    target, began = str(home / f"alone-{number}"), time.perf_counter()
    for words in (["venv", target], ["pip", "install", "--offline", "--python", f"{target}/bin/python", *PACKAGES]):
        subprocess.run([uvtool.program(), *words], env=variables, check=True, capture_output=True)
    return time.perf_counter() - began


def _by_pip(home: Path) -> float:
    """A virtual environment with the same packages, the second time: pip has kept what it needs."""
    took = 0.0
    for number in range(2):
        target, began = str(home / f"pip-{number}"), time.perf_counter()
        subprocess.run([sys.executable, "-m", "venv", target], check=True)
        words = [f"{target}/bin/python", "-m", "pip", "install", "-q", "--cache-dir", str(home / "pip"), *PACKAGES]
        subprocess.run(words, check=True, capture_output=True)
        took = time.perf_counter() - began
    return took


def _sizes(layers: Path) -> tuple[float, float]:
    """MB of all files of the newest layer, and of those that it shares with nothing."""
    newest = max(layers.iterdir(), key=lambda layer: layer.stat().st_mtime)
    whole = own = 0
    for directory, _, names in os.walk(newest):
        for name in names:
            facts = os.lstat(os.path.join(directory, name))
            whole += facts.st_blocks * 512
            own += facts.st_blocks * 512 if facts.st_nlink == 1 else 0
    return whole / 1e6, own / 1e6


if __name__ == "__main__":
    run(Report())
