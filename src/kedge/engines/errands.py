"""What takes too long for the supervisor, or must happen in other namespaces: done by a child of its that says how it
went and ends."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from functools import partial

from kedge.engines import system
from kedge.engines.loop import Loop

_DONE = b"\n"
_LONGEST_ANSWER = 4096


class Errands:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._answers: dict[int, tuple[int, bytearray, Callable[[str], None]]] = {}
        """By descriptor: the process, what it has said, who wants to know."""

    def processes(self) -> list[int]:
        return [process for process, _, _ in self._answers.values()]

    def send(self, action: Callable[[], str], answer: Callable[[str], None]) -> None:
        """Calls `action` in a child, and `answer` with what it returned: an empty string where all went well."""
        opened: tuple[int, ...] = ()
        parent = os.getpid()
        try:
            opened = reader, writer = os.pipe()
            process = os.fork()
        except OSError as error:
            for descriptor in opened:
                os.close(descriptor)
            answer(f"no process can be made: {error}")
            return
        if process == 0:
            try:
                system.die_with(parent)
                system.set_name("kedge-errand")
                os.write(writer, action().encode(errors="replace")[:_LONGEST_ANSWER] + _DONE)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(writer)
        self._answers[reader] = process, bytearray(), answer
        self._loop.watch(reader, partial(self._hear, reader))

    def _hear(self, reader: int) -> None:
        process, said, answer = self._answers[reader]
        data = os.read(reader, _LONGEST_ANSWER)
        said += data
        if data and not said.endswith(_DONE):
            return
        self._loop.forget(reader)
        os.close(reader)
        del self._answers[reader]
        try:
            os.waitpid(process, 0)  # it ends right now
        except ChildProcessError:
            pass
        answer(said[:-1].decode(errors="replace") if said.endswith(_DONE) else "the process that was to do it died")
