"""What someone waits for who runs a small file where no server runs: `kedge run`, from prompt to prompt."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.report import Report, Row, stopwatch

ROUNDS = 7
PROGRAM = """
import kedge

app = kedge.App("hello")


@app.function()
def square(x):
    return x * x


@app.local_entrypoint()
def main():
    print(square.remote(7))
"""


def run(report: Report) -> None:
    with tempfile.TemporaryDirectory() as place:
        program = Path(place, "hello.py")
        program.write_text(PROGRAM)
        variables = {**os.environ, "KEDGE_HOME": os.path.join(place, "home")}
        variables.pop("KEDGE_SERVER", None)
        took = _median_s([sys.executable, "-m", "kedge.cli.main", "run", str(program)], variables, b"49\n")
        yardstick = _median_s([sys.executable, "-c", "print(7 * 7)"], variables, b"49\n")
    report.add(
        Row(
            "kedge run of hello world, no server before",
            f"{took * 1000:.0f} ms",
            f"{yardstick * 1000:.0f} ms fresh python",
            f"{took / yardstick:.0f} ×",
        )
    )


def _median_s(command: list[str], variables: dict[str, str], expected: bytes) -> float:
    """Of several rounds; the first one, which finds nothing in the caches, does not count."""
    times = []
    for _ in range(ROUNDS + 1):
        with stopwatch() as seconds:
            ended = subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        assert ended.stdout == expected, ended.stderr
        times.append(seconds[0])
    return statistics.median(times[1:])
