"""Exceptions across processes: the user's own class, one traceback, and text where neither is possible."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import sys
import traceback
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from kedge import exception
from kedge.model.payload import FAILURE, INIT_FAILURE, INTERNAL_FAILURE, TERMINATED, TIMEOUT, ErrorInfo, Result
from kedge.sdk import serializer
from kedge.sdk.serializer import MESSAGE_LIMIT, error_info, from_result, to_exception
from kedge.sdk.tracebacks import FRAME_LIMIT, TEXT_LIMIT, folded, innermost, user_frames


class Odd(Exception):
    """Pickles, and does not come back."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class Unpicklable(Exception):
    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("no")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def info_of(raising: Callable[[], object]) -> ErrorInfo:
    try:
        raising()
    except BaseException as error:
        return error_info(error)
    raise AssertionError("it did not raise")


def raiser(error: BaseException, cause: BaseException | None = None) -> Callable[[], object]:
    def user_code() -> None:
        raise error from cause

    return user_code


def printed(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_the_users_own_exception_comes_back_with_its_arguments_and_notes() -> None:
    error = ValueError("bad", 7)
    error.add_note("while reading line 3")
    back = to_exception(info_of(raiser(error)))
    assert type(back) is ValueError
    assert back.args == ("bad", 7)
    assert back.__notes__ == ["while reading line 3"]


def test_one_traceback_leads_from_the_caller_to_the_line_that_failed() -> None:
    back = to_exception(info_of(raiser(ValueError("bad"))))

    def caller() -> None:
        raise back

    with pytest.raises(ValueError, match="bad") as caught:
        caller()
    text = printed(caught.value)
    assert text.index("in caller") < text.index(f'File "remote:{__file__}"')
    assert "in user_code\n    raise error from cause\n" in text
    assert "^" not in text[text.index("remote:") :], "no carets under a line that was not compiled here"


def test_what_caused_it_in_the_container_is_kept_as_text() -> None:
    back = to_exception(info_of(raiser(ValueError("bad"), KeyError("the cause"))))
    text = printed(back)
    assert "KeyError: 'the cause'" in text
    assert text.index("the cause") < text.index("ValueError: bad")
    assert text.count("direct cause") == 1


def test_only_frames_of_the_user_travel() -> None:
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(raiser(ValueError("bad"))).exception()
    assert error is not None
    assert "thread.py" in "".join(traceback.format_exception(error))
    assert [frame[2] for frame in error_info(error).frames] == ["user_code"]
    info = info_of(lambda: serializer.by_value_payload(sys._getframe(), None))
    assert [frame[2] for frame in info.frames] == ["info_of", "<lambda>"]
    assert "serializer.py" not in info.traceback


@pytest.mark.parametrize(
    ("files", "kept"),
    [
        (["/x/site-packages/web/app.py", "/x/dist-packages/web/route.py", "shop.py", "/x/site-packages/db.py"], 2),
        (["/x/site-packages/web/app.py", contextlib.__file__, "shop.py"], 1),
        (["/x/site-packages/web/app.py", "/x/site-packages/web/route.py"], 2),
        (["shop.py", "/x/site-packages/web/app.py", "shop.py"], 3),
    ],
)
def test_frames_of_a_framework_that_lead_to_the_user_s_code_say_nothing(files: list[str], kept: int) -> None:
    frames = [traceback.FrameSummary(file, 1, "f", lookup_line=False) for file in files]
    assert user_frames(frames) == frames[-kept:]


def test_an_exception_that_cannot_be_rebuilt_is_shown_as_text() -> None:
    for error in (Odd(1, 2), Unpicklable("left here")):
        info = info_of(raiser(error))
        assert info.payload is None
        back = to_exception(info)
        assert type(back) is exception.ExecutionError
        assert type(error).__name__ in str(back)
        assert "in user_code" in str(back)
        assert "cannot be rebuilt in this process" in str(back)


def test_a_class_that_the_caller_lacks_is_shown_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("far_away")
    module.Lost = type("Lost", (Exception,), {"__module__": "far_away"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "far_away", module)
    info = info_of(raiser(module.Lost("in space")))
    assert info.payload is not None
    monkeypatch.delitem(sys.modules, "far_away")
    back = to_exception(info)
    assert type(back) is exception.ExecutionError
    assert str(back).startswith("far_away.Lost: in space")


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()], ids=repr
)
def test_what_ends_a_process_there_does_not_end_the_caller(error: BaseException) -> None:
    back = to_exception(info_of(raiser(error)))
    assert type(back) is exception.RemoteError
    assert type(error).__name__ in str(back)
    expected = "nobody had asked for" if isinstance(error, asyncio.CancelledError) else "ends it but not you"
    assert expected in str(back)


