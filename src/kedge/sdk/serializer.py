"""User values to payloads and back.

* The C pickler goes first: everything by reference, readable by any Python that can import the same names. Buffers of
  large values (NumPy arrays, anything that speaks pickle protocol 5) leave the stream and are never copied.
* cloudpickle takes over for what that cannot do: lambdas, nested functions, classes made at run time, and everything of
  a `__main__` that no container can load (a notebook, a REPL, the script of a mere caller). Such payloads are code, so
  they carry the Python version they were made by, and another one refuses them with the reason.
* The main script of a running app is shipped with it: containers load it as `__kedge_main__` and alias `__main__` to
  it. So its classes travel by reference both ways; `ship_main` switches that on.
* A failure names the argument or the value, its type, and what to do instead.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

from msgspec import structs

from kedge import exception
from kedge.exception import (
    DeserializationError,
    ExecutionError,
    FunctionTimeoutError,
    InternalFailure,
    QueueTimeoutError,
    RemoteError,
    ResourceExhaustedError,
    SerializationError,
)
from kedge.model.payload import (
    FAILURE,
    INIT_FAILURE,
    INLINE_LIMIT,
    INTERNAL_FAILURE,
    PICKLE,
    PICKLE_BY_VALUE,
    SUCCESS,
    TERMINATED,
    TIMEOUT,
    ErrorInfo,
    Payload,
    Result,
)
from kedge.sdk import tracebacks
from kedge.sdk.blobs import BlobStore

MAIN = "__kedge_main__"
"""The name under which containers load a shipped main script."""
MESSAGE_LIMIT = 16 * 1024
"""Characters of an exception's own text that travel."""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

_OWN_CANCELLATIONS = tuple(
    f"{kind.__module__}.{kind.__qualname__}" for kind in (exception.InputCancellation, exception.InputTimeout)
)
_MAIN_MARK = b"__main__"
_main_is_shipped = False
_by_value_lock = threading.Lock()

Buffers = list[pickle.PickleBuffer]


def ship_main(shipped: bool = True) -> None:
    """Says that containers can load this process' main script: from now on its names travel by reference."""
    global _main_is_shipped
    _main_is_shipped = shipped


def to_payload(value: Any, blobs: BlobStore | None, what: str = "the value") -> Payload:
    """Serialises `value`; above 256 KiB into a file of `blobs` (inline always where `blobs` is None).

    Args:
        value: Anything that pickle or cloudpickle can handle.
        blobs: Where large values go.
        what: How an error names the value, such as "the result of square()".

    Raises SerializationError where neither pickler can handle the value.
    """
    buffers: Buffers = []
    try:
        data = pickle.dumps(value, 5, buffer_callback=buffers.append)
        format, python = PICKLE, ""
        if not _main_is_shipped and _MAIN_MARK in data:
            buffers.clear()
            data = _dumps_by_value(value, buffers)
            format, python = PICKLE_BY_VALUE, PYTHON
    except Exception:
        # Which exception a foreign __reduce__ raises is anyone's guess; cloudpickle's is the one worth showing.
        buffers.clear()
        data = _by_value_or_error(value, buffers, what)
        format, python = PICKLE_BY_VALUE, PYTHON
    if not buffers and (blobs is None or len(data) <= INLINE_LIMIT):
        return Payload(format, data, "", 0, python)
    return _large(value, data, buffers, blobs, Payload(format, b"", "", 0, python))


def arguments_payload(
    args: Sequence[Any], kwargs: Mapping[str, Any], blobs: BlobStore | None, name: str = "the function"
) -> Payload:
    """The payload of one input. SerializationError names the argument that cannot be sent to `name`."""
    try:
        return to_payload((tuple(args), kwargs), blobs)
    except SerializationError as error:
        named = [(f"argument {position}", value) for position, value in enumerate(args)]
        named += [(f"argument {key!r}", value) for key, value in kwargs.items()]
        for what, value in named:
            to_payload(value, None, f"{what} of {name}")
        raise error


