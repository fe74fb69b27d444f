"""Code that does what it should not with its own end: what its caller, its siblings and the log see of that."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kedge
from kedge.exception import FunctionTimeoutError, RemoteError
from kedge.sdk.output import show_on
from tests.e2e import bad_functions as functions
from tests.e2e.test_output import Heard, of_call

pytestmark = pytest.mark.slow


class Listener(Heard):
    def __init__(self) -> None:
        super().__init__()
        self.notices: list[str] = []

    def notice(self, text: str, level: str = "info") -> None:
        self.notices.append(text)

    def lines_of(self, call: kedge.FunctionCall[Any], expected: str) -> list[str]:
        """What a call has printed, as soon as that contains the line."""
        mine = of_call(call.object_id)
        self.until(lambda: expected in self.lines(1, mine))
        return self.lines(1, mine)


@pytest.fixture(scope="module")
def heard(kedge_home: Path) -> Iterator[Listener]:
    heard = Listener()
    with show_on(heard), functions.app.run():
        yield heard


@pytest.fixture
def bad(heard: Listener) -> Any:
    return functions.Bad()


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    return found


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


class Siblings:
    """Two inputs that work in the container of the bad one until `finish`."""

    def __init__(self, bad: Any, tmp_path: Path) -> None:
        self._gate = tmp_path / "gate"
        self.calls = [bad.work.spawn(str(self._gate)), bad.work_async.spawn(str(self._gate))]

    def finish(self) -> str:
        """Their container."""
        self._gate.touch()
        (container,) = {call.get(timeout=30) for call in self.calls}
        return str(container)


@pytest.fixture
def siblings(bad: Any, tmp_path: Path) -> Siblings:
    return Siblings(bad, tmp_path)


def cancelled(call: kedge.FunctionCall[Any]) -> bool:
    """Waits for the caller's answer: whether it is that, also when asked again."""
    for _ in range(2):
        with pytest.raises(RemoteError, match="the input was cancelled"):
            call.get(timeout=30)
    return True


# ---------------------------------------------------------------- code that goes on


@pytest.mark.parametrize(
    ("method", "sees"),
    [
        ("swallow", ["swallows InputCancellation"]),
        ("swallow_async", ["swallows CancelledError"]),
        ("loop_in_c", []),
    ],
)
def test_code_that_goes_on_is_replaced_when_its_siblings_have_ended(
    heard: Listener, bad: Any, siblings: Siblings, tmp_path: Path, method: str, sees: list[str]
) -> None:
    path, old = tmp_path / "path", bad.where.remote()
    call = getattr(bad, method).spawn(str(path))
    process = until(lambda: lines(path))[0]
    call.cancel()
    assert cancelled(call)
    until(lambda: bad.where.remote() != old)
    assert siblings.finish() == old
    text = f"1 input of Bad did not end 0.5 s after its code was told to: {old} gets nothing new and is replaced"
    (notice,) = [notice for notice in heard.notices if old in notice]
    # The siblings, and perhaps the one that asks where it is.
    assert notice.removeprefix(f"{text} when its other inputs have ended ") in ("(2)", "(3)")
    until(lambda: not os.path.exists(f"/proc/{process}"))
    assert lines(path)[1:] == sees, "it was told once"


def test_the_caller_of_code_that_goes_on_after_its_time_hears_that(
    bad: Any, siblings: Siblings, tmp_path: Path
) -> None:
    path, old = tmp_path / "path", bad.where.remote()
    call = functions.Bad.with_options(timeout=0.5)().swallow.spawn(str(path))
    with pytest.raises(FunctionTimeoutError, match=r"timeout=0\.5 s, and its code has not ended since it was told to"):
        call.get(timeout=30)
    until(lambda: bad.where.remote() != old)
    assert siblings.finish() == old
    until(lambda: not os.path.exists(f"/proc/{lines(path)[0]}"))
    assert lines(path)[1:] == ["swallows InputTimeout"]


def test_code_that_holds_python_s_lock_goes_down_with_its_container(bad: Any, tmp_path: Path) -> None:
    path = tmp_path / "path"
    call = bad.hold_the_lock.spawn(str(path))
    process = until(lambda: lines(path))[0]
    call.cancel()
    assert cancelled(call)
    until(lambda: not os.path.exists(f"/proc/{process}"))
    assert bad.where.remote()


