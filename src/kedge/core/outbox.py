"""What one `handle` orders: addressed messages, with dispatches per container and outputs per call batched into one."""

from __future__ import annotations

from typing import Any

from kedge.model.payload import Result
from kedge.model.protocol import (
    Dispatch,
    InputsDispatched,
    Output,
    OutputsDelivered,
    OutputsRecorded,
    PayloadReleased,
    Remarked,
)

ENGINE = "engine"
STORE = "store"

Command = tuple[str, Any]
"""(address, message): a session, a container, ENGINE or STORE, and what it should do."""


class Outbox:
    def __init__(self) -> None:
        self._commands: list[Command] = []
        self._dispatches: dict[str, list[Dispatch]] = {}
        self._outputs: dict[tuple[str, str], list[Output]] = {}
        self._records: dict[str, OutputsRecorded] = {}
        self._released: list[str] = []
        self._remarks: list[Command] = []

    def send(self, address: str, message: Any) -> None:
        self._commands.append((address, message))

    def dispatch(self, container: str, dispatch: Dispatch) -> None:
        batch = self._dispatches.get(container)
        if batch is None:
            self._dispatches[container] = [dispatch]
        else:
            batch.append(dispatch)

    def deliver(self, session: str, call: str, index: int, result: Result) -> None:
        key = (session, call)
        batch = self._outputs.get(key)
        if batch is None:
            self._outputs[key] = [Output(index, result)]
        else:
            batch.append(Output(index, result))

    def record(self, call: str, index: int, result: Result, pool: str = "", method: str = "") -> None:
        record = self._records.get(call)
        if record is None:
            record = self._records[call] = OutputsRecorded(call, [], pool, method)
        record.outputs.append(Output(index, result))

    def remark(self, pool: str, text: str, container: str = "") -> None:
        """Something for the log of an app."""
        self._remarks.append((STORE, Remarked(pool, text, container)))

    def release(self, blob: str) -> None:
        """A payload file that nobody reads again."""
        self._released.append(blob)

    def take(self) -> list[Command]:
        """Everything since the last time, ready to be carried out in this order: records before what may ask for
        them."""
        commands, self._commands = self._commands, []
        if self._records:
            commands[:0] = [(STORE, record) for record in self._records.values()]
            self._records = {}
        if self._remarks:  # what happened to a container comes before what that did to its inputs
            commands[:0] = self._remarks
            self._remarks = []
        if self._released:
            commands.append((STORE, PayloadReleased(self._released)))
            self._released = []
        if self._dispatches:
            commands += [(container, InputsDispatched(batch)) for container, batch in self._dispatches.items()]
            self._dispatches = {}
        if self._outputs:
            commands += [(session, OutputsDelivered(call, batch)) for (session, call), batch in self._outputs.items()]
            self._outputs = {}
        return commands
