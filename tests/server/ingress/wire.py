"""A client in memory: what a connection does to its transport, without a socket."""

from __future__ import annotations

import asyncio
from typing import Any


class Wire(asyncio.Transport):
    """A client in memory. It reads nothing while `slow`."""

    def __init__(self, slow: bool = False) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.protocol: Any = None
        self.written = bytearray()
        self.paused = self.shut = self.lost = False
        self.slow = slow

    def write(self, data: Any) -> None:
        assert not self.shut, "written after the end"
        self.written += data
        if self.slow and not self.lost:
            self.protocol.pause_writing()

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.shut = True

    def is_closing(self) -> bool:
        return self.lost

    def close(self) -> None:
        self.lose()

    def abort(self) -> None:
        self.lose()

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def lose(self) -> None:
        if not self.lost:
            self.lost = self.shut = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)