def by_value_payload(value: Any, blobs: BlobStore | None, what: str = "the function") -> Payload:
    """Serialises a function or class with its code, for `serialized=True`: no container needs its module.

    What it refers to in its own module travels by value too; what it imports must be importable there.
    """
    import cloudpickle

    module = sys.modules.get(getattr(value, "__module__", None) or "")
    with _by_value_lock:
        # cloudpickle's registry is global; __main__ goes by value without it.
        register = (
            module is not None
            and module.__name__ != "__main__"
            and module.__name__ not in cloudpickle.list_registry_pickle_by_value()
        )
        if register:
            cloudpickle.register_pickle_by_value(module)
        try:
            data = cloudpickle.dumps(value, 5)
        except Exception as error:
            raise SerializationError(_unpicklable(what, value, error)) from error
        finally:
            if register:
                cloudpickle.unregister_pickle_by_value(module)
    if blobs is None or len(data) <= INLINE_LIMIT:
        return Payload(PICKLE_BY_VALUE, data, "", 0, PYTHON)
    blob, size = blobs.write([data])
    return Payload(PICKLE_BY_VALUE, b"", blob, size, PYTHON)


def from_payload(payload: Payload, blobs: BlobStore | None, *, consume: bool = False, what: str = "the value") -> Any:
    """The value of a payload.

    Args:
        payload: What `to_payload` made, here or elsewhere.
        blobs: Where its file is, if it has one.
        consume: Remove the file: nobody reads this value again.
        what: How an error names the value.

    Raises DeserializationError where this process cannot load it: another Python version, a module or class that is
    missing here, or a file that is gone.
    """
    if payload.format == PICKLE_BY_VALUE and payload.python != PYTHON:
        raise DeserializationError(
            f"{what} holds code by value, made by Python {payload.python}, and this is Python {PYTHON}. Such values "
            "travel between equal Python versions only: use the same version on both sides, or define the class or "
            "function in a module that both can import."
        )
    parts: Sequence[Any] = (payload.data,)
    if payload.blob:
        parts = _read_blob(payload, blobs, consume, what)
    try:
        return _loads(parts)
    except Exception as error:
        raise DeserializationError(_unloadable(what, error)) from error


def from_result(result: Result, blobs: BlobStore | None, name: str, *, consume: bool = True) -> Any:
    """The value of a result; raises what the input raised, or why it has no value.

    Args:
        result: As the plane delivered it.
        blobs: Where its file is, if it has one.
        name: The function or call, for errors.
        consume: Remove the file of the value: nobody reads it again.
    """
    if result.status == INIT_FAILURE and result.error is not None and not tracebacks.everything():
        raise _not_started(result.error, name)
    if result.status != SUCCESS:
        raise to_exception(result.error, result.status, name)
    payload = result.payload
    if payload is None:
        return None
    return from_payload(payload, blobs, consume=consume, what=f"the result of {name}")


def _loads(parts: Sequence[Any]) -> Any:
    try:
        return pickle.loads(parts[0], buffers=parts[1:])
    except ModuleNotFoundError as error:
        if error.name != MAIN or MAIN in sys.modules:
            raise
    # The first value whose class comes from our own main script, as a container has named it.
    sys.modules[MAIN] = sys.modules["__main__"]
    return pickle.loads(parts[0], buffers=parts[1:])


def _read_blob(payload: Payload, blobs: BlobStore | None, consume: bool, what: str) -> Sequence[Any]:
    try:
        if blobs is None:
            raise FileNotFoundError(payload.blob)
        return blobs.read(payload.blob, consume=consume)
    except (OSError, ValueError) as error:
        raise DeserializationError(
            f"{what} ({payload.size} bytes) is in a file that this process cannot read: {error}. Values above "
            f"{INLINE_LIMIT // 1024} KiB need the server's state directory on this machine; they are removed once "
            "read, or when their call expires."
        ) from error


