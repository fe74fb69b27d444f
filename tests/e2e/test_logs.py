"""What real containers print is found again by the input that printed it, during a run and after it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

LONG = 60.0
"""Seconds after which something has gone wrong; nothing here takes as long."""

APP = """
import os, sys, time
from pathlib import Path
import kedge

app = kedge.App("printer")
if not kedge.is_local():
    print("imported")

@app.function(max_containers=1)
@kedge.concurrent(max_inputs=8)
def chat(number: int) -> str:
    for turn in range(20):
        print("turn", turn, end=" ", flush=True)
        time.sleep(0.001)
        print("of", number)
    print("trouble of", number, file=sys.stderr)
    os.write(1, f"raw {number}\\n".encode())
    return kedge.current_input_id()

@app.function()
def flood(lines: int) -> None:
    for number in range(lines):
        print(number)
    print("x" * 1_000_000)

@app.function()
def wait(path: str) -> None:
    print("I am here")
    Path(path).touch()
    time.sleep(1000)

@app.local_entrypoint()
def main():
    for id in chat.map(range(8)):
        sys.stdout.write(f"input {id}\\n")  # one write: a print to an unbuffered stream is several
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "script.py").write_text(APP)
    variables = {key: value for key, value in os.environ.items() if not key.startswith("KEDGE_")}
    return {**variables, "KEDGE_HOME": str(tmp_path / "home")}


def start(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kedge.cli.main", *words],
        env=environment,
        cwd=Path(environment["KEDGE_HOME"]).parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kedge(environment: dict[str, str], *words: str) -> str:
    process = start(environment, *words)
    stdout, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 0, stderr
    return stdout


def eventually(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_each_input_has_its_own_lines_also_after_the_run(environment: dict[str, str]) -> None:
    shown = kedge(environment, "run", "script.py")
    for line in shown.splitlines():
        assert re.fullmatch(r"imported|turn \d+ of \d|raw \d|input in-\w+-\d", line), "lines of inputs are not mixed"
    ids = dict(re.findall(r"input (in-(?:\w+)-(\d))", shown))
    assert sorted(ids.values()) == list("01234567")
    for id, number in ids.items():
        found = [json.loads(line) for line in kedge(environment, "logs", "--input", id, "--json").splitlines()]
        expected = [f"turn {turn} of {number}" for turn in range(20)]
        assert [line["text"] for line in found] == [*expected, f"trouble of {number}"]
        assert [line["stream"] for line in found] == ["stdout"] * 20 + ["stderr"]
        assert {(line["input"], line["app_name"], line["function"], line["raw"]) for line in found} == {
            (id, "printer", "chat", False)
        }
    beside = [json.loads(line) for line in kedge(environment, "logs", "printer", "--json", "-n", "1000").splitlines()]
    texts = Counter((line["text"], line["raw"]) for line in beside if line["input"] is None)
    assert texts == {("imported", False): 1, **{(f"raw {number}", True): 1 for number in range(8)}}


def test_a_flood_keeps_its_order_and_a_long_line_its_length(environment: dict[str, str]) -> None:
    assert kedge(environment, "run", "-q", "script.py::flood", "--lines", "20000") == ""
    texts = [line.partition("│ ")[2] for line in kedge(environment, "logs", "--function", "flood").splitlines()]
    lost = [text for text in texts if text.startswith("[kedge: ")]
    numbers = [int(text) for text in texts if text.isdecimal()]
    assert numbers == sorted(numbers)
    assert len(numbers) == 20_000 or lost
    assert max(len(text) for text in texts) == 1_000_000 or lost


def test_following_sees_a_run_from_beginning_to_end(environment: dict[str, str]) -> None:
    follower = start(environment, "logs", "-f")
    try:
        kedge(environment, "run", "-q", "script.py")
        assert follower.stdout is not None
        seen = Counter(follower.stdout.readline().partition(" ")[0] for _ in range(1 + 8 * 22))
        assert seen == {"chat": 1 + 8 * 22}
        follower.send_signal(signal.SIGINT)
        stdout, stderr = follower.communicate(timeout=LONG)
        assert (follower.returncode, stdout) == (0, "")
        assert stderr.splitlines()[0] == "kedge: nothing has been written yet; waiting"
        assert "Traceback" not in stderr
    finally:
        follower.kill()
        follower.communicate()


def test_runs_at_the_same_time_write_into_one_log(environment: dict[str, str]) -> None:
    runs = [start(environment, "run", "-q", "-n", f"printer-{number}", "script.py") for number in range(3)]
    for run in runs:
        assert run.communicate(timeout=LONG)[1] == ""
    for number in range(3):
        assert len(kedge(environment, "logs", f"printer-{number}", "-n", "1000").splitlines()) == 1 + 8 * 22


def test_what_was_printed_outlives_a_server_that_is_killed(environment: dict[str, str], tmp_path: Path) -> None:
    process = start(environment, "run", "-q", "script.py::wait", "--path", str(tmp_path / "marker"))
    try:
        eventually((tmp_path / "marker").exists)
        log = [sys.executable, "-m", "kedge.cli.main", "logs"]
        eventually(lambda: b"I am here" in subprocess.run(log, env=environment, capture_output=True).stdout)
    finally:
        process.kill()
        process.communicate()
    assert kedge(environment, "logs", "--grep", "here").partition("│ ")[2] == "I am here\n"


GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "logs.md"


def test_the_guide_shows_what_is_shown(environment: dict[str, str], tmp_path: Path) -> None:
    text = GUIDE.read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    examples = re.findall(r"```\n\$ kedge (logs .*?)\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2, "the examples of the guide are no longer found"
    (tmp_path / "shop.py").write_text(program)
    assert "70\n" in kedge(environment, "run", "shop.py")
    facts = json.loads(kedge(environment, "logs", "-n", "1", "--json", "--input", short_input(environment)))
    process = facts["call"][-12:-8]
    for command, shown in examples:
        words = [word.strip('"').replace("91c4", process) for word in re.findall(r'"[^"]*"|\S+', command)]
        assert sorted(kedge(environment, *words).splitlines()) == sorted(shown.replace("91c4", process).splitlines())


def short_input(environment: dict[str, str]) -> str:
    return kedge(environment, "logs", "-n", "1").split()[1]


def test_who_runs_something_hears_that_nothing_is_kept(environment: dict[str, str]) -> None:
    logs = Path(environment["KEDGE_HOME"]) / "logs"
    logs.mkdir(parents=True)
    (logs / "logs.db").write_text("this is no database\n" * 100)
    process = start(environment, "run", "script.py")
    _, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 0, "the program runs all the same"
    assert stderr.count(f"what containers print is not kept: {logs}/logs.db: file is not a database; remove") == 1
