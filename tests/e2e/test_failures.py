"""What goes wrong in a container: one clear error for the caller, and everybody else goes on."""

from __future__ import annotations

import threading
import time
import traceback
from pathlib import Path

import pytest

import kedge
from tests.e2e import harbour

pytestmark = [pytest.mark.usefixtures("running"), pytest.mark.slow]


def wait_for(path: Path, text: str) -> None:
    """Waits until a marker file says `text`."""
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text() == text):
        assert time.monotonic() < deadline, f"{path} never said {text!r}: {path.read_text() if path.exists() else None}"
        threading.Event().wait(0.01)


def test_the_users_exception_comes_back_as_itself_with_the_remote_traceback() -> None:
    with pytest.raises(harbour.Wreck) as caught:
        harbour.fail.remote("wreck")
    assert (caught.value.ship, caught.value.depth) == ("Vasa", 32)
    text = "".join(traceback.format_exception(caught.value))
    assert "harbour.py" in text
    assert 'raise Wreck("Vasa", 32)' in text


def test_the_cause_is_not_lost() -> None:
    with pytest.raises(RuntimeError, match="while counting") as caught:
        harbour.fail.remote("chain")
    assert "ZeroDivisionError" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("unpicklable exception", "holds a lock"),
        ("unpicklable result", "lock"),
        ("sys.exit", "SystemExit"),
        ("base exception", "the base"),
        ("keyboard interrupt", "KeyboardInterrupt"),
    ],
)
def test_whatever_user_code_does_only_its_input_fails(how: str, text: str) -> None:
    before = harbour.where.remote()["process"]
    with pytest.raises(BaseException) as caught:
        harbour.fail.remote(how)
    assert text in f"{type(caught.value).__name__}: {caught.value}"
    assert harbour.fail.remote("fine") == "fine"
    assert harbour.where.remote()["process"] == before


def test_an_argument_that_does_not_pickle_names_itself() -> None:
    with pytest.raises(kedge.exception.SerializationError, match="lock"):
        harbour.square.remote(threading.Lock())


def test_a_failing_input_is_tried_again_as_often_as_asked(tmp_path: Path) -> None:
    assert harbour.fail_until.remote(str(tmp_path / "two"), 2) == 3
    with pytest.raises(ValueError, match="try 3"):
        harbour.fail_until.remote(str(tmp_path / "nine"), 9)


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_container_that_dies_is_replaced_and_its_input_runs_again(tmp_path: Path, how: str) -> None:
    assert harbour.die.remote(str(tmp_path / how), how) == "survived"


def test_a_poison_input_ends_with_the_signal_that_it_causes() -> None:
    with pytest.raises(kedge.exception.InternalFailure, match="signal 11"):
        harbour.poison.remote()


def test_a_failing_enter_hook_reaches_every_caller_as_itself() -> None:
    with pytest.raises(harbour.Wreck) as caught:
        harbour.Leaking().sail.remote()
    assert caught.value.ship == "Mary Rose"


def test_cancel_reaches_sync_and_async_code(tmp_path: Path) -> None:
    sync, other = tmp_path / "sync", tmp_path / "async"
    first, second = harbour.sleep_forever.spawn(str(sync)), harbour.sleep_forever_async.spawn(str(other))
    wait_for(sync, "started")
    wait_for(other, "started")
    first.cancel()
    second.cancel()
    wait_for(sync, "InputCancellation")
    wait_for(other, "CancelledError")
    with pytest.raises(kedge.exception.RemoteError, match="cancel"):
        first.get(timeout=10)


def test_a_dropped_generator_is_closed(tmp_path: Path) -> None:
    values = harbour.count_to.remote_gen(10_000_000)
    assert next(values) == 0
    values.close()
    assert harbour.square.remote(2) == 4
