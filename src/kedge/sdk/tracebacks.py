"""Tracebacks that cross processes: the user's frames leave as text and as plain values, and come back as real frames.

What leaves a container holds user frames only: frames of kedge, and of the threads, tasks and imports through which it
reached the user's code, say nothing to the user. At the caller the frames are appended below its own, so that one
ordinary traceback leads from the call to the line that failed; their file names begin with `remote:`.
"""

from __future__ import annotations

import builtins
import linecache
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from types import CodeType, FrameType, TracebackType
from typing import Any

REMOTE = "remote:"
"""Begins the file name of every frame that ran in a container."""
TEXT_LIMIT = 64 * 1024
"""Characters of a traceback that travel: head and tail are kept."""
FRAME_LIMIT = 100
"""Frames that travel: as many outermost as innermost ones."""
VARIABLE = "KEDGE_TRACEBACK"
"""Environment variable: 1 shows every frame."""

Frame = tuple[str, int, str, str]

_HEADER = "Traceback (most recent call last):\n"
_KEDGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARY = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_CARRIERS = tuple(
    _LIBRARY + name
    for name in ("threading.py", "contextlib.py", "asyncio", "concurrent", "importlib", "contextvars.py")
)
"""Standard library files through which a runtime reaches user code: dropped before the first user frame."""
_TEMPLATE: CodeType = compile("_getframe()", REMOTE, "eval")
_FRAME = re.compile(r'^(?P<lead>[ |]*)File "(?P<file>.*)", line \d+, in ')
_PACKAGE = re.compile(r"/((?:site|dist)-packages)/([^/]+)")
_STANDARD = re.compile(r"/lib/python3\.\d+/")
"""An image's Python lies where ours does not."""
# Containers may run Python 3.10, which has neither groups nor qualified names of code.
_GROUP = getattr(builtins, "BaseExceptionGroup", ())
_NAMES = [field for field in ("co_name", "co_qualname") if hasattr(_TEMPLATE, field)]


