"""What the log of an app says of failures that nobody may wait for: of spawned and scheduled calls, of containers.

Whoever awaits a call gets its exception, and a program that runs is told about its containers. Nobody else would learn
of either; so it is written where people look first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.model.ids import input_id
from kedge.model.payload import INIT_FAILURE, SUCCESS, TERMINATED, Result
from kedge.server.chunks import Place
from kedge.wire.records import NOBODY, Origin

if TYPE_CHECKING:
    from kedge.core.plane import Plane
    from kedge.model.protocol import OutputsRecorded, Remarked
    from kedge.server.launches import Launches
    from kedge.server.logs import OutputLog

MESSAGE_LIMIT = 500
"""Characters of an error's message that its line shows."""
TRACEBACK_LIMIT = 16 * 1024
"""Characters of a traceback that follow it: head and tail are kept."""


class Remarks:
    def __init__(self, plane: Plane, launches: Launches, output: OutputLog) -> None:
        self._plane = plane
        self._launches = launches
        self._output = output

    def remark(self, message: Remarked) -> None:
        place = self._launches.place(message.container) or self._place(message.pool)
        if place is not None:
            self._output.remark(place, message.text)

    def recorded(self, message: OutputsRecorded) -> None:
        """Results of a durable call: those that failed leave a trace."""
        for output in message.outputs:
            if output.result.status not in (SUCCESS, TERMINATED):
                self._failed(message, output.index, output.result)

    def _failed(self, message: OutputsRecorded, index: int, result: Result) -> None:
        place, error = self._place(message.pool), result.error
        if place is None or error is None:
            return
        which = input_id(message.call, index) if index else message.call
        name = f"{place.function}.{message.method}" if message.method else place.function
        what = _shortened(f"{error.type}: {error.message}" if error.message else error.type, MESSAGE_LIMIT)
        # What a container failed by when it started is in the log already: it has printed that itself.
        detail = "" if result.status == INIT_FAILURE else _shortened(error.traceback, TRACEBACK_LIMIT)
        origin = Origin(message.call, index, 0, message.method) if message.call else NOBODY
        self._output.remark(place, f"{which} of {name} failed: {' '.join(what.split())}", origin, detail)

    def _place(self, pool: str) -> Place | None:
        """None where its app is gone: so is everybody who could ask."""
        known = self._plane.pools.get(pool)
        app = self._plane.apps.get(known.app) if known is not None else None
        if known is None or app is None:
            return None
        id, function = app.spec.deployment or app.spec.app, known.spec.name
        return Place(f"{id}/{function}", id, app.spec.name, function, pool)


def _shortened(text: str, limit: int) -> str:
    """`text`, or its head and tail where it is longer."""
    half = limit // 2
    left_out = len(text) - 2 * half
    return text if left_out <= 0 else f"{text[:half]}\n… {left_out} characters left out …\n{text[-half:]}"
