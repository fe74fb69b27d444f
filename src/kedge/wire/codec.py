"""Frames: `b"kdg"`, a version byte, a u32 length, then a msgpack list of messages. Pure: bytes in, messages out."""

from __future__ import annotations

from typing import Any

import msgspec

from kedge.model import protocol

MAGIC = b"kdg" + bytes([protocol.PROTOCOL_VERSION])
HEADER_SIZE = len(MAGIC) + 4
MAX_FRAME = 64 * 1024 * 1024
"""Bytes of one frame. Payloads above 256 KiB travel as files, so an honest frame stays far below this."""

_encoder = msgspec.msgpack.Encoder()


class FrameError(Exception):
    """The peer sent what is no frame of this protocol. The connection cannot be used any more."""


def encode(messages: list[Any]) -> bytes:
    """One frame that carries `messages`."""
    buffer = bytearray(HEADER_SIZE)
    _encoder.encode_into(messages, buffer, HEADER_SIZE)
    size = len(buffer) - HEADER_SIZE
    if size > MAX_FRAME:
        raise FrameError(f"a frame of {size} bytes was about to be sent; the limit is {MAX_FRAME}")
    buffer[: len(MAGIC)] = MAGIC
    buffer[len(MAGIC) : HEADER_SIZE] = size.to_bytes(4, "little")
    return bytes(buffer)


class FrameDecoder:
    """Collects bytes of one connection and gives the messages of every whole frame.

    `union` is what this side accepts, for example `protocol.FromClient`. A frame that fails to decode raises FrameError
    naming the reason; nothing after it is read.
    """

    def __init__(self, union: Any, limit: int = MAX_FRAME) -> None:
        self._decoder = msgspec.msgpack.Decoder(list[union])
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes | memoryview) -> list[Any]:
        """The messages completed by `data`, in order; an empty list where a frame is still incomplete."""
        buffer = self._buffer
        if not buffer and len(data) >= HEADER_SIZE and len(data) == HEADER_SIZE + self._size(data):
            return self._decode(memoryview(data)[HEADER_SIZE:])
        buffer += data
        messages: list[Any] = []
        start = 0
        while len(buffer) - start >= HEADER_SIZE:
            with memoryview(buffer) as view:
                end = start + HEADER_SIZE + self._size(view[start : start + HEADER_SIZE])
                if len(buffer) < end:
                    break
                messages += self._decode(view[start + HEADER_SIZE : end])
            start = end
        if start:
            del buffer[:start]
        return messages

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame: what a peer that stops here has truncated."""
        return len(self._buffer)

    def _size(self, header: bytes | bytearray | memoryview) -> int:
        if bytes(header[:3]) != MAGIC[:3]:
            raise FrameError(f"not a kedge frame: it starts with {bytes(header[:4])!r}, expected {MAGIC!r}")
        if header[3] != MAGIC[3]:
            raise FrameError(f"protocol version {header[3]}, expected {MAGIC[3]}: use the same kedge on both sides")
        size = int.from_bytes(header[4:HEADER_SIZE], "little")
        if size > self._limit:
            raise FrameError(f"a frame of {size} bytes, the limit is {self._limit}")
        return size

    def _decode(self, body: memoryview) -> list[Any]:
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"undecodable frame of {len(body)} bytes: {error}") from None