def test_misbehaving_exceptions_are_still_described() -> None:
    info = info_of(raiser(Unprintable()))
    assert info.type == "Unprintable"
    assert "cannot be made" in info.message
    assert isinstance(to_exception(info), Exception)


def test_huge_exceptions_are_trimmed() -> None:
    info = info_of(raiser(ValueError("x" * 5_000_000)))
    assert info.payload is None
    assert len(info.message) < MESSAGE_LIMIT + 100
    assert len(info.traceback) < TEXT_LIMIT + 100
    assert "characters left out" in info.message


def test_a_bottomless_recursion_sends_its_head_and_tail() -> None:
    def deeper() -> None:
        deeper()

    info = info_of(deeper)
    assert info.type == "RecursionError"
    assert len(info.frames) <= FRAME_LIMIT
    assert "repeated" in info.traceback


def test_groups_keep_their_members_as_text() -> None:
    info = info_of(raiser(ExceptionGroup("several", [ValueError("one"), TypeError("two")])))
    back = to_exception(info)
    assert isinstance(back, ExceptionGroup)
    assert "TypeError: two" in printed(back)


@pytest.mark.parametrize(
    ("status", "error", "kind", "text"),
    [
        (TIMEOUT, None, exception.FunctionTimeoutError, "longer than the timeout"),
        (TIMEOUT, ErrorInfo("QueueTimeoutError", "waited"), exception.QueueTimeoutError, "waited"),
        (TIMEOUT, ErrorInfo("FunctionTimeoutError", "ran"), exception.FunctionTimeoutError, "ran"),
        (FAILURE, ErrorInfo("ResourceExhaustedError", "full"), exception.ResourceExhaustedError, "full"),
        (TERMINATED, ErrorInfo("InputCancellation", "the input was cancelled"), exception.RemoteError, "was cancelled"),
        (TERMINATED, None, exception.RemoteError, "was cancelled"),
        (TERMINATED, ErrorInfo("ExecutionError", "the app has stopped"), exception.ExecutionError, "has stopped"),
        (INTERNAL_FAILURE, ErrorInfo("x", "lost 3 containers"), exception.InternalFailure, "lost 3 containers"),
        (FAILURE, ErrorInfo("NotFoundError", "no such function"), exception.NotFoundError, "no such function"),
        (FAILURE, ErrorInfo("SerializationError", "no", module="kedge.exception"), exception.SerializationError, "no"),
        (INIT_FAILURE, ErrorInfo("Boom", "no", module="user"), exception.RemoteError, "could not start: user.Boom: no"),
        ("strange", None, exception.RemoteError, "ended as 'strange'"),
    ],
)
def test_each_status_has_its_exception(status: str, error: ErrorInfo | None, kind: type, text: str) -> None:
    back = to_exception(error, status)
    assert type(back) is kind
    assert text in str(back)


def test_a_refusal_says_when_to_try_again() -> None:
    back = to_exception(ErrorInfo("ResourceExhaustedError", "full", retry_after=2.5))
    assert isinstance(back, exception.ResourceExhaustedError)
    assert back.retry_after == 2.5
    passed_on = to_exception(info_of(raiser(back)))
    assert isinstance(passed_on, exception.ResourceExhaustedError)
    assert passed_on.retry_after == 2.5, "also through a function that called another one"
    unknown = to_exception(ErrorInfo("ResourceExhaustedError", "full"))
    assert isinstance(unknown, exception.ResourceExhaustedError)
    assert unknown.retry_after is None


def test_an_error_while_starting_is_the_users_own_where_it_can_be() -> None:
    back = to_exception(info_of(raiser(ModuleNotFoundError("No module named 'torch'", name="torch"))), INIT_FAILURE)
    assert type(back) is ModuleNotFoundError
    assert back.name == "torch"


def test_rebuilt_exceptions_pickle_again() -> None:
    back = to_exception(info_of(raiser(ValueError("bad"), KeyError("cause"))))
    assert pickle.loads(pickle.dumps(back)).args == ("bad",)


# ---------------------------------------------------------------- as people see them