def describe(error: BaseException) -> tuple[str, tuple[Frame, ...]]:
    """The printable traceback of `error` with its causes, notes and members of a group, and its frames as values."""
    summary = traceback.TracebackException.from_exception(error, compact=True)
    _keep_user_frames(summary, set())
    text = "".join(summary.format())
    frames = [(frame.filename, frame.lineno or 0, frame.name, (frame.line or "").strip()) for frame in summary.stack]
    if len(frames) > FRAME_LIMIT:
        frames = frames[: FRAME_LIMIT // 2] + frames[-FRAME_LIMIT // 2 :]
    return shorten(text, TEXT_LIMIT), tuple(frames)


def everything() -> bool:
    """Whether people want to see every frame."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def folded(text: str) -> str:
    """A printed traceback as people see it: a run of frames in installed packages is one line, except for the last
    frame of all. Unless they want to see everything."""
    if everything():
        return text
    lines: list[str] = []
    run: list[tuple[re.Match[str], list[str]]] = []
    for line in text.splitlines(keepends=True):
        frame = _FRAME.match(line)
        if frame is not None and _is_foreign(frame["file"]):
            run.append((frame, [line]))
        elif frame is None and run and line.startswith((run[-1][0]["lead"] + "  ", run[-1][0]["lead"] + "[Previous ")):
            run[-1][1].append(line)
        else:
            lines += _fold(run, last=frame is None)
            lines.append(line)
            run = []
    return "".join([*lines, *_fold(run, last=True)])


def _fold(run: list[tuple[re.Match[str], list[str]]], last: bool) -> list[str]:
    """The lines of frames that follow each other, folded where that makes them fewer. `last`: none comes after them."""
    many, kept = (run[:-1], run[-1:]) if last else (run, [])
    places = [_PACKAGE.search(frame["file"]) for frame, _ in many]
    names = list(dict.fromkeys(f"{place[1]}/{place[2].removesuffix('.py')}" for place in places if place))
    if len(many) < 2 or not names:
        many, kept = [], run
    count = [f"{many[0][0]['lead']}… {len(many)} frames in {', '.join(names)}\n"] if many else []
    return count + [line for _, lines in kept for line in lines]


def innermost(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """Where it failed, as briefly as can be: the last frame in the user's own files, and the last one of all."""
    own = [frame for frame in frames if not _is_foreign(frame[0])]
    return tuple(dict.fromkeys([*own[-1:], *frames[-1:]]))


def has_cause(text: str) -> bool:
    """Whether a printed traceback tells of more than one exception."""
    return text.count(_HEADER) > 1


def add_note(error: BaseException, note: str) -> None:
    """`error.add_note(note)`, which Python 3.10 does not have."""
    error.__notes__ = [*getattr(error, "__notes__", ()), note]


def shorten(text: str, limit: int) -> str:
    """`text`, or its head and tail where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def is_user_file(filename: str) -> bool:
    """Whether a frame of this file is worth showing: it is neither kedge's own nor the import machinery."""
    return not filename.startswith((_KEDGE, "<frozen importlib"))


def user_frames(stack: Iterable[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """The frames that say something to the user, of a stack whose outermost frame comes first."""
    frames = [frame for frame in stack if is_user_file(frame.filename)]
    while frames and frames[0].filename.startswith(_CARRIERS):
        frames.pop(0)
    # A web framework stands between the runtime and the user's handler: twenty frames that are always the same.
    own = next((at for at, frame in enumerate(frames) if not _is_library(frame.filename)), 0)
    return frames[own:] if own and _is_installed(frames[0].filename) else frames


def has_user_frame(files: Iterable[str]) -> bool:
    """Whether any of these files may be the user's: none of them says more than the error itself where none is."""
    return any(not _is_library(file) for file in files)


def _is_installed(filename: str) -> bool:
    return f"{os.sep}site-packages{os.sep}" in filename or f"{os.sep}dist-packages{os.sep}" in filename


def _is_foreign(filename: str) -> bool:
    """Whether a file of a container is an installed package's or Python's own."""
    return _is_library(filename) or _STANDARD.search(filename) is not None


def _is_library(filename: str) -> bool:
    return _is_installed(filename) or filename.startswith((_LIBRARY, "<"))


def attach(error: BaseException, frames: Iterable[Frame], text: str) -> None:
    """Gives `error` the frames of where it was raised, and what caused it there as its cause."""
    error.__traceback__ = build(frames)
    # Before the last header stand the causes, and the sentence that links them to this one.
    chain = text.rpartition(_HEADER)[0].rstrip().rpartition("\n\n")[0]
    if isinstance(error, _GROUP):
        chain = text.rstrip()
    if chain and error.__cause__ is None:
        error.__cause__ = RemoteCause(folded(chain))


class RemoteCause(Exception):
    """What had led to an exception in a container, as text: the exceptions it was raised from, or was raised while
    handling."""

    def __str__(self) -> str:
        return "in the container:\n" + str(self.args[0])


def build(frames: Iterable[Frame]) -> TracebackType | None:
    """A traceback object of remote frames; None where there are none."""
    result: TracebackType | None = None
    for filename, line, name, source in reversed(tuple(frames)):
        marked = filename if filename.startswith(REMOTE) else REMOTE + filename
        _remember_source(marked, line, source)
        # lasti -1: no column positions, so that no carets are printed under a line we did not compile.
        result = TracebackType(result, _frame(marked, line, name), -1, line)
    return result


def _keep_user_frames(summary: traceback.TracebackException, seen: set[int]) -> None:
    if id(summary) in seen:
        return
    seen.add(id(summary))
    summary.stack = traceback.StackSummary.from_list(user_frames(summary.stack))
    for other in (summary.__cause__, summary.__context__, *(getattr(summary, "exceptions", None) or ())):
        if other is not None:
            _keep_user_frames(other, seen)


def _frame(filename: str, line: int, name: str) -> FrameType:
    names: dict[str, Any] = dict.fromkeys(_NAMES, name)
    code = _TEMPLATE.replace(co_filename=filename, co_firstlineno=max(line, 1), **names)
    frame = eval(code, {"_getframe": sys._getframe, "__name__": "remote"})
    assert isinstance(frame, FrameType)
    return frame


def _remember_source(filename: str, line: int, source: str) -> None:
    """Lets traceback printers find the one line that they will ask for."""
    if not source or not 0 < line < 1_000_000:
        return
    entry = linecache.cache.get(filename)
    lines = entry[2] if entry is not None and len(entry) == 4 else []
    lines += ["\n"] * (line - len(lines))
    lines[line - 1] = source + "\n"
    # No modification time: linecache then never looks for the file.
    linecache.cache[filename] = (len(lines), None, lines, filename)
