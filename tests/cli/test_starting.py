"""What a person sees while the functions of a version come up."""

from __future__ import annotations

import pytest
from rich.console import Console

from kedge.cli import display as displays
from kedge.cli import progress
from kedge.cli.display import PlainDisplay
from kedge.cli.starting import Starting
from kedge.model.protocol import OutputCaptured
from tests.cli.test_display import pool


def wrote(pool: str, data: bytes) -> OutputCaptured:
    return OutputCaptured("ct-1", 1, data, 0.0, "ap-77", pool)


class Remembering(PlainDisplay):
    def __init__(self) -> None:
        super().__init__("shop")
        self.loading: list[list[tuple[str, str]]] = []

        self.times: list[float] = []

    def starting(self, functions: list[tuple[str, str]], elapsed: float) -> None:
        self.loading.append(functions)
        self.times.append(elapsed)


def test_functions_that_have_not_come_up_with_their_last_line() -> None:
    display = Remembering()
    sink = Starting(display)
    sink.captured(wrote("fu-77-M", b"shard 1\nshard 2\n\n"))
    sink.captured(wrote("fu-66-N", b"of the version before\n"))
    sink.captured(wrote("fu-77-M", b""))
    sink.progress([pool("M", starting=1), pool("N", starting=1), pool("up", containers=1, starting=1), pool("idle")])
    sink.captured(wrote("fu-77-M", b"10 %\r20 %"))
    sink.progress([pool("M", starting=1)])
    sink.progress([pool("M", containers=1)])
    assert display.loading == [[("M", "shard 2"), ("N", "")], [("M", "20 %")], []]


def test_time_counts_from_when_containers_were_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    display = Remembering()
    sink = Starting(display)
    starting, up = [pool("M", starting=1)], [pool("M", containers=1)]
    for elapsed, pools in [(17.0, []), (20.0, starting), (25.0, starting), (26.0, up), (30.0, starting)]:
        monkeypatch.setattr(displays.Display, "elapsed", elapsed)
        sink.progress(pools)
    assert display.times == [0.0, 0.0, 5.0, 0.0, 0.0], "the image was built in the first 17 seconds"


def test_without_a_terminal_it_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = PlainDisplay("shop")
    for elapsed in (1.0, 10.1, 11.0, 19.9, 20.4):
        display.starting([("M", "shard 2"), ("N", "")], elapsed)
    display.starting([], 0.0)
    for elapsed in (0.0, 10.0):
        display.starting([("N", "")], elapsed)
    assert capsys.readouterr().err.splitlines() == [
        "kedge: still starting: M, N (10 s); M: shard 2",
        "kedge: still starting: M, N (20 s); M: shard 2",
        "kedge: still starting: N (10 s)",
    ]


def test_on_a_terminal_there_is_a_line_for_each() -> None:
    console = Console(width=40, no_color=True)
    lines = progress.starting_lines(console, [("M", "x" * 80), *[(f"F{i}", "") for i in range(9)]])
    assert lines[0].startswith("  M is starting  xxx")
    assert all(len(line) <= 40 for line in lines)
    assert (len(lines), lines[-1]) == (9, "  … and 2 more")
