"""Frames: `b"kdg"`, a version byte, a u32 length, then a msgpack list of messages. Pure: bytes in, messages out.

What a connection carries does not depend on how its bytes are cut into pieces: the messages of every whole frame come
out in order, and the first frame that is none ends the connection with a FrameError that says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from kedge.model import protocol

MAGIC = b"kdg" + bytes([protocol.PROTOCOL_VERSION])
TLS_RECORDS = (b"\x15\x03", b"\x16\x03")
"""How an alert and a handshake begin: the other side has TLS, and this one has not."""
HEADER_SIZE = len(MAGIC) + 4
MAX_FRAME = 64 * 1024 * 1024
"""Bytes of one frame. Payloads above 256 KiB travel as files, so an honest frame stays far below this."""

_encoder = msgspec.msgpack.Encoder()

# msgspec (0.22) finds out what a struct is made of when it is decoded first, and crashes the process where two threads
# do that at once. Hence it is done here, by the one thread that imports this: for all messages and whatever they hold.
_decoders: dict[int, msgspec.msgpack.Decoder[list[Any]]] = {
    # By their identity: to look for a union by its value takes a look at each of its members.
    id(union): msgspec.msgpack.Decoder(list[union])  # type: ignore[valid-type]
    for union in (
        protocol.FromClient,
        protocol.ToClient,
        protocol.FromContainer,
        protocol.ToContainer,
        protocol.FromSupervisor,
        protocol.ToSupervisor,
    )
}


class FrameError(Exception):
    """The peer sent what is no frame of this protocol, or would be sent one. The connection cannot be used any
    more."""


def encode(messages: list[Any]) -> bytes:
    """One frame that carries `messages`; FrameError where they are too much for one."""
    buffer = bytearray(HEADER_SIZE)
    try:
        _encoder.encode_into(messages, buffer, HEADER_SIZE)
    except UnicodeEncodeError:  # file names and other people's texts may hold halves of surrogate pairs
        plain = msgspec.to_builtins(messages, builtin_types=(bytes, bytearray, memoryview))
        _encoder.encode_into(_writable(plain), buffer, HEADER_SIZE)
    size = len(buffer) - HEADER_SIZE
    if size > MAX_FRAME:
        raise FrameError(f"a frame of {size} bytes was about to be sent; the limit is {MAX_FRAME}")
    buffer[: len(MAGIC)] = MAGIC
    buffer[len(MAGIC) : HEADER_SIZE] = size.to_bytes(4, "little")
    return bytes(buffer)


def _writable(value: Any) -> Any:
    """The same, with escapes in the place of what is no character."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_writable(key): _writable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_writable(each) for each in value]
    return value


def encode_all(messages: list[Any]) -> Iterator[bytes]:
    """As few frames as carry `messages`: one, unless together they are too much. FrameError where one alone is."""
    try:
        frame = encode(messages)
    except FrameError:
        if len(messages) < 2:
            raise
    else:
        yield frame
        return
    half = len(messages) // 2
    yield from encode_all(messages[:half])
    yield from encode_all(messages[half:])


class FrameDecoder:
    """Collects bytes of one connection and gives the messages of every whole frame.

    Args:
        union: What this side accepts, for example `protocol.FromClient`.
        limit: Bytes that one frame may have. May be changed between frames: a stranger is given less.
    """

    def __init__(self, union: Any, limit: int = MAX_FRAME) -> None:
        self.limit = limit
        self.failure: FrameError | None = None
        """Why nothing more can be read, where good frames came before the bad one in the same bytes."""
        self._decoder = _decoders.get(id(union)) or msgspec.msgpack.Decoder(list[union])
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[Any]:
        """The messages completed by `data`, in order; an empty list where a frame is still incomplete.

        FrameError where the next frame is none. Messages in front of it are given first: then it is kept as `failure`,
        and raised from the next call on.
        """
        if self.failure is not None:
            raise self.failure
        messages: list[Any] = []
        try:
            self._feed(data, messages)
        except FrameError as error:
            self.failure = error.with_traceback(None)
            self._buffer = bytearray()
            if not messages:
                raise
        return messages

    def _feed(self, data: bytes | bytearray | memoryview, messages: list[Any]) -> None:
        buffer = self._buffer
        if not buffer and len(data) >= HEADER_SIZE and len(data) == HEADER_SIZE + self._size(data):
            messages += self._decode(memoryview(data)[HEADER_SIZE:])
            return
        buffer += data
        start = 0
        while len(buffer) > start:
            end = start + HEADER_SIZE + self._size(bytes(buffer[start : start + HEADER_SIZE]))
            if len(buffer) < max(end, start + HEADER_SIZE):
                break
            with memoryview(buffer) as view, view[start + HEADER_SIZE : end] as body:
                messages += self._decode(body)
            start = end
        if start:
            del buffer[:start]

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame: what a peer that stops here has truncated."""
        return len(self._buffer)

    def _size(self, header: bytes | bytearray | memoryview) -> int:
        """Bytes of the body that a header announces; it may be incomplete, and is checked as far as it goes."""
        start = bytes(header[: len(MAGIC)])
        if start[:3] != MAGIC[: len(start[:3])]:
            if start[:2] in TLS_RECORDS:
                raise FrameError("not a kedge frame: it speaks TLS: write tcps:// on the client's side as well")
            raise FrameError(f"not a kedge frame: it starts with {start!r}, expected {MAGIC!r}")
        if len(start) > 3 and start[3] != MAGIC[3]:
            raise FrameError(f"protocol version {header[3]}, expected {MAGIC[3]}: use the same kedge on both sides")
        if len(header) < HEADER_SIZE:
            return 0
        size = int.from_bytes(header[4:HEADER_SIZE], "little")
        if size > self.limit:
            raise FrameError(f"a frame of {size} bytes, the limit is {self.limit}")
        return size

    def _decode(self, body: memoryview) -> list[Any]:
        try:
            messages: list[Any] = self._decoder.decode(body)
        except Exception as error:
            # Besides its own errors msgspec lets some of Python's through: bad text, deep nesting, unhashable keys.
            text = str(error)[:MAX_REASON] or type(error).__name__
            raise FrameError(f"undecodable frame of {len(body)} bytes: {text}") from None
        return messages


MAX_REASON = 300
"""Characters of a decoder's complaint that are passed on: it may quote what the peer has sent."""
