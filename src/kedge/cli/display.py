"""What a person sees of a running app: containers' lines, notices, progress, one sentence at the end.

On a terminal, live lines stand below the output and each line of a container says where it came from. Elsewhere lines
pass unchanged, stdout to stdout and stderr to stderr, so that what a program prints can be piped on; progress is then a
line now and then. A display never holds up the program: it is fed by a connection of its own, and draws on its thread.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TextIO

from rich.console import Console
from rich.text import Text

from kedge.cli import progress
from kedge.cli.builds import Builds, began
from kedge.cli.lines import plain, shown
from kedge.cli.terminal import Piped, Screen, piped, sharing
from kedge.model.protocol import ImageProgressed, OutputCaptured
from kedge.sdk.lines import Lines, Origin

TICK_S = 0.1
"""Seconds between two drawings of the live lines."""
TAIL_AGE_S = 0.3
"""Seconds after which a line without an end is shown among the live lines: most get their end sooner."""
TAILS_SHOWN = 3
TAIL_LIMIT = 2000
"""Bytes of it that are looked at: more than a line of any terminal."""
STARTING_PLAIN_S = 10.0
"""Seconds between two lines that say what still starts, where there is no terminal."""
FIRST_PLAIN_S = 10.0
"""Seconds until the first line of progress where there is no terminal; each further one takes twice as long."""
STOPPING = "Stopping (Ctrl-C again to stop at once)"
STDERR = 2
_NOTICE_STYLES = {"room": "yellow", "warning": "yellow"}


class Display:
    """The output sink of `kedge run`. Use `display_for` to get the fitting one."""

    progress_interval = 0.15

    def __init__(self, title: str, *, timestamps: bool = False) -> None:
        self.title = title
        self.pools: list[progress.Statistics] = []
        self._timestamps = timestamps
        self._started = time.monotonic()
        self._idle_s = 0.0
        self._mutex = threading.Lock()
        self._lines = Lines()
        self._names: dict[str, str] = {}
        self._builds = Builds()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    @property
    def busy_s(self) -> float:
        """Seconds since the app has had containers or inputs: before that its images were built."""
        return self.elapsed - self._idle_s

    # ------------------------------------------------------------ what the runner says

    def captured(self, message: OutputCaptured) -> None:
        """A container wrote bytes; no bytes say that it has ended."""
        with self._mutex:
            if message.container not in self._names:
                self._names[message.container] = _origin_name(message)
            self._put(self._lines.feed(message), message.at)

    def notice(self, text: str, level: str = "info") -> None:
        """Something to read once."""
        raise NotImplementedError

    def progress(self, pools: list[progress.Statistics]) -> None:
        """The statistics of every pool of the app."""
        if not progress.busy_pools(self.pools):
            self._idle_s = self.elapsed
        self.pools = pools

    def building(self, image: str, message: ImageProgressed) -> None:
        """How the build of an image goes."""
        for line in self._builds.feed(image, message, time.monotonic()):
            self.notice(line)

    def starting(self, functions: list[tuple[str, str]], elapsed: float) -> None:
        """The functions of a version that is tried and has not come up, each with what it printed last. `elapsed`:
        seconds since their containers were launched."""

    # ------------------------------------------------------------ what the command says

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The time in which it is to be seen."""
        yield
        self.flush()

    def flush(self) -> None:
        """Writes lines whose end never came."""
        with self._mutex:
            self._put(self._lines.rest(), time.time())

    def interrupted(self, text: str) -> None:
        """Ctrl-C was pressed. Called from the signal handler: takes no lock, allocates no stream."""
        os.write(STDERR, text.encode() + b"\n")

    def abandon(self) -> None:
        """The process ends this moment."""

    def error(self, text: Text) -> None:
        """A traceback, or another failure."""
        raise NotImplementedError

    def finish(self, word: str) -> None:
        """The sentence at the end."""
        raise NotImplementedError

    def show(self, origin: Origin, lines: list[bytes], at: float) -> None:
        """Writes lines of a container."""
        raise NotImplementedError

    def unfinished(self, origin: Origin, tail: bytes) -> None:
        """The container's stream ends like this, without a newline; empty where it ends with one."""

    def _put(self, found: Iterable[tuple[Origin, list[bytes]]], at: float) -> None:
        for origin, lines in found:
            self.unfinished(origin, self._lines.tail(origin, TAIL_LIMIT))
            if lines:
                self.show(origin, lines, at)

    def _time(self, at: float) -> str:
        if not self._timestamps:
            return ""
        return datetime.datetime.fromtimestamp(at or time.time()).isoformat(timespec="milliseconds") + " "


