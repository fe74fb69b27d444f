"""The process of one build: `python -m kedge.images`, a request on standard input, events on standard output.

Standard input stays open for as long as anybody wants the image. At its end, or on SIGTERM, the build is given up: the
command that runs is killed with all that it started, and what is half-made is removed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

import msgspec

from kedge.exception import Error
from kedge.images.advice import advise
from kedge.images.builder import Builder, Progress, Request
from kedge.images.running import adopt_orphans


class GivenUp(BaseException):
    """Nobody wants the image any more."""


def main() -> int:
    signal.signal(signal.SIGTERM, _give_up)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to the program; what it means for a build, the server says
    adopt_orphans()
    events = os.dup(1)
    os.dup2(2, 1)  # what is printed by accident is no event
    encoder = msgspec.json.Encoder()

    def tell(progress: Progress) -> None:
        _write(events, encoder.encode(progress) + b"\n")

    try:
        with os.fdopen(0, "rb", closefd=False) as stream:
            request = msgspec.json.decode(stream.readline(), type=Request)
            threading.Thread(target=_watch, args=(0,), daemon=True).start()
            builder = Builder(request, tell)
            if request.runtimes:
                builder.prepare()
            else:
                builder.build()
    except GivenUp:
        return 1
    except Error as error:
        tell(Progress(state="failed", text=str(error), error=type(error).__name__))
        return 1
    except OSError as error:
        text = f"images cannot be kept: {error}\n{advise(str(error), [])}".rstrip()
        tell(Progress(state="failed", text=text, error="ImageBuildError"))
        return 1
    return 0


def _watch(descriptor: int) -> None:
    """Whoever has started this process is gone when there is nothing more to read."""
    while os.read(descriptor, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _give_up(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: what follows is cleaning up
    raise GivenUp


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    sys.exit(main())
