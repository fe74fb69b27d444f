"""A cancelled thread leaves no lock of the standard library behind: its siblings use them too."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.container import brittle
from tests.container import locks
from tests.container.fake_plane import FakePlane, function, service_class

METHODS = dict.fromkeys(("hold", "use", "try_it", "churn", "permits"), False)


def sharing(plane: FakePlane, max_inputs: int) -> FakePlane:
    return plane.start(service_class("Sharing", max_inputs, METHODS, module="locks"))


@pytest.mark.parametrize("how", locks.LOCKS)
def test_who_is_cancelled_while_it_waits_for_a_lock_does_not_keep_it(plane: FakePlane, how: str) -> None:
    sharing(plane, 3)
    holder = plane.dispatch(how, method="hold")
    plane.noted(f"held {how}")
    unwanted = plane.dispatch(how, method="use")
    plane.noted(f"begin {how}")
    plane.poll(0.05)  # it comes to the lock, and waits there
    plane.cancel(unwanted)
    plane.poll(0.05)
    assert unwanted not in plane.finished, "nothing ends the wait for a lock"
    plane.allow(how)
    assert plane.value(holder) == how
    assert plane.result(unwanted).result.status == "terminated"
    assert f"InputCancellation {how}" in plane.journal()
    for _ in range(3):
        assert plane.call(how, method="try_it") == how
    assert plane.call(method="permits") == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["handler", "queue", "semaphore"])
def test_many_cancels_under_contention_leave_nothing_locked(plane: FakePlane, how: str) -> None:
    sharing(plane, 8)
    crowd = [plane.dispatch(how, method="churn") for _ in range(6)]
    for _ in range(200):
        unwanted = crowd.pop(0)
        plane.cancel(unwanted)
        assert plane.result(unwanted).result.status == "terminated"
        crowd.append(plane.dispatch(how, method="churn"))
    plane.cancel(*crowd)
    for lease in crowd:
        assert plane.result(lease).result.status == "terminated"
    assert plane.call(how, method="try_it") == how
    assert plane.call(method="permits") == 1


@pytest.mark.slow
def test_with_one_slot_a_lock_is_not_kept_from_the_next_input(plane: FakePlane) -> None:
    """The main thread is interrupted by a signal, wherever it is."""
    plane.start(service_class("Sharing", 1, METHODS, module="locks"))
    for _ in range(15):
        unwanted = plane.dispatch("queue", method="churn")
        plane.poll(0.003)
        plane.cancel(unwanted)
        assert plane.result(unwanted).result.status == "terminated"
    assert plane.call("queue", method="try_it") == "queue"


# ---------------------------------------------------------------- where a thread stands


class Parked(threading.Thread):
    """A thread that stands somewhere until it is interrupted."""

    def __init__(self, stand: object) -> None:
        super().__init__(daemon=True)
        self.stand = stand
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while True:
                self.stand()  # type: ignore[operator]
                time.sleep(0.001)
        except BaseException as error:
            self.error = error

    def wait_in(self, name: str) -> None:
        """Until it stands in a function of this name, and has stood there for a while."""
        deadline = time.monotonic() + 30
        while self.ident is None or brittle.sys._current_frames()[self.ident].f_code.co_name != name:
            assert time.monotonic() < deadline
            time.sleep(0.001)


class Interruption(BaseException): ...


@pytest.fixture
def sturdy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conditions and handlers as in a container, for the time of a test."""
    for owner, name in (
        (threading.Condition, "__enter__"),
        (threading.Condition, "__exit__"),
        (logging.Handler, "handle"),
        (logging.StreamHandler, "flush"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    brittle.make_sturdy()


def insist(thread: Parked) -> None:
    assert thread.ident is not None
    deadline = time.monotonic() + 30
    while not brittle.raise_in(thread.ident, Interruption):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    thread.join(30)
    assert isinstance(thread.error, Interruption)


def test_a_thread_is_left_alone_while_it_takes_a_lock_for_its_caller() -> None:
    handler = logging.StreamHandler()
    thread = Parked(lambda: (handler.acquire(), handler.release()))
    with handler.lock:  # type: ignore[union-attr]
        thread.start()
        thread.wait_in("acquire")
        assert not brittle.raise_in(thread.ident or 0, Interruption)
    insist(thread)
    assert handler.lock.acquire(blocking=False)  # type: ignore[union-attr]


def test_a_thread_that_waits_for_a_notification_may_be_interrupted() -> None:
    condition = threading.Condition()

    def wait() -> None:
        with condition:
            condition.wait(60)

    thread = Parked(wait)
    thread.start()
    thread.wait_in("wait")
    assert brittle.raise_in(thread.ident or 0, Interruption)
    with condition:
        condition.notify()
    thread.join(30)
    assert isinstance(thread.error, Interruption)
    with condition:
        assert not condition._waiters


def test_who_is_gone_needs_no_interruption() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert brittle.raise_in(thread.ident or 0, Interruption)


def test_a_main_thread_is_asked_for_its_frame(sturdy: None) -> None:
    seen: list[bool] = []

    class Watching(logging.StreamHandler):  # type: ignore[type-arg]
        def acquire(self) -> None:
            seen.append(brittle.may_raise_at(brittle.sys._getframe()))
            super().acquire()

    handler = Watching(written := io.StringIO())
    handler.acquire()
    handler.handle(logging.LogRecord("n", 30, "p", 1, "words", (), None))
    assert written.getvalue() == "words\n"
    assert all(seen), "code of the user may always be interrupted"
    assert brittle.may_raise_at(None)


# ---------------------------------------------------------------- conditions and handlers stay what they were


def test_conditions_work_as_ever(sturdy: None) -> None:
    condition = threading.Condition()
    with contextlib.ExitStack() as stack:
        assert stack.enter_context(condition) is True
        assert condition._is_owned()  # type: ignore[attr-defined]
    assert not condition._is_owned()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="passes"), condition:
        raise ValueError("passes")
    assert not condition._is_owned()  # type: ignore[attr-defined]

    class Own(threading.Condition):
        def __enter__(self) -> bool:
            return super().__enter__()

    with Own() as entered:
        assert entered is True


def test_handlers_work_as_ever(sturdy: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log"
    handler = logging.FileHandler(path)
    log = logging.getLogger("kedge.test.brittle")
    log.addHandler(handler)
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    try:
        log.warning("one %d", 1)
        log.warning("a secret")
        assert path.read_text() == "one 1\n"
    finally:
        log.removeHandler(handler)
        handler.close()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if isinstance(thread, Parked)]


def test_a_plain_function_may_share_them_too(plane: FakePlane) -> None:
    plane.start(function("use", 2, module="locks"))
    unwanted = plane.dispatch("queue")
    plane.noted("used queue")
    plane.cancel(unwanted)
    assert plane.result(unwanted).result.status == "terminated"
