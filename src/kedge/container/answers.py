"""What a response may be made of, whichever interface its app speaks. What it may not is a RuntimeError where it was
said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kedge.model.web import ResponseStarted


def started(message: Mapping[str, Any]) -> ResponseStarted:
    """The head of a response. RuntimeError where it is none."""
    status = message.get("status")
    if not isinstance(status, int) or not 200 <= status <= 999:
        raise RuntimeError(f"the status of a response is a number from 200 to 999, not {status!r}")
    return ResponseStarted(int(status), headers_of(message.get("headers"), message["type"]))


def headers_of(headers: Any, kind: str) -> list[tuple[bytes, bytes]]:
    """Checked headers. One with a line break in it would be read as two."""
    if headers is None:
        return []
    checked: list[tuple[bytes, bytes]] = []
    try:
        for name, value in headers:
            if type(name) is not bytes or type(value) is not bytes:
                name, value = as_bytes(name, "the name of a header"), as_bytes(value, "the value of a header")
            if b"\n" in value or b"\r" in value or b"\0" in value or b"\n" in name or b"\r" in name or not name:
                raise RuntimeError(f"the header {name!r}: {value!r} has a line break in it, or no name")
            checked.append((name, value))
    except (TypeError, ValueError):
        raise RuntimeError(f"the headers of {kind!r} are pairs of bytes, not {headers!r:.200}") from None
    return checked


def length_of(head: ResponseStarted) -> int | None:
    """Bytes of the body that a response announces."""
    for name, value in head.headers:
        if len(name) == 14 and name.lower() == b"content-length":
            try:
                return int(value)
            except ValueError:
                raise RuntimeError(f"the content-length of a response is a number, not {value!r}") from None
    return None


def remaining(left: int, size: int, more: bool) -> int:
    """What is left of the announced length after `size` bytes; RuntimeError where the body does not match it."""
    if size > left:
        raise RuntimeError(f"the body of the response is {size - left} bytes longer than its content-length")
    if size < left and not more:
        raise RuntimeError(f"the body of the response is {left - size} bytes shorter than its content-length")
    return left - size


def as_bytes(data: Any, what: str) -> bytes:
    if type(data) is bytes:
        return data
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise RuntimeError(f"{what} must be bytes, not {type(data).__name__}: {data!r:.100}")
