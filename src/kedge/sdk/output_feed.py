"""Brings what an app's containers write to whoever shows it: a connection and a thread of its own.

So output appears while the program computes, and a display that is slow holds up nothing else.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from kedge import exception
from kedge.model.protocol import Notice, OutputCaptured, OutputSubscribed, Reply, StatisticsRequested, ToClient
from kedge.sdk.link import HANDSHAKE_S, hello, welcomed
from kedge.wire.transport import BlockingConnection, ConnectionLost

if TYPE_CHECKING:
    from kedge.sdk.client import Client
    from kedge.sdk.output import OutputSink

_SUBSCRIBED, _PROGRESS, _LAST, _FINAL = 1, 2, 3, 4
"""Numbers of this connection's requests: answers come in order, so an answer says that all before it was read."""
COUNT_S = 1.0
"""Seconds that numbers for the last line are worth."""
CLOSE_S = 10.0
"""Seconds to wait for the rest of the output at the end."""


class OutputFeed:
    """Shows the output of one app from the moment this returns until `close`.

    Args:
        client: Says where the server is.
        app: Whose output; for that of a deployment the id that all its versions have.
        sink: Where it goes.
        counted: The app whose numbers are shown, where it is another one, such as a version.

    Raises ConnectionError where the server does not answer.
    """

    def __init__(self, client: Client, app: str, sink: OutputSink, counted: str = "") -> None:
        self._app = counted or app
        self._sink = sink
        try:
            self._connection = BlockingConnection.connect(client.address, ToClient, HANDSHAKE_S, client.tls_ca)
        except OSError as error:
            raise exception.ConnectionError(f"no kedge server answers at {client.address}: {error}") from error
        try:
            self._connection.send([hello(client)])
            messages = self._connection.receive(HANDSHAKE_S)
            if not messages:
                raise exception.ConnectionError(f"the kedge server at {client.address} does not answer")
            welcomed(messages[0], client)
            self._connection.send([OutputSubscribed(app), StatisticsRequested(_SUBSCRIBED, app=self._app)])
            while not any(isinstance(message, Reply) for message in messages):
                messages += self._connection.receive(HANDSHAKE_S)
        except ConnectionLost as error:
            self._connection.close()
            raise exception.ConnectionError(f"the kedge server at {client.address} is gone: {error}") from error
        except BaseException:
            self._connection.close()
            raise
        self._counted = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(messages,), name="kedge-output", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Until the server is gone: True. False after `timeout` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def count(self) -> None:
        """Shows the numbers as they are now: those of a stopped app are gone."""
        if self._sink.progress_interval:
            try:
                self._connection.send([StatisticsRequested(_FINAL, app=self._app)])
                self._counted.wait(COUNT_S)
            except ConnectionLost:
                pass

    def close(self) -> None:
        """Shows what has been written so far, then ends."""
        try:
            self._connection.send([StatisticsRequested(_LAST, app=self._app)])
            self._thread.join(CLOSE_S)
        except ConnectionLost:
            pass
        finally:
            self._connection.close()
            self._thread.join(CLOSE_S)

    def _run(self, early: list[Any]) -> None:
        for message in early:
            self._show(message)
        interval = self._sink.progress_interval
        due = time.monotonic() + interval
        try:
            while True:
                messages = self._connection.receive(max(0.0, due - time.monotonic()) if interval else None)
                for message in messages:
                    if isinstance(message, Reply) and message.request == _LAST:
                        return
                    self._show(message)
                if interval and time.monotonic() >= due:
                    due = time.monotonic() + interval
                    self._connection.send([StatisticsRequested(_PROGRESS, app=self._app)])
        except (ConnectionLost, ValueError):
            pass  # the server or our own end is closed: calls that wait for it say so

    def _show(self, message: Any) -> None:
        if isinstance(message, OutputCaptured):
            self._sink.captured(message)
        elif isinstance(message, Notice):
            self._sink.notice(message.text, message.level)
        elif isinstance(message, Reply) and message.request in (_PROGRESS, _FINAL):
            over = message.request == _PROGRESS and self._counted.is_set()  # asked when the app had stopped already
            if message.error is None and not over:
                self._sink.progress(message.value)
            if message.request == _FINAL:
                self._counted.set()