def _origin_name(message: OutputCaptured) -> str:
    """`square 3f2a`: the function and the end of the container's id."""
    name = message.pool.partition("@")[0].removeprefix(f"fu-{message.app[3:]}-")
    return f"{name} {message.container[-4:]}".strip()


class PlainDisplay(Display):
    """For files and pipes."""

    progress_interval = 1.0

    def __init__(self, title: str, *, timestamps: bool = False) -> None:
        super().__init__(title, timestamps=timestamps)
        self._next_line_s = FIRST_PLAIN_S
        self._next_starting_s = STARTING_PLAIN_S
        self._last_line = ""
        self._streams: dict[str, Piped] = {}

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        with self.beside("stdout"), self.beside("stderr"), super().shown():
            yield

    @contextlib.contextmanager
    def beside(self, name: str) -> Iterator[None]:
        """Lets the program and containers share one of its streams."""
        with piped(name) as self._streams[name]:
            yield

    def show(self, origin: Origin, lines: list[bytes], at: float) -> None:
        name = "stderr" if origin.stream == STDERR else "stdout"
        prefix = self._time(at).encode()
        stream = self._streams.get(name) or Piped(getattr(sys, name))
        stream.insert(b"".join(prefix + line for line in lines))

    def notice(self, text: str, level: str = "info") -> None:
        _say(f"kedge: {text}")

    def progress(self, pools: list[progress.Statistics]) -> None:
        super().progress(pools)
        if self.busy_s >= self._next_line_s:
            self._next_line_s *= 2
            line = progress.plain_line(pools, self.busy_s)
            if line and line != self._last_line:
                self._last_line = line
                _say(f"kedge: {line}")

    def building(self, image: str, message: ImageProgressed) -> None:
        if message.state == "started":
            self.notice(began(image, message))
        super().building(image, message)

    def starting(self, functions: list[tuple[str, str]], elapsed: float) -> None:
        if not functions:
            self._next_starting_s = STARTING_PLAIN_S
        elif elapsed >= self._next_starting_s:
            self._next_starting_s += STARTING_PLAIN_S
            self.notice(progress.starting_line(functions, elapsed))

    def error(self, text: Text) -> None:
        _say(text.plain)

    def finish(self, word: str) -> None:
        _say(f"kedge: {progress.summary(word, self.pools, self.elapsed)}")


class QuietDisplay(PlainDisplay):
    """`-q`: errors only."""

    progress_interval = 0.0

    def captured(self, message: OutputCaptured) -> None:
        pass

    def notice(self, text: str, level: str = "info") -> None:
        pass

    def interrupted(self, text: str) -> None:
        pass

    def finish(self, word: str) -> None:
        pass


