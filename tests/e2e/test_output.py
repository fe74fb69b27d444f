"""What containers print, end to end: each line reaches who watches with the input that printed it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.model.protocol import OutputCaptured
from kedge.sdk.output import show_on
from tests.e2e import output_functions as functions

pytestmark = pytest.mark.slow


class Heard:
    """In the place of a display."""

    progress_interval = 0.0

    def __init__(self) -> None:
        self.messages: list[OutputCaptured] = []
        self._changed = threading.Condition()

    def captured(self, message: OutputCaptured) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def notice(self, text: str, level: str = "info") -> None:
        pass

    def progress(self, pools: list[dict[str, Any]]) -> None:
        pass

    def lines(self, stream: int, chosen: Callable[[OutputCaptured], bool]) -> list[str]:
        """The lines of these messages, in the order of their ends."""
        begun: dict[tuple[str, int], bytes] = {}
        found: list[str] = []
        for message in self.messages:
            if message.stream == stream and chosen(message):
                key = message.container, message.writer
                *ended, begun[key] = (begun.get(key, b"") + message.data).split(b"\n")
                found += [line.decode("latin-1") for line in ended]
        return found

    def until(self, condition: Callable[[], Any]) -> Any:
        with self._changed:
            assert self._changed.wait_for(condition, 30), self.messages[-20:]
            return condition()


@pytest.fixture(scope="module")
def heard(kedge_home: Path) -> Iterator[Heard]:
    heard = Heard()
    with show_on(heard), functions.app.run():
        yield heard


def of_call(call: str, index: int = 0) -> Callable[[OutputCaptured], bool]:
    return lambda message: (message.call, message.index) == (call, index)


def test_every_line_of_concurrent_inputs_is_its_own(heard: Heard) -> None:
    names = [f"input-{number}" for number in range(8)]
    calls = [functions.say_all.spawn(name) for name in names]
    for call, name in zip(calls, names, strict=True):
        call.get()
        mine = of_call(call.object_id)
        out = heard.until(lambda mine=mine: found if len(found := heard.lines(1, mine)) == 5 else None)
        assert out == [f"{name} {word}" for word in ("print", "thread", "executor", "child", "end")]
        errors = heard.until(lambda mine=mine: found if len(found := heard.lines(2, mine)) == 4 else None)
        assert errors[:2] == [f"{name} stderr", f"{name} logging"]
        assert errors[2].endswith(f"UserWarning: {name} warnings")


def test_so_is_that_of_tasks(heard: Heard) -> None:
    names = [f"input-{number}" for number in range(8)]
    calls = [functions.say_async.spawn(name) for name in names]
    for call, name in zip(calls, names, strict=True):
        call.get()
        mine = of_call(call.object_id)
        out = heard.until(lambda mine=mine: found if len(found := heard.lines(1, mine)) == 5 else None)
        assert sorted(out[:2]) == [f"{name} task 1", f"{name} task 2"]
        assert out[2:] == [f"{name} thread", f"{name} child", f"{name} end"]


def test_what_passes_by_python_is_marked_raw(heard: Heard) -> None:
    call = functions.say_raw.spawn()
    call.get()
    heard.until(lambda: len(heard.lines(1, lambda message: message.raw)) == 2)
    heard.until(lambda: len(heard.lines(2, lambda message: message.raw)) == 1)
    assert heard.lines(1, lambda message: message.raw) == ["descriptor", "library"]
    assert heard.lines(2, lambda message: message.raw) == ["shell"]
    assert not heard.lines(1, of_call(call.object_id))
    assert all(not message.call for message in heard.messages if message.raw)


def test_each_attempt_is_known(heard: Heard) -> None:
    call = functions.say_attempt.spawn()
    call.get()
    mine = of_call(call.object_id)
    heard.until(lambda: len(heard.lines(1, mine)) == 2)
    attempts = [(message.attempt, message.data) for message in heard.messages if mine(message) and message.stream == 1]
    assert attempts == [(0, b"attempt 0\n"), (1, b"attempt 1\n")]


def test_methods_are_named_and_hooks_are_nobody_s(heard: Heard) -> None:
    call = functions.Crier().cry.spawn("all is well")
    call.get()
    mine = of_call(call.object_id)
    heard.until(lambda: heard.lines(1, mine) == ["all is well"])
    [message] = [message for message in heard.messages if mine(message)]
    assert message.method == "cry"
    before = [each for each in heard.messages if each.container == message.container and not each.call]
    assert [(each.data, each.raw) for each in before] in (
        [(b"imported\nentered\n", False)],
        [
            (b"imported\n", False),
            (b"entered\n", False),
        ],
    )


def test_many_lines_arrive_whole_and_in_order(heard: Heard) -> None:
    call = functions.say_much.spawn(50_000)
    call.get()
    mine = of_call(call.object_id)
    size = sum(len(f"line {number}\n") for number in range(50_000))
    heard.until(lambda: sum(len(message.data) for message in heard.messages if mine(message)) >= size)
    assert heard.lines(1, mine) == [f"line {number}" for number in range(50_000)]
    assert len([message for message in heard.messages if mine(message)]) < 5_000


def test_long_lines_and_binary_output(heard: Heard) -> None:
    call = functions.say_at_length.spawn(1_000_000)
    call.get()
    mine = of_call(call.object_id)
    heard.until(lambda: len(heard.lines(1, mine)) == 2)
    long, binary = heard.lines(1, mine)
    assert (len(long), binary.encode("latin-1")) == (1_000_000, bytes(range(11, 256)))
