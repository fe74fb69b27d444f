"""Every example runs as its own text says, and prints what it should."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ELSEWHERE = ["search_docs"]
"""Those whose images take packages that not every machine can have: `tests/docs/test_search_docs.py`."""
EXAMPLES = sorted(path for path in ROOT.glob("examples/*.py") if path.stem not in ELSEWHERE)

EXPECTED = {
    "async_calls": [
        r"one call: 42",
        r"gather: 380, at most 20 at once",
        r"map: 1560",
        r"spawned: a handle now, the result later",
        r"result: 100",
    ],
    "batching_server": [r"64 requests: 32 fine, 32 awful", r"[4-9] passes, up to 16 requests in one"],
    "cancel_one": [
        r".*in the container: file 13 gets InputCancellation before piece 20",
        r".*in the container: file 7 gets InputTimeout before piece 20",
        r"file 7: FunctionTimeoutError: the input ran longer than timeout=1 s .*",
        r"file 13: RemoteError: the input was cancelled",
        r"98 files complete, 0 half done, 1 container",
    ],
    "batched": [
        r"library: more than a hundred entries",
        r"return the square root of x: math.sqrt",
        r"move a file or directory to another place: shutil.move",
        r"shuffle a list in place: random.shuffle",
        r"64 questions, up to (?:[2-9]|1[0-6]) in one batch",
    ],
    "chat_websocket": [
        r"the page is there: True",
        r"Ada hears visitor 1: has come in",
        r"Bob hears visitor 2: has come in",
        r"Ada hears visitor 2: has come in",
        r"Bob hears visitor 1: Good morning",
        r"Ada hears visitor 1: Good morning",
        r"Ada hears visitor 2: has left",
    ],
    "cpu_map": [r"primes below (1,000,000: 78,498|2,000,000: 148,933)"],
    "gateway": [r"64 clients: all of them answered", r"\d+ at once, [1-9]\d* when they came back"],
    "generator": [r"from 27 to 1 in 111 steps, by way of 9232", r"first squares: 0 1 4 9 16 25 36 49 64 81"],
    "llm_batching": [
        r".+: 24 tokens of one request in \d+ steps",
        r"768 tokens of 32 requests in \d+ steps, up to (?:[2-9]|[12]\d|3[0-2]) requests in one",
        r"a stream: 4 tokens, each as it is made",
    ],
    "llm_server": [r"return the … (?:\w+ ?){6}", r"the name … (?:\w+ ){12}\[DONE\]"],
    "load_test": [
        r"second  sent  answered  in flight      p50      p95  containers",
        r" +1 +\d+ +\d+ +\d+ +[\d.]+ s +[\d.]+ s +\d+ \+ 1",
        r"  500 a second: p50 [\d.]+ s, p95 [\d.]+ s",
        r"6,500 requests, 0 failed",
        r"[\d.]+ ms of a core per request went into this script",
        r"p95 below 1.5 s in every phase: (?:yes|NO)",
    ],
    "modal_file": [r"sum of squares: 8555", r"Good morning, Ada", r"a modal.Function is a kedge function"],
    "model_class": [
        r"corrected: return string class import argument",
        r"without vowels: class fnction",
        r"words known: more than a thousand; separate containers: True",
    ],
    "quickstart": [
        r"4,000 docstrings with [\d,]+ words",
        r" +inputs +containers +at once per container +wall time +per second",
        r"@concurrent\(max_inputs=50\) +4,000 +[1-4] +(?:[2-4]\d|50) +[\d.]+ s +[\d,]+",
        r"one input per container +200 +[1-4] +1 +[\d.]+ s +[\d,]+",
    ],
}


def commands(path: Path) -> list[str]:
    """The command lines in the example's own text."""
    return re.findall(r"^    (kedge run .+)$", path.read_text().split('"""')[1], re.MULTILINE)


def test_every_example_is_tested() -> None:
    assert [path.stem for path in EXAMPLES] == sorted(EXPECTED)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    found = commands(path)
    assert found
    assert f"kedge run examples/{path.name}" in found[0]
    for position, command in enumerate(found):
        process = subprocess.run(
            [sys.executable, "-m", "kedge.cli.main", *shlex.split(command)[1:]],
            cwd=ROOT,
            env={**os.environ, "KEDGE_HOME": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert process.returncode == 0, process.stderr
        assert "Traceback" not in process.stderr
        if position == 0:
            for line in EXPECTED[path.stem]:
                assert re.search(rf"^{line}$", process.stdout, re.MULTILINE), f"no line {line!r} in\n{process.stdout}"
