"""Which rungs of the isolation ladder this machine has, found out once and not before somebody wants to know.

To try them takes tenths of a second and a process: too much for a program that needs none of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

from kedge.engines import probe
from kedge.model.spec import RUNGS


class Ladder(Mapping[str, str]):
    """For each rung an empty string, or why it cannot be had. Whoever looks first waits."""

    def __init__(self, directory: str = "", survey: Callable[[str], dict[str, str]] = probe.survey) -> None:
        """`directory`: where containers will write, which must be on a file system that takes overlays."""
        self._directory = directory
        self._survey = survey
        self._found: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        self._mutex = threading.Lock()

    def begin(self) -> None:
        """Somebody will want to know soon."""
        with self._mutex:
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="isolation", daemon=True)
                self._thread.start()

    def __getitem__(self, rung: str) -> str:
        self.begin()
        assert self._thread is not None
        self._thread.join()
        return self._found[rung]

    def __iter__(self) -> Iterator[str]:
        return iter(RUNGS)

    def __len__(self) -> int:
        return len(RUNGS)

    def _look(self) -> None:
        try:
            self._found = self._survey(self._directory)
        except Exception as error:
            reason = f"it could not be tried out: {error}"
            self._found = {rung: reason if rung != RUNGS[0] else "" for rung in RUNGS}