PLACE = "/venv/lib/python3.12/site-packages"
LONG = f"""\
Traceback (most recent call last):
  File "/app/shop.py", line 3, in train
    step(model)
    ~~~~^^^^^^^
  File "{PLACE}/torch/nn.py", line 1, in a
    b()
  File "/usr/lib/python3.12/contextlib.py", line 2, in b
    c()
    ^^^
  File "{PLACE}/torch/cuda.py", line 3, in c
  [Previous line repeated 9 more times]
  File "{PLACE}/six.py", line 4, in d
    e()
  File "/app/shop.py", line 9, in hook
    f()
  File "{PLACE}/torch/nn.py", line 5, in f
    g()
  File "/app/shop.py", line 11, in g
    h()
  File "/usr/lib/python3.12/json.py", line 5, in h
    i()
  File "/usr/lib/python3.12/json.py", line 6, in i
    j()
  File "{PLACE}/torch/nn.py", line 7, in j
    raise Odd
torch.Odd: three lines,
  File "{PLACE}/torch/nn.py" is one of them
"""
FOLDED = f"""\
Traceback (most recent call last):
  File "/app/shop.py", line 3, in train
    step(model)
    ~~~~^^^^^^^
  … 4 frames in site-packages/torch, site-packages/six
  File "/app/shop.py", line 9, in hook
    f()
  File "{PLACE}/torch/nn.py", line 5, in f
    g()
  File "/app/shop.py", line 11, in g
    h()
  File "/usr/lib/python3.12/json.py", line 5, in h
    i()
  File "/usr/lib/python3.12/json.py", line 6, in i
    j()
  File "{PLACE}/torch/nn.py", line 7, in j
    raise Odd
torch.Odd: three lines,
  File "{PLACE}/torch/nn.py" is one of them
"""


def test_runs_of_frames_in_installed_packages_are_folded() -> None:
    assert folded(LONG) == FOLDED
    assert folded("") == ""


def test_frames_in_members_of_a_group_keep_their_place() -> None:
    text = "".join(f'    |   File "{PLACE}/db/{name}.py", line 1, in {name}\n    |     x()\n' for name in "abc")
    rest = "    | ValueError: no\n    +------------------------------------\n"
    kept = f'    |   … 2 frames in site-packages/db\n    |   File "{PLACE}/db/c.py", line 1, in c\n    |     x()\n'
    assert folded(text + rest) == kept + rest


def test_nothing_is_folded_for_who_wants_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_TRACEBACK", "1")
    assert folded(LONG) == LONG


def test_where_only_text_comes_back_it_is_folded() -> None:
    text = str(to_exception(ErrorInfo("Odd", "bad", LONG, module="torch")))
    assert text.startswith("torch.Odd: bad\n(raised in the container; it is shown as text")
    assert text.endswith(FOLDED.rstrip())
    cause = to_exception(ErrorInfo("ValueError", "bad", f"{LONG}\n{LINK}Traceback (most recent call last):\nx"))
    assert "in site-packages/torch" in str(cause), str(cause)


LINK = "\nThe above exception was the direct cause of the following exception:\n\n"


@pytest.mark.parametrize(
    ("files", "kept"),
    [
        (["shop.py", "model.py"], ["model.py"]),
        (["shop.py", f"{PLACE}/torch/a.py", f"{PLACE}/torch/b.py"], ["shop.py", f"{PLACE}/torch/b.py"]),
        ([f"remote:{PLACE}/torch/a.py", "/opt/lib/python3.12/json.py"], ["/opt/lib/python3.12/json.py"]),
        ([], []),
    ],
)
def test_the_innermost_frames_are_where_it_failed(files: list[str], kept: list[str]) -> None:
    assert [frame[0] for frame in innermost([(file, 1, "f", "") for file in files])] == kept


def failed_start(raising: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:
        from_result(Result(INIT_FAILURE, error=info_of(raising)), None, "f")
    return caught.value


def through_a_helper() -> None:
    raiser(ModuleNotFoundError("No module named 'torch'", name="torch"), KeyError("the cause"))()


def test_why_a_container_did_not_start_is_told_without_repeating_what_it_has_printed() -> None:
    error = failed_start(through_a_helper)
    assert type(error) is ModuleNotFoundError
    text = printed(error)
    assert text.count("remote:") == 1
    assert "in user_code" in text
    assert "in through_a_helper" not in text
    assert "the cause" not in text
    assert text.endswith("(while its container started; `kedge logs` has the whole traceback)\n")


def test_nor_where_the_exception_cannot_be_rebuilt() -> None:
    error = failed_start(raiser(Odd(1, 2)))
    assert str(error) == f"the container could not start: {__name__}.Odd: 1 and 2"
    assert "in user_code" in printed(error)


def test_all_of_it_is_told_where_nobody_has_seen_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    deployed = printed(to_exception(info_of(through_a_helper), INIT_FAILURE))
    monkeypatch.setenv("KEDGE_TRACEBACK", "1")
    for text in (deployed, printed(failed_start(through_a_helper))):
        assert "in through_a_helper" in text
        assert "the cause" in text
