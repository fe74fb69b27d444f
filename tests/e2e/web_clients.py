"""What the tests of the web part ask with, and wait with."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

import kedge

PATIENCE_S = 60.0
"""No request of a test waits longer, and no condition."""


def url_of(function: kedge.Function[..., Any]) -> str:
    url = function.get_web_url()
    assert url is not None
    return url


def wait_until(condition: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"it did not become true: {what}"
        threading.Event().wait(0.01)


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_for_line(path: Path, line: str) -> None:
    wait_until(lambda: line in lines_of(path), f"{line!r} in {path.name}: {lines_of(path)}")


class Gate:
    """Requests that came to it stay until it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    @property
    def begun(self) -> int:
        return len(lines_of(Path(f"{self.path}.begun")))

    def wait(self, count: int) -> None:
        wait_until(lambda: self.begun >= count, f"{count} at the gate, there are {self.begun}")

    def open(self) -> None:
        self.path.touch()


@contextmanager
def crowd(size: int) -> Iterator[Callable[..., Future[httpx.Response]]]:
    """A function like `client.get` that returns at once; up to `size` requests are under way at the same time."""
    with http() as client, ThreadPoolExecutor(size) as pool:
        yield lambda url, **options: pool.submit(client.get, url, **options)


def http(**options: Any) -> httpx.Client:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    return httpx.Client(timeout=PATIENCE_S, limits=limits, trust_env=False, **options)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Raw:
    """A connection on which bytes are sent as they are.

    Example:
        with Raw(url) as raw:
            raw.send("GET {path} HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n")
            raw.answer().status
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host = parts.netloc
        self.path = parts.path
        self.socket = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=PATIENCE_S)
        self._data = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, text: str | bytes) -> None:
        if isinstance(text, str):
            text = text.replace("{host}", self.host).replace("{path}", self.path).encode()
        self.socket.sendall(text)

    def closed(self) -> bool:
        """Waits for whatever comes next: whether it is the end."""
        return self._data == b"" and self._more() == b""

    def answer(self, to: str = "GET") -> Answer:
        """The next whole response. ConnectionError where the connection ends before it does."""
        head = self._until(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(first.split(" ")[1])
        if to == "HEAD" or status in (204, 304) or status < 200:
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self.chunk, b""))
        elif "content-length" in headers:
            body = self._exactly(int(headers["content-length"]))
        else:
            while self._more():
                pass
            body, self._data = self._data, b""
        return Answer(status, headers, body)

    def chunk(self) -> bytes:
        """The next chunk of a body; empty for the last one."""
        size = int(self._until(b"\r\n"), 16)
        return self._exactly(size + 2)[:-2]

    def head(self) -> str:
        return self._until(b"\r\n\r\n").decode("latin-1")

    def _until(self, end: bytes) -> bytes:
        while end not in self._data:
            if not self._more():
                raise ConnectionError(f"the connection has ended after {self._data!r}")
        found, _, self._data = self._data.partition(end)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            if not self._more():
                raise ConnectionError(f"the connection has ended {size - len(self._data)} bytes early")
        found, self._data = self._data[:size], self._data[size:]
        return found

    def _more(self) -> bytes:
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            data = b""
        self._data += data
        return data
