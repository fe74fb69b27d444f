"""Commands of a build: output streamed to log and progress, bounded in time, killed with all that they started."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import math
import os
import select
import shlex
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from kedge.images.buildlog import BuildLog

LAST_LINES = 20
"""Lines of output that an error shows."""
PROGRESS_EVERY_S = 0.1
PROGRESS_LINES = 20
LINE_LIMIT = 2000
"""Characters of a line that people see; the log has all of them."""
SILENCE_S = 60.0
"""After so many seconds without output it is said that the command still runs."""
READ = 256 * 1024
BLOT = "***"
_NOISE = ("Using Python ", "Using CPython ")
"""Lines of uv that say what it was told."""
SHORTEST_SECRET = 4
"""Shorter values are not blotted out: they would take half of every text with them."""

HANDED_ON = frozenset(
    (
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "SSH_AUTH_SOCK",
        "NETRC",
        "CC",
        "CXX",
        "CFLAGS",
        "CXXFLAGS",
        "LDFLAGS",
        "MAKEFLAGS",
        "CUDA_HOME",
        "CARGO_HOME",
        "RUSTUP_HOME",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "all_proxy",
    )
)
_PREFIXES = ("LC_", "PIP_", "UV_", "GIT_", "POETRY_")


class CommandFailed(Exception):
    """A command ended with something else than success, or did not end in time."""

    def __init__(self, command: str, reason: str, lines: Sequence[str]) -> None:
        super().__init__(f"{command}: {reason}")
        self.command = command
        self.reason = reason
        """`exit code 1`, `killed by SIGKILL`, `not done after 60 min`."""
        self.lines = list(lines)
        """The last of its output."""


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """What builds take over of the server's own environment: how to reach things, and none of its secrets.

    >>> inherited({"HOME": "/home/ann", "PIP_INDEX_URL": "https://pypi.example", "AWS_SECRET": "s"})
    {'HOME': '/home/ann', 'PIP_INDEX_URL': 'https://pypi.example'}
    """
    return {name: value for name, value in environ.items() if name in HANDED_ON or name.startswith(_PREFIXES)}


class Runner:
    """Runs the commands of one step, one at a time.

    Args:
        log: Where all output goes.
        report: Is told lines that people should see, some of them where there are many.
        secrets: Values that appear nowhere.
        deadline: When the build has to be over (monotonic).
    """

    def __init__(
        self,
        log: BuildLog,
        report: Callable[[str], None],
        secrets: Sequence[str] = (),
        deadline: float = math.inf,
        limit_s: float = math.inf,
    ) -> None:
        self.log = log
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._report = report
        self._secrets = _blotted(secrets)
        self._deadline = deadline
        self._limit_s = limit_s
        self._reported = -math.inf
        self._quiet = False
        self._unreported: deque[str] = deque(maxlen=PROGRESS_LINES)

    def hide(self, value: str) -> None:
        """From now on this value does not appear either."""
        self._secrets = _blotted([*self._secrets, value])

    def say(self, text: str) -> None:
        self._take(f"{text}\n")
        self.flush()

    def flush(self) -> None:
        """Reports what was held back."""
        if self._unreported:
            self._report("\n".join(self._unreported))
            self._unreported.clear()
            self._reported = time.monotonic()

    def run(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        directory: str | Path,
        *,
        shown: str = "",
        timeout: float | None = None,
        quiet: bool = False,
    ) -> None:
        self.flush()
        self._quiet = quiet
        try:
            self._run(command, variables, directory, shown, timeout)
        except CommandFailed:
            if quiet:
                self._unreported.clear()
            raise
        finally:
            self._quiet = False
            self.flush()

    def _run(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        directory: str | Path,
        shown: str,
        timeout: float | None,
    ) -> None:
        text = self._blot(shown or shlex.join(command))
        self.log.write(f"$ {text}\n".encode())
        self.last.clear()
        deadline = min(self._deadline, time.monotonic() + (math.inf if timeout is None else timeout))
        limit = self._limit_s if timeout is None or deadline == self._deadline else timeout
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(variables),
                cwd=directory,
                process_group=0,
                preexec_fn=_end_with_parent,
            )
        except OSError as error:
            raise CommandFailed(text, f"cannot be started: {error.strerror or error}", []) from None
        with _killed_at_the_end(process):
            late = self._follow(process, deadline)
        if late:
            raise CommandFailed(text, f"not done after {_duration(limit)}, so it was ended", self.last)
        if process.returncode:
            raise CommandFailed(text, _ending(process.returncode), self.last)

    def _follow(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        """Passes output on until the process has ended. Whether it was too late before that."""
        assert process.stdout is not None
        output, ending = process.stdout.fileno(), os.pidfd_open(process.pid)
        os.set_blocking(output, False)
        rest, heard = b"", time.monotonic()
        ended = False
        try:
            while True:
                wait = min(deadline - time.monotonic(), SILENCE_S, PROGRESS_EVERY_S if self._unreported else SILENCE_S)
                ready, _, _ = select.select(
                    [output, *([] if ended else [ending])], [], [], 0 if ended else max(wait, 0)
                )
                data = _read(output) if output in ready else None
                if data:
                    rest, heard = self._lines(rest + data), time.monotonic()
                elif ended or data == b"":
                    break  # what its children say after its own end is nobody's
                ended = ended or ending in ready
                now = time.monotonic()
                if now >= deadline:
                    return True
                if now - heard >= SILENCE_S:
                    self._report(f"… no output for {_duration(now - heard)}")
                    heard = now
                self._flush_sometimes(now)
            self._lines(rest + b"\n" if rest else b"")
            try:
                process.wait(max(deadline - time.monotonic(), 0.0) if deadline < math.inf else None)
            except subprocess.TimeoutExpired:
                return True
        finally:
            os.close(ending)
        return False

    def _lines(self, data: bytes) -> bytes:
        """Takes the complete lines, and gives back what is left."""
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not end and len(data) > READ:
            end = len(data)
        if end:
            self._take(data[:end].decode("utf-8", "replace"))
        return data[end:]

    def _take(self, text: str) -> None:
        text = self._blot(text)
        self.log.write(text.encode("utf-8", "replace"))
        lines = [line[:LINE_LIMIT] for line in text[-64 * 1024 :].splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith(_NOISE)]
        self.last.extend(lines)
        self._unreported.extend(lines)

    def _flush_sometimes(self, now: float) -> None:
        if now - self._reported >= PROGRESS_EVERY_S and not self._quiet:
            self.flush()

    def _blot(self, text: str) -> str:
        for value in self._secrets:
            text = text.replace(value, BLOT)
        return text


def _blotted(values: Sequence[str]) -> list[str]:
    """What must not be seen, longest first: values, and the lines of those that have several."""
    parts = {part for value in values for part in (value, *value.splitlines()) if len(part) >= SHORTEST_SECRET}
    return sorted(parts, key=lambda part: (-len(part), part))


def _read(descriptor: int) -> bytes | None:
    """None where there is nothing yet."""
    try:
        return os.read(descriptor, READ)
    except BlockingIOError:
        return None


@contextlib.contextmanager
def _killed_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever happens in here, afterwards nothing of the command is left."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if _adopts:
            _end_adopted()
        assert process.stdout is not None
        process.stdout.close()


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_adopts = False


def adopt_orphans() -> None:
    """For a process that does nothing but run commands: what one of them starts in the background becomes its child,
    also where it has left the command's process group, and ends with the command."""
    global _adopts
    if hasattr(_LIBC, "prctl"):
        _adopts = _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def _end_adopted() -> None:
    while children := [int(pid) for file in glob.glob("/proc/self/task/*/children") for pid in _words(file)]:
        for pid in children:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _words(file: str) -> list[str]:
    try:
        with open(file, encoding="ascii") as stream:
            return stream.read().split()
    except OSError:
        return []


def _end_with_parent() -> None:
    """In the new process: a builder that is killed leaves no command behind."""
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