# ---------------------------------------------------------------- code that makes something else of it


@pytest.mark.parametrize(
    ("method", "sees"),
    [
        ("fail_instead", "fails"),
        ("fail_instead_async", "fails"),
        ("answer_instead", "answers"),
        ("answer_instead_async", "answers"),
    ],
)
def test_whatever_code_makes_of_its_cancellation_it_stays_cancelled(
    bad: Any, siblings: Siblings, tmp_path: Path, method: str, sees: str
) -> None:
    path = tmp_path / "path"
    call = getattr(bad, method).spawn(str(path))
    until(lambda: lines(path))
    call.cancel()
    assert cancelled(call)
    until(lambda: lines(path) == ["begins", sees])
    assert bad.where.remote() == siblings.finish(), "the container goes on"


def test_what_is_printed_when_objects_die_belongs_to_the_input(
    heard: Listener, bad: Any, siblings: Siblings, tmp_path: Path
) -> None:
    path = tmp_path / "path"
    call = bad.say_farewell.spawn(str(path))
    until(lambda: lines(path))
    call.cancel()
    assert cancelled(call)
    assert heard.lines_of(call, "farewell") == ["farewell"]
    assert bad.where.remote() == siblings.finish()
    assert heard.lines_of(siblings.calls[0], "worked") == ["worked"]


# ---------------------------------------------------------------- code that ends itself


@pytest.mark.parametrize("method", ["cancel_itself", "cancel_itself_async"])
def test_code_may_cancel_its_own_call(heard: Listener, bad: Any, siblings: Siblings, method: str) -> None:
    with pytest.raises(RemoteError, match="the input was cancelled"):
        getattr(bad, method).remote()
    call = getattr(bad, method).spawn()
    assert cancelled(call)
    assert heard.lines_of(call, "told by itself") == ["told by itself"]
    assert bad.where.remote() == siblings.finish()


@pytest.mark.parametrize(
    ("method", "what", "text"),
    [
        ("raise_itself", "CancelledError", r"CancelledError\(by hand\), which nobody had asked for"),
        ("raise_itself_async", "CancelledError", r"CancelledError\(by hand\), which nobody had asked for"),
        ("raise_itself", "InputCancellation", r"InputCancellation\(by hand\), which nobody had asked for"),
        ("raise_itself", "SystemExit", r"SystemExit\(by hand\), which ends it but not you"),
    ],
)
def test_what_code_raises_by_itself_is_its_failure(
    bad: Any, siblings: Siblings, method: str, what: str, text: str
) -> None:
    with pytest.raises(RemoteError, match=text):
        getattr(bad, method).remote(what)
    assert bad.where.remote() == siblings.finish()


def test_siblings_of_code_that_ends_the_process_run_again(bad: Any, siblings: Siblings, tmp_path: Path) -> None:
    before = bad.where.remote()
    assert bad.exit_once.remote(str(tmp_path / "path")) == "survived"
    (tmp_path / "gate").touch()
    assert before not in {call.get(timeout=30) for call in siblings.calls}


# ---------------------------------------------------------------- code that leaves something behind


def test_threads_that_outlive_their_input_disturb_nobody(
    heard: Listener, bad: Any, siblings: Siblings, tmp_path: Path
) -> None:
    call = bad.leak_threads.spawn(str(tmp_path / "gate"))
    container = call.get(timeout=30)
    assert bad.where.remote() == container
    assert siblings.finish() == container
    heard.until(lambda: heard.lines(1, of_call(call.object_id)) == ["leaked"] * 3)


def test_a_child_that_was_forked_is_not_interrupted_and_ends_with_the_container(tmp_path: Path) -> None:
    path = tmp_path / "path"
    with functions.parents.run():
        call = functions.fork.spawn(str(path))
        child = until(lambda: lines(path))[0]
        call.cancel()
        assert cancelled(call)
        until(lambda: lines(path)[1:] == ["the parent is told"])
        assert os.path.exists(f"/proc/{child}")
    until(lambda: not os.path.exists(f"/proc/{child}"))


def test_code_that_closes_the_streams_silences_nobody(heard: Listener, bad: Any, siblings: Siblings) -> None:
    assert bad.close_stdout.remote() == "closed"
    assert bad.where.remote() == siblings.finish()
    for call in siblings.calls:
        assert heard.lines_of(call, "worked") == ["worked"]