class LiveDisplay(Display):
    """For a terminal."""

    def __init__(self, title: str, stream: TextIO, *, timestamps: bool = False) -> None:
        super().__init__(title, timestamps=timestamps)
        self._console = Console(file=stream, highlight=False)
        self._screen = Screen(stream, self._compose)
        self._stdout_is_terminal = sys.stdout.isatty()
        self._plain_stdout = PlainDisplay(title, timestamps=timestamps)
        self._interrupted = ""
        self._tails: dict[Origin, tuple[float, bytes]] = {}
        self._starting: list[tuple[str, str]] = []
        self._over = threading.Event()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        ticker = threading.Thread(target=self._tick, name="kedge-display", daemon=True)
        ticker.start()
        try:
            with contextlib.ExitStack() as stack:
                if not self._stdout_is_terminal:
                    stack.enter_context(self._plain_stdout.beside("stdout"))
                stack.enter_context(sharing(self._screen))
                yield
        finally:
            self._over.set()
            ticker.join()
            self.flush()
            self._screen.close()

    def _tick(self) -> None:
        while not self._over.wait(TICK_S):
            self._screen.redraw()

    def unfinished(self, origin: Origin, tail: bytes) -> None:
        if tail:
            since = self._tails.get(origin, (time.monotonic(), b""))[0]
            self._tails[origin] = (since, tail)
        else:
            self._tails.pop(origin, None)

    def show(self, origin: Origin, lines: list[bytes], at: float) -> None:
        if origin.stream != STDERR and not self._stdout_is_terminal:
            self._plain_stdout.show(origin, lines, at)
            return
        prefix = self._styled(self._prefix(origin, at))
        text = []
        for line in lines:
            content = shown(line)
            text.append(f"{prefix}{content}\x1b[0m\n" if "\x1b" in content else f"{prefix}{content}\n")
        self._screen.write("".join(text))

    def _prefix(self, origin: Origin, at: float) -> Text:
        mark = (" ! ", "red") if origin.stream == STDERR else (" │ ", "dim")
        return Text.assemble((self._time(at), "dim"), (self._names[origin.container], "dim"), mark)

    def notice(self, text: str, level: str = "info") -> None:
        self._screen.write(self._styled(Text(f"kedge: {text}", _NOTICE_STYLES.get(level, "dim"))) + "\n")

    def starting(self, functions: list[tuple[str, str]], elapsed: float) -> None:
        self._starting = functions

    def interrupted(self, text: str) -> None:
        # The ticker draws it: here anything may be half done.
        self._interrupted = text

    def abandon(self) -> None:
        self._screen.abandon()

    def error(self, text: Text) -> None:
        self._screen.write(self._styled(text).rstrip("\n") + "\n")

    def finish(self, word: str) -> None:
        style = "green" if word == "Done" else "yellow" if word == "Stopped" else "red"
        sentence = progress.summary(word, self.pools, self.elapsed)
        head, _, rest = sentence.partition(word)
        self._screen.write(self._styled(Text.assemble(head, (word, style), (rest, "dim"))) + "\n")

    def _styled(self, text: Text) -> str:
        """The text with the codes of this terminal, as long as it is."""
        with self._console.capture() as capture:
            self._console.print(text, end="", soft_wrap=True)
        return capture.get()

    def _compose(self) -> list[str]:
        lines = []
        now = time.monotonic()
        tails = [(origin, tail) for origin, (since, tail) in list(self._tails.items()) if now - since >= TAIL_AGE_S]
        for origin, tail in tails[-TAILS_SHOWN:]:
            lines += progress.render(self._console, self._prefix(origin, time.time()).append(plain(tail), "dim"))
        lines += self._builds.live(self._console, now, self.elapsed)
        busy = progress.busy_pools(self.pools)
        lines += progress.live_lines(self._console, self.title, busy, self.busy_s if busy else self.elapsed)
        lines += progress.starting_lines(self._console, self._starting)
        if self._interrupted:
            lines += progress.render(self._console, Text(self._interrupted, "yellow"))
        return lines


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def display_for(title: str, *, quiet: bool = False, timestamps: bool = False) -> Display:
    """The display that fits: live where a person looks at a terminal, plain elsewhere, silent with `-q`."""
    if quiet:
        return QuietDisplay(title)
    if sys.stderr.isatty() and not Console(file=sys.stderr).is_dumb_terminal:
        return LiveDisplay(title, sys.stderr, timestamps=timestamps)
    return PlainDisplay(title, timestamps=timestamps)