def _large(value: Any, data: bytes, buffers: Buffers, blobs: BlobStore | None, frame: Payload) -> Payload:
    """A payload for out-of-band buffers or a long stream: a file, or inline where it is small after all."""
    views = [buffer.raw() for buffer in buffers]
    size = len(data) + sum(view.nbytes for view in views)
    if blobs is not None and size > INLINE_LIMIT:
        name, size = blobs.write([data, *views])
        return Payload(frame.format, b"", name, size, frame.python)
    for view in views:
        view.release()
    if frame.format == PICKLE:
        data = pickle.dumps(value, 5)
    elif buffers:
        data = _dumps_by_value(value, None)
    return Payload(frame.format, data, "", 0, frame.python)


def _by_value_or_error(value: Any, buffers: Buffers, what: str) -> bytes:
    try:
        return _dumps_by_value(value, buffers)
    except Exception as error:
        raise SerializationError(_unpicklable(what, value, error)) from error


def _dumps_by_value(value: Any, buffers: Buffers | None) -> bytes:
    pickler = _pickler_class()
    with io.BytesIO() as file:
        pickler(file, 5, buffer_callback=None if buffers is None else buffers.append).dump(value)
        return file.getvalue()


@functools.cache
def _pickler_class() -> Any:
    """cloudpickle's pickler, except that a shipped main script keeps its names: it is importable where we send it."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc, unused-ignore]
        def reducer_override(self, obj: Any) -> Any:
            if _main_is_shipped and isinstance(obj, (type, FunctionType)) and _is_name_of_main(obj):
                return NotImplemented
            return super().reducer_override(obj)

    return Pickler


def _is_name_of_main(obj: Any) -> bool:
    if obj.__module__ != "__main__":
        return False
    found: Any = sys.modules["__main__"]
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is obj


def _unpicklable(what: str, value: Any, error: Exception) -> str:
    kind = type(value)
    return (
        f"{what}, of type {kind.__module__}.{kind.__qualname__}, cannot be sent to another process: "
        f"{type(error).__name__}: {error}. Send plain data, a path or an id instead, and open files, connections and "
        "locks on the side that uses them (`@enter()` is the place for what lasts)."
    )


def _unloadable(what: str, error: Exception) -> str:
    text = f"{what} cannot be loaded in this process: {type(error).__name__}: {error}."
    if isinstance(error, ModuleNotFoundError):
        if error.name in (MAIN, "__main__"):
            return f"{text} Its class is defined in another process' main script: move it to a module both can import."
        return f"{text} Install or add the module {error.name!r} here, or send plain data instead."
    if isinstance(error, AttributeError):
        return f"{text} Its class or function is not defined on this side: define it in a module both can import."
    return text


# ---------------------------------------------------------------- exceptions


def error_info(error: BaseException) -> ErrorInfo:
    """An exception as it travels: its own pickle where that survives a round trip, and always its text.

    Never raises for an exception that misbehaves when printed or pickled.
    """
    kind = type(error)
    try:
        text, frames = tracebacks.describe(error)
    except Exception as broken:
        text, frames = f"{kind.__qualname__} (its traceback cannot be printed: {type(broken).__name__})\n", ()
    notes = getattr(error, "__notes__", None)
    return ErrorInfo(
        kind.__qualname__,
        _message(error),
        text,
        _exception_payload(error),
        kind.__module__,
        tuple(str(note) for note in notes) if isinstance(notes, (list, tuple)) else (),
        frames,
    )


def to_exception(error: ErrorInfo | None, status: str = FAILURE, what: str = "the input") -> Exception:
    """The exception to raise at the caller for a result that is no success.

    The user's own exception where it can be rebuilt here, with the container's frames in its traceback. What ends
    a process or a task there (SystemExit, KeyboardInterrupt, CancelledError) does not end the caller: it comes as
    RemoteError.
    """
    message = error.message if error is not None else ""
    if status == TIMEOUT:
        waited = _own_error(error) if error is not None else None
        if isinstance(waited, QueueTimeoutError):
            return waited
        late = FunctionTimeoutError(message or f"{what} ran longer than the timeout of its function")
        if error is not None:
            # Where the code was when its time was over.
            tracebacks.attach(late, error.frames, error.traceback)
        return late
    if error is None:
        return RemoteError(f"{what} was cancelled" if status == TERMINATED else f"{what} ended as {status!r}")
    if status == INTERNAL_FAILURE:
        return InternalFailure(message)
    own = _own_error(error)
    if own is not None:
        return own
    if status == TERMINATED:
        return RemoteError(message or f"{what} was cancelled")
    original = _rebuild(error)
    if original is None:
        return _stand_in(error, status, what)
    tracebacks.attach(original, error.frames, error.traceback)
    return original


def _not_started(error: ErrorInfo, what: str) -> Exception:
    """For callers of a container that did not come up: it has printed the traceback itself, and who sees its output
    should not read all of it twice."""
    frames = tracebacks.innermost(error.frames)
    raised = to_exception(structs.replace(error, traceback="", frames=frames), INIT_FAILURE, what)
    if len(frames) < len(error.frames) or tracebacks.has_cause(error.traceback):
        tracebacks.add_note(raised, "(while its container started; `kedge logs` has the whole traceback)")
    return raised


def _message(error: BaseException) -> str:
    try:
        return tracebacks.shorten(str(error), MESSAGE_LIMIT)
    except Exception as broken:
        return f"(the text of this exception cannot be made: {type(broken).__name__})"


def _exception_payload(error: BaseException) -> Payload | None:
    """The pickled exception, if it pickles, is small, and comes back as what it was."""
    try:
        payload = to_payload(error, None)
        if len(payload.data) > INLINE_LIMIT:
            return None
        copy = _loads((payload.data,))
    except Exception:
        return None
    return payload if type(copy).__qualname__ == type(error).__qualname__ else None


def _own_error(error: ErrorInfo) -> Exception | None:
    """An error that the server or the runtime made without pickling: named, with its text."""
    if error.payload is not None or error.module not in ("", exception.__name__):
        return None
    kind = getattr(exception, error.type, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        made = kind(error.message)
        if isinstance(made, ResourceExhaustedError):
            made.retry_after = error.retry_after or None
        tracebacks.attach(made, error.frames, error.traceback)
        return made
    return None


def _rebuild(error: ErrorInfo) -> Exception | None:
    if error.payload is None:
        return None
    try:
        original = from_payload(error.payload, None)
    except Exception:
        return None
    return original if isinstance(original, Exception) else None


def _stand_in(error: ErrorInfo, status: str, what: str) -> Exception:
    """For an exception that cannot be raised here: its name, its text, and the remote traceback as text."""
    name = error.type if error.module in ("builtins", "") else f"{error.module}.{error.type}"
    remote = f"\n\n{tracebacks.folded(error.traceback).rstrip()}" if error.traceback else ""
    stand_in: Exception
    if status == INIT_FAILURE:
        stand_in = RemoteError(f"the container could not start: {name}: {error.message}{remote}")
    elif name in ("asyncio.exceptions.CancelledError", *_OWN_CANCELLATIONS):
        stand_in = RemoteError(
            f"{what} ended by raising {name}({error.message}), which nobody had asked for: the input was not "
            f"cancelled. Its code raised that, or a task that it awaited was cancelled by somebody else{remote}"
        )
    elif name in ("SystemExit", "KeyboardInterrupt", "GeneratorExit"):
        stand_in = RemoteError(f"{what} ended by raising {name}({error.message}), which ends it but not you{remote}")
    else:
        stand_in = ExecutionError(
            f"{name}: {error.message}\n(raised in the container; it is shown as text because the exception itself "
            f"cannot be rebuilt in this process){remote}"
        )
    if not remote:
        stand_in.__traceback__ = tracebacks.build(error.frames)
    for note in error.notes:
        tracebacks.add_note(stand_in, note)
    return stand_in
