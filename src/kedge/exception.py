"""The error tree. Every leaf says what happened and what to do about it; the messages are written where it happens.

`Error` is the base of all that kedge raises by itself. Two names do not derive from it, on purpose: `InputCancellation`
is a BaseException, so that a broad `except Exception` in user code does not swallow it, and `DeprecationError` is a
warning category. `FunctionTimeoutError` is not Python's own `TimeoutError`: that one means that a wait ended
(`FunctionCall.get(timeout=…)`), this one that an input hit the time limit of its function.
"""

from __future__ import annotations


class Error(Exception):
    """Base of all errors that kedge raises."""


class InvalidError(Error):
    """The API was used in a way that cannot work. The message names the fix."""


class UnavailableError(InvalidError):
    """A part of the API that this version of kedge does not have, or not yet."""


class ExecutionError(Error):
    """The program did something at a time or place where it is not possible, such as calling a function whose app is
    not running."""


class RemoteError(Error):
    """Something failed in a container or on the server, and there is no exception of the user's code to raise."""


class InternalError(Error):
    """A promise of kedge itself was broken. Please report it with the message."""


class InternalFailure(Error):
    """An input was lost with its container more often than the budget for that allows."""


class TimeoutError(Error):
    """Base of the errors about time limits. Not Python's builtin TimeoutError."""


class FunctionTimeoutError(TimeoutError):
    """An input ran longer than the `timeout` of its function."""


class QueueTimeoutError(TimeoutError):
    """An input waited longer for a container than the `queue_timeout` of its function or call allows."""


class OutputExpiredError(TimeoutError):
    """The result of a call is no longer kept."""


class SerializationError(Error):
    """A value could not be turned into bytes to be sent."""


class DeserializationError(Error):
    """Bytes that arrived could not be turned into a value here, for example because its class cannot be imported."""


class RequestSizeError(Error):
    """Something is too large to be sent."""


class NotFoundError(Error):
    """There is no such app, function, call or file."""


class AlreadyExistsError(Error):
    """The name is taken."""


class ConflictError(InvalidError):
    """Two settings or two writers contradict each other."""


class PermissionDeniedError(Error):
    """Whoever asked may not do this."""


class AuthError(Error):
    """The server does not know who asks."""


class ResourceExhaustedError(Error):
    """A limit is reached, such as `max_queued_inputs` of a function; try again later or raise the limit."""

    retry_after: float | None = None
    """Seconds after which another try may succeed, estimated from how fast inputs end; None where nobody knows."""


class ServiceError(Error):
    """The server answered with a failure of its own."""


class ConnectionError(Error):
    """The server cannot be reached."""


class ClientClosed(Error):
    """The connection to the server was closed while it was needed."""


class VersionError(Error):
    """The two sides run versions of kedge or Python that do not understand each other."""


class VolumeBusyError(ExecutionError, RuntimeError):
    """A volume cannot be reloaded while files of it are open, or a directory of it is the current one."""


class ImageBuildError(RemoteError):
    """An image could not be built."""


class LogsFetchError(Error):
    """Logs could not be read."""


class ModuleNotMountable(Error):
    """The module's source cannot be sent to containers."""


class SandboxTerminatedError(Error):
    """The sandbox was ended by someone else."""


class SandboxTimeoutError(TimeoutError):
    """The sandbox reached its time limit."""


class ExecTimeoutError(TimeoutError):
    """A command in a sandbox reached its time limit."""


class InputCancellation(BaseException):
    """Raised inside a synchronous function whose input was cancelled. Let it pass after cleaning up.

    Asynchronous functions get `asyncio.CancelledError` instead.
    """

    _text = "the input was cancelled"
    """It is raised without arguments."""

    def __str__(self) -> str:
        return super().__str__() or self._text


class InputTimeout(InputCancellation):
    """Raised inside a synchronous function whose input reached its `timeout`. The caller gets FunctionTimeoutError."""

    _text = "the input ran longer than its timeout"


class DeprecationError(UserWarning):
    """An old spelling was used. It works; the message names the new one."""


class NoEffectWarning(UserWarning):
    """A setting was accepted that this version cannot honour yet."""


class AsyncUsageWarning(UserWarning):
    """A blocking call was made where an event loop runs: every other task of the loop waits. Use the `.aio` form."""
