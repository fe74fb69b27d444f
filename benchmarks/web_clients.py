"""What asks web servers in the measurements: wrk for many small requests, and plain sockets, which cost little
themselves, for everything else."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import websockets

SUMMARY = """
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('{"requests": %d, "us": %d, "p50": %d, "p99": %d, "failed": %d}\\n', summary.requests,
    summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""
PART = bytes(1024 * 1024)
START_S = 60.0


class Load(NamedTuple):
    rate: float
    p50_ms: float
    p99_ms: float
    failed: int


def wrk(url: str, connections: int, seconds: float) -> Load:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SUMMARY)
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", script.name, url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rate = found["requests"] / found["us"] * 1e6
    return Load(rate, found["p50"] / 1000, found["p99"] / 1000, found["failed"])


@contextmanager
def served(module: list[str]) -> Iterator[str]:
    """The address of a server that `python -m MODULE... PORT` starts, once it answers."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    where = f"127.0.0.1:{port}" if module[-1] == "--bind" else str(port)
    server = subprocess.Popen([sys.executable, "-m", *module, where], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + START_S
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{module[0]} does not answer") from None
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def connection(url: str) -> Iterator[tuple[socket.socket, str, str]]:
    """A socket, and the host and path for its requests."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=120) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock, parts.netloc, parts.path


def head_of(sock: socket.socket) -> bytes:
    """What follows the head of a response in its first packets; the head must say 200."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return rest


def first_byte_ms(url: str, rounds: int = 200) -> float:
    """Median time from a request to the first byte of the body of a stream that has one event."""
    times = []
    with connection(url) as (sock, host, path):
        request = f"GET {path}events/1 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        for _ in range(rounds):
            start = time.perf_counter()
            sock.sendall(request)
            data = head_of(sock) or sock.recv(65536)
            times.append(time.perf_counter() - start)
            while not data.endswith(b"0\r\n\r\n"):
                data += sock.recv(65536)
    return statistics.median(times) * 1000


def events_per_second(url: str, count: int = 20_000) -> float:
    with connection(url) as (sock, host, path):
        start = time.perf_counter()
        sock.sendall(f"GET {path}events/{count} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        tail = head_of(sock)[-5:]
        while tail != b"0\r\n\r\n":
            data = sock.recv(1 << 20)
            assert data, "the stream ended early"
            tail = (tail + data)[-5:]
        return count / (time.perf_counter() - start)


def upload_s(url: str, size: int, chunked: bool = False) -> float:
    """Seconds for a body of so many bytes, until its receiver has said how many it got."""
    with connection(url) as (sock, host, path):
        start = time.perf_counter()
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
        sock.sendall(f"POST {path}upload HTTP/1.1\r\nHost: {host}\r\n{length}\r\n\r\n".encode())
        for at in range(0, size, len(PART)):
            part = memoryview(PART)[: size - at]
            if chunked:
                sock.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            else:
                sock.sendall(part)
        if chunked:
            sock.sendall(b"0\r\n\r\n")
        body = head_of(sock)
        while str(size).encode() not in body:
            data = sock.recv(65536)
            assert data, body
            body += data
        return time.perf_counter() - start


def download_s(url: str, size: int) -> float:
    with connection(url) as (sock, host, path):
        start = time.perf_counter()
        sock.sendall(f"GET {path}download/{size} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        left = size - len(head_of(sock))
        buffer = bytearray(1 << 20)
        while left > 0:
            count = sock.recv_into(buffer)
            assert count, f"{left} bytes are missing"
            left -= count
        return time.perf_counter() - start


class Echo(NamedTuple):
    round_trip_us: float
    rate: float


def echo(url: str, rounds: int = 2_000, many: int = 20_000) -> Echo:
    """Median round trip of a small text message, and messages a second with a hundred of them under way."""

    async def measure() -> Echo:
        async with websockets.connect(url.replace("http", "ws", 1), compression=None) as link:
            times = []
            for _ in range(rounds):
                start = time.perf_counter()
                await link.send("ahoy")
                assert await link.recv() == "ahoy"
                times.append(time.perf_counter() - start)
            start = time.perf_counter()
            for _ in range(100):
                await link.send("ahoy")
            for i in range(many):
                await link.recv()
                if i < many - 100:
                    await link.send("ahoy")
            return Echo(statistics.median(times) * 1e6, many / (time.perf_counter() - start))

    return asyncio.run(measure())


class Memory:
    """Most resident memory of processes since now: how much more it was than at first. Those that end do not count.

    Example:
        memory = Memory(processes)
        ...
        memory.grown_mb()
    """

    def __init__(self, processes: list[int]) -> None:
        for process in processes:
            with suppress(OSError):
                Path(f"/proc/{process}/clear_refs").write_text("5")
        self._before = {process: _status(process, "VmRSS") for process in processes}

    def grown_mb(self) -> float:
        grown = (_status(process, "VmHWM") - before for process, before in self._before.items())
        return sum(max(0, size) for size in grown) / 1024


def _status(process: int, name: str) -> int:
    """KiB; 0 where the process has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
    return 0
