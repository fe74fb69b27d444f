"""Failures that nobody awaits leave a trace in the log of their app."""

from __future__ import annotations

from pathlib import Path

from kedge.model import protocol as p
from kedge.model.payload import FAILURE, INIT_FAILURE, SUCCESS, ErrorInfo, Result
from kedge.server.logreader import LogReader, Selection
from kedge.server.remarks import MESSAGE_LIMIT, TRACEBACK_LIMIT
from tests.server.fake_engine import FakeEngine, hold
from tests.server.shell import app, inputs, running, spawned
from tests.wire.loops import on_loop, until

TRACEBACK = 'Traceback (most recent call last):\n  File "shop.py", line 3, in square\nValueError: no 3\n'


def written(directory: Path, **selection: object) -> list[str]:
    path = directory / "logs" / "logs.db"
    if not path.exists():
        return []
    with LogReader(path) as reader:
        entries = [reader.entry(number) for number in reader.find(Selection(**selection))]
        return [bytes(entry.data).decode() for entry in entries if entry is not None]


def failing(error: ErrorInfo, status: str = FAILURE) -> FakeEngine:
    return FakeEngine(lambda dispatch: Result(status, error=error))


@on_loop
async def test_a_spawned_call_that_fails_is_in_the_log_of_its_app_function_and_input(tmp_path: Path) -> None:
    async with running(tmp_path, failing(ErrorInfo("ValueError", "no 3", TRACEBACK))) as shell:
        client = await shell.client(p.AppCreated(1, app()), spawned("a", "b"), p.OutputsRequested("fc-1", 0, 2, 2))
        await client.results("fc-1", 2)
    first = "[kedge: fc-1 of square failed: ValueError: no 3]\n" + TRACEBACK
    second = "[kedge: in-1-1 of square failed: ValueError: no 3]\n" + TRACEBACK
    assert sorted(written(tmp_path, app="ap-1")) == sorted([first, second])
    assert sorted(written(tmp_path, function="square")) == sorted([first, second])
    assert written(tmp_path, call="fc-1", index=0) == [first]
    assert written(tmp_path, call="fc-1", index=1) == [second]


@on_loop
async def test_who_awaits_a_call_hears_of_it_and_the_log_does_not(tmp_path: Path) -> None:
    async with running(tmp_path, failing(ErrorInfo("ValueError", "no 3", TRACEBACK))) as shell:
        client = await shell.client(p.AppCreated(1, app()), inputs("a"))
        await client.results("fc-1", 1)
    assert written(tmp_path, app="ap-1") == []


@on_loop
async def test_a_call_that_succeeds_leaves_no_trace(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        client = await shell.client(p.AppCreated(1, app()), spawned("a"), p.OutputsRequested("fc-1", 0, 1, 2))
        assert (await client.results("fc-1", 1))[0].status == SUCCESS
    assert written(tmp_path, app="ap-1") == []


@on_loop
async def test_the_trace_is_bounded_and_one_line_stays_one(tmp_path: Path) -> None:
    error = ErrorInfo("ValueError", "a\nb" + "x" * 100_000, "frame\n" * 100_000)
    async with running(tmp_path, failing(error)) as shell:
        client = await shell.client(p.AppCreated(1, app()), spawned("a"), p.OutputsRequested("fc-1", 0, 1, 2))
        await client.results("fc-1", 1)
    (text,) = written(tmp_path, app="ap-1")
    line, _, detail = text.partition("\n")
    assert line.startswith("[kedge: fc-1 of square failed: ValueError: a bxxx")
    assert len(line) < MESSAGE_LIMIT + 200
    assert "characters left out" in detail
    assert len(detail) < TRACEBACK_LIMIT * 2


@on_loop
async def test_what_a_container_has_printed_itself_is_not_repeated(tmp_path: Path) -> None:
    async with running(tmp_path, failing(ErrorInfo("ImportError", "no shop", TRACEBACK), INIT_FAILURE)) as shell:
        client = await shell.client(p.AppCreated(1, app()), spawned("a"), p.OutputsRequested("fc-1", 0, 1, 2))
        await client.results("fc-1", 1)
    assert written(tmp_path, app="ap-1") == ["[kedge: fc-1 of square failed: ImportError: no shop]\n"]


@on_loop
async def test_a_container_that_dies_is_said_in_its_own_log_after_what_it_wrote(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        await shell.client(p.AppCreated(1, app()), inputs("a"))
        await until(lambda: shell.engine.containers and shell.engine.only.held)
        container = shell.engine.only.launch.container
        shell.driver.report(p.OutputCaptured(container, 1, b"last words\n", 1.0))
        shell.driver.report(p.ContainerLost(container, exit_code=7))
    texts = written(tmp_path, app="ap-1", container=container)
    assert texts == ["last words\n", "[kedge: the container died: exit code 7 (1 input was in it)]\n"]
