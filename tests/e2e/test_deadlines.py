"""Timeouts and stops end to end: what the caller gets, and what user code sees."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kedge
from kedge.exception import FunctionTimeoutError
from tests.e2e import deadline_functions as functions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def running_deadlines(kedge_home: Path) -> Iterator[None]:
    with functions.app.run():
        yield


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_the_caller_gets_an_error_that_names_the_limit(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(FunctionTimeoutError, match=r"the input ran longer than timeout=1 s of nap\(\)") as caught:
        functions.nap.remote(60, str(marker))
    assert isinstance(caught.value, kedge.exception.TimeoutError)
    assert not isinstance(caught.value, TimeoutError), "that one means that a wait has ended"
    assert marker.read_text().split() == ["InputTimeout"]
    assert functions.nap.remote(0) == 0


def test_a_spawned_call_keeps_the_error() -> None:
    call = functions.nap.spawn(60)
    for _ in range(2):
        with pytest.raises(FunctionTimeoutError, match="timeout=1 s"):
            call.get(timeout=30)


@pytest.mark.parametrize("function", [functions.nap_in_a_thread, functions.nap_in_a_task], ids=["threads", "tasks"])
def test_one_late_input_among_many_is_nobody_else_s_business(function: kedge.Function[..., tuple[float, int]]) -> None:
    results = list(function.map([0.01, 60, 0.02, 60, 0.03, 0.04], return_exceptions=True))
    assert [type(result) for result in results].count(FunctionTimeoutError) == 2
    assert isinstance(results[1], FunctionTimeoutError)
    served = [result for result in results if isinstance(result, tuple)]
    assert [seconds for seconds, _ in served] == [0.01, 0.02, 0.03, 0.04]
    assert len({process for _, process in [*served, function.remote(0)]}) == 1, "the container goes on"


def test_a_method_has_a_limit_of_its_own() -> None:
    desk = functions.Desk()
    calm = desk.calm.spawn(1.5)
    with pytest.raises(FunctionTimeoutError, match=r"timeout=1 s of Desk.hasty\(\)"):
        desk.hasty.remote(60)
    assert calm.get(timeout=30) == 1.5


def test_a_variant_with_another_timeout() -> None:
    with pytest.raises(FunctionTimeoutError, match=r"timeout=0\.25 s of this call"):
        functions.nap.with_options(timeout=0.25).remote(60)


def test_a_generator_gives_its_values_first() -> None:
    values = []
    with pytest.raises(FunctionTimeoutError, match="timeout=1 s"):
        for value in functions.count_slowly.remote_gen(5):
            values.append(value)  # noqa: PERF402 - what came before the error counts
    assert values == [0, 1, 2, 3, 4]


def test_a_late_input_is_tried_again(tmp_path: Path) -> None:
    assert functions.slow_at_first.remote(str(tmp_path / "twice"), 2) == 3
    with pytest.raises(FunctionTimeoutError, match="timeout=1 s"):
        functions.slow_at_first.remote(str(tmp_path / "always"), 9)
    assert len((tmp_path / "always").read_text().splitlines()) == 3


def test_a_thread_that_waits_for_another_function_is_woken(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(FunctionTimeoutError, match="timeout=1 s of call_another"):
        functions.call_another.remote(str(marker))
    assert marker.read_text().split() == ["InputTimeout"]


def test_a_stop_waits_for_no_thread_that_cannot_be_ended(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with functions.stubborn_app.run():
        functions.Stubborn(path=str(marker)).hold.spawn()
        wait_until(lambda: marker.exists() and marker.read_text() == "holds\n")
    assert marker.read_text() == "holds\nexit hook\n"


GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "concurrency.md"
PROGRAMS = re.findall(r"```python\n(import .*?)```\n\n```\n(.*?)```", GUIDE.read_text(), re.DOTALL)
assert len(PROGRAMS) == 5, "the programs of the guide are no longer found"


@pytest.mark.parametrize(("program", "shown"), PROGRAMS, ids=[str(number) for number in range(len(PROGRAMS))])
def test_the_programs_of_the_guide_print_what_it_shows(program: str, shown: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "-m", "kedge.cli.main", "run", "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    # The program's own lines and those of its containers come by different ways.
    assert sorted(line for line in lines if line in shown.splitlines()) == sorted(shown.splitlines()), done.stdout
