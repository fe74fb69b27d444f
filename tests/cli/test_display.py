"""What a person sees: text that stays above, live lines below, never mixed up."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from kedge.cli import progress
from kedge.cli.display import LiveDisplay, PlainDisplay, QuietDisplay, display_for
from kedge.cli.terminal import Screen, piped, sharing
from kedge.model.protocol import OutputCaptured
from kedge.sdk.lines import OPEN_LINES
from tests.cli.fake_terminal import FakeTerminal


def pool(name: str = "fetch", variant: str = "", **changes: Any) -> dict[str, Any]:
    base = {
        "pool": f"fu-77-{name}" + (f"@{variant}" if variant else ""),
        "name": name,
        "backlog": 0,
        "delayed": 0,
        "running": 0,
        "submitted": 0,
        "finished": 0,
        "failed": 0,
        "cancelled": 0,
        "containers": 0,
        "starting": 0,
        "started": 0,
        "waiting_for_room": "",
    }
    assert not changes.keys() - base.keys()
    return {**base, **changes}


def output(
    data: bytes, *, stream: int = 1, container: str = "ct-00000000abcd", at: float = 0.0, **inside: Any
) -> OutputCaptured:
    return OutputCaptured(container, stream, data, at, "ap-77", "fu-77-fetch@0011", **inside)


BUSY = pool(submitted=4312, finished=1234, running=120, backlog=2900, delayed=58, containers=3, starting=2, started=5)


# ---------------------------------------------------------------- the screen


@contextlib.contextmanager
def at_terminal() -> Iterator[FakeTerminal]:
    """The program's output goes to a terminal. Not a fixture: pytest's own capture would take its place."""
    terminal = FakeTerminal()
    with (
        contextlib.redirect_stdout(terminal),
        contextlib.redirect_stderr(terminal),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("kedge.cli.terminal.REDRAW_S", 0)
        patch.setattr("kedge.cli.display.TAIL_AGE_S", 0)
        yield terminal


def test_text_stays_above_the_live_lines() -> None:
    with at_terminal() as terminal:
        live = ["live 1", "live 2"]
        screen = Screen(terminal, lambda: live)
        screen.redraw()
        screen.write("first\n")
        live[:] = ["changed", "to", "three"]
        screen.redraw()
        screen.write("second\nthird\n")
        assert terminal.seen == ["first", "second", "third", "changed", "to", "three"]
        live[:] = ["one"]
        screen.redraw()
        assert terminal.seen == ["first", "second", "third", "one"]
        screen.close()
        assert terminal.seen == ["first", "second", "third"]


def test_live_lines_wait_until_a_print_has_ended_its_line() -> None:
    with at_terminal() as terminal:
        screen = Screen(terminal, lambda: ["live"])
        with sharing(screen):
            print("half", end="")
            screen.redraw()
            assert terminal.seen == ["half"]
            print(" whole")
            assert terminal.seen == ["half whole", "live"]


def test_lines_of_containers_do_not_continue_a_half_printed_line() -> None:
    with at_terminal() as terminal:
        screen = Screen(terminal, list)
        with sharing(screen):
            print("half", end="")
            screen.write("from a container\n")
            print("rest")
        assert terminal.seen == ["half", "from a container", "rest"]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set as soon as somebody waits for the end of a line, which is waited for as long as it takes."""
    waiting = threading.Event()
    pause = time.sleep

    def sleep(seconds: float) -> None:
        waiting.set()
        pause(0.001)

    monkeypatch.setattr("kedge.cli.terminal.time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    monkeypatch.setattr("kedge.cli.terminal.BEGUN_S", 60.0)
    return waiting


def test_lines_of_containers_wait_for_the_end_of_a_print(waits: threading.Event) -> None:
    with at_terminal() as terminal:
        screen = Screen(terminal, list)
        screen.write("ok", whole_lines=False)
        other = threading.Thread(target=screen.write, args=("from a container\n",))
        other.start()
        assert waits.wait(10)
        screen.write("\n", whole_lines=False)
        other.join(10)
        assert terminal.lines == ["ok", "from a container", ""]


def test_lines_of_containers_wait_for_the_end_of_a_print_into_a_pipe(waits: threading.Event) -> None:
    pipe = io.TextIOWrapper(io.BytesIO(), write_through=True)
    display = PlainDisplay("demo")
    with contextlib.redirect_stdout(pipe):
        with display.shown():
            sys.stdout.write("ok")
            other = threading.Thread(target=display.captured, args=(output(b"from a container\n"),))
            other.start()
            assert waits.wait(10)
            sys.stdout.write("\n")
            other.join(10)
        assert pipe.buffer.getvalue() == b"ok\nfrom a container\n"  # type: ignore[attr-defined]


def test_a_line_that_stays_without_an_end_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr("kedge.cli.terminal.BEGUN_S", 0.0)
    display = PlainDisplay("demo")
    with display.shown():
        print("working", end="")
        display.captured(output(b"from a container\n"))
        with contextlib.redirect_stdout(io.StringIO()) as own:
            display.captured(output(b"another\n"))
    assert (capfdbinary.readouterr().out, own.getvalue()) == (b"workingfrom a container\nanother\n", "")


def test_a_fork_of_the_program_prints_as_ever(capfd: pytest.CaptureFixture[str]) -> None:
    with piped("stdout") as stdout:
        with stdout._lock:  # a container's line is being written in this moment
            child = os.fork()
            if not child:
                print("from the child", flush=True)
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert capfd.readouterr().out == "from the child\n"


def test_a_question_is_asked_without_live_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with at_terminal() as terminal:
        screen = Screen(terminal, lambda: ["live"])
        asked = []

        def ask(prompt: object = "") -> str:
            terminal.write(f"{prompt}")
            screen.redraw()
            asked.append(terminal.seen)
            terminal.write("Ada\n")
            return "Ada"

        monkeypatch.setattr(builtins, "input", ask)
        with sharing(screen):
            screen.redraw()
            assert input("Your name? ") == "Ada"
            print("Hello")
        assert asked == [["Your name?"]]
        assert terminal.seen == ["Your name? Ada", "Hello", "live"]
        assert builtins.input is ask


def test_everything_is_as_before_afterwards() -> None:
    with at_terminal() as terminal:
        with sharing(Screen(terminal, list)):
            assert sys.stdout is not terminal
        assert sys.stdout is terminal
        assert sys.stderr is terminal


def test_a_terminal_that_is_gone_stops_nothing() -> None:
    stream = FakeTerminal()
    screen = Screen(stream, lambda: ["live"])
    stream.close()
    stream.write = io.StringIO.write.__get__(stream)  # type: ignore[method-assign]
    screen.write("lost\n")
    screen.redraw()
    screen.close()


# ---------------------------------------------------------------- displays


def test_a_line_says_where_it_comes_from() -> None:
    with at_terminal() as terminal:
        display = LiveDisplay("demo", terminal)
        display.captured(output(b"out\n"))
        display.captured(output(b"err\n", stream=2))
        display.captured(output(b"\x1b[2J\xff\n", container="ct-000000001234"))
        assert [line for line in terminal.seen if "demo" not in line] == [
            "fetch abcd │ out",
            "fetch abcd ! err",
            "fetch 1234 │ �",
        ]


def test_lines_of_concurrent_containers_are_never_mixed() -> None:
    with at_terminal() as terminal:
        display = LiveDisplay("demo", terminal)
        for piece in (b"one ", b"two ", b"three\n"):
            display.captured(output(piece))
            display.captured(output(piece.upper(), container="ct-00000000ef01"))
        assert [line for line in terminal.seen if "demo" not in line] == [
            "fetch abcd │ one two three",
            "fetch ef01 │ ONE TWO THREE",
        ]


def test_lines_of_inputs_in_one_container_are_never_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    origins: list[dict[str, Any]] = [
        {"call": "fc-1", "index": 0},
        {"call": "fc-1", "index": 1},
        {"call": "fc-2", "index": 0},
        {"call": "fc-1", "index": 0, "attempt": 1},
        {"call": "fc-1", "index": 0, "writer": 1},
        {"raw": True},
        {},
    ]
    display = PlainDisplay("demo")
    for piece in (b"one ", b"two ", b"three"):
        for number, inside in enumerate(origins):
            display.captured(output(b"%d%b" % (number, piece), **inside))
    for inside in origins:
        display.captured(output(b"\n", **inside))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{number}one {number}two {number}three" for number in range(len(origins))]


def test_a_container_that_is_gone_ends_its_lines() -> None:
    with at_terminal() as terminal:
        display = LiveDisplay("demo", terminal)
        display.captured(output(b"half", call="fc-1", index=0))
        display.captured(output(b"whole\nother half", container="ct-00000000ef01"))
        display.captured(output(b""))
        assert [line for line in terminal.seen if "demo" not in line] == [
            "fetch ef01 │ whole",
            "fetch abcd │ half",
            "fetch ef01 │ other half",
        ], "the last one is a live line"
        display.captured(output(b" and its end\n", container="ct-00000000ef01"))
        assert [line for line in terminal.seen if "demo" not in line][2:] == ["fetch ef01 │ other half and its end"]


def test_very_many_lines_without_an_end_are_not_all_kept(capsys: pytest.CaptureFixture[str]) -> None:
    display = PlainDisplay("demo")
    for number in range(OPEN_LINES + 2):
        display.captured(output(b"%d" % number, call="fc-1", index=number))
    assert capsys.readouterr().out == "0\n1\n"


def test_a_line_without_an_end_is_shown_live_and_written_at_the_end() -> None:
    with at_terminal() as terminal:
        display = LiveDisplay("demo", terminal)
        with display.shown():
            display.captured(output(b"\r10 %\r20 %"))
            display._screen.redraw()
            assert terminal.seen[0] == "fetch abcd │ 20 %"
            assert "demo" in terminal.seen[1]
        assert terminal.seen == ["fetch abcd │ 20 %"]


def test_the_first_ctrl_c_says_what_happens() -> None:
    with at_terminal() as terminal:
        display = LiveDisplay("demo", terminal)
        display.interrupted("Stopping (Ctrl-C again to stop at once)")
        display._screen.redraw()
        assert terminal.seen[-1] == "Stopping (Ctrl-C again to stop at once)"
        display.abandon()


def test_without_a_terminal_bytes_pass_unchanged(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    display = display_for("demo")
    assert type(display) is PlainDisplay
    with display.shown():
        display.captured(output(b"\x1b[1mbold\x1b[0m\xff\r\n"))
        display.captured(output(b"no end"))
        display.captured(output(b"err\n", stream=2))
        display.notice("waits for room", "room")
    display.progress([BUSY])
    display.finish("Done")
    out, err = capfdbinary.readouterr()
    assert out == b"\x1b[1mbold\x1b[0m\xff\r\nno end\n"
    lines = err.decode().splitlines()
    assert lines[:2] == ["err", "kedge: waits for room"]
    assert lines[2].startswith("kedge: Done: 1,234 of 4,312 inputs in 5 containers, ")


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainDisplay, "elapsed", 0.0)
    display = PlainDisplay("demo")
    shown = []
    for second in range(100):
        monkeypatch.setattr(PlainDisplay, "elapsed", float(second))
        display.progress([{**BUSY, "finished": second}])
        if capsys.readouterr().err:
            shown.append(second)
    assert shown == [10, 20, 40, 80]


def test_progress_counts_from_when_there_is_something_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    display = PlainDisplay("demo")
    for elapsed, pools in [(17.0, []), (18.0, [pool("f", submitted=1, starting=1)]), (29.0, [pool("f", submitted=1)])]:
        monkeypatch.setattr(PlainDisplay, "elapsed", elapsed)
        display.progress(pools)
    assert capsys.readouterr().err == "kedge: 0 of 1 input, 0 containers (11.0 s)\n", "not of building an image before"
    display.finish("Done")
    assert capsys.readouterr().err.endswith("29.0 s\n"), "the end counts all of it"


def test_timestamps_begin_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    display = PlainDisplay("demo", timestamps=True)
    display.captured(output(b"one\ntwo\n", at=1_700_000_000.25))
    lines = capsys.readouterr().out.splitlines()
    assert [line[-8:] for line in lines] == [".250 one", ".250 two"]


def test_quiet_shows_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    display = display_for("demo", quiet=True)
    assert type(display) is QuietDisplay
    with display.shown():
        display.captured(output(b"out\n"))
        display.notice("room")
        display.progress([BUSY])
        display.interrupted("Stopping")
        display.error(Text("ValueError: broken"))
    display.finish("Failed")
    assert capsys.readouterr() == ("", "ValueError: broken\n")


# ---------------------------------------------------------------- numbers


def live(width: int, *pools: dict[str, Any]) -> list[str]:
    console = Console(file=FakeTerminal(), width=width, color_system=None)
    return progress.live_lines(console, "demo", pools, 4.2)


def test_live_lines_tell_inputs_queue_and_containers() -> None:
    line, second = live(150, BUSY, pool("Model", "9f3cdd", submitted=10, finished=10, failed=3, containers=1))
    for text in ("fetch", "1,234 of 4,312 inputs", "120 running, 2,958 queued", "3 containers + 2 starting", "4.2 s"):
        assert text in line
    assert second.startswith("✓ Model@9f3c")
    assert "10 of 10 inputs, 3 failed" in second


def test_live_lines_say_what_waits_for_room() -> None:
    lines = live(100, BUSY, pool("big", submitted=1, backlog=1, waiting_for_room="8 cpu are wanted, 2 are there"))
    assert lines[-1] == "  big waits for room: 8 cpu are wanted, 2 are there"


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_live_lines_are_never_wider_than_the_terminal(width: int) -> None:
    waiting = pool("a_long_name_of_a_function" * 3, submitted=10**9, waiting_for_room="r" * 300)
    lines = live(width, BUSY, waiting)
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)


def test_many_pools_leave_room_for_output() -> None:
    lines = live(100, *(pool(f"f{number}", submitted=1, containers=1) for number in range(30)))
    assert len(lines) == progress.POOLS_SHOWN + 1
    assert lines[-1] == "  … and 22 more"


def test_before_the_first_input_there_is_a_line_too() -> None:
    (line,) = live(80, pool())
    assert "demo" in line
    assert "4.2 s" in line


def test_the_sentence_at_the_end() -> None:
    assert progress.summary("Done", [], 0.31) == "Done after 0.3 s"
    done = pool(submitted=1, finished=1, started=1)
    assert progress.summary("Done", [done], 75) == "Done: 1 input in 1 container, 1:15 min"
    assert progress.summary("Stopped", [BUSY, done], 2) == "Stopped: 1,235 of 4,313 inputs in 6 containers, 2.0 s"
    failed = pool(submitted=5, finished=5, failed=2, started=2)
    assert progress.summary("Failed", [failed], 2) == "Failed: 5 inputs in 2 containers, 2 failed, 2.0 s"
    cancelled = pool(submitted=5, finished=3, failed=2, cancelled=2, started=2)
    expected = "Done: 3 of 5 inputs in 2 containers, 2 failed, 2 cancelled, 2.0 s"
    assert progress.summary("Done", [cancelled], 2) == expected


def test_the_plain_line_sums_up() -> None:
    text = progress.plain_line([BUSY, pool("g", submitted=1, finished=1, failed=1, containers=1)], 12)
    expected = "1,235 of 4,313 inputs, 120 running, 2,958 queued, 4 containers + 2 starting, 1 failed (12.0 s)"
    assert text == expected
    assert progress.plain_line([pool()], 12) == ""
